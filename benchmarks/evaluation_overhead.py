"""How much of an evaluation's processor time goes to neither a codec nor a metric.

    python benchmarks/evaluation_overhead.py --clips 1000 --seconds 5

Inside one ordinary run the codecs' encode and decode, the metrics' functions and their resampling
are timed: the metrics by processor time, the codecs, which run in processes of their own, by the
clock. Whatever else this process and its workers spend is overhead: reading, hashing, caching,
checks, messages, rows, statistics, plots and reports, and importing all that. Run it on a machine
that does nothing else.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as the workers have it

import numpy as np
import soundfile

from codecplus.eval import EvaluationConfig, load_results, run_evaluation

RATE = 16_000

# Python imports a module of this name as it starts: so the workers time their metrics while they
# compute them.
SITECUSTOMIZE = """
import os, time
from dataclasses import replace
from codecplus.eval.metrics import METRICS, compute

log = os.open(os.environ["OVERHEAD_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def timed(function):
    def call(*arguments, **options):
        start = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            os.write(log, b"%.6f\\n" % (time.process_time() - start))
    return call

compute.resample = timed(compute.resample)
for name, metric in METRICS.items():
    METRICS[name] = replace(metric, function=timed(metric.function))
"""


def codec_seconds(cache: Path) -> float:
    """The time of the codecs' own calls, which are timed by the clock in their own processes."""
    total = 0.0
    for journal in (cache / "encoded").iterdir():
        for text in journal.read_text().splitlines():
            line = json.loads(text)
            total += line.get("encode_seconds", 0.0) + line.get("decode_seconds", 0.0)
    return total


def write_clips(folder: Path, clips: int, seconds: float) -> None:
    """Noise in syllables: what it sounds like does not matter here."""
    rng = np.random.default_rng(0)
    t = np.arange(int(seconds * RATE)) / RATE
    for i in range(clips):
        audio = (
            0.1
            * rng.standard_normal(t.size)
            * np.clip(np.sin(2 * np.pi * (3 + i % 3) * t), 0, None)
        )
        soundfile.write(folder / f"{i:05d}.flac", audio, RATE)


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--metric", nargs="+", help="as of `codecplus eval`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
        sys.path.insert(0, str(folder))  # the workers get this path
        os.environ["OVERHEAD_LOG"] = str(folder / "log")
        (folder / "data").mkdir()
        write_clips(folder / "data", args.clips, args.seconds)
        before, start = processor_seconds(), time.perf_counter()
        results = load_results(
            run_evaluation(
                EvaluationConfig(
                    codecs=["opus"],
                    bitrates=[12],
                    data=str(folder / "data"),
                    out=folder / "out",
                    workers=args.workers,
                    metrics=args.metric,
                )
            )
        )
        wall, used = time.perf_counter() - start, processor_seconds() - before
        metrics = sum(map(float, (folder / "log").read_text().split()))
        codecs = codec_seconds(folder / "out" / "cache")
    own = codecs + metrics
    scores = sum(len(row.scores) for row in results.rows)
    print(
        f"{args.clips} clips of {args.seconds:g} s, {len(results.codecs)} codecs, {scores} "
        f"scores, {wall:.0f} s"
    )
    print(
        f"processor time: codecs {codecs:.1f} s, metrics {metrics:.1f} s, the rest "
        f"{used - own:.1f} s"
    )
    print(f"overhead {100 * (used / own - 1):.1f} %")


if __name__ == "__main__":
    main()
