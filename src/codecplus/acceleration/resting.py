"""Residual units and snakes whose weights rest, with gradients at their inputs, in fp32 on a CPU.

For searches that play codes and follow the gradient back to them (`encoding.refinement`). The
kernels are those of inference; the way back through a unit is one of the same kind, with the
weights turned around.
"""

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from codecplus.acceleration.inference import (
    PackCache,
    call,
    fp32_panels,
    seven_taps_panels,
    snake_of_rows,
    snake_vectors,
    takes_unit,
    takes_values,
    transforms,
    unit_vectors,
)
from codecplus.acceleration.training import (
    TrainedConv1d,
    TrainedResidualUnit,
    TrainedSnake1d,
    recorded,
)
from codecplus.kernels import usable_set
from codecplus.modeling_dac.layers_dac import DacResidualUnit

_packs = PackCache()


def use_resting_layers(network: nn.Module) -> None:
    """Replace the units and snakes of an encoder or decoder whose parameters need no gradients.

    Call it after `use_training_layers`, whose layers stay where there are no kernels.
    """
    for module in network.modules():
        if isinstance(module, DacResidualUnit):
            module.__class__ = _resting_unit(type(module))
        elif type(module) is TrainedSnake1d:
            module.__class__ = RestingSnake1d


@cache
def _resting_unit(kind: type[DacResidualUnit]) -> type[DacResidualUnit]:
    """Return the class of units at rest that stands for a class of units, also a `DacModel`'s."""
    if issubclass(kind, RestingResidualUnit):
        return kind
    if kind in (DacResidualUnit, TrainedResidualUnit):
        return RestingResidualUnit
    return type(RestingResidualUnit.__name__, (RestingResidualUnit, kind), {})


class RestingResidualUnit(TrainedResidualUnit):
    """A `DacResidualUnit` that is one kernel forwards and one backwards; in bf16 that of training,
    where there is one.
    """

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute what `DacResidualUnit.forward` does."""
        plain = lengths is None and recorded() and self.is_plain()
        if not plain or x.dtype != torch.float32 or not takes_unit(self, x):
            return super().forward(x, lengths)
        conv1, conv2 = self.conv1, self.conv2
        weights = (conv1.weight, conv2.weight)
        biases = cast(Tensor, conv1.bias), cast(Tensor, conv2.bias)  # which `takes_unit` saw
        vectors = unit_vectors(self.snake1.alpha, biases[0], self.snake2.alpha, biases[1])
        packed = _packs.get(self, weights, _forward_and_backward)
        shape = (conv1.dilation[0], conv1.pads[0])
        y = cast(Tensor, _Unit.apply(x.transpose(1, 2), vectors, packed, shape))
        return y.transpose(1, 2)

    def is_plain(self) -> bool:
        """Return whether no adapter and no hook changes what its layers compute."""
        return self.consists_of(TrainedConv1d, RestingSnake1d)


class RestingSnake1d(TrainedSnake1d):
    """A `TrainedSnake1d` that is one kernel forwards and one backwards."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute what `Snake1d.forward` does."""
        takes = x.dtype == torch.float32 and takes_values(x) and x.shape[1] % 16 == 0
        if not recorded() or not takes or usable_set() is None:
            return super().forward(x)
        return cast(Tensor, _Snake.apply(x.transpose(1, 2), self.alpha)).transpose(1, 2)


def _forward_and_backward(weight1: Tensor, weight2: Tensor) -> tuple[Tensor, ...]:
    """Return both weights packed for the way there, and then for the way back.

    There channels are exchanged, and taps come in reverse.
    """
    return (
        seven_taps_panels(weight1.permute(2, 1, 0)),
        fp32_panels(weight2.permute(2, 1, 0)),
        seven_taps_panels(weight1.permute(2, 0, 1).flip(0)),
        fp32_panels(weight2.permute(2, 0, 1)),
    )


class _Unit(torch.autograd.Function):
    """A residual unit of rows (B, T, C)."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, vectors: Tensor, packed: tuple[Tensor, ...], shape: tuple[int, int]
    ) -> Tensor:
        rows = rows.contiguous()
        y = torch.empty_like(rows)
        hidden = torch.empty_like(rows)
        tensors = (rows, y, hidden, None, vectors, *packed[:2], transforms())
        call("unit_fp32", tensors, (*rows.shape, *shape))
        ctx.save_for_backward(rows, hidden, vectors)
        ctx.packed = packed[2:]
        ctx.shape = shape
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        rows, hidden, vectors = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        at_rows = torch.empty_like(rows)
        tensors = (gradient, rows, hidden, at_rows, vectors, *ctx.packed, transforms())
        call("unit_back_fp32", tensors, (*rows.shape, *ctx.shape))
        return at_rows, None, None, None


class _Snake(torch.autograd.Function):
    """A snake of rows (B, T, C)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, alpha: Tensor) -> Tensor:
        rows = rows.contiguous()
        ctx.save_for_backward(rows, alpha)
        return snake_of_rows(rows, alpha)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        rows, alpha = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        at_rows = torch.empty_like(rows)
        tensors = (gradient, rows, at_rows, torch.stack(snake_vectors(alpha)))
        call("snake_back_fp32", tensors, (rows.shape[0] * rows.shape[1], rows.shape[2]))
        return at_rows, None
