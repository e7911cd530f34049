"""Audio datasets to code datasets, and helpers for models that read codes.

>>> from codecplus import load_codec
>>> from codecplus.tokenizing import tokenize
>>> tokenize("recordings", load_codec("dac-16khz-live"), "codes")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING

from codecplus._lazy import lazy_names

if TYPE_CHECKING:
    from codecplus.tokenizing.decoding import detokenize, row_codes
    from codecplus.tokenizing.job import Coding, tokenize
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

__getattr__ = lazy_names(
    __name__,
    {
        "Coding": "job",
        "delay": "patterns",
        "detokenize": "decoding",
        "row_codes": "decoding",
        "flatten": "patterns",
        "offset": "patterns",
        "tokenize": "job",
        "undelay": "patterns",
        "unflatten": "patterns",
        "unoffset": "patterns",
        "unwrap": "patterns",
        "wrap": "patterns",
    },
)
__all__ = [
    "Coding",
    "delay",
    "detokenize",
    "flatten",
    "offset",
    "row_codes",
    "tokenize",
    "undelay",
    "unflatten",
    "unoffset",
    "unwrap",
    "wrap",
]
