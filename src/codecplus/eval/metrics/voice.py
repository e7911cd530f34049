"""Pitch and timbre of a voice: F0, voicing and mel cepstra. It knows speech and no model of it."""

from functools import partial

import numpy as np

from codecplus.eval.metrics.base import OutputUnscorable, ReferenceUnscorable, metric
from codecplus.eval.metrics.spectral import log_mel

_CEPSTRA = 13
_FRAME_MS = 5.0
_MIN_VOICED = 10  # frames: fewer say nothing about a correlation

_voice_metric = partial(
    metric,
    higher_is_better=False,
    lowest=0,
    sample_rate=16_000,
    min_sample_rate=8000,
    domains=("speech",),
    by_default=False,
)


@_voice_metric(
    outputs={
        "correlation": {"title": "F0 correlation", "higher_is_better": True, "lowest": -1},
        "error_cents": {"title": "F0 error", "unit": "cent", "highest": 6000},
        "voicing_error": {"title": "Voicing error", "unit": "%", "highest": 100},
    },
    unit="",
    highest=1,
    min_seconds=0.5,
    max_seconds=30,
    library="pyworld",
    modules=("pyworld",),
    extra="mos",
    source="Harvest, every 5 ms, by pyworld",
)
def f0(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> dict[str, float]:
    """Pitch of (S,) against (S,): correlation, error in cents, frames voiced in one only, in %."""
    x = _pitch(reference, sample_rate)
    y = _pitch(estimate, sample_rate)
    if np.count_nonzero(x) < _MIN_VOICED:
        raise ReferenceUnscorable("the reference has no voiced speech")
    both = (x > 0) & (y > 0)
    if np.count_nonzero(both) < _MIN_VOICED:
        raise OutputUnscorable("the output has no pitch where the reference has one")
    cents = 1200 * np.log2(y[both] / x[both])
    spread = x[both].std() > 0 and y[both].std() > 0
    return {
        "correlation": float(np.corrcoef(x[both], y[both])[0, 1]) if spread else 0.0,
        "error_cents": float(np.sqrt(np.mean(cents**2))),
        "voicing_error": float(100 * np.mean((x > 0) != (y > 0))),
    }


@_voice_metric(
    title="Mel-cepstral distortion",
    unit="dB",
    highest=100,
    source="Kubichek 1993, cepstra 1 to 13 of 80 mel bands, without warping of time",
)
def mcd(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """Mel-cepstral distortion in dB of (S,) against (S,): the mean distance of frames.

    The signals are aligned already, so time is not warped.
    """
    difference = _cepstra(reference, sample_rate) - _cepstra(estimate, sample_rate)
    distances = np.sqrt(2 * np.square(difference).sum(axis=1))
    return float(10 / np.log(10) * distances.mean())


def _pitch(signal: np.ndarray, sample_rate: int) -> np.ndarray:
    from codecplus.eval.metrics.predicted import import_without_setuptools

    import_without_setuptools("pyworld")
    import pyworld  # pyright: ignore[reportMissingImports]

    pitch, _ = pyworld.harvest(signal.astype(np.float64), sample_rate, frame_period=_FRAME_MS)
    return pitch


def _cepstra(signal: np.ndarray, sample_rate: int) -> np.ndarray:
    """Cepstra 1 to 13 (T, 13) of natural logarithms of mel magnitudes."""
    from scipy.fft import dct

    logs = log_mel(signal, sample_rate, length=512, bands=80)  # (T, M)
    cepstra = np.asarray(dct(logs, type=2, axis=1, norm="ortho"))
    return cepstra[:, 1 : _CEPSTRA + 1] * np.sqrt(2 / logs.shape[1])
