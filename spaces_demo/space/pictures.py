"""Pictures of sounds: mel spectrograms without axes, and codes as numbers. The page draws the axes,
the codes and the playback cursor. It knows nothing of pages.

Letters: C channels, S samples, K codebooks, T frames.
"""

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from codecplus import Codes
from codecplus.audio.mel import mel_spectrogram

_BANDS = 80
_WIDEST = 1000  # frames of a picture
_RANGE = 80  # dB from black to the loudest point
_CHANGE = 30  # dB that have the strongest colour in a picture of differences
_TICKS = (500, 1000, 2000, 4000, 8000, 16000)  # Hz


def mel_levels(audio: np.ndarray, rate: int) -> np.ndarray:
    """Return the levels of the mel bands of audio (C, S) in dB, its channels mixed: (bands, T)."""
    import torch

    samples = torch.from_numpy(audio.mean(axis=0, dtype=np.float32))
    hop = max(round(0.01 * rate), math.ceil(len(samples) / _WIDEST))
    window = 2 ** round(math.log2(0.05 * rate))
    mel = mel_spectrogram(samples, rate, n_mels=_BANDS, n_fft=window, hop_length=hop)
    return 20 * np.log10(np.maximum(mel.numpy(), 1e-7))


def draw_levels(levels: np.ndarray, loudest: float, path: Path) -> Path:
    """Draw levels in dB (bands, T), low bands at the bottom; `loudest` has the brightest colour.

    Pictures of one clip share `loudest`, so that their colours mean the same.
    """
    share = (levels - loudest + _RANGE) / _RANGE
    return _draw(_colours("magma")[_as_index(share)], path)


def draw_change(before: np.ndarray, after: np.ndarray, loudest: float, path: Path) -> Path:
    """Draw the difference of levels (bands, T): red where something came, blue where it went.

    What lies below the range of `draw_levels` in both has not changed.
    """
    floor = loudest - _RANGE
    change = np.maximum(after, floor) - np.maximum(before, floor)
    share = 0.5 + change / (2 * _CHANGE)
    return _draw(_colours("change")[_as_index(share)], path)


def _as_index(share: np.ndarray) -> np.ndarray:
    return np.rint(255 * share.clip(0, 1)).astype(np.uint8)


@functools.cache
def _colours(name: str) -> np.ndarray:  # (256, 3) uint8
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    if name == "change":
        ends = [(0.25, 0.6, 1.0), (0.04, 0.05, 0.09), (1.0, 0.38, 0.26)]
        colours = LinearSegmentedColormap.from_list(name, np.asarray(ends))(np.arange(256))
    else:
        colours = colormaps[name](np.arange(256))
    return np.rint(255 * colours[:, :3]).astype(np.uint8)


def _draw(pixels: np.ndarray, path: Path) -> Path:  # (bands, T, 3)
    from PIL import Image

    Image.fromarray(pixels[::-1]).save(path, quality=60, method=4)
    return path


def ticks(rate: int) -> list[dict[str, Any]]:
    """Return where the axis of a spectrogram of this sample rate has its marks.

    Each has its text in kHz, and its height as a share of the picture.
    """
    from transformers.audio_utils import hertz_to_mel

    highest = hertz_to_mel(rate / 2, mel_scale="slaney")
    marks = []
    for frequency in _TICKS:
        share = hertz_to_mel(frequency, mel_scale="slaney") / highest
        if share < 0.95:
            marks.append({"text": f"{frequency / 1000:g}", "share": round(float(share), 4)})
    return marks


def write_codes(codes: Codes, path: Path) -> dict[str, int]:
    """Write the codes of the first channel for the page, and return what it needs to read them.

    The file holds 16-bit integers, little-endian, codebook after codebook.
    """
    numbers = np.asarray(codes)
    while numbers.ndim > 2:  # (C, K, T) -> (K, T)
        numbers = numbers[0]
    path.write_bytes(np.ascontiguousarray(numbers, "<u2").tobytes())
    return {"books": numbers.shape[0], "frames": numbers.shape[1]}
