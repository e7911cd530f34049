"""Codecs to compare: a protocol, the adapters that ship with the package, and names for them.

A name is `opus`, `opus-vbr`, `mp3` or `aac`; a program that the package knows, such as `codec2`, or
the TOML file of another one; anything registered with `codec_adapter` or under the entry point
group `codecplus.codecs`; `stock:ID` for a transformers model by Hub id or folder; `lyra:FOLDER`;
`snac:ID`; or a checkpoint for `codecplus.load_codec`.
"""

import json
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from codecplus.errors import CheckpointError, InputError, suggest
from codecplus.eval.codecs import own, snac, stock_model
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
from codecplus.eval.codecs.command import CommandCodec, command_presets, load_command
from codecplus.eval.codecs.decoded import DecodedFolder
from codecplus.eval.codecs.libav import Aac, Mp3, Opus, OpusVbr
from codecplus.eval.codecs.lyra import LyraCodec
from codecplus.eval.codecs.own import OwnCodec
from codecplus.eval.codecs.snac import SnacCodec
from codecplus.eval.codecs.stock import StockCodec

__all__ = [
    "CODECS",
    "Aac",
    "CodecAdapter",
    "CommandCodec",
    "DecodedFolder",
    "Identity",
    "LowPass",
    "LyraCodec",
    "Mp3",
    "Opus",
    "OpusVbr",
    "Original",
    "OwnCodec",
    "Payload",
    "SnacCodec",
    "StockCodec",
    "anchors",
    "codec_adapter",
    "codec_hash",
    "codec_names",
    "counts_payload",
    "is_anchor",
    "is_foreign",
    "release_models",
    "resolve_codecs",
    "row_name",
]

ENTRY_POINTS = "codecplus.codecs"
STOCK = "stock:"
LYRA = "lyra:"
SNAC = "snac:"
PREFIXES = (STOCK, LYRA, SNAC)
TOML = ".toml"
ALIASES = {"libopus": "opus", "opus-cbr": "opus", "lame": "mp3"}


def codec_names() -> dict[str, str]:
    """Return the names that `--codec` takes, each with a word on what it is."""
    names = {}
    for name, factory in CODECS.items():
        names[name] = (factory.__doc__ or "registered").splitlines()[0]
    for name, settings in command_presets().items():
        names[name] = f"the programs of the package {settings.package}"
    for point in entry_points(group=ENTRY_POINTS):
        names[point.name] = f"by {point.value}"
    names["FILE.toml"] = "two command lines, as docs/evaluating.md describes them"
    names["stock:ID"] = "a codec as transformers ships it, by Hub id or folder"
    names["lyra:FOLDER"] = "Lyra V2, from a folder with its three networks"
    names["snac:ID"] = "SNAC, by the package snac, by Hub id or folder"
    return names


def is_foreign(name: str) -> bool:
    """Whether a name is that of a codec, and not of a checkpoint of this package."""
    return (
        name in ALIASES or name in codec_names() or name.startswith(PREFIXES) or name.endswith(TOML)
    )


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


def counts_payload(codec: CodecAdapter) -> bool:
    """Whether this package itself counts the payload of a codec, so that it can be relied on."""
    counted = (Identity, Aac, LyraCodec, Mp3, Opus, OpusVbr, OwnCodec, SnacCodec, StockCodec)
    return type(codec) in (*counted, LowPass)  # a class derived from one may count differently


def release_models() -> None:
    """Free the models that were loaded to learn the rates of codecs; they run elsewhere."""
    own._load.cache_clear()
    stock_model.load_model.cache_clear()
    snac.load_snac.cache_clear()


def _factory(name: str, device: str | None, revision: str | None) -> AdapterFactory:
    name = ALIASES.get(name, name)
    if name in CODECS:
        return CODECS[name]
    presets = command_presets()
    if name in presets:
        return lambda rate: CommandCodec(presets[name], rate)
    if name.endswith(TOML):
        if not Path(name).is_file():
            raise InputError(f"there is no file {name}; expected the TOML file of a codec")
        settings = load_command(name)
        return lambda rate: CommandCodec(settings, rate)
    if name.startswith(LYRA):
        return lambda rate: LyraCodec(name.removeprefix(LYRA), rate)
    if name.startswith(SNAC):
        return lambda rate: SnacCodec(name.removeprefix(SNAC), rate, device)
    registered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name in registered:
        return registered[name].load()
    if name.startswith(STOCK):
        return lambda rate: StockCodec(name.removeprefix(STOCK), rate, device)
    model_type = _model_type(name)
    if model_type not in (None, "dac") and stock_model.codec_class(model_type) is not None:
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
