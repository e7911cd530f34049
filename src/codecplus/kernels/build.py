"""The compiled kernels as a library: built once for this processor by the C++ compiler that is
there, and kept.

Sources are C++ of this folder, without torch's headers: they compile in seconds. The library lies
in `$CODECPLUS_CACHE`, or `codecplus` in the user's cache folder, under a name made of sources,
compiler and processor.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_SOURCES = Path(__file__).parent
_FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-ffast-math",
    "-fno-math-errno",
    "-fPIC",
    "-shared",
    "-fopenmp",
)


class KernelError(RuntimeError):
    """The kernels do not compile or load here; everything works without them, only slower."""


@cache
def processor_flags() -> frozenset[str]:
    """What this processor can do, in Linux' words; empty elsewhere."""
    try:
        with open("/proc/cpuinfo") as file:
            return frozenset(
                next((line.split(":")[1] for line in file if line.startswith("flags")), "").split()
            )
    except OSError:
        return frozenset()


def supported() -> bool:
    """Whether there are kernels for this processor: x86-64 with AVX-512, under Linux."""
    return (
        platform.machine() == "x86_64"
        and {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= processor_flags()
    )


def supported_in_bf16() -> bool:
    """Whether there are also kernels in bf16, which need AMX."""
    return supported() and {"amx_bf16", "avx512_bf16"} <= processor_flags()


@cache
def library() -> ctypes.CDLL:
    """The kernels, compiled if they are not in the cache yet, which takes some ten seconds.

    Raises:
        KernelError: if there are none for this processor, or no compiler.
    """
    if not supported():
        raise KernelError(
            "expected an x86-64 processor with AVX-512 under Linux for compiled kernels; "
            "do without them"
        )
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise KernelError(
            "expected a C++ compiler for compiled kernels: install g++ or clang++, "
            "or set CXX to one"
        )
    path = _cache() / f"kernels-{_fingerprint(compiler)}.so"
    if not path.exists():
        _compile(compiler, path)
    try:
        kernels = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(
            f"the compiled kernels do not load ({error}); delete {path} and try again"
        ) from error
    if supported_in_bf16() and not hasattr(kernels, "unit_bf16"):
        raise KernelError(
            f"expected a C++ compiler that knows AMX, as g++ 11 or clang++ 12, got {compiler}"
        )
    return kernels


def _cache() -> Path:
    chosen = os.environ.get("CODECPLUS_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codecplus"


def _fingerprint(compiler: str) -> str:
    digest = hashlib.sha256(repr((compiler, _FLAGS, sorted(processor_flags()))).encode())
    for source in sorted([*_SOURCES.glob("*.cpp"), *_SOURCES.glob("*.h")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".so", dir=path.parent)
    except OSError as error:
        raise KernelError(
            f"expected a writable folder for compiled kernels, set CODECPLUS_CACHE to one: {error}"
        ) from error
    os.close(handle)
    try:
        command = [
            *compiler.split(),
            *_FLAGS,
            *map(str, sorted(_SOURCES.glob("*.cpp"))),
            "-o",
            name,
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelError(f"{compiler} could not compile the kernels: {error}") from error
        if done.returncode:
            raise KernelError(
                f"{compiler} could not compile the kernels: {done.stderr.strip()[-500:]}"
            )
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
