"""Metrics: pure functions over numpy arrays that declare what they need beside their definition.

from codecplus.eval.metrics import score
scores = score(reference, estimate, sample_rate=16000, metrics=["pesq_wb", "stoi", "mel_distance"])
scores["pesq_wb"].value, scores["pesq_wb"].status, scores["pesq_wb"].reason
"""

from collections.abc import Iterable
from importlib.metadata import entry_points

import numpy as np

from codecplus.errors import InputError, MissingExtraError, suggest
from codecplus.eval.metrics.base import (
    FAMILIES,
    METRICS,
    STATUSES,
    Measure,
    Metric,
    Score,
    Status,
    Weighted,
    find_metric,
    metric,
    metric_family,
)
from codecplus.eval.metrics.compute import Signal, compute_score, output_problem

# isort: off
# The order of these lines is that of the metrics in every table.
from codecplus.eval.metrics import perceptual as perceptual
from codecplus.eval.metrics import waveform as waveform
from codecplus.eval.metrics import spectral as spectral
from codecplus.eval.metrics import bands as bands
from codecplus.eval.metrics import visqol as visqol
from codecplus.eval.metrics import predicted as predicted
from codecplus.eval.metrics import voice as voice
from codecplus.eval.metrics import words as words
from codecplus.eval.metrics.sets import (
    SET_METRICS,
    SetMetric,
    frechet_distance,
    set_metric,
    set_metric_by_name,
)
# isort: on

__all__ = [
    "ALIASES",
    "FAMILIES",
    "METRICS",
    "SET_METRICS",
    "STATUSES",
    "Metric",
    "Score",
    "SetMetric",
    "Signal",
    "Status",
    "Weighted",
    "compute_score",
    "default_metrics",
    "find_metric",
    "frechet_distance",
    "load_registered",
    "metric",
    "metric_by_name",
    "metric_family",
    "metrics_by_name",
    "output_problem",
    "score",
    "set_metric",
    "set_metrics_by_name",
]


ENTRY_POINTS = "codecplus.metrics"
ALIASES = {
    "pesq": "pesq_wb",
    "visqol": "visqol_audio",
    "mel": "mel_distance",
    "stft": "stft_distance",
    "lsd": "log_spectral_distance",
    "sisdr": "si_sdr",
    "si-sdr": "si_sdr",
    "dnsmos": "dnsmos_ovrl",
}
"""Names that other tools have for a metric of this package."""

_loaded_entry_points = False


def load_registered() -> None:
    """Import the modules that other packages name as metrics; each registers its own.

    A package says so in its pyproject.toml, with any name:

        [project.entry-points."codecplus.metrics"]
        roughness = "mypackage.roughness"
    """
    global _loaded_entry_points
    if _loaded_entry_points:
        return
    _loaded_entry_points = True
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:  # somebody else's code
            raise InputError(
                f"the package of the metric {point.name!r} cannot be loaded "
                f"({type(error).__name__}: {error}); repair or uninstall it"
            ) from error


def metric_by_name(name: str) -> Metric:
    """Return the metric of that name or alias.

    Raises:
        InputError: for an unknown name.
        MissingExtraError: if the package that computes it is not installed.
    """
    load_registered()
    name = ALIASES.get(name.lower(), name)
    chosen = find_metric(name)
    if chosen is None:
        families = [f"{family}:ID" for family in FAMILIES]
        hint = suggest(name.lower(), [*METRICS, *SET_METRICS, *families, *ALIASES])
        raise InputError(f"unknown metric {name!r}{hint}; `--metric list` lists all of them")
    _check_available(chosen)
    return chosen


def set_metrics_by_name(names: Iterable[str]) -> list[SetMetric]:
    """Return those of some names that are metrics of whole sets, in their order.

    Raises:
        MissingExtraError: if the package that computes one is not installed.
    """
    load_registered()
    chosen = []
    for name in dict.fromkeys(names):
        metric = set_metric_by_name(name)
        if metric is not None:
            _check_available(metric)
            chosen.append(metric)
    return chosen


def _check_available(metric: Measure) -> None:
    if not metric.available:
        needed = metric.library or " and ".join(metric.modules)
        raise MissingExtraError(
            f"the metric {metric.name!r} needs {needed}: {metric.how_to_install}"
        )


def default_metrics() -> list[str]:
    """Names of the metrics that are computed when none is named and whose package is installed."""
    load_registered()
    return [name for name, entry in METRICS.items() if entry.available and entry.by_default]


def metrics_by_name(names: Iterable[str] | None = None) -> list[Metric]:
    """Return metrics in the order of the table.

    Args:
        names: of the metrics; None: the default ones; with `all` among them, every one installed.
    """
    if names is None:
        wanted = default_metrics()
    else:
        wanted = list(names)
    wanted = [name for name in wanted if set_metric_by_name(name) is None]
    if "all" in wanted:
        wanted = [name for name, entry in METRICS.items() if entry.available]
    chosen = {metric_by_name(name).name for name in wanted}
    return [entry for name, entry in METRICS.items() if name in chosen]


def score(
    reference: np.ndarray,
    estimate: np.ndarray,
    sample_rate: int,
    metrics: Iterable[str] | None = None,
) -> dict[str, Score]:
    """Score an estimate against its reference; the scores of several channels are averaged.

    The metrics run in a process that may die: a crash or a hang becomes a Score with a reason.

    Args:
        reference, estimate: arrays (S,) or (C, S).
        sample_rate: of both, in Hz.
        metrics: names, as for `metrics_by_name`.

    Returns:
        A Score for each metric.

    Raises:
        InputError: for arrays of another shape, or a metric that does not exist.
        MissingExtraError: for a metric whose package is not installed.
    """
    from codecplus.eval.metrics.worker import score_in_shared_worker

    x = np.atleast_2d(np.asarray(reference, dtype=np.float32))
    y = np.atleast_2d(np.asarray(estimate, dtype=np.float32))
    if sample_rate <= 0 or x.ndim != 2 or y.ndim != 2:
        raise InputError(
            f"expected two arrays (samples,) or (channels, samples) at a positive rate, got "
            f"{np.shape(reference)} and {np.shape(estimate)} at {sample_rate} Hz"
        )
    names = [entry.name for entry in metrics_by_name(metrics)]
    return score_in_shared_worker(x, {"estimate": (y, names)}, sample_rate)["estimate"]
