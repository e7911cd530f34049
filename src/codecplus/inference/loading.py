"""A checkpoint or an export by its name, ready to run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codecplus.bitstream import EntropyModel
from codecplus.errors import InputError
from codecplus.inference.entropy_models import read_entropy_models
from codecplus.inference.onnx_model import OnnxModel, find_export
from codecplus.system.paths import PathLike

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LoadedModel:
    """A model, its fingerprint before it was cast, and the entropy models that lie beside it."""

    model: Any
    fingerprint: bytes | None
    entropy_models: list[EntropyModel] | None


def load_network(
    name: PathLike,
    *,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype | None" = None,
    revision: str | None = None,
) -> LoadedModel:
    """Load a model for inference; arguments and errors are those of `load_codec`."""
    export = find_export(name)
    if export is not None:
        if dtype is not None or revision is not None:
            raise InputError(
                "dtype and revision are for models in torch; an export has its precision, "
                "leave them out"
            )
        model = OnnxModel(*export, device=device)
        return LoadedModel(model, None, read_entropy_models(export[0].parent) or None)
    from codecplus.checkpoints import fingerprint, load_model
    from codecplus.system.devices import check_dtype, resolve_device

    model = load_model(name, revision=revision)
    path = Path(model.config._name_or_path or name)  # of a repository, its folder in the cache
    folder = path if path.is_dir() else path.parent
    identity = fingerprint(model)  # before the cast: bf16 and fp32 are the same model
    model.to(device=resolve_device(device or "cpu"), dtype=check_dtype(dtype))  # pyright: ignore[reportCallIssue]
    return LoadedModel(model, identity, read_entropy_models(folder) or None)


def network_of(model: Any) -> Any:
    """The `Network` of a model: an exported one is a network already."""
    if hasattr(model, "encode_blocks"):
        return model
    from codecplus.inference.torch_network import TorchNetwork

    return TorchNetwork(model)
