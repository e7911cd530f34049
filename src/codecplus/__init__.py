"""codecplus: DAC, the Descript Audio Codec, for those who compress, stream, train on, or compare
audio.

>>> from codecplus import load_codec
>>> codec = load_codec("dac")
>>> codec.compress("input.wav", "output.dacp", bitrate=6.0)  # doctest: +SKIP
"""

from typing import TYPE_CHECKING

from codecplus._auto_classes import register_when_imported
from codecplus._lazy import lazy_names
from codecplus._version import __version__

if TYPE_CHECKING:
    from codecplus.codec import Codec, Codes, CompressionOptions, load_codec
    from codecplus.modeling_dac import (
        CausalDacConfig,
        CausalDacModel,
        DacConfig,
        DacFeatureExtractor,
        DacModel,
    )

# Loaded when first used, so that `import codecplus` and the command line's --help need no torch.
__getattr__ = lazy_names(
    __name__,
    {
        "Codec": "codec",
        "Codes": "codec",
        "CompressionOptions": "codec",
        "load_codec": "codec",
        "CausalDacConfig": "modeling_dac",
        "CausalDacModel": "modeling_dac",
        "DacConfig": "modeling_dac",
        "DacFeatureExtractor": "modeling_dac",
        "DacModel": "modeling_dac",
    },
)

register_when_imported()


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "CausalDacConfig",
    "CausalDacModel",
    "Codec",
    "Codes",
    "CompressionOptions",
    "DacConfig",
    "DacFeatureExtractor",
    "DacModel",
    "__version__",
    "load_codec",
]
