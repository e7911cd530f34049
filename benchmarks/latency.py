"""How long one frame takes from microphone to loudspeaker, beside the frame itself: encode and
decode, live.

    python benchmarks/latency.py [--codec dac-16khz-live] [--seconds 10] [--threads 1] [--batch 8]
    [--dtype bfloat16] [--compile]

Every frame is pushed as it would come from a sound card, and timed alone; with `--batch`, frames of
so many streams at once. Wall time is what a listener waits for, on this machine with whatever else
runs on it; processor time is what the work takes. Below 100 % of a frame it is in real time.
"""

import argparse
import time

import numpy as np
import torch

from codecplus import load_codec
from codecplus.streaming import DecoderStream, EncoderStream

WARM_UP = 20  # frames


def frame_times(model, frames: int, batch: int) -> np.ndarray:
    """Milliseconds (frames, 2, 2) of encoder and decoder, wall and processor time."""
    hop = model.config.hop_length
    audio = np.random.default_rng(0).standard_normal((frames, batch, hop), np.float32) * 0.1
    encoder = EncoderStream(model, batch=batch)
    decoder = DecoderStream(model, batch=batch)
    times = []
    for frame in audio:
        moments = [clocks()]
        codes = encoder.push(frame)
        moments.append(clocks())
        decoder.push(codes)
        moments.append(clocks())
        times.append(np.diff(moments, axis=0))
    return 1000 * np.array(times)


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codec", default="dac-16khz-live")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for dtype in args.dtype:
        show(args, dtype)


def show(args, dtype: str) -> None:
    codec = load_codec(args.codec, dtype=dtype)
    if args.compile:
        codec.compile()
    period = 1000 / codec.frame_rate
    frames = max(1, round(args.seconds * codec.frame_rate))
    times = frame_times(codec.network.model, WARM_UP + frames, args.batch)[WARM_UP:]

    print(
        f"{args.codec}, {dtype}: {frames} frames of {period:.1f} ms, {args.batch} stream(s), "
        f"{args.threads} thread(s), {codec.kernels or 'no'} kernels"
    )
    print(f"algorithmic latency {1000 * codec.latency:.1f} ms; on top of it, ms per frame:\n")
    print(f"{'':24}{'p50':>8}{'p95':>8}{'p99':>8}{'max':>8}{'p99 of a frame':>18}")
    rows = {"encode": times[:, 0], "decode": times[:, 1], "both": times.sum(axis=1)}
    for name, row in rows.items():
        for clock, column in (("wall", row[:, 0]), ("processor", row[:, 1])):
            percentiles = np.percentile(column, [50, 95, 99, 100])
            figures = "".join(f"{figure:8.2f}" for figure in percentiles)
            print(f"{name + ', ' + clock:24}{figures}{percentiles[2] / period:>18.0%}")
    print()


if __name__ == "__main__":
    main()
