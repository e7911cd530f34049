"""Instruction sets that there are kernels for, and which one this processor gets.

The build of a wheel imports this file too: standard library only.
"""

import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from codecplus.errors import InputError, suggest

VARIABLE = "CODECPLUS_KERNELS"
"""Environment variable with the name of an instruction set, or `off`."""


@dataclass(frozen=True, kw_only=True)
class InstructionSet:
    """One build of the kernels.

    Attributes:
        name: as in `CODECPLUS_KERNELS`.
        machine: the architecture, x86_64 or aarch64.
        flags: features that the processor must have, by Linux' names.
        options: of the compiler.
        bf16: whether residual units run in bf16.
        trains: whether they have gradients, in bf16.
    """

    name: str
    machine: str
    flags: frozenset[str]
    options: tuple[str, ...]
    bf16: bool = False
    trains: bool = False


_AVX2 = frozenset({"avx2", "fma", "bmi2", "f16c"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_AVX512_BF16 = _AVX512 | {"avx512_bf16"}

INSTRUCTION_SETS = (  # of those that a processor has, the first is used
    InstructionSet(
        name="amx",
        machine="x86_64",
        flags=_AVX512_BF16 | {"amx_tile", "amx_bf16"},
        options=("-march=x86-64-v4", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
        bf16=True,
        trains=True,
    ),
    InstructionSet(
        name="avx512-bf16",
        machine="x86_64",
        flags=_AVX512_BF16,
        options=("-march=x86-64-v4", "-mavx512bf16"),
        bf16=True,
    ),
    InstructionSet(
        name="avx512",
        machine="x86_64",
        flags=_AVX512,
        options=("-march=x86-64-v4",),
    ),
    InstructionSet(
        name="avx2",
        machine="x86_64",
        flags=_AVX2,
        options=("-march=x86-64-v3",),
    ),
    InstructionSet(
        name="neon",
        machine="aarch64",
        flags=frozenset(),
        options=("-march=armv8-a",),
    ),
)


def library_name(target: InstructionSet) -> str:
    """Return the file name of the kernels for an instruction set."""
    return f"kernels-{target.name}.so"


@cache
def processor_flags() -> frozenset[str]:
    """Return what this processor can do, in Linux' words; nothing on other systems."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("flags"):
                    return frozenset(line.split(":")[1].split())
    except OSError:
        pass
    return frozenset()


def machine() -> str:
    """Return the architecture of this process, by the name that Linux gives it."""
    name = platform.machine()
    return {"arm64": "aarch64", "AMD64": "x86_64"}.get(name, name)


def sets_for(machine: str, flags: Iterable[str]) -> list[InstructionSet]:
    """Return the instruction sets of a processor, the fastest first."""
    flags = frozenset(flags)
    return [one for one in INSTRUCTION_SETS if one.machine == machine and one.flags <= flags]


def instruction_set() -> InstructionSet | None:
    """Return the instruction set whose kernels run here: the fastest, or that of `VARIABLE`.

    None means that there are none for this processor, or that they are switched off.

    Raises InputError if the variable names none, or one that this processor does not have.
    """
    return _chosen(os.environ.get(VARIABLE, ""))


@cache
def _chosen(name: str) -> InstructionSet | None:
    available = [] if sys.platform == "win32" else sets_for(machine(), processor_flags())
    if name == "off":
        return None
    if not name:
        return available[0] if available else None
    names = [one.name for one in INSTRUCTION_SETS]
    if name not in names:
        raise InputError(
            f"expected {VARIABLE} to be off or one of {', '.join(names)}, got {name!r}"
            + suggest(name, ["off", *names])
        )
    for one in available:
        if one.name == name:
            return one
    here = ", ".join(one.name for one in available) or "none of them"
    raise InputError(f"{VARIABLE} is {name}, but this processor has {here}; set it to off, or not")
