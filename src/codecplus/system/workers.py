"""Worker processes that may die, and a pool of them. It knows processes, pipes and time limits.

It does not know what the workers compute. A module becomes a worker by calling `serve` in its main
block; `Worker("package.module")` runs it as `python -m package.module`.

Jobs go down the pipe as pickles of our own objects. Answers come up as a JSON header and, if the
header says so, float32 samples: a worker reads hostile files, so nothing it sends is unpickled.
"""

import json
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import numpy as np

_SIZE = struct.Struct("<q")
_SHAPE = "_shape"  # the key of a header that announces samples

Job = TypeVar("Job")
Answer = TypeVar("Answer")
Reserve = Callable[[int], None]
Message = tuple[dict[str, Any], "np.ndarray | None"]  # a header and samples (C, S) or None


class WorkerDied(Exception):
    """The process ended before it answered; `status` is its exit status, if it is known."""

    def __init__(self, status: int | None):
        super().__init__(f"the worker process ended with status {status}")
        self.status = status


class WorkerTimeout(Exception):
    """The process worked longer than its limit on one answer and was killed."""


class WorkerStopped(InterruptedError):
    """The worker was stopped for good by another thread."""


class Worker:
    """One process that runs a module, started when it is first needed and again after each death.

    Args:
        module: the module's full name; its main block calls `serve`.
        arguments: strings that the module finds in `sys.argv[1:]`.
        threads: how many its libraries may use for one computation; None: as many as they like.
    """

    def __init__(self, module: str, *arguments: str, threads: int | None = 1):
        self._command = [sys.executable, "-m", module, *arguments]
        self._threads = threads
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def send(self, job: Any) -> None:
        """Hand a job to the process, which is started if there is none.

        Raises:
            WorkerDied: if the process ends before it has the whole job.
            WorkerStopped: if `stop` was called.
            Exception: whatever `pickle` raises for a job that cannot be pickled.
        """
        data = pickle.dumps(job, protocol=5)
        process = self._running()
        assert process.stdin is not None, "a started process has a pipe"
        try:
            _write(process.stdin, data)
            process.stdin.flush()
        except (OSError, ValueError):
            raise self._death(process) from None

    def receive(
        self,
        seconds: float,
        reserve: Reserve | None = None,
        clock_seconds: float | None = None,
    ) -> Message:
        """Return the next answer: its header, and its samples (C, S) float32 or None.

        Args:
            seconds: processor time that the process may spend on the answer. The clock says little
                on a crowded machine, so it has a limit of its own.
            reserve: called with the size of the samples in bytes before they are read. It may
                block until there is memory for them.
            clock_seconds: time on the clock that counts as a hang; None: ten times `seconds`.

        Raises:
            WorkerTimeout: if the process spent more time; it has been killed.
            WorkerDied: if the process ended first, or sent something that is no answer.
            WorkerStopped: if `stop` was called.
        """
        process = self._running()
        assert process.stdout is not None, "a started process has a pipe"
        try:
            with _TimeLimit(process, seconds, clock_seconds) as limit:
                header = json.loads(_read(process.stdout))
        except (OSError, EOFError, ValueError):
            death = self._death(process)
            if limit.passed:
                raise WorkerTimeout from None
            raise death from None
        if limit.passed:
            self.close()
            raise WorkerTimeout
        shape = header.pop(_SHAPE, None)
        if shape is None:
            return header, None
        try:
            return header, _read_samples(process.stdout, shape, reserve)
        except (OSError, EOFError, ValueError):
            raise self._death(process) from None

    def close(self) -> int | None:
        """End the process and return its status; the next job starts another one."""
        process = self._process
        self._process = None
        if process is None:
            return None
        process.poll()  # the status of a process that is dead already is not that of our signal
        _kill(process)
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # the rest of a job that nobody will read
                    pipe.close()
        return status

    def stop(self) -> None:
        """End the process for good, also from another thread: what waits raises WorkerStopped."""
        self._stopped = True
        self.close()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._stopped:
            raise WorkerStopped("the worker was stopped")
        if self._process is None:
            self._start()
        process = self._process
        if process is None or self._stopped:  # another thread stopped it meanwhile
            self.close()
            raise WorkerStopped("the worker was stopped")
        return process

    def _start(self) -> None:
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        if self._threads is not None:
            environment["OMP_NUM_THREADS"] = str(self._threads)
            environment["OPENBLAS_NUM_THREADS"] = str(self._threads)
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # a Ctrl-C for the run must not look like a job that kills
        )

    def _death(self, process: "subprocess.Popen[bytes]") -> Exception:
        """Return the error for a process whose pipe broke. The process is ended and forgotten."""
        if self._stopped:
            return WorkerStopped("the worker was stopped")
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1.0)  # its own status, if it is ending by itself
        self._process = process
        return WorkerDied(self.close())


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a process and, where the system knows groups, the programs that it started.

    It leads a session of its own.
    """
    if hasattr(os, "killpg"):  # not on Windows
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


class _TimeLimit:
    """Kills a process that works longer than `seconds`, or waits longer, while the block runs."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", seconds: float, clock_seconds: float | None
    ):
        self.passed = False
        self._process = process
        self._seconds = seconds
        self._clock_seconds = 10 * seconds if clock_seconds is None else clock_seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_TimeLimit":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        began = time.monotonic()
        used_before = _processor_seconds(self._process.pid)
        while not self._done.wait(self._until_next_look(began)):
            used = _processor_seconds(self._process.pid) - used_before
            hangs = time.monotonic() - began >= self._clock_seconds
            if hangs or not used < self._seconds:  # NaN, where nobody knows, is too much
                self.passed = True
                _kill(self._process)
                return

    def _until_next_look(self, began: float) -> float:
        left = self._clock_seconds - (time.monotonic() - began)
        return max(0.0, min(self._seconds, left, threading.TIMEOUT_MAX))


def _processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used; NaN where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()  # proc_pid_stat(5)
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return float("nan")


# ---- the pool


@dataclass(eq=False)
class _Slot:
    """The place of one job in the order of the answers."""

    job: Any
    answer: Any = None
    error: BaseException | None = None
    reserved: int = 0  # bytes
    done: threading.Event = field(default_factory=threading.Event)


class WorkerPool(Generic[Job, Answer]):
    """Works on many jobs at once, a thread per worker, and gives the answers in the jobs' order.

    Args:
        workers: the workers; the pool stops them when it is closed.
        work: called in a worker's thread with the worker, a job and `reserve`, which is what
            `Worker.receive` takes. Its result is the job's answer; what it raises is raised
            where the answer is asked for.
        max_bytes: size of all answers' samples that wait for their turn. The answer that is asked
            for next always has room.
    """

    def __init__(
        self,
        workers: list[Worker],
        work: Callable[[Worker, Job, Reserve], Answer],
        max_bytes: int = 1 << 29,
    ):
        self._workers = workers
        self._work = work
        self._max_bytes = max_bytes
        self._jobs: queue.Queue[_Slot | None] = queue.Queue()
        self._ordered: queue.Queue[_Slot | BaseException | None] = queue.Queue(
            maxsize=4 * len(workers) + 16
        )
        self._room = threading.Condition()
        self._reserved = 0
        self._next: _Slot | None = None
        self._closed = False

    def run(self, jobs: Iterable[Job]) -> Generator[Answer, None, None]:
        """Yield the answer of each job, in order. `jobs` is iterated ahead, in another thread.

        The pool is closed when the iterator ends, fails, or is closed.
        """
        threads = [threading.Thread(target=self._feed, args=(jobs,), daemon=True)]
        for worker in self._workers:
            threads.append(threading.Thread(target=self._serve, args=(worker,), daemon=True))
        for thread in threads:
            thread.start()
        try:
            while (slot := self._ordered.get()) is not None:
                if isinstance(slot, BaseException):
                    raise slot
                self._wait_for(slot)
                if slot.error is not None:
                    raise slot.error
                yield slot.answer
        finally:
            self.close()

    def close(self) -> None:
        """Stop the workers; jobs that are not done are dropped."""
        self._closed = True
        with self._room:
            self._room.notify_all()
        for worker in self._workers:
            self._jobs.put(None)
            worker.stop()

    def _wait_for(self, slot: _Slot) -> None:
        with self._room:
            self._next = slot
            self._room.notify_all()
        slot.done.wait()
        with self._room:
            self._reserved -= slot.reserved
            self._room.notify_all()

    def _feed(self, jobs: Iterable[Job]) -> None:
        end: BaseException | None = None
        try:
            for job in jobs:
                slot: _Slot = _Slot(job)
                self._jobs.put(slot)
                if not self._put(slot):
                    return
        except BaseException as error:  # the consumer's to handle
            end = error
        self._put(end)

    def _put(self, slot: _Slot | BaseException | None) -> bool:
        while not self._closed:
            try:
                self._ordered.put(slot, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def _serve(self, worker: Worker) -> None:
        while (slot := self._jobs.get()) is not None and not self._closed:
            try:
                slot.answer = self._work(worker, slot.job, self._reserving(slot))
            except BaseException as error:  # the consumer's to handle
                slot.error = error
            slot.job = None  # its memory is free before its turn comes
            slot.done.set()

    def _reserving(self, slot: _Slot) -> Reserve:
        """Return a function that waits until so many more bytes may be held for a job."""

        def reserve(size: int) -> None:
            def has_room() -> bool:
                first = self._closed or self._next is slot
                return first or self._reserved + size <= self._max_bytes

            with self._room:
                self._room.wait_for(has_room)
                self._reserved += size - slot.reserved
                slot.reserved = size

        return reserve


# ---- inside the worker


def serve(answer: Callable[[Any], Iterable[Message]]) -> None:
    """Answer the jobs of the parent process until it closes the pipe, or is gone.

    Args:
        answer: called with each job; yields its answers, a header that JSON can hold and samples
            (C, S) or None. How many there are is a matter between the two sides.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries that print must not write among the answers
    try:
        while True:
            job = pickle.loads(_read(sys.stdin.buffer))
            for header, samples in answer(job):
                _write_answer(answers, header, samples)
    except (BrokenPipeError, EOFError):
        os._exit(0)  # the parent is gone: nobody to tell, and nothing to flush


def _write_answer(pipe: BinaryIO, header: dict[str, Any], samples: np.ndarray | None) -> None:
    if samples is not None:
        header = {**header, _SHAPE: samples.shape}
    _write(pipe, json.dumps(header).encode())
    if samples is not None and samples.size:  # an empty array has no bytes to cast
        pipe.write(np.ascontiguousarray(samples, np.float32).data.cast("B"))
    pipe.flush()


# ---- frames in pipes


def _write(pipe: Any, data: bytes) -> None:
    pipe.write(_SIZE.pack(len(data)))
    pipe.write(data)


def _read(pipe: Any) -> bytes:
    (size,) = _SIZE.unpack(_read_exactly(pipe, _SIZE.size))
    return _read_exactly(pipe, size)


def _read_exactly(pipe: Any, size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _read_samples(pipe: Any, shape: list[int], reserve: Reserve | None) -> np.ndarray:
    channels, samples = shape
    size = 4 * channels * samples
    if reserve is not None:
        reserve(size)
    audio = np.empty((channels, samples), np.float32)
    if not size:
        return audio
    view = audio.data.cast("B")
    done = 0
    while done < size:
        count = pipe.readinto(view[done:])
        if not count:
            raise EOFError
        done += count
    return audio
