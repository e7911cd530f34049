"""Layers of a network as pure steps: inputs and a state in, outputs and the next state out.

They know tensors, and nothing of streams. Every convolution keeps the inputs that later outputs
depend on, and gives each output as soon as its last input is in. Before the first step and behind
the last one a layer sees zeros among its own inputs, as it does in one pass over everything.

Activations are (B, n, C), the channels together. Weights are copied into the layout of the products
when a layer is made; nothing is written afterwards, so threads may share layers.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalMemberAccess=false
# torch types every part of a module as "Tensor | Module": what is read off one is an error above.

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codecplus.acceleration.steps import (
    Bf16UnitStep,
    ConvolutionStep,
    UnitStep,
    takes_bf16_step,
    takes_step,
)
from codecplus.modeling_dac.layers_dac import (
    DacChain,
    DacConv1d,
    DacConvTranspose1d,
    DacResidualUnit,
    DacResidualVectorQuantizer,
    Snake1d,
    snake_in_passes,
    snake_reciprocal,
    weights_in_place,
)


class LayerState(NamedTuple):
    """The memory of one layer. It is never changed, only replaced."""

    position: int
    """Inputs taken so far."""
    tail: Tensor
    """The last of them (B, n, C), which outputs to come depend on."""
    skip: Tensor | None = None
    """Inputs (B, n, C) of a residual unit whose outputs are still to come."""

    def rows(self, rows: Sequence[int]) -> "LayerState":
        """Return the state of these rows of the batch alone."""
        skip = None
        if self.skip is not None:
            skip = self.skip[rows]
        return self._replace(tail=self.tail[rows], skip=skip)

    def zeroed(self, rows: Sequence[int]) -> "LayerState":
        """Return the state in which all inputs of these rows are forgotten."""
        tail = self.tail.clone()
        tail[rows] = 0
        return self._replace(tail=tail)


class Stateful(Protocol):
    """A part of a network that has a state."""

    def start(self, batch: int) -> LayerState:
        """Return the state before the first input."""
        ...


class Layer(Stateful, Protocol):
    """One layer of a network."""

    def step(
        self, x: Tensor, state: LayerState, last: bool, starts: Tensor | None
    ) -> tuple[Tensor, LayerState]:
        """Take inputs (B, n, C); return the outputs (B, m, C') that are ready, and the next state.

        With `last`, all outputs that are left come. Inputs of row b before frame `starts` (B,)[b]
        count as zero: they belong to the stream that this row carried before.
        """
        ...


def zero_before(x: Tensor, position: int, starts: Tensor | None) -> Tensor:
    """Zero the steps of x (B, n, C), which begins at `position`, that lie before `starts` (B,)."""
    if starts is None:
        return x
    steps = torch.arange(position, position + x.shape[1], device=x.device)
    return x.masked_fill((steps < starts[:, None])[..., None], 0)


def copy_from(x: Tensor, first: int) -> Tensor:
    """Copy x (B, n, C) from step `first` on.

    A view would keep all of x in memory, and in a pickle.
    """
    return x.narrow(1, first, x.shape[1] - first).clone()


class Snake:
    """`Snake1d` without gradients, with 1 / α computed once: (B, n, C) -> (B, n, C).

    It does not cut its inputs into blocks: those of a live step fit the cache.
    """

    def __init__(self, module: Snake1d):
        self.alpha = module.alpha.detach().float().flatten().clone()
        self.reciprocal = snake_reciprocal(self.alpha)

    def __call__(self, x: Tensor) -> Tensor:
        """Return a new tensor, in the dtype of x."""
        return snake_in_passes(x, self.alpha, self.reciprocal)


class Product(NamedTuple):
    """A convolution as a matrix product over windows of its input.

    The window of output t holds `kernel` inputs, `dilation` apart, from input t * stride - left on.
    It gives `phases` steps of C' channels each; of all steps, the first and last `crop` are no
    outputs of the layer.
    """

    matrix: Tensor  # (kernel * C, phases * C')
    bias: Tensor  # (phases * C',)
    kernel: int
    left: int
    right: int
    stride: int = 1
    dilation: int = 1
    phases: int = 1
    crop: int = 0

    @property
    def span(self) -> int:
        """Inputs from the first to the last of a window."""
        return (self.kernel - 1) * self.dilation + 1

    def __call__(self, inputs: Tensor, windows: int) -> Tensor:
        """Multiply the first windows of inputs (B, n, C): (B, windows * phases, C')."""
        batch, length, channels = inputs.shape
        if self.kernel > 1:
            inputs = inputs.as_strided(
                (batch, windows, self.kernel, channels),
                (length * channels, self.stride * channels, self.dilation * channels, 1),
            )
        rows = inputs.reshape(batch * windows, self.kernel * channels)
        y = torch.addmm(self.bias, rows, self.matrix)
        return y.view(batch, windows * self.phases, self.matrix.shape[1] // self.phases)


def product_of(conv: DacConv1d | DacConvTranspose1d) -> Product:
    """Return a convolution of the model as a product, with a copy of its weights in the dtype in
    which it computes.
    """
    with weights_in_place(conv):
        if isinstance(conv, DacConvTranspose1d):
            return _transposed_product(conv)
        dtype = conv.dtype_for(conv.weight.dtype)
        matrix = conv.weight.detach().permute(2, 1, 0).flatten(0, 1)  # (k * C, C')
        return Product(
            matrix=matrix.to(dtype).clone(memory_format=torch.contiguous_format),
            bias=conv.bias.detach().to(dtype).clone(),
            kernel=conv.kernel_size[0],
            left=conv.pads[0],
            right=conv.pads[1],
            stride=conv.stride[0],
            dilation=conv.dilation[0],
        )


def _transposed_product(conv: DacConvTranspose1d) -> Product:
    """Return a transposed convolution as one of kernel 2 whose windows give s steps each."""
    stride = conv.stride[0]
    matrix = conv.taps().permute(2, 0, 3, 1).flatten(0, 1).flatten(1)  # (2 * C, s * C')
    return Product(
        matrix=matrix.contiguous(),
        bias=conv.bias.detach().repeat(stride),
        kernel=2,
        left=conv.pads[0],
        right=conv.pads[1],
        phases=stride,
        crop=conv.crop,
    )


class PlainStep:
    """A convolution behind a snake, if there is one, in operators of torch."""

    def __init__(self, product: Product, snake: Snake | None):
        self.product = product
        self.snake = snake

    def __call__(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Take x (B, n, C) behind the inputs `tail` (B, left, C), which are snaked already.

        Returns the outputs (B, m, C') that are ready, and the tail of the next inputs.
        """
        product = self.product
        if self.snake is not None:
            x = self.snake(x)
        inputs = torch.cat([tail, x], dim=1)
        windows = max(0, (inputs.shape[1] - product.span) // product.stride + 1)
        return product(inputs, windows), copy_from(inputs, windows * product.stride)


class Convolution:
    """A convolution, plain or transposed, behind a snake if there is one."""

    def __init__(
        self,
        conv: DacConv1d | DacConvTranspose1d,
        snake: Snake1d | None,
        inputs_per_frame: int,
        kernels: bool,
    ):
        before = None if snake is None else Snake(snake)
        product = product_of(conv)
        self.run: PlainStep | ConvolutionStep = PlainStep(product, before)
        alpha = None if before is None else before.alpha
        if kernels and takes_step(product.matrix, alpha):
            self.run = ConvolutionStep(product, alpha)
        self.left, self.right, self.crop = product.left, product.right, product.crop
        self.inputs_per_frame = inputs_per_frame
        self.none = product.bias.new_zeros(0, 0, conv.in_channels)  # no inputs

    def start(self, batch: int) -> LayerState:
        """Return zeros to the left of the first input."""
        return LayerState(0, self.none.new_zeros(batch, self.left, self.none.shape[2]))

    def step(
        self, x: Tensor, state: LayerState, last: bool, starts: Tensor | None
    ) -> tuple[Tensor, LayerState]:
        """See `Layer`."""
        position = state.position + x.shape[1]
        if starts is not None:  # before the snake, which leaves zeros as they are
            x = zero_before(x, state.position, starts * self.inputs_per_frame)
        y, tail = self.run(self.padded(x.to(self.none.dtype), last), state.tail)
        if self.crop:
            first = 0
            end = y.shape[1]
            if state.position == 0:
                first = self.crop
            if last:
                end -= self.crop
            y = y[:, first:end]
        return y, LayerState(position, tail)

    def padded(self, x: Tensor, last: bool) -> Tensor:
        """Return x (B, n, C), behind the last of it the zeros that its windows need."""
        if last and self.right:
            return F.pad(x, (0, 0, 0, self.right))
        return x


class ResidualUnit:
    """`DacResidualUnit`; its inputs wait for the outputs they are added to."""

    def __init__(self, unit: DacResidualUnit, inputs_per_frame: int):
        self.conv1, self.conv2 = convolutions(unit.steps(), inputs_per_frame, unit.allow_kernels)
        self.fused: UnitStep | Bf16UnitStep | None = None
        first, second = self.conv1.run, self.conv2.run
        if isinstance(first, ConvolutionStep) and isinstance(second, ConvolutionStep):
            self.fused = UnitStep(first, second)
        elif unit.allow_kernels and takes_bf16_step(unit):
            self.fused = Bf16UnitStep(unit)

    def start(self, batch: int) -> LayerState:
        """Return the state of the dilated convolution; nothing waits before the first input."""
        state = self.conv1.start(batch)
        return state._replace(skip=copy_from(state.tail, state.tail.shape[1]))

    def step(
        self, x: Tensor, state: LayerState, last: bool, starts: Tensor | None
    ) -> tuple[Tensor, LayerState]:
        """See `Layer`."""
        waiting = x
        if state.skip.shape[1]:  # never in a causal net
            waiting = torch.cat([state.skip, x], dim=1)
        if self.fused is not None and starts is None:
            y, tail = self.fused(self.conv1.padded(x, last), state.tail, waiting)
            position = state.position + x.shape[1]
        else:
            y, (position, tail, _) = self.conv1.step(x, state, last, starts)
            y, _ = self.conv2.run(y, y[:, :0])  # pointwise: it has no state
            y = y.add_(waiting[:, : y.shape[1]])
        return y, LayerState(position, tail, copy_from(waiting, y.shape[1]))


class WholeFrames:
    """The end of a decoder: tanh, and samples (B, n, 1) held back until their frame is whole.

    With `held` false all come at once.
    """

    def __init__(self, hop_length: int, none: Tensor, held: bool = True):
        self.hop_length = hop_length
        self.held = held
        self.none = none  # a tensor of the dtype and device of samples

    def start(self, batch: int) -> LayerState:
        """Return the state in which no sample is held back."""
        return LayerState(0, self.none.new_zeros(batch, 0, 1))

    def step(
        self, x: Tensor, state: LayerState, last: bool, starts: Tensor | None
    ) -> tuple[Tensor, LayerState]:
        """See `Layer`; with `last`, the samples that odd strides lose at the end are zero."""
        x = torch.tanh(x)
        if starts is not None:
            x = zero_before(x, state.position, starts * self.hop_length)
        if not self.held:
            return x, state._replace(position=state.position + x.shape[1])
        samples = torch.cat([state.tail, x], dim=1)
        if last:
            samples = F.pad(samples, (0, 0, 0, -samples.shape[1] % self.hop_length))
        whole = samples.shape[1] // self.hop_length * self.hop_length
        tail = copy_from(samples, whole)
        return samples[:, :whole], LayerState(state.position + x.shape[1], tail)


def start(layers: Iterable[Stateful], batch: int) -> tuple[LayerState, ...]:
    """Return the states of layers that have seen nothing."""
    return tuple(layer.start(batch) for layer in layers)


def step(
    layers: Sequence[Layer],
    x: Tensor,
    states: Sequence[LayerState],
    last: bool,
    starts: Tensor | None,
) -> tuple[Tensor | None, tuple[LayerState, ...]]:
    """Take inputs (B, n, C) through the layers; return outputs (B, m, C') and the next states.

    The outputs are None where nothing reached the end: a short input may not fill one stride, and
    the layers behind it rest.
    """
    after = []
    for layer, state in zip(layers, states, strict=True):
        if not (x.shape[1] or last):
            return None, (*after, *states[len(after) :])
        x, state = layer.step(x, state, last, starts)
        after.append(state)
    return x, tuple(after)


def network_layers(
    network: DacChain, inputs_per_frame: int, whole_frames: bool = True
) -> list[Layer]:
    """Return the layers of an encoder or a decoder as steps, each with the snake before it.

    An encoder takes `hop_length` samples (B, n, 1) per frame, a decoder one latent (B, n, D). A
    decoder gives samples of whole frames, or those that are ready.
    """
    kernels = network.snake1.allow_kernels
    return convolutions(network.layers(), inputs_per_frame, kernels, whole_frames)


def convolutions(
    modules: Sequence[tuple[str, nn.Module]],
    inputs_per_frame: int,
    kernels: bool,
    whole_frames: bool = True,
) -> list:
    """Return modules in their order as layers; a snake goes with the layer behind it."""
    rate = inputs_per_frame
    layers = []
    snake = None
    for _, module in modules:
        if isinstance(module, Snake1d):
            snake = module
            continue
        if isinstance(module, DacResidualUnit):
            layers.append(ResidualUnit(module, rate))
        elif isinstance(module, nn.Tanh):
            layers.append(WholeFrames(rate, layers[-1].none, whole_frames))
        else:
            layers.append(Convolution(module, snake, rate, kernels))
            if isinstance(module, DacConvTranspose1d):
                rate *= module.stride[0]
            else:
                rate //= module.stride[0]
        snake = None
    return layers


class Lookup:
    """`DacResidualVectorQuantizer.from_codes`, with its weights side by side, in a dtype."""

    def __init__(self, quantizer: DacResidualVectorQuantizer, dtype: torch.dtype):
        weights = quantizer.weights()
        self.entries = torch.cat(weights.codebooks)  # (K * N, d)
        numbers = torch.arange(len(weights.codebooks), device=self.entries.device)
        self.first = numbers[:, None] * len(weights.codebooks[0])  # (K, 1)
        self.out = weights.out.t().contiguous()  # (K * d, D)
        self.biases = weights.out_bias.cumsum(0)  # (K, D)
        self.dtype = dtype

    def __call__(self, codes: Tensor) -> Tensor:
        """Return the quantized latents (B, n, D) of codes (B, K, n)."""
        batch, codebooks, steps = codes.shape
        entries = self.entries[(codes + self.first[:codebooks]).transpose(1, 2)]  # (B, n, K, d)
        rows = entries.flatten(2).flatten(0, 1)
        latents = torch.addmm(self.biases[codebooks - 1], rows, self.out[: rows.shape[1]])
        return latents.unflatten(0, (batch, steps)).to(self.dtype)
