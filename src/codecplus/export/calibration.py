"""Recordings for the calibration of int8 networks: the loudest pieces of some files of a folder.

It knows samples, no networks.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from codecplus.audio.files import AudioFileReader
from codecplus.audio.resampling import resample
from codecplus.errors import InputError
from codecplus.recordings.listing import files_in_folder

SEGMENT_SECONDS = 2.0
MAX_SEGMENTS = 32
_MAX_SECONDS = 60  # that are read of a recording


def calibration_audio(folder: Path, sample_rate: int) -> Iterator[np.ndarray]:
    """Yield up to 32 recordings (S,), from files spread evenly over a folder.

    Args:
        folder: with audio files.
        sample_rate: of the result, in Hz. Channels are averaged.

    Raises:
        InputError: if the folder holds no audio file.
        FileFormatError: for a file that cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"expected a folder of recordings to calibrate on, got {folder}")
    names, _ = files_in_folder(folder)
    if not names:
        raise InputError(f"the folder {folder} holds no audio file to calibrate on")
    step = -(-len(names) // MAX_SEGMENTS)
    for name in names[::step]:
        with AudioFileReader(folder / name) as reader:
            blocks = []
            missing = _MAX_SECONDS * reader.sample_rate
            for block in reader.blocks():
                blocks.append(block.mean(axis=0)[:missing])
                missing -= len(blocks[-1])
                if missing <= 0:
                    break
        yield resample(np.concatenate(blocks), reader.sample_rate, sample_rate)


def segments(
    recordings: Iterable[np.ndarray], sample_rate: int, hop_length: int
) -> list[np.ndarray]:
    """Return the loudest piece (S,) of each recording, in whole frames, of up to 32 recordings.

    Quiet pieces do not show the ranges to expect.

    Args:
        recordings: signals (S,).
        sample_rate: of the signals, in Hz.
        hop_length: samples per frame.

    Raises:
        InputError: if no recording has a piece that is not silent and at least half of
            `SEGMENT_SECONDS` long.
    """
    frames = max(1, round(SEGMENT_SECONDS * sample_rate / hop_length))
    size = frames * hop_length
    pieces = []
    for recording in recordings:
        piece = _loudest_piece(recording, size)
        piece = piece[: len(piece) // hop_length * hop_length]
        if len(piece) * 2 >= size and np.abs(piece).max() > 1e-3:
            pieces.append(piece.astype(np.float32))
        if len(pieces) == MAX_SEGMENTS:
            break
    if not pieces:
        raise InputError(
            f"expected recordings to calibrate on, at least {SEGMENT_SECONDS / 2:g} s "
            "that is not silent, got none"
        )
    return pieces


def _loudest_piece(recording: np.ndarray, size: int) -> np.ndarray:
    """Return the loudest of the pieces of this size, one behind the other."""
    loudest = recording[:size]
    highest = -1.0
    for start in range(0, max(1, len(recording) - size), size):
        piece = recording[start : start + size]
        level = float(np.abs(piece).sum())
        if level > highest:
            highest = level
            loudest = piece
    return loudest


__all__ = ["MAX_SEGMENTS", "SEGMENT_SECONDS", "calibration_audio", "segments"]
