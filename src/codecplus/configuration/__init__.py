"""Configuration classes, and presets of every released and embedded architecture."""

import json
from pathlib import Path

from codecplus.errors import InputError, closest
from codecplus.modeling_dac import CausalDacConfig, DacConfig

_PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Return the names that `load_preset` takes."""
    return sorted(path.stem for path in _PRESETS.glob("*.json"))


def load_preset(name: str) -> DacConfig:
    """Return the configuration of an architecture; `DacModel(config)` has random weights.

    Raises:
        InputError: if there is no such preset; the message names similar ones.
    """
    names = preset_names()
    if name not in names:
        hint = closest(name, names)
        raise InputError(f"there is no preset {name!r}; did you mean {' or '.join(hint)}?")
    fields = json.loads((_PRESETS / f"{name}.json").read_text(encoding="utf-8"))
    if fields["model_type"] == CausalDacConfig.model_type:
        return CausalDacConfig.from_dict(fields)
    return DacConfig.from_dict(fields)


__all__ = ["CausalDacConfig", "DacConfig", "load_preset", "preset_names"]
