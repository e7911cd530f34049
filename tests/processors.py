"""Marks of tests that need a kind of processor."""

import pytest

from codecplus import kernels

needs_avx512 = pytest.mark.skipif(not kernels.supported(), reason="needs an x86-64 processor with AVX-512")
needs_amx = pytest.mark.skipif(not kernels.supported_in_bf16(), reason="needs a processor with AMX")
