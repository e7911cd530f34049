"""Checks of a checkpoint's files before any of them is loaded. Knows files and sizes, not torch.

A checkpoint of a stranger may hold anything under any name: pipes, links that lead nowhere, numbers
that ask for all the memory there is. Each is one CheckpointError here, before it costs anything.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codecplus.errors import CheckpointError

MAX_CONFIG_SIZE = 1 << 20  # bytes; real ones have a thousand
MAX_ENTROPY_SIZE = 1 << 28
_MAX_INDEX_SIZE = 1 << 24
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SPARE_ELEMENTS = 1 << 20  # that a network may have beyond those in its file
# What makes transformers import packages, or fetch compiled code from the Hub, while it loads.
_NAMES_CODE = (
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
    "quantization_config",
)


def check_folder(folder: Path) -> dict[str, Any]:
    """Check the files of a checkpoint's folder, and return its configuration.

    Raises CheckpointError for pipes and links under these names, for shards outside the folder, for
    an adapter, and for a configuration that `read_config` refuses.
    """
    config = read_config(folder / "config.json")
    if _lexists(folder / "adapter_config.json"):
        # transformers would take the weights from wherever this file says.
        raise CheckpointError(
            f"expected a whole checkpoint in {folder}, got one with an adapter of PEFT, whose base "
            "may be another; merge it with merge_and_unload(), and save that"
        )
    for name in _WEIGHTS:
        if _lexists(folder / name):
            check_file(folder / name, None)
    index = folder / "model.safetensors.index.json"
    if _lexists(index):
        shards = read_json(index, _MAX_INDEX_SIZE).get("weight_map")
        if not isinstance(shards, dict):
            raise CheckpointError(f"expected an object weight_map in {index}, got {_name(shards)}")
        for shard in set(map(str, shards.values())):
            if Path(shard).name != shard:
                raise CheckpointError(
                    f"expected weights beside {index.name}, got {shard[:100]!r}; "
                    "do not load this checkpoint"
                )
            check_file(folder / shard, None)
    return config


def check_file(path: Path, max_size: int | None) -> None:
    """Raise CheckpointError unless a path is a file of at most `max_size` bytes."""
    if not path.is_file():
        kind = "a pipe, a device or a link that leads nowhere"
        if path.is_dir():
            kind = "a folder"
        elif not _lexists(path):
            kind = "nothing"
        raise CheckpointError(f"expected a file at {path}, got {kind}")
    if max_size is not None and path.stat().st_size > max_size:
        raise CheckpointError(
            f"expected at most {max_size} bytes in {path}, got {path.stat().st_size}"
        )


def read_json(path: Path, max_size: int = MAX_CONFIG_SIZE) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError for anything else."""
    check_file(path, max_size)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:100]
        raise CheckpointError(f"expected JSON in {path}, got something else: {reason}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"expected a JSON object in {path}, got {_name(value)}")
    return value


def read_config(path: Path) -> dict[str, Any]:
    """Read the configuration of a model. Raises CheckpointError for anything else, and for one that
    names code to run.

    Whether its sizes are possible is known to the class of the configuration.
    """
    config = read_json(path)
    model_type = config.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise CheckpointError(f"expected a text as model_type in {path}, got {_name(model_type)}")
    for name in _NAMES_CODE:
        if config.get(name) not in (None, "eager"):
            raise CheckpointError(
                f"expected no {name} in {path}, got {str(config[name])[:100]!r}, for which "
                "transformers may fetch and run other code; remove it if you trust the rest"
            )
    return config


def check_elements(wanted: int, held: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise CheckpointError if a network is far larger than the weights that it is read from.

    Args:
        wanted: elements of the network.
        held: shapes of the tensors in the file, by their names.
        where: the name of the file in a message.
    """
    present = sum(math.prod(shape) for shape in held.values())
    if wanted > 2 * present + _SPARE_ELEMENTS:
        raise CheckpointError(
            f"expected weights for the {wanted} numbers of the network that the configuration at "
            f"{where} describes, got {present}; the two do not belong together"
        )


def _name(value: Any) -> str:
    return type(value).__name__


def _lexists(path: Path) -> bool:
    return path.is_symlink() or path.exists()
