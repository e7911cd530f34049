"""The model, as the Hub receives it: configuration, layers, models and feature extractor."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .configuration_dac import CausalDacConfig, DacConfig
    from .feature_extraction_dac import CausalDacFeatureExtractor, DacFeatureExtractor
    from .modeling_dac import CausalDacModel, DacModel
    from .network_dac import DacNetwork, PlainDac
    from .sizes_dac import PlainDacConfig

# Imported when first used: transformers' `AutoConfig` needs configurations alone, without torch,
# and `PlainDac` needs no transformers.
# `codecplus._lazy` does the same, but this folder imports nothing of the package.
_HOMES = {
    "CausalDacConfig": "configuration_dac",
    "CausalDacFeatureExtractor": "feature_extraction_dac",
    "CausalDacModel": "modeling_dac",
    "DacConfig": "configuration_dac",
    "DacFeatureExtractor": "feature_extraction_dac",
    "DacModel": "modeling_dac",
    "DacNetwork": "network_dac",
    "PlainDac": "network_dac",
    "PlainDacConfig": "sizes_dac",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


__all__ = [
    "CausalDacConfig",
    "CausalDacFeatureExtractor",
    "CausalDacModel",
    "DacConfig",
    "DacFeatureExtractor",
    "DacModel",
    "DacNetwork",
    "PlainDac",
    "PlainDacConfig",
]
