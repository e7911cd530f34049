"""Audio that libsndfile reads, in blocks of bounded memory.

Letters: C channels, n samples of a block.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from codecplus.audio.arrays import BLOCK_SAMPLES
from codecplus.audio.headers import mp3_start
from codecplus.errors import FileFormatError

_INDEX_BYTES = 4096  # a frame is shorter
_NO_FILE = 7  # libsndfile's error for an MP3 in which it finds no frame: "File does not exist"


class SoundFile:
    """A file with the attributes of `codecplus.audio.containers.ContainerFile`.

    Args:
        path_or_file: a path, or a file that is open for reading and left open.
        name: of the file, for messages.
        repair: bytes by position that stand for those of the header.

    Raises:
        FileFormatError: for a file that libsndfile does not read.
    """

    least_samples = 1

    def __init__(self, path_or_file: Path | BinaryIO, name: str, repair: dict[int, bytes]):
        self._source: Any = path_or_file
        if isinstance(path_or_file, Path):
            self._source = native_path(path_or_file)
        else:
            self._source = _RepairedFile(path_or_file, repair)
        try:
            opened = self._open()
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a headerless .raw
            reason = reason_of(error)
            if getattr(error, "code", None) == _NO_FILE:
                reason = "no whole frame of an MP3"
            raise FileFormatError(
                f"{name} is not readable audio ({reason}); "
                "expected WAV, FLAC, OGG, MP3 or another format of docs/reliability.md"
            ) from error
        with opened:
            self.sample_rate = opened.samplerate
            self.channels = opened.channels
            self.expected_samples = opened.frames
            is_mp3 = opened.format == "MP3"
        self.enough_samples = float(self.expected_samples)
        self._guesses_length = is_mp3 and not _has_index(path_or_file)
        if self._guesses_length:
            self.enough_samples = 1.0
        elif is_mp3:  # an index may count the padding of the last frame
            self.enough_samples = self.expected_samples * 0.99 - 4096

    @cached_property
    def num_samples(self) -> int:
        """The samples per channel. An MP3 without an index is decoded to know."""
        if self._guesses_length:
            return sum(block.shape[1] for block in self.decoded(BLOCK_SAMPLES))
        return self.expected_samples

    def _open(self) -> "_ForwardFile":
        if hasattr(self._source, "seek"):
            self._source.seek(0)
        return _ForwardFile(self._source)

    def decoded(self, block_samples: int) -> Iterator[np.ndarray]:
        """Yield the file from its start as float32 (C, n).

        Raises soundfile.LibsndfileError for damage.
        """
        with ExitStack() as stack:
            if self._guesses_length:
                source: Any = self._source
                if not hasattr(source, "seek"):
                    source = stack.enter_context(open(source, "rb"))
                source = _LongFile(source)
                opened = stack.enter_context(_ForwardFile(source))
            else:
                opened = stack.enter_context(self._open())
            left = opened.frames
            while left > 0:
                size = min(left, block_samples)
                samples = opened.read(size, dtype="float32", always_2d=True)
                if len(samples) == 0:
                    return
                left -= len(samples)
                yield np.ascontiguousarray(samples.T)

    def close(self) -> None:
        """Do nothing: between two readings nothing is open."""


class _ForwardFile(soundfile.SoundFile):
    """A file that is read from its start to its end.

    soundfile seeks behind every block that it reads. For an MP3 that means to begin anew without
    the bits that earlier frames hold: the first frames of each block would be damaged.
    """

    def seekable(self) -> bool:
        return False


class _RepairedFile:
    """An open file with some bytes replaced, which ignores a seek to an impossible position.

    libsndfile seeks to positions that a damaged header names, and prints the errors of the file.
    """

    def __init__(self, file: BinaryIO, repair: dict[int, bytes]):
        self._file = file
        self._repair = repair

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with suppress(ValueError, OSError):
            self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        start = self._file.tell()
        data = self._file.read(size)
        for position, content in self._repair.items():
            data = _replaced(data, position - start, content)
        return data


def _replaced(data: bytes, position: int, content: bytes) -> bytes:
    """Return data with other bytes from a position on, which may lie before or behind it."""
    if position >= len(data) or position + len(content) <= 0:
        return data
    changed = bytearray(data)
    for index, byte in enumerate(content, position):
        if 0 <= index < len(data):
            changed[index] = byte
    return bytes(changed)


class _LongFile:
    """An MP3 that claims to be longer than it is.

    libsndfile guesses the length of an MP3 without an index from the size of the file and of its
    first frames, and never reads beyond. Of a recording that begins loud and goes on quietly it
    would give a sixth. Nothing is guessed too short where the file could be 64 times as long.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._claimed = 64 * file.seek(0, os.SEEK_END)
        file.seek(0)
        self._position: int | None = None  # one counted from the claimed end

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            self._position = self._claimed + offset
            return self._position
        self._position = None
        with suppress(ValueError, OSError):
            self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self) -> int:
        if self._position is not None:
            return self._position
        return self._file.tell()

    def read(self, size: int) -> bytes:
        if self._position is None:
            return self._file.read(size)
        count = max(0, min(size, self._claimed - self._position))
        self._position += count
        return bytes(count)


def _has_index(path_or_file: Path | BinaryIO) -> bool:
    """Return whether an MP3 says in its first frame how many frames it has."""
    if isinstance(path_or_file, Path):
        with path_or_file.open("rb") as file:
            return _has_index(file)
    path_or_file.seek(mp3_start(path_or_file))
    frame = path_or_file.read(_INDEX_BYTES)
    return any(name in frame for name in (b"Xing", b"Info", b"VBRI"))


def native_path(path: Path) -> Any:
    """Return a path as soundfile takes it, bytes or a string: a string fails for a name that is no
    UTF-8.
    """
    return str(path) if os.name == "nt" else os.fsencode(path)


def reason_of(error: Exception) -> str:
    """Return what libsndfile says went wrong."""
    return str(getattr(error, "error_string", error)).rstrip(" .") or type(error).__name__
