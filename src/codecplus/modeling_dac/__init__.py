"""The model, as the Hub receives it: configuration, layers, models and feature extractor;
registered on import.
"""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from .configuration_dac import CausalDacConfig, DacConfig
from .feature_extraction_dac import DacFeatureExtractor
from .modeling_dac import CausalDacModel, DacModel

# A plain DAC keeps the model type "dac", for which transformers has a class of its own: saving
# writes `auto_map` and the code beside the weights, so that `trust_remote_code=True` gives ours.
for _class, _auto in (
    (DacConfig, "AutoConfig"),
    (CausalDacConfig, "AutoConfig"),
    (DacModel, "AutoModel"),
    (CausalDacModel, "AutoModel"),
    (DacFeatureExtractor, "AutoFeatureExtractor"),
):
    _class.register_for_auto_class(_auto)

AutoConfig.register(CausalDacConfig.model_type, CausalDacConfig, exist_ok=True)
AutoModel.register(CausalDacConfig, CausalDacModel, exist_ok=True)
AutoFeatureExtractor.register(CausalDacConfig, DacFeatureExtractor, exist_ok=True)

__all__ = ["CausalDacConfig", "CausalDacModel", "DacConfig", "DacFeatureExtractor", "DacModel"]
