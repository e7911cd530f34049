"""Audio that a user hands over: a file, an array, or an array with its rate. Opened as blocks."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from codecplus.audio.arrays import as_audio, split_blocks
from codecplus.audio.files import AudioFileReader
from codecplus.audio.loudness import LoudnessMeter
from codecplus.errors import InputError


@dataclass(frozen=True)
class AudioSource:
    """A signal that can be read from its start in blocks (C, n), more than once."""

    sample_rate: int
    channels: int
    blocks: Callable[[], Iterator[np.ndarray]]
    is_vector: bool = False
    """Whether the signal came as (samples,), without an axis for channels."""


@contextmanager
def open_audio(source: Any, sample_rate: int | None, default_rate: int) -> Iterator[AudioSource]:
    """Open audio for reading.

    Args:
        source: the path of an audio file; an array, list or tensor as `as_audio` takes it; a pair
            of an array and its rate in either order, as torchaudio and gradio give it; or
            `{"array": ..., "sampling_rate": ...}`, as `datasets` gives it.
        sample_rate: of an array, Hz. A file and a pair know their own.
        default_rate: of an array where `sample_rate` is not given, Hz.

    Raises:
        InputError: for something else, several clips, or a rate where none can be given.
        FileFormatError: for a file that is not readable audio.
    """
    if isinstance(source, (str, os.PathLike)):
        refuse_rate(sample_rate, "a file")
        with AudioFileReader(source) as reader:
            yield AudioSource(reader.sample_rate, reader.channels, reader.blocks)
        return
    array, own_rate = _array_and_rate(source)
    if own_rate is not None:
        refuse_rate(sample_rate, "audio that comes with its rate")
        sample_rate = own_rate
    if is_batch(array):
        raise InputError(
            "expected one clip, got a list of them; give them one by one, or a list of paths"
        )
    audio = as_audio(array)
    channels = np.atleast_2d(audio)
    rate = check_integer_rate(default_rate if sample_rate is None else sample_rate)
    yield AudioSource(rate, len(channels), lambda: split_blocks(channels), audio.ndim == 1)


def is_batch(audio: Any) -> bool:
    """Whether a list holds several clips, rather than the numbers or the channels of one."""
    if not isinstance(audio, (list, tuple)) or not audio:
        return False
    if any(np.ndim(item) == 0 for item in audio):  # numbers, or a pair of an array and its rate
        return False
    return not all(isinstance(item, (list, tuple)) for item in audio)


def is_paths(source: Any) -> bool:
    """Whether this is a list of paths."""
    return (
        isinstance(source, (list, tuple))
        and len(source) > 0
        and all(isinstance(item, (str, os.PathLike)) for item in source)
    )


def check_integer_rate(rate: Any) -> int:
    """Return a rate in Hz; raise InputError unless it is a positive integer."""
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or rate < 1:
        raise InputError(f"expected a sample rate in Hz as a positive integer, got {rate!r}")
    return int(rate)


def refuse_rate(sample_rate: int | None, owner: str) -> None:
    """Raise InputError if a rate was given for audio that knows its own."""
    if sample_rate is not None:
        raise InputError(
            f"sample_rate is for audio given as an array; {owner} knows its own rate, leave it out"
        )


def measure_gain(source: AudioSource, loudness: float) -> float:
    """The factor that brings a signal to a loudness in LUFS (ITU-R BS.1770-4).

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


def _array_and_rate(source: Any) -> tuple[Any, int | None]:
    if isinstance(source, dict):
        if "array" not in source or source.get("sampling_rate") is None:
            raise InputError(
                f"expected a dict of array and sampling_rate, got {', '.join(map(str, source))}"
            )
        return source["array"], int(source["sampling_rate"])
    if isinstance(source, tuple) and len(source) == 2:
        first, second = source
        if _is_rate(second) and np.ndim(first) > 0:
            return first, int(second)
        if _is_rate(first) and np.ndim(second) > 0:
            return second, int(first)
    return source, None


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
