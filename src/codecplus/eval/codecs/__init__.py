"""Codecs to compare: a protocol, the adapters that ship with the package, and names for them.

A name is `opus`, `opus-vbr`, `mp3` or `aac`; anything registered with `codec_adapter` or under the
entry point group `codecplus.codecs`; `stock:ID` for a transformers model by Hub id or folder; or a
checkpoint for `codecplus.load_codec`.
"""

import json
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from codecplus.errors import CheckpointError, InputError, suggest
from codecplus.eval.codecs.anchors import Identity, LowPass, anchors, is_anchor
from codecplus.eval.codecs.base import (
    CODECS,
    AdapterFactory,
    CodecAdapter,
    Original,
    Payload,
    codec_adapter,
    codec_hash,
    row_name,
)
from codecplus.eval.codecs.libav import Aac, Mp3, Opus, OpusVbr
from codecplus.eval.codecs.own import OwnCodec
from codecplus.eval.codecs.stock import MODEL_TYPES, StockCodec

__all__ = [
    "CODECS",
    "Aac",
    "CodecAdapter",
    "Identity",
    "LowPass",
    "Mp3",
    "Opus",
    "OpusVbr",
    "Original",
    "OwnCodec",
    "Payload",
    "StockCodec",
    "anchors",
    "codec_adapter",
    "codec_hash",
    "is_anchor",
    "resolve_codecs",
    "row_name",
]

ENTRY_POINTS = "codecplus.codecs"
STOCK = "stock:"


def resolve_codecs(
    names: Iterable[str],
    bitrates: Iterable[float] = (),
    device: str | None = None,
    revision: str | None = None,
) -> list[CodecAdapter]:
    """Return the anchors and then each codec at the nearest rate it has to each target.

    Rates of a codec that fall together are given once.

    Args:
        names: of codecs, as the module says.
        bitrates: targets in kbit/s per channel; none: each codec's own default.
        device: where neural codecs run; None: on CUDA if there is any.
        revision: branch, tag or commit of the checkpoints that come from the Hub.

    Raises:
        InputError: for an unknown name, or a rate that is not above 0.
        CheckpointError: for a checkpoint that cannot be loaded.
    """
    targets: list[float | None] = list(bitrates) or [None]
    for rate in targets:
        if rate is not None and not rate > 0:
            raise InputError(f"expected bit rates above 0 kbit/s, got {rate:g}")
    codecs: dict[str, CodecAdapter] = {codec.name: codec for codec in anchors()}
    for name in names:
        make = _factory(name, device, revision)
        for rate in targets:
            codec = make(rate)
            _check(name, codec)
            codecs.setdefault(codec.name, codec)
    return list(codecs.values())


def _factory(name: str, device: str | None, revision: str | None) -> AdapterFactory:
    if name in CODECS:
        return CODECS[name]
    registered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name in registered:
        return registered[name].load()
    if name.startswith(STOCK):
        return lambda rate: StockCodec(name.removeprefix(STOCK), rate, device)
    if _model_type(name) in set(MODEL_TYPES) - {"dac"}:
        return lambda rate: StockCodec(name, rate, device)
    hint = suggest(name, [*CODECS, *registered])
    return lambda rate: _own(name, rate, device, revision, hint)


def _own(
    name: str, kbps: float | None, device: str | None, revision: str | None, hint: str
) -> OwnCodec:
    try:
        return OwnCodec(name, kbps, device, revision)
    except CheckpointError as error:
        if hint:
            raise InputError(f"there is no codec and no checkpoint {name!r}{hint}") from error
        raise


def _check(name: str, codec: Any) -> None:
    if not isinstance(codec, CodecAdapter) or not isinstance(codec.name, str):
        raise InputError(
            f"the codec {name!r} made a {type(codec).__name__} without name, config, encode and "
            "decode"
        )
    if is_anchor(codec.name):
        raise InputError(f"the codec {name!r} calls itself {codec.name!r}, the name of an anchor")


def _model_type(name: str) -> str | None:
    """The model type that a folder's config.json names; None when there is no such folder."""
    try:
        config = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("model_type")
