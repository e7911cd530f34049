"""The two halves of a DAC as ONNX graphs: audio to codes, codes to audio.

Both are the network of `modeling_dac` in plain operators: every convolution is a `Conv`, the
transposed ones too (kernel 2s and stride s is kernel 2 with s times the channels, and a reshape),
so that all of them can be quantized alike. Audio passes as an image one pixel high, (B, C, 1, T),
because runtimes have their fast kernels, and phones their only ones, for images.

A stateful graph, of a causal net, takes what its convolutions remember as one more input `state`
(B, N), zeros at the start, and gives the next one as an output: nothing is padded, and nothing is
computed twice.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false
# torch types every part of a module as "Tensor | Module".

import numpy as np
import torch

from codecplus.export.graph import Graph
from codecplus.modeling_dac import DacModel
from codecplus.modeling_dac.layers_dac import (
    DacConv1d,
    DacConvTranspose1d,
    DacResidualUnit,
    Snake1d,
    weights_in_place,
)
from codecplus.streaming.layers import Lookup, Search


class _Half:
    """What the graphs of encoder and decoder share. Values are (B, C, 1, T)."""

    def __init__(self, name: str, dtype: str, stateful: bool):
        self.graph = Graph(name)
        self.dtype = np.dtype(dtype)
        self.stateful = stateful
        self.state: str | None = None
        self.tails: list[str] = []  # the next state, layer by layer
        self.state_size = 0

    def weight(self, tensor: torch.Tensor, name: str) -> str:
        """A weight in the precision of the graph."""
        return self.graph.constant(tensor.detach().float().cpu().numpy().astype(self.dtype), name)

    def numbers(self, *values: int) -> str:
        """Integers that an operator takes as an input."""
        return self.graph.constant(np.array(values, np.int64), "numbers")

    def cast(self, x: str, dtype: str) -> str:
        """The same in another precision."""
        return self.graph.op("Cast", x, to={"float32": 1, "float16": 10}[dtype])

    def snake(self, x: str, module: Snake1d, name: str) -> str:
        """x + sin²(αx) / α, in fp32 whatever the rest is: 1e-9 is zero in fp16."""
        graph, half = self.graph, self.dtype != np.float32
        alpha = module.alpha.detach().float().cpu().numpy()[..., None]  # (1, C, 1, 1)
        reciprocal = (1 / (alpha + np.float32(1e-9))).astype(np.float32)
        x = self.cast(x, "float32") if half else x
        sine = graph.op("Sin", graph.op("Mul", x, graph.constant(alpha, f"{name}.alpha")))
        square = graph.op(
            "Mul", graph.op("Mul", sine, sine), graph.constant(reciprocal, f"{name}.reciprocal")
        )
        y = graph.op("Add", x, square)
        return self.cast(y, "float16") if half else y

    def padded(self, x: str, channels: int, left: int) -> str:
        """x behind the last `left` steps of what came before, which are remembered: (B, C, 1, left
        + T).
        """
        graph, size = self.graph, channels * left
        start, self.state_size = self.state_size, self.state_size + size
        past = graph.op(
            "Slice", self.state, self.numbers(start), self.numbers(start + size), self.numbers(1)
        )
        past = graph.op("Reshape", past, self.numbers(0, channels, 1, left))
        past = past if self.dtype == np.float32 else self.cast(past, "float16")
        x = graph.op("Concat", past, x, axis=3)
        tail = graph.op(
            "Slice", x, self.numbers(-left), self.numbers(np.iinfo(np.int64).max), self.numbers(3)
        )
        tail = graph.op("Reshape", tail, self.numbers(0, size))
        self.tails.append(tail if self.dtype == np.float32 else self.cast(tail, "float32"))
        return x

    def convolution(self, x: str, conv: DacConv1d, name: str) -> str:
        """A plain convolution, (B, C, 1, T) -> (B, C', 1, T / stride)."""
        with weights_in_place(conv):
            weight, bias = (
                self.weight(conv.weight[:, :, None], f"{name}.weight"),
                self.weight(conv.bias, f"{name}.bias"),
            )
        pads = list(conv.pads)
        if conv.stride[0] == 1:  # as many outputs as inputs, also of an even kernel
            pads[1] = (conv.kernel_size[0] - 1) * conv.dilation[0] - pads[0]
        if self.stateful and pads[0]:
            x, pads = self.padded(x, conv.in_channels, pads[0]), [0, 0]
        return self.conv(
            x, weight, bias, name, pads, conv.kernel_size[0], conv.stride[0], conv.dilation[0]
        )

    def conv(
        self, x, weight, bias, name: str, pads, kernel: int, stride: int = 1, dilation: int = 1
    ) -> str:
        """The operator itself."""
        return self.graph.op(
            "Conv", x, weight, bias, name=name, kernel_shape=[1, kernel], strides=[1, stride],
            dilations=[1, dilation], pads=[0, pads[0], 0, pads[1]],
        )  # fmt: skip

    def transposed(self, x: str, conv: DacConvTranspose1d, name: str) -> str:
        """A transposed convolution, (B, C, 1, T) -> (B, C', 1, s * T), one less for an odd s unless
        causal.
        """
        graph, stride = self.graph, conv.stride[0]
        with weights_in_place(conv):
            taps = (
                conv.weight.detach().unflatten(2, (2, stride)).flip(2)
            )  # (C, C', 2, s), the earlier input first
            matrix = taps.permute(1, 3, 0, 2).flatten(0, 1)[:, :, None]  # (C' * s, C, 1, 2)
            weight = self.weight(matrix, f"{name}.weight")
            bias = self.weight(conv.bias.detach().repeat_interleave(stride), f"{name}.bias")
        pads = [1, 0 if conv.causal else 1]
        if self.stateful:
            x, pads = self.padded(x, conv.in_channels, 1), [0, 0]
        y = self.conv(x, weight, bias, name, pads, kernel=2)
        y = graph.op("Reshape", y, self.numbers(0, conv.out_channels, stride, -1))  # (B, C', s, T')
        y = graph.op("Transpose", y, perm=[0, 1, 3, 2])
        y = graph.op("Reshape", y, self.numbers(0, conv.out_channels, 1, -1))
        if conv.causal:
            return y
        crop = conv.padding[0]
        return graph.op("Slice", y, self.numbers(crop), self.numbers(-crop), self.numbers(3))

    def residual_unit(self, x: str, unit: DacResidualUnit, name: str) -> str:
        """Snake, dilated convolution, snake, pointwise convolution, added to the input."""
        y = self.convolution(
            self.snake(x, unit.snake1, f"{name}.snake1"), unit.conv1, f"{name}.conv1"
        )
        y = self.convolution(
            self.snake(y, unit.snake2, f"{name}.snake2"), unit.conv2, f"{name}.conv2"
        )
        return self.graph.op("Add", x, y)

    def residual_units(self, x: str, block, name: str) -> str:
        """The three of a block."""
        for unit in ("res_unit1", "res_unit2", "res_unit3"):
            x = self.residual_unit(x, getattr(block, unit), f"{name}.{unit}")
        return x

    def finish(self, metadata: dict[str, str]):
        """The model, with its state if it has one."""
        if self.stateful:
            state = self.graph.op("Concat", *self.tails, axis=1)
            self.graph.output(state, "next_state", "float32", ["batch", self.state_size])
            self.graph.input("state", "float32", ["batch", self.state_size])
        return self.graph.model(metadata)


def encoder_graph(
    model: DacModel, metadata: dict[str, str], dtype: str = "float32", stateful: bool = False
):
    """`audio` (B, 1, S), S a multiple of the hop, to `codes` (B, K, S / hop) of all K codebooks,
    int64.

    The first k codebooks of these are what a search in k codebooks finds: take a slice.
    """
    half = _Half("encoder", dtype, stateful)
    graph, encoder = half.graph, model.encoder
    half.state = "state" if stateful else None
    x = graph.input("audio", "float32", ["batch", 1, "samples"])
    x = graph.op("Unsqueeze", x, half.numbers(2))
    x = x if dtype == "float32" else half.cast(x, dtype)
    x = half.convolution(x, encoder.conv1, "encoder.conv1")
    for i, block in enumerate(encoder.block):
        name = f"encoder.block.{i}"
        x = half.residual_units(x, block, name)
        x = half.convolution(
            half.snake(x, block.snake1, f"{name}.snake1"), block.conv1, f"{name}.conv1"
        )
    x = half.convolution(
        half.snake(x, encoder.snake1, "encoder.snake1"), encoder.conv2, "encoder.conv2"
    )
    x = graph.op("Squeeze", x if dtype == "float32" else half.cast(x, "float32"), half.numbers(2))
    graph.output(
        _search(half, x, model), "codes", "int64", ["batch", model.config.n_codebooks, "frames"]
    )
    return half.finish(metadata)


def _search(half: _Half, latents: str, model: DacModel) -> str:
    """The codes (B, K, T) of latents (B, D, T), in fp32; as `streaming.layers.Search` finds them."""
    graph, search, d = half.graph, Search(model.quantizer), model.config.codebook_dim

    def constant(tensor: torch.Tensor, name: str) -> str:
        return graph.constant(tensor.detach().float().cpu().numpy(), f"quantizer.{name}")

    rows = graph.op("Transpose", latents, perm=[0, 2, 1])  # (B, T, D)
    projected = graph.op(
        "Add",
        graph.op("MatMul", rows, constant(search.into, "into")),
        constant(search.bias, "bias"),
    )
    codes, entries = [], []
    for i, codebook in enumerate(search.codebooks):
        bounds = half.numbers(i * d), half.numbers((i + 1) * d), half.numbers(2)
        here = graph.op("Slice", projected, *bounds)  # (B, T, d)
        if i:
            before = graph.op("Concat", *entries, axis=2) if i > 1 else entries[0]
            here = graph.op(
                "Add", here, graph.op("MatMul", before, constant(search.mixed[i], f"{i}.mixed"))
            )
        similarity = graph.op("MatMul", here, constant(search.directions[i], f"{i}.directions"))
        index = graph.op("ArgMax", similarity, axis=2, keepdims=0)  # (B, T)
        codes.append(graph.op("Unsqueeze", index, half.numbers(1)))
        if i + 1 < len(search.codebooks):
            entries.append(graph.op("Gather", constant(codebook, f"{i}.codebook"), index, axis=0))
    return graph.op("Concat", *codes, axis=1)


def decoder_graph(
    model: DacModel, metadata: dict[str, str], dtype: str = "float32", stateful: bool = False
):
    """`codes` (B, k, T) of the first k codebooks, int64, to `audio` (B, 1, hop * T).

    A frame may lack its finest codebooks: their codes are -1.
    """
    half = _Half("decoder", dtype, stateful)
    graph, decoder, config = half.graph, model.decoder, model.config
    half.state = "state" if stateful else None
    x = _lookup(half, graph.input("codes", "int64", ["batch", "codebooks", "frames"]), model)
    x = graph.op("Unsqueeze", x, half.numbers(2))
    x = x if dtype == "float32" else half.cast(x, dtype)
    x = half.convolution(x, decoder.conv1, "decoder.conv1")
    for i, block in enumerate(decoder.block):
        name = f"decoder.block.{i}"
        x = half.transposed(
            half.snake(x, block.snake1, f"{name}.snake1"), block.conv_t1, f"{name}.conv_t1"
        )
        x = half.residual_units(x, block, name)
    x = half.convolution(
        half.snake(x, decoder.snake1, "decoder.snake1"), decoder.conv2, "decoder.conv2"
    )
    x = graph.op("Tanh", x if dtype == "float32" else half.cast(x, "float32"))
    x = graph.op("Squeeze", x, half.numbers(2))
    missing = config.hop_length - decoder.output_length(1)  # what odd strides lose at the end
    if missing:
        x = graph.op("Pad", x, half.numbers(0, 0, 0, 0, 0, missing))
    graph.output(x, "audio", "float32", ["batch", 1, "samples"])
    return half.finish(metadata)


def _lookup(half: _Half, codes: str, model: DacModel) -> str:
    """Codes (B, D, T) of codes (B, k, T), in fp32; where a code is -1, a frame lacks that codebook."""
    graph, table, d = half.graph, Lookup(model.quantizer), model.config.codebook_dim
    entries, out, biases = (
        t.detach().float().cpu().numpy() for t in (table.entries, table.out, table.biases)
    )
    biases = np.diff(biases, axis=0, prepend=np.zeros_like(biases[:1]))  # of each codebook, (K, D)
    first = graph.constant(table.first.cpu().numpy(), "quantizer.first")  # (K, 1)
    zero, used = (
        half.numbers(0),
        graph.op("Slice", graph.op("Shape", codes), half.numbers(1), half.numbers(2)),
    )  # [k]
    width = graph.op("Mul", used, half.numbers(d))
    there = graph.op("Cast", graph.op("GreaterOrEqual", codes, zero), to=1)
    there = graph.op("Transpose", there, perm=[0, 2, 1])  # (B, T, k)
    rows = graph.op("Add", graph.op("Max", codes, zero), graph.op("Slice", first, zero, used))
    rows = graph.op("Transpose", rows, perm=[0, 2, 1])
    picked = graph.op(
        "Gather", graph.constant(entries, "quantizer.entries"), rows, axis=0
    )  # (B, T, k, d)
    picked = graph.op("Mul", picked, graph.op("Unsqueeze", there, half.numbers(3)))
    picked = graph.op(
        "Reshape", picked, graph.op("Concat", half.numbers(0, 0), width, axis=0)
    )  # (B, T, k * d)
    matrix = graph.op("Slice", graph.constant(out, "quantizer.out"), zero, width)
    bias = graph.op("Slice", graph.constant(biases, "quantizer.biases"), zero, used)
    latents = graph.op(
        "Add", graph.op("MatMul", picked, matrix), graph.op("MatMul", there, bias)
    )  # (B, T, D)
    return graph.op("Transpose", latents, perm=[0, 2, 1])


__all__ = ["decoder_graph", "encoder_graph"]
