"""Devices and number formats to compute with: what a user may name, and whether it is there."""

from typing import TYPE_CHECKING

from codecplus.errors import InputError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def check_device(device: "str | torch.device | None") -> "torch.device":
    """Return a device that can be used, `"cpu"` by default.

    Raises InputError for a name that is none, or a device that is not there.
    """
    import torch

    try:
        checked = torch.device("cpu" if device is None else device)
        torch.empty(0, device=checked)
    except Exception as error:
        raise InputError(
            f"there is no device {device!s} here; expected 'cpu', 'cuda' or 'mps', if there is one"
        ) from error
    return checked


def check_dtype(dtype: "str | torch.dtype | None") -> "torch.dtype":
    """Return a float type by its name or itself, float32 by default.

    Raises InputError for another one.
    """
    import torch

    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"expected dtype {', '.join(DTYPES)}, got {dtype!r}")
    return getattr(torch, name)
