"""How much of a tokeniser's time is the network's: `tokenize` against bare calls of the model on
the same batches.

    python benchmarks/tokenizing.py --model dac-16khz-live --clips 60 --seconds 5 --rounds 3

Clips are FLAC files at 44.1 kHz, so that every one is decoded and resampled; what the shards hold
is checked. The two take turns, and the ratio is of their medians. `--source-rate` and `--workers`
change what the workers have to do.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch

from codecplus import load_codec
from codecplus.recordings import open_recordings
from codecplus.tokenizing import Coding, tokenize
from codecplus.utils import load_audio


def write_clips(folder: Path, clips: int, seconds: float, rate: int) -> None:
    """Noise in syllables, of lengths from half to one and a half of `seconds`."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(clips):
        t = np.arange(int(seconds * (0.5 + rng.random()) * rate)) / rate
        audio = (
            0.1
            * rng.standard_normal(t.size)
            * np.clip(np.sin(2 * np.pi * (3 + i % 3) * t), 0, None)
        )
        soundfile.write(folder / f"{i:05d}.flac", audio, rate)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="dac-16khz-live")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--source-rate", type=int, default=44_100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of the network")
    parser.add_argument("--batch-seconds", type=float)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    codec = load_codec(args.model, device=args.device)
    bare, whole = [], []
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        write_clips(data, args.clips, args.seconds, args.source_rate)
        clips = [
            load_audio(path, codec.model_sample_rate, channels=1)[0][None]
            for path in sorted(data.glob("*"))
        ]
        seconds = sum(clip.shape[1] for clip in clips) / codec.model_sample_rate
        codec.encode_clips(clips[:2], batch_seconds=args.batch_seconds)
        source = open_recordings(str(data))
        for turn in range(args.rounds):
            start = time.perf_counter()
            codes = codec.encode_clips(clips, batch_seconds=args.batch_seconds)
            bare.append(time.perf_counter() - start)
            out = Path(temporary) / f"out{turn}"
            start = time.perf_counter()
            coding = Coding(shard_rows=args.clips, batch_seconds=args.batch_seconds)
            tokenize(source, codec, out, coding=coding, workers=args.workers, progress=False)
            whole.append(time.perf_counter() - start)
        rows = pq.read_table(out / "data")["codes"].to_pylist()
        same = sum(np.array_equal(row, item[0]) for row, item in zip(rows, codes, strict=True))
    a, b = statistics.median(bare), statistics.median(whole)
    print(
        f"{args.model} on {args.device}: {args.clips} clips, {seconds:.0f} s of audio; {same} of "
        "them equal"
    )
    print(f"bare model   {a:7.2f} s  {seconds / a:7.1f} x real time  {args.clips / a:7.1f} clips/s")
    print(f"tokenize     {b:7.2f} s  {seconds / b:7.1f} x real time  {args.clips / b:7.1f} clips/s")
    print(f"throughput   {100 * a / b:.1f} % of the bare model's")


if __name__ == "__main__":
    main()
