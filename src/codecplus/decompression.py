"""`.dacp` files, and `.dac` files of the original implementation, to audio."""

import io
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codecplus.audio.blocks import (
    CountedBlocks,
    drop_samples,
    join_blocks,
    resample_blocks,
    take_samples,
    unscale_blocks,
)
from codecplus.audio.files import AudioFileWriter
from codecplus.audio.resampling import resampled_length
from codecplus.bitstream import Damage, Header, Reader, StreamInfo
from codecplus.bitstream.codes import Codes
from codecplus.checkpoints import read_dac_file
from codecplus.compression import batch_outputs, each_file
from codecplus.encoding.stream_info import highest_rate
from codecplus.encoding.user_codes import as_codes, codes_and_info
from codecplus.errors import FileFormatError, InputError
from codecplus.inference.concealment import decode_around_losses, fade_lost_spans
from codecplus.inference.network import Network
from codecplus.inference.official import decode_official
from codecplus.system.paths import PathLike, refuse_own_source

if TYPE_CHECKING:
    from codecplus.codec import Codec

_RESAMPLER_FRAMES = 16  # that a resampler may look at around a sample, with room to spare
_OFFICIAL_MAGIC = b"\x93NUMPY"


MAX_SECONDS = 86400.0  # that a file may become, by default: a day


class DamageWarning(UserWarning):
    """Recovery could not read all of a file; `damage` says what is missing.

    The message names the file: of two equal warnings Python shows the first alone.
    """

    def __init__(self, damage: Damage, name: str = "the file"):
        super().__init__(f"{name} is damaged; {damage.describe()}")
        self.damage = damage


@dataclass(frozen=True)
class DecodedFile:
    """Audio that is decoded while it is read: blocks (C, n), `num_samples` in all."""

    sample_rate: int
    channels: int
    num_samples: int
    blocks: Iterator[np.ndarray]


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
    """Return what a message calls a coded file."""
    return os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else "the file"


def is_official(file) -> bool:
    """Whether an open file starts like a `.dac` of the original; the position stays at 0."""
    magic = file.read(len(_OFFICIAL_MAGIC))
    file.seek(0)
    return magic == _OFFICIAL_MAGIC


def decode_codes(codec: "Codec", codes: Any) -> Any:
    """Decode the codes of one clip, or of a batch (B, C, K, T): see `Codec.decode`."""
    if hasattr(codes, "detach"):
        import torch

        audio = decode_codes(codec, as_codes(codes))
        return torch.from_numpy(audio).to(codes.device)
    codes = as_codes(codes)
    if np.ndim(codes) == 4 and len(codes):
        return np.stack([decode_codes(codec, clip) for clip in codes])
    array, info = codes_and_info(codes, codec.config, codec.fingerprint, codec.sample_rate)
    num_samples = getattr(codes, "num_samples", None)
    if num_samples is None:
        num_samples = samples_of(array.shape[-1], info)
    blocks = decode_blocks(codec.network, [array], info, num_samples)
    audio = join_blocks(blocks, len(array), num_samples)
    return audio[0] if np.ndim(codes) == 2 else audio


def decode_blocks(
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
    audio = unscale_blocks(audio, info.gain)
    audio = resample_blocks(audio, info.sample_rate, info.original_sample_rate, info.channels)
    return take_samples(audio, num_samples)


def samples_of(frames: int, info: StreamInfo) -> int:
    """Samples that whole frames decode to, at the original rate."""
    return resampled_length(frames * info.hop_length, info.sample_rate, info.original_sample_rate)


def decompress_audio(
    codec: "Codec",
    source: Any,
    output: PathLike | None,
    *,
    start: float = 0.0,
    duration: float | None = None,
    recover: bool = False,
    max_seconds: float | None = MAX_SECONDS,
    overwrite: bool = True,
    progress: Callable[[float], Any] | None = None,
) -> np.ndarray | Path:
    """Decode a coded file to an array or to an audio file: see `Codec.decompress`."""
    if output is not None:
        refuse_own_source(source, output)
    with open_coded(source) as file:
        if is_official(file):
            if start or duration is not None or recover:
                raise InputError(
                    "start, duration and recover are for .dacp files, got a .dac; decode all of it"
                )
            decoded = _open_official(codec, file, max_seconds)
        else:
            decoded = _open_dacp(codec, file, start, duration, recover, max_seconds, _name(source))
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


def decompress_files(
    codec: "Codec", sources: list, folder: PathLike | None, **arguments: Any
) -> list[np.ndarray | Path]:
    """Decompress files into a folder, or to arrays: see `Codec.decompress`."""
    outputs = batch_outputs(sources, folder, ".wav")
    return each_file(
        lambda source, output: decompress_audio(codec, source, output, **arguments),
        sources,
        outputs,
    )


def read_codes(codec: "Codec", source: Any, max_seconds: float | None = MAX_SECONDS) -> Codes:
    """The codes of a `.dacp` file: see `Codec.read_codes`."""
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
    """What recovery could not read of a `.dacp` file: see `Codec.find_damage`."""
    with open_coded(source) as file:
        _refuse_official(file)
        return Reader(file, recover=True).damage


def _refuse_official(file: Any) -> None:
    if is_official(file):
        raise InputError(
            "expected a .dacp file, got a .dac of the original implementation; decompress it"
        )


def _open_official(codec: "Codec", file: Any, max_seconds: float | None) -> DecodedFile:
    content = read_dac_file(file.read())
    model_rate = codec.model_sample_rate
    _check_rate(content.sample_rate, model_rate)
    decoded_seconds = content.codes.shape[-1] * codec.hop_length / model_rate
    check_length(max(decoded_seconds, content.original_length / content.sample_rate), max_seconds)
    channels, rate, blocks = decode_official(codec.network, content)
    return DecodedFile(rate, channels, content.original_length, blocks)


def _open_dacp(
    codec: "Codec",
    file: Any,
    start: float,
    duration: float | None,
    recover: bool,
    max_seconds: float | None,
    name: str,
) -> DecodedFile:
    reader = Reader(file, codec.entropy_models, recover=recover)
    header = reader.header
    codec.check_model(header)
    _check_rate(header.original_sample_rate, header.sample_rate)
    part = _Part.of(header, start, duration, codec.network.decoder_context)
    check_length(part.num_samples / header.original_sample_rate, max_seconds)
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
        audio = decode_blocks(codec.network, codes, header, num_samples)
    audio = drop_samples(audio, part.first_sample - part.origin)
    audio = take_samples(audio, part.num_samples)
    return DecodedFile(header.original_sample_rate, header.channels, part.num_samples, audio)


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


@dataclass(frozen=True)
class _Part:
    """A part of a file: its samples, and the frames that they depend on.

    Neither the network nor the resampler can tell that the frames were cut out of more.
    """

    first_sample: int
    num_samples: int
    first_frame: int
    stop_frame: int
    samples_per_frame: float
    """At the original rate; it need not be whole."""
    origin: int
    """The sample at which `first_frame` begins."""
    until: int
    """The sample up to which audio is decoded."""

    @classmethod
    def of(
        cls, header: Header, start: float, duration: float | None, context_frames: int
    ) -> "_Part":
        """The part of a file that begins and lasts these seconds.

        Raises InputError if the file does not have it.
        """
        first_sample, num_samples = _part_samples(header, start, duration)
        samples_per_frame = header.hop_length * header.original_sample_rate / header.sample_rate
        margin = context_frames + _RESAMPLER_FRAMES
        first_frame = max(0, int(first_sample / samples_per_frame) - margin)
        last_frame = int((first_sample + num_samples) / samples_per_frame)
        stop_frame = min(header.num_frames, last_frame + 1 + margin)
        # Resampled audio can only be cut where the grids of both rates meet.
        grid = header.sample_rate // math.gcd(header.sample_rate, header.original_sample_rate)
        first_frame -= first_frame % (grid // math.gcd(grid, header.hop_length))
        origin = first_frame * header.hop_length * header.original_sample_rate
        reaches_end = stop_frame == header.num_frames
        return cls(
            first_sample=first_sample,
            num_samples=num_samples,
            first_frame=first_frame,
            stop_frame=stop_frame,
            samples_per_frame=samples_per_frame,
            origin=origin // header.sample_rate,
            until=header.num_samples if reaches_end else first_sample + num_samples,
        )


def _part_samples(header: Header, start: float, duration: float | None) -> tuple[int, int]:
    """First sample and number of samples of a part given in seconds."""
    rate = header.original_sample_rate
    total = header.num_samples
    # Half a sample beyond the end is rounded to it. NaN is within nothing.
    if not 0 <= start * rate <= total + 0.5 or (duration is not None and not duration >= 0):
        raise InputError(
            f"expected a part within the {total / rate:.3f} s of the file, "
            f"got start={start}, duration={duration}"
        )
    first = min(total, round(start * rate))
    if duration is None or duration * rate > total:
        return first, total - first
    return first, min(total - first, round(duration * rate))
