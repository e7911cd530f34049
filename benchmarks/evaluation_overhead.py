"""How much of an evaluation's processor time goes to neither a codec nor a metric.

    python benchmarks/evaluation_overhead.py --clips 1000 --seconds 5

The same clips are encoded, decoded and scored a second time by plain calls in a loop. Processor time is compared, of
this process and its workers, so that other load on the machine does not count.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as the workers have it

import numpy as np
import soundfile

from codecplus.eval import EvaluationConfig, load_results, run_evaluation
from codecplus.eval.codecs import Original, resolve_codecs
from codecplus.eval.metrics import Recording, compute_score, metrics_by_name

RATE = 16_000


def write_clips(folder: Path, clips: int, seconds: float) -> None:
    """Noise in syllables: what it sounds like does not matter here."""
    rng = np.random.default_rng(0)
    t = np.arange(int(seconds * RATE)) / RATE
    for i in range(clips):
        audio = 0.1 * rng.standard_normal(t.size) * np.clip(np.sin(2 * np.pi * (3 + i % 3) * t), 0, None)
        soundfile.write(folder / f"{i:05d}.flac", audio, RATE)


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def plain_loop(folder: Path, codecs: list, metrics: list) -> float:
    start = time.process_time()
    for path in sorted(folder.glob("*.flac")):
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        reference = Recording(audio.T, rate)
        for codec in codecs:
            payload = codec.encode(reference.audio, rate)
            decoded = codec.decode(payload.data, Original(1, reference.audio.shape[1], rate))
            estimate = Recording(decoded, rate)
            for metric in metrics:
                compute_score(metric, reference, estimate)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    codecs, metrics = resolve_codecs(["opus"], [12.0]), metrics_by_name()
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        data.mkdir()
        write_clips(data, args.clips, args.seconds)
        plain_loop(data, codecs, metrics[:1])  # imports
        own = plain_loop(data, codecs, metrics)
        before, start = processor_seconds(), time.perf_counter()
        config = EvaluationConfig(
            codecs=["opus"], bitrates=[12], data=str(data), out=Path(temporary) / "out", workers=args.workers
        )
        results = load_results(run_evaluation(config))
        wall, used = time.perf_counter() - start, processor_seconds() - before
    scores = sum(len(row.scores) for row in results.rows)
    print(
        f"{args.clips} clips of {args.seconds:g} s, {len(codecs)} codecs, {scores} scores in {wall:.1f} s of wall time"
    )
    print(f"codecs and metrics by plain calls {own:.1f} s, evaluation {used:.1f} s of processor time")
    print(f"overhead {100 * (used / own - 1):.1f} %")


if __name__ == "__main__":
    main()
