"""Steps of live streams by compiled kernels, on a CPU: rows in, rows out, and the rows to keep.

Activations are (B, n, C), the channels together. A step keeps the weights as they are when it is
made. In fp32 a frame costs about as long as its weights take to be read; those that fp16 holds
exactly, as it does all weights of the embedded checkpoints, are kept in 16 bits.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from codecplus.acceleration.inference import (
    call,
    packed_unit,
    snake_vectors,
    takes_unit,
    takes_values,
)
from codecplus.kernels import usable_set

_WIDTH = 16  # columns of a panel, as in kernels/steps.cpp


def takes_step(weight: Tensor, alpha: Tensor | None) -> bool:
    """Return whether `ConvolutionStep` takes this weight, behind a snake with α (C,) or None."""
    if weight.dtype != torch.float32 or not takes_values(weight) or usable_set() is None:
        return False
    return alpha is None or len(alpha) % 16 == 0


class ConvolutionStep:
    """A convolution in fp32 behind a snake, if there is one, of rows that go on.

    Takes the convolution as a `Product` of `streaming.layers`, and α (C,) of the snake.
    """

    def __init__(self, product: Any, alpha: Tensor | None):
        inputs, outputs = product.matrix.shape
        self.taps = product.kernel
        self.sizes = (inputs // self.taps, outputs, self.taps, product.stride, product.dilation)
        self.span = product.span
        self.stride = product.stride
        self.phases = product.phases
        self.outputs = outputs
        self.bias = product.bias.contiguous()
        self.vectors = None if alpha is None else torch.stack(snake_vectors(alpha))
        self.halves = torch.equal(product.matrix.half().float(), product.matrix)
        self.panels = _panels(product.matrix)
        if self.halves:
            self.panels = self.panels.half()

    def __call__(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Take x (B, n, C) behind the inputs `tail` (B, left, C), which are snaked already.

        Returns the outputs (B, m, C') that are ready, and the tail of the next inputs.
        """
        batch, length, channels = x.shape
        left = tail.shape[1]
        windows = max(0, (left + length - self.span) // self.stride + 1)
        kept = left + length - windows * self.stride
        y = x.new_empty(batch, windows, self.outputs)
        after = x.new_empty(batch, kept, channels)
        inputs = (x.contiguous(), tail.contiguous())
        sizes = (batch, length, left, kept, windows, *self.sizes, self.halves)
        call("convolution_step", (*inputs, y, after, self.vectors, self.panels, self.bias), sizes)
        return y.view(batch, windows * self.phases, self.outputs // self.phases), after


class UnitStep:
    """A residual unit in fp32, of rows that go on; takes its two convolutions."""

    def __init__(self, first: ConvolutionStep, second: ConvolutionStep):
        halves = [_vectors_and_bias(first), _vectors_and_bias(second)]
        self.vectors = torch.cat(halves)  # as `unit_vectors` orders them
        self.panels = (first.panels, second.panels)
        self.reach = first.span - 1
        channels, _, taps, _, dilation = first.sizes
        self.sizes = (channels, taps, dilation, first.halves, second.halves)

    def __call__(self, x: Tensor, tail: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Take x (B, n, C) behind the snaked inputs `tail` (B, left, C).

        `skip` holds what the outputs are added to. Returns the outputs (B, m, C) that are ready,
        and the tail of the next inputs.
        """
        batch, length, channels = x.shape
        left = tail.shape[1]
        windows = max(0, left + length - self.reach)
        kept = left + length - windows
        y = x.new_empty(batch, windows, channels)
        after = x.new_empty(batch, kept, channels)
        inputs = (x.contiguous(), tail.contiguous(), skip[:, :windows].contiguous())
        sizes = (batch, length, left, kept, windows, *self.sizes)
        call("unit_step", (*inputs, y, after, self.vectors, *self.panels), sizes)
        return y, after


def takes_bf16_step(unit: Any) -> bool:
    """Return whether `Bf16UnitStep` takes this unit."""
    weight = unit.conv1.weight.detach()
    causal = unit.conv1.pads[1] == 0
    return causal and weight.dtype == torch.bfloat16 and takes_unit(unit, weight[None, ..., 0])


class Bf16UnitStep:
    """A causal residual unit in bf16 that `takes_bf16_step`, of rows that go on."""

    def __init__(self, unit: Any):
        self.packed = packed_unit(unit)
        self.dilation = unit.conv1.dilation[0]
        self.left = unit.conv1.pads[0]

    def __call__(self, x: Tensor, tail: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """See `UnitStep`; the outputs are added to x."""
        x = x.contiguous()
        tail = tail.contiguous()
        y = torch.empty_like(x)
        after = torch.empty_like(tail)
        call(
            "unit_bf16",
            (x, y, None, tail, after, None, *self.packed),
            (*x.shape, self.dilation, self.left),
        )
        return y, after


class SearchStep:
    """The search of a `CodebookSearch`, which it is made from, for a few rows."""

    def __init__(self, search: Any):
        count, d = len(search.codebooks), search.width
        self.into = search.into.t().contiguous()  # (D, K * d)
        self.biases = torch.cat(search.biases)
        self.mixed = self.into.new_zeros(count * d, count * d)
        for i, block in enumerate(search.mixed):  # (i * d, d)
            self.mixed[: i * d, i * d : (i + 1) * d] = block
        self.directions = torch.stack(search.directions).contiguous()  # (K, d, N)
        self.entries = torch.stack(search.codebooks)  # (K, N, d)
        self.sizes = (count, d, self.entries.shape[1])

    def __call__(self, rows: Tensor, n_quantizers: int) -> Tensor:
        """Return the codes (B, K, T) of fp32 rows (B, T, D) in the first K codebooks."""
        batch, steps = rows.shape[:2]
        latents = rows.reshape(batch * steps, -1) @ self.into
        codes = torch.empty(batch, steps, n_quantizers, dtype=torch.int64)
        tensors = (latents, self.biases, self.mixed, self.directions, self.entries, codes)
        call("search_step", tensors, (batch * steps, n_quantizers, *self.sizes))
        return codes.transpose(1, 2)


def _vectors_and_bias(step: ConvolutionStep) -> Tensor:  # (3, C)
    assert step.vectors is not None, "in a unit a snake is before each convolution"
    return torch.cat([step.vectors, step.bias[None]])


def _panels(matrix: Tensor) -> Tensor:
    """Return a matrix (K, N) as panels of 16 columns, (N / 16, K, 16), the last with zeros."""
    padded = F.pad(matrix, (0, -matrix.shape[1] % _WIDTH))
    return padded.unflatten(1, (-1, _WIDTH)).transpose(0, 1).contiguous()
