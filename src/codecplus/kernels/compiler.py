"""The C++ compiler: sources of this folder to a library for one instruction set.

The build of a wheel imports this file too: standard library only.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from codecplus.kernels.instruction_sets import InstructionSet

_SOURCES = Path(__file__).parent
_OPTIONS = (
    "-O3",
    "-std=c++17",
    "-ffast-math",
    "-fno-math-errno",
    "-fPIC",
    "-fno-threadsafe-statics",  # their guards are in libstdc++, which is not there everywhere
    "-pthread",
)
# Never link with -ffast-math: GCC before 13 then adds code that flushes denormal numbers to zero in
# the thread that loads the library, whatever else that thread computes.
_LINK_OPTIONS = ("-fPIC", "-shared", "-pthread")
_TIMEOUT = 300  # seconds; it takes some ten


class KernelError(RuntimeError):
    """The kernels do not compile or load here; everything works without them, only slower."""


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler: `CXX`, which may hold options, or g++ or clang++.

    Raises KernelError if there is none.
    """
    chosen = os.environ.get("CXX", "").strip()
    if chosen:
        if shutil.which(chosen):  # a path with spaces in it
            return [chosen]
        try:
            return shlex.split(chosen)
        except ValueError as error:
            raise KernelError(f"expected a command in CXX, got {chosen!r}: {error}") from error
    for name in ("g++", "clang++"):
        path = shutil.which(name)
        if path:
            return [path]
    raise KernelError(
        "expected a C++ compiler for compiled kernels: install g++ or clang++, or set CXX to one"
    )


def fingerprint(compiler: list[str], target: InstructionSet) -> str:
    """Return 16 digits that change with the sources, the compiler and its options."""
    options = (_OPTIONS, _LINK_OPTIONS, target.options)
    digest = hashlib.sha256(repr((compiler, options)).encode())
    for source in sorted([*_SOURCES.glob("*.cpp"), *_SOURCES.glob("*.h")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def compile_library(compiler: list[str], target: InstructionSet, output: Path) -> None:
    """Write the kernels for an instruction set to `output`.

    Raises KernelError with the compiler's last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        objects = []
        for source in sorted(_SOURCES.glob("*.cpp")):
            compiled = Path(folder) / f"{source.stem}.o"
            _run(
                compiler,
                (*_OPTIONS, *target.options, "-c", str(source), "-o", str(compiled)),
                target,
            )
            objects.append(str(compiled))
        _run(compiler, (*_LINK_OPTIONS, *target.options, *objects, "-o", str(output)), target)
    if not output.is_file():
        raise KernelError(f"{shlex.join(compiler)} wrote no kernels for {target.name}")


def _run(compiler: list[str], options: tuple[str, ...], target: InstructionSet) -> None:
    name = shlex.join(compiler)
    try:
        done = subprocess.run(
            [*compiler, *options],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"{name} could not compile the kernels: {error}") from error
    if done.returncode:
        last = done.stderr.strip()[-500:]
        raise KernelError(f"{name} could not compile the kernels for {target.name}: {last}")
