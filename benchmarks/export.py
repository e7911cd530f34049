"""Exported models on onnxruntime against the same model in torch: speed, turn by turn, size and
what precision costs.

python benchmarks/export.py [--model dac-16khz-live | --preset dac-44khz] [--seconds 10]
[--calibration DIR] [--torchao]

With --torchao, int8 in torch too: weight-only and dynamic, of every convolution that is a matrix
product.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from codecplus import Codec, DacModel, load_codec
from codecplus.configuration import load_preset, preset_names
from codecplus.export import export_onnx
from codecplus.export.calibration import calibration_audio


def random_net(preset: str) -> DacModel:
    """Random weights of that architecture, scaled so that activations stay near 1."""
    from codecplus import CausalDacModel

    torch.manual_seed(0)
    config = load_preset(preset)
    model = (CausalDacModel if config.causal else DacModel)(config)
    for name, parameter in model.named_parameters():
        if "weight" in name and parameter.ndim == 3:
            fan = parameter.shape[0] * 2 if "conv_t" in name else parameter[0].numel()
            torch.nn.init.normal_(parameter, std=0.5 / fan**0.5)
    return model.eval()


def timed(function) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, np.asarray(result)


def snr(estimate: np.ndarray, reference: np.ndarray) -> float:
    error = ((estimate - reference) ** 2).sum()
    return float("inf") if error == 0 else float(10 * np.log10((reference**2).sum() / error))


def measure(codecs: dict[str, Codec], audio: np.ndarray, rounds: int) -> dict[str, tuple]:
    """Per codec: seconds to encode and to decode, the ratio to the first one, codes kept (all,
    first), SNR of audio.
    """
    reference = next(iter(codecs.values())).encode(audio)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in codecs}
    kept, noise, expected = {}, {}, None
    for turn in range(rounds + 1):  # the first warms up
        for name, codec in codecs.items():
            encode, codes = timed(lambda codec=codec: codec.encode(audio))
            decode, decoded = timed(lambda codec=codec: codec.decode(reference))
            expected = decoded if expected is None else expected
            kept[name], noise[name] = codes == np.asarray(reference), snr(decoded, expected)
            if turn:
                times[name].append((encode, decode))
    base = [sum(pair) for pair in next(iter(times.values()))]
    return {
        name: (
            *(statistics.median(column) for column in zip(*pairs, strict=True)),
            statistics.median(b / sum(pair) for b, pair in zip(base, pairs, strict=True)),
            kept[name].mean(),
            kept[name][0].mean(),
            noise[name],
        )
        for name, pairs in times.items()
    }


def quantize_in_torch(model: DacModel, dynamic: bool) -> None:
    """torchao's int8 on the pointwise convolutions, as linear layers: it quantizes no others."""
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    for block in (*model.encoder.block, *model.decoder.block):
        for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
            unit.conv2 = Pointwise(unit.conv2)
    config = Int8DynamicActivationInt8WeightConfig() if dynamic else Int8WeightOnlyConfig()
    quantize_(model, config, filter_fn=lambda module, name: isinstance(module, torch.nn.Linear))


class Pointwise(torch.nn.Module):
    """A convolution of kernel 1 as the linear layer it is."""

    def __init__(self, conv):
        super().__init__()
        self.linear = torch.nn.Linear(conv.in_channels, conv.out_channels)
        self.linear.weight.data, self.linear.bias.data = (
            conv.weight.data.squeeze(-1).contiguous(),
            conv.bias.data,
        )

    def forward(self, x, lengths=None, residual=None):
        y = self.linear(x.transpose(1, 2)).transpose(1, 2)
        return y if residual is None else y + residual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="dac-16khz-live", help="as for load_codec (default: %(default)s)"
    )
    parser.add_argument(
        "--preset", choices=preset_names(), help="random weights of that architecture instead"
    )
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="recordings: int8 too, measured on one of them",
    )
    parser.add_argument("--torchao", action="store_true", help="int8 in torch too")
    parser.add_argument(
        "--only", nargs="+", default=["fp32", "fp16", "int8"], help="precisions of the export"
    )
    args = parser.parse_args()

    def fresh() -> DacModel:
        return random_net(args.preset) if args.preset else load_codec(args.model).model

    model = fresh()
    rate = model.config.sampling_rate
    audio = (
        np.random.default_rng(0).standard_normal(int(args.seconds * rate)).astype(np.float32) * 0.1
    )
    recordings = [] if args.calibration is None else list(calibration_audio(args.calibration, rate))
    if recordings:  # the last ones are measured, the others calibrate
        audio = np.concatenate(recordings[-3:])[: len(audio)]
        recordings = recordings[:-3]
    sizes = {"torch fp32": sum(p.numel() for p in model.parameters()) * 4e-6}
    codecs = {
        "torch fp32": Codec(model.lay_out_weights()),
        "torch bf16": Codec(fresh().to(torch.bfloat16).lay_out_weights()),
    }
    with tempfile.TemporaryDirectory() as folder:
        for precision in args.only:
            if precision == "int8" and not recordings:
                continue
            calibration = recordings if precision == "int8" else None
            paths = export_onnx(
                model, Path(folder) / precision, precision=precision, calibration=calibration
            )
            codecs[f"onnx {precision}"] = load_codec(Path(folder) / precision)
            sizes[f"onnx {precision}"] = sum(path.stat().st_size for path in paths) / 1e6
            print(
                f"{precision}: "
                + ", ".join(f"{p.name} {p.stat().st_size / 1e6:.1f} MB" for p in paths)
            )
        if args.torchao:
            for dynamic in (False, True):
                quantized = fresh()
                quantize_in_torch(quantized, dynamic)
                name = f"torchao {'dynamic' if dynamic else 'weights'}"
                codecs[name] = Codec(quantized, model_fingerprint=codecs["torch fp32"].fingerprint)
        rows = measure(codecs, audio, args.rounds)
    seconds = len(audio) / rate
    print(
        f"{args.preset or args.model}, {seconds:.1f} s, {torch.get_num_threads()} threads, median "
        f"of {args.rounds}"
    )
    print(
        f"{'':<16} {'encode':>9} {'decode':>9}  {'to torch fp32':>13}  {'codes kept':>10} "
        f"{'first':>8} {'audio SNR':>9}"
    )
    for name, (encode, decode, ratio, kept, first, noise) in rows.items():
        size = f"  {sizes[name]:.1f} MB" if name in sizes else ""
        print(
            f"{name:<16} {seconds / encode:>7.2f} x {seconds / decode:>7.2f} x  {ratio:>11.2f} x  "
            f"{kept:>10.2%} "
            f"{first:>8.2%} {noise:>6.1f} dB{size}"
        )


if __name__ == "__main__":
    main()
