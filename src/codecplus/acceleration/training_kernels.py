"""Residual units and snakes with gradients, in bf16 on AMX: the forward pass of `units`, and a way
back of its own.
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
    unit_vectors,
)
from codecplus.kernels.build import supported_in_bf16

_packs = PackCache()


def trains_unit(unit: Any, x: Tensor) -> bool:
    """Whether `trained_unit` can compute this unit of `layers_dac` for x (B, C, T)."""
    here = x.device.type == "cpu" and x.dtype == torch.bfloat16 and supported_in_bf16()
    return here and x.numel() > 0 and unit.conv1.kernel_size[0] == 7 and takes_channels(x.shape[1])


def trained_unit(unit: Any, x: Tensor) -> Tensor:
    """`DacResidualUnit.forward` of bf16 x (B, C, T), which `trains_unit`, with gradients; weights
    of any dtype.
    """
    conv1, conv2 = unit.conv1, unit.conv2
    weights = (conv1.weight, conv2.weight)
    y = _Unit.apply(
        x.transpose(1, 2),
        unit.snake1.alpha,
        weights[0],
        conv1.bias,
        unit.snake2.alpha,
        weights[1],
        conv2.bias,
        _packs.get(unit, weights, _turned_and_plain),
        (conv1.dilation[0], conv1.pads[0]),
    )
    return y.transpose(1, 2)


def _turned_and_plain(weight1: Tensor, weight2: Tensor) -> tuple[Tensor, ...]:
    """Both weights packed for the way there; for the way back, channels exchanged and taps in
    reverse.
    """
    first, second = weight1.to(torch.bfloat16), weight2.to(torch.bfloat16)
    there = (first.permute(2, 1, 0), second.permute(2, 1, 0))
    back = (first.permute(2, 0, 1).flip(0), second.permute(2, 0, 1))
    return tuple(bf16_panels(weight) for weight in (*there, *back))


class _Unit(torch.autograd.Function):
    """Of rows (B, T, C)."""

    @staticmethod
    def forward(
        ctx: Any, rows, alpha1, weight1, bias1, alpha2, weight2, bias2, packed, shape
    ) -> Tensor:
        rows, vectors = rows.contiguous(), unit_vectors(alpha1, bias1, alpha2, bias2)
        out, hidden = torch.empty_like(rows), torch.empty_like(rows)
        call(
            "unit_bf16",
            (rows, out, hidden, None, None, None, vectors, *packed[:2]),
            (*rows.shape, *shape),
        )
        ctx.save_for_backward(rows, hidden, alpha1, alpha2)
        ctx.packed, ctx.shape = packed[2:], shape
        ctx.dtypes = [p.dtype for p in (alpha1, weight1, bias1, alpha2, weight2, bias2)]
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        rows, hidden, alpha1, alpha2 = ctx.saved_tensors
        gradient, channels = gradients[0].contiguous(), rows.shape[2]
        at_rows = torch.empty_like(rows)
        weight1, weight2 = torch.empty(7, channels, channels), torch.empty(channels, channels)
        vectors = torch.empty(4, channels)
        alphas = torch.stack([alpha1.float().flatten(), alpha2.float().flatten()])
        arguments = (
            gradient,
            rows,
            hidden,
            at_rows,
            *ctx.packed,
            alphas,
            weight1,
            weight2,
            vectors,
        )
        call("unit_back_bf16", arguments, (*rows.shape, *ctx.shape))
        found = (
            vectors[0].view_as(alpha1),
            weight1.permute(1, 2, 0),
            vectors[1],
            vectors[2].view_as(alpha2),
            weight2.unsqueeze(-1),
            vectors[3],
        )
        return (
            at_rows,
            *(g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True)),
            None,
            None,
        )


def trains_snake(x: Tensor) -> bool:
    """Whether `trained_snake` can compute x (B, C, T)."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and supported_in_bf16()
        and x.shape[1] % 16 == 0
    )


def trained_snake(module: Any, x: Tensor) -> Tensor:
    """`Snake1d.forward` of bf16 x (B, C, T), which `trains_snake`, with gradients."""
    return _Snake.apply(x.transpose(1, 2), module.alpha).transpose(1, 2)


class _Snake(torch.autograd.Function):
    """Of rows (B, T, C)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, alpha: Tensor) -> Tensor:
        rows = rows.contiguous()
        ctx.save_for_backward(rows, alpha)
        return snake_of_rows(rows, alpha)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        rows, alpha = ctx.saved_tensors
        at_rows, at_alpha = torch.empty_like(rows), torch.empty(rows.shape[2])
        arguments = (gradients[0].contiguous(), rows, alpha.float().flatten(), at_rows, at_alpha)
        call("snake_back_bf16", arguments, (rows.shape[0] * rows.shape[1], rows.shape[2]))
        return at_rows, at_alpha.view_as(alpha).to(alpha.dtype)
