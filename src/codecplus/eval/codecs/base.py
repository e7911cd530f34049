"""What the harness asks of a codec: audio to bytes and back. It knows no codec, data set or metric.

An adapter is a class and a decorator. It is called with a target rate in kbit/s per channel, or
None for its own default:

    @codec_adapter("mycodec")
    class MyCodec:
        ...

A package that is installed beside this one registers its adapters as entry points instead:

    [project.entry-points."codecplus.codecs"]
    mycodec = "mypackage:MyCodec"
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from codecplus.checkpoints.remote import is_hub_id


@dataclass(frozen=True)
class Payload:
    """One encoded clip.

    Attributes:
        data: the bytes that are stored, which is all that `decode` is given.
        bits: how many bits of `data` are neither headers nor checksums; at most 8 · len(data).
    """

    data: bytes
    bits: int


@dataclass(frozen=True)
class Original:
    """The shape and rate to return, which a decoder is told as any container would tell it."""

    channels: int
    samples: int
    sample_rate: int


@runtime_checkable
class CodecAdapter(Protocol):
    """A codec at one setting.

    These are optional:

    - `latency` in seconds; `nominal_kbps` per channel; `homepage`, an address for readers.
    - `codes(data)` returns the codes inside the bytes and the size of a codebook, or None. They are
      (K, T), or a list of arrays where codebooks have several frame rates. It is called after
      `decode`, outside the time that is measured.
    - `complexity()` returns `parameters` and `operations_per_second` of one channel, or None.
    - `packets(data)` and `decode_packets(packets, original)`, for tasks that lose packets. The
      first packet is never lost: it holds what both sides agree on. Of the others None stands for
      one that was lost.
    """

    name: str  # names the codec and its rate in every table, for example opus@6

    def config(self) -> dict[str, Any]:
        """Return all that the output depends on, as plain data; the cache key is its hash."""
        ...

    def encode(self, audio: np.ndarray, sample_rate: int) -> Payload:
        """Encode float32 (C, S)."""
        ...

    def decode(self, data: bytes, original: Original) -> np.ndarray:
        """Decode to float32 (C, S), of exactly the channels, samples and rate of the original."""
        ...


AdapterFactory = Callable[["float | None"], CodecAdapter]
CODECS: dict[str, AdapterFactory] = {}
"""Every adapter that this package registers, by its name on the command line."""

_Class = TypeVar("_Class", bound=type)


def codec_adapter(name: str) -> Callable[[_Class], _Class]:
    """Register the decorated class under a name, by which `--codec` takes it."""

    def register(adapter: _Class) -> _Class:
        CODECS[name] = adapter
        return adapter

    return register


def hub_page(source: str) -> str | None:
    """Return the address of a checkpoint on the Hub; None for any other name, and a folder here.

    >>> hub_page("kyutai/mimi"), hub_page("/tmp/mimi"), hub_page("dac")
    ('https://huggingface.co/kyutai/mimi', None, None)
    """
    if not is_hub_id(source) or Path(source).exists():
        return None
    return f"https://huggingface.co/{source}"


def codec_hash(codec: CodecAdapter) -> str:
    """Return a short stable hash of everything the codec's output depends on."""
    return hash_of(codec.name, codec.config())


def hash_of(name: str, config: dict[str, Any]) -> str:
    """Return the hash of a codec of that name and those settings."""
    text = json.dumps({"name": name, **config}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def row_name(family: str, kbps: float | None) -> str:
    """Return the name of a codec at a rate in kbit/s per channel, or at its only rate.

    >>> row_name("opus", 6.0)
    'opus@6'
    """
    if kbps is None:
        return family
    return f"{family}@{kbps:g}"
