"""What a user configures: the configuration classes, and presets of every released and embedded
architecture.
"""

import json
from pathlib import Path

from codecplus.errors import InputError, closest
from codecplus.modeling_dac import CausalDacConfig, DacConfig

_PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Names that `load_preset` knows."""
    return sorted(path.stem for path in _PRESETS.glob("*.json"))


def load_preset(name: str) -> DacConfig:
    """The architecture of that name, as a configuration with which to build a model of random
    weights.

    Raises:
        InputError: if there is no such preset; the message names the nearest.
    """
    if name not in preset_names():
        hint = closest(name, preset_names())
        raise InputError(f"there is no preset {name!r}; did you mean {' or '.join(hint)}?")
    fields = json.loads((_PRESETS / f"{name}.json").read_text())
    return (CausalDacConfig if fields["model_type"] == "causal_dac" else DacConfig).from_dict(
        fields
    )


__all__ = ["CausalDacConfig", "DacConfig", "load_preset", "preset_names"]
