"""Speed on a GPU against transformers' DacModel, bf16 and compiled on both sides; prints ratios.

    python benchmarks/accelerator.py [--preset dac-44khz] [--batch 16] [--seconds 10] [--rounds 5]
    [--device cuda]

Rows of one length, turn by turn, medians: layers as they are, `compile_layers()`, and CUDA graphs,
which hold for one shape. Then clips of many lengths in batches against one by one. Weights are
random. `--device cpu` tries it out.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from speed import copy_of, macs_per_second, nets

from codecplus import DacModel
from codecplus.configuration import preset_names
from codecplus.inference.batched import encode_clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preset",
        default="dac-44khz",
        choices=[n for n in preset_names() if not n.endswith("live")],
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    device = torch.device(args.device)

    stock, ours = nets(args.preset)
    config, dtype = ours.config, torch.bfloat16
    models = {"eager": copy_of(stock, config, dtype), "compiled": copy_of(stock, config, dtype)}
    models["compiled"].to(device).compile_layers()
    if device.type == "cuda":
        models["CUDA graphs"] = copy_of(stock, config, dtype)
        for half in (models["CUDA graphs"].encoder, models["CUDA graphs"].decoder):
            half.compile(mode="reduce-overhead")
    stock.to(device, dtype)
    for half in (stock.encoder, stock.decoder):
        half.compile()
    sides = {
        "transformers, compiled": stock,
        **{name: model.to(device) for name, model in models.items()},
    }

    samples = int(args.seconds * config.sampling_rate) // config.hop_length * config.hop_length
    audio = 0.1 * torch.randn(args.batch, 1, samples, device=device, dtype=dtype)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with torch.inference_mode():
        for model in sides.values():
            for _ in range(3):  # compiling, recording graphs
                round_trip(model, audio)
        for _ in range(args.rounds):
            for name, model in sides.items():
                seconds[name].append(timed(device, lambda model=model: round_trip(model, audio)))

    total = args.batch * samples / config.sampling_rate
    flops, peak = 2e9 * macs_per_second(ours) * total, matmul_peak(device)
    print(
        f"{args.preset}, bf16, {args.batch} x {args.seconds:g} s, {name_of(device)}, median of "
        f"{args.rounds} round(s)"
    )
    first = seconds["transformers, compiled"]
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, taken, strict=True))
        share = flops / statistics.median(taken) / peak
        speed = total / statistics.median(taken)
        print(f"{name:<24}{speed:>9.1f} x real time{ratio:>7.2f} x{share:>6.0%} of the GEMM peak")
    print(f"mixed lengths, in batches: {mixed(models['eager'], args, device):.1f} x one by one")
    if device.type == "cuda":
        print(f"peak memory: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB")


def round_trip(model, audio: torch.Tensor) -> None:
    model.decode(audio_codes=model.encode(audio).audio_codes)


def timed(device: torch.device, run: Callable[[], object]) -> float:
    """Seconds until the device has done it."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def matmul_peak(device: torch.device) -> float:
    """FLOP/s of the best of some bf16 matrix products."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / min(timed(device, lambda: a @ a) for _ in range(5))


def mixed(model: DacModel, args, device: torch.device) -> float:
    """How many times as fast four batches' worth of clips are in batches as one by one."""
    rng, rate = np.random.default_rng(0), model.config.sampling_rate
    lengths = rng.uniform(0.05, 1.0, 4 * args.batch) * args.seconds
    clips = [0.1 * rng.standard_normal((1, int(length * rate)), np.float32) for length in lengths]

    def encode(batch_seconds: float) -> float:
        return timed(
            device, lambda: encode_clips(model, clips, model.config.n_codebooks, batch_seconds)
        )

    encode(args.batch * args.seconds)
    return statistics.median(
        encode(0) / encode(args.batch * args.seconds) for _ in range(args.rounds)
    )


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


if __name__ == "__main__":
    main()
