"""Loads a model by a name, a path or a Hub id, or says why it cannot."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from codecplus.checkpoints.identity import (
    EMBEDDED_FOLDER,
    WEIGHTS_DISTRIBUTION,
    embedded_names,
)
from codecplus.checkpoints.official import fold_weight_norm, read_official
from codecplus.checkpoints.remote import fetch_checkpoint, is_hub_id
from codecplus.checkpoints.untrusted import check_elements, check_file, check_folder, read_config
from codecplus.errors import CheckpointError, InputError, closest, first_line
from codecplus.modeling_dac import CausalDacConfig, CausalDacModel, DacConfig, DacModel

_CLASSES = {DacConfig.model_type: DacModel, CausalDacConfig.model_type: CausalDacModel}


def load_model(name: str | os.PathLike[str], *, revision: str | None = None) -> DacModel:
    """Load a DAC in fp32 on the CPU, from wherever `name` points.

    Args:
        name: an embedded name (`"dac-44khz-small"`), a folder written by `save_pretrained` (ours or
            transformers'), a `.safetensors` file with its `config.json` beside it, a `.pth` of the
            original implementation, or the id of a repository on the Hub (`"descript/dac_44khz"`).
            Looked up in this order, never guessed.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        CheckpointError: if there is no such checkpoint, or it cannot be read, or is no DAC.
        InputError: for a revision where `name` is no repository.
    """
    path = Path(name)
    if revision is not None and (str(name) in embedded_names() or path.exists()):
        raise InputError(
            f"revision (={revision!r}) is for a repository on the Hub; {name} is none, leave it out"
        )
    if str(name) in embedded_names():
        return _load_pretrained(EMBEDDED_FOLDER / str(name), str(name))
    if path.is_dir():
        return _load_pretrained(path)
    if path.suffix in (".pth", ".pt"):
        return read_official(path)
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.exists():
        raise CheckpointError(f"expected a folder, a .safetensors or a .pth file, got {path}")
    if is_hub_id(str(name)):
        return _load_pretrained(fetch_checkpoint(str(name), revision), str(name))
    if not embedded_names():
        raise CheckpointError(
            f"there is no checkpoint {str(name)!r}, and the embedded ones are not installed; run "
            f"`pip install {WEIGHTS_DISTRIBUTION}`, or give an existing path or a Hub id like "
            "descript/dac_44khz"
        )
    hint = closest(str(name), embedded_names())
    raise CheckpointError(
        f"there is no checkpoint {str(name)!r}; give {' or '.join(hint)}, an existing path, or a "
        "Hub id like descript/dac_44khz"
    )


def _load_pretrained(folder: Path, source: str | None = None) -> DacModel:
    """Load a folder; `source` is its name in messages and in the model, by default its path."""
    source = source or str(folder)
    if not (folder / "config.json").exists() and not (folder / "config.json").is_symlink():
        raise CheckpointError(
            f"cannot find a model at {source!r}; expected a folder with a config.json"
        )
    fields = check_folder(folder)
    if fields.get("model_type") not in _CLASSES:
        raise CheckpointError(
            f"{source} holds a model of type {fields.get('model_type')!r}; expected "
            f"{' or '.join(map(repr, _CLASSES))}"
        )
    try:
        cls = _CLASSES[fields["model_type"]]
        _check_elements(cls, fields, sorted(folder.glob("model*.safetensors")), source)
        model, report = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"cannot load the model at {source!r}: {first_line(error)}"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers only warns, and goes on with random weights.
        reason = "the configuration and the weights do not belong together"
        if all(name.startswith("decoder.gains.") for name in missing):
            reason = (
                "transformers' own class drops those of band gains when it saves a model; "
                "save it by codecplus"
            )
        raise CheckpointError(
            f"the weights at {source!r} lack {len(missing)} tensors of this model, {missing[0]} "
            f"among them; {reason}"
        )
    model.name_or_path = source
    model.config.name_or_path = source
    return model.eval()


def _load_safetensors(path: Path) -> DacModel:
    config = path.with_name("config.json")
    if not path.is_file() or not config.is_file():
        raise CheckpointError(
            f"expected {path.name} and config.json side by side in {path.parent}, one is missing"
        )
    check_file(path, None)
    fields = read_config(config)
    cls = _CLASSES.get(fields.get("model_type", ""))
    if cls is None:
        raise CheckpointError(
            f"{config} describes a model of type {fields.get('model_type')!r}, expected a DAC"
        )
    try:
        _check_elements(cls, fields, [path], str(path))
        with safe_open(path, framework="pt") as file:
            state = fold_weight_norm({key: file.get_tensor(key).float() for key in file.keys()})  # noqa: SIM118
        model = cls(cls.config_class.from_dict(fields))
        model.config._name_or_path = str(path)  # not what the file says, which may be anywhere
        model.load_state_dict(state)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"cannot load {path}: {first_line(error)}") from error
    return model.eval()


def _check_elements(
    cls: type[DacModel], fields: dict[str, Any], weights: list[Path], source: str
) -> None:
    """Raise CheckpointError if the configuration describes a far larger network than the weights.

    Nothing is allocated for it: transformers would fill what is missing with random numbers.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weights:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                shapes[key] = tuple(file.get_slice(key).get_shape())
    config = cls.config_class.from_dict(dict(fields))  # pyright: ignore[reportOptionalMemberAccess]
    with torch.device("meta"):
        model = cls(config)  # pyright: ignore[reportArgumentType]
    check_elements(sum(parameter.numel() for parameter in model.parameters()), shapes, source)
