"""Distances between spectra. It knows arrays and no listener.

Window lengths are in samples, so each metric states the rate it is computed at.

Source: Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN" (NeurIPS 2023), whose
evaluation takes the mean absolute difference of magnitudes plus that of log powers, for windows of
2048 and 512 samples, at 44.1 kHz.
"""

from functools import cache, partial
from math import inf

import numpy as np

from codecplus.audio.mel import mel_filterbank
from codecplus.eval.metrics.base import metric

PAPER = "Kumar et al. 2023, evaluation of the DAC paper"
PAPER_RATE = 44_100
WINDOWS = (2048, 512)
MEL_BANDS = (150, 80)
FLOOR = 1e-5  # below it two magnitudes count as equal

_paper_distance = partial(
    metric,
    unit="",
    higher_is_better=False,
    lowest=0,
    highest=inf,
    sample_rate=PAPER_RATE,
    source=PAPER,
)


@_paper_distance(title="Mel distance")
def mel_distance(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """Mel distance of the DAC paper between (S,) and (S,); 0 for equal signals."""
    total = 0.0
    for length, bands in zip(WINDOWS, MEL_BANDS, strict=True):
        filters = _mel_filters(sample_rate, length, bands)
        total += _log_and_linear(
            _magnitudes(reference, length) @ filters, _magnitudes(estimate, length) @ filters
        )
    return total


@_paper_distance(title="STFT distance")
def stft_distance(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """Multi-scale STFT distance of the DAC paper between (S,) and (S,); 0 for equal signals."""
    return sum(
        _log_and_linear(_magnitudes(reference, n), _magnitudes(estimate, n)) for n in WINDOWS
    )


@metric(
    title="Log-spectral distance",
    unit="dB",
    higher_is_better=False,
    lowest=0,
    highest=inf,
    source="window 2048, hop 512 at the native rate, floor 80 dB below the loudest bin of the "
    "reference",
)
def log_spectral_distance(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """Difference of log power spectra in dB: root mean square over frequency, mean over time.

    Power more than 80 dB below the loudest bin of the reference counts as absent; else the distance
    would measure dither.
    """
    x = _magnitudes(reference, 2048) ** 2  # (T, F)
    y = _magnitudes(estimate, 2048) ** 2
    floor = x.max() * 1e-8
    difference = 10 * np.log10(np.maximum(y, floor) / np.maximum(x, floor))
    return float(np.sqrt(np.mean(difference**2, axis=1)).mean())


@metric(
    title="Bandwidth",
    unit="Hz",
    higher_is_better=True,
    lowest=0,
    highest=inf,
    source="highest 100 Hz band kept within 10 dB of the reference",
)
def bandwidth(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """Highest frequency in Hz at which the estimate stays within 10 dB of the reference.

    Bands of 100 Hz of the long-term spectrum count where the reference lies within 70 dB of its
    loudest band.
    """
    x = _band_levels(reference, sample_rate)
    y = _band_levels(estimate, sample_rate)
    preserved = (x > x.max() - 70) & (y > x - 10)
    if not preserved.any():
        return 0.0
    highest_band = int(np.flatnonzero(preserved)[-1])
    return min(100.0 * (highest_band + 1), sample_rate / 2)


def log_mel(signal: np.ndarray, sample_rate: int, length: int, bands: int) -> np.ndarray:
    """Natural logarithms of mel magnitudes (T, M) of a signal (S,), floored at `FLOOR`."""
    magnitudes = _magnitudes(signal, length) @ _mel_filters(sample_rate, length, bands)
    return np.log(np.maximum(magnitudes, FLOOR))


def _log_and_linear(x: np.ndarray, y: np.ndarray) -> float:
    logs = np.abs(np.log10(np.maximum(x, FLOOR)) - np.log10(np.maximum(y, FLOOR)))
    log_distance = 2 * logs.mean(dtype=np.float64)
    return float(log_distance + np.abs(x - y).mean(dtype=np.float64))


def _magnitudes(signal: np.ndarray, length: int) -> np.ndarray:
    """Magnitudes (T, F) of Hann windows at a hop of a quarter window; the ends are mirrored."""
    padded = np.pad(signal.astype(np.float32), length // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[:: length // 4]
    return np.abs(np.fft.rfft(frames * _hann(length), axis=-1))


@cache
def _hann(length: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def _band_levels(signal: np.ndarray, sample_rate: int, width: float = 100.0) -> np.ndarray:
    """Mean power in dB of each band of `width` Hz from 0 up to half the rate."""
    power = np.mean(_magnitudes(signal, 4096).astype(np.float64) ** 2, axis=0)
    index = (np.arange(len(power)) * sample_rate / 4096 // width).astype(int)
    sums = np.bincount(index, power)
    counts = np.bincount(index)
    return 10 * np.log10(sums / np.maximum(counts, 1) + 1e-20)


@cache
def _mel_filters(sample_rate: int, length: int, bands: int) -> np.ndarray:  # (F, M)
    return np.ascontiguousarray(mel_filterbank(sample_rate, length, bands).T)
