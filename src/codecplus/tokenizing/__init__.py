"""Audio datasets to code datasets, and helpers for models that read codes.

from codecplus.tokenizing import tokenize

tokenize("recordings", load_codec("dac-16khz-live"), "codes")
"""

from typing import TYPE_CHECKING

from codecplus._lazy import lazy_names

if TYPE_CHECKING:
    from codecplus.tokenizing.decoding import detokenize, row_codes
    from codecplus.tokenizing.patterns import (
        delay,
        flatten,
        offset,
        undelay,
        unflatten,
        unoffset,
        unwrap,
        wrap,
    )
    from codecplus.tokenizing.runner import Coding, tokenize
    from codecplus.tokenizing.sources import open_source

__getattr__ = lazy_names(
    __name__,
    {
        "Coding": "runner",
        "delay": "patterns",
        "detokenize": "decoding",
        "row_codes": "decoding",
        "flatten": "patterns",
        "offset": "patterns",
        "open_source": "sources",
        "tokenize": "runner",
        "undelay": "patterns",
        "unflatten": "patterns",
        "unoffset": "patterns",
        "unwrap": "patterns",
        "wrap": "patterns",
    },
)
__all__ = [
    "Coding", "delay", "detokenize", "flatten", "offset", "open_source", "row_codes", "tokenize", "undelay",
    "unflatten", "unoffset", "unwrap", "wrap",
]  # fmt: skip
