"""A checkpoint or an export by its name, ready to run; and a model on another device."""

import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from codecplus.audio.mel import MelOptions
from codecplus.audio.sources import check_integer_rate
from codecplus.bitstream import EntropyModel
from codecplus.errors import CheckpointError, InputError
from codecplus.inference.entropy_models import read_entropy_models
from codecplus.inference.onnx_model import OnnxModel, find_export
from codecplus.inference.saving import SETTINGS
from codecplus.system.paths import PathLike

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LoadedModel:
    """A model, its fingerprint before it was cast, and the files beside it.

    `sample_rate` and `mel` are settings of a codec that was saved with some. Without
    `entropy_models` those of the embedded checkpoint with these weights hold.
    """

    model: Any  # a `DacModel`, a `PlainDac` or an export
    fingerprint: bytes | None
    entropy_models: list[EntropyModel] | None
    sample_rate: int | None = None
    mel: MelOptions | None = None


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
        if dtype not in (None, "auto") or revision is not None:
            raise InputError(
                "dtype and revision are for models in torch; an export has its precision, "
                "leave them out"
            )
        model = OnnxModel(*export, device=device)
        return LoadedModel(model, None, read_entropy_models(export[0].parent) or None)
    from codecplus.checkpoints import embedded_names, fingerprint
    from codecplus.checkpoints.remote import checkpoint_folder
    from codecplus.system.devices import check_dtype, resolve_device

    if str(name) in embedded_names() and revision is None:
        from codecplus.checkpoints import load_embedded

        model = load_embedded(str(name))
    else:
        from codecplus.checkpoints import load_model  # and transformers

        model = load_model(name, revision=revision)
    identity = fingerprint(model)  # before the cast: bf16 and fp32 are the same model
    if device is None:  # as transformers does: a process that forks later must not hold a GPU
        device = "cpu"
    device = resolve_device(device)
    if dtype == "auto":
        model.to(device=device)  # pyright: ignore[reportCallIssue]
        if _decodes_faster_in_bf16(device):
            model.decoder.bfloat16()
    else:
        model.to(device=device, dtype=check_dtype(dtype))  # pyright: ignore[reportCallIssue]
    # Only here. A model that a user brings may be in training, and fused optimizers take it that a
    # weight lies in memory as their own state does.
    model.lay_out_weights()
    settings = getattr(model.config, SETTINGS, None)
    sample_rate, mel = _settings(settings, name)
    entropy_models = read_entropy_models(checkpoint_folder(name, revision))
    if not entropy_models and (settings or {}).get("entropy_models") != []:
        entropy_models = None
    return LoadedModel(model, identity, entropy_models, sample_rate, mel)


def _decodes_faster_in_bf16(device: "torch.device") -> bool:
    """Return whether models decode faster in bf16 than in fp32 on a device.

    Processors without instructions for it are slower, and so are layers without kernels.
    """
    from codecplus.kernels import processor_flags, usable_set
    from codecplus.system.devices import multiplies_bf16

    if device.type != "cpu":
        return multiplies_bf16(device, ())
    target = usable_set()
    return target is not None and target.bf16 and multiplies_bf16(device, processor_flags())


def full_model(model: Any) -> Any:
    """Return the `DacModel` with the weights of a `PlainDac`, in the same memory; others as is."""
    if not hasattr(model, "synthesize") or hasattr(model, "save_pretrained"):
        return model
    from codecplus.checkpoints import load_model

    full = load_model(model.name)
    full.load_state_dict(model.state_dict(), assign=True)
    return full.allow_kernels(model.encoder.snake1.allow_kernels)


def move_model(model: Any, device: Any = None, dtype: Any = None) -> None:
    """Move a model to a device, cast it to a dtype, or both; a dtype may come in the first place.

    Raises InputError for a device or dtype that cannot be had, and for an exported model.
    """
    if hasattr(model, "encode_blocks"):
        raise InputError(
            "an exported codec computes where it was loaded, in the precision of the export; "
            "load it again with another device"
        )
    from codecplus.system.devices import DTYPES, check_dtype, resolve_device

    name = str(device)
    if dtype is None and (name in DTYPES or name.startswith("torch.")):
        device, dtype = None, device
    changes: dict[str, Any] = {}
    if device is not None:
        changes["device"] = resolve_device(device)
    if dtype is not None:
        changes["dtype"] = check_dtype(dtype)
    model.to(**changes)


def compile_model(model: Any) -> None:
    """Use compiled layers; see `DacModel.compile_layers`. Raises InputError where it fails."""
    compile_layers = getattr(model, "compile_layers", None)
    if compile_layers is None:
        raise InputError(
            "expected a codec of a torch model to compile; this one runs in another runtime"
        )
    try:
        compile_layers()
    except RuntimeError as error:
        raise InputError(str(error)) from error


def network_of(model: Any) -> Any:
    """Return the `Network` of a model: an exported one is a network already.

    Raises InputError for what is no model of codecplus.
    """
    if hasattr(model, "encode_blocks"):
        return model
    if isinstance(model, type) or not hasattr(model, "folded_state_dict"):
        raise InputError(f"expected a DacModel of codecplus, got {_what_to_give(model)}")
    from codecplus.inference.torch_network import TorchNetwork

    return TorchNetwork(model)


def _what_to_give(other: Any) -> str:
    """Name what is no model, and say how a codec is made of it."""
    if isinstance(other, type):
        return f"the class {other.__name__}; give a model, such as one of its from_pretrained"
    kind = type(other).__name__
    if isinstance(other, str | os.PathLike):
        return f"a name; load_codec({str(other)!r}) loads a codec"
    if hasattr(getattr(other, "module", None), "folded_state_dict"):
        return f"{kind}; give its module"
    if hasattr(other, "encoder_stream"):
        return "a codec; give its model, or use it as it is"
    if getattr(getattr(other, "config", None), "model_type", None) == "dac":
        return (
            f"the {kind} of {type(other).__module__.partition('.')[0]}; "
            "save it by save_pretrained(folder), and load_codec(folder) loads a codec"
        )
    return f"{kind}; load_codec(name) loads a codec"


def _settings(settings: Any, name: PathLike) -> tuple[int | None, MelOptions | None]:
    """Return rate and spectrogram of a saved codec, None for defaults."""
    if settings is None:
        return None, None
    known = {field.name for field in fields(MelOptions)}
    try:
        rate = settings.get("sample_rate")
        if rate is not None:
            rate = check_integer_rate(rate)
        sizes = settings.get("mel")
        if sizes is None:
            return rate, None
        if not all(value is None or type(value) is int for value in sizes.values()):
            raise InputError(f"expected sizes of a spectrogram as integers, got {sizes}")
        return rate, MelOptions(**{key: sizes[key] for key in known & sizes.keys()})
    except (AttributeError, InputError) as error:
        raise CheckpointError(
            f"the settings of the codec {name} in its config.json are damaged: {error}"
        ) from error
