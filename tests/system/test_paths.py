"""Output files appear whole or not at all."""

import errno
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from codecplus.errors import InputError, OutputError, OutputExistsError
from codecplus.system.paths import (
    atomic_files,
    atomic_path,
    check_output,
    explain_os_error,
    remove_unfinished,
)
from codecplus.utils import save_audio


def test_atomic_path_appears_only_on_success(tmp_path):
    target = tmp_path / "out.bin"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".bin"
        assert not target.exists()
    assert target.read_bytes() == b"new"

    def fail_halfway():
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_halfway()
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out.bin"]


def test_atomic_path_gives_the_permissions_of_a_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with atomic_path(tmp_path / "out") as temporary:
        temporary.write_bytes(b"")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(os.name == "nt", reason="links and devices of POSIX")
def test_a_link_into_a_folder_that_is_missing_says_so(tmp_path):
    (tmp_path / "link").symlink_to("nowhere/file")
    said = r"there is no folder .*nowhere; create it first"
    with pytest.raises(InputError, match=said), atomic_path(tmp_path / "link"):
        pass


def test_atomic_path_writes_through_links_and_leaves_devices_alone(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_path(tmp_path / "link") as temporary:
        temporary.write_bytes(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"x"
    with atomic_path("/dev/null") as temporary:
        temporary.write_bytes(b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.fixture
def calls(monkeypatch):
    """The calls of `os.fsync` and `os.replace`, by name, in their order."""
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def spy(*arguments, _name=name, _original=original):
            calls.append(_name)
            return _original(*arguments)

        monkeypatch.setattr(os, name, spy)
    return calls


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, calls):
    with atomic_path(tmp_path / "out") as temporary:
        temporary.write_bytes(b"x")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_files_of_one_folder_are_on_the_disk_before_the_first_has_its_name(tmp_path, calls):
    (tmp_path / "out" / "inner").mkdir(parents=True)
    (tmp_path / "out" / "inner" / "other").write_bytes(b"stays")
    (tmp_path / "out" / "a").write_bytes(b"old")
    with atomic_files(tmp_path / "out") as temporary:
        (temporary / "a").write_bytes(b"new")
        (temporary / "inner").mkdir()
        (temporary / "inner" / "b").write_bytes(b"x")
    assert calls == ["fsync", "fsync", "replace", "replace", "fsync"]
    found = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert found == {"a": b"new", "inner/b": b"x", "inner/other": b"stays"}


needs_locks = pytest.mark.skipif(os.name == "nt", reason="locks of POSIX")
WRITER = """
import sys
from codecplus.system.paths import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print(temporary.name, flush=True)
    sys.stdin.read()
"""


@needs_locks
def test_the_next_run_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    target = tmp_path / "out.wav"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", WRITER, str(target)]
    killed, alive = (subprocess.Popen(command, **pipes) for _ in range(2))
    names = [process.stdout.readline().strip() for process in (killed, alive) if process.stdout]
    killed.kill()
    killed.communicate()
    foreign = [".codecplus-1.part.wav", ".0123456789abcdef.part.wav", "a.part.wav"]
    for name in foreign:
        (tmp_path / name).write_bytes(b"")
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"whole")
    assert sorted(os.listdir(tmp_path)) == sorted([*foreign, names[1], "out.wav"])
    assert remove_unfinished(tmp_path) == []
    alive.communicate()
    assert sorted(os.listdir(tmp_path)) == sorted([*foreign, "out.wav"])
    assert target.read_bytes() == b"half"


@needs_locks
def test_a_file_made_by_a_process_that_was_killed_before_it_locked_it_is_removed(tmp_path):
    killed = """
import fcntl, os, sys
from codecplus.system.paths import atomic_path
fcntl.flock = lambda *arguments: os._exit(9)
atomic_path(sys.argv[1]).__enter__()
"""
    assert subprocess.run([sys.executable, "-c", killed, str(tmp_path / "out")]).returncode == 9
    assert len(os.listdir(tmp_path)) == 1
    assert remove_unfinished(tmp_path) != []
    assert os.listdir(tmp_path) == []


@needs_locks
def test_a_file_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    import fcntl

    lock, removed = fcntl.flock, []

    def lock_late(descriptor, how):
        if not how & fcntl.LOCK_NB and not removed:  # another process is faster
            removed.extend(remove_unfinished(tmp_path))
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with atomic_path(tmp_path / "out") as temporary:
        assert removed == [temporary.name]
        assert remove_unfinished(tmp_path) == []  # it holds the lock of the second one
        temporary.write_bytes(b"whole")
    assert (tmp_path / "out").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["out"]


def test_a_name_that_is_too_long_is_refused_before_the_work(tmp_path):
    with pytest.raises(InputError, match="its name has 256 bytes, and the disk takes 255"):
        check_output(tmp_path / ("ä" * 126 + ".wav"))
    with pytest.raises(InputError, match="name a shorter output"):
        atomic_path(tmp_path / ("a" * 256)).__enter__()


def test_errors_of_the_system_become_sentences():
    full = OSError(28, "No space left on device", "x")
    assert explain_os_error(full) == "x: no space left on the disk; make room or write elsewhere"
    assert explain_os_error(PermissionError(13, "Permission denied", "x")) == "x: permission denied"
    assert explain_os_error(OSError("odd")) == "odd"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_refusal_to_write_is_a_sentence_and_an_error_of_reading_stays(tmp_path):
    said = "cannot write /dev/full: no space left on the disk; make room or write elsewhere"
    with pytest.raises(OutputError, match=said) as refused, atomic_path("/dev/full") as path:
        path.write_bytes(b"x")
    assert refused.value.errno == errno.ENOSPC
    with pytest.raises(FileNotFoundError, match="missing"), atomic_path(tmp_path / "x"):
        (tmp_path / "missing").read_bytes()
    with pytest.raises(ConnectionResetError), atomic_path(tmp_path / "x"):
        raise ConnectionResetError(errno.ECONNRESET, "reset by peer")
    assert os.listdir(tmp_path) == []


def test_atomic_path_takes_the_longest_file_name(tmp_path):
    target = tmp_path / ("a" * 251 + ".wav")
    save_audio([0.5], target, 8000)
    assert os.listdir(tmp_path) == [target.name]


def test_check_output_says_what_is_in_the_way(tmp_path):
    file = tmp_path / "out.wav"
    assert check_output(str(file), overwrite=False) == file
    file.write_bytes(b"x")
    assert check_output(file) == file
    with pytest.raises(
        OutputExistsError,
        match=r"out\.wav exists already; choose another name or allow overwriting",
    ):
        check_output(file, overwrite=False)
    with pytest.raises(InputError, match="expected a file name to write to, got the folder"):
        check_output(tmp_path)
    with pytest.raises(InputError, match=r"there is no folder .*nowhere; create it first"):
        check_output(tmp_path / "nowhere" / "out.wav")
    with pytest.raises(
        InputError, match=r"expected a path as a string or pathlib\.Path, got ndarray"
    ):
        check_output(np.zeros(3))  # type: ignore[arg-type]
    for name in ("", "a\0b"):
        with pytest.raises(InputError, match="expected a file name, got"):
            check_output(name)
