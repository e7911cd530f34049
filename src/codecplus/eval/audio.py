"""Rates and lengths of arrays (C, S), on top of the package's resampler."""

import numpy as np
import soxr

from codecplus.audio import resampling

RESAMPLER = f"soxr-{soxr.__version__} VHQ"


def resample(
    audio: np.ndarray, from_rate: int, to_rate: int, samples: int | None = None
) -> np.ndarray:
    """Convert (C, S) float32 to another rate; `samples` cuts or zero-pads the result to an exact
    length.

    >>> resample(np.zeros((2, 441), np.float32), 44100, 16000).shape
    (2, 160)
    """
    if from_rate != to_rate:
        audio = resampling.resample(audio, from_rate, to_rate)
    return audio if samples is None else fit(audio, samples)


def fit(audio: np.ndarray, samples: int) -> np.ndarray:
    """Cut or zero-pad (C, S) at its end to an exact number of samples."""
    missing = samples - audio.shape[-1]
    return np.pad(audio, ((0, 0), (0, missing))) if missing > 0 else audio[:, :samples]
