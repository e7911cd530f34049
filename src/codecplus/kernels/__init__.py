"""Compiled kernels for processors with AVX-512 and AMX: optional, built when first asked for, never
required.
"""

from codecplus.kernels.build import (
    KernelError,
    library,
    processor_flags,
    supported,
    supported_in_bf16,
)

__all__ = ["KernelError", "library", "processor_flags", "supported", "supported_in_bf16"]
