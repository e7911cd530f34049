"""Residual units and snakes of the codec in one pass each, on processors with AVX-512, and in bf16 with AMX.

They take the modules of `layers_dac` and give their results, but for rounding: in fp32 the convolution of 7 taps is
computed as Winograd's F(4, 7), whose rounding is some thirty times that of the plain sum, 3e-6 of the signal; in bf16
sums stay in fp32 from one step to the next, so that it is the closer one.
"""

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from .build import library, supported_in_bf16

# Points at which F(4, 7) multiplies polynomials, infinity behind them: of those tried these round least.
_POINTS = (0, 1, -1, 2, -2, 1 / 2, -1 / 2, 3 / 4, -4 / 3)
_OUTPUTS, _TAPS = 4, 7


Remembered: TypeAlias = tuple[tuple[Tensor, int, int], ...]


class Packed(NamedTuple):
    """The weights of a unit as the kernels read them, and what they were made from."""

    parts: Remembered
    tensors: tuple[Tensor, Tensor, Tensor]
    """(6, C) fp32 of α / π, 1 / α and bias of the first half and of the second; the two convolutions' weights."""


_packs: WeakKeyDictionary[nn.Module, Packed] = WeakKeyDictionary()


def takes_unit(unit: Any, x: Tensor) -> bool:
    """Whether `residual_unit` can compute this unit of `layers_dac` for x (B, C, T)."""
    channels, conv = x.shape[1], unit.conv1
    if not x.device.type == conv.weight.device.type == "cpu" or conv.weight.dtype != x.dtype:
        return False
    if conv.kernel_size[0] != _TAPS or conv.bias is None or unit.conv2.bias is None or not x.numel():
        return False
    if x.dtype == torch.bfloat16:
        return supported_in_bf16() and (channels == 16 or channels % 32 == 0)
    # Where few rows come at a time, blocks of 144 would be mostly empty.
    return x.dtype == torch.float32 and channels % 32 == 0 and 36 % conv.dilation[0] == 0 and x.shape[2] >= 72


def residual_unit(unit: Any, x: Tensor, lengths: Tensor | None = None) -> Tensor | None:
    """`DacResidualUnit.forward` of x (B, C, T), without gradients, or None unless `takes_unit`.

    Steps at or behind `lengths` (B,) count as zero.
    """
    if not takes_unit(unit, x):
        return None
    rows = x.transpose(1, 2).contiguous()
    out = torch.empty_like(rows)
    if lengths is not None:
        lengths = lengths.to("cpu", torch.int64).contiguous()
    pack, sizes = _packed(unit), _sizes(unit, rows)
    if x.dtype == torch.float32:
        arguments = (rows, out, lengths, *pack.tensors, _transforms()[1])
        library().unit_fp32(*map(pointer, arguments), *sizes, torch.get_num_threads())
    else:
        arguments = (rows, out, None, None, None, lengths, *pack.tensors)
        library().unit_bf16(*map(pointer, arguments), *sizes, torch.get_num_threads())
    return out.transpose(1, 2)


class UnitStep:
    """`residual_unit` in bf16 for rows that go on, of a causal unit which `takes_unit`; its weights are kept."""

    def __init__(self, unit: Any):
        self.tensors = _packed(unit).tensors
        self.dilation, self.left = unit.conv1.dilation[0], unit.conv1.pads[0]

    def __call__(self, rows: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B, T, C) behind the snaked inputs `tail` (B, left, C): outputs, and the tail of the next rows."""
        rows, tail = rows.contiguous(), tail.contiguous()
        out, after = torch.empty_like(rows), torch.empty_like(tail)
        sizes = map(ctypes.c_long, (*rows.shape, self.dilation, self.left))
        arguments = map(pointer, (rows, out, None, tail, after, None, *self.tensors))
        library().unit_bf16(*arguments, *sizes, torch.get_num_threads())
        return out, after


def _sizes(unit: Any, rows: Tensor) -> map:
    return map(ctypes.c_long, (*rows.shape, unit.conv1.dilation[0], unit.conv1.pads[0]))


def snake(module: Any, x: Tensor) -> Tensor | None:
    """`Snake1d.forward` of x (B, C, T), without gradients, or None unless it is on a CPU, with 16 n channels."""
    wide = x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and supported_in_bf16())
    if not wide or x.device.type != "cpu" or x.shape[1] % 16:
        return None
    rows = x.transpose(1, 2).contiguous()
    alpha = module.alpha.detach().float().flatten()
    vectors = torch.stack([alpha / math.pi, (alpha + 1e-9).reciprocal()])
    out = torch.empty_like(rows)
    kernel = library().snake_fp32 if x.dtype == torch.float32 else library().snake_bf16
    count, channels = rows.shape[0] * rows.shape[1], rows.shape[2]
    sizes = map(ctypes.c_long, (count, channels))
    kernel(*map(pointer, (rows, out, vectors)), *sizes, torch.get_num_threads())
    return out.transpose(1, 2)


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a contiguous tensor lies, or null."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _packed(unit: Any) -> Packed:
    """The unit's weights, packed anew if they were changed."""
    conv1, conv2 = unit.conv1, unit.conv2
    parts = (conv1.weight, conv2.weight, unit.snake1.alpha, unit.snake2.alpha, conv1.bias, conv2.bias)
    pack = _packs.get(unit)
    if pack is None or not same_tensors(parts, pack.parts):
        with torch.no_grad():
            pack = _packs[unit] = Packed(remembered(parts), _pack(*(part.detach() for part in parts)))
    return pack


def remembered(tensors: Sequence[Tensor]) -> Remembered:
    """What `same_tensors` needs to tell whether any was changed."""
    # The tensors too: weight norm makes new ones at every use, and memory that is let go is given to the next.
    return tuple((t, t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


def same_tensors(tensors: Sequence[Tensor], before: Remembered) -> bool:
    """Whether these are the tensors remembered, unchanged."""
    now = remembered(tensors)
    return all(a is b and rest == then for (a, *rest), (b, *then) in zip(now, before, strict=True))


def _pack(weight1: Tensor, weight2: Tensor, alpha1: Tensor, alpha2: Tensor, bias1: Tensor, bias2: Tensor):
    vectors = []
    for alpha, bias in ((alpha1, bias1), (alpha2, bias2)):
        alpha = alpha.float().flatten()
        vectors += [alpha / math.pi, (alpha + 1e-9).reciprocal(), bias.float()]
    taps, point = weight1.permute(2, 1, 0), weight2.permute(2, 1, 0)  # (7, C, C') and (1, C, C')
    if weight1.dtype == torch.bfloat16:
        return torch.stack(vectors), bf16_panels(taps), bf16_panels(point)
    kernel = torch.from_numpy(_transforms()[0])  # (10, 7)
    points = torch.einsum("pk,kio->pio", kernel, taps.double()).float()
    return torch.stack(vectors), fp32_panels(points), fp32_panels(point)


def bf16_panels(weight: Tensor) -> Tensor:
    """(k, C, C') as AMX reads it: panels of 32 columns, in them taps, depths of 32, tiles of 16 columns and pairs."""
    taps, depth, width = weight.shape
    deep, wide = min(32, depth), min(32, width)
    tiles = weight.reshape(taps, depth // deep, deep // 2, 2, width // wide, wide // 16, 16)
    return tiles.permute(4, 0, 1, 5, 2, 6, 3).to(torch.bfloat16).contiguous()


def fp32_panels(weight: Tensor) -> Tensor:
    """(p, C, C') as panels of 32 columns: (C' / 32, p, C, 32)."""
    return weight.unflatten(2, (-1, 32)).permute(2, 0, 1, 3).contiguous()


@cache
def _transforms() -> tuple[np.ndarray, Tensor]:
    """Of Winograd's F(4, 7): kernel to points (10, 7); inputs to points (10, 10) above points to outputs, 140 numbers.

    A product of polynomials of 7 and 4 coefficients is fixed by its values at 10 points; transposed, that is a filter
    of 7 taps giving 4 outputs of 10 inputs (Winograd, Arithmetic Complexity of Computations, 1980). Rows are scaled by
    powers of 2, so that what is summed is near 1.
    """
    count = _OUTPUTS + _TAPS - 1

    def values(coefficients: int) -> np.ndarray:  # of a polynomial at all points
        finite = np.vander(np.array(_POINTS, float), coefficients, increasing=True)
        return np.vstack([finite, np.eye(coefficients)[-1]])

    inputs, outputs, kernel = np.linalg.inv(values(count)).T, values(_OUTPUTS).T, values(_TAPS)
    for side in (inputs, outputs.T):
        scale = 2.0 ** np.floor(np.log2(np.abs(side).max(axis=1)))
        side /= scale[:, None]
        kernel *= scale[:, None]
    return kernel, torch.from_numpy(np.concatenate([inputs.ravel(), outputs.ravel()])).float()
