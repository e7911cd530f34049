"""The power of each band of frequency, decoded against original: what a listener hears as dull."""

from itertools import pairwise

import numpy as np

from codecplus.audio.bands import band_levels
from codecplus.audio.bands import band_power as power_of_bands
from codecplus.eval.metrics.base import ReferenceUnscorable, metric

EDGES = (0, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 11_000, 16_000, 20_000)  # Hz
_SOURCE = "mean power over frames of 46 ms"
_AUDIBLE_DB = -70  # below the loudest band of the reference: a softer band has only dither


def _names() -> list[str]:
    return [f"{low / 1000:g}_{high / 1000:g}" for low, high in pairwise(EDGES)]


def _outputs() -> dict[str, dict]:
    return {
        name: {"title": f"Power, {name.replace('_', ' to ')} kHz", "unit": "dB"}
        for name in _names()
    }


@metric(
    outputs=_outputs(),
    higher_is_better=None,
    lowest=-100,
    highest=100,
    source=_SOURCE,
)
def band_power(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> dict[str, float]:
    """Power of the estimate (S,) above that of the reference (S,), in dB, for each band of `EDGES`.

    NaN where the rate has no such band, or the reference nothing in it.
    """
    return dict(zip(_names(), _levels(reference, estimate, sample_rate).tolist(), strict=True))


@metric(
    title="Band power error",
    unit="dB",
    higher_is_better=False,
    lowest=0,
    highest=100,
    source=f"mean absolute difference of the bands to 20 kHz; {_SOURCE}",
)
def band_power_error(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """Mean over bands of how far the power of (S,) is from that of the reference (S,), in dB."""
    levels = _levels(reference, estimate, sample_rate)
    if np.isnan(levels).all():
        raise ReferenceUnscorable("the reference has no band below 20 kHz with power in it")
    return float(np.nanmean(np.abs(levels)))


def _levels(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> np.ndarray:
    """Power of each band in dB above the reference's; NaN where there is nothing to compare."""
    levels = np.full(len(EDGES) - 1, np.nan)
    edges = [edge for edge in EDGES if edge <= sample_rate / 2]
    if len(edges) < 2:
        return levels
    if edges[-1] < sample_rate / 2:
        known = np.array([*edges, sample_rate / 2])  # what lies above is not compared
    else:
        known = np.array(edges, float)
    compared = len(edges) - 1
    levels[:compared] = band_levels(estimate, reference, sample_rate, known)[:compared]
    power = power_of_bands(reference, sample_rate, known)[:compared]
    levels[:compared][power < power.max() * 10 ** (_AUDIBLE_DB / 10)] = np.nan
    return levels
