"""Marks of tests that need a kind of processor, or a compiler for it."""

import shutil

import pytest

from codecplus import kernels

needs_avx512 = pytest.mark.skipif(
    not kernels.supported(), reason="needs an x86-64 processor with AVX-512"
)
needs_amx = pytest.mark.skipif(not kernels.supported_in_bf16(), reason="needs a processor with AMX")
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile needs a C++ compiler",
)
