"""Means with honest intervals. Knows numbers per file, nothing of audio.

The unit is the file: segments of one file are averaged first, so that a long file counts once and
the bootstrap does not take its segments for independent evidence.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """Mean over files with its 95 % bootstrap interval; no interval from a single file."""

    mean: float
    median: float
    low: float | None
    high: float | None
    files: int

    def overlaps(self, other: "Estimate") -> bool:
        """Whether the two intervals share a value; an unknown interval overlaps with everything."""
        if self.low is None or other.low is None or self.high is None or other.high is None:
            return True
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Difference:
    """Mean of b − a over the files both have, with its 95 % interval and two-sided p, by paired
    bootstrap.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    files: int


def by_file(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of each file's segments.

    >>> by_file([("a", 1.0), ("a", 3.0), ("b", 5.0)])
    {'a': 2.0, 'b': 5.0}
    """
    grouped: dict[str, list[float]] = {}
    for source, value in values:
        grouped.setdefault(source, []).append(value)
    return {source: float(np.mean(group)) for source, group in grouped.items()}


def estimate(values: Iterable[float]) -> Estimate | None:
    """Mean, median and interval of one value per file; None without values."""
    array = np.fromiter(values, dtype=np.float64)
    if array.size == 0:
        return None
    low, high = _interval(_bootstrap_means(array))
    return Estimate(float(array.mean()), float(np.median(array)), low, high, array.size)


def paired_difference(a: dict[str, float], b: dict[str, float]) -> Difference | None:
    """How much higher b is than a on the files that both have; None without any."""
    common = sorted(a.keys() & b.keys())
    if not common:
        return None
    differences = np.array([b[source] - a[source] for source in common])
    means = _bootstrap_means(differences)
    low, high = _interval(means)
    p = None
    if means is not None:
        # One is added to both counts: with 2,000 resamples a p below 1/2,000 cannot be told.
        tail = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
        # Nor by few pairs: all n have one sign by chance in 2 of 2^n cases, which the bootstrap
        # cannot see.
        p = min(1.0, max(2 * (tail + 1) / (RESAMPLES + 1), 2 / 2 ** len(common)))
    return Difference(float(differences.mean()), low, high, p, len(common))


def crossed_interval(scores: np.ndarray) -> tuple[float | None, float | None]:
    """The 95 % interval of the mean of (listeners, items), NaN where one did not rate; None for a
    single rating.

    Listeners and items are both drawn anew (Owen 2007, the pigeonhole bootstrap): another panel and
    other material would have given other means, and pooled ratings would hide it.
    """
    listeners, items = scores.shape
    if np.count_nonzero(~np.isnan(scores)) < 2:
        return None, None
    rng = np.random.default_rng(SEED)
    rows = rng.multinomial(
        listeners, np.full(listeners, 1 / listeners), RESAMPLES
    )  # (R, L): how often each is drawn
    columns = rng.multinomial(items, np.full(items, 1 / items), RESAMPLES)  # (R, I)
    present = ~np.isnan(scores)
    total = np.einsum("rl,li,ri->r", rows, np.where(present, scores, 0.0), columns, optimize=True)
    weight = np.einsum("rl,li,ri->r", rows, present.astype(float), columns, optimize=True)
    return _interval(total[weight > 0] / weight[weight > 0])


def _bootstrap_means(array: np.ndarray) -> np.ndarray | None:
    if array.size < 2:
        return None
    rng = np.random.default_rng(SEED)
    return array[rng.integers(0, array.size, (RESAMPLES, array.size))].mean(axis=1)


def _interval(means: np.ndarray | None) -> tuple[float | None, float | None]:
    if means is None:
        return None, None
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
