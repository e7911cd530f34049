"""Residual units and snakes of the codec in one pass each, on processors with AVX-512, and in bf16
with AMX.

They take the modules of `layers_dac` and give their results, but for rounding: in fp32 the
convolution of 7 taps is computed as Winograd's F(4, 7), whose rounding is some thirty times that of
the plain sum, 3e-6 of the signal; in bf16 sums stay in fp32 from one step to the next, so that it
is the closer one.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from codecplus.kernels.build import library, supported_in_bf16
from codecplus.modeling_dac.layers_dac import snake_reciprocal

# Points at which F(4, 7) multiplies polynomials, infinity behind them: of those tried these round
# least.
_POINTS = (0, 1, -1, 2, -2, 1 / 2, -1 / 2, 3 / 4, -4 / 3)
_OUTPUTS, _TAPS = 4, 7


class PackCache:
    """Weights of modules in the order the kernels read them, made anew where a part was changed."""

    def __init__(self) -> None:
        self._packs: WeakKeyDictionary[nn.Module, tuple[tuple, tuple[Tensor, ...]]] = (
            WeakKeyDictionary()
        )

    def get(
        self, module: nn.Module, parts: Sequence[Tensor], pack: Callable[..., tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """`pack(*parts)`, without gradients, from the cache if these are the parts it was last made
        from.
        """
        # The tensors too: weight norm makes new ones at every use, and memory that is let go is
        # given to the next.
        now = [
            (part, part.data_ptr(), 0 if part.is_inference() else part._version) for part in parts
        ]
        before, packed = self._packs.get(module, ((), ()))
        same = len(before) == len(now) and all(
            a is b and rest == was for (a, *rest), (b, *was) in zip(now, before, strict=True)
        )
        if not same:
            kept = tuple((part.detach() if part.grad_fn else part, *rest) for part, *rest in now)
            with torch.no_grad():
                packed = pack(*parts)
            self._packs[module] = kept, packed
        return packed


_packs = PackCache()


def takes_channels(channels: int) -> bool:
    """Whether the bf16 kernels of units have blocks of this width."""
    return channels == 16 or channels % 32 == 0


def takes_unit(unit: Any, x: Tensor) -> bool:
    """Whether `residual_unit` can compute this unit of `layers_dac` for x (B, C, T)."""
    channels, conv = x.shape[1], unit.conv1
    if not x.device.type == conv.weight.device.type == "cpu" or conv.weight.dtype != x.dtype:
        return False
    if (
        conv.kernel_size[0] != _TAPS
        or conv.bias is None
        or unit.conv2.bias is None
        or not x.numel()
    ):
        return False
    if x.dtype == torch.bfloat16:
        return supported_in_bf16() and takes_channels(channels)
    # Where few rows come at a time, blocks of 144 would be mostly empty.
    return (
        x.dtype == torch.float32
        and channels % 32 == 0
        and 36 % conv.dilation[0] == 0
        and x.shape[2] >= 72
    )


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
    sizes = (*rows.shape, unit.conv1.dilation[0], unit.conv1.pads[0])
    if x.dtype == torch.float32:
        call("unit_fp32", (rows, out, lengths, *_packed(unit), _transforms()[1]), sizes)
    else:
        call("unit_bf16", (rows, out, None, None, None, lengths, *_packed(unit)), sizes)
    return out.transpose(1, 2)


class UnitStep:
    """`residual_unit` in bf16 for rows that go on, of a causal unit which `takes_unit`; its weights
    are kept.
    """

    def __init__(self, unit: Any):
        self.packed = _packed(unit)
        self.dilation, self.left = unit.conv1.dilation[0], unit.conv1.pads[0]

    def __call__(self, rows: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B, T, C) behind the snaked inputs `tail` (B, left, C): outputs, and the tail of the
        next rows.
        """
        rows, tail = rows.contiguous(), tail.contiguous()
        out, after = torch.empty_like(rows), torch.empty_like(tail)
        arguments = (rows, out, None, tail, after, None, *self.packed)
        call("unit_bf16", arguments, (*rows.shape, self.dilation, self.left))
        return out, after


def snake(module: Any, x: Tensor) -> Tensor | None:
    """`Snake1d.forward` of x (B, C, T), without gradients, or None unless it is on a CPU, with 16 n
    channels.
    """
    wide = x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and supported_in_bf16())
    if not wide or x.device.type != "cpu" or x.shape[1] % 16:
        return None
    return snake_of_rows(x.transpose(1, 2).contiguous(), module.alpha.detach()).transpose(1, 2)


def snake_of_rows(rows: Tensor, alpha: Tensor) -> Tensor:
    """Snake of contiguous rows (B, T, C) in fp32 or bf16."""
    out = torch.empty_like(rows)
    kernel = "snake_fp32" if rows.dtype == torch.float32 else "snake_bf16"
    call(
        kernel,
        (rows, out, torch.stack(snake_vectors(alpha))),
        (rows.shape[0] * rows.shape[1], rows.shape[2]),
    )
    return out


def snake_vectors(alpha: Tensor) -> list[Tensor]:
    """Return α / π and 1 / α (C,) in fp32, which the kernels compute the snake with."""
    flat = alpha.float().flatten()
    return [flat / math.pi, snake_reciprocal(flat)]


def unit_vectors(alpha1: Tensor, bias1: Tensor, alpha2: Tensor, bias2: Tensor) -> Tensor:
    """(6, C) fp32 of α / π, 1 / α and bias of a unit's first half and of its second."""
    return torch.stack(
        [*snake_vectors(alpha1), bias1.float(), *snake_vectors(alpha2), bias2.float()]
    )


def call(kernel: str, tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> None:
    """Run a kernel on contiguous tensors, null where None, and sizes, on as many threads as torch
    has.
    """
    pointers = (
        ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors
    )
    getattr(library(), kernel)(*pointers, *map(ctypes.c_long, sizes), torch.get_num_threads())


def _packed(unit: Any) -> tuple[Tensor, ...]:
    """`unit_vectors`, and the weights of the two convolutions."""
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
    taps, point = weight1.permute(2, 1, 0), weight2.permute(2, 1, 0)  # (7, C, C') and (1, C, C')
    if weight1.dtype == torch.bfloat16:
        return unit_vectors(*vectors), bf16_panels(taps), bf16_panels(point)
    kernel = torch.from_numpy(_transforms()[0])  # (10, 7)
    points = torch.einsum("pk,kio->pio", kernel, taps.double()).float()
    return unit_vectors(*vectors), fp32_panels(points), fp32_panels(point)


def bf16_panels(weight: Tensor) -> Tensor:
    """(k, C, C') as AMX reads it: panels of 32 columns, in them taps, depths of 32, tiles of 16
    columns and pairs.
    """
    taps, depth, width = weight.shape
    deep, wide = min(32, depth), min(32, width)
    tiles = weight.reshape(taps, depth // deep, deep // 2, 2, width // wide, wide // 16, 16)
    return tiles.permute(4, 0, 1, 5, 2, 6, 3).to(torch.bfloat16).contiguous()


def fp32_panels(weight: Tensor) -> Tensor:
    """(p, C, C') as panels of 32 columns: (C' / 32, p, C, 32)."""
    return weight.unflatten(2, (-1, 32)).permute(2, 0, 1, 3).contiguous()


@cache
def _transforms() -> tuple[np.ndarray, Tensor]:
    """Of Winograd's F(4, 7): kernel to points (10, 7); inputs to points (10, 10) above points to
    outputs, 140 numbers.

    A product of polynomials of 7 and 4 coefficients is fixed by its values at 10 points;
    transposed, that is a filter of 7 taps giving 4 outputs of 10 inputs (Winograd, Arithmetic
    Complexity of Computations, 1980). Rows are scaled by powers of 2, so that what is summed is
    near 1.
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
