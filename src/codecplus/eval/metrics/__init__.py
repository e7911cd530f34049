"""Metrics: pure functions over numpy arrays that declare what they need beside their definition.

from codecplus.eval.metrics import score
scores = score(reference, estimate, sample_rate=16000, metrics=["pesq_wb", "stoi", "mel_distance"])
scores["pesq_wb"].value, scores["pesq_wb"].status, scores["pesq_wb"].reason
"""

from collections.abc import Iterable
from importlib.metadata import entry_points

import numpy as np

from codecplus.errors import InputError, MissingExtraError, suggest
from codecplus.eval.metrics.base import METRICS, STATUSES, Metric, Score, Status, metric
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
# isort: on

__all__ = [
    "ALIASES",
    "METRICS",
    "STATUSES",
    "Metric",
    "Score",
    "Signal",
    "Status",
    "compute_score",
    "default_metrics",
    "load_registered",
    "metric",
    "metric_by_name",
    "metrics_by_name",
    "output_problem",
    "score",
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
    if name not in METRICS:
        hint = suggest(name.lower(), [*METRICS, *ALIASES])
        raise InputError(f"unknown metric {name!r}{hint}; `--metric list` lists all of them")
    chosen = METRICS[name]
    if not chosen.available:
        needed = chosen.library or " and ".join(chosen.modules)
        command = chosen.install or f"pip install 'codecplus[{chosen.extra}]'"
        raise MissingExtraError(f"the metric {name!r} needs {needed}: {command}")
    return chosen


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
