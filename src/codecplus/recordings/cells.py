"""Samples of one recording as data sets hold it: a path, encoded bytes, an array. Knows no tables.

Letters: C channels, S samples. Light to import, for the processes that decode while a device
computes.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from codecplus.audio.files import AudioFileReader
from codecplus.audio.resampling import Resampler
from codecplus.audio.sources import ArraySource, array_and_rate
from codecplus.errors import FileFormatError, InputError

_MAX_BYTES = 1 << 32  # of a remote file, which is read whole


@dataclass(frozen=True)
class OutsideFile:
    """A file that a stranger's table names and may not have: reading it is an InputError."""

    path: str


@dataclass(frozen=True)
class DecodedAudio:
    """A recording that was read.

    Attributes:
        audio: float32 (C, S), with the channels and the rate that the caller asked for; None for a
            recording that is too long to be read at once.
        num_samples, sample_rate: of the original. Without `audio`, `num_samples` is the length by
            the header, or the part that was read.
    """

    audio: np.ndarray | None
    num_samples: int
    sample_rate: int


def read_cell(
    cell: Any,
    sample_rate: int,
    channels: int = 1,
    *,
    default_rate: int | None = None,
    max_seconds: float | None = None,
) -> DecodedAudio:
    """Read one cell of an audio column at a rate in Hz, with a number of channels.

    Args:
        cell: `{"bytes", "path"}` or `{"array", "sampling_rate"}` as `datasets` gives it, encoded
            bytes, a path, a decoder of torchcodec, or an array (samples,) or (channels, samples),
            in a pair with its rate or at `default_rate`.
        sample_rate: of the result, in Hz.
        channels: 1 averages all channels, a mono recording is copied to any number, other changes
            are refused.
        default_rate: of an array that comes without its rate, in Hz.
        max_seconds: of a longer recording no more is read, so that memory stays bounded.

    Raises:
        InputError, FileFormatError: if there is no audio, or it cannot be read or used.
    """
    source = open_cell(cell, default_rate=default_rate)
    try:
        rate = source.sample_rate
        most = math.inf if max_seconds is None else max_seconds * rate
        by_header = round(source.header_seconds * rate)
        if by_header > most:
            return DecodedAudio(None, by_header, rate)
        blocks = MixedBlocks(source, channels)
        resampler = Resampler(rate, sample_rate, channels)
        pieces = []
        for block in blocks:
            if blocks.num_samples > most:  # the header says nothing, or too little
                return DecodedAudio(None, blocks.num_samples, rate)
            pieces.append(resampler.push(block))
        audio = np.concatenate([*pieces, resampler.flush()], axis=1)
        return DecodedAudio(audio, blocks.num_samples, rate)
    finally:
        source.close()


class MixedBlocks:
    """Blocks (C, n) of an open cell at its own rate, with another number of channels.

    The cell can be iterated once; then `num_samples` says how many samples there were.

    Raises:
        InputError: if the cell cannot become `channels` channels; it is closed then.
    """

    def __init__(self, source: "ArraySource | FileBlocks", channels: int):
        if channels != source.channels and 1 not in (channels, source.channels):
            source.close()
            raise InputError(
                f"the recording has {source.channels} channels and cannot become {channels}; "
                f"possible are {source.channels}, or 1 (their mean)"
            )
        self.source = source
        self.channels = channels
        self.sample_rate = source.sample_rate
        self.num_samples = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self.source.blocks():
            self.num_samples += block.shape[1]
            if self.channels < len(block):
                block = block.mean(axis=0, keepdims=True)
            elif self.channels > len(block):
                block = np.repeat(block, self.channels, axis=0)
            yield block

    def close(self) -> None:
        """Close the cell."""
        self.source.close()


class FileBlocks(AudioFileReader):
    """An `AudioFileReader` whose messages name no place, so that they are the same everywhere."""

    def __init__(self, file: Any):
        try:
            super().__init__(file)
        except (InputError, FileFormatError) as error:
            message = str(error).replace(f"no file {file}", "no such file")
            message = message.replace(str(file), "the file").replace("BytesIO", "the file")
            raise type(error)(message) from error
        self.name = "the file"

    def close(self) -> None:
        """Close the file."""
        self.__exit__()

    def __enter__(self) -> "FileBlocks":
        return self


def open_cell(cell: Any, *, default_rate: int | None = None) -> ArraySource | FileBlocks:
    """Open a cell to read its blocks at its own rate, in bounded memory. See `read_cell`.

    Raises:
        InputError, FileFormatError: if there is no audio, or it cannot be read or used.
    """
    array, rate = array_and_rate(cell)
    if rate is not None:
        return ArraySource(array, rate)
    content = encoded_content(cell)
    if isinstance(content, bytes):
        return FileBlocks(io.BytesIO(content))
    if isinstance(content, Path):
        return FileBlocks(content)
    if default_rate is None:
        raise InputError(
            f"expected audio as bytes, a path or an array with its rate, got {type(cell).__name__}"
        )
    return ArraySource(content, default_rate)


def encoded_content(cell: Any) -> Any:
    """Return the encoded bytes of a cell or the path of its file, where it holds one of them.

    Files on the Hub are fetched. A cell of another type is returned as it is.

    Raises:
        InputError: for a cell without audio, and for a file that is on neither disk nor Hub.
    """
    content = cell
    if isinstance(cell, dict):
        content = cell.get("bytes")
        if content is None and "path" in cell:
            content = cell["path"]
    if isinstance(content, OutsideFile):
        raise InputError(
            f"the row names {content.path}, which is no file of the data set; a data set of the "
            "Hub brings its audio along"
        )
    if content is None or (isinstance(content, str) and not content):
        raise InputError("the row holds no audio: neither bytes nor a path nor an array")
    if isinstance(content, (bytes, bytearray, memoryview)):
        return bytes(content)
    if isinstance(content, (str, Path)):
        if "://" in str(content):
            return _fetch(str(content))
        return Path(content)
    return content


def as_file(cell: Any) -> Path | bytes:
    """Return a cell as an audio file: a path, or encoded bytes.

    An array with its rate becomes the bytes of a WAV file of 32-bit floats.
    """
    if isinstance(cell, dict) and cell.get("array") is not None:
        blocks = open_cell(cell)
        file = io.BytesIO()
        audio = next(iter(blocks.blocks(max(1, blocks.num_samples)))).T
        soundfile.write(file, audio, blocks.sample_rate, format="WAV", subtype="FLOAT")
        return file.getvalue()
    return encoded_content(cell)


def _fetch(url: str) -> bytes:
    """Read a file of the Hub, which a streamed dataset names by its address."""
    if "hf://" not in url and not url.startswith("https://huggingface.co/"):
        raise InputError(
            f"the row names {url}; only files here and on the Hub are read, download it first"
        )
    from datasets.utils.file_utils import xopen

    try:
        with xopen(url, "rb") as file:
            data = file.read(_MAX_BYTES)
    except Exception as error:
        raise InputError(f"cannot fetch the file from the Hub: {type(error).__name__}") from error
    return data
