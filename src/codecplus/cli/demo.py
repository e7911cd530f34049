"""`codecplus demo`: one clip through the codec, with figures, files to listen to, and a picture."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.audio.files import load_audio
from codecplus.audio.mel import mel_spectrogram
from codecplus.codec import Codec
from codecplus.errors import InputError, MissingExtraError
from codecplus.system.paths import atomic_path

BUNDLED_CLIP = Path(__file__).parents[1] / "assets" / "demo.flac"
_MAX_SECONDS = 600  # scores hold the whole clip in memory


def run_demo(
    source: Path | None,
    folder: Path,
    codec: Codec,
    *,
    bitrate: float | None = None,
    loudness: float | None = None,
) -> dict[str, float | None]:
    """Compress an audio file (the bundled clip by default), decompress it, score it, and print a
    table.

    Writes NAME.dacp, NAME.wav and NAME.png into `folder`. Returns the figures of the table; a score
    that could not be computed is None.

    Raises: InputError, FileFormatError: for a file that is no audio, or `folder` that cannot be
        written. MissingExtraError: without the `eval` extra.
    """
    try:
        import matplotlib  # noqa: F401
        import pesq  # noqa: F401
        import pystoi  # noqa: F401

        from codecplus.eval.metrics import score
    except ImportError as error:
        raise MissingExtraError(
            f"the demo needs {error.name} for its scores: pip install 'codecplus[eval]'"
        ) from error

    source = BUNDLED_CLIP if source is None else source
    folder.mkdir(parents=True, exist_ok=True)
    coded, decoded, picture = (folder / f"{source.stem}.{kind}" for kind in ("dacp", "wav", "png"))
    audio, rate = load_audio(source)
    seconds = audio.shape[-1] / rate
    if seconds > _MAX_SECONDS:
        raise InputError(
            f"the demo takes up to {_MAX_SECONDS} s, {source} has {seconds:.0f}; use codecplus encode"
        )

    codec.compress(
        audio[..., : rate // 2], sample_rate=rate
    )  # the first call pays for what later ones need not
    start = time.perf_counter()
    codec.compress(source, coded, bitrate=bitrate, loudness=loudness)
    middle = time.perf_counter()
    codec.decompress(coded, decoded)
    end = time.perf_counter()

    output, _ = load_audio(decoded)
    scores = score(audio, output, rate, ["pesq_wb", "stoi", "si_sdr"])
    figures: dict[str, Any] = {
        "bitrate (kbit/s)": coded.stat().st_size * 8 / seconds / 1000,
        "smaller than 16-bit PCM by": audio.size * 2 / coded.stat().st_size,
        "PESQ-wb": scores["pesq_wb"].value,
        "STOI": scores["stoi"].value,
        "SI-SDR (dB)": scores["si_sdr"].value,
        "encodes at (x real time)": seconds / (middle - start),
        "decodes at (x real time)": seconds / (end - middle),
    }
    draw_spectrograms(audio, output, rate, picture)
    _print_table(source, codec, seconds, figures)
    for name in ("pesq_wb", "stoi", "si_sdr"):
        if scores[name].value is None:
            print(f"  {name}: {scores[name].reason}")
    print(f"\nwrote {coded}, {decoded}, {picture}")
    return figures


def _print_table(
    source: Path, codec: Codec, seconds: float, figures: dict[str, float | None]
) -> None:
    config = codec.model.config
    print(
        f"{source.name}, {seconds:.1f} s, through {type(codec.model).__name__} at {config.sampling_rate} Hz"
    )
    for name, value in figures.items():
        print(f"  {name:<28} {'-' if value is None else f'{value:8.2f}'}")


def draw_spectrograms(before: np.ndarray, after: np.ndarray, rate: int, path: Path) -> None:
    """Draw the mel spectrograms of two signals, (samples,) or (channels, samples), one above the
    other, as a PNG.
    """
    import torch
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    pictures = []
    for signal in (before, after):
        mono = torch.from_numpy(np.atleast_2d(signal).mean(axis=0))
        mel = mel_spectrogram(mono, rate, n_mels=128, hop_length=256).numpy()
        pictures.append(20 * np.log10(np.maximum(mel, 1e-7)))
    level, seconds = pictures[0].max(), before.shape[-1] / rate
    for axis, title, decibels in zip(axes, ("original", "decoded"), pictures, strict=True):
        extent = (0.0, seconds, 0.0, float(len(decibels)))
        axis.imshow(
            decibels,
            origin="lower",
            aspect="auto",
            extent=extent,
            vmin=level - 80,
            vmax=level,
            cmap="magma",
        )
        axis.set(title=title, ylabel="mel band")
    axes[-1].set(xlabel="seconds")
    figure.colorbar(axes[0].images[0], ax=axes, label="dB")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
