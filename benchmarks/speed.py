"""Speed against transformers' own DacModel: same weights, same machine, one run, turn by turn;
prints one table.

    python benchmarks/speed.py [--preset dac-44khz] [--seconds 30] [--rounds 3] [--threads N]
                               [--clock processor] [--quick] [--layers] [--mixed] [--memory 3600]

Weights are random: speed does not depend on them. On a machine that is not idle, one thread and
`--clock processor` give ratios that still hold. `--quick` leaves out transformers' compiled net,
whose compilation takes a minute, onnxruntime and OpenVINO. `--layers` adds where the time goes,
`--mixed` clips of many lengths in batches, `--memory` the peak over the weights for so many
seconds, `--peers` EnCodec and the original package where they are installed.
"""

import argparse
import copy
import platform
import resource
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DacConfig as StockConfig
from transformers import DacModel as StockModel

from codecplus import Codec, DacModel, load_codec
from codecplus.configuration import load_preset, preset_names
from codecplus.errors import CodecPlusError
from codecplus.export import export_onnx
from codecplus.inference.batched import encode_clips
from codecplus.inference.chunked import decode_blocks, encode_blocks
from codecplus.inference.onnx_model import export_paths
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
        "codebook_size",
        "codebook_dim",
        "sampling_rate",
    )
    torch.manual_seed(0)
    stock_config = StockConfig(**{name: getattr(config, name) for name in fields})
    stock_config.hidden_size = config.hidden_size  # which it derives from others
    stock = StockModel(stock_config).eval()
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
        for name, layer in half.named_modules():
            if name.startswith("gains"):  # registered last, but frame by frame
                rate = model.config.frame_rate
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


class Row(NamedTuple):
    """One way to run the net."""

    encode: Callable[[np.ndarray], Any]  # (S,) to codes
    decode: Callable[[Any], Any]
    codes: Callable[[Any], np.ndarray]  # as (K, T)
    is_bf16: bool = False


def stock_row(model: StockModel) -> Row:
    def encode(audio: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            return model.encode(torch.from_numpy(audio)[None, None].to(model.dtype)).audio_codes

    def decode(codes: torch.Tensor) -> None:
        with torch.inference_mode():
            model.decode(audio_codes=codes)

    return Row(encode, decode, lambda codes: codes[0].numpy(), model.dtype == torch.bfloat16)


def codec_row(codec: Codec) -> Row:
    return Row(codec.encode, codec.decode, np.asarray, codec.dtype == "bfloat16")


def openvino_row(folder: Path, precision: str) -> Row:
    """The exported graphs on OpenVINO, "f32" or "bf16", in one pass over the whole signal.

    Raises ImportError without OpenVINO, of `codecplus[bench]`.
    """
    from openvino import Core, properties

    encoder, decoder = export_paths(folder)
    settings = {
        properties.hint.inference_precision(): precision,
        properties.inference_num_threads(): torch.get_num_threads(),
    }
    encoder = Core().compile_model(encoder, "CPU", settings)
    decoder = Core().compile_model(decoder, "CPU", settings)

    def encode(audio: np.ndarray) -> np.ndarray:
        return encoder(audio[None, None])[0]  # (1, K, T)

    return Row(encode, decoder, lambda codes: codes[0], precision == "bf16")


def rows_to_compare(
    args, stock: StockModel, models: dict[str, DacModel], folder: Path
) -> dict[str, Row]:
    """All rows of the table that this machine has; says why where it lacks one."""
    rows = {"transformers": stock_row(stock)}
    if "codecplus, bf16" in models:
        rows["transformers, bf16"] = stock_row(copy.deepcopy(stock).bfloat16())
    if not args.quick:
        compiled = copy.deepcopy(stock)
        compiled.encoder.compile()
        compiled.decoder.compile()
        rows["transformers, compiled"] = stock_row(compiled)
    rows |= {name: codec_row(Codec(model.lay_out_weights())) for name, model in models.items()}
    if not args.quick:
        rows |= rows_of_exports(models, folder)
    return rows


def rows_of_exports(models: dict[str, DacModel], folder: Path) -> dict[str, Row]:
    rows = {}
    try:
        export_onnx(models["codecplus"], folder)
        rows["onnxruntime"] = codec_row(load_codec(folder))
    except CodecPlusError as error:
        print(f"without onnxruntime and OpenVINO: {error}")
        return rows
    try:
        rows["OpenVINO"] = openvino_row(folder, "f32")
        if "codecplus, bf16" in models:
            rows["OpenVINO, bf16"] = openvino_row(folder, "bf16")
    except ImportError:
        print("without OpenVINO: pip install 'codecplus[bench]'")
    return rows


def compare(
    args, stock: StockModel, models: dict[str, DacModel], clock: Callable[[], float]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _compare(args, rows_to_compare(args, stock, models, Path(folder)), models, clock)


def _compare(
    args, rows: dict[str, Row], models: dict[str, DacModel], clock: Callable[[], float]
) -> None:
    config = models["codecplus"].config
    hop = config.hop_length
    samples = max(1, int(args.seconds * config.sampling_rate) // hop) * hop
    audio = (np.random.default_rng(0).standard_normal(samples) * 0.1).astype(np.float32)
    for name in list(rows):  # kernels order their weights, and compilers compile, at first use
        try:
            rows[name].decode(rows[name].encode(audio))
        except Exception as error:
            print(f"without {name}: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
            del rows[name]

    times: dict[str, list[np.ndarray]] = {name: [] for name in rows}
    agreement = {}
    for _ in range(args.rounds):
        reference = None
        for name, row in rows.items():
            moments = [clock()]
            codes = row.encode(audio)
            moments.append(clock())
            row.decode(codes)
            moments.append(clock())
            times[name].append(np.diff(moments))
            if reference is None:
                reference = row.codes(codes)
            agreement[name] = row.codes(codes) == reference

    length = samples / config.sampling_rate
    target = usable_set()
    how = f"{target.name} kernels" if target else "no kernels"
    print(
        f"{args.preset}, {length:.1f} s, {torch.get_num_threads()} thread(s), {args.clock} time, "
        f"median of {args.rounds} round(s), {how}, {processor_name()}"
    )
    print(f"{'':<24}{'encode':>10}{'decode':>10}{'ratio':>8}{'of GEMM':>9}   codes equal")
    work = 2 * macs_per_second(models["codecplus"]) * length
    for name, turns in times.items():
        encode, decode = np.median(turns, axis=0)
        ratio = statistics.median(
            base.sum() / turn.sum() for base, turn in zip(times["transformers"], turns, strict=True)
        )
        peak = matmul_peak(torch.bfloat16 if rows[name].is_bf16 else torch.float32, clock)
        print(
            f"{name:<24}{length / encode:>8.2f} x{length / decode:>8.2f} x{ratio:>6.2f} x"
            f"{work / (encode + decode) / peak:>8.0%}   {agreement[name].mean():.4%}"
        )
    if args.layers:
        for name, model in models.items():
            spent = time_by_layer(model, torch.from_numpy(audio)[None, None], clock)
            shares = ", ".join(
                f"{kind} {part / spent.total():.0%}" for kind, part in spent.most_common()
            )
            print(f"{name}: {1000 * spent.total() / length:.0f} ms per second: {shares}")


def processor_name() -> str:
    """The processor's name, where Linux tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            return (
                next(line for line in file if line.startswith("model name")).split(": ")[1].strip()
            )
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()


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
    for name in ("quick", "layers", "mixed", "peers"):
        parser.add_argument(f"--{name}", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = CLOCKS[args.clock]

    stock, ours = nets(args.preset)
    plain = copy_of(stock, ours.config, torch.float32).allow_kernels(False)
    models = {"codecplus, no kernels": plain, "codecplus": ours}
    if multiplies_bf16(torch.device("cpu"), processor_flags()):
        models["codecplus, bf16"] = copy_of(stock, ours.config, torch.bfloat16)
    compare(args, stock, models, clock)
    del stock
    if args.mixed:
        for name, model in models.items():
            print(name, end=": ")
            compare_mixed(args, model, clock)
    if args.memory:
        show_memory(args.memory, models.get("codecplus, bf16", ours))
    if args.peers:
        show_peers(args, clock)


if __name__ == "__main__":
    main()
