"""Compiled kernels, one library for each instruction set; optional, and never required.

They come prebuilt in wheels for a platform. Elsewhere a C++ compiler builds the one that is needed
at its first use.
"""

from codecplus.kernels.instruction_sets import instruction_set, processor_flags
from codecplus.kernels.shared_library import KernelError, library, usable_set

__all__ = ["KernelError", "instruction_set", "library", "processor_flags", "usable_set"]
