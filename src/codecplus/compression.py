"""Audio to codes to `.dacp` files. Compressing is encoding, then writing: both stand here.

The public functions are methods of `Codec`, which is their first argument.
"""

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
    is_batch,
    is_paths,
    measure_gain,
    open_audio,
    refuse_rate,
)
from codecplus.bitstream import EntropyModel, StreamInfo, Writer
from codecplus.bitstream.codes import Codes
from codecplus.encoding.compression_options import CompressionOptions
from codecplus.encoding.selection import select_codes
from codecplus.encoding.stream_info import with_entropy_model
from codecplus.encoding.user_codes import as_codes, codes_and_info
from codecplus.errors import InputError
from codecplus.recordings.batches import batch_outputs, each, each_file
from codecplus.system.paths import (
    PathLike,
    atomic_path,
    check_output,
    refuse_own_source,
)

if TYPE_CHECKING:
    from codecplus.codec import Codec


def encode(
    codec: "Codec",
    audio: Any,
    sample_rate: int | None = None,
    bitrate: float | None = None,
    n_quantizers: int | None = None,
    *,
    options: CompressionOptions | None = None,
    **settings: Any,
) -> Any:
    """Encode audio to integer codes.

    Args:
        audio: (samples,) for mono, (channels, samples), or (batch, channels, samples) of clips of
            one length; an array or tensor, float within ±1 or integer, or a list of numbers; the
            path of a file; `(audio, rate)`; `{"array", "sampling_rate"}` or `{"bytes", "path"}`. A
            list of such clips, of any lengths, gives a list.
        sample_rate: of an array, Hz; `codec.sample_rate` by default.
        bitrate, n_quantizers, options, **settings: see `CompressionOptions`.

    Returns:
        `Codes`, int16: (codebooks, frames) for mono, (channels, codebooks, frames), or (batch,
        channels, codebooks, frames). For tensors `CodesTensor`, int64, on their device.

    Raises:
        InputError: for audio, a rate or options that cannot be used.
    """
    options = CompressionOptions.from_settings(
        options, {"bitrate": bitrate, "n_quantizers": n_quantizers, **settings}
    )
    if is_batch(audio):
        return each(lambda clip: _encode_clip(codec, clip, sample_rate, options), audio)
    return _encode_clip(codec, audio, sample_rate, options)


def compress(
    codec: "Codec",
    source: Any,
    output: PathLike | None = None,
    *,
    sample_rate: int | None = None,
    overwrite: bool = True,
    progress: Callable[[float], Any] | None = None,
    options: CompressionOptions | None = None,
    **settings: Any,
) -> Any:
    """Compress audio to a `.dacp` file: the codes of `encode`, written as by `write_codes`.

    Args:
        source: one clip as for `encode`. A file may have any length, in bounded memory. A list of
            paths is a batch: `output` is then the folder for the files.
        output: path of the file to write; bytes are returned if it is not given.
        sample_rate: of an array, Hz.
        overwrite: whether an existing `output` may be replaced.
        progress: called with the seconds of audio just read, again and again.
        options, **settings: see `CompressionOptions`.

    Returns:
        The path written to, or the bytes; a list of them for a list.

    Raises:
        InputError, FileFormatError: for audio or options that cannot be used.
        OutputExistsError: if `output` exists and may not be overwritten.
        OutputError: if the system refuses to write it, such as a full disk.
    """
    options = CompressionOptions.from_settings(options, settings)
    if not is_paths(source):
        return _compress_one(codec, source, output, options, sample_rate, overwrite, progress)
    outputs = batch_outputs(source, output, ".dacp")
    return each_file(
        lambda file, path: _compress_one(codec, file, path, options, None, overwrite, progress),
        source,
        outputs,
    )


def write_codes(
    codec: "Codec",
    codes: Any,
    output: PathLike | None = None,
    *,
    entropy_coding: bool = True,
    overwrite: bool = True,
) -> Path | bytes:
    """Write codes to a `.dacp` file: the second half of `compress`, equal byte for byte.

    Args:
        codes: as for `decode`.
        output: path of the file; bytes are returned if it is not given.
        entropy_coding: False packs codes as they are.
        overwrite: whether an existing `output` may be replaced.

    Raises InputError, ModelMismatchError and OutputExistsError as `decode` and `compress` do.
    """
    codes = as_codes(codes)
    array, info = codes_and_info(codes, codec.config, codec.fingerprint, codec.sample_rate)
    info, entropy = with_entropy_model(info, codec.entropy_models.values(), entropy_coding)
    with _open_output(output, overwrite) as sink:
        writer = Writer(sink.file, info, entropy)
        writer.write(array)
        writer.close(num_samples=getattr(codes, "num_samples", None))
    return sink.result()


def _encode_clip(
    codec: "Codec", audio: Any, sample_rate: int | None, options: CompressionOptions
) -> Any:
    """Encode one clip, or the clips of an array (B, C, S)."""
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
        encoded = _encode_source(codec, source, options)
        codes = np.concatenate(list(encoded), axis=-1)  # (C, K, T)
        if source.is_vector:
            codes = codes[0]
    return Codes(codes, encoded.info, encoded.num_samples)


def _refuse_codes(audio: Any, advice: str) -> None:
    if getattr(audio, "info", None) is not None and hasattr(audio, "num_samples"):
        raise InputError(f"expected audio, but these are codes already; {advice}")


class _EncodedAudio:
    """Codes as they come out of the encoder, with facts about the signal.

    Iterate once over pieces of codes, int16 (C, K, T); after that `num_samples` is the length of
    the signal.

    Attributes:
        info: of the codes.
        file_info, entropy: of a file with these codes, and the entropy model that writes it.
    """

    def __init__(
        self,
        pieces: Iterable[np.ndarray],
        info: StreamInfo,
        file_info: StreamInfo,
        entropy: EntropyModel | None,
        samples: CountedBlocks,
    ):
        self.info = info
        self.file_info = file_info
        self.entropy = entropy
        self._pieces = pieces
        self._samples = samples

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._pieces)

    @property
    def num_samples(self) -> int:
        """Samples per channel read so far, at the original rate."""
        return self._samples.num_samples


def _encode_source(
    codec: "Codec",
    source: AudioSource,
    options: CompressionOptions,
    progress: Callable[[float], Any] | None = None,
) -> _EncodedAudio:
    """Encode an open source, piece by piece."""
    bitrate = options.bitrate
    if options.rate_control == "abr":
        bitrate = None  # all codebooks are searched, and some left out later
    info = codec.stream_info(
        source.sample_rate, source.channels, bitrate=bitrate, n_quantizers=options.n_quantizers
    )
    if options.loudness is not None:
        info = replace(info, gain=measure_gain(source, options.loudness))
    file_info, entropy = with_entropy_model(
        info, codec.entropy_models.values(), options.entropy_coding
    )
    counted = CountedBlocks(watch_level(source.blocks()), source.sample_rate, progress)
    samples = resample_blocks(
        scale_blocks(counted, info.gain), source.sample_rate, info.sample_rate, info.channels
    )
    pieces = select_codes(codec.network, samples, file_info, entropy, options, counted)
    return _EncodedAudio(pieces, info, file_info, entropy, counted)


def _compress_one(
    codec: "Codec",
    source: Any,
    output: PathLike | None,
    options: CompressionOptions,
    sample_rate: int | None,
    overwrite: bool,
    progress: Callable[[float], Any] | None,
) -> Path | bytes:
    """Encode one clip and write its file, in memory for one block of codes."""
    _refuse_codes(source, "write_codes writes them")
    if output is not None:
        file = source.get("path") if isinstance(source, Mapping) else source
        refuse_own_source(file, output)
    with (
        _open_output(output, overwrite) as sink,
        open_audio(source, sample_rate, codec.sample_rate) as audio,
    ):
        encoded = _encode_source(codec, audio, options, progress)
        writer = Writer(sink.file, encoded.file_info, encoded.entropy)
        for codes in encoded:
            writer.write(codes)
        writer.close(num_samples=encoded.num_samples)
    return sink.result()


@dataclass
class _Sink:
    """An open binary file, and the result for the caller when it is complete."""

    file: BinaryIO
    path: Path | None

    def result(self) -> Path | bytes:
        if self.path is not None:
            return self.path
        assert isinstance(self.file, io.BytesIO)
        return self.file.getvalue()


@contextmanager
def _open_output(output: PathLike | None, overwrite: bool) -> Iterator[_Sink]:
    """Yield a file that appears when the block ends without an error, or bytes in memory."""
    if output is None:
        yield _Sink(io.BytesIO(), None)
        return
    check_output(output, overwrite)
    with atomic_path(output) as temporary, open(temporary, "wb") as file:
        yield _Sink(file, Path(output))
