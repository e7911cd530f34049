"""Codes as tensors, for those who hand tensors to a codec. Knows torch and `Codes`, no model.

Codec and files work on NumPy's `Codes`; a tensor becomes one at the door, and goes back to its
device on the way out. Nothing here has gradients: codes are integers.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from codecplus.bitstream import StreamInfo
from codecplus.bitstream.codes import Codes

_SAME_CODES = {"clone", "contiguous", "cpu", "cuda", "detach", "int", "long", "pin_memory", "to"}


class CodesTensor(Tensor):
    """`Codes` as a tensor: int64 (K, T), (C, K, T), or (B, C, K, T) of a batch.

    It is what embeddings and `DacModel.decode` take. Copies, moves to a device and indexing keep
    `info` and `num_samples` as they do in `Codes`; what any other operation gives is a plain
    tensor. Pickles and `torch.save` keep them too; `torch.load` can read them after
    `import codecplus`.
    """

    info: StreamInfo | None = None
    num_samples: int | None = None

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Compute as for plain tensors; label what holds codes still."""
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if type(result) is not Tensor or not isinstance(args[0], CodesTensor):
            return result
        codes = args[0]
        if func is Tensor.__getitem__:
            view = _labels(codes)[_to_numpy(args[1])]
            return label(result, getattr(view, "info", None), getattr(view, "num_samples", None))
        if func.__name__ in _SAME_CODES and not result.is_floating_point():
            return label(result, codes.info, codes.num_samples)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> "CodesTensor":
        return memo.setdefault(id(self), self.clone())


def label(codes: Tensor, info: StreamInfo | None, num_samples: int | None) -> Tensor:
    """View an integer tensor as `CodesTensor`; without `info` it stays what it is."""
    if info is None:
        return codes
    labelled = codes.as_subclass(CodesTensor)
    labelled.info = info
    labelled.num_samples = num_samples
    return labelled


def codes_to_tensor(codes: Codes, device: torch.device) -> Tensor:
    """Return `Codes` as an int64 tensor on a device."""
    tensor = torch.from_numpy(np.asarray(codes, dtype=np.int64)).to(device)
    return label(tensor, codes.info, codes.num_samples)


def tensor_to_codes(codes: Tensor) -> np.ndarray:
    """Return a tensor as `Codes` if it knows what it stands for, else as a plain array."""
    array = codes.detach().cpu().numpy()
    info = getattr(codes, "info", None)
    if info is None:
        return array
    return Codes(array, info, getattr(codes, "num_samples", None))


def _labels(codes: CodesTensor) -> Codes:
    """`Codes` of that shape and meaning, without their values."""
    nothing = np.broadcast_to(np.int16(0), tuple(codes.shape))
    return Codes(nothing, codes.info, codes.num_samples)


def _to_numpy(index: Any) -> Any:
    if isinstance(index, Tensor):
        return index.cpu().numpy()
    if isinstance(index, tuple):
        return tuple(_to_numpy(part) for part in index)
    return index


# Data alone: what `torch.load(weights_only=True)` rebuilds of them executes nothing.
torch.serialization.add_safe_globals([CodesTensor, StreamInfo])
