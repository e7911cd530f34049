"""Audio to codes to `.dacp` files. Compressing is encoding, then writing: both stand here."""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
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
from codecplus.bitstream import EntropyModel, StreamInfo, Writer, can_code, pack
from codecplus.bitstream.codes import Codes
from codecplus.encoding.user_codes import as_codes, codes_and_info
from codecplus.errors import CodecPlusError, InputError
from codecplus.recordings.files import NamedFile
from codecplus.recordings.outputs import output_names, repeated
from codecplus.system.paths import (
    PathLike,
    as_path,
    atomic_path,
    check_output,
    refuse_own_source,
)

if TYPE_CHECKING:
    from codecplus.codec import Codec

_RATE_CONTROLS = ("cbr", "abr", "vbr")
_DEFAULT_QUALITY = 8.0
_ABR_EXCESS = 1.02  # an average rate is met within 2 %,
_ABR_BYTES = 64  # or within these bytes for very short files


@dataclass(frozen=True, kw_only=True)
class CompressionOptions:
    """How audio becomes codes, and codes become bytes.

    Args:
        bitrate: kbit/s for all channels together. The number of codebooks with the nearest rate is
            used, all by default. Entropy coding makes a file smaller than that.
        n_quantizers: codebooks to use, instead of a bitrate.
        loudness: LUFS to bring the audio to before encoding (ITU-R BS.1770-4). Decoding undoes it.
        rate_control: `"cbr"` writes the same codebooks for every frame; `"vbr"` the fewest that
            sound alike by `quality`; `"abr"` as many as make the file have `bitrate`, within 2 %.
        quality: 0 to 10, for `"vbr"`; 10 is what all codebooks give, 8 the default.
        effort: 0 to 3. The encoder looks for better codes by decoding them and comparing, 3, 10 or
            30 times (docs/bitrate.md). Each time takes about three times as long as decoding.
        entropy_coding: False packs codes as they are.

    Raises InputError for values that are out of range or do not fit together.
    """

    bitrate: float | None = None
    n_quantizers: int | None = None
    loudness: float | None = None
    rate_control: str = "cbr"
    quality: float | None = None
    effort: int = 0
    entropy_coding: bool = True

    def __post_init__(self) -> None:
        mode = self.rate_control
        if mode not in _RATE_CONTROLS:
            raise InputError(f"expected rate_control 'cbr', 'abr' or 'vbr', got {mode!r}")
        if self.effort not in (0, 1, 2, 3):
            raise InputError(f"expected an effort from 0 to 3, got {self.effort!r}")
        if self.quality is not None and (mode != "vbr" or not 0 <= self.quality <= 10):
            raise InputError(
                "expected a quality from 0 to 10, with rate_control='vbr' alone, "
                f"got {self.quality!r}"
            )
        if mode == "abr" and (self.bitrate is None or not self.bitrate > 0):
            raise InputError(f"rate_control='abr' needs a bitrate in kbit/s, got {self.bitrate!r}")
        if mode == "vbr" and self.bitrate is not None:
            raise InputError(
                "rate_control='vbr' goes by quality, got a bitrate; leave it out, or use 'abr'"
            )
        if mode != "cbr" and not self.entropy_coding:
            raise InputError(
                f"rate_control={mode!r} needs entropy coding; leave entropy_coding alone"
            )
        if self.bitrate is not None and self.n_quantizers is not None:
            raise InputError("expected bitrate or n_quantizers, got both; leave one out")

    @classmethod
    def from_settings(
        cls, options: "CompressionOptions | None", settings: dict[str, Any]
    ) -> "CompressionOptions":
        """Options as given, or made of keywords. Raises InputError for both, or unknown names."""
        settings = {name: value for name, value in settings.items() if value is not None}
        if options is not None:
            if settings:
                raise InputError(
                    f"expected options or keywords, got options and {', '.join(settings)}; "
                    "use dataclasses.replace(options, ...)"
                )
            return options
        known = [field.name for field in fields(cls)]
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise InputError(f"unknown option {unknown[0]!r}; expected {', '.join(known)}")
        return cls(**settings)


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
    pieces = _control_rate(codec, samples, info, options, counted)
    return EncodedAudio(pieces, info, counted)


def _control_rate(
    codec: "Codec",
    samples: Iterable[np.ndarray],
    info: StreamInfo,
    options: CompressionOptions,
    counted: CountedBlocks,
) -> Iterator[np.ndarray]:
    """Codes with as many codebooks for each frame as the rate control wants."""
    coded_info, entropy = entropy_coding(codec, info, options.entropy_coding)

    def encode(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return _search_codes(codec, blocks, info.num_codebooks, options.effort, entropy)

    if options.rate_control == "cbr":
        return encode(samples)
    from codecplus.encoding.rate_control import audible_errors, leave_out, quality_tolerance

    pieces = audible_errors(_torch_model(codec, "rate_control"), samples, encode)
    if options.rate_control == "vbr":
        quality = _DEFAULT_QUALITY if options.quality is None else options.quality
        tolerance = quality_tolerance(quality)
        return (leave_out(codes, errors, tolerance) for codes, errors in pieces)
    assert options.bitrate is not None
    return _meet_bitrate(pieces, coded_info, entropy, options.bitrate, counted)


def _search_codes(
    codec: "Codec",
    samples: Iterable[np.ndarray],
    num_codebooks: int,
    effort: int,
    entropy: EntropyModel | None,
) -> Iterator[np.ndarray]:
    if effort == 0:
        return codec.network.encode_blocks(samples, num_codebooks)
    from codecplus.encoding import refinement

    model = _torch_model(codec, "effort")
    steps = refinement.EFFORTS[effort]
    return refinement.encode_with_effort(model, samples, num_codebooks, steps, entropy)


def _meet_bitrate(
    pieces: Iterable[tuple[np.ndarray, np.ndarray]],
    info: StreamInfo,
    entropy: EntropyModel | None,
    bitrate: float,
    counted: CountedBlocks,
) -> Iterator[np.ndarray]:
    """Codes whose file has a bitrate. All of them must be known first: they are held in memory."""
    from codecplus.encoding.rate_control import leave_out, tolerance_for_size

    all_codes, all_errors = (np.concatenate(part, axis=-1) for part in zip(*pieces, strict=True))
    num_samples = counted.num_samples
    target = bitrate * 125 * num_samples / info.original_sample_rate  # bytes

    def size_at(tolerance: float) -> int:
        codes = leave_out(all_codes, all_errors, tolerance)
        return len(pack(codes, info, num_samples=num_samples, entropy=entropy))

    tolerance = tolerance_for_size(size_at, target)
    size = size_at(tolerance)
    if size > max(_ABR_EXCESS * target, target + _ABR_BYTES):
        least = size * bitrate / target
        raise InputError(
            f"this audio takes {least:.2f} kbit/s at least with this model, got bitrate={bitrate}"
        )
    yield leave_out(all_codes, all_errors, tolerance)


def entropy_coding(
    codec: "Codec", info: StreamInfo, wanted: bool
) -> tuple[StreamInfo, EntropyModel | None]:
    """How a stream is written: its info, and the entropy model if the codec has one that fits."""
    if not wanted or not can_code(info.channels, info.num_codebooks, info.codebook_size):
        return replace(info, entropy_model=None), None
    for entropy in codec.entropy_models.values():
        if entropy.fits(info.num_codebooks, info.codebook_size):
            return replace(info, entropy_model=entropy.identity), entropy
    return replace(info, entropy_model=b""), None


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
        info, entropy = entropy_coding(codec, encoded.info, options.entropy_coding)
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


def each_file(
    function: Callable[[Any, Path | None], Any], sources: list, outputs: Sequence[Path | None]
) -> list:
    """Call a function with each source and its output; one failure takes no other file along.

    Raises the kind of the first failure when all files were tried; its message names each that
    failed, and why.
    """
    results = []
    failures = []
    for source, output in zip(sources, outputs, strict=True):
        try:
            results.append(function(source, output))
        except CodecPlusError as error:
            failures.append((source, error))
    if not failures:
        return results
    if len(sources) == 1:
        raise failures[0][1]
    reasons = "; ".join(f"{os.fsdecode(source)}: {error}" for source, error in failures)
    first = failures[0][1]
    raise type(first)(
        f"{len(failures)} of {len(sources)} files failed, the others were done: {reasons}"
    ) from first


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
    info, entropy = entropy_coding(codec, info, entropy_coded)
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


def _torch_model(codec: "Codec", option: str) -> Any:
    if not hasattr(codec.model, "quantizer"):
        raise InputError(
            f"{option} needs the model in torch, got an exported one; load the checkpoint itself"
        )
    return codec.model


def batch_outputs(sources: list, folder: PathLike | None, suffix: str) -> list[Path | None]:
    """Where each of several files goes: into a folder, under its own name with another suffix.

    Files of one name get the folders that tell them apart, which are made; files that differ in
    their suffix alone keep it, as in `take.mp3.dacp`.

    Raises InputError where two would still become one file, or one would replace a source.
    """
    if folder is None:
        return [None] * len(sources)
    paths = [as_path(source) for source in sources]
    groups = [[NamedFile(path, path.name)] for path in paths]
    names = output_names(paths, groups, suffix)
    clashing = repeated(names)
    if clashing:
        longer = output_names(paths, groups, suffix, keep_suffix=True)
        pairs = zip(names, longer, strict=True)
        names = [long if name in clashing else name for name, long in pairs]
    originals = {os.path.realpath(path): path for path in paths}
    outputs: dict[Path, Path] = {}
    for path, name in zip(paths, names, strict=True):
        output = as_path(folder) / name
        if output in outputs:
            raise InputError(
                f"{path} and {outputs[output]} would both become {output}; "
                "rename one, or give them different folders"
            )
        replaced = originals.get(os.path.realpath(output))
        if replaced is not None:
            raise InputError(f"{path} would be written over {replaced}; name another folder")
        outputs[output] = path
    if os.path.isdir(folder):
        for output in outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
    return list(outputs)
