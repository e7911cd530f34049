"""Encoder and decoder of a DAC as ONNX graphs: audio to codes, codes to audio.

They know the layers of `modeling_dac` and write them in plain operators. Every convolution is a
`Conv`, so that all of them can be quantized; a transposed one of kernel 2s and stride s is a `Conv`
of kernel 2 with s times the channels, and a reshape. Audio is an image one pixel high, (B, C, 1,
T), because runtimes have their fastest kernels, and phones their only ones, for images.

A stateful graph of a causal net has one more input `state` (B, N) with the last inputs of its
convolutions, zeros at the start, and one more output with the next state. It pads nothing and
computes nothing twice.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false
# torch types every part of a module as "Tensor | Module".

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from codecplus.acceleration.plain import check_plain
from codecplus.export.gains import channels_to_audio, gains_to_channels
from codecplus.export.graph import Graph
from codecplus.modeling_dac import DacModel
from codecplus.modeling_dac.layers_dac import (
    CodebookSearch,
    DacConv1d,
    DacConvTranspose1d,
    DacResidualUnit,
    Snake1d,
    snake_reciprocal,
    weights_in_place,
)
from codecplus.streaming.layers import Lookup

_ELEMENT_TYPES = {"float32": 1, "float16": 10}  # in ONNX


class NetworkGraph:
    """A graph to which layers of the model are added. Values are (B, C, 1, T)."""

    def __init__(self, name: str, dtype: str, stateful: bool):
        self.graph = Graph(name)
        self.dtype = dtype
        self.state: str | None = None
        if stateful:
            self.state = "state"
        self.tails: list[str] = []  # parts of the next state, layer by layer
        self.state_size = 0

    def weight(self, tensor: torch.Tensor, name: str) -> str:
        """Add a weight in the precision of the graph."""
        return self.graph.constant(_numpy(tensor).astype(self.dtype), name)

    def numbers(self, *values: int) -> str:
        """Add integers that an operator takes as an input."""
        return self.graph.constant(np.array(values, np.int64), "numbers")

    def widened(self, x: str) -> str:
        """Cast a value of the graph's precision to fp32."""
        return self._cast(x, "float32")

    def narrowed(self, x: str) -> str:
        """Cast an fp32 value to the precision of the graph."""
        return self._cast(x, self.dtype)

    def _cast(self, x: str, dtype: str) -> str:
        if self.dtype == "float32":
            return x
        return self.graph.op("Cast", x, to=_ELEMENT_TYPES[dtype])

    def layers(self, x: str, layers: Sequence[tuple[str, nn.Module]], name: str) -> str:
        """Add layers in the order in which they run, under their names behind `name`."""
        for part, module in layers:
            x = self.layer(x, module, f"{name}.{part}")
        return x

    def layer(self, x: str, module: nn.Module, name: str) -> str:
        """Add one layer of an encoder or decoder."""
        if isinstance(module, Snake1d):
            return self.snake(x, module, name)
        if isinstance(module, DacConv1d):
            return self.convolution(x, module, name)
        if isinstance(module, DacConvTranspose1d):
            return self.transposed_convolution(x, module, name)
        if isinstance(module, DacResidualUnit):
            return self.graph.op("Add", x, self.layers(x, module.steps(), name))
        if isinstance(module, nn.Tanh):  # the end: audio is fp32, as its convolution gave it
            return self.graph.op("Tanh", x)
        raise AssertionError(f"{name} is a {type(module).__name__}, which no graph has")

    @contextmanager
    def full_precision(self):
        """Compute in fp32 what is added meanwhile, whatever the graph's precision is."""
        dtype, self.dtype = self.dtype, "float32"
        try:
            yield
        finally:
            self.dtype = dtype

    def snake(self, x: str, module: Snake1d, name: str) -> str:
        """Add a snake, always in fp32: 1e-9 is zero in fp16."""
        graph = self.graph
        alpha = graph.constant(_numpy(module.alpha)[..., None], f"{name}.alpha")  # (1, C, 1, 1)
        x = self.widened(x)
        sine = graph.op("Sin", graph.op("Mul", x, alpha))
        square = graph.op("Mul", sine, sine)
        reciprocal = _numpy(snake_reciprocal(module.alpha))[..., None]
        square = graph.op("Mul", square, graph.constant(reciprocal, f"{name}.reciprocal"))
        return self.narrowed(graph.op("Add", x, square))

    def convolution(self, x: str, conv: DacConv1d, name: str) -> str:
        """Add a convolution, (B, C, 1, T) -> (B, C', 1, T / stride)."""
        if conv.dtype_for(torch.float16) == torch.float32 and self.dtype != "float32":
            x = self.widened(x)
            with self.full_precision():
                return self.convolution(x, conv, name)
        with weights_in_place(conv):
            weight = self.weight(conv.weight[:, :, None], f"{name}.weight")
            bias = self.weight(conv.bias, f"{name}.bias")
        x, pads = self.padded(x, conv.in_channels, conv.pads)
        return self.graph.op(
            "Conv",
            x,
            weight,
            bias,
            name=name,
            kernel_shape=[1, conv.kernel_size[0]],
            strides=[1, conv.stride[0]],
            dilations=[1, conv.dilation[0]],
            pads=pads,
        )

    def transposed_convolution(self, x: str, conv: DacConvTranspose1d, name: str) -> str:
        """Add a transposed convolution, (B, C, 1, T) -> (B, C', 1, s * T), as one of kernel 2.

        With an odd stride s it gives one step less, unless it is causal.
        """
        graph = self.graph
        stride = conv.stride[0]
        with weights_in_place(conv):
            matrix = conv.taps().permute(1, 3, 0, 2).flatten(0, 1)  # (C' * s, C, 2)
            weight = self.weight(matrix[:, :, None], f"{name}.weight")
            bias = self.weight(conv.bias.detach().repeat_interleave(stride), f"{name}.bias")
        x, pads = self.padded(x, conv.in_channels, conv.pads)
        y = graph.op(
            "Conv",
            x,
            weight,
            bias,
            name=name,
            kernel_shape=[1, 2],
            strides=[1, 1],
            dilations=[1, 1],
            pads=pads,
        )
        y = graph.op("Reshape", y, self.numbers(0, conv.out_channels, stride, -1))  # (B, C', s, T')
        y = graph.op("Transpose", y, perm=[0, 1, 3, 2])
        y = graph.op("Reshape", y, self.numbers(0, conv.out_channels, 1, -1))
        if not conv.crop:
            return y
        first = self.numbers(conv.crop)
        end = self.numbers(-conv.crop)
        return graph.op("Slice", y, first, end, self.numbers(3))

    def padded(self, x: str, channels: int, pads: tuple[int, int]) -> tuple[str, list[int]]:
        """Return the input of a convolution, and the padding that its operator has to add.

        In a stateful graph the state's last steps come before x: (B, C, 1, left + T).
        """
        left, right = pads
        if self.state is None or not left:
            return x, [0, left, 0, right]
        return self.behind_state(x, channels, left), [0, 0, 0, 0]

    def behind_zeros(self, x: str, channels: int, left: int) -> str:
        """Return x with `left` steps before it: of the state, or zeros if there is none."""
        if self.state is None:
            return self.graph.op("Pad", x, self.numbers(0, 0, 0, left, 0, 0, 0, 0))
        return self.behind_state(x, channels, left)

    def behind_state(self, x: str, channels: int, left: int) -> str:
        """Return x (B, C, 1, left + T) with the state's last steps before it."""
        assert self.state is not None
        graph = self.graph
        size = channels * left
        start = self.state_size
        self.state_size += size
        bounds = (self.numbers(start), self.numbers(start + size), self.numbers(1))
        past = graph.op("Slice", self.state, *bounds)
        past = graph.op("Reshape", past, self.numbers(0, channels, 1, left))
        x = graph.op("Concat", self.narrowed(past), x, axis=3)
        to_the_end = (self.numbers(-left), self.numbers(np.iinfo(np.int64).max), self.numbers(3))
        tail = graph.op("Slice", x, *to_the_end)
        tail = graph.op("Reshape", tail, self.numbers(0, size))
        self.tails.append(self.widened(tail))
        return x

    def finish(self, metadata: dict[str, str]) -> Any:
        """Return the ONNX model, with its state if it has one."""
        if self.state is not None:
            shape = ["batch", self.state_size]
            state = self.graph.op("Concat", *self.tails, axis=1)
            self.graph.output(state, "next_state", "float32", shape)
            self.graph.input(self.state, "float32", shape)
        return self.graph.model(metadata)


def encoder_graph(
    model: DacModel, metadata: dict[str, str], dtype: str = "float32", stateful: bool = False
) -> Any:
    """Return an ONNX model from `audio` to `codes`.

    `audio` is (B, 1, S), S a multiple of the hop; `codes` are (B, K, S / hop) of all K codebooks,
    int64. The codes of k codebooks are the first k rows.
    """
    network = NetworkGraph("encoder", dtype, stateful)
    graph = network.graph
    audio = graph.input("audio", "float32", ["batch", 1, "samples"])
    audio = graph.op("Unsqueeze", audio, network.numbers(2))
    x = network.layers(network.narrowed(audio), model.encoder.layers(), "encoder")
    latents = network.widened(x)
    gains = model.decoder.gains
    if gains is not None:
        if model.decoder.unheard:
            first = network.numbers(0), network.numbers(model.config.waveform_size)
            latents = graph.op("Slice", latents, *first, network.numbers(1))
        decoded = _waveform(network, model, network.narrowed(latents))
        with network.full_precision():
            channels = gains_to_channels(network, gains, audio, decoded)
        latents = graph.op("Concat", latents, channels, axis=1)
    x = graph.op("Squeeze", latents, network.numbers(2))
    shape = ["batch", model.config.n_codebooks, "frames"]
    graph.output(_search(network, x, model), "codes", "int64", shape)
    return network.finish(metadata)


def _search(network: NetworkGraph, latents: str, model: DacModel) -> str:
    """Add the search of codes (B, K, T) for latents (B, D, T), in fp32, like `CodebookSearch`."""
    graph = network.graph
    with torch.no_grad():
        search = CodebookSearch(check_plain(model.quantizer), model.config.n_codebooks)
    d = search.width

    def constant(tensor: torch.Tensor, name: str) -> str:
        return graph.constant(_numpy(tensor), f"quantizer.{name}")

    frames = graph.op("Transpose", latents, perm=[0, 2, 1])  # (B, T, D)
    projected = graph.op("MatMul", frames, constant(search.into.t(), "into"))
    projected = graph.op("Add", projected, constant(torch.cat(search.biases), "bias"))
    codes = []
    entries = []
    for i, codebook in enumerate(search.codebooks):
        start = network.numbers(i * d)
        end = network.numbers((i + 1) * d)
        point = graph.op("Slice", projected, start, end, network.numbers(2))  # (B, T, d)
        if i:
            coarser = entries[0]
            if i > 1:
                coarser = graph.op("Concat", *entries, axis=2)
            mixed = graph.op("MatMul", coarser, constant(-search.mixed[i], f"{i}.mixed"))
            point = graph.op("Add", point, mixed)
        similarity = graph.op("MatMul", point, constant(search.directions[i], f"{i}.directions"))
        index = graph.op("ArgMax", similarity, axis=2, keepdims=0)  # (B, T)
        codes.append(graph.op("Unsqueeze", index, network.numbers(1)))
        if i + 1 < len(search.codebooks):
            entries.append(graph.op("Gather", constant(codebook, f"{i}.codebook"), index, axis=0))
    return graph.op("Concat", *codes, axis=1)


def decoder_graph(
    model: DacModel, metadata: dict[str, str], dtype: str = "float32", stateful: bool = False
) -> Any:
    """Return an ONNX model from `codes` to `audio`.

    `codes` are (B, k, T) of the first k codebooks, int64; `audio` is (B, 1, hop * T). A frame may
    lack its finest codebooks: their codes are -1.
    """
    network = NetworkGraph("decoder", dtype, stateful)
    graph = network.graph
    codes = graph.input("codes", "int64", ["batch", "codebooks", "frames"])
    latents = graph.op("Unsqueeze", _lookup(network, codes, model), network.numbers(2))
    gains = model.decoder.gains
    if gains is None:
        x = _waveform(network, model, network.narrowed(latents))
    else:
        sizes = network.numbers(model.config.waveform_size, gains.size)
        latents, channels = graph.op("Split", latents, sizes, outputs=2, axis=1)
        x = _waveform(network, model, network.narrowed(latents))
        with network.full_precision():
            x = channels_to_audio(network, gains, channels, x)
    x = graph.op("Squeeze", x, network.numbers(2))
    # Odd strides give fewer samples than whole frames have.
    missing = model.config.hop_length - model.decoder.output_length(1)
    if missing:
        x = graph.op("Pad", x, network.numbers(0, 0, 0, 0, 0, missing))
    graph.output(x, "audio", "float32", ["batch", 1, "samples"])
    return network.finish(metadata)


def _waveform(network: NetworkGraph, model: DacModel, x: str) -> str:
    """Add what `DacDecoder.waveform` makes of latents (B, D, 1, T)."""
    unheard = model.decoder.unheard
    if unheard:
        x = network.graph.op("Pad", x, network.numbers(0, 0, 0, 0, 0, unheard, 0, 0))
    return network.layers(x, model.decoder.layers(), "decoder")


def _lookup(network: NetworkGraph, codes: str, model: DacModel) -> str:
    """Add the latents (B, D, T) of codes (B, k, T), in fp32; a code of -1 adds nothing."""
    graph = network.graph
    table = Lookup(check_plain(model.quantizer), model.decoding_dtype)
    entries = _numpy(table.entries)
    out = _numpy(table.out)
    sums = _numpy(table.biases)  # of the first k codebooks
    biases = np.diff(sums, axis=0, prepend=np.zeros_like(sums[:1]))  # of each codebook, (K, D)
    first = graph.constant(table.first.cpu().numpy(), "quantizer.first")  # (K, 1)
    zero = network.numbers(0)
    used = graph.op("Slice", graph.op("Shape", codes), network.numbers(1), network.numbers(2))
    width = graph.op("Mul", used, network.numbers(model.config.codebook_dim))
    present = graph.op("Cast", graph.op("GreaterOrEqual", codes, zero), to=1)
    present = graph.op("Transpose", present, perm=[0, 2, 1])  # (B, T, k)
    rows = graph.op("Add", graph.op("Max", codes, zero), graph.op("Slice", first, zero, used))
    rows = graph.op("Transpose", rows, perm=[0, 2, 1])
    picked = graph.constant(entries, "quantizer.entries")
    picked = graph.op("Gather", picked, rows, axis=0)  # (B, T, k, d)
    picked = graph.op("Mul", picked, graph.op("Unsqueeze", present, network.numbers(3)))
    shape = graph.op("Concat", network.numbers(0, 0), width, axis=0)
    picked = graph.op("Reshape", picked, shape)  # (B, T, k * d)
    matrix = graph.op("Slice", graph.constant(out, "quantizer.out"), zero, width)
    bias = graph.op("Slice", graph.constant(biases, "quantizer.biases"), zero, used)
    without_bias = graph.op("MatMul", picked, matrix)
    latents = graph.op("Add", without_bias, graph.op("MatMul", present, bias))  # (B, T, D)
    return graph.op("Transpose", latents, perm=[0, 2, 1])


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor in fp32 as an array."""
    return tensor.detach().float().cpu().numpy()


__all__ = ["decoder_graph", "encoder_graph"]
