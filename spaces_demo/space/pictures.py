"""Mel spectrograms of a clip before and after, and their difference, as one picture for light and
dark pages.
"""

import threading
from pathlib import Path

import numpy as np

from codecplus import Codec

_RANGE = 80  # dB below the loudest point
_lock = threading.Lock()  # matplotlib shares its font cache


def draw_spectrograms(
    codec: Codec, before: np.ndarray, after: np.ndarray, rate: int, path: Path
) -> Path:
    """Draw audio (C, S) before and after a codec, and the difference of their levels, as a
    transparent PNG.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    # Clear where nothing changed, so that it suits a light page and a dark one.
    change = LinearSegmentedColormap.from_list(
        "change", [(0.1, 0.45, 0.85, 1), (0.5, 0.5, 0.5, 0), (0.9, 0.25, 0.2, 1)]
    )
    levels = []
    for audio in (before, after):
        mel = codec.mel_spectrogram(audio.mean(axis=0), rate)
        levels.append(20 * np.log10(np.maximum(mel, 1e-7)))
    top = levels[0].max()
    floored = [np.maximum(level, top - _RANGE) for level in levels]
    seconds = before.shape[-1] / rate
    with _lock:
        figure = Figure(figsize=(7.2, 6.6))
        figure.subplots_adjust(left=0.075, right=0.89, top=0.95, bottom=0.075, hspace=0.26)
        figure.patch.set_alpha(0)
        axes = figure.subplots(3, 1, sharex=True)
        panels = [
            ("original", floored[0], "magma", top - _RANGE, top),
            ("decoded", floored[1], "magma", top - _RANGE, top),
            ("decoded − original", floored[1] - floored[0], change, -30, 30),
        ]
        for axis, (title, picture, colours, low, high) in zip(axes, panels, strict=True):
            extent = (0.0, seconds, 0.0, float(len(picture)))
            image = axis.imshow(
                picture,
                origin="lower",
                aspect="auto",
                extent=extent,
                vmin=low,
                vmax=high,
                cmap=colours,
                interpolation="nearest",
            )
            axis.patch.set_alpha(0)
            axis.set_title(title, loc="left", fontsize=11, color="#808490", pad=4)
            axis.set_ylabel("mel band", color="#808490")
            axis.tick_params(colors="#808490", labelsize=9)
            for spine in axis.spines.values():
                spine.set_visible(False)
            bar = figure.colorbar(image, ax=axis, pad=0.015, fraction=0.05, aspect=14)
            bar.ax.tick_params(colors="#808490", labelsize=9)
            bar.ax.set_title("dB", fontsize=8, color="#808490", pad=4)
            bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        axes[-1].set_xlabel("seconds", color="#808490")
        figure.savefig(path, dpi=140, format="png")
    return path
