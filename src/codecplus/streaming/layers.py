"""Layers of a network as pure steps: inputs and a state in, outputs and the next state out.

Every convolution keeps the inputs that later outputs depend on, and gives each output as soon as
its last input is in. What a layer sees before the first step and behind the last one are zeros
among its own inputs, as in one pass over everything, not what zero audio would become there.

Activations are (B, n, C), the channels together. Weights are copied into the layout of the products
when a layer is made; nothing is written afterwards, so threads may share layers.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportOptionalMemberAccess=false
# torch types every part of a module as "Tensor | Module", so that all that is read off a part is an error above.

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from codecplus.acceleration.inference import UnitStep, takes_unit
from codecplus.modeling_dac.layers_dac import (
    DacConv1d,
    DacConvTranspose1d,
    DacDecoder,
    DacEncoder,
    DacResidualUnit,
    DacResidualVectorQuantizer,
    Snake1d,
    weights_in_place,
)


class LayerState(NamedTuple):
    """What one layer remembers; never changed, only replaced."""

    position: int
    """Inputs taken so far."""
    tail: Tensor
    """The last of them (B, n, C), which outputs to come depend on."""
    skip: Tensor | None = None
    """Inputs (B, n, C) of a residual unit whose outputs are still to come."""

    def rows(self, rows: Sequence[int]) -> "LayerState":
        """The state of these rows of the batch alone."""
        return self._replace(
            tail=self.tail[rows], skip=None if self.skip is None else self.skip[rows]
        )

    def zeroed(self, rows: Sequence[int]) -> "LayerState":
        """The same with all inputs of these rows forgotten."""
        tail = self.tail.clone()
        tail[rows] = 0
        return self._replace(tail=tail)


class Layer(Protocol):
    """One step of a chain."""

    def start(self, batch: int) -> LayerState:
        """The state before the first input."""
        ...

    def step(
        self, x: Tensor, state: LayerState, last: bool, starts: Tensor | None
    ) -> tuple[Tensor, LayerState]:
        """Take inputs (B, n, C), give the outputs (B, m, C') that are ready; with `last`, all that
        are left.

        Inputs of row b before frame `starts` (B,)[b] count as zero: they belong to what that row
        carried before.
        """
        ...


def zero_before(x: Tensor, position: int, starts: Tensor | None) -> Tensor:
    """Zero the steps of x (B, n, C), which begins at `position`, that lie before `starts` (B,)."""
    if starts is None:
        return x
    steps = torch.arange(position, position + x.shape[1], device=x.device)
    return x.masked_fill((steps < starts[:, None])[..., None], 0)


def kept(x: Tensor, first: int) -> Tensor:
    """A copy of x (B, n, C) from step `first` on: a view would keep all of x in memory, and in a
    pickle.
    """
    return x.narrow(1, first, x.shape[1] - first).clone()


class Snake:
    """x + sin²(αx) / α, as `Snake1d` computes it without gradients: (B, n, C) -> (B, n, C)."""

    def __init__(self, module: Snake1d):
        self.alpha = module.alpha.detach().float().flatten().clone()
        self.reciprocal = (self.alpha + 1e-9).reciprocal()

    def __call__(self, x: Tensor) -> Tensor:
        """Give a new tensor, in the dtype of x."""
        if x.dtype != torch.float32:
            return self(x.float()).to(x.dtype)
        sine = (x * self.alpha).sin_()
        return torch.addcmul(x, sine.mul_(sine), self.reciprocal)


class Convolution:
    """A convolution, plain or transposed, behind a snake if there is one, as a matrix product over
    windows.

    A transposed convolution of kernel 2s and stride s is one of kernel 2 whose outputs hold s steps
    each; the plain one drops its `crop` first and last steps.
    """

    def __init__(
        self, conv: DacConv1d | DacConvTranspose1d, snake: Snake1d | None, inputs_per_frame: int
    ):
        self.snake = None if snake is None else Snake(snake)
        self.inputs_per_frame = inputs_per_frame
        self.channels = conv.in_channels
        with weights_in_place(conv):
            weight, bias = conv.weight.detach(), conv.bias.detach()
        if isinstance(conv, DacConvTranspose1d):
            self.kernel, self.stride, self.dilation, self.phases = 2, 1, 1, conv.stride[0]
            self.left, self.right, self.crop = (
                1,
                0 if conv.causal else 1,
                0 if conv.causal else conv.padding[0],
            )
            taps = weight.unflatten(2, (2, self.phases)).flip(2)  # (C, C', 2, s)
            self.matrix = (
                taps.permute(2, 0, 3, 1).flatten(0, 1).flatten(1).contiguous()
            )  # (2 * C, s * C')
            self.bias = bias.repeat(self.phases)
        else:
            self.kernel, self.stride, self.dilation = (
                conv.kernel_size[0],
                conv.stride[0],
                conv.dilation[0],
            )
            self.phases, self.crop = 1, 0
            self.left, self.right = conv.pads
            if self.stride == 1:  # as many outputs as inputs, also of an even kernel
                self.right = (self.kernel - 1) * self.dilation - self.left
            self.matrix = (
                weight.permute(2, 1, 0).flatten(0, 1).clone(memory_format=torch.contiguous_format)
            )
            self.bias = bias.clone()
        self.span = (self.kernel - 1) * self.dilation + 1

    def start(self, batch: int) -> LayerState:
        """Zeros to the left of the first input."""
        return LayerState(0, self.matrix.new_zeros(batch, self.left, self.channels))

    def step(
        self, x: Tensor, state: LayerState, last: bool, starts: Tensor | None
    ) -> tuple[Tensor, LayerState]:
        """See `Layer`."""
        position = state.position + x.shape[1]
        if self.snake is not None:
            x = self.snake(x)
        if starts is not None:
            x = zero_before(x, state.position, starts * self.inputs_per_frame)
        parts = [state.tail, x]
        if last and self.right:
            parts.append(x.new_zeros(x.shape[0], self.right, x.shape[2]))
        inputs = torch.cat(parts, dim=1)
        steps = max(0, (inputs.shape[1] - self.span) // self.stride + 1)
        y = self.product(inputs, steps)
        if self.crop:
            y = y[
                :, self.crop if state.position == 0 else 0 : y.shape[1] - (self.crop if last else 0)
            ]
        return y, LayerState(position, kept(inputs, steps * self.stride))

    def product(self, inputs: Tensor, steps: int) -> Tensor:
        """The first `steps` outputs of inputs (B, n, C), nothing padded: (B, steps * s, C')."""
        batch, length, channels = inputs.shape
        if self.kernel > 1:
            inputs = inputs.as_strided(
                (batch, steps, self.kernel, channels),
                (length * channels, self.stride * channels, self.dilation * channels, 1),
            )
        y = torch.addmm(
            self.bias, inputs.reshape(batch * steps, self.kernel * channels), self.matrix
        )
        return y.view(batch, steps * self.phases, self.matrix.shape[1] // self.phases)


class ResidualUnit:
    """`DacResidualUnit`; its inputs wait for the outputs they are added to."""

    def __init__(self, unit: DacResidualUnit, inputs_per_frame: int):
        self.conv1 = Convolution(unit.conv1, unit.snake1, inputs_per_frame)
        self.snake2 = Snake(unit.snake2)
        self.conv2 = Convolution(unit.conv2, None, inputs_per_frame)
        self.fused = None
        causal_in_bf16 = unit.conv1.pads[1] == 0 and unit.conv1.weight.dtype == torch.bfloat16
        if (
            unit.fused is not None
            and causal_in_bf16
            and takes_unit(unit, unit.conv1.weight[..., 0])
        ):
            self.fused = UnitStep(unit)

    def start(self, batch: int) -> LayerState:
        """Nothing waits before the first input."""
        state = self.conv1.start(batch)
        return state._replace(skip=kept(state.tail, state.tail.shape[1]))

    def step(
        self, x: Tensor, state: LayerState, last: bool, starts: Tensor | None
    ) -> tuple[Tensor, LayerState]:
        """See `Layer`."""
        if self.fused is not None and starts is None and x.shape[1]:
            y, tail = self.fused(x, state.tail)
            return y, LayerState(state.position + x.shape[1], tail, state.skip)
        y, (position, tail, _) = self.conv1.step(x, state, last, starts)
        steps, waiting = y.shape[1], state.skip
        y = self.conv2.product(self.snake2(y), steps)
        if steps == x.shape[1] and not waiting.shape[1]:  # always so in a causal net
            return y.add_(x), LayerState(position, tail, waiting)
        waiting = torch.cat([waiting, x], dim=1)
        return y.add_(waiting[:, :steps]), LayerState(position, tail, kept(waiting, steps))


class WholeFrames:
    """The end of a decoder: tanh, and samples (B, n, 1) held back until their frame is whole."""

    def __init__(self, hop_length: int, like: Tensor):
        self.hop_length, self.like = hop_length, like

    def start(self, batch: int) -> LayerState:
        """No sample is held back."""
        return LayerState(0, self.like.new_zeros(batch, 0, 1))

    def step(
        self, x: Tensor, state: LayerState, last: bool, starts: Tensor | None
    ) -> tuple[Tensor, LayerState]:
        """See `Layer`; with `last`, the samples that odd strides lose at the end are zero."""
        x = torch.tanh(x)
        if starts is not None:
            x = zero_before(x, state.position, starts * self.hop_length)
        samples = torch.cat([state.tail, x], dim=1)
        if last:
            samples = F.pad(samples, (0, 0, 0, -samples.shape[1] % self.hop_length))
        whole = samples.shape[1] // self.hop_length * self.hop_length
        return samples[:, :whole], LayerState(state.position + x.shape[1], kept(samples, whole))


def start(layers: Iterable[Layer], batch: int) -> tuple[LayerState, ...]:
    """The states of layers that have seen nothing."""
    return tuple(layer.start(batch) for layer in layers)


def step(
    layers: Sequence[Layer],
    x: Tensor,
    states: Sequence[LayerState],
    last: bool,
    starts: Tensor | None,
) -> tuple[Tensor | None, tuple[LayerState, ...]]:
    """Take inputs (B, n, C) through the layers; the outputs (B, m, C') are None where nothing
    reached the end.
    """
    after = []
    for layer, state in zip(layers, states, strict=True):
        if not (
            x.shape[1] or last
        ):  # a short input may not fill one stride: the layers behind it rest
            return None, (*after, *states[len(after) :])
        x, state = layer.step(x, state, last, starts)
        after.append(state)
    return x, tuple(after)


def encoder_layers(encoder: DacEncoder, hop_length: int) -> list[Layer]:
    """The layers of an encoder: samples (B, n, 1) to latents (B, m, D)."""
    rate = hop_length
    layers: list[Layer] = [Convolution(encoder.conv1, None, rate)]
    for block in encoder.block:
        layers += [
            ResidualUnit(unit, rate) for unit in (block.res_unit1, block.res_unit2, block.res_unit3)
        ]
        layers.append(Convolution(block.conv1, block.snake1, rate))
        rate //= block.conv1.stride[0]
    return [*layers, Convolution(encoder.conv2, encoder.snake1, rate)]


def decoder_layers(decoder: DacDecoder, hop_length: int) -> list[Layer]:
    """The layers of a decoder: latents (B, n, D) to samples (B, m, 1) of whole frames."""
    rate = 1
    layers: list[Layer] = [Convolution(decoder.conv1, None, rate)]
    for block in decoder.block:
        layers.append(Convolution(block.conv_t1, block.snake1, rate))
        rate *= block.conv_t1.stride[0]
        layers += [
            ResidualUnit(unit, rate) for unit in (block.res_unit1, block.res_unit2, block.res_unit3)
        ]
    last = Convolution(decoder.conv2, decoder.snake1, rate)
    return [*layers, last, WholeFrames(hop_length, last.matrix)]


class Search:
    """The search of `DacResidualVectorQuantizer`, with all that does not depend on the latents
    computed once.
    """

    def __init__(self, quantizer: DacResidualVectorQuantizer):
        into, out, into_bias, out_bias, self.codebooks = quantizer._weights(quantizer.quantizers)
        self.codebooks = [codebook.clone() for codebook in self.codebooks]
        self.width = d = self.codebooks[0].shape[1]
        self.into = into.t().contiguous()  # (D, K * d)
        offsets = out_bias.cumsum(0) - out_bias  # (K, D): biases of the codebooks before each
        self.bias = (
            into_bias - (into.unflatten(0, (-1, d)) @ offsets[..., None]).flatten()
        )  # (K * d)
        mixed = -into @ out  # (K * d, K * d)
        self.mixed = [
            mixed[i * d : (i + 1) * d, : i * d].t().contiguous() for i in range(len(self.codebooks))
        ]
        self.directions = [F.normalize(codebook).t().contiguous() for codebook in self.codebooks]

    def __call__(self, latents: Tensor, n_quantizers: int) -> Tensor:
        """Codes (B, K, n) of latents (B, n, D) with the first K codebooks."""
        batch, steps = latents.shape[:2]
        d, width = self.width, n_quantizers * self.width
        rows = latents.float().flatten(0, 1)
        projected = torch.addmm(self.bias[:width], rows, self.into[:, :width])  # (B * n, K * d)
        entries = torch.empty_like(projected)
        codes = []
        for i in range(n_quantizers):
            here = projected.narrow(1, i * d, d)
            if i:
                here = torch.addmm(here, entries.narrow(1, 0, i * d), self.mixed[i])
            indices = (here @ self.directions[i]).argmax(dim=-1)
            entries.narrow(1, i * d, d).copy_(self.codebooks[i][indices])
            codes.append(indices)
        return torch.stack(codes).view(n_quantizers, batch, steps).transpose(0, 1)


class Lookup:
    """The way back of `DacResidualVectorQuantizer`, with its weights side by side."""

    def __init__(self, quantizer: DacResidualVectorQuantizer):
        _, out, _, out_bias, codebooks = quantizer._weights(quantizer.quantizers)
        self.entries = torch.cat(codebooks)  # (K * N, d)
        self.first = torch.arange(len(codebooks), device=out.device)[:, None] * len(codebooks[0])
        self.out = out.t().contiguous()  # (K * d, D)
        self.biases = out_bias.cumsum(0)  # (K, D)
        self.dtype = quantizer.quantizers[0].out_proj.weight.dtype

    def __call__(self, codes: Tensor) -> Tensor:
        """Codes (B, n, D) of codes (B, K, n)."""
        batch, codebooks, steps = codes.shape
        entries = self.entries[(codes + self.first[:codebooks]).transpose(1, 2)]  # (B, n, K, d)
        rows = entries.flatten(2).flatten(0, 1)
        latents = torch.addmm(self.biases[codebooks - 1], rows, self.out[: rows.shape[1]])
        return latents.unflatten(0, (batch, steps)).to(self.dtype)
