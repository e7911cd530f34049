"""Layers for training.

They give the outputs and gradients of `layers_dac`'s layers, faster and with less memory. They know
nothing of losses or of a training loop.

In bf16 on a CPU, the weight gradient of a convolution by the library is several times slower than
matrix products, one per tap of the kernel. A snake that keeps its input alone, and computes its
gradient from it, needs a quarter of the memory that autograd would keep. On a GPU it is one pass
over memory forwards and one backwards; its operators would take a dozen each. Rows are (B, T, C),
channels together, as in `layers_dac`.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codecplus import kernels
from codecplus.acceleration import training_kernels
from codecplus.modeling_dac.layers_dac import (
    DacConv1d,
    DacResidualUnit,
    Snake1d,
    channels_last,
    folded_conv,
    snake,
    snake_in_blocks,
    snake_reciprocal,
    zero_tail,
)

logger = logging.getLogger(__name__)

_BLOCK = 1 << 18  # elements of a block of gradients


def use_training_layers(model: nn.Module) -> None:
    """Replace the layers of a model, or of its encoder or decoder, by the layers for training.

    Call it before weight norm is applied. The state dict stays that of any other model.
    """
    replacements: dict[type, type] = {DacConv1d: TrainedConv1d, Snake1d: TrainedSnake1d}
    kernels_train = _kernels_train()
    for module in model.modules():
        if kernels_train and isinstance(module, DacResidualUnit):
            module.__class__ = _trained_unit(type(module))
        else:
            module.__class__ = replacements.get(type(module), type(module))


@cache
def _trained_unit(kind: type[DacResidualUnit]) -> type[DacResidualUnit]:
    """Return the class of units for training that stands for a class of units.

    Those of a `DacModel` are layers that transformers may checkpoint, and stay that.
    """
    if issubclass(kind, TrainedResidualUnit):
        return kind
    if kind is DacResidualUnit:
        return TrainedResidualUnit
    return type(TrainedResidualUnit.__name__, (TrainedResidualUnit, kind), {})


@cache
def _kernels_train() -> bool:
    """Return whether units and snakes in bf16 train by compiled kernels on this CPU, with AMX."""
    target = kernels.instruction_set()
    if target is None or not target.trains:
        return False
    try:
        kernels.library()
    except kernels.KernelError as error:
        logger.warning("training in bf16 will be slower than it could be: %s", error)
        return False
    return True


class TrainedResidualUnit(DacResidualUnit):
    """A `DacResidualUnit` that is one kernel forwards and one backwards, in bf16 on AMX."""

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute what `DacResidualUnit.forward` does."""
        plain = lengths is None and recorded() and self.is_plain()
        if plain and training_kernels.trains_unit(self, x):
            return training_kernels.trained_unit(self, x)
        return super().forward(x, lengths)

    def is_plain(self) -> bool:
        """Return whether no adapter and no hook changes what its layers compute."""
        return self.consists_of(TrainedConv1d, TrainedSnake1d)


def recorded() -> bool:
    """Return whether autograd records what is computed, outside of a graph that is compiled."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


class TrainedConv1d(DacConv1d):
    """A `DacConv1d` whose gradients are a few matrix products on a CPU.

    That is where it has a stride, or a wide kernel in bf16; elsewhere it is a plain one.
    """

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Compute what `DacConv1d.forward` does."""
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x, lengths, residual)
        kernel = self.kernel_size[0]
        stride = self.stride[0]
        parameters = (self.weight, self.bias)
        if stride > 1 and kernel == 2 * stride and recorded():
            y = _Strided.apply(zero_tail(x, lengths), *parameters, self.pads)
        elif stride == 1 and kernel > 1 and x.dtype == torch.bfloat16:
            y = _Convolution.apply(zero_tail(x, lengths), *parameters, self.dilation[0], self.pads)
        else:
            return super().forward(x, lengths, residual)
        return cast(Tensor, y)


class _Convolution(torch.autograd.Function):
    """A convolution of stride 1: x (B, C, T), weight (C', C, k), bias (C',) -> (B, C', T)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dilation: int,
        pads: tuple[int, int],
    ) -> Tensor:
        x = channels_last(x)
        narrow = weight.to(x.dtype)
        ctx.save_for_backward(x, narrow)
        ctx.dilation = dilation
        ctx.pads = pads
        ctx.dtype = weight.dtype
        ctx.biased = bias is not None
        return folded_conv(x, narrow, None if bias is None else bias.to(x.dtype), dilation, pads)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        x, weight = ctx.saved_tensors
        gradient = channels_last(gradients[0])
        left, right = ctx.pads
        at_input = at_weight = at_bias = None
        if ctx.biased:
            at_bias = gradient.sum(dim=(0, 2), dtype=torch.float32)
        if ctx.dilation == 1 and 1 in weight.shape[:2]:
            at_input, at_weight = _one_channel_gradients(
                x, gradient, weight, left, ctx.needs_input_grad[0], ctx.dtype
            )
            return at_input, at_weight, at_bias, None, None
        if ctx.needs_input_grad[0]:
            at_input = _input_gradient(gradient, weight, ctx.dilation, left, right)
        if ctx.needs_input_grad[1]:
            at_weight = _weight_gradient(x, gradient, weight, ctx.dilation, left, ctx.dtype)
        return at_input, at_weight, at_bias, None, None


def _input_gradient(
    gradient: Tensor, weight: Tensor, dilation: int, left: int, right: int
) -> Tensor:
    """Return the gradient at the input (B, C, T) from that at the output (B, C', T).

    It is a convolution with the kernel turned.
    """
    turned = weight.flip(2).transpose(0, 1)
    steps = gradient.shape[-1]
    if left > right:  # `folded_conv` pads both sides by the first of its pads
        gradient = channels_last(F.pad(gradient, (0, left - right)))
    return folded_conv(gradient, turned, None, dilation, (right, left))[..., :steps]


def _weight_gradient(
    x: Tensor, gradient: Tensor, weight: Tensor, dilation: int, left: int, dtype: torch.dtype
) -> Tensor:
    """Return the gradient at the weight (C', C, k).

    Of each tap it is the gradient at the output times the input that the tap saw.
    """
    batch, _, steps = x.shape
    kernel = weight.shape[2]
    reach = (kernel - 1) * dilation
    # One row of items with zeros between them, so that each tap is one product over all of them.
    rows = F.pad(x.transpose(1, 2), (0, 0, left, reach - left))
    rows = rows.flatten(0, 1)  # (B * (T + reach), C)
    grads = F.pad(gradient.transpose(1, 2), (0, 0, 0, reach))
    grads = grads.flatten(0, 1)[: batch * (steps + reach) - reach]
    turned = grads.t()  # (C', N)
    taps = [turned @ rows[tap * dilation : tap * dilation + len(grads)] for tap in range(kernel)]
    return torch.stack(taps, dim=-1).to(dtype)


def _one_channel_gradients(
    x: Tensor, gradient: Tensor, weight: Tensor, left: int, at_input: bool, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients at input, unless it needs none, and weight, of one channel on a side.

    They are products with the windows of that side, all taps in one. Tap by tap they would be
    products of a matrix and a vector, which torch computes slowly in bf16.
    """
    reach = weight.shape[2] - 1
    input_gradient = None
    if weight.shape[0] > 1:  # from one channel
        windows = _windows(x, left, reach - left)
        at_weight = (windows.t() @ _rows(gradient)).t().unsqueeze(1)
        if at_input:
            input_gradient = _input_gradient(gradient, weight, 1, left, reach - left)
    else:
        windows = _windows(gradient, reach - left, left)  # taps in reverse
        at_weight = (windows.t() @ _rows(x)).flip(0).t().unsqueeze(0)
        if at_input:
            input_gradient = _columns(windows @ weight[0].flip(1).t(), x)
    return input_gradient, at_weight.to(dtype)


def _windows(x: Tensor, left: int, right: int) -> Tensor:
    """Return the window of each step of one channel: (B, 1, T) -> (B * T, left + right + 1)."""
    return F.pad(x[:, 0], (left, right)).unfold(1, left + right + 1, 1).flatten(0, 1)


class _Strided(torch.autograd.Function):
    """A convolution of stride s: x (B, C, T), weight (C', C, 2s), bias (C',) -> (B, C', T').

    Its input is cut into blocks of s steps; each meets the first half of the taps for one output,
    and the second half for the output before: one matrix product there, two back, and no copies of
    windows that overlap.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, pads: tuple[int, int]
    ) -> Tensor:
        batch, channels, steps = x.shape
        stride = weight.shape[2] // 2
        blocks = (steps + sum(pads)) // stride
        before = pads[0]
        behind = blocks * stride - steps - before
        rows = F.pad(x.transpose(1, 2), (0, 0, before, behind))
        rows = rows.reshape(batch * blocks, stride * channels)
        halves = weight.to(x.dtype).unflatten(2, (2, stride))  # (C', C, 2, s)
        halves = halves.permute(3, 1, 2, 0).reshape(rows.shape[1], -1)  # (s * C, 2 * C')
        both = (rows @ halves).view(batch, blocks, 2, -1)
        y = both[:, :-1, 0] + both[:, 1:, 1]
        if bias is not None:
            y += bias.to(x.dtype)
        ctx.save_for_backward(rows, halves)
        ctx.crop = (0, 0, -before, -behind)
        ctx.shape = weight.shape
        ctx.dtype = weight.dtype
        ctx.biased = bias is not None
        return y.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        rows, halves = ctx.saved_tensors
        gradient = gradients[0].transpose(1, 2)  # (B, T', C')
        batch, steps, width = gradient.shape
        out_channels, channels, kernel = ctx.shape
        both = gradient.new_empty(batch, steps + 1, 2, width)
        both[:, :-1, 0] = gradient
        both[:, 1:, 1] = gradient
        both[:, -1, 0] = both[:, 0, 1] = 0
        both = both.view(-1, 2 * width)
        at_input = at_bias = None
        if ctx.needs_input_grad[0]:
            at_rows = (both @ halves.t()).view(batch, -1, channels)
            at_input = F.pad(at_rows, ctx.crop).transpose(1, 2)
        at_weight = (rows.t() @ both).view(kernel // 2, channels, 2, out_channels)
        at_weight = at_weight.permute(3, 1, 2, 0).flatten(2)
        if ctx.biased:
            at_bias = gradient.sum(dim=(0, 1), dtype=torch.float32)
        return at_input, at_weight.to(ctx.dtype), at_bias, None


class TrainedSnake1d(Snake1d):
    """A `Snake1d` that keeps nothing but its input for the way back."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute what `Snake1d.forward` does."""
        if not recorded():
            return super().forward(x)
        return cast(Tensor, _Snake.apply(x, self.alpha))


class _Snake(torch.autograd.Function):
    """x + sin²(αx) / α: x (B, C, T), α (1, C, 1). In fp32, whatever x is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        x = channels_last(x)
        ctx.save_for_backward(x, alpha)
        snake_of_rows, _ = _passes(x)
        return _columns(snake_of_rows(_rows(x), alpha.float().flatten()), x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        x, alpha = ctx.saved_tensors
        _, gradients_of_rows = _passes(x)
        gradient = _rows(channels_last(gradients[0]))
        at_input, at_alpha = gradients_of_rows(_rows(x), alpha.float().flatten(), gradient)
        return _columns(at_input, x), at_alpha.view_as(alpha).to(alpha.dtype)


def _rows(x: Tensor) -> Tensor:
    """View x (B, C, T), channels last in memory, as rows (B * T, C)."""
    return x.transpose(1, 2).flatten(0, 1)


def _columns(rows: Tensor, like: Tensor) -> Tensor:
    """View rows (B * T, C) as (B, C, T), the shape of `like`."""
    return rows.view(like.shape[0], like.shape[2], -1).transpose(1, 2)


_Passes = tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]]


def _passes(x: Tensor) -> _Passes:
    """Return the fastest snake of rows (N, C) with α (C,), and its gradients, for x (B, C, T)."""
    if training_kernels.trains_snake(x):
        return training_kernels.snake_rows, training_kernels.snake_gradients
    return _passes_on(x.device.type)


@cache
def _passes_on(device: str) -> _Passes:
    """Return the fastest passes on a kind of device without compiled kernels."""
    if device == "cpu":
        return snake_in_blocks, _gradients_in_blocks
    if device != "cuda":
        return snake, snake_gradients
    compiled = (
        torch.compile(snake, dynamic=True),
        torch.compile(snake_gradients, dynamic=True),
    )
    # Equal sizes would be taken for one.
    rows = torch.ones(48, 16, device=device, dtype=torch.bfloat16)
    slope = rows[0].float()
    try:
        compiled[0](rows, slope)
        compiled[1](rows, slope, rows)
    except Exception as error:  # of a compiler, or because there is none
        logger.warning(
            "training will be slower than it could be, torch.compile does not work here: %s", error
        )
        return snake, snake_gradients
    return compiled


def snake_gradients(rows: Tensor, slope: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the snake at x (N, C) and at α (C,).

    Compiled it is one pass over memory.
    """
    wide = rows.float()
    grad = gradient.float()
    # sin² = (1 - cos 2αx) / 2: one sine and one cosine serve both gradients.
    double = 2 * wide * slope
    turned = double.sin() * grad
    bending = ((1 - double.cos()) * grad).sum(dim=0)
    return (grad + turned).to(rows.dtype), _at_alpha((turned * wide).sum(dim=0), bending, slope)


def _at_alpha(turning: Tensor, bending: Tensor, slope: Tensor) -> Tensor:
    """Return the gradient at α of Σ sin(2αx) x g and Σ 2 sin²(αx) g, summed over rows."""
    reciprocal = snake_reciprocal(slope)
    return turning * reciprocal - 0.5 * bending * reciprocal.square()


def _gradients_in_blocks(rows: Tensor, slope: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `snake_gradients` does, block by block, in place where it can: for a CPU."""
    at_input = torch.empty_like(rows)
    turning = torch.zeros_like(slope)
    bending = torch.zeros_like(slope)
    for block, above, into in zip(_blocks(rows), _blocks(gradient), _blocks(at_input), strict=True):
        wide = block.float()
        grad = above.float()
        double = (wide * slope).mul_(2)
        bent = double.cos().neg_().add_(1).mul_(grad)  # 2 sin²(αx) · g
        bending += bent.sum(dim=0)
        turned = double.sin_().mul_(grad)  # sin(2αx) · g
        torch.add(grad, turned, out=grad)
        into.copy_(grad)
        turning += turned.mul_(wide).sum(dim=0)
    return at_input, _at_alpha(turning, bending, slope)


def _blocks(rows: Tensor) -> tuple[Tensor, ...]:
    """Cut rows (N, C) into blocks that stay in the cache between passes."""
    return rows.split(max(1, _BLOCK // rows.shape[1]))


__all__ = ["TrainedConv1d", "TrainedResidualUnit", "TrainedSnake1d", "use_training_layers"]
