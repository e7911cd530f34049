"""The work of `codecplus demo`: one clip through the codec, with scores, files and a picture.

It knows scores and pictures; files.py knows the options.
"""

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
_METRICS = {"pesq_wb": "PESQ-wb", "stoi": "STOI", "si_sdr": "SI-SDR (dB)"}
_FLOOR = 1e-7  # of mel magnitudes: the logarithm of 0 is no colour
_RANGE = 80  # dB that a picture shows


def run_demo(
    source: Path | None,
    folder: Path,
    codec: Codec,
    *,
    bitrate: float | None = None,
    loudness: float | None = None,
) -> dict[str, float | None]:
    """Compress an audio file, decompress it, score it, and print a table.

    Writes NAME.dacp, NAME.wav and NAME.png into the folder.

    Args:
        source: the audio file; None for the clip that comes with the package.
        folder: where to write; it is made if it does not exist.
        bitrate: kbit/s of the whole signal; None for all codebooks.
        loudness: LUFS to encode at; None for the level of the file.

    Returns:
        The figures of the table by title; a score that could not be computed is None.

    Raises:
        InputError, FileFormatError: for a file that is no audio, or a folder that cannot be
            written.
        MissingExtraError: without the `eval` extra.
    """
    _check_extra()
    if source is None:
        source = BUNDLED_CLIP
    folder.mkdir(parents=True, exist_ok=True)
    coded = folder / f"{source.stem}.dacp"
    decoded = folder / f"{source.stem}.wav"
    picture = folder / f"{source.stem}.png"
    audio, rate = load_audio(source)
    seconds = audio.shape[-1] / rate
    if seconds > _MAX_SECONDS:
        raise InputError(
            f"the demo takes up to {_MAX_SECONDS} s, {source} has {seconds:.0f}; "
            "use codecplus encode"
        )

    # The first call sets things up, which later ones need not: it is not timed.
    codec.compress(audio[..., : rate // 2], sample_rate=rate)
    start = time.perf_counter()
    codec.compress(source, coded, bitrate=bitrate, loudness=loudness)
    middle = time.perf_counter()
    codec.decompress(coded, decoded)
    end = time.perf_counter()

    output, _ = load_audio(decoded)
    scores, reasons = _score(audio, output, rate)
    size = coded.stat().st_size
    figures: dict[str, float | None] = {
        "bitrate (kbit/s)": size * 8 / seconds / 1000,
        "smaller than 16-bit PCM by": audio.size * 2 / size,
        **scores,
        "encodes at (x real time)": seconds / (middle - start),
        "decodes at (x real time)": seconds / (end - middle),
    }
    draw_spectrograms(audio, output, rate, picture)
    _print_table(source, codec, seconds, figures)
    for name, reason in reasons.items():
        print(f"  {name}: {reason}")
    print(f"\nwrote {coded}, {decoded}, {picture}")
    return figures


def _check_extra() -> None:
    """Raise MissingExtraError where a package of the `eval` extra is missing, before any work."""
    try:
        import matplotlib  # noqa: F401
        import pesq  # noqa: F401
        import pystoi  # noqa: F401

        import codecplus.eval.metrics  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"the demo needs {error.name} for its scores: pip install 'codecplus[eval]'"
        ) from error


def _score(
    audio: np.ndarray, output: np.ndarray, rate: int
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return the scores by title, and the reasons of those that could not be computed."""
    from codecplus.eval.metrics import score

    values: dict[str, float | None] = {}
    reasons = {}
    for name, result in score(audio, output, rate, list(_METRICS)).items():
        values[_METRICS[name]] = result.value
        if result.value is None:
            reasons[name] = str(result.reason)
    return values, reasons


def _print_table(
    source: Path, codec: Codec, seconds: float, figures: dict[str, float | None]
) -> None:
    name = type(codec.model).__name__
    print(f"{source.name}, {seconds:.1f} s, through {name} at {codec.model_sample_rate} Hz")
    for title, value in figures.items():
        text = "-" if value is None else f"{value:8.2f}"
        print(f"  {title:<28} {text}")


def draw_spectrograms(before: np.ndarray, after: np.ndarray, rate: int, path: Path) -> None:
    """Draw the mel spectrograms of two signals, one above the other, as a PNG.

    Args:
        before, after: the signals, (samples,) or (channels, samples).
        rate: their sample rate in Hz.
        path: the picture to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    original = _mel_decibels(before, rate)
    decoded = _mel_decibels(after, rate)
    level = original.max()
    extent = (0.0, before.shape[-1] / rate, 0.0, float(len(original)))
    options: dict[str, Any] = {"origin": "lower", "aspect": "auto", "cmap": "magma"}
    for axis, title, decibels in (
        (axes[0], "original", original),
        (axes[1], "decoded", decoded),
    ):
        axis.imshow(decibels, extent=extent, vmin=level - _RANGE, vmax=level, **options)
        axis.set(title=title, ylabel="mel band")
    axes[-1].set(xlabel="seconds")
    figure.colorbar(axes[0].images[0], ax=axes, label="dB")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def _mel_decibels(signal: np.ndarray, rate: int) -> np.ndarray:
    """Return the mel spectrogram of a signal's mean over channels, (bands, frames), in dB."""
    import torch

    mono = torch.from_numpy(np.atleast_2d(signal).mean(axis=0))
    mel = mel_spectrogram(mono, rate, n_mels=128, hop_length=256).numpy()
    return 20 * np.log10(np.maximum(mel, _FLOOR))
