"""What a metric is, what a score is, and the table of all metrics. It knows no codec and no file.

A score is a number with the status `ok`, or no number with the reason why. There is no third case:
a metric that cannot be computed never becomes a 0 or a 1 that an average would swallow.
"""

import hashlib
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
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
    # Of the value in a mean over clips; None: all weigh the same.
    weight: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        assert (self.status == "ok") == (self.value is not None), (
            "a score has either a value or a reason"
        )

    @classmethod
    def failed(cls, status: Status, reason: str) -> "Score":
        """A score without a value."""
        return cls(None, status, reason)

    def as_dict(self) -> dict[str, Any]:
        """Plain data; without a weight, where there is none."""
        fields = {"value": self.value, "status": self.status, "reason": self.reason}
        if self.weight is not None:
            fields["weight"] = self.weight
        return fields


class Weighted(float):
    """A value with a weight, by which it counts in means: an error rate, and how many words."""

    weight: float

    def __new__(cls, value: float, weight: float) -> "Weighted":
        """Make a float that carries a weight."""
        weighted = super().__new__(cls, value)
        weighted.weight = weight
        return weighted


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of values; of weighted ones the weighted mean, with the sum of the weights.

    >>> mean_of([1.0, 3.0])
    2.0
    >>> mean_of([Weighted(0, 1), Weighted(100, 3)])
    75.0
    """
    weights = [value.weight for value in values if isinstance(value, Weighted)]
    if len(weights) < len(values):
        return float(np.mean(values))
    total = float(np.sum(weights))
    return Weighted(float(np.dot(values, weights)) / total, total)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What metrics of single recordings and metrics of sets declare alike.

    Attributes:
        name: by which it is asked for.
        title: for readers.
        source: the publication or the rule it follows.
        sample_rate: signals are resampled to it; None: their own rate.
        domains: the kinds of audio it is meant for.
        library: the distribution that computes it; its version is part of the cache key.
        modules: importable names without which it cannot be computed.
        extra: the extra of this package that brings them.
        install: the command that brings them, where no extra does.
        timeout: seconds of processor time for one clip.
        version: to be raised when the results change.
        mark: returns a text that changes with whatever else the values depend on, such as weights.
    """

    name: str
    title: str
    source: str
    sample_rate: int | None = None
    domains: tuple[str, ...] = DOMAINS
    library: str | None = None
    modules: tuple[str, ...] = ()
    extra: str = "eval"
    install: str | None = None
    timeout: float = 120.0
    version: int = 1
    mark: Callable[[], str] | None = None

    @property
    def identity(self) -> str:
        """Names every version the value depends on: part of the cache key."""
        identity = f"{self.name}/{self.version}"
        if self.library is not None:
            try:
                identity += f"+{self.library}-{version(self.library)}"
            except PackageNotFoundError:
                identity += f"+{self.library}-missing"
        if self.mark is not None:
            identity += f"+{self.mark()}"
        return identity

    @property
    def available(self) -> bool:
        """Whether what computes it is installed."""
        return all(importlib.util.find_spec(module) is not None for module in self.modules)

    @property
    def how_to_install(self) -> str:
        """The command that brings what it needs."""
        return self.install or f"pip install 'codecplus[{self.extra}]'"

    def applies_to(self, kind: str | None) -> bool:
        """Whether it is meant for a kind of audio; for an unknown kind every metric is."""
        return kind is None or kind not in DOMAINS or kind in self.domains


@dataclass(frozen=True, kw_only=True)
class Metric(Measure):
    """A pure function of two 1-D float32 arrays of equal length and rate, and what it needs.

    Attributes:
        function: called with reference, estimate and sample rate in Hz; returns the value.
        unit: of the value.
        higher_is_better: None for a metric that describes and does not rank.
        lowest, highest: the range of its values.
        min_sample_rate: of the reference, in Hz.
        min_seconds: length of the reference.
        max_seconds: longer clips are cut into equal pieces, whose values are averaged.
        by_default: whether it is computed when no metric is named.
        needs_reference: whether the function takes the reference; if not, it is called with the
            estimate and the rate.
        uses_lag: whether the function takes `lag_ms`, the delay of the codec in milliseconds.
    """

    unit: str
    function: MetricFunction
    higher_is_better: bool | None
    lowest: float
    highest: float
    min_sample_rate: int = 4000
    min_seconds: float = 0.1
    max_seconds: float | None = None
    by_default: bool = True
    needs_reference: bool = True
    uses_lag: bool = False

    @property
    def module(self) -> str:
        """The module that registers the metric, which a scoring process imports."""
        return self.function.__module__

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

Family = Callable[[str, str], Metric]  # the whole name, and what stands behind the colon
FAMILIES: dict[str, tuple[Family, str]] = {}
"""Metrics that a model belongs to, such as `wer:ID`, by the name before the colon; and help."""


def metric_family(name: str, help_text: str) -> Callable[[Family], Family]:
    """Register the decorated function, which makes the metric of a name such as `wer:ID`."""

    def register(function: Family) -> Family:
        FAMILIES[name] = function, help_text
        return function

    return register


def find_metric(name: str) -> Metric | None:
    """Return the metric of a name, one of a family among them; None if there is none."""
    family, colon, source = name.partition(":")
    if name not in METRICS and colon and source and family in FAMILIES:
        make, _ = FAMILIES[family]
        METRICS[name] = make(name, source)
    return METRICS.get(name)


@cache
def content_mark(source: str) -> str:
    """Return what names the content of a model: a commit of the Hub, or a hash of a folder."""
    folder = Path(source)
    if not folder.is_dir():
        from transformers import AutoConfig

        return str(getattr(AutoConfig.from_pretrained(source), "_commit_hash", None))
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


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
