"""A very long live stream, faster than real time: memory, and whether clock and frames stay in
step.

    python benchmarks/endurance.py [--hours 10] [--push 10] [--codec dac-16khz-live [--compile]]

Without --codec a net of a few hundred weights runs, so that ten hours pass in minutes; the state of
a stream and the way it is carried are those of any net. With 16-bit positions, lists that grow or
tensors that hold on to their inputs, the last line would not stand.
"""

import argparse
import os
import time

import numpy as np
import torch

from codecplus import CausalDacConfig, CausalDacModel, load_codec
from codecplus.streaming import DecoderStream, EncoderStream


def resident() -> float:
    """MiB of resident memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=10.0)
    parser.add_argument("--push", type=float, default=10.0, help="seconds of audio pushed at once")
    parser.add_argument("--codec", help="default: a tiny net with random weights")
    parser.add_argument("--compile", action="store_true", help="bf16 and compiled layers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.codec:
        codec = load_codec(args.codec, dtype="bfloat16" if args.compile else "float32")
        model = (codec.compile() if args.compile else codec).model
    else:
        torch.manual_seed(0)
        sizes = {
            "encoder_hidden_size": 2,
            "decoder_hidden_size": 8,
            "n_codebooks": 2,
            "codebook_size": 16,
        }
        model = CausalDacModel(
            CausalDacConfig(**sizes, downsampling_ratios=[4, 10], sampling_rate=8000)
        ).eval()
    rate, hop = model.config.sampling_rate, model.config.hop_length
    encoder, decoder = EncoderStream(model), DecoderStream(model)
    samples, heard, frames, marks, start = 0, 0, 0, [], time.process_time()
    noise = np.random.default_rng(0).standard_normal(int(args.push * rate) + 7, np.float32) * 0.1
    pushes = int(args.hours * 3600 / args.push)
    for i in range(pushes):
        codes = encoder.push(
            noise[i % 7 :][: int(args.push * rate) - i % 5]
        )  # never the same number of frames
        samples += int(args.push * rate) - i % 5
        frames += codes.shape[-1]
        heard += decoder.push(codes).shape[-1]
        if (i + 1) % max(1, pushes // 10) == 0:
            marks.append(resident())
            print(f"{samples / rate / 3600:7.2f} h: {marks[-1]:.1f} MiB", flush=True)
    in_step = frames == samples // hop and heard == frames * hop
    print(
        f"{samples} samples in, {frames} frames, {heard} samples out: "
        f"{'in step' if in_step else 'OUT OF STEP'}; "
        f"{marks[-1] - marks[0]:+.1f} MiB since the first mark; {time.process_time() - start:.0f} "
        "s of processor"
    )


if __name__ == "__main__":
    main()
