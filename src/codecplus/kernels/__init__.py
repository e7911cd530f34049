"""Compiled kernels for processors with AVX-512 and AMX: optional, built when first asked for, never required."""

from .build import KernelError, library, processor_flags, supported, supported_in_bf16
from .gradients import trained_snake, trained_unit, trains_snake, trains_unit
from .units import UnitStep, residual_unit, snake, takes_unit

__all__ = [
    "KernelError",
    "UnitStep",
    "library",
    "processor_flags",
    "residual_unit",
    "snake",
    "supported",
    "supported_in_bf16",
    "takes_unit",
    "trained_snake",
    "trained_unit",
    "trains_snake",
    "trains_unit",
]
