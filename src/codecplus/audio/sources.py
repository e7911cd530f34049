"""Audio that a user hands over: a file, an array, or an array with its rate. Opened as blocks.

Letters: C channels, S samples, n samples of a block.
"""

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from codecplus.audio.arrays import BLOCK_SAMPLES, as_audio
from codecplus.audio.files import AudioFileReader
from codecplus.audio.loudness import LoudnessMeter
from codecplus.errors import InputError


@dataclass(frozen=True)
class AudioSource:
    """A signal that can be read from its start in blocks (C, n), more than once."""

    sample_rate: int
    channels: int
    blocks: Callable[[], Iterator[np.ndarray]]
    is_vector: bool
    """Whether it is (samples,), without an axis for channels: such an array, or a mono file."""

    def read(self) -> np.ndarray:
        """Return all of it, float32 (S,) or (C, S)."""
        audio = np.concatenate(list(self.blocks()), axis=1)
        return audio[0] if self.is_vector else audio


class ArraySource:
    """An array (S,) or (C, S) with the attributes of an `AudioFileReader`."""

    def __init__(self, audio: Any, sample_rate: int):
        if isinstance(audio, list) and audio and isinstance(audio[0], float):
            audio = np.asarray(audio, np.float32)  # half the memory of what numpy would choose
        array = as_audio(audio)
        self.is_vector = array.ndim == 1
        self.sample_rate = sample_rate
        self._audio = np.atleast_2d(array)
        self.channels, self.num_samples = self._audio.shape
        self.header_seconds = self.num_samples / sample_rate

    def blocks(self, block_samples: int = BLOCK_SAMPLES) -> Iterator[np.ndarray]:
        """Yield float32 (C, n); n is `block_samples` but for the last block."""
        for start in range(0, self.num_samples, block_samples):
            yield self._audio[:, start : start + block_samples]

    def close(self) -> None:
        """Do nothing: an array has nothing to close."""

    def __enter__(self) -> "ArraySource":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@contextmanager
def open_audio(source: Any, sample_rate: int | None, default_rate: int) -> Iterator[AudioSource]:
    """Open audio for reading.

    Args:
        source: the path of an audio file; an array, list or tensor as `as_audio` takes it; what
            `array_and_rate` takes; or `{"bytes": ..., "path": ...}`, an encoded file as `datasets`
            gives it.
        sample_rate: of an array, Hz. Everything else knows its own.
        default_rate: of an array where `sample_rate` is not given, Hz.

    Raises:
        InputError: for something else, several clips, or a rate where none can be given.
        FileFormatError: for a file that is not readable audio.
    """
    file = _encoded_file(source)
    if file is not None:
        refuse_rate(sample_rate, "a file")
        with AudioFileReader(file) as reader:
            is_mono = reader.channels == 1
            yield AudioSource(reader.sample_rate, reader.channels, reader.blocks, is_mono)
        return
    refuse_other_than_audio(source)
    array, own_rate = array_and_rate(source)
    if own_rate is not None:
        refuse_rate(sample_rate, "audio that comes with its rate")
    elif sample_rate is not None:
        own_rate = check_integer_rate(sample_rate)
    else:
        own_rate = default_rate
    if is_batch(array):
        raise InputError(
            "expected one clip, got a list of them; give them one by one, or a list of paths"
        )
    audio = ArraySource(array, own_rate)
    yield AudioSource(own_rate, audio.channels, audio.blocks, audio.is_vector)


def array_and_rate(source: Any) -> tuple[Any, int | None]:
    """Split audio that comes with its rate into an array and the rate in Hz.

    Args:
        source: `{"array": ..., "sampling_rate": ...}` or a decoder of torchcodec, as `datasets`
            gives it; `(array, rate)` as torchaudio and soundfile give it; or `(rate, array)` as
            gradio and scipy give it, whose arrays are (samples,) or (samples, channels).

    Returns:
        The array and its rate; `source` itself and None for anything else.

    Raises:
        InputError: for an array without its rate, and a rate that is no positive integer.
    """
    if hasattr(source, "get_all_samples"):  # a decoder of torchcodec
        samples = source.get_all_samples()
        return samples.data, check_integer_rate(samples.sample_rate)
    if isinstance(source, Mapping) and source.get("array") is not None:
        if source.get("sampling_rate") is None:
            raise InputError("there is an array without its sampling_rate; expected both")
        return source["array"], check_integer_rate(source["sampling_rate"])
    if not is_pair(source):
        return source, None
    first, second = source
    if _is_number(second):
        return first, check_integer_rate(second)
    if second.ndim == 2:
        second = second.T
    return second, check_integer_rate(first)


def is_pair(source: Any) -> bool:
    """Return whether this is an array and its rate, in either order."""
    if not isinstance(source, (list, tuple)) or len(source) != 2:
        return False
    first, second = source
    if _is_number(first):
        return _is_array(second)
    return _is_number(second) and (_is_array(first) or isinstance(first, list))


def is_batch(audio: Any) -> bool:
    """Return whether a sequence holds several clips, rather than the numbers or the channels of
    one.
    """
    if isinstance(audio, (str, bytes)) or not isinstance(audio, Sequence) or not audio:
        return False
    if is_pair(audio) or not any(_is_clip(item) for item in audio):
        return False
    return all(_is_clip(item) or isinstance(item, list) for item in audio)


def is_paths(source: Any) -> bool:
    """Return whether this is a list of paths."""
    if not isinstance(source, (list, tuple)) or not source:
        return False
    return all(isinstance(item, (str, os.PathLike)) for item in source)


def check_integer_rate(rate: Any) -> int:
    """Return a rate in Hz; raise InputError unless it is a positive integer."""
    if _is_zero_dimensional(rate):
        rate = rate.item()
    if not _is_number(rate) or rate % 1 or rate < 1:
        raise InputError(f"expected a sample rate in Hz as a positive integer, got {rate!r}")
    return int(rate)


def refuse_rate(sample_rate: int | None, owner: str) -> None:
    """Raise InputError if a rate was given for audio that knows its own."""
    if sample_rate is not None:
        raise InputError(
            f"sample_rate is for audio given as an array; {owner} knows its own rate, leave it out"
        )


def refuse_other_than_audio(source: Any) -> None:
    """Raise InputError for what is often mistaken for audio; it says what to call instead."""
    if source is None:
        raise InputError("expected audio or the path of an audio file, got None")
    if isinstance(source, (bytes, bytearray, memoryview)):
        raise InputError(
            "expected audio, got bytes; those of a .dacp file go to decompress, those of an audio "
            "file in as {'bytes': data, 'path': None}, raw samples as np.frombuffer(data, np.int16)"
        )
    if hasattr(source, "read"):
        raise InputError(
            "expected audio or a path, got an open file; "
            "give its path, or {'bytes': file.read(), 'path': None}"
        )
    if hasattr(source, "audio_values") or hasattr(source, "audio_codes"):
        raise InputError(
            f"expected audio, got the {type(source).__name__} of a model; "
            "give its audio_values, or decode its audio_codes"
        )
    if hasattr(source, "column_names"):
        raise InputError(
            "expected audio, got a data set; use dataset.map(codec.encode_batch, batched=True)"
        )
    if isinstance(source, Mapping) and source.get("array") is None:
        raise InputError(_mapping_advice(source))
    if isinstance(source, (list, tuple)) and not is_pair(source) and not is_batch(source):
        clips = [_is_clip(item) for item in source]
        if any(clips):
            number = clips.index(False)
            raise InputError(
                f"expected a list of clips, got {type(source[number]).__name__} as item {number}; "
                "an array may come with its rate as (array, rate), a file knows its own"
            )


def measure_gain(source: AudioSource, loudness: float) -> float:
    """Return the factor that brings a signal to a loudness in LUFS (ITU-R BS.1770-4).

    Raising the level stops where the peak reaches full scale. Silence keeps its level.
    """
    meter = LoudnessMeter(source.sample_rate, source.channels)
    peak = 0.0
    for block in source.blocks():
        meter.push(block)
        peak = max(peak, float(np.abs(block).max()))
    measured = meter.loudness()
    if not np.isfinite(measured) or peak == 0:
        return 1.0
    gain = 10 ** ((loudness - measured) / 20)
    if gain > 1:
        gain = min(gain, max(1.0, 1 / peak))
    return gain


def _encoded_file(source: Any) -> Any:
    """Return the path or the open file of encoded audio; None for anything else."""
    if isinstance(source, Mapping) and source.get("array") is None:
        if source.get("bytes") is not None:
            return io.BytesIO(source["bytes"])
        source = source.get("path")
    if not isinstance(source, (str, os.PathLike)):
        return None
    if os.fsdecode(source).lower().endswith((".dacp", ".dac")):
        raise InputError(f"expected audio, got {source}, a file of codes; decompress decodes it")
    return source


def _mapping_advice(source: Mapping) -> str:
    names = ", ".join(map(str, source))
    if "input_values" in source:
        return (
            f"expected audio, got what a feature extractor gives ({names}); "
            "give it to the model, or the clip itself to the codec"
        )
    return (
        f"expected a dict of array and sampling_rate, or of bytes and path, got {names}; "
        "of a row of a data set, give the audio column"
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float, np.number)) or _is_zero_dimensional(value)


def _is_zero_dimensional(value: Any) -> bool:
    """Whether this is a number as rows of data sets in the format of arrays or tensors have it."""
    return hasattr(value, "item") and getattr(value, "ndim", None) == 0


def _is_array(value: Any) -> bool:
    """Return whether this is an array or a tensor with at least one axis."""
    return getattr(value, "ndim", 0) > 0


def _is_clip(item: Any) -> bool:
    if isinstance(item, (str, os.PathLike, Mapping)) or hasattr(item, "get_all_samples"):
        return True
    return _is_array(item) or is_pair(item)
