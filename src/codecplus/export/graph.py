"""Writes ONNX graphs, node by node. It knows ONNX and nothing of audio.

A graph of few, plain operators runs in every runtime and can be quantized. A traced model could
not: its own layers are written for matrix products in torch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from codecplus.errors import MissingExtraError

try:
    import onnx
    from onnx import helper, numpy_helper
except ImportError as error:
    raise MissingExtraError(
        "exporting needs onnx; install it with: pip install 'codecplus[export]'"
    ) from error

# Read by onnxruntime from 1.13 on, and by the runtimes for phones.
_OPSET = 17
_IR_VERSION = 8
_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "int64": onnx.TensorProto.INT64,
}


class Graph:
    """A graph that grows by one operator at a time; values are named by strings."""

    def __init__(self, name: str):
        self.name = name
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._used: dict[str, int] = {}

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Add an input and return its name; an axis named by a string may have any length."""
        self.inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], shape))
        return name

    def output(self, value: str, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Make a value an output of this name."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"output_{name}"))
        self.outputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], shape))

    def constant(self, array: Any, name: str = "constant") -> str:
        """Add a constant and return its name, which gets a number if it is taken."""
        name = self._fresh(name)
        self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def op(
        self, kind: str, *inputs: str, name: str | None = None, outputs: int = 1, **attributes: Any
    ) -> Any:
        """Add an operator; return the name of its output, or a list of names if it has several."""
        name = self._fresh(name or kind.lower())
        if outputs == 1:
            self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
            return name
        names = [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        return names

    def model(self, metadata: dict[str, str]) -> "onnx.ModelProto":
        """Return the graph as an ONNX model with this metadata."""
        graph = helper.make_graph(
            self.nodes, self.name, self.inputs, self.outputs, list(self.weights.values())
        )
        model = helper.make_model(
            graph,
            producer_name="codecplus",
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
        )
        helper.set_model_props(model, metadata)
        return model

    def _fresh(self, name: str) -> str:
        count = self._used.get(name, 0)
        self._used[name] = count + 1
        if count:
            return f"{name}_{count}"
        return name


__all__ = ["Graph"]
