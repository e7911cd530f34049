"""What the harness asks of a codec: audio to bytes and back. Knows nothing of any codec, data set
or metric.

A third party adds a codec with one class and one entry point:

    [project.entry-points."codecplus.codecs"]
    mycodec = "mypackage:MyCodec"

The entry point is called with a target bit rate in kbit/s per channel, or None, and returns a
`Codec`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class Payload:
    """One encoded clip: the bytes that are stored, and how many of their bits are not container."""

    data: bytes  # all that `decode` is given
    bits: int  # of `data`, without headers and checksums; at most 8 · len(data)
    codes: np.ndarray | None = None  # (K, T) integers, for the use of the codebooks
    codebook_size: int | None = None


@dataclass(frozen=True)
class Original:
    """What a decoder is told beside the bytes, as any container would: the shape and rate to
    return.
    """

    channels: int
    samples: int
    sample_rate: int


@runtime_checkable
class Codec(Protocol):
    """A codec at one setting. Two optional attributes: `latency` in seconds, `nominal_kbps` per
    channel.
    """

    name: str  # names the row, for example opus@6

    def config(self) -> dict[str, Any]:
        """All that the output depends on, as plain data; the cache key is its hash."""
        ...

    def encode(self, audio: np.ndarray, sample_rate: int) -> Payload:
        """Encode float32 (C, S)."""
        ...

    def decode(self, data: bytes, original: Original) -> np.ndarray:
        """Decode to float32 (C, S), of exactly the channels, samples and rate of the original."""
        ...


def codec_hash(codec: Codec) -> str:
    """A short stable hash of everything the codec's output depends on."""
    text = json.dumps({"name": codec.name, **codec.config()}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def row_name(family: str, kbps: float | None) -> str:
    """The name of a codec at a rate.

    >>> row_name("opus", 6.0)
    'opus@6'
    """
    return family if kbps is None else f"{family}@{kbps:g}"
