"""Processes that decode and resample while the device computes, and that may die on a hostile file.

Run as a module it is a worker; imported it is the one who hires them. Down go pickles of our own
rows, up come JSON headers and samples. A worker that dies on a recording is replaced and the
recording tried once more; then it is said.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from codecplus.errors import CodecPlusError
from codecplus.recordings.cells import DecodedAudio, read_cell

MAX_SECONDS = 600.0  # of a recording that passes in one piece
_BUFFER = 1 << 29  # bytes of decoded audio that may wait for their turn
_SIZE = struct.Struct("<q")

Item = TypeVar("Item")


def read_ordered(
    items: Iterable[tuple[Item, Any]], sample_rate: int, channels: int, workers: int
) -> Iterator[tuple[Item, DecodedAudio | str]]:
    """Read the cells of pairs (item, cell), in their order: each item with its recording, or why
    there is none.

    `items` is iterated in another thread, ahead of what is asked for. Without workers all happens
    here and now.
    """
    settings = (sample_rate, channels, MAX_SECONDS)
    if workers == 0:
        for item, cell in items:
            yield item, _read(cell, settings)
        return
    pool = _Pool(workers, settings)
    try:
        yield from pool.run(items)
    finally:
        pool.close()


class _Slot:
    """The place of one recording in the order."""

    def __init__(self, item: Any, cell: Any):
        self.item, self.cell = item, cell
        self.answer: DecodedAudio | str | None = None
        self.size = 0
        self.done = threading.Event()


class _Pool:
    def __init__(self, workers: int, settings: tuple):
        self._settings = settings
        self._jobs: queue.Queue[_Slot | None] = queue.Queue()
        self._ordered: queue.Queue[_Slot | BaseException | None] = queue.Queue(
            maxsize=4 * workers + 16
        )
        self._room, self._held = threading.Condition(), 0
        self._head: _Slot | None = None  # what the consumer waits for; it always has room
        self._closed = False
        self._workers = [_Worker(settings) for _ in range(workers)]
        for worker in self._workers:
            threading.Thread(target=self._serve, args=(worker,), daemon=True).start()

    def run(self, items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, DecodedAudio | str]]:
        threading.Thread(target=self._feed, args=(items,), daemon=True).start()
        while (slot := self._ordered.get()) is not None:
            if isinstance(slot, BaseException):
                raise slot
            with self._room:
                self._head = slot
                self._room.notify_all()
            slot.done.wait()
            with self._room:
                self._held -= slot.size
                self._room.notify_all()
            assert slot.answer is not None, "a slot that is done has an answer"
            yield slot.item, slot.answer

    def close(self) -> None:
        self._closed = True
        with self._room:
            self._room.notify_all()
        for worker in self._workers:
            self._jobs.put(None)
            worker.close()

    def _feed(self, items: Iterable[tuple[Any, Any]]) -> None:
        end: BaseException | None = None
        try:
            for item, cell in items:
                slot = _Slot(item, cell)
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

    def _serve(self, worker: _Worker) -> None:
        while (slot := self._jobs.get()) is not None and not self._closed:
            for attempt in (1, 2):
                try:
                    slot.answer = worker.read(
                        slot.cell, lambda size, slot=slot: self._wait_for_room(slot, size)
                    )
                    break
                except (OSError, EOFError):
                    status = worker.close()
                    if attempt == 2:
                        slot.answer = (
                            f"the decoder's process died on it twice, with status {status}"
                        )
                except BaseException as error:
                    slot.answer = (
                        f"the recording cannot be handed to a decoder: {type(error).__name__}"
                    )
                    worker.close()
                    break
            slot.cell = None
            slot.done.set()

    def _wait_for_room(self, slot: _Slot, size: int) -> None:
        with self._room:
            self._room.wait_for(
                lambda: self._closed or self._head is slot or self._held + size <= _BUFFER
            )
            self._held += size - slot.size
            slot.size = size


class _Worker:
    """One process, started when first needed and again after each death."""

    def __init__(self, settings: tuple):
        self._settings = settings
        self._process: subprocess.Popen | None = None

    def read(self, cell: Any, wait_for_room: Any) -> DecodedAudio | str:
        job = pickle.dumps(cell, protocol=5)
        process = self._process or self._start()
        assert process.stdin is not None
        assert isinstance(process.stdout, io.BufferedReader)
        process.stdin.write(_SIZE.pack(len(job)))
        process.stdin.write(job)
        process.stdin.flush()
        header = json.loads(
            _read_exactly(
                process.stdout, _SIZE.unpack(_read_exactly(process.stdout, _SIZE.size))[0]
            )
        )
        if "error" in header:
            return header["error"]
        audio = None
        if header["shape"] is not None:
            size = 4 * header["shape"][0] * header["shape"][1]
            wait_for_room(size)
            audio = np.empty(header["shape"], np.float32)
            view, done = audio.data.cast("B"), 0
            while done < size:
                count = process.stdout.readinto(view[done:])
                if not count:
                    raise EOFError
                done += count
        return DecodedAudio(audio, header["num_samples"], header["sample_rate"])

    def close(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        status = process.poll()
        process.kill()
        status = process.wait() if status is None else status
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass  # the rest of a job that nobody will read
        return status

    def _start(self) -> subprocess.Popen:
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {
            **os.environ,
            "PYTHONPATH": paths,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "codecplus.tokenizing.workers", json.dumps(self._settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            start_new_session=True,  # a Ctrl-C for the run must not look like a recording that kills
        )  # fmt: skip
        return self._process


def _read_exactly(pipe: Any, size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _read(cell: Any, settings: tuple) -> DecodedAudio | str:
    sample_rate, channels, max_seconds = settings
    try:
        return read_cell(cell, sample_rate, channels, max_seconds=max_seconds)
    except (CodecPlusError, OSError) as error:
        return str(error)
    except MemoryError:
        return "the recording needs more memory than there is"
    except Exception as error:  # whatever a library makes of a hostile file: one row, not the run
        return f"the recording cannot be read: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _work(jobs: Any, answers: Any, settings: tuple) -> None:
    """Answer jobs until the pipe closes, which it does when the parent is gone, however it went."""
    while True:
        head = jobs.read(_SIZE.size)
        if len(head) < _SIZE.size:
            return
        found = _read(pickle.loads(_read_exactly(jobs, _SIZE.unpack(head)[0])), settings)
        if isinstance(found, str):
            header: dict[str, Any] = {"error": found}
        else:
            shape = None if found.audio is None else found.audio.shape
            header = {
                "shape": shape,
                "num_samples": found.num_samples,
                "sample_rate": found.sample_rate,
            }
        text = json.dumps(header).encode()
        answers.write(_SIZE.pack(len(text)) + text)
        if isinstance(found, DecodedAudio) and found.audio is not None:
            answers.write(np.ascontiguousarray(found.audio).data.cast("B"))
        answers.flush()


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries that print must not write among the answers
    try:
        _work(sys.stdin.buffer, answers, tuple(json.loads(sys.argv[1])))
    except (BrokenPipeError, EOFError):
        os._exit(0)  # the parent is gone
