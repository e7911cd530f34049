"""Audio to codes to `.dacp` files. Compressing is encoding, then writing: both stand here."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from codecplus.audio.blocks import CountedBlocks, resample_blocks, scale_blocks
from codecplus.audio.levels import watch_level
from codecplus.audio.sources import (
    AudioSource,
    array_and_rate,
    measure_gain,
    open_audio,
    refuse_rate,
)
from codecplus.bitstream import StreamInfo, Writer
from codecplus.bitstream.codes import Codes
from codecplus.encoding.options import CompressionOptions
from codecplus.encoding.selection import select_codes
from codecplus.encoding.stream_info import entropy_coding
from codecplus.encoding.user_codes import as_codes, codes_and_info
from codecplus.errors import CodecPlusError, InputError
from codecplus.recordings.outputs import batch_outputs, each_file
from codecplus.system.paths import (
    PathLike,
    atomic_path,
    check_output,
    refuse_own_source,
)

if TYPE_CHECKING:
    from codecplus.codec import Codec


class EncodedAudio:
    """Codes as they come out of the encoder, and what is known of the signal.

    Iterate once over pieces of codes, int16 (C, K, T); after that `num_samples` is the length of
    the signal.
    """

    def __init__(self, pieces: Iterable[np.ndarray], info: StreamInfo, samples: CountedBlocks):
        self.info = info
        self._pieces = pieces
        self._samples = samples

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._pieces)

    @property
    def num_samples(self) -> int:
        """Samples per channel read so far, at the original rate."""
        return self._samples.num_samples


def encode_clip(
    codec: "Codec", audio: Any, sample_rate: int | None, options: CompressionOptions
) -> Any:
    """Encode one clip, or the clips of an array (B, C, S): see `Codec.encode`."""
    _refuse_codes(audio, "decode them first")
    array, rate = array_and_rate(audio)
    if rate is not None:
        refuse_rate(sample_rate, "audio that comes with its rate")
        sample_rate = rate
    if getattr(array, "ndim", 0) == 3:
        codes = _encode_array(codec, array, sample_rate, options)
    else:
        codes = _encode_one(codec, array, sample_rate, options)
    if not hasattr(array, "detach"):
        return codes
    from codecplus.inference.tensors import codes_to_tensor

    return codes_to_tensor(codes, array.device)


def each(function: Callable[[Any], Any], items: Iterable[Any]) -> list:
    """Call a function with each of several items; an error names the item that it came of."""
    results = []
    for number, item in enumerate(items):
        try:
            results.append(function(item))
        except CodecPlusError as error:
            raise type(error)(f"item {number}: {error}") from error
    return results


def _encode_array(
    codec: "Codec", batch: Any, sample_rate: int | None, options: CompressionOptions
) -> Codes:
    """Encode clips (B, C, S) to codes (B, C, K, T), each as if it were alone."""
    if options.loudness is not None:
        raise InputError(
            "loudness gives each clip of a batch a gain of its own; give a list of clips"
        )
    if not len(batch):
        raise InputError(f"expected a batch of at least 1 clip, got shape {tuple(batch.shape)}")
    clips = [_encode_one(codec, clip, sample_rate, options) for clip in batch]
    return Codes(np.stack(clips), clips[0].info, clips[0].num_samples)


def _encode_one(
    codec: "Codec", audio: Any, sample_rate: int | None, options: CompressionOptions
) -> Codes:
    with open_audio(audio, sample_rate, codec.sample_rate) as source:
        encoded = encode_audio(codec, source, options)
        codes = np.concatenate(list(encoded), axis=-1)  # (C, K, T)
        if source.is_vector:
            codes = codes[0]
    return Codes(codes, encoded.info, encoded.num_samples)


def _refuse_codes(audio: Any, advice: str) -> None:
    if getattr(audio, "info", None) is not None and hasattr(audio, "num_samples"):
        raise InputError(f"expected audio, but these are codes already; {advice}")


def encode_audio(
    codec: "Codec",
    source: AudioSource,
    options: CompressionOptions,
    progress: Callable[[float], Any] | None = None,
) -> EncodedAudio:
    """Encode an open source, piece by piece."""
    meets_rate = options.rate_control == "abr"
    info = codec.stream_info(
        source.sample_rate,
        source.channels,
        bitrate=None if meets_rate else options.bitrate,
        n_quantizers=options.n_quantizers,
    )
    if options.loudness is not None:
        info = replace(info, gain=measure_gain(source, options.loudness))
    counted = CountedBlocks(watch_level(source.blocks()), source.sample_rate, progress)
    samples = resample_blocks(
        scale_blocks(counted, info.gain), source.sample_rate, info.sample_rate, info.channels
    )
    coded_info, entropy = entropy_coding(
        codec.entropy_models.values(), info, options.entropy_coding
    )
    pieces = select_codes(codec.network, samples, coded_info, entropy, options, counted)
    return EncodedAudio(pieces, info, counted)


def compress_audio(
    codec: "Codec",
    source: Any,
    output: PathLike | None,
    options: CompressionOptions,
    *,
    sample_rate: int | None = None,
    overwrite: bool = True,
    progress: Callable[[float], Any] | None = None,
) -> Path | bytes:
    """Encode audio and write a `.dacp` file, in memory for one block of codes.

    Arguments, results and errors: see `Codec.compress`.
    """
    _refuse_codes(source, "write_codes writes them")
    if output is not None:
        file = source.get("path") if isinstance(source, Mapping) else source
        refuse_own_source(file, output)
    with (
        _open_output(output, overwrite) as sink,
        open_audio(source, sample_rate, codec.sample_rate) as audio,
    ):
        encoded = encode_audio(codec, audio, options, progress)
        info, entropy = entropy_coding(
            codec.entropy_models.values(), encoded.info, options.entropy_coding
        )
        writer = Writer(sink.file, info, entropy)
        for codes in encoded:
            writer.write(codes)
        writer.close(num_samples=encoded.num_samples)
    return sink.result()


def compress_files(
    codec: "Codec",
    sources: list,
    folder: PathLike | None,
    options: CompressionOptions,
    **arguments: Any,
) -> list[Path | bytes]:
    """Compress files into a folder, or to bytes each: see `Codec.compress`."""
    outputs = batch_outputs(sources, folder, ".dacp")
    return each_file(
        lambda source, output: compress_audio(codec, source, output, options, **arguments),
        sources,
        outputs,
    )


def write_codes(
    codec: "Codec",
    codes: Any,
    output: PathLike | None,
    *,
    entropy_coded: bool = True,
    overwrite: bool = True,
) -> Path | bytes:
    """Write codes to a `.dacp` file: see `Codec.write_codes`."""
    codes = as_codes(codes)
    array, info = codes_and_info(codes, codec.config, codec.fingerprint, codec.sample_rate)
    info, entropy = entropy_coding(codec.entropy_models.values(), info, entropy_coded)
    with _open_output(output, overwrite) as sink:
        writer = Writer(sink.file, info, entropy)
        writer.write(array)
        writer.close(num_samples=getattr(codes, "num_samples", None))
    return sink.result()


@dataclass
class _Sink:
    """An open binary file, and what the caller gets when it is complete."""

    file: BinaryIO
    path: Path | None

    def result(self) -> Path | bytes:
        if self.path is not None:
            return self.path
        assert isinstance(self.file, io.BytesIO)
        return self.file.getvalue()


@contextmanager
def _open_output(output: PathLike | None, overwrite: bool) -> Iterator[_Sink]:
    """A file that appears when the block ends without an error, or bytes in memory."""
    if output is None:
        yield _Sink(io.BytesIO(), None)
        return
    check_output(output, overwrite)
    with atomic_path(output) as temporary, open(temporary, "wb") as file:
        yield _Sink(file, Path(output))
