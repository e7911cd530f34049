"""Which kernels run, and what of a cache is run: only whole libraries that this user wrote."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from processors import SETS, needs_compiler, needs_kernels

from codecplus import kernels
from codecplus.errors import InputError
from codecplus.kernels import compiler, shared_library
from codecplus.kernels.instruction_sets import INSTRUCTION_SETS, machine, sets_for

ZEN4 = {
    "avx2",
    "fma",
    "bmi2",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512vl",
} | {"avx512_bf16"}


@pytest.mark.parametrize(
    ("architecture", "flags", "best"),
    [
        ("x86_64", {"sse2"}, None),
        ("x86_64", {"avx2", "fma", "bmi2", "f16c"}, "avx2"),
        ("x86_64", ZEN4 - {"avx512_bf16"}, "avx512"),
        ("x86_64", ZEN4, "avx512-bf16"),
        ("x86_64", ZEN4 | {"amx_tile", "amx_bf16"}, "amx"),
        ("aarch64", set(), "neon"),
        ("riscv64", set(), None),
    ],
)
def test_a_processor_gets_the_best_that_it_has(architecture, flags, best):
    names = [one.name for one in sets_for(architecture, flags)]
    assert (names[0] if names else None) == best


@needs_kernels
def test_the_variable_forces_an_instruction_set_or_switches_off(monkeypatch):
    assert kernels.instruction_set() == SETS[0]
    for one in SETS:
        monkeypatch.setenv("CODECPLUS_KERNELS", one.name)
        assert kernels.instruction_set() == one
    monkeypatch.setenv("CODECPLUS_KERNELS", "off")
    assert kernels.instruction_set() is None
    assert kernels.usable_set() is None
    with pytest.raises(kernels.KernelError, match="not off"):
        kernels.library()


def test_the_variable_names_what_there_is(monkeypatch):
    monkeypatch.setenv("CODECPLUS_KERNELS", "avx521")
    with pytest.raises(InputError, match=r"amx, avx512-bf16, avx512.*did you mean 'avx512'"):
        kernels.instruction_set()
    missing = next(one for one in INSTRUCTION_SETS if one not in SETS)
    monkeypatch.setenv("CODECPLUS_KERNELS", missing.name)
    with pytest.raises(InputError, match=f"is {missing.name}, but this processor has"):
        kernels.instruction_set()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, and a compiler that copies the library that is built already."""
    built = shared_library.own_folder()
    shared_library.library()
    code = next(built.glob("*.so")).read_bytes()[: -shared_library._HASH_BYTES]
    (tmp_path / "code").write_bytes(code)
    script = tmp_path / "my tools" / "g++"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *-shared*) echo >> "{tmp_path}/calls";; esac\n'
        f'while [ "$1" != -o ]; do shift; done\ncp "{tmp_path}/code" "$2"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    folder = tmp_path / "cache"
    monkeypatch.setenv("CODECPLUS_CACHE", str(folder))
    return folder


def compiled(cache: Path) -> int:
    """How often a library was made."""
    return len((cache.parent / "calls").read_text())


def kernels_of(cache: Path) -> Path:
    (path,) = cache.glob("kernels-*/*.so")
    return path


@needs_kernels
@needs_compiler
def test_kernels_are_compiled_once_for_their_user_alone(cache):
    before = os.umask(0o000)
    try:
        shared_library.load(SETS[0])
    finally:
        os.umask(before)
    shared_library.load(SETS[0])
    assert compiled(cache) == 1
    path = kernels_of(cache)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert list(path.parent.iterdir()) == [path]


def replace(path: Path, content: bytes) -> None:
    path.unlink()  # this process has mapped the file: it would crash if that became shorter
    path.write_bytes(content)
    path.chmod(0o600)


def cut_short(path: Path) -> None:
    replace(path, path.read_bytes()[:9000])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    replace(path, bytes(content))


def empty(path: Path) -> None:
    replace(path, b"")


def let_others_write(path: Path) -> None:
    path.chmod(0o666)


def link_elsewhere(path: Path) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to("elsewhere")


def put_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = [cut_short, flip_a_bit, empty, let_others_write, link_elsewhere, put_a_pipe]


@needs_kernels
@needs_compiler
@pytest.mark.parametrize("damage", DAMAGES)
def test_kernels_that_are_damaged_are_made_anew(cache, damage, caplog):
    shared_library.load(SETS[0])
    damage(kernels_of(cache))
    loaded = shared_library.load(SETS[0])
    assert hasattr(loaded, "unit_fp32")
    assert compiled(cache) == 2
    assert "made anew" in caplog.text


@needs_kernels
@needs_compiler
def test_a_folder_in_place_of_the_kernels_is_an_error_of_kernels(cache):
    shared_library.load(SETS[0])
    path = kernels_of(cache)
    path.unlink()
    path.mkdir()
    with pytest.raises(kernels.KernelError, match="could not be written"):
        shared_library.load(SETS[0])


@needs_kernels
@needs_compiler
@pytest.mark.parametrize("how", ["mode", "link"])
def test_a_folder_that_others_may_write_to_is_refused(cache, how, tmp_path):
    folder = cache / f"kernels-{os.getuid()}"
    cache.mkdir()
    if how == "mode":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        (tmp_path / "planted").mkdir()
        folder.symlink_to(tmp_path / "planted")
    with pytest.raises(kernels.KernelError, match="only you may write to"):
        shared_library.load(SETS[0])


@needs_kernels
def test_a_system_without_owners_of_files_builds_none(cache, monkeypatch):
    monkeypatch.delattr(os, "getuid")
    with pytest.raises(kernels.KernelError, match="expected a wheel with kernels"):
        shared_library.own_folder()


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root, to be another user"
)
def test_a_folder_of_another_user_is_refused(cache):
    folder = cache / "kernels-0"
    folder.mkdir(parents=True, mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(kernels.KernelError, match="only you may write to"):
        shared_library.load(SETS[0])


@needs_kernels
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/no/such/g++", "could not compile"),
        ("false", "could not compile the kernels for"),
        ("'unclosed", "expected a command in CXX"),
    ],
)
def test_a_compiler_that_fails_leaves_nothing_behind(command, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", command)
    monkeypatch.setenv("CODECPLUS_CACHE", str(tmp_path))
    with pytest.raises(kernels.KernelError, match=expected):
        shared_library.load(SETS[0])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("ccache g++ -DX='a b'", ["ccache", "g++", "-DX=a b"]),
        ("'/opt/my tools/g++' -O2", ["/opt/my tools/g++", "-O2"]),
    ],
)
def test_the_compiler_may_have_options_and_quotes(command, words, monkeypatch):
    monkeypatch.setenv("CXX", command)
    assert compiler.find_compiler() == words


@needs_kernels
def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CODECPLUS_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("CXX", "true")
    with pytest.raises(kernels.KernelError, match="CODECPLUS_CACHE"):
        shared_library.load(SETS[0])


_WITHOUT = """
import torch
from tiny import tiny_model
model = tiny_model(encoder_hidden_size=32, decoder_hidden_size=64, downsampling_ratios=[4])
with torch.inference_mode():
    model(torch.randn(1, 1, 800))
print("well")
"""


@needs_kernels
def test_without_a_compiler_everything_runs(tmp_path):
    environment = {**os.environ, "CXX": "/no/such/compiler", "CODECPLUS_CACHE": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT], env=environment, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr
    assert "kernel" not in done.stderr


@needs_kernels
@needs_compiler
def test_threads_and_forks_share_the_kernels():
    rows = torch.randn(1, 40000, 64)
    alpha = torch.ones(64)
    from codecplus.acceleration.inference import snake_of_rows

    torch.set_num_threads(3)
    try:
        expected = snake_of_rows(rows, alpha)
        results = [False] * 8

        def use(i: int) -> None:
            results[i] = all(torch.equal(snake_of_rows(rows, alpha), expected) for _ in range(20))

        threads = [threading.Thread(target=use, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        child = os.fork()
        if child == 0:  # while the threads of the parent are at work
            same = torch.equal(snake_of_rows(rows, alpha), expected)
            os._exit(0 if same else 1)
        for thread in threads:
            thread.join()
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(1)
    assert all(results)


@needs_compiler
@pytest.mark.skipif(machine() != "x86_64", reason="the sets of x86-64 are those with several")
def test_kernels_of_every_instruction_set_compile(tmp_path):
    for one in INSTRUCTION_SETS:
        if one.machine == machine():
            output = tmp_path / one.name
            compiler.compile_library(compiler.find_compiler(), one, output)
            code = output.read_bytes()
            assert (b"unit_bf16" in code) == one.bf16
            assert (b"unit_back_bf16" in code) == one.trains
            assert b"libgomp" not in code  # which machines without a compiler do not have
            assert b"libstdc++" not in code


LOADS = """
import ctypes, sys
import numpy as np
ctypes.CDLL(sys.argv[1])
print(np.float32(1e-40) * np.float32(0.5) > 0)
"""


@needs_compiler
def test_loaded_kernels_leave_the_arithmetic_of_the_process_alone(tmp_path):
    one = sets_for(machine(), kernels.processor_flags())[0]
    compiler.compile_library(compiler.find_compiler(), one, tmp_path / "code")
    command = [sys.executable, "-c", LOADS, str(tmp_path / "code")]
    assert subprocess.check_output(command, text=True) == "True\n"


@needs_kernels
def test_prebuilt_kernels_come_first(cache, tmp_path, monkeypatch):
    prebuilt = tmp_path / "prebuilt"
    prebuilt.mkdir()
    (prebuilt / f"kernels-{SETS[0].name}.so").write_bytes((tmp_path / "code").read_bytes())
    monkeypatch.setattr(shared_library, "_PREBUILT", prebuilt)
    assert hasattr(shared_library.load(SETS[0]), "unit_fp32")
    assert not cache.exists()
