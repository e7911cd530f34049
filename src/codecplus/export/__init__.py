"""Export of models to other runtimes."""

from typing import TYPE_CHECKING

from codecplus._lazy import lazy_names

if TYPE_CHECKING:
    from codecplus.export.onnx import export_onnx

__getattr__ = lazy_names(
    __name__, {"export_onnx": "onnx"}
)  # the command line imports this package for its help

__all__ = ["export_onnx"]
