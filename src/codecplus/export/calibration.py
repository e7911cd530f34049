"""Recordings to calibrate int8 on: a few pieces of a folder's files, each where it is loudest.
Knows samples alone.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from codecplus.audio.files import AudioFileReader
from codecplus.audio.resampling import resample
from codecplus.errors import InputError
from codecplus.recordings.recording import audio_files

SEGMENT_SECONDS = 2.0
MAX_SEGMENTS = 32
_MAX_SECONDS = 60  # of a recording that are read


def calibration_audio(folder: Path, sample_rate: int) -> Iterator[np.ndarray]:
    """Recordings (S,) at a rate in Hz, the mean of their channels, from files spread evenly over a
    folder.

    Raises InputError if it holds no audio file, FileFormatError for one that cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"expected a folder of recordings to calibrate on, got {folder}")
    names = audio_files(folder)
    if not names:
        raise InputError(f"the folder {folder} holds no audio file to calibrate on")
    for i in range(0, len(names), -(-len(names) // MAX_SEGMENTS)):
        with AudioFileReader(folder / names[i]) as reader:
            blocks = []
            left = _MAX_SECONDS * reader.sample_rate
            for block in reader.blocks():
                blocks.append(block.mean(axis=0)[:left])
                left -= len(blocks[-1])
                if left <= 0:
                    break
        yield resample(np.concatenate(blocks), reader.sample_rate, sample_rate)


def segments(
    recordings: Iterable[np.ndarray], sample_rate: int, hop_length: int
) -> list[np.ndarray]:
    """The loudest piece (S,) of each recording, in whole frames: quiet ones do not show the ranges
    to expect.

    Raises InputError if there is none that is not silent and at least half of `SEGMENT_SECONDS`
    long.
    """
    size = max(1, round(SEGMENT_SECONDS * sample_rate / hop_length)) * hop_length
    loudest = []
    for recording in recordings:
        starts = range(0, max(1, len(recording) - size), size)
        start = max(starts, key=lambda i, x=recording: float(np.abs(x[i : i + size]).sum()))
        piece = recording[start : start + size]
        piece = piece[: len(piece) // hop_length * hop_length]
        if len(piece) * 2 >= size and np.abs(piece).max() > 1e-3:
            loudest.append(piece.astype(np.float32))
        if len(loudest) == MAX_SEGMENTS:
            break
    if not loudest:
        raise InputError(
            f"expected recordings to calibrate on, at least {SEGMENT_SECONDS / 2:g} s that is not "
            "silent, got none"
        )
    return loudest


__all__ = ["MAX_SEGMENTS", "SEGMENT_SECONDS", "calibration_audio", "segments"]
