"""From a name, a path or a Hub id to a model: which of them it is, and what is wrong when it is none."""

import difflib
import hashlib
import os
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig

from ..errors import CheckpointError
from ..modeling_dac import CausalDacConfig, CausalDacModel, DacConfig, DacModel
from .official import fold_weight_norm, read_official

EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
_CLASSES = {DacConfig.model_type: DacModel, CausalDacConfig.model_type: CausalDacModel}


def embedded_names() -> list[str]:
    """Names of the checkpoints that the package brings along."""
    return sorted(path.parent.name for path in EMBEDDED_FOLDER.glob("*/config.json"))


def load_model(name: str | os.PathLike[str], *, revision: str | None = None) -> DacModel:
    """Load a DAC in fp32 on the CPU, from wherever `name` points.

    Args:
        name: an embedded name (`"dac-44khz-small"`), a folder written by `save_pretrained` (ours or transformers'), a
            `.safetensors` file with its `config.json` beside it, a `.pth` of the original implementation, or the id of
            a repository on the Hub (`"descript/dac_44khz"`). Looked up in this order, never guessed.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        CheckpointError: if there is no such checkpoint, or it cannot be read, or is no DAC.
    """
    path = Path(name)
    if str(name) in embedded_names():
        return _load_pretrained(EMBEDDED_FOLDER / str(name))
    if path.is_dir():
        return _load_pretrained(path)
    if path.suffix in (".pth", ".pt"):
        return read_official(path)
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.exists():
        raise CheckpointError(f"expected a folder, a .safetensors or a .pth file, got {path}")
    parts = str(name).split("/")
    if len(parts) == 2 and all(parts) and not str(name).startswith((".", "~")):
        return _load_pretrained(str(name), revision=revision)
    hint = difflib.get_close_matches(str(name), embedded_names(), n=1) or embedded_names()
    raise CheckpointError(
        f"there is no checkpoint {str(name)!r}; give {' or '.join(hint)}, an existing path, or a Hub id like "
        "descript/dac_44khz"
    )


def _load_pretrained(source: str | Path, **kwargs) -> DacModel:
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    try:
        # PreTrainedConfig, not AutoConfig: "dac" there means transformers' own class.
        fields, _ = PreTrainedConfig.get_config_dict(source, **kwargs)
    except Exception as error:
        raise CheckpointError(
            f"cannot find a model at {str(source)!r}: {_first_line(error)}; give an existing folder, or check the Hub "
            "id, the revision, your login and the network"
        ) from error
    if fields.get("model_type") not in _CLASSES:
        raise CheckpointError(
            f"{source} holds a model of type {fields.get('model_type')!r}; expected {' or '.join(map(repr, _CLASSES))}"
        )
    try:
        cls = _CLASSES[fields["model_type"]]
        model, report = cls.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **kwargs)
    except Exception as error:
        raise CheckpointError(f"cannot load the model at {str(source)!r}: {_first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers only warns, and goes on with random weights.
        raise CheckpointError(
            f"the weights at {str(source)!r} lack {len(missing)} tensors of this model, {missing[0]} among them; "
            "the configuration and the weights do not belong together"
        )
    return model.eval()


def _load_safetensors(path: Path) -> DacModel:
    config = path.with_name("config.json")
    if not path.is_file() or not config.is_file():
        raise CheckpointError(f"expected {path.name} and config.json side by side in {path.parent}, one is missing")
    fields, _ = PreTrainedConfig.get_config_dict(path.parent)
    cls = _CLASSES.get(fields.get("model_type", ""))
    if cls is None:
        raise CheckpointError(f"{config} describes a model of type {fields.get('model_type')!r}, expected a DAC")
    try:
        with safe_open(path, framework="pt") as file:
            state = fold_weight_norm({key: file.get_tensor(key).float() for key in file.keys()})  # noqa: SIM118
        model = cls(cls.config_class.from_dict(fields))
        model.load_state_dict(state)
    except Exception as error:
        raise CheckpointError(f"cannot load {path}: {_first_line(error)}") from error
    return model.eval()


def fingerprint(model: DacModel) -> bytes:
    """16 bytes that tell models apart: the same for the same weights in fp32 and bf16, another after any training.

    A SHA-256 over the geometry and up to 1024 evenly spaced elements of every tensor, rounded to bf16.
    """
    digest = hashlib.sha256()
    config = model.config
    digest.update(repr((config.model_type, config.sampling_rate, list(config.downsampling_ratios))).encode())
    for name, tensor in sorted(model.folded_state_dict().items()):
        flat = tensor.detach().flatten()
        sample = flat[:: -(-flat.numel() // 1024)].to(torch.bfloat16).cpu()
        digest.update(name.encode() + repr(tuple(tensor.shape)).encode() + sample.view(torch.int16).numpy().tobytes())
    return digest.digest()[:16]


@cache
def embedded_fingerprints() -> dict[bytes, str]:
    """Fingerprint -> name of every embedded checkpoint, to say which one made a file."""
    return {fingerprint(load_model(name)): name for name in embedded_names()}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
