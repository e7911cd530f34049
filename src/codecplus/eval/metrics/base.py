"""What a metric is, what a score is, and the table of all metrics. It knows no codec and no file.

A score is a number with the status `ok`, or no number with the reason why. There is no third case:
a metric that cannot be computed never becomes a 0 or a 1 that an average would swallow.
"""

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, TypeVar

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

MetricFunction = Callable[..., float]  # reference (S,), estimate (S,), rate; perhaps `lag_ms`
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])

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
    def failed(cls, status: Status, reason: str) -> "Score":
        """A score without a value."""
        return cls(None, status, reason)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A pure function of two 1-D float32 arrays of equal length and rate, and what it needs.

    Attributes:
        function: called with reference, estimate and sample rate in Hz; returns the value.
        higher_is_better: None for a metric that describes and does not rank.
        lowest, highest: the range of its values.
        source: the publication or the rule it follows.
        sample_rate: both signals are resampled to it; None: the reference's own rate.
        min_sample_rate: of the reference, in Hz.
        min_seconds: length of the reference.
        max_seconds: longer clips are cut into equal pieces, whose values are averaged.
        domains: the kinds of audio it is meant for.
        library: the distribution that computes it; its version is part of the cache key.
        modules: importable names without which it cannot be computed.
        extra: the extra of this package that brings them.
        install: the command that brings them, where no extra does.
        by_default: whether it is computed when no metric is named.
        needs_reference: whether the function takes the reference; if not, it is called with the
            estimate and the rate.
        uses_lag: whether the function takes `lag_ms`, the delay of the codec in milliseconds.
        timeout: seconds of processor time for one clip.
        version: to be raised when the function's results change.
    """

    name: str
    title: str
    unit: str
    function: MetricFunction
    higher_is_better: bool | None
    lowest: float
    highest: float
    source: str
    sample_rate: int | None = None
    min_sample_rate: int = 4000
    min_seconds: float = 0.1
    max_seconds: float | None = None
    domains: tuple[str, ...] = DOMAINS
    library: str | None = None
    modules: tuple[str, ...] = ()
    extra: str = "eval"
    install: str | None = None
    by_default: bool = True
    needs_reference: bool = True
    uses_lag: bool = False
    timeout: float = 120.0
    version: int = 1

    @property
    def module(self) -> str:
        """The module that registers the metric, which a scoring process imports."""
        return self.function.__module__

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
        """Whether the metric is meant for a kind of audio; for an unknown kind every metric is."""
        return kind is None or kind not in DOMAINS or kind in self.domains

    def describe(self) -> dict[str, Any]:
        """What a reader of results must know, as plain data."""
        return {
            "title": self.title,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "range": [_finite(self.lowest), _finite(self.highest)],
            "sample_rate": self.sample_rate,
            "min_sample_rate": self.min_sample_rate,
            "min_seconds": self.min_seconds,
            "max_seconds": self.max_seconds,
            "domains": list(self.domains),
            "needs_reference": self.needs_reference,
            "source": self.source,
            "identity": self.identity,
        }


METRICS: dict[str, Metric] = {}
"""Every metric by its name, in the order of all tables."""


def metric(
    *, outputs: Mapping[str, Mapping[str, Any]] | None = None, **declaration: Any
) -> Callable[[AnyFunction], AnyFunction]:
    """Register the decorated function as a metric of its own name, or as several.

    Args:
        outputs: for a function that returns a dict: the key of each value, with the fields of
            `Metric` in which it differs. The metric `NAME_KEY` is registered for each; the function
            is called once for all of them.
        declaration: the fields of `Metric` but `name` and `function`.
    """

    def register(function: AnyFunction) -> AnyFunction:
        if outputs is None:
            _register(Metric(name=function.__name__, function=function, **declaration))
            return function
        values = _Values(function)
        for key, fields in outputs.items():
            name = f"{function.__name__}_{key}"
            merged = {**declaration, **fields}
            _register(Metric(name=name, function=_Output(values, key), **merged))
        return function

    return register


def _register(declared: Metric) -> None:
    METRICS[declared.name] = declared


class _Values:
    """Calls a function that returns several values, and remembers what it returned lately."""

    def __init__(self, function: Callable[..., Mapping[str, float]]) -> None:
        self.function = function
        self._recent: list[tuple[tuple, tuple, Mapping[str, float]]] = []

    def __call__(self, *arguments: Any) -> Mapping[str, float]:
        key = tuple(_identity_of(argument) for argument in arguments)
        for known, _, values in self._recent:
            if known == key:
                return values
        values = self.function(*arguments)
        # The arguments are kept, so that no other array can come to lie where they lie.
        self._recent = [(key, arguments, values), *self._recent[:_REMEMBERED]]
        return values


_REMEMBERED = 15  # calls: channels times pieces of one clip


def _identity_of(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        return argument.__array_interface__["data"][0], argument.shape
    return argument


class _Output:
    """One value of a function that returns several."""

    def __init__(self, values: _Values, key: str) -> None:
        self._values = values
        self._key = key
        self.__module__ = values.function.__module__

    def __call__(self, *arguments: Any) -> float:
        value = self._values(*arguments)[self._key]
        if value != value:  # NaN: this value does not exist for this reference
            raise ReferenceUnscorable(f"the reference has nothing for {self._key!r}")
        return value


def _finite(value: float) -> float | None:
    if math.isfinite(value):
        return value
    return None


def is_silent(signal: np.ndarray) -> bool:
    """Whether a signal (..., S) stays below −70 dBFS RMS once a constant offset is removed."""
    if signal.shape[-1] == 0:
        return True
    centred = signal - signal.mean(axis=-1, keepdims=True)
    return bool(np.sqrt(np.mean(np.square(centred, dtype=np.float64))) < SILENCE_RMS)
