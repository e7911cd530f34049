"""The codec's layers as gradients want them: the same outputs and gradients, sooner and in less
memory.

In bf16 on a CPU, the weight gradient of a convolution library call is several times slower than the
same as matrix products, one per tap of the kernel. A snake that keeps its input alone, and computes
its gradient from it, needs a quarter of the memory that autograd would keep. On a GPU it is one
pass over memory there and one back; its operators would take a dozen each. Rows are (B, T, C),
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
    zero_tail,
)

logger = logging.getLogger(__name__)

_BLOCK = 1 << 18  # elements of a snake's block, which stays in the cache between passes


def use_training_layers(model: nn.Module) -> None:
    """Let the layers of a codec, or of its half, compute by the functions below; nothing else of it
    changes.

    To be called before weight norm is applied. Saved weights and loaded ones are those of any other
    codec.
    """
    kinds: dict[type, type] = {DacConv1d: TrainedConv1d, Snake1d: TrainedSnake1d}
    if compiled_kernels():
        kinds[DacResidualUnit] = TrainedResidualUnit
    for module in model.modules():
        module.__class__ = kinds.get(type(module), type(module))


@cache
def compiled_kernels() -> bool:
    """Whether units and snakes train by compiled kernels here: in bf16, on a CPU with AMX and a C++
    compiler.
    """
    if not kernels.supported_in_bf16():
        return False
    try:
        kernels.library()
    except kernels.KernelError as error:
        logger.warning("training in bf16 will be slower than it could be: %s", error)
        return False
    return True


class TrainedResidualUnit(DacResidualUnit):
    """A `DacResidualUnit` in one pass there and one back, where it runs in bf16 on a CPU with AMX."""

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """As `DacResidualUnit.forward`."""
        if lengths is None and recorded() and training_kernels.trains_unit(self, x):
            return training_kernels.trained_unit(self, x)
        return super().forward(x, lengths)


def recorded() -> bool:
    """Whether autograd records the work as it runs."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


class TrainedConv1d(DacConv1d):
    """A `DacConv1d` whose gradients are a few matrix products: on a CPU, where it has a stride or
    runs in bf16.
    """

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """As `DacConv1d.forward`."""
        stride = self.stride[0]
        if (
            stride > 1
            and self.kernel_size[0] == 2 * stride
            and x.device.type == "cpu"
            and recorded()
        ):
            return cast(
                Tensor, _Strided.apply(zero_tail(x, lengths), self.weight, self.bias, self.pads)
            )
        wide = self.kernel_size[0] > 1 and stride == 1
        if (
            not wide
            or x.dtype != torch.bfloat16
            or x.device.type != "cpu"
            or not torch.is_grad_enabled()
        ):
            return super().forward(x, lengths, residual)
        return cast(
            Tensor,
            _Convolution.apply(
                zero_tail(x, lengths), self.weight, self.bias, self.dilation[0], self.pads
            ),
        )


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
        x, narrow = channels_last(x), weight.to(x.dtype)
        ctx.save_for_backward(x, narrow)
        ctx.dilation, ctx.pads, ctx.dtype, ctx.biased = (
            dilation,
            pads,
            weight.dtype,
            bias is not None,
        )
        return folded_conv(x, narrow, None if bias is None else bias.to(x.dtype), dilation, pads)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        x, weight = ctx.saved_tensors
        gradient, (left, right) = channels_last(gradients[0]), ctx.pads
        if ctx.dilation == 1 and 1 in weight.shape[:2]:
            return *_one_channel_gradients(x, gradient, weight, left, ctx.needs_input_grad[0], ctx.dtype), (
                gradient.sum(dim=(0, 2), dtype=torch.float32) if ctx.biased else None
            ), None, None  # fmt: skip
        at_input = at_weight = None
        if ctx.needs_input_grad[0]:
            at_input = _transposed(gradient, weight, ctx.dilation, left, right)
        if ctx.needs_input_grad[1]:
            at_weight = _weight_gradient(x, gradient, weight, ctx.dilation, left, ctx.dtype)
        return at_input, at_weight, (
            gradient.sum(dim=(0, 2), dtype=torch.float32) if ctx.biased else None
        ), None, None  # fmt: skip


def _transposed(gradient: Tensor, weight: Tensor, dilation: int, left: int, right: int) -> Tensor:
    """The gradient at the input (B, C, T): a convolution of that at the output, (B, C', T), with
    the kernel turned.
    """
    turned, steps = weight.flip(2).transpose(0, 1), gradient.shape[-1]
    if left > right:  # `folded_conv` pads both sides by the first of its pads
        gradient = channels_last(F.pad(gradient, (0, left - right)))
    return folded_conv(gradient, turned, None, dilation, (right, left))[..., :steps]


def _weight_gradient(
    x: Tensor, gradient: Tensor, weight: Tensor, dilation: int, left: int, dtype: torch.dtype
) -> Tensor:
    """(C', C, k): for each tap, the gradient at the output times the input that the tap saw."""
    batch, _, steps = x.shape
    kernel = weight.shape[2]
    reach = (kernel - 1) * dilation
    # One row of items with zeros between them, so that each tap is one product over all of them.
    rows = F.pad(x.transpose(1, 2), (0, 0, left, reach - left)).flatten(
        0, 1
    )  # (B * (T + reach), C)
    grads = F.pad(gradient.transpose(1, 2), (0, 0, 0, reach)).flatten(0, 1)[
        : batch * (steps + reach) - reach
    ]
    turned = grads.t()  # (C', N)
    taps = [turned @ rows[tap * dilation : tap * dilation + len(grads)] for tap in range(kernel)]
    return torch.stack(taps, dim=-1).to(dtype)


def _one_channel_gradients(
    x: Tensor, gradient: Tensor, weight: Tensor, left: int, at_input: bool, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor]:
    """Gradients at input and weight where one side has one channel: products with that side's
    windows, all taps in one.

    Tap by tap they would be products of a matrix and a vector, which torch computes slowly in bf16.
    """
    reach, wide, found = weight.shape[2] - 1, x.transpose(1, 2).flatten(0, 1), None
    if weight.shape[0] > 1:  # from one channel
        windows = _windows(x, left, reach - left)
        at_weight = (windows.t() @ gradient.transpose(1, 2).flatten(0, 1)).t().unsqueeze(1)
        if at_input:
            found = _transposed(gradient, weight, 1, left, reach - left)
    else:
        windows = _windows(gradient, reach - left, left)  # taps in reverse
        at_weight = (windows.t() @ wide).flip(0).t().unsqueeze(0)
        if at_input:
            found = (
                (windows @ weight[0].flip(1).t()).view(x.shape[0], x.shape[2], -1).transpose(1, 2)
            )
    return found, at_weight.to(dtype)


def _windows(x: Tensor, left: int, right: int) -> Tensor:
    """What each tap of a kernel sees at each step of one channel: (B, 1, T) -> (B * T, left + right
    + 1).
    """
    return F.pad(x[:, 0], (left, right)).unfold(1, left + right + 1, 1).flatten(0, 1)


class _Strided(torch.autograd.Function):
    """A convolution of stride s and kernel 2s, causal or not: x (B, C, T), weight (C', C, 2s) ->
    (B, C', T').

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
        before, behind = pads[0], blocks * stride - steps - pads[0]
        rows = F.pad(x.transpose(1, 2), (0, 0, before, behind)).reshape(
            batch * blocks, stride * channels
        )
        halves = (
            weight.to(x.dtype)
            .unflatten(2, (2, stride))
            .permute(3, 1, 2, 0)
            .reshape(rows.shape[1], -1)
        )
        both = (rows @ halves).view(batch, blocks, 2, -1)
        y = both[:, :-1, 0] + both[:, 1:, 1]
        if bias is not None:
            y += bias.to(x.dtype)
        ctx.save_for_backward(rows, halves)
        ctx.crop, ctx.shape, ctx.dtype, ctx.biased = (
            (0, 0, -before, -behind),
            weight.shape,
            weight.dtype,
            bias is not None,
        )
        return y.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        rows, halves = ctx.saved_tensors
        gradient = gradients[0].transpose(1, 2)  # (B, T', C')
        batch, steps, width = gradient.shape
        out_channels, channels, kernel = ctx.shape
        both = gradient.new_empty(batch, steps + 1, 2, width)
        both[:, :-1, 0], both[:, 1:, 1] = gradient, gradient
        both[:, -1, 0] = both[:, 0, 1] = 0
        both = both.view(-1, 2 * width)
        at_input = None
        if ctx.needs_input_grad[0]:
            at_input = F.pad((both @ halves.t()).view(batch, -1, channels), ctx.crop).transpose(
                1, 2
            )
        at_weight = (
            (rows.t() @ both)
            .view(kernel // 2, channels, 2, out_channels)
            .permute(3, 1, 2, 0)
            .flatten(2)
        )
        return at_input, at_weight.to(ctx.dtype), (
            gradient.sum(dim=(0, 1), dtype=torch.float32) if ctx.biased else None
        ), None  # fmt: skip


class TrainedSnake1d(Snake1d):
    """A `Snake1d` that keeps nothing but its input for the way back."""

    def forward(self, x: Tensor) -> Tensor:
        """As `Snake1d.forward`."""
        if not recorded():
            return super().forward(x)
        if x.device.type == "cpu" and compiled_kernels() and training_kernels.trains_snake(x):
            return training_kernels.trained_snake(self, x)
        return cast(Tensor, _Snake.apply(x, self.alpha))


class _Snake(torch.autograd.Function):
    """x + sin²(αx) / α: x (B, C, T), α (1, C, 1). In fp32, whatever x is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        x = channels_last(x)
        ctx.save_for_backward(x, alpha)
        return _columns(_passes(x.device.type)[0](_rows(x), alpha.float().flatten()), x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        x, alpha = ctx.saved_tensors
        gradient = _rows(channels_last(gradients[0]))
        at_input, at_alpha = _passes(x.device.type)[1](_rows(x), alpha.float().flatten(), gradient)
        return _columns(at_input, x), at_alpha.view_as(alpha).to(alpha.dtype)


def _rows(x: Tensor) -> Tensor:  # (B, C, T), channels last -> (N, C)
    return x.transpose(1, 2).flatten(0, 1)


def _columns(rows: Tensor, like: Tensor) -> Tensor:
    return rows.view(like.shape[0], like.shape[2], -1).transpose(1, 2)


@cache
def _passes(device: str) -> tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]]:
    """The snake of x (N, C) with α (C,), and its gradients, as a kind of device is fastest at it."""
    if device == "cpu":
        return _snake_in_blocks, _gradients_in_blocks
    if device != "cuda":
        return snake_of_rows, snake_gradients
    snake, gradients = (
        torch.compile(snake_of_rows, dynamic=True),
        torch.compile(snake_gradients, dynamic=True),
    )
    rows = torch.ones(
        48, 16, device=device, dtype=torch.bfloat16
    )  # equal sizes would be taken for one
    try:
        snake(rows, rows[0].float())
        gradients(rows, rows[0].float(), rows)
    except Exception as error:  # of a compiler, or because there is none
        logger.warning(
            "training will be slower than it could be, torch.compile does not work here: %s", error
        )
        return snake_of_rows, snake_gradients
    return snake, gradients


def snake_of_rows(rows: Tensor, slope: Tensor) -> Tensor:
    """The snake of x (N, C) with α (C,): one pass over memory, where it is compiled."""
    wide = rows.float()
    return (wide + (wide * slope).sin().square() * (slope + 1e-9).reciprocal()).to(rows.dtype)


def snake_gradients(rows: Tensor, slope: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Its gradients at x (N, C) and at α (C,): one pass over memory, where it is compiled."""
    wide, grad = rows.float(), gradient.float()
    # sin² = (1 - cos 2αx) / 2: one sine and one cosine serve both gradients.
    double = 2 * wide * slope
    turned = double.sin() * grad
    bending = ((1 - double.cos()) * grad).sum(dim=0)
    return (grad + turned).to(rows.dtype), _at_alpha((turned * wide).sum(dim=0), bending, slope)


def _at_alpha(turning: Tensor, bending: Tensor, slope: Tensor) -> Tensor:
    reciprocal = (slope + 1e-9).reciprocal()
    return turning * reciprocal - 0.5 * bending * reciprocal.square()


def _snake_in_blocks(rows: Tensor, slope: Tensor) -> Tensor:
    """`snake_of_rows`, block by block."""
    reciprocal, out = (slope + 1e-9).reciprocal(), torch.empty_like(rows)
    for part, into in zip(_blocks(rows), _blocks(out), strict=True):
        wide = part.float()
        into.copy_(torch.addcmul(wide, (wide * slope).sin_().square_(), reciprocal))
    return out


def _gradients_in_blocks(rows: Tensor, slope: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """`snake_gradients`, block by block."""
    at_input, turning, bending = (
        torch.empty_like(rows),
        torch.zeros_like(slope),
        torch.zeros_like(slope),
    )
    for part, above, into in zip(_blocks(rows), _blocks(gradient), _blocks(at_input), strict=True):
        wide, grad = part.float(), above.float()
        double = (wide * slope).mul_(2)
        bent = double.cos().neg_().add_(1).mul_(grad)  # 2 sin²(αx) · g
        bending += bent.sum(dim=0)
        turned = double.sin_().mul_(grad)  # sin(2αx) · g
        torch.add(grad, turned, out=grad)
        into.copy_(grad)
        turning += turned.mul_(wide).sum(dim=0)
    return at_input, _at_alpha(turning, bending, slope)


def _blocks(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(max(1, _BLOCK // rows.shape[1]))


__all__ = ["TrainedConv1d", "TrainedResidualUnit", "TrainedSnake1d", "use_training_layers"]
