"""Audio that libsndfile reads, in blocks of bounded memory.

Letters: C channels, n samples of a block.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from codecplus.errors import FileFormatError


class SoundFile:
    """An open file with the attributes of `codecplus.audio.containers.ContainerFile`.

    Args:
        path_or_file: a path, or a file that is open for reading and left open.
        name: of the file, for messages.
        repair: bytes by position that stand for those of the header.

    Raises:
        FileFormatError: for a file that libsndfile does not read.
    """

    least_samples = 1

    def __init__(self, path_or_file: Path | BinaryIO, name: str, repair: dict[int, bytes]):
        source: Any = path_or_file
        if isinstance(source, Path):
            source = native_path(source)
        elif repair:
            source = _RepairedFile(source, repair)
        try:
            self._file = soundfile.SoundFile(source)
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a headerless .raw
            raise FileFormatError(
                f"{name} is not readable audio ({reason_of(error)}); "
                "expected WAV, FLAC, OGG, MP3 or another format of docs/reliability.md"
            ) from error
        self.sample_rate = self._file.samplerate
        self.channels = self._file.channels
        self.expected_samples = self._file.frames
        self.num_samples = self.expected_samples
        self.enough_samples = float(self.expected_samples)
        if self._file.format == "MP3":
            # without an index, the length of an MP3 is an estimate from its first frames
            self.enough_samples = self.expected_samples * 0.99 - 4096

    def decoded(self, block_samples: int) -> Iterator[np.ndarray]:
        """Yield the file from its start as float32 (C, n).

        Raises soundfile.LibsndfileError for damage.
        """
        done = 0
        while done < self.num_samples:
            if done == 0 and self._file.seekable():
                self._file.seek(0)
            samples = self._file.read(block_samples, dtype="float32", always_2d=True)
            if len(samples) == 0:
                return
            done += len(samples)
            yield np.ascontiguousarray(samples.T)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _RepairedFile:
    """A file in which some bytes read as others."""

    def __init__(self, file: BinaryIO, repair: dict[int, bytes]):
        self._file = file
        self._repair = repair
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        start = self._file.tell()
        data = bytearray(self._file.read(size))
        for position, content in self._repair.items():
            for index, byte in enumerate(content, position - start):
                if 0 <= index < len(data):
                    data[index] = byte
        return bytes(data)


def native_path(path: Path) -> str | bytes:
    """Return a path as soundfile takes it: a string fails for a name that is no UTF-8."""
    return str(path) if os.name == "nt" else os.fsencode(path)


def reason_of(error: Exception) -> str:
    """Return what libsndfile says went wrong."""
    return str(getattr(error, "error_string", error)).rstrip(" .") or type(error).__name__
