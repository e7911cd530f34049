"""Workers may die, hang or be stopped; the pool keeps the order of the answers and its memory."""

import os
import signal
import sys
import threading
import time

import numpy as np
import pytest

from codecplus.system.workers import (
    Worker,
    WorkerDied,
    WorkerPool,
    WorkerStopped,
    WorkerTimeout,
)

posix = pytest.mark.skipif(os.name == "nt", reason="statuses of POSIX")

MODULE = """
import ctypes, os, sys, time
import numpy as np
from codecplus.system.workers import serve

def answer(job):
    print("noise among the answers")
    kind, value = job
    if kind == "die":
        os._exit(value)
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "spin":
        while True:
            pass
    if kind == "sleep":
        time.sleep(value)
    if kind == "samples":
        yield {"pid": os.getpid()}, np.full((2, value), value, np.float32)
    elif kind == "modules":
        yield {"torch": "torch" in sys.modules}, None
    else:
        yield {"value": value, "arguments": sys.argv[1:]}, None

if __name__ == "__main__":
    serve(answer)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "some_worker.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "some_worker"


@pytest.fixture
def worker(module):
    worker = Worker(module, "an argument")
    yield worker
    worker.stop()


def ask(worker, kind, value=0, seconds=60.0):
    worker.send((kind, value))
    return worker.receive(seconds)


def test_jobs_go_there_and_answers_come_back(worker):
    assert ask(worker, "echo", 3) == ({"value": 3, "arguments": ["an argument"]}, None)
    header, samples = ask(worker, "samples", 5)
    assert np.array_equal(samples, np.full((2, 5), 5, np.float32))
    assert ask(worker, "samples", 0)[1].shape == (2, 0)
    assert header["pid"] != os.getpid()
    assert ask(worker, "modules")[0] == {"torch": False}


@pytest.mark.parametrize(
    ("kind", "status"), [("die", 7), pytest.param("segfault", -signal.SIGSEGV, marks=posix)]
)
def test_a_dead_worker_is_reported_with_its_status_and_replaced(worker, kind, status):
    with pytest.raises(WorkerDied) as death:
        ask(worker, kind, 7)
    assert death.value.status == status
    assert ask(worker, "echo", 1)[0]["value"] == 1


def test_endless_work_is_stopped_and_waiting_is_not(worker):
    ask(worker, "echo")
    with pytest.raises(WorkerTimeout):
        ask(worker, "spin", seconds=0.2)
    ask(worker, "echo")
    assert ask(worker, "sleep", 0.5, seconds=0.2)[0]["value"] == 0.5  # it used no processor time
    with pytest.raises(WorkerTimeout):
        ask(worker, "sleep", 60, seconds=0.02)  # ten times the limit on the clock is a hang


def test_a_job_that_cannot_be_pickled_leaves_the_worker_as_it_was(worker):
    with pytest.raises(Exception, match=r"pickle|local object"):
        worker.send(lambda: None)
    assert ask(worker, "echo", 1)[0]["value"] == 1


def test_a_stopped_worker_ends_whoever_waits_for_it(worker):
    ask(worker, "echo")
    threading.Timer(0.2, worker.stop).start()
    with pytest.raises(WorkerStopped):
        ask(worker, "sleep", 60)
    with pytest.raises(WorkerStopped):
        worker.send(("echo", 1))


def work(worker, job, reserve):
    worker.send(job)
    return worker.receive(60.0, reserve)


def test_a_pool_keeps_the_order_and_leaves_no_process(module):
    workers = [Worker(module) for _ in range(2)]
    jobs = [("sleep", 0.2 if i == 0 else 0.0) for i in range(6)] + [("echo", i) for i in range(6)]
    answers = list(WorkerPool(workers, work).run(jobs))
    assert [header["value"] for header, _ in answers] == [value for _, value in jobs]
    assert all(worker._process is None for worker in workers)


def test_a_pool_never_holds_more_samples_than_it_may(module):
    held = []

    def noting(worker, job, reserve):
        def reserve_and_note(size):
            reserve(size)
            held.append(pool._reserved)

        worker.send(job)
        return worker.receive(60.0, reserve_and_note)

    size = 8 * 1000  # bytes of two channels of 1,000 samples
    pool = WorkerPool([Worker(module) for _ in range(2)], noting, max_bytes=2 * size)
    shapes = []
    for _, samples in pool.run([("samples", 1000)] * 12):
        time.sleep(0.01)
        shapes.append(samples.shape)
    assert shapes == [(2, 1000)] * 12
    assert max(held) <= 3 * size  # the answer that is asked for always has room


def test_an_error_of_the_work_or_of_the_jobs_reaches_the_caller_in_its_turn(module):
    def jobs():
        yield ("echo", 1)
        raise RuntimeError("the disk is gone")

    answers = WorkerPool([Worker(module)], work).run(jobs())
    assert next(answers)[0]["value"] == 1
    with pytest.raises(RuntimeError, match="disk is gone"):
        next(answers)
    answers = WorkerPool([Worker(module)], work).run([("echo", 1), ("die", 3), ("echo", 2)])
    assert next(answers)[0]["value"] == 1
    with pytest.raises(WorkerDied):
        next(answers)


def test_the_processes_that_decode_and_score_do_not_import_torch(monkeypatch):
    import subprocess

    for module in ("codecplus.tokenizing.reading", "codecplus.eval.metrics.worker"):
        code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0, module
