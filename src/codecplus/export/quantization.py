"""Quantizes the convolutions of a graph to int8. It knows ONNX graphs, nothing of layers.

Weights have a scale per channel, activations static ranges from real audio. The first and the last
convolution of a graph compute in fp32 from int8 weights: they touch audio and latents, whose range
is wider than 8 bits, and are a small part of the work.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.errors import MissingExtraError
from codecplus.export.calibration import segments
from codecplus.inference.onnx_model import ExportInfo, OnnxModel

try:
    import onnx
    from onnx import helper, numpy_helper
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
except ImportError as error:
    raise MissingExtraError(
        "int8 needs onnx and onnxruntime; install them with: pip install 'codecplus[export]'"
    ) from error


def quantize(
    encoder: Any, decoder: Any, info: ExportInfo, recordings: Iterable[np.ndarray]
) -> list[Any]:
    """Return both graphs in int8.

    Args:
        encoder, decoder: the graphs in fp32.
        info: the metadata of both.
        recordings: audio (S,) at the model's rate, on which the ranges of activations are found.

    Raises:
        InputError: without a second of audio that is not silent.
    """
    pieces = segments(recordings, info.sampling_rate, info.hop_length)
    with tempfile.TemporaryDirectory() as folder:
        encoder_path = Path(folder) / "encoder.onnx"
        decoder_path = Path(folder) / "decoder.onnx"
        onnx.save(encoder, encoder_path)
        onnx.save(decoder, decoder_path)
        model = OnnxModel(encoder_path, decoder_path)
        encoder_inputs = []
        decoder_inputs = []
        for piece in pieces:
            audio = piece[None]  # (1, S)
            codes = np.concatenate(list(model.encode_blocks([audio], info.n_codebooks)), axis=-1)
            encoder_inputs.append(_inputs(model._encoder, info, audio=audio[:, None]))
            decoder_inputs.append(_inputs(model._decoder, info, codes=codes.astype(np.int64)))
        with _without_warnings():
            return [
                _quantize(encoder_path, encoder_inputs),
                _quantize(decoder_path, decoder_inputs),
            ]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence onnxruntime's advice to prepare the graph: it is for graphs that were traced."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _inputs(session: Any, info: ExportInfo, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Return the inputs of one run, with a state of zeros if the graph has a state."""
    if info.stateful:
        size = next(value.shape[1] for value in session.get_inputs() if value.name == "state")
        inputs["state"] = np.zeros((1, size), np.float32)
    return inputs


class _Reader(CalibrationDataReader):
    def __init__(self, inputs: list[dict[str, np.ndarray]]):
        self._inputs = iter(inputs)

    def get_next(self):
        """Return the inputs of the next run, None at the end."""
        return next(self._inputs, None)


# The first and the last convolution of a network, which lose most.
_ENDS = {f"{half}.conv{i}" for half in ("encoder", "decoder") for i in (1, 2)}


def _quantize(path: Path, inputs: list[dict[str, np.ndarray]]) -> Any:
    target = path.with_suffix(".int8.onnx")
    convolutions = [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    ends = [name for name in convolutions if name in _ENDS]
    gains = [name for name in convolutions if ".gains." in name]  # small, and of decibels
    quantize_static(
        path,
        target,
        _Reader(inputs),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=ends + gains,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # The mean of the extremes of each recording: with the extremes of all, the live checkpoint
        # kept 71 instead of 75 % of the first codebook's codes; the 99.99th percentile kept 79 %,
        # in many times the memory.
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"CalibMovingAverage": True},
    )
    model = onnx.load(target)
    _quantize_weights(model.graph, ends)
    return model


def _quantize_weights(graph: Any, names: list[str]) -> None:
    """Store the weights of these convolutions in int8, per channel; they still compute in fp32."""
    weights = {weight.name: weight for weight in graph.initializer}
    for node in list(graph.node):
        if node.name not in names:
            continue
        weight = weights[node.input[1]]
        array = numpy_helper.to_array(weight)
        scale = np.maximum(np.abs(array).max(axis=(1, 2, 3)), 1e-12).astype(np.float32) / 127
        integers = np.rint(array / scale[:, None, None, None]).astype(np.int8)
        arrays = {
            f"{weight.name}_quantized": integers,
            f"{weight.name}_scale": scale,
            f"{weight.name}_zero_point": np.zeros(len(scale), np.int8),
        }
        graph.initializer.remove(weight)
        for name, values in arrays.items():
            graph.initializer.append(numpy_helper.from_array(values, name))
        dequantize = helper.make_node(
            "DequantizeLinear",
            list(arrays),
            [weight.name],
            name=f"{weight.name}_dequantize",
            axis=0,
        )
        graph.node.insert(0, dequantize)


__all__ = ["quantize"]
