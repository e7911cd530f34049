"""From a metric of two mono arrays to a score of two signals. It knows no single metric.

It takes care of rates, channels, long clips and every refusal. Each channel is scored on its own
and the mean is taken, without the channels and pieces that are silent in the reference. The
reference alone decides what is left out, so every codec is scored on the same material.
"""

from functools import cached_property
from typing import Any

import numpy as np

from codecplus.eval.audio import resample
from codecplus.eval.metrics.base import (
    SILENCE_RMS,
    Metric,
    OutputUnscorable,
    ReferenceUnscorable,
    Score,
    is_silent,
    mean_of,
)


def output_problem(reference: np.ndarray, estimate: np.ndarray) -> str | None:
    """Return why an estimate cannot stand for the reference (C, S), or None when it can."""
    if estimate.shape != reference.shape:
        return (
            f"the output has shape {estimate.shape} (channels, samples) where the input has "
            f"{reference.shape}"
        )
    bad = int(np.size(estimate) - np.count_nonzero(np.isfinite(estimate)))
    if bad:
        return f"the output has {bad} values that are NaN or infinite"
    level = _rms(reference) if reference.size else 0.0
    if level >= SILENCE_RMS and _rms(estimate) < 1e-4 * level:
        return "the output is silent"
    return None


class Signal:
    """Audio (C, S) float32 with its rate. What several metrics ask of it is computed once."""

    def __init__(self, audio: np.ndarray, sample_rate: int) -> None:
        self.audio = np.atleast_2d(np.asarray(audio, dtype=np.float32))
        self.sample_rate = sample_rate
        self._resampled = {sample_rate: self.audio}
        self._silent: dict[int, list[bool]] = {}
        self._problem: tuple[Signal, str | None] | None = None

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.audio.shape[-1] / self.sample_rate

    @cached_property
    def finite(self) -> bool:
        """Whether it holds no NaN and nothing infinite."""
        return bool(np.isfinite(self.audio).all())

    def at(self, sample_rate: int | None) -> tuple[np.ndarray, int]:
        """The audio (C, S) at a rate (None: its own), and that rate."""
        rate = sample_rate or self.sample_rate
        if rate not in self._resampled:
            self._resampled[rate] = resample(self.audio, self.sample_rate, rate)
        return self._resampled[rate], rate

    def silent(self, sample_rate: int | None = None) -> list[bool]:
        """Which channels are silent, at a rate (None: its own)."""
        audio, rate = self.at(sample_rate)
        if rate not in self._silent:
            self._silent[rate] = [is_silent(channel) for channel in audio]
        return self._silent[rate]

    def problem_beside(self, reference: "Signal") -> str | None:
        """`output_problem` of this recording as an estimate of the reference."""
        if self._problem is None or self._problem[0] is not reference:
            self._problem = reference, output_problem(reference.audio, self.audio)
        return self._problem[1]


def compute_score(
    metric: Metric, reference: Signal, estimate: Signal, lag_ms: float | None = None
) -> Score:
    """Return the score of an estimate against its reference, which have one rate and shape.

    It never raises and never invents a number: what cannot be scored has a status and a reason.
    `lag_ms` is the delay of the codec, for metrics that use it; None: that of these two signals.
    """
    try:
        problem = estimate.problem_beside(reference)
        _check_reference(metric, reference)
        if problem:
            raise OutputUnscorable(problem)
        value = _mean_over_channels(metric, reference, estimate, lag_ms)
    except ReferenceUnscorable as error:
        return Score.failed("reference_unscorable", str(error))
    except OutputUnscorable as error:
        return Score.failed("codec_failure", str(error))
    except Exception as error:  # somebody else's code: whatever it raises belongs in the report
        return Score.failed("metric_error", f"{type(error).__name__}: {error}")
    if not np.isfinite(value):
        return Score.failed("metric_error", f"{metric.name} returned {value}")
    return Score(float(value), weight=getattr(value, "weight", None))


def _check_reference(metric: Metric, reference: Signal) -> None:
    if not reference.finite:
        raise ReferenceUnscorable("the reference has NaN or infinite values")
    if reference.seconds < metric.min_seconds:
        raise ReferenceUnscorable(
            f"the reference lasts {reference.seconds:.3f} s, under {metric.min_seconds} s"
        )
    if reference.sample_rate < metric.min_sample_rate:
        raise ReferenceUnscorable(
            f"the reference is sampled at {reference.sample_rate} Hz, {metric.name} needs "
            f"{metric.min_sample_rate} Hz"
        )
    if all(reference.silent()):
        raise ReferenceUnscorable("the reference is silent")


def _mean_over_channels(
    metric: Metric, reference: Signal, estimate: Signal, lag_ms: float | None
) -> float:
    options = {"lag_ms": lag_ms} if metric.uses_lag else {}
    x, rate = reference.at(metric.sample_rate)  # (C, S)
    y, _ = estimate.at(metric.sample_rate)
    silent = reference.silent(metric.sample_rate)
    values = []
    refusal = ReferenceUnscorable("the reference is silent")
    for channel, is_left_out in enumerate(silent):
        if is_left_out:
            continue
        try:
            values.append(_mean_over_pieces(metric, x[channel], y[channel], rate, options))
        except ReferenceUnscorable as error:
            refusal = error
    if not values:
        raise refusal
    return mean_of(values)


def _mean_over_pieces(
    metric: Metric, x: np.ndarray, y: np.ndarray, rate: int, options: dict[str, Any]
) -> float:
    pieces = 1
    if metric.max_seconds is not None:
        pieces = max(1, int(np.ceil(len(x) / (metric.max_seconds * rate))))
    values = []
    refusal = ReferenceUnscorable("the reference is silent")
    for a, b in zip(np.array_split(x, pieces), np.array_split(y, pieces), strict=True):
        if pieces > 1 and is_silent(a):
            continue
        try:
            signals = [np.ascontiguousarray(b)]
            if metric.needs_reference:
                signals.insert(0, np.ascontiguousarray(a))
            values.append(metric.function(*signals, rate, **options))
        except ReferenceUnscorable as error:
            refusal = error
    if not values:
        raise refusal
    return mean_of(values)


def _rms(signal: np.ndarray) -> float:
    centred = signal - signal.mean(axis=-1, keepdims=True)
    return float(np.sqrt(np.mean(np.square(centred, dtype=np.float64))))
