"""Recordings as datasets hold them: files in folders, and cells of an audio column. Knows samples,
not models.

Light to import, for the processes that decode while a device computes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.audio.arrays import as_audio
from codecplus.audio.files import AudioFileReader
from codecplus.audio.resampling import Resampler
from codecplus.errors import FileFormatError, InputError

# Formats that soundfile cannot read are listed too: they are reported, not overlooked.
SUFFIXES = {
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64",
    ".m4a", ".aac", ".wma",
}  # fmt: skip
_BLOCK = (
    1 << 16
)  # samples, as everywhere in the package: the same blocks are resampled to the same bits
_MAX_BYTES = 1 << 32  # of a remote file, which is read whole


def audio_files(folder: Path) -> list[str]:
    """Paths of all audio files under a folder, relative to it, in the order of their names."""
    found = (
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    return sorted(path.relative_to(folder).as_posix() for path in found)


@dataclass(frozen=True)
class Recording:
    """A recording as it came: `channels`, `num_samples` and `sample_rate` before anything was done
    to it.

    `audio` (C, S) float32 has been mixed and resampled as asked; None if it was too long to be read
    at once.
    """

    audio: np.ndarray | None
    num_samples: int
    sample_rate: int


def read_recording(
    cell: Any,
    sample_rate: int,
    channels: int = 1,
    *,
    default_rate: int | None = None,
    max_seconds: float | None = None,
) -> Recording:
    """Read one cell of an audio column at a rate in Hz, with a number of channels.

    Args: cell: `{"bytes", "path"}` or `{"array", "sampling_rate"}` as `datasets` gives it, encoded
        bytes, a path, a
            decoder of torchcodec, or an array (samples,) or (channels, samples) at `default_rate`.
        channels: 1 is the mean of all; a mono recording can become any number; other changes are
        refused.
        max_seconds: beyond it only the length is told, so that memory stays bounded.

    Raises:
        InputError, FileFormatError: if there is no audio, or it cannot be read or used.
    """
    source = _open(cell, default_rate)
    try:
        if max_seconds is not None and source.num_samples > max_seconds * source.sample_rate:
            return Recording(None, source.num_samples, source.sample_rate)
        counter = Mixed(source, channels)
        resampler = Resampler(source.sample_rate, sample_rate, channels)
        pieces = [resampler.push(block) for block in counter]
        audio = np.concatenate([*pieces, resampler.flush()], axis=1)
        return Recording(audio, counter.num_samples, source.sample_rate)
    finally:
        source.close()


def open_recording(cell: Any, channels: int = 1, *, default_rate: int | None = None) -> Mixed:
    """The same in blocks (C, n) at its own rate, in bounded memory; iterate once, then read
    `num_samples`.
    """
    return Mixed(_open(cell, default_rate), channels)


class Mixed:
    """Blocks (C, n) with so many channels, of a source of blocks; counts samples as they pass."""

    def __init__(self, source: Any, channels: int):
        if channels != source.channels and 1 not in (channels, source.channels):
            source.close()
            raise InputError(
                f"the recording has {source.channels} channels and cannot become {channels}; possible are "
                f"{source.channels}, or 1 (their mean)"
            )
        self.source, self.channels, self.num_samples = source, channels, 0
        self.sample_rate = source.sample_rate

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self.source.blocks(_BLOCK):
            self.num_samples += block.shape[1]
            if self.channels < len(block):
                block = block.mean(axis=0, keepdims=True)
            yield np.repeat(block, self.channels, axis=0) if self.channels > len(block) else block

    def close(self) -> None:
        """Close the file."""
        self.source.close()


class _ArraySource:
    """An array as a source of blocks."""

    def __init__(self, audio: Any, sample_rate: int):
        self.audio = np.atleast_2d(as_audio(audio))
        self.channels, self.num_samples = self.audio.shape
        self.sample_rate = sample_rate

    def blocks(self, block_samples: int) -> Iterator[np.ndarray]:
        return (
            self.audio[:, i : i + block_samples] for i in range(0, self.num_samples, block_samples)
        )

    def close(self) -> None:
        """Nothing to close."""


class _FileSource(AudioFileReader):
    def close(self) -> None:
        self.__exit__()


def _open(cell: Any, default_rate: int | None) -> _ArraySource | _FileSource:
    if hasattr(cell, "get_all_samples"):  # torchcodec's decoder
        samples = cell.get_all_samples()
        return _ArraySource(samples.data, int(samples.sample_rate))
    if isinstance(cell, dict):
        if cell.get("array") is not None:
            rate = cell.get("sampling_rate")
            if rate is None:
                raise InputError("the row has an array without its sampling_rate; expected both")
            return _ArraySource(
                np.asarray(cell["array"], dtype=_float_if_list(cell["array"])), int(rate)
            )
        cell = cell["path"] if cell.get("bytes") is None and "path" in cell else cell.get("bytes")
    if cell is None or (isinstance(cell, str) and not cell):
        raise InputError("the row holds no audio: neither bytes nor a path nor an array")
    if isinstance(cell, (bytes, bytearray, memoryview)):
        return _open_file(io.BytesIO(cell), "BytesIO")
    if isinstance(cell, (str, Path)):
        if "://" in str(cell):
            return _open_file(io.BytesIO(_fetch(str(cell))), "BytesIO")
        return _open_file(Path(cell), str(cell))
    if default_rate is None:
        raise InputError(
            f"expected audio as bytes, a path or an array with its rate, got {type(cell).__name__}"
        )
    return _ArraySource(cell, default_rate)


def _float_if_list(array: Any) -> Any:
    return np.float32 if isinstance(array, list) and array and isinstance(array[0], float) else None


def _open_file(file: Any, name: str) -> _FileSource:
    try:
        source = _FileSource(file)
        source.name = "the file"
        return source
    except (InputError, FileFormatError) as error:
        raise type(error)(anonymous(str(error), name)) from error


def anonymous(message: str, name: str) -> str:
    """The message without the place where a file happens to lie, so that it is the same on every
    machine.
    """
    return message.replace(name, "the file").replace("BytesIO", "the file")


def _fetch(url: str) -> bytes:
    """A file of the Hub, which a streamed dataset names by its address; others are not followed."""
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
