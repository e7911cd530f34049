"""Speed against transformers' own DacModel: same weights, same machine, one run, turn by turn;
prints ratios.

    python benchmarks/speed.py [--preset dac-44khz] [--seconds 30] [--rounds 3] [--threads N]
                               [--clock processor] [--layers] [--mixed] [--memory 3600]

Weights are random: speed does not depend on them. On a machine that is not idle, one thread and
`--clock processor` give ratios that still hold. `--layers` adds where the time goes, `--mixed`
clips of many lengths in batches, `--memory` the peak over the weights for so many seconds,
`--peers` EnCodec and the original package where they are installed.
"""

import argparse
import resource
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from transformers import DacConfig as StockConfig
from transformers import DacModel as StockModel

from codecplus import Codec, DacModel
from codecplus.configuration import load_preset, preset_names
from codecplus.inference.batched import encode_clips
from codecplus.inference.chunked import decode_blocks, encode_blocks
from codecplus.kernels import processor_flags, usable_set
from codecplus.modeling_dac.layers_dac import (
    DacConv1d,
    DacConvTranspose1d,
    DacResidualUnit,
    DacResidualVectorQuantizer,
    Snake1d,
)
from codecplus.system.devices import multiplies_bf16

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}


def nets(preset: str) -> tuple[StockModel, DacModel]:
    """Random weights of that architecture, in transformers' class and in ours."""
    config = load_preset(preset)
    fields = (
        "encoder_hidden_size",
        "decoder_hidden_size",
        "downsampling_ratios",
        "n_codebooks",
        "sampling_rate",
    )
    torch.manual_seed(0)
    stock = StockModel(StockConfig(**{name: getattr(config, name) for name in fields})).eval()
    for name, parameter in stock.named_parameters():
        if "weight" in name and parameter.ndim == 3:
            torch.nn.init.normal_(
                parameter, std=0.7 / (parameter[0].numel() / (1 + ("conv_t" in name))) ** 0.5
            )
    return stock, copy_of(stock, config, torch.float32)


def copy_of(stock: StockModel, config, dtype: torch.dtype) -> DacModel:
    with torch.device("meta"):
        ours = DacModel(config)
    ours.load_state_dict(
        {name: value.to(dtype, copy=True) for name, value in stock.state_dict().items()},
        assign=True,
    )
    return ours.eval()


def matmul_peak(dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """GFLOP/s of the best of some square matrix products."""
    a = torch.randn(2048, 2048).to(dtype)
    seconds = []
    for _ in range(4):
        start = clock()
        a @ a
        seconds.append(clock() - start)
    return 2 * 2048**3 / min(seconds) / 1e9


def macs_per_second(model: DacModel) -> float:
    """Multiplications of encoder and decoder per second of audio, in units of 1e9."""
    total, rate = 0.0, float(model.config.sampling_rate)
    for half in (model.encoder, model.decoder):
        if half is model.decoder:
            rate = model.config.frame_rate
        for layer in half.modules():
            if isinstance(layer, DacConvTranspose1d):
                total += rate * layer.weight.numel()
                rate *= layer.stride[0]
            elif isinstance(layer, DacConv1d):
                rate /= layer.stride[0]
                total += rate * layer.weight.numel()
    return total / 1e9


def time_by_layer(model: DacModel, audio: torch.Tensor, clock: Callable[[], float]) -> Counter:
    """Seconds spent in each kind of layer."""
    spent, wrapped = Counter(), []
    layers = [layer for _, layer in (*model.encoder.layers(), *model.decoder.layers())]
    for layer in (*layers, model.quantizer):
        kind = kind_of(layer)
        if kind is None:
            continue

        def timed(*args, layer=layer, kind=kind, **kwargs):
            start = clock()
            result = type(layer).forward(layer, *args, **kwargs)
            spent[kind] += clock() - start
            return result

        layer.forward = timed
        wrapped.append(layer)
    with torch.inference_mode():
        model(audio.to(model.dtype))
        spent.clear()
        start = clock()
        model(audio.to(model.dtype))
        spent["rest"] = clock() - start - spent.total()
    for layer in wrapped:
        del layer.forward
    return spent


def kind_of(layer: torch.nn.Module) -> str | None:
    if isinstance(layer, DacResidualUnit):
        return "unit"
    if isinstance(layer, Snake1d):
        return "snake"
    if isinstance(layer, DacResidualVectorQuantizer):
        return "quantizer"
    if isinstance(layer, DacConvTranspose1d):
        return "transposed"
    if not isinstance(layer, DacConv1d) or layer.in_channels == 8 or layer.out_channels == 8:
        return None
    if layer.stride[0] > 1:
        return "strided"
    return {1: "pointwise", 7: "kernel 7"}.get(layer.kernel_size[0], "kernel 3")


def compare(
    args, stock: StockModel, models: dict[str, DacModel], clock: Callable[[], float]
) -> None:
    config = models["fp32"].config
    samples = (
        max(1, int(args.seconds * config.sampling_rate) // config.hop_length) * config.hop_length
    )
    audio = (np.random.default_rng(0).standard_normal(samples) * 0.1).astype(np.float32)
    tensor = torch.from_numpy(audio)[None, None]
    codecs = {name: Codec(model) for name, model in models.items()}
    for codec in codecs.values():  # kernels order their weights at first use
        codec.decode(codec.encode(audio[: config.sampling_rate]))

    def turn(encode, decode):
        moments = [clock()]
        codes = encode()
        moments.append(clock())
        decode(codes)
        moments.append(clock())
        return np.diff(moments), codes

    times: dict[str, list[np.ndarray]] = {name: [] for name in ("stock fp32", *codecs)}
    agreement = {}
    for _ in range(args.rounds):
        with torch.inference_mode():
            seconds, reference = turn(
                lambda: stock.encode(tensor).audio_codes,
                lambda codes: stock.decode(audio_codes=codes),
            )
        times["stock fp32"].append(seconds)
        for name, codec in codecs.items():
            seconds, latents = turn(lambda codec=codec: codec.encode(audio), codec.decode)
            times[name].append(seconds)
            agreement[name] = np.asarray(latents) == reference[0].numpy()

    length = samples / config.sampling_rate
    target = usable_set()
    how = f", {target.name} kernels" if target else ", no kernels"
    print(
        f"{args.preset}, {length:.1f} s, {torch.get_num_threads()} thread(s), {args.clock} time, "
        f"median of {args.rounds} round(s){how}"
    )
    print(
        f"{'':<14}{'encode':>10}{'decode':>10}{'ratio':>8}{'of peak':>9}   codes equal to stock's"
    )
    work = 2 * macs_per_second(models["fp32"]) * length
    for name, rows in times.items():
        encode, decode = np.median(rows, axis=0)
        ratio = statistics.median(
            base.sum() / row.sum() for base, row in zip(times["stock fp32"], rows, strict=True)
        )
        peak = matmul_peak(torch.bfloat16 if name == "bf16" else torch.float32, clock)
        equal = agreement.get(name)
        told = "" if equal is None else f"{equal.mean():.4%}, first codebook {equal[0].mean():.4%}"
        print(
            f"{name:<14}{length / encode:>8.2f} x{length / decode:>8.2f} x{ratio:>6.2f} x"
            f"{work / (encode + decode) / peak:>8.0%}   {told}"
        )
    if args.layers:
        for name, model in models.items():
            spent = time_by_layer(model, tensor, clock)
            shares = ", ".join(
                f"{kind} {part / spent.total():.0%}" for kind, part in spent.most_common()
            )
            print(f"{name}: {1000 * spent.total() / length:.0f} ms per second: {shares}")


def compare_mixed(args, model: DacModel, clock: Callable[[], float]) -> None:
    rng = np.random.default_rng(0)
    clips = [
        rng.standard_normal((1, int(length * model.config.sampling_rate)), np.float32) * 0.1
        for length in rng.uniform(0.1, 1.0, 16) * args.seconds
    ]
    ratios = []
    for _ in range(args.rounds):
        start = clock()
        encode_clips(model, clips, model.config.n_codebooks, 0)
        middle = clock()
        encode_clips(model, clips, model.config.n_codebooks, 4 * args.seconds)
        ratios.append((middle - start) / (clock() - middle))
    print(
        f"16 clips of mixed lengths, encoded in batches: {statistics.median(ratios):.2f} x one by "
        "one"
    )


def show_memory(seconds: float, model: DacModel) -> None:
    """Peak of resident memory while a long signal passes, over what the process held before."""
    rate, hop = model.config.sampling_rate, model.config.hop_length
    before, peak, done = resident(), [0], threading.Event()

    def watch():
        while not done.wait(0.02):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    noise = np.random.default_rng(0).standard_normal((1, rate), np.float32) * 0.1
    codes = encode_blocks(model, (noise for _ in range(int(seconds))))
    samples = sum(block.shape[-1] for block in decode_blocks(model, codes))
    done.set()
    watcher.join()
    print(
        f"memory over the weights: {(peak[0] - before) / 2**20:.0f} MiB for "
        f"{samples // hop * hop / rate:.0f} s"
    )


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def show_peers(args, clock: Callable[[], float]) -> None:
    from transformers import EncodecConfig, EncodecModel

    def report(name: str, rate: int, roundtrip) -> None:
        audio = torch.randn(1, 1, int(args.seconds * rate)) * 0.1
        with torch.inference_mode():
            seconds = []
            for _ in range(args.rounds):
                start = clock()
                roundtrip(audio)
                seconds.append(clock() - start)
        print(
            f"{name}: encode and decode {args.seconds / statistics.median(seconds):.2f} x real time"
        )

    encodec = EncodecModel(EncodecConfig()).eval()
    report("EnCodec 24 kHz (transformers)", 24000, lambda audio: encodec(audio))
    try:
        from dac.model import DAC
    except ImportError:
        print("descript-audio-codec is not installed")
        return
    original = DAC().eval()
    report("descript-audio-codec 44.1 kHz", 44100, lambda audio: original(audio, 44100))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preset", default="dac-44khz", choices=[n for n in preset_names() if "live" not in n]
    )
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--memory", type=float, default=0.0, metavar="SECONDS")
    for name in ("layers", "mixed", "peers"):
        parser.add_argument(f"--{name}", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = CLOCKS[args.clock]

    stock, ours = nets(args.preset)
    plain = copy_of(stock, ours.config, torch.float32).allow_kernels(False)
    models = {"fp32, plain": plain, "fp32": ours}
    if multiplies_bf16(torch.device("cpu"), processor_flags()):
        models["bf16"] = copy_of(stock, ours.config, torch.bfloat16)
    compare(args, stock, models, clock)
    del stock
    if args.mixed:
        for name, model in models.items():
            print(name, end=": ")
            compare_mixed(args, model, clock)
    if args.memory:
        show_memory(args.memory, models.get("bf16", ours))
    if args.peers:
        show_peers(args, clock)


if __name__ == "__main__":
    main()
