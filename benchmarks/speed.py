"""Speed against transformers' own DacModel: same weights, same machine, one run, turn by turn; prints ratios.

python benchmarks/speed.py [--preset dac-44khz] [--seconds 30] [--rounds 3] [--threads N]
"""

import argparse
import statistics
import time

import numpy as np
import torch
from transformers import DacConfig as StockConfig
from transformers import DacModel as StockModel

from codecplus import Codec, DacModel
from codecplus.configuration import load_preset, preset_names


def nets(preset: str) -> tuple[StockModel, DacModel]:
    """Random weights of that architecture, in transformers' class and in ours."""
    config = load_preset(preset)
    fields = ("encoder_hidden_size", "decoder_hidden_size", "downsampling_ratios", "n_codebooks", "sampling_rate")
    torch.manual_seed(0)
    stock = StockModel(StockConfig(**{name: getattr(config, name) for name in fields})).eval()
    for name, parameter in stock.named_parameters():
        if "weight" in name and parameter.ndim == 3:
            torch.nn.init.normal_(parameter, std=0.7 / (parameter[0].numel() / (1 + ("conv_t" in name))) ** 0.5)
    ours = DacModel(config).eval()
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def timed(function) -> tuple[float, object]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="dac-44khz", choices=[n for n in preset_names() if "live" not in n])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    stock, ours = nets(args.preset)
    hop, rate = ours.config.hop_length, ours.config.sampling_rate
    samples = int(args.seconds * rate) // hop * hop
    audio = (np.random.default_rng(0).standard_normal(samples) * 0.1).astype(np.float32)
    tensor = torch.from_numpy(audio)[None, None]
    codecs = {"fp32": Codec(ours), "bf16": None}
    half = DacModel(ours.config).eval()
    half.load_state_dict(ours.state_dict())
    codecs["bf16"] = Codec(half.to(torch.bfloat16))

    @torch.inference_mode()
    def encode_stock():
        return stock.encode(tensor).audio_codes

    @torch.inference_mode()
    def decode_stock(codes):
        return stock.decode(audio_codes=codes).audio_values

    times: dict[str, list[tuple[float, float]]] = {"stock fp32": [], "ours fp32": [], "ours bf16": []}
    agreement = {}
    for turn in range(args.rounds + 1):  # the first warms up
        seconds, codes = timed(encode_stock)
        row = {"stock fp32": (seconds, timed(lambda codes=codes: decode_stock(codes))[0])}
        for name, codec in codecs.items():
            seconds, latents = timed(lambda codec=codec: codec.encode(audio))
            row[f"ours {name}"] = (seconds, timed(lambda codec=codec, latents=latents: codec.decode(latents))[0])
            agreement[name] = np.asarray(latents) == codes[0].numpy()
        for name, pair in row.items() if turn else ():
            times[name].append(pair)

    length = samples / rate
    print(f"{args.preset}, {length:.1f} s, {torch.get_num_threads()} threads, median of {args.rounds} rounds")
    print(f"{'':<12} {'encode':>10} {'decode':>10}   {'both against stock fp32':>24}   codes equal to stock's")
    base = [sum(pair) for pair in times["stock fp32"]]
    for name, pairs in times.items():
        encode, decode = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(b / sum(pair) for b, pair in zip(base, pairs, strict=True))
        equal = agreement.get(name.removeprefix("ours "))
        told = "" if equal is None else f"{equal.mean():.4%}, first codebook {equal[0].mean():.4%}"
        print(f"{name:<12} {length / encode:>8.2f} x {length / decode:>8.2f} x   {ratio:>22.2f} x   {told}")


if __name__ == "__main__":
    main()
