"""Marks of tests that need a kind of processor, or a compiler for it."""

import shutil

import pytest

from codecplus.kernels.instruction_sets import machine, processor_flags, sets_for

SETS = sets_for(machine(), processor_flags())
"""All instruction sets of this processor that there are kernels for."""

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"
)
needs_kernels = pytest.mark.skipif(not SETS, reason="needs a processor with AVX2 or NEON")
needs_bf16 = pytest.mark.skipif(
    not any(one.bf16 for one in SETS), reason="needs a processor with AVX512-BF16"
)
needs_amx = pytest.mark.skipif(
    not any(one.trains for one in SETS), reason="needs a processor with AMX"
)
