"""Residual units and snakes with gradients by compiled kernels, in bf16 on AMX.

The forward pass of a unit is that of inference; the backward pass is a kernel of its own.
"""

from typing import Any

import torch
from torch import Tensor

from codecplus.acceleration.inference import (
    PackCache,
    bf16_panels,
    call,
    snake_of_rows,
    takes_channels,
    takes_values,
    unit_vectors,
)
from codecplus.kernels import usable_set

_packs = PackCache()


def trains_unit(unit: Any, x: Tensor) -> bool:
    """Return whether `trained_unit` can compute this unit of `layers_dac` for x (B, C, T)."""
    return _trains(x) and unit.conv1.kernel_size[0] == 7 and takes_channels(x.shape[1])


def trains_snake(x: Tensor) -> bool:
    """Return whether `snake_rows` and `snake_gradients` can compute the snake of x (B, C, T)."""
    return _trains(x) and x.shape[1] % 16 == 0


def _trains(x: Tensor) -> bool:
    if x.dtype != torch.bfloat16 or not takes_values(x):
        return False
    target = usable_set()
    return target is not None and target.trains


def trained_unit(unit: Any, x: Tensor) -> Tensor:
    """Return `DacResidualUnit.forward` of bf16 x (B, C, T), which `trains_unit`, with gradients.

    Weights may have any dtype.
    """
    conv1, conv2 = unit.conv1, unit.conv2
    weight1 = conv1.weight
    weight2 = conv2.weight
    y = _Unit.apply(
        x.transpose(1, 2),
        unit.snake1.alpha,
        weight1,
        conv1.bias,
        unit.snake2.alpha,
        weight2,
        conv2.bias,
        _packs.get(unit, (weight1, weight2), _forward_and_backward),
        (conv1.dilation[0], conv1.pads[0]),
    )
    return y.transpose(1, 2)


def _forward_and_backward(weight1: Tensor, weight2: Tensor) -> tuple[Tensor, ...]:
    """Return both weights packed for the forward pass, and then for the backward pass.

    There channels are exchanged, and taps come in reverse.
    """
    first = weight1.to(torch.bfloat16)
    second = weight2.to(torch.bfloat16)
    forward = (first.permute(2, 1, 0), second.permute(2, 1, 0))
    backward = (first.permute(2, 0, 1).flip(0), second.permute(2, 0, 1))
    return tuple(bf16_panels(weight) for weight in (*forward, *backward))


class _Unit(torch.autograd.Function):
    """A residual unit of rows (B, T, C)."""

    @staticmethod
    def forward(
        ctx: Any, rows, alpha1, weight1, bias1, alpha2, weight2, bias2, packed, shape
    ) -> Tensor:
        rows = rows.contiguous()
        vectors = unit_vectors(alpha1, bias1, alpha2, bias2)
        out = torch.empty_like(rows)
        hidden = torch.empty_like(rows)
        tensors = (rows, out, hidden, None, None, None, vectors, *packed[:2])
        call("unit_bf16", tensors, (*rows.shape, *shape))
        ctx.save_for_backward(rows, hidden, alpha1, alpha2)
        ctx.packed = packed[2:]
        ctx.shape = shape
        ctx.dtypes = [p.dtype for p in (alpha1, weight1, bias1, alpha2, weight2, bias2)]
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        rows, hidden, alpha1, alpha2 = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        channels = rows.shape[2]
        at_rows = torch.empty_like(rows)
        weight1 = torch.empty(7, channels, channels)
        weight2 = torch.empty(channels, channels)
        vectors = torch.empty(4, channels)
        alphas = torch.stack([alpha1.float().flatten(), alpha2.float().flatten()])
        inputs = (gradient, rows, hidden)
        sums = (weight1, weight2, vectors)
        tensors = (*inputs, at_rows, *ctx.packed, alphas, *sums)
        call("unit_back_bf16", tensors, (*rows.shape, *ctx.shape))
        at_parameters = (
            vectors[0].view_as(alpha1),
            weight1.permute(1, 2, 0),
            vectors[1],
            vectors[2].view_as(alpha2),
            weight2.unsqueeze(-1),
            vectors[3],
        )
        typed = [g.to(dtype) for g, dtype in zip(at_parameters, ctx.dtypes, strict=True)]
        return (at_rows, *typed, None, None)


def snake_rows(rows: Tensor, slope: Tensor) -> Tensor:
    """Return the snake of bf16 rows (N, C) with α (C,)."""
    return snake_of_rows(rows[None], slope)[0]


def snake_gradients(rows: Tensor, slope: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `snake_rows` at the rows (N, C), and at α (C,)."""
    at_rows = torch.empty_like(rows)
    at_alpha = torch.empty(rows.shape[1])
    tensors = (gradient.contiguous(), rows, slope, at_rows, at_alpha)
    call("snake_back_bf16", tensors, rows.shape)
    return at_rows, at_alpha
