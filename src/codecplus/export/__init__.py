"""Export of models to other runtimes."""

from typing import TYPE_CHECKING

from codecplus._lazy import lazy_names

if TYPE_CHECKING:
    from codecplus.export.onnx import export_onnx

PRECISIONS = ("fp32", "fp16", "int8")
"""Precisions of the weights of an exported model."""

# Lazy, because onnx and torch are slow to import.
__getattr__ = lazy_names(__name__, {"export_onnx": "onnx"})

__all__ = ["PRECISIONS", "export_onnx"]
