"""Codes as tensors, for those who hand tensors to a codec. Knows torch and `Codes`, no model.

Codec and files work on NumPy's `Codes`; a tensor becomes one at the door, and goes back to its
device on the way out. Nothing here has gradients: codes are integers.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from codecplus.bitstream import StreamInfo
from codecplus.bitstream.codes import Codes, holds_all_frames, holds_codes, joined_facts

# Operations that give the same codes, and that take a part of them or shape them otherwise.
_SAME_CODES = {
    "clone", "contiguous", "cpu", "cuda", "detach", "int", "long", "pin_memory", "short", "to",
    "type",
}  # fmt: skip
_PARTS = {
    "__getitem__", "chunk", "flatten", "index_select", "narrow", "reshape", "select", "split",
    "squeeze", "tensor_split", "unbind", "unflatten", "unsqueeze", "view",
}  # fmt: skip
_JOINS = {"cat", "concat", "concatenate", "stack"}
_CODE_TYPES = (torch.int16, torch.int32, torch.int64)  # which hold the codes of any model


class CodesTensor(Tensor):
    """`Codes` as a tensor: int64 (K, T), (C, K, T), or (B, C, K, T) of a batch.

    It is what embeddings and `DacModel.decode` take. Copies, moves to a device, indexing,
    splitting, iterating, `torch.cat` and `torch.stack` keep `info` and `num_samples` as they do in
    `Codes`; what any other operation gives is a plain tensor. Pickles and `torch.save` keep them
    too; `torch.load` can read them after `import codecplus`.
    """

    info: StreamInfo | None = None
    num_samples: int | None = None

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Compute as for plain tensors; label what holds codes still."""
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if func.__name__ in _JOINS:
            return _label_joined(result, func.__name__, *args, **(kwargs or {}))
        codes = args[0] if args else None
        if not isinstance(codes, CodesTensor) or codes.info is None:
            return result
        if func.__name__ in _PARTS:
            return _label_parts(codes, result, func, args[1:], kwargs or {})
        if func.__name__ in _SAME_CODES and getattr(result, "dtype", None) in _CODE_TYPES:
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


def _label_joined(
    result: Tensor, operation: str, tensors: Any, dim: int = 0, *, axis: int | None = None, **_: Any
) -> Tensor:
    """Label what `torch.cat` or `torch.stack` made of tensors, if it is codes."""
    position = (dim if axis is None else axis) % result.ndim - result.ndim
    if result.dtype not in _CODE_TYPES or (operation == "stack" and position == -1):
        return result
    facts = joined_facts(tensors, position)
    if facts is None:
        return result
    return label(result, *facts)


def _label_parts(codes: CodesTensor, result: Any, func: Any, args: Any, kwargs: Any) -> Any:
    """Label what an operation took of codes: a tensor or a tuple of some.

    The same operation on the numbers of codebooks and frames tells which of them were taken.
    """
    if codes.ndim < 2:
        return result
    codebooks, frames = codes.shape[-2:]
    args, kwargs = _to_cpu(args), _to_cpu(kwargs)
    numbers = [torch.arange(codebooks)[:, None], torch.arange(frames)]
    numbers = [number.expand(codes.shape).contiguous() for number in numbers]
    taken = [func(number, *args, **kwargs) for number in numbers]
    if isinstance(result, Tensor):
        return _label_part(codes, result, *taken)
    return tuple(_label_part(codes, *parts) for parts in zip(result, *taken, strict=True))


def _label_part(
    codes: CodesTensor, part: Tensor, codebook_numbers: Tensor, frame_numbers: Tensor
) -> Tensor:
    if not holds_codes(codebook_numbers.numpy()):
        return part
    whole = holds_all_frames(frame_numbers.numpy(), codes.shape[-1])
    return label(part, codes.info, codes.num_samples if whole else None)


def _to_cpu(value: Any) -> Any:
    """Return arguments of an operation with their tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, (list, tuple)):
        return type(value)(_to_cpu(part) for part in value)
    if isinstance(value, dict):
        return {name: _to_cpu(part) for name, part in value.items()}
    return value


# Data alone: what `torch.load(weights_only=True)` rebuilds of them executes nothing.
torch.serialization.add_safe_globals([CodesTensor, StreamInfo])
