"""Means with intervals, paired tests and their correction. It knows numbers, nothing of audio.

Segments of one recording are averaged first, so that a long recording counts once. Independent
units are the speakers where they are known, and the recordings otherwise: two recordings of one
speaker are not two pieces of evidence about other speakers.

Intervals are Student's t over the units. A percentile bootstrap, which is common, covers the true
mean in 50 % of all cases with two recordings and in 88 % with six, where it promises 95 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
MIN_UNITS = 5  # fewer have no interval: it would be as wide as the scale, or wrong
_EXACT_UNITS = 14  # up to 2^13 patterns of signs are all tried
_RANDOM_SIGNS = 9999
_SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A mean over recordings with its 95 % interval.

    Attributes:
        mean, median: over recordings.
        low, high: the interval; None below `MIN_UNITS` units.
        files: how many recordings.
        speakers: how many speakers they have, where the interval is over speakers.
    """

    mean: float
    median: float
    low: float | None
    high: float | None
    files: int
    speakers: int | None = None


@dataclass(frozen=True)
class Difference:
    """The mean of b − a over the recordings that both have.

    Attributes:
        mean: of the differences.
        low, high: 95 % interval by Student's t; None below `MIN_UNITS` units.
        p: two-sided, by a test that flips the signs of the units' differences: exact up to 14
            units. None without differences.
        files: how many recordings.
        speakers: how many speakers they have, where these are the units.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    files: int
    speakers: int | None = None

    @property
    def units(self) -> int:
        """The number of independent units."""
        return self.files if self.speakers is None else self.speakers


def estimate(
    values: Mapping[str, float],
    speaker_of: Mapping[str, str | None] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Estimate | None:
    """Return mean, median and interval of one value per recording; None without values.

    Args:
        values: by recording.
        speaker_of: the speaker of each recording, or None where nobody knows.
        weights: of each recording in the mean; None: all weigh the same.
    """
    if not values:
        return None
    array = np.array(list(values.values()), dtype=np.float64)
    units = _units(list(values), speaker_of)
    shares = _shares(list(values), weights)
    mean = float((shares * array).mean())
    low, high = _interval(mean, _sums(shares * (array - mean), units), array.size)
    return Estimate(mean, float(np.median(array)), low, high, array.size, _speakers(units))


def paired_difference(
    a: Mapping[str, float],
    b: Mapping[str, float],
    speaker_of: Mapping[str, str | None] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Difference | None:
    """Return how much higher b is than a on the recordings that both have; None without any.

    Args:
        a, b: a value for each recording.
        speaker_of: the speaker of each recording, or None where nobody knows.
        weights: of each recording in the mean; None: all weigh the same.
    """
    common = sorted(a.keys() & b.keys())
    if not common:
        return None
    differences = np.array([b[source] - a[source] for source in common])
    units = _units(common, speaker_of)
    shares = _shares(common, weights)
    mean = float((shares * differences).mean())
    low, high = _interval(mean, _sums(shares * (differences - mean), units), len(common))
    p = float(sign_flip_p(_sums(shares * differences, units)))
    return Difference(mean, low, high, p, len(common), _speakers(units))


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the 95 % intervals of the means of (..., N), by Student's t.

    >>> low, high = t_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    >>> round(float(low), 3), round(float(high), 3)
    (1.037, 4.963)
    """
    mean = values.mean(axis=-1)
    half = _half_width(values - mean[..., None], values.shape[-1])
    return mean - half, mean + half


def sign_flip_p(sums: np.ndarray) -> np.ndarray:
    """Return two-sided p values for the hypothesis that differences (..., N) are as often − as +.

    If two codecs are alike, every unit could as well have had the opposite sign. The p value is the
    share of all patterns of signs whose sum lies as far from 0 as the one that was seen (Fisher's
    permutation test for pairs). All patterns are tried up to 14 units, else 9,999 drawn at random.

    >>> float(sign_flip_p(np.array([1.0, 2.0, 1.5, 0.5, 1.0, 2.0])))
    0.03125
    """
    units = sums.shape[-1]
    seen = np.abs(sums.sum(axis=-1))
    # Equal sums may differ by rounding, since they are added in another order.
    threshold = seen - 1e-9 * np.abs(sums).sum(axis=-1)
    if units <= _EXACT_UNITS:
        signs = _all_signs(units)
        return _as_far(sums, signs, threshold) / signs.shape[1]
    rng = np.random.default_rng(_SEED)
    signs = rng.integers(0, 2, (units, _RANDOM_SIGNS)) * 2.0 - 1
    return (1 + _as_far(sums, signs, threshold)) / (1 + _RANDOM_SIGNS)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm 1979), in the given order.

    The chance that any of them falls below 0.05 without a reason stays below 0.05.

    >>> holm([0.01, 0.5, 0.02])
    [0.03, 0.5, 0.04]
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for position, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - position) * p_values[index]))
        corrected[index] = highest
    return corrected


def crossed_interval(scores: np.ndarray) -> tuple[float | None, float | None]:
    """Return the 95 % interval of the mean of scores (listeners, items), NaN where there is none.

    It covers another panel and other items at once: the variances over listeners and over items
    are added and that of their overlap is taken off (Cameron, Gelbach and Miller 2011), with the
    degrees of freedom of the smaller side. There is none below five listeners or two items.
    """
    listeners, items = scores.shape
    if listeners < MIN_UNITS or items < 2:
        return None, None
    count = int(np.count_nonzero(~np.isnan(scores)))
    mean = float(np.nanmean(scores))
    residuals = np.nan_to_num(scores - mean)  # (listeners, items)
    by_listener = float(_variance(residuals.sum(axis=1), count))
    by_item = float(_variance(residuals.sum(axis=0), count))
    overlap = float(np.square(residuals).sum()) / count**2
    variance = max(by_listener + by_item - overlap, by_listener, by_item)
    half = _quantile(min(listeners, items) - 1) * variance**0.5
    return mean - half, mean + half


# ---- units


def _units(
    sources: Sequence[str], speaker_of: Mapping[str, str | None] | None
) -> tuple[np.ndarray, bool]:
    """Return the number of each source's unit, and whether the units are speakers.

    A data set of one speaker is about that speaker, so its recordings are the units.
    """
    speakers = [(speaker_of or {}).get(source) for source in sources]
    known = {speaker for speaker in speakers if speaker is not None}
    if not known or (len(known) == 1 and None not in speakers):
        return np.arange(len(sources)), False
    names: list[tuple[str, str]] = []
    for source, speaker in zip(sources, speakers, strict=True):
        names.append(("recording", source) if speaker is None else ("speaker", speaker))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names]), True


def _speakers(units: tuple[np.ndarray, bool]) -> int | None:
    numbers, are_speakers = units
    if not are_speakers:
        return None
    return int(numbers.max()) + 1


def _shares(sources: Sequence[str], weights: Mapping[str, float] | None) -> np.ndarray:
    """Weights (N,) of recordings whose mean is 1, so that a mean of products is a weighted mean."""
    if weights is None:
        return np.ones(len(sources))
    shares = np.array([weights[source] for source in sources], dtype=np.float64)
    return shares / shares.mean()


def _sums(values: np.ndarray, units: tuple[np.ndarray, bool]) -> np.ndarray:
    """Add up values (N,) of the same unit."""
    return np.bincount(units[0], values)


# ---- intervals


def _interval(mean: float, sums: np.ndarray, files: int) -> tuple[float | None, float | None]:
    if len(sums) < MIN_UNITS:
        return None, None
    half = float(_half_width(sums, files))
    return mean - half, mean + half


def _half_width(sums: np.ndarray, files: int) -> np.ndarray:
    """Half an interval, from each unit's sum of deviations (..., units) of `files` values."""
    return _quantile(sums.shape[-1] - 1) * np.sqrt(_variance(sums, files))


def _variance(sums: np.ndarray, files: int) -> np.ndarray:
    """The variance of a mean whose deviations add up to (..., units)."""
    units = sums.shape[-1]
    return units / (units - 1) * np.square(sums).sum(axis=-1) / files**2


def _quantile(degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + CONFIDENCE / 2, degrees))


# ---- patterns of signs


def _all_signs(units: int) -> np.ndarray:
    """All patterns of signs (units, patterns) whose first sign is +; the others mirror them."""
    patterns = np.arange(2 ** (units - 1))
    bits = patterns >> np.arange(units)[:, None] & 1
    return 1.0 - 2.0 * np.roll(bits, 1, axis=0)


def _as_far(sums: np.ndarray, signs: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """How many patterns of signs bring sums (..., units) as far from 0 as the threshold (...)."""
    return np.count_nonzero(np.abs(sums @ signs) >= threshold[..., None], axis=-1)
