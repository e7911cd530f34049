"""Residual units and snakes by compiled kernels, for inference on a CPU.

They take the modules of `layers_dac` and give their results, but for rounding. In fp32 the
convolution of 7 taps is computed as Winograd's F(4, 7), whose rounding is some thirty times that of
the plain sum, 3e-6 of the signal. In bf16 sums stay in fp32 from one step to the next, so that it
is the closer one.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from codecplus.kernels import library, usable_set
from codecplus.modeling_dac.layers_dac import snake_reciprocal

# Points at which F(4, 7) multiplies polynomials, infinity behind them: of those tried these round
# least.
_POINTS = (0, 1, -1, 2, -2, 1 / 2, -1 / 2, 3 / 4, -4 / 3)
_OUTPUTS, _TAPS = 4, 7


class PackCache:
    """Weights of modules in the order that the kernels read, made anew when a weight has changed.

    They are the kernels' own copy: in fp32 1.4 times as large as the weights of the units.
    """

    def __init__(self) -> None:
        self._packs: WeakKeyDictionary[nn.Module, _Pack] = WeakKeyDictionary()

    def get(
        self, module: nn.Module, parts: Sequence[Tensor], pack: Callable[..., tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Return `pack(*parts)` without gradients; from the cache if it was made from these values.

        The values are compared by a checksum, since torch does not notice writes to
        `parameter.data`.
        """
        checksum = tuple(_checksum(part) for part in parts)
        known = self._packs.get(module)
        if known is not None and known.checksum == checksum:
            return known.packed
        with torch.no_grad():
            packed = pack(*parts)
        self._packs[module] = _Pack(checksum, packed)
        return packed


class _Pack(NamedTuple):
    checksum: tuple
    packed: tuple[Tensor, ...]


def _checksum(part: Tensor) -> tuple:
    """Return what tells the values of a tensor from others, at the speed of reading them."""
    part = part.detach()
    if not _is_dense(part):
        part = part.contiguous()
    result = torch.empty(2, dtype=torch.int64)
    size = part.numel() * part.element_size()
    library().checksum(*map(ctypes.c_void_p, (part.data_ptr(), result.data_ptr())), _long(size))
    return (part.dtype, part.shape, part.stride(), *result.tolist())


def _is_dense(x: Tensor) -> bool:
    """Return whether the elements of x fill their piece of memory, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


_packs = PackCache()
_long = ctypes.c_long


def takes_channels(channels: int) -> bool:
    """Return whether the bf16 kernels of units have blocks of this width."""
    return channels == 16 or channels % 32 == 0


def takes_values(x: Tensor) -> bool:
    """Return whether x has values in this machine's memory that a kernel may read.

    It has none under a mode of torch that follows operators, such as one that counts or fakes them.
    Nor may autocast be passed by, which would compute in another dtype.
    """
    return (
        type(x) in _PLAIN_TENSORS
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._len_torch_dispatch_stack()
    )


_PLAIN_TENSORS = (Tensor, nn.Parameter)


def takes_unit(unit: Any, x: Tensor) -> bool:
    """Return whether `residual_unit` can compute this unit of `layers_dac` for x (B, C, T)."""
    conv1, conv2 = unit.conv1, unit.conv2
    if not takes_values(x) or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    if conv1.kernel_size[0] != _TAPS or conv1.bias is None or conv2.bias is None:
        return False
    for weight in (conv1.weight, conv2.weight):
        if weight.dtype != x.dtype or weight.device.type != "cpu":
            return False
    target = usable_set()
    if target is None:
        return False
    channels, steps = x.shape[1:]
    if x.dtype == torch.bfloat16:
        return target.bf16 and takes_channels(channels)
    # Where few rows come at a time, blocks of 144 would be mostly empty.
    return channels % 32 == 0 and 36 % conv1.dilation[0] == 0 and steps >= 72


def residual_unit(unit: Any, x: Tensor, lengths: Tensor | None = None) -> Tensor | None:
    """Return `DacResidualUnit.forward` of x (B, C, T), without gradients.

    Steps at or behind `lengths` (B,) count as zero. Returns None unless `takes_unit`.
    """
    if not takes_unit(unit, x):
        return None
    rows = x.transpose(1, 2).contiguous()
    out = torch.empty_like(rows)
    if lengths is not None:
        lengths = lengths.to("cpu", torch.int64).contiguous()
    sizes = (*rows.shape, unit.conv1.dilation[0], unit.conv1.pads[0])
    if x.dtype == torch.float32:
        call("unit_fp32", (rows, out, None, lengths, *packed_unit(unit), transforms()), sizes)
    else:
        call("unit_bf16", (rows, out, None, None, None, lengths, *packed_unit(unit)), sizes)
    return out.transpose(1, 2)


def snake(module: Any, x: Tensor) -> Tensor | None:
    """Return `Snake1d.forward` of x (B, C, T), without gradients.

    Returns None unless the kernels take its dtype and its number of channels.
    """
    alpha = module.alpha
    if not takes_values(x) or x.shape[1] % 16 or alpha.device.type != "cpu":
        return None
    target = usable_set()
    if target is None or not (
        x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and target.bf16)
    ):
        return None
    return snake_of_rows(x.transpose(1, 2).contiguous(), alpha.detach()).transpose(1, 2)


def snake_of_rows(rows: Tensor, alpha: Tensor) -> Tensor:
    """Return the snake of contiguous rows (B, T, C) in fp32 or bf16."""
    out = torch.empty_like(rows)
    kernel = "snake_fp32" if rows.dtype == torch.float32 else "snake_bf16"
    sizes = (rows.shape[0] * rows.shape[1], rows.shape[2])
    call(kernel, (rows, out, torch.stack(snake_vectors(alpha))), sizes)
    return out


def snake_vectors(alpha: Tensor) -> list[Tensor]:
    """Return α / π and 1 / α (C,) in fp32, which the kernels compute the snake with."""
    flat = alpha.float().flatten()
    return [flat / math.pi, snake_reciprocal(flat)]


def unit_vectors(alpha1: Tensor, bias1: Tensor, alpha2: Tensor, bias2: Tensor) -> Tensor:
    """Return (6, C) in fp32: α / π, 1 / α and bias of a unit's first half, and of its second."""
    first = [*snake_vectors(alpha1), bias1.float()]
    second = [*snake_vectors(alpha2), bias2.float()]
    return torch.stack(first + second)


def call(kernel: str, tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> None:
    """Run a kernel on contiguous tensors and sizes, on as many threads as torch has.

    A tensor that is None is a null pointer.
    """
    pointers = []
    for tensor in tensors:
        pointers.append(ctypes.c_void_p(None if tensor is None else tensor.data_ptr()))
    getattr(library(), kernel)(*pointers, *map(_long, sizes), torch.get_num_threads())


def packed_unit(unit: Any) -> tuple[Tensor, ...]:
    """Return `unit_vectors`, and the weights of the two convolutions."""
    conv1, conv2 = unit.conv1, unit.conv2
    parts = (
        conv1.weight,
        conv2.weight,
        unit.snake1.alpha,
        conv1.bias,
        unit.snake2.alpha,
        conv2.bias,
    )
    return _packs.get(unit, parts, _pack)


def _pack(weight1: Tensor, weight2: Tensor, *vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    taps = weight1.permute(2, 1, 0)  # (7, C, C')
    point = weight2.permute(2, 1, 0)  # (1, C, C')
    if weight1.dtype == torch.bfloat16:
        return unit_vectors(*vectors), bf16_panels(taps), bf16_panels(point)
    return unit_vectors(*vectors), seven_taps_panels(taps), fp32_panels(point)


def seven_taps_panels(taps: Tensor) -> Tensor:
    """Return (7, C, C') as values at the points of F(4, 7), in panels: (C' / 32, 10, C, 32)."""
    kernel = torch.from_numpy(_transforms()[0])  # (10, 7)
    return fp32_panels(torch.einsum("pk,kio->pio", kernel, taps.double()).float())


def transforms() -> Tensor:
    """Return the transforms of inputs and outputs of F(4, 7), which the kernels are given."""
    return _transforms()[1]


def bf16_panels(weight: Tensor) -> Tensor:
    """Return (k, C, C') as AMX reads it.

    That is panels of 32 columns, in them taps, depths of 32, tiles of 16 columns, and pairs.
    """
    taps, depth, width = weight.shape
    deep, wide = min(32, depth), min(32, width)
    tiles = weight.reshape(taps, depth // deep, deep // 2, 2, width // wide, wide // 16, 16)
    return tiles.permute(4, 0, 1, 5, 2, 6, 3).to(torch.bfloat16).contiguous()


def fp32_panels(weight: Tensor) -> Tensor:
    """Return (p, C, C') as panels of 32 columns: (C' / 32, p, C, 32)."""
    return weight.unflatten(2, (-1, 32)).permute(2, 0, 1, 3).contiguous()


@cache
def _transforms() -> tuple[np.ndarray, Tensor]:
    """Return the transforms of Winograd's F(4, 7).

    They are: kernel to points (10, 7); and inputs to points (10, 10) above points to outputs
    (4, 10), flat.

    A product of polynomials of 7 and 4 coefficients is fixed by its values at 10 points;
    transposed, that is a filter of 7 taps giving 4 outputs of 10 inputs (Winograd, Arithmetic
    Complexity of Computations, 1980). Rows are scaled by powers of 2, so that
    the terms of the sums are near 1.
    """
    count = _OUTPUTS + _TAPS - 1

    def values(coefficients: int) -> np.ndarray:  # of a polynomial at all points
        finite = np.vander(np.fromiter(_POINTS, float), coefficients, increasing=True)
        return np.vstack([finite, np.eye(coefficients)[-1]])

    inputs, outputs, kernel = np.linalg.inv(values(count)).T, values(_OUTPUTS).T, values(_TAPS)
    for side in (inputs, outputs.T):
        scale = 2.0 ** np.floor(np.log2(np.abs(side).max(axis=1)))
        side /= scale[:, None]
        kernel *= scale[:, None]
    return kernel, torch.from_numpy(np.concatenate([inputs.ravel(), outputs.ravel()])).float()
