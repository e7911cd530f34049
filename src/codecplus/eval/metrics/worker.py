"""Scores computed in a process that may die. It knows jobs and time limits, and no single metric.

The process says which score it starts on. After a crash or a timeout exactly that score is lost,
and a new process goes on with the rest. Run as a module, this is such a process.
"""

import atexit
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.eval.metrics.base import METRICS, Score, Status, find_metric
from codecplus.eval.metrics.compute import Signal, compute_score
from codecplus.system.workers import Message, Worker, WorkerDied, WorkerTimeout, serve

START_SECONDS = 120.0  # to import the libraries on a cold and busy disk
Audio = np.ndarray | str | Path  # an array (C, S), or the path of one saved by numpy
Estimates = dict[str, tuple[Audio, list[str]]]  # name -> (audio, metric names)
Lags = dict[str, float]  # name of an estimate -> delay of its codec in milliseconds
OnScore = Callable[[str, str, Score], None]
Scores = dict[str, dict[str, Score]]  # by estimate and metric

_shared: Worker | None = None
_shared_lock = threading.Lock()


def scoring_worker() -> Worker:
    """Return a worker for `score_in`; its process starts with the first job."""
    return Worker("codecplus.eval.metrics.worker")


def score_in_shared_worker(reference: Audio, estimates: Estimates, sample_rate: int) -> Scores:
    """As `score_in`, in one process that all callers share, one after the other."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = scoring_worker()
            atexit.register(_shared.close)
        return score_in(_shared, reference, estimates, sample_rate)


def score_in(
    worker: Worker,
    reference: Audio,
    estimates: Estimates,
    sample_rate: int,
    on_score: OnScore | None = None,
    lags: Lags | None = None,
) -> Scores:
    """Score estimates against their reference in a worker; a crash or a hang becomes a Score.

    Args:
        worker: one of `scoring_worker`.
        reference: audio (C, S), or the path of a `.npy` file that holds it.
        estimates: by name, the audio and the names of the metrics.
        sample_rate: of all audio, in Hz.
        on_score: called with estimate, metric and score as soon as each is known.
        lags: delays in milliseconds, for metrics that use them.

    Returns:
        The scores by estimate and metric. A metric whose process dies or hangs on the reference
        itself, where that is an estimate, gives no other estimate a score.

    Raises:
        WorkerStopped: if another thread stopped the worker.
    """
    round_ = _Round(worker, reference, estimates, sample_rate, on_score, lags or {})
    try:
        while round_.missing():
            round_.run()
    except BaseException:
        worker.close()  # answers to the unfinished job may be in its pipe
        raise
    return round_.scores


class _Round:
    """The scores of one reference's estimates, over as many processes as it takes."""

    def __init__(
        self,
        worker: Worker,
        reference: Audio,
        estimates: Estimates,
        sample_rate: int,
        on_score: OnScore | None,
        lags: Lags,
    ):
        self.scores: Scores = {name: {} for name in estimates}
        self._worker = worker
        self._reference = reference
        self._estimates = estimates
        self._sample_rate = sample_rate
        self._on_score = on_score
        self._lags = lags
        self._died_once: set[tuple[str, str]] = set()
        self._hopeless: set[str] = set()  # metrics that cannot score even the reference

    def missing(self) -> list[tuple[str, str]]:
        """The pairs (estimate, metric) without a score, in the order in which they are scored."""
        return [
            (name, metric)
            for name, (_, metrics) in self._estimates.items()
            for metric in metrics
            if metric not in self.scores[name] and metric not in self._hopeless
        ]

    def run(self) -> None:
        """Send what is missing and collect scores until all are there or the process is lost."""
        waiting = self.missing()
        seconds = START_SECONDS
        try:
            self._worker.send(self._job(waiting))
            while waiting:
                message, _ = self._worker.receive(seconds)
                if "start" in message:
                    seconds = METRICS[message["start"]].timeout
                else:
                    self._keep(waiting.pop(0), Score(*message["score"]))
        except WorkerTimeout:
            self._give_up(waiting[0], "timeout", f"no score within {seconds:.0f} s")
        except WorkerDied as death:
            self._note_death(waiting[0], death)

    def _job(self, waiting: list[tuple[str, str]]) -> tuple:
        todo: Estimates = {}
        for name, metric in waiting:
            audio, _ = self._estimates[name]
            todo.setdefault(name, (audio, []))[1].append(metric)
        modules = sorted({METRICS[metric].module for _, metric in waiting})
        return self._reference, todo, self._sample_rate, modules, self._lags

    def _keep(self, pair: tuple[str, str], score: Score) -> None:
        name, metric = pair
        self.scores[name][metric] = score
        if self._on_score is not None:
            self._on_score(name, metric, score)

    def _note_death(self, victim: tuple[str, str], death: WorkerDied) -> None:
        """Give a score up at the second death: the first may be the machine's fault."""
        if victim not in self._died_once:
            self._died_once.add(victim)
            return
        reason = f"the metric's process died twice, with status {death.status}"
        self._give_up(victim, "metric_error", reason)

    def _give_up(self, victim: tuple[str, str], status: Status, reason: str) -> None:
        """Keep a failure; each one costs a process, so a hopeless metric is not tried again."""
        name, metric = victim
        audio, _ = self._estimates[name]
        if isinstance(audio, str | Path) and audio == self._reference:
            self._hopeless.add(metric)
        self._keep(victim, Score.failed(status, reason))


# ---- inside the worker


def _answers(job: tuple[Audio, Estimates, int, list[str], Lags]) -> Iterator[Message]:
    """Two messages for each score: the metric that starts, and the fields of its `Score`."""
    reference, estimates, sample_rate, modules, lags = job
    for module in modules:  # each registers its metrics
        import_module(module)
    original = Signal(_load(reference), sample_rate)
    for name, (audio, metrics) in estimates.items():
        estimate = Signal(_load(audio), sample_rate)
        for metric in metrics:
            yield {"start": metric}, None
            declared = find_metric(metric)
            assert declared is not None, "its module has registered it"
            score = compute_score(declared, original, estimate, lags.get(name))
            yield {"score": _fields(score)}, None


def _fields(score: Score) -> list[Any]:
    return [score.value, score.status, score.reason, score.weight]


def _load(audio: Audio) -> np.ndarray:
    if isinstance(audio, np.ndarray):
        return audio
    return np.load(audio, allow_pickle=False)


if __name__ == "__main__":
    serve(_answers)
