"""Which device computes, and in which number format: the choice of the user, or the best one here.

It knows torch's devices, and nothing of models or of exports, which run on onnxruntime.
"""

import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from codecplus.errors import InputError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def best_device() -> "torch.device":
    """Return the fastest device of this machine: a CUDA GPU, else Apple's GPU, else the CPU.

    Where a launcher started several processes on one machine, each gets a GPU of its own.
    """
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", _local_rank())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def resolve_device(device: "str | torch.device | None" = None) -> "torch.device":
    """Return the device of a name, after trying it out.

    Args:
        device: `cpu`, `cuda`, `cuda:N` or `mps`; None for the best device here. `cuda` without a
            number is the GPU of this process, see `best_device`.

    Raises:
        InputError: if the machine has no such device.
    """
    import torch

    if device is None:
        return best_device()
    try:
        resolved = torch.device(device)
        if resolved.type == "cuda" and resolved.index is None:
            resolved = torch.device("cuda", _local_rank())
        torch.empty(0, device=resolved).cpu()  # which the device of no values, "meta", cannot
    except Exception as error:  # torch has a type of its own for each kind of refusal
        raise InputError(
            f"there is no device {device!s} here; expected 'cpu', 'cuda' or 'mps', if there is one"
        ) from error
    return resolved


def check_dtype(dtype: "str | torch.dtype | None") -> "torch.dtype":
    """Return a float type of torch, given by its name or itself; float32 by default.

    Raises InputError for any other type.
    """
    import torch

    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"expected dtype {', '.join(DTYPES)}, got {dtype!r}")
    return getattr(torch, name)


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; others do not tell
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def shared_cores(workers: int) -> Iterator[Callable[[], None]]:
    """Yield a function for so many threads to call first: each then computes on its share of cores.

    It does nothing where torch is not imported by then. This thread computes as before.
    """
    before: list[int] = []

    def begin_worker() -> None:
        torch = sys.modules.get("torch")
        if torch is not None:
            before.append(torch.get_num_threads())
            torch.set_num_threads(max(1, available_cores() // workers))

    yield begin_worker
    if before:  # the last number set is that of all threads to come
        sys.modules["torch"].set_num_threads(before[0])


def multiplies_bf16(device: "torch.device", processor_flags: Collection[str]) -> bool:
    """Return whether the hardware multiplies bf16, so that it is faster than fp32.

    Args:
        device: where the work is done.
        processor_flags: instruction sets of the processor, from `kernels.processor_flags`.
    """
    import torch

    if device.type == "cpu":
        return bool({"amx_bf16", "avx512_bf16"} & set(processor_flags))
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def _local_rank() -> int:
    """Return the number of this process on its machine, as torchrun and accelerate set it."""
    return int(os.environ.get("LOCAL_RANK", "0"))
