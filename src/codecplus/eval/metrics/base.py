"""What a metric is and what a score is. Knows numpy arrays, no codec and no file.

A score is a number with the status `ok`, or no number with the reason why. There is no third case:
a metric that cannot be computed never becomes a 0 or a 1 that an average would swallow.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import numpy as np

Status = Literal["ok", "reference_unscorable", "codec_failure", "metric_error", "timeout"]
STATUSES: tuple[Status, ...] = (
    "ok",
    "reference_unscorable",
    "codec_failure",
    "metric_error",
    "timeout",
)
DOMAINS = ("speech", "music", "sound")

# −70 dBFS: softer references are hiss or dither, on which perceptual metrics give noise.
SILENCE_RMS = 10 ** (-70 / 20)


class ReferenceUnscorable(Exception):
    """The reference alone rules the metric out, so every codec loses this clip alike."""


class OutputUnscorable(Exception):
    """The reference is fine and the codec's output is not."""


@dataclass(frozen=True)
class Score:
    """One value of one metric on one clip, or the reason why there is none."""

    value: float | None
    status: Status = "ok"
    reason: str | None = None

    def __post_init__(self) -> None:
        assert (self.status == "ok") == (self.value is not None), (
            "a score has either a value or a reason"
        )

    @classmethod
    def failed(cls, status: Status, reason: str) -> Score:
        """A score without a value."""
        return cls(None, status, reason)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A pure function of two 1-D float32 arrays of equal length and rate, and what it needs to mean
    something.
    """

    name: str
    title: str
    unit: str
    function: Callable[[np.ndarray, np.ndarray, int], float]  # (reference, estimate, sample_rate)
    higher_is_better: bool | None  # None: it describes and does not rank
    lowest: float
    highest: float
    source: str
    sample_rate: int | None = (
        None  # both signals are resampled to it; None: the reference's own rate
    )
    min_sample_rate: int = 4000  # of the reference
    min_seconds: float = 0.1
    max_seconds: float | None = (
        None  # longer clips are cut into equal pieces and the pieces averaged
    )
    domains: tuple[str, ...] = DOMAINS
    library: str | None = None  # distribution that computes it
    modules: tuple[str, ...] = ()  # importable names without which it cannot be computed
    extra: str = "eval"  # of this package, which brings them
    timeout: float = 120.0
    version: int = 1  # raise it when the function's results change

    @property
    def identity(self) -> str:
        """Names every version the value depends on: part of the cache key."""
        if self.library is None:
            return f"{self.name}/{self.version}"
        try:
            return f"{self.name}/{self.version}+{self.library}-{version(self.library)}"
        except PackageNotFoundError:
            return f"{self.name}/{self.version}+{self.library}-missing"

    @property
    def available(self) -> bool:
        """Whether what computes it is installed."""
        return all(importlib.util.find_spec(module) is not None for module in self.modules)

    def applies_to(self, kind: str | None) -> bool:
        """Whether the metric means something for this kind of audio; an unknown kind is given every
        metric.
        """
        return kind is None or kind not in DOMAINS or kind in self.domains

    def describe(self) -> dict:
        """What a reader of results must know, as plain data."""
        return {
            "title": self.title,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "range": [self.lowest if math.isfinite(self.lowest) else None, _finite(self.highest)],
            "sample_rate": self.sample_rate,
            "min_sample_rate": self.min_sample_rate,
            "min_seconds": self.min_seconds,
            "max_seconds": self.max_seconds,
            "domains": list(self.domains),
            "source": self.source,
            "identity": self.identity,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def is_silent(signal: np.ndarray) -> bool:
    """Whether the signal (..., S) carries nothing above −70 dBFS RMS once a constant offset is
    removed.
    """
    if signal.shape[-1] == 0:
        return True
    centred = signal - signal.mean(axis=-1, keepdims=True)
    return bool(np.sqrt(np.mean(np.square(centred, dtype=np.float64))) < SILENCE_RMS)
