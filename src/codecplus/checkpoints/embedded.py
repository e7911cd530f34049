"""Loads an embedded checkpoint without transformers, whose import takes seconds."""

import json
from dataclasses import fields

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from codecplus.checkpoints.identity import EMBEDDED_FOLDER, WEIGHTS_DISTRIBUTION
from codecplus.errors import CheckpointError
from codecplus.modeling_dac import PlainDac, PlainDacConfig


def load_embedded(name: str) -> PlainDac:
    """Load an embedded checkpoint in fp32 on the CPU, for inference.

    `load_model` gives a `DacModel` with the same weights. Raises CheckpointError for a damaged one.
    """
    folder = EMBEDDED_FOLDER / name
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        known = {field.name for field in fields(PlainDacConfig)}
        config = PlainDacConfig(**{key: settings[key] for key in known & settings.keys()})
        state = load_file(folder / "model.safetensors")
        with torch.device("meta"), _NoInitialization():
            network = PlainDac(config)
        network.load_state_dict({key: x.float() for key, x in state.items()}, assign=True)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the embedded checkpoint {name} in {folder} is damaged; reinstall "
            f"{WEIGHTS_DISTRIBUTION}: {error}"
        ) from error
    network.name = name
    return network.eval()


class _NoInitialization(TorchFunctionMode):
    """Leaves weights as they are allocated: random numbers on `meta` would import torch._dynamo."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))
