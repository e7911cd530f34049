"""What a system lacks, codecplus does without: Windows has no locks of `fcntl`, macOS no `/proc`."""

import ast
import builtins
import os
import pickle
import platform
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import codecplus
from codecplus.cli.signals import stop_signals
from codecplus.eval import runner
from codecplus.eval.codecs import isolation
from codecplus.eval.store import Store
from codecplus.kernels import instruction_sets
from codecplus.system import devices, paths, workers
from codecplus.training.data import Batches, Crops, Cutter, FileSource, find_recordings

PACKAGE = Path(codecplus.__file__).parent


@pytest.fixture
def no_proc(monkeypatch):
    """As on Windows and macOS."""
    open_file, read_text = builtins.open, Path.read_text

    def refuse(name):
        if str(name).startswith("/proc/"):
            raise FileNotFoundError(2, "No such file or directory", str(name))

    def without_proc(name, *arguments, **options):
        refuse(name)
        return open_file(name, *arguments, **options)

    def read_without_proc(path, *arguments, **options):
        refuse(path)
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", without_proc)
    monkeypatch.setattr(Path, "read_text", read_without_proc)


def test_without_locks_files_are_whole_and_nothing_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "fcntl", None)
    left = tmp_path / f".codecplus-{'0' * 16}.part.wav"
    left.touch()
    with paths.atomic_path(tmp_path / "out.wav") as temporary:
        temporary.write_bytes(b"whole")
    with pytest.raises(KeyboardInterrupt), paths.atomic_path(tmp_path / "other.wav") as temporary:
        raise KeyboardInterrupt
    assert paths.remove_unfinished(tmp_path) == []
    assert sorted(os.listdir(tmp_path)) == [left.name, "out.wav"]
    assert (tmp_path / "out.wav").read_bytes() == b"whole"


def test_without_locks_a_store_is_used_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # an import of it fails
    with Store(tmp_path).sole_use(), Store(tmp_path).sole_use():
        pass


def test_without_a_limit_of_the_system_names_have_255_bytes(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "pathconf", raising=False)
    assert paths.check_output(tmp_path / ("a" * 255)).name == "a" * 255
    with pytest.raises(paths.InputError, match="256 bytes, and the disk takes 255"):
        paths.check_output(tmp_path / ("a" * 256))


def test_cores_are_counted_where_nobody_binds_processes(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert devices.available_cores() == os.cpu_count()


def test_a_system_without_hangups_is_asked_to_end_by_sigterm_alone(monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals():
        assert (signal.getsignal(signal.SIGTERM) == before) != (before == signal.SIG_DFL)
    assert signal.getsignal(signal.SIGTERM) == before


def test_facts_that_only_linux_tells_are_left_out(no_proc):
    assert isolation._peak_memory() is None
    isolation._reset_peak_memory()
    assert runner._processor() in (platform.processor(), sys.platform)
    assert np.isnan(workers._processor_seconds(os.getpid()))


@pytest.mark.parametrize(("machine", "names"), [("x86_64", []), ("aarch64", ["neon"])])
def test_a_processor_that_tells_nothing_gets_what_all_of_its_kind_have(no_proc, machine, names):
    flags = instruction_sets.processor_flags.__wrapped__()
    assert flags == frozenset()
    assert [one.name for one in instruction_sets.sets_for(machine, flags)] == names


def test_the_clock_ends_a_worker_whose_processor_time_nobody_knows(no_proc, monkeypatch):
    killed = threading.Event()

    class Process:
        pid = os.getpid()

    monkeypatch.setattr(workers, "_kill", lambda process: killed.set())
    with workers._TimeLimit(Process(), 0.05, None) as limit:
        assert killed.wait(10)
    assert limit.passed


def test_workers_of_training_can_be_spawned(tmp_path):
    """As on Windows and macOS, and as on Linux from Python 3.14 on, which has no fork by default."""
    soundfile.write(tmp_path / "ramp.wav", np.linspace(0.1, 0.9, 8000), 8000)
    crops = Crops(FileSource(find_recordings(tmp_path)), Cutter(8000, 200), 0)
    batches = Batches(crops, 4, workers=1)
    loader = batches._loader()
    # What a spawned worker is sent.
    sent = (loader.dataset, loader.collate_fn, loader.worker_init_fn)
    dataset, collate, start = pickle.loads(pickle.dumps(sent))
    assert start is loader.worker_init_fn
    batch = collate([dataset[number] for number in range(4)])
    assert torch.equal(batch.audio, next(Batches(crops, 4)).audio)


def _opens_text(call: ast.Call) -> bool:
    """Whether a call opens a text file and leaves its encoding to the system."""
    constants = [one.value for one in call.args if isinstance(one, ast.Constant)]
    if "utf-8" in constants or any(one.arg == "encoding" for one in call.keywords):
        return False
    if isinstance(call.func, ast.Name):
        return call.func.id == "open" and not any("b" in str(one) for one in constants)
    if not isinstance(call.func, ast.Attribute):
        return False
    if call.func.attr == "open":
        first = call.args[0] if call.args else None
        return isinstance(first, ast.Constant) and first.value in ("r", "w", "a", "x")
    if call.func.attr == "write_text":
        return len(call.args) == 1  # the method of an output folder takes a name, too
    return call.func.attr == "read_text"


def test_text_files_are_utf8_whatever_the_system_prefers():
    """Windows takes a code page of its own where a call names no encoding."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _opens_text(node):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert found == []
