"""Codes, `.dacp` files, and `.dac` files of the original implementation, to audio.

The public functions are methods of `Codec`, which is their first argument.
"""

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codecplus.audio.blocks import (
    CountedBlocks,
    check_blocks,
    drop_samples,
    join_blocks,
    resample_blocks,
    take_samples,
    unscale_blocks,
)
from codecplus.audio.files import AudioFileWriter
from codecplus.audio.resampling import resampled_length
from codecplus.bitstream import Damage, Reader, StreamInfo
from codecplus.bitstream.codes import Codes
from codecplus.checkpoints import read_dac_file
from codecplus.encoding.stream_info import highest_rate
from codecplus.encoding.user_codes import as_codes, codes_and_info, is_code_batch
from codecplus.errors import FileFormatError, InputError
from codecplus.inference.concealment import decode_around_losses, fade_lost_spans
from codecplus.inference.network import Network
from codecplus.inference.original_decoding import decode_official
from codecplus.inference.parts import Part
from codecplus.recordings.batches import batch_outputs, each, each_file
from codecplus.system.paths import PathLike, refuse_own_source

if TYPE_CHECKING:
    from codecplus.codec import Codec

_OFFICIAL_MAGIC = b"\x93NUMPY"


MAX_SECONDS = 86400.0  # that a file may become, by default: a day


class DamageWarning(UserWarning):
    """Recovery could not read all of a file; `damage` says what is missing.

    The message names the file: of two equal warnings Python shows the first alone.
    """

    def __init__(self, damage: Damage, name: str = "the file"):
        super().__init__(f"{name} is damaged; {damage.describe()}")
        self.damage = damage


def open_coded(source: Any):
    """Open coded bytes, or a file of that path, for reading.

    Raises InputError if there is no such file.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(
            f"expected the path or the bytes of a .dacp file, got {type(source).__name__}; "
            "decode decodes codes, compress takes audio"
        )
    try:
        return open(source, "rb")
    except OSError as error:
        raise InputError(f"cannot open {source}: {error.strerror}") from error


def _name(source: Any) -> str:
    """Return the name of a coded file for messages."""
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    return "the file"


def is_official(file) -> bool:
    """Return whether an open file starts like a `.dac` of the original; the position stays at 0."""
    magic = file.read(len(_OFFICIAL_MAGIC))
    file.seek(0)
    return magic == _OFFICIAL_MAGIC


def decode(codec: "Codec", codes: Any) -> Any:
    """Decode codes to float32 audio, in the shape and at the rate it was encoded from.

    Args:
        codes: from `encode`; or plain integers (codebooks, frames), (channels, codebooks, frames)
            or (batch, channels, codebooks, frames), which decode to `hop_length` samples per frame
            at the model's rate, resampled to `codec.sample_rate`. A list of arrays or tensors gives
            a list; a tensor gives a tensor on its device.

    Raises:
        InputError: for another shape, or codes that the codebooks do not have.
        ModelMismatchError: for `Codes` of another model.
    """
    if is_code_batch(codes):
        return each(lambda clip: _decode_clip(codec, clip), codes)
    return _decode_clip(codec, codes)


def decompress(
    codec: "Codec",
    source: Any,
    output: PathLike | None = None,
    *,
    start: float = 0.0,
    duration: float | None = None,
    recover: bool = False,
    max_seconds: float | None = MAX_SECONDS,
    overwrite: bool = True,
    progress: Callable[[float], Any] | None = None,
) -> Any:
    """Decompress a `.dacp` file, or a `.dac` of the original, which is read, never run.

    Args:
        source: bytes, or the path of a file. A list of paths is a batch: `output` is then the
            folder for the files.
        output: audio file to write, its format chosen by the suffix; audio is returned if it is not
            given.
        start, duration: seconds of a `.dacp` file to decode, by default all; only the blocks needed
            are read.
        recover: decode what a damaged `.dacp` file still holds. Lost spans repeat the sound before
            them and fade out. A `DamageWarning` names them, and says whether the end is missing;
            `find_damage` gives the same as data. Without it, damage is an error.
        max_seconds: of audio that a file may become, a day by default; None for any length.
        overwrite: whether an existing `output` may be replaced.
        progress: called with the seconds of audio just decoded, again and again.

    Returns:
        float32 audio at the rate it had, (samples,) for mono, else (channels, samples); or the path
        written to.

    Raises:
        FileFormatError: for a file that is damaged or of another format.
        ModelMismatchError: for a file of another model, or without its entropy model.
        InputError: for a part that the file does not have, and for more than `max_seconds`.
        OutputError: if the system refuses to write `output`, such as a full disk.
    """
    options = _DecodingOptions(start, duration, recover, max_seconds)
    if not isinstance(source, (list, tuple)):
        return _decompress_one(codec, source, output, options, overwrite, progress)
    sources = list(source)
    outputs = batch_outputs(sources, output, ".wav")
    return each_file(
        lambda file, path: _decompress_one(codec, file, path, options, overwrite, progress),
        sources,
        outputs,
    )


def read_codes(codec: "Codec", source: Any, *, max_seconds: float | None = MAX_SECONDS) -> Codes:
    """Read the codes of a `.dacp` file, bytes or a path: the inverse of `write_codes`.

    Takes `max_seconds` and raises FileFormatError, ModelMismatchError and InputError as
    `decompress` does.
    """
    with open_coded(source) as file:
        _refuse_official(file)
        reader = Reader(file, codec.entropy_models)
        header = reader.header
        codec.check_model(header)
        _check_rate(header.original_sample_rate, header.sample_rate)
        check_length(header.num_frames * header.hop_length / header.sample_rate, max_seconds)
        codes = reader.read()
    facts = {field.name: getattr(header, field.name) for field in fields(StreamInfo)}
    # How the file was cut into blocks is no property of the codes, and a writer finds it again.
    info = StreamInfo(**{**facts, "block_length": 0})
    return Codes(codes[0] if header.channels == 1 else codes, info, header.num_samples)


def find_damage(source: Any) -> Damage:
    """Say what `decompress(source, recover=True)` cannot read of a `.dacp` file.

    Returns a `Damage`, which is false for a whole file: the lost spans, `lost` in frames and
    `lost_seconds`; `end_missing`, whether the recording may have been longer; and `extra_bytes`
    behind its end, which cost nothing. Nothing is decoded.

    Raises FileFormatError for a file of which nothing can be recovered.
    """
    with open_coded(source) as file:
        _refuse_official(file)
        return Reader(file, recover=True).damage


@dataclass(frozen=True)
class _DecodingOptions:
    """Which part of a file is decoded, and how; see `decompress`."""

    start: float
    duration: float | None
    recover: bool
    max_seconds: float | None

    def check_official(self) -> None:
        """Raise InputError for a choice that a `.dac` does not offer."""
        if self.start or self.duration is not None or self.recover:
            raise InputError(
                "start, duration and recover are for .dacp files, got a .dac; decode all of it"
            )


def _decode_clip(codec: "Codec", codes: Any) -> Any:
    """Decode the codes of one clip, or of a batch (B, C, K, T)."""
    if hasattr(codes, "detach"):
        import torch

        audio = _decode_clip(codec, as_codes(codes))
        return torch.from_numpy(audio).to(codes.device)
    codes = as_codes(codes)
    if np.ndim(codes) == 4 and len(codes):
        return np.stack([_decode_clip(codec, clip) for clip in codes])
    array, info = codes_and_info(codes, codec.config, codec.fingerprint, codec.sample_rate)
    num_samples = getattr(codes, "num_samples", None)
    if num_samples is None:
        num_samples = _samples_of(array.shape[-1], info)
    blocks = _decode_blocks(codec.network, [array], info, num_samples)
    audio = join_blocks(blocks, len(array), num_samples)
    return audio[0] if np.ndim(codes) == 2 else audio


def _decompress_one(
    codec: "Codec",
    source: Any,
    output: PathLike | None,
    options: _DecodingOptions,
    overwrite: bool,
    progress: Callable[[float], Any] | None,
) -> np.ndarray | Path:
    """Decode one coded file to an array or to an audio file."""
    if output is not None:
        refuse_own_source(source, output)
    with open_coded(source) as file:
        if is_official(file):
            options.check_official()
            decoded = _open_official(codec, file, options.max_seconds)
        else:
            decoded = _open_dacp(codec, file, options, _name(source))
        blocks = CountedBlocks(decoded.blocks, decoded.sample_rate, progress)
        if output is None:
            audio = join_blocks(blocks, decoded.channels, decoded.num_samples)
            return audio[0] if decoded.channels == 1 else audio
        with AudioFileWriter(
            output, decoded.sample_rate, decoded.channels, overwrite=overwrite
        ) as writer:
            for block in blocks:
                writer.write(block)
    return Path(output)


@dataclass(frozen=True)
class _DecodedFile:
    """Audio that is decoded while it is read: blocks (C, n), `num_samples` in all."""

    sample_rate: int
    channels: int
    num_samples: int
    blocks: Iterator[np.ndarray]


def _refuse_official(file: Any) -> None:
    if is_official(file):
        raise InputError(
            "expected a .dacp file, got a .dac of the original implementation; decompress it"
        )


def _open_official(codec: "Codec", file: Any, max_seconds: float | None) -> _DecodedFile:
    content = read_dac_file(file.read())
    model_rate = codec.model_sample_rate
    _check_rate(content.sample_rate, model_rate)
    decoded_seconds = content.codes.shape[-1] * codec.hop_length / model_rate
    check_length(max(decoded_seconds, content.original_length / content.sample_rate), max_seconds)
    channels, rate, blocks = decode_official(codec.network, content)
    return _DecodedFile(rate, channels, content.original_length, blocks)


def _open_dacp(codec: "Codec", file: Any, options: _DecodingOptions, name: str) -> _DecodedFile:
    reader = Reader(file, codec.entropy_models, recover=options.recover)
    header = reader.header
    codec.check_model(header)
    _check_rate(header.original_sample_rate, header.sample_rate)
    part = Part.of(header, options.start, options.duration, codec.network.decoder_context)
    check_length(part.num_samples / header.original_sample_rate, options.max_seconds)
    damage = reader.damage
    if damage:
        warnings.warn(DamageWarning(damage, name), stacklevel=4)
    num_samples = part.until - part.origin
    if damage.lost:
        audio = decode_around_losses(
            codec.network,
            reader.blocks,
            damage.lost,
            part.first_frame,
            part.stop_frame,
            header.channels,
            header.num_codebooks,
        )
        audio = _as_recorded(audio, header, num_samples)
        audio = fade_lost_spans(audio, damage.lost, part.first_frame, part.samples_per_frame)
    else:
        codes = reader.blocks(part.first_frame, part.stop_frame)
        audio = _decode_blocks(codec.network, codes, header, num_samples)
    audio = drop_samples(audio, part.first_sample - part.origin)
    audio = take_samples(audio, part.num_samples)
    return _DecodedFile(header.original_sample_rate, header.channels, part.num_samples, audio)


def check_length(seconds: float, max_seconds: float | None) -> None:
    """Raise InputError if a file would become longer than it may, before anything is allocated."""
    if max_seconds is not None and not max_seconds > 0:
        raise InputError(f"expected max_seconds above 0, or None for no limit, got {max_seconds}")
    if max_seconds is not None and seconds > max_seconds:
        raise InputError(
            f"expected a file of at most {max_seconds:g} s of audio, got one of {seconds:.0f} s; "
            "if that is right, raise max_seconds (--max-seconds), or decode a part of it"
        )


def _check_rate(original_rate: int, model_rate: int) -> None:
    """Raise FileFormatError if resampling would blow a file up out of proportion."""
    highest = highest_rate(model_rate)
    if original_rate > highest:
        raise FileFormatError(
            f"expected audio of at most {highest} Hz from a model of {model_rate} Hz, "
            f"got a file of {original_rate} Hz; no encoder of codecplus writes such a file"
        )


def _decode_blocks(
    network: Network, codes: Iterable[np.ndarray], info: StreamInfo, num_samples: int
) -> Iterator[np.ndarray]:
    """Decode codes (C, K, T) to audio (C, n) in blocks, `num_samples` in all, original rate."""
    return _as_recorded(network.decode_blocks(codes), info, num_samples)


def _as_recorded(
    audio: Iterable[np.ndarray], info: StreamInfo, num_samples: int
) -> Iterator[np.ndarray]:
    """Bring audio (C, n) at the model's rate to the level and rate of the original."""
    length = resampled_length(num_samples, info.original_sample_rate, info.sample_rate)
    audio = take_samples(audio, length)
    audio = check_blocks(unscale_blocks(audio, info.gain))
    audio = resample_blocks(audio, info.sample_rate, info.original_sample_rate, info.channels)
    return take_samples(audio, num_samples)


def _samples_of(frames: int, info: StreamInfo) -> int:
    """Return samples that whole frames decode to, at the original rate."""
    return resampled_length(frames * info.hop_length, info.sample_rate, info.original_sample_rate)
