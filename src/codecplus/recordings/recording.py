"""One recording of a data set: its name, its columns, and its samples on demand."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.audio.arrays import BLOCK_SAMPLES
from codecplus.audio.sources import ArraySource
from codecplus.recordings.cells import FileBlocks, as_file, open_cell, read_cell


@dataclass(frozen=True)
class Recording:
    """One recording. Nothing of it is opened before it is asked for.

    Attributes:
        index: its number among the recordings, from 0.
        file_name: of a file in a folder, relative to the folder; of a row, the name that the row
            gives. None for a row without one.
        cell: the audio as `read_cell` takes it.
        columns: the values of its other columns.
        kind: speech, music, sound, or None where it is not known.
        speaker: None where it is not known.
    """

    index: int
    file_name: str | None
    cell: Any = field(repr=False)
    columns: Mapping[str, Any] = field(default_factory=dict, repr=False)
    kind: str | None = None
    speaker: str | None = None

    @property
    def name(self) -> str:
        """The name of its file, or the number of its row."""
        if self.file_name is not None:
            return self.file_name
        return f"row {self.index}"

    @property
    def file(self) -> Path | bytes:
        """The path of its file, or encoded bytes. Raises InputError if it holds no audio."""
        return as_file(self.cell)

    def open(self) -> ArraySource | FileBlocks:
        """Open it as a context manager with `channels`, `sample_rate`, `num_samples`, `blocks`.

        Raises:
            InputError, FileFormatError: if there is no audio, or it cannot be read.
        """
        return open_cell(self.cell)

    @property
    def channels(self) -> int:
        """The number of its channels. Errors are those of `open`."""
        with self.open() as audio:
            return audio.channels

    @property
    def sample_rate(self) -> int:
        """Its rate in Hz. Errors are those of `open`."""
        with self.open() as audio:
            return audio.sample_rate

    @property
    def num_samples(self) -> int:
        """The samples per channel. Errors are those of `open`."""
        with self.open() as audio:
            return audio.num_samples

    def blocks(self, block_samples: int = BLOCK_SAMPLES) -> Iterator[np.ndarray]:
        """Yield its samples at its own rate, as float32 (channels, n), in bounded memory."""
        with self.open() as audio:
            yield from audio.blocks(block_samples)

    def read(self, sample_rate: int | None = None, channels: int | None = None) -> np.ndarray:
        """Return all its samples, float32 (channels, samples).

        Args:
            sample_rate: in Hz; by default its own.
            channels: 1 averages them, a mono recording is copied to any number; by default its own.

        Raises:
            InputError, FileFormatError: if it cannot be read, or cannot have these channels.
        """
        with self.open() as audio:
            rate = sample_rate or audio.sample_rate
            count = channels or audio.channels
        decoded = read_cell(self.cell, rate, count)
        assert decoded.audio is not None, "no limit was set"
        return decoded.audio
