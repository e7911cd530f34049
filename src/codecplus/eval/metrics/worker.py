"""A process that computes scores and may die. Run as a module it is the worker; imported it is the
one who hires it.

Messages are pickles over the pipes of our own child. The worker says which score it starts on, so
that after a crash or a timeout exactly that one is lost and a new worker goes on with the rest.
"""

from __future__ import annotations

import atexit
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.eval.metrics.base import Score

START_SECONDS = 120.0  # to import the libraries on a cold and busy disk
Signal = np.ndarray | str | Path  # an array (C, S), or the path of one saved by numpy
Estimates = dict[str, tuple[Signal, list[str]]]  # name -> (signal, metric names)


class Scorer:
    """One worker process, started when first needed and again after each death."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._answers: queue.Queue = queue.Queue()
        self._lock = threading.Lock()
        self._stopped = False

    def score(
        self,
        reference: Signal,
        estimates: Estimates,
        sample_rate: int,
        on_score: Callable[[str, str, Score], None] | None = None,
    ) -> dict[str, dict[str, Score]]:
        """Scores by estimate and metric. `on_score(estimate, metric, score)` hears of each as it
        comes.
        """
        results: dict[str, dict[str, Score]] = {name: {} for name in estimates}

        def keep(name: str, metric: str, result: Score) -> None:
            results[name][metric] = result
            if on_score:
                on_score(name, metric, result)

        with self._lock:
            deaths: set[tuple[str, str]] = set()
            while todo := _left(estimates, results):
                self._round(reference, todo, sample_rate, keep, deaths)
        return results

    def stop(self) -> None:
        """Stop the worker for good, also from another thread: a score in progress ends with
        InterruptedError.
        """
        self._stopped = True
        self.close()

    def close(self) -> None:
        """Stop the worker; the next score starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _round(
        self, reference: Signal, todo: Estimates, sample_rate: int, keep: Callable, deaths: set
    ) -> None:
        """Send what is left to do and collect answers until it is done or the worker is lost."""
        from codecplus.eval.metrics import METRICS

        queued = [(name, metric) for name, (_, metrics) in todo.items() for metric in metrics]
        limit = START_SECONDS
        try:
            self._send((reference, todo, sample_rate))
            while True:
                kind, *answer = self._answer(limit)
                if kind == "done":
                    return
                if kind == "died":
                    raise BrokenPipeError
                if kind == "start":
                    limit = METRICS[answer[0]].timeout
                else:
                    keep(*queued.pop(0), Score(*answer[0]))
        except queue.Empty:
            self.close()
            keep(*queued[0], Score.failed("timeout", f"no score within {limit:.0f} s"))
        except OSError:
            if self._stopped:
                raise InterruptedError("the scorer was stopped") from None
            code = self._process.wait() if self._process else None
            self.close()
            victim = queued[0] if queued else None
            if (
                victim and victim in deaths
            ):  # once may be the machine's fault, and the verdict is kept for good
                keep(
                    *victim,
                    Score.failed(
                        "metric_error", f"the metric's process died twice, with status {code}"
                    ),
                )
            elif victim:
                deaths.add(victim)

    def _answer(self, limit: float) -> tuple:
        """The next message; queue.Empty once the worker has worked for `limit` seconds without one.

        Processor time is what counts, since on a crowded machine the clock says little; but ten
        times the limit on the clock is a hang as well.
        """
        pid = self._process.pid if self._process else 0
        start, began = _processor_seconds(pid), time.monotonic()
        while True:
            try:
                return self._answers.get(timeout=limit)
            except queue.Empty:
                used = _processor_seconds(pid) - start
                if not used < limit or time.monotonic() - began >= 10 * limit:
                    raise

    def _send(self, job: tuple) -> None:
        if self._process is None or self._process.poll() is not None:
            self._start()
        pipe = self._process.stdin if self._process else None
        assert pipe is not None, "a started process has a pipe"
        pickle.dump(job, pipe, protocol=5)
        pipe.flush()

    def _start(self) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {
            **os.environ,
            "PYTHONPATH": paths,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "codecplus.eval.metrics.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            start_new_session=True,  # a Ctrl-C for the run must not look like a metric that died
        )  # fmt: skip
        self._answers = queue.Queue()
        threading.Thread(
            target=_listen, args=(self._process.stdout, self._answers), daemon=True
        ).start()


def _processor_seconds(pid: int) -> float:
    """The processor time a process has used; NaN where the system does not tell."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        )  # proc_pid_stat(5)
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return float("nan")


def _left(estimates: Estimates, results: dict[str, dict[str, Score]]) -> Estimates:
    missing = {
        n: (signal, [m for m in names if m not in results[n]])
        for n, (signal, names) in estimates.items()
    }
    return {name: job for name, job in missing.items() if job[1]}


def _listen(pipe: Any, answers: queue.Queue) -> None:
    try:
        while True:
            answers.put(pickle.load(pipe))
    except (EOFError, OSError, pickle.UnpicklingError, ValueError):
        answers.put(("died",))


_shared: Scorer | None = None


def shared_scorer() -> Scorer:
    """The scorer that single calls share, closed when Python exits."""
    global _shared
    if _shared is None:
        _shared = Scorer()
        atexit.register(_shared.close)
    return _shared


def _work(jobs: Any, answers: Any) -> None:
    """Answer jobs until the pipe closes, which it does when the parent is gone, however it went."""

    def tell(*message: object) -> None:
        pickle.dump(message, answers, protocol=5)
        answers.flush()

    while True:
        try:
            reference, estimates, sample_rate = pickle.load(jobs)
        except EOFError:
            return
        for answer in _scores(reference, estimates, sample_rate):
            tell(*answer)
        tell("done")


def _scores(reference: Signal, estimates: Estimates, sample_rate: int) -> Iterable[tuple]:
    from codecplus.eval.metrics import METRICS, Recording, compute_score

    original = Recording(_load(reference), sample_rate)
    for signal, metrics in estimates.values():
        estimate = Recording(_load(signal), sample_rate)
        for metric in metrics:
            yield "start", metric
            result = compute_score(METRICS[metric], original, estimate)
            yield "score", (result.value, result.status, result.reason)


def _load(signal: Signal) -> np.ndarray:
    return signal if isinstance(signal, np.ndarray) else np.load(signal, allow_pickle=False)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries that print must not write among the answers
    try:
        _work(sys.stdin.buffer, answers)
    except BrokenPipeError:  # the parent was killed: nobody to tell, and nothing to flush
        os._exit(0)
