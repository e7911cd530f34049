"""Rows of data sets to rows with codes, for `datasets`' `map`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from codecplus.errors import CodecPlusError, InputError
from codecplus.recordings.recording import Recording, read_recording

COLUMNS = ("codes", "num_frames", "num_samples", "sample_rate", "error")


def encode_rows(
    batch: Mapping[str, Sequence],
    audio_column: str,
    encode_clips: Callable[[list[np.ndarray]], list[np.ndarray]],
    *,
    model_sample_rate: int,
    default_rate: int,
    channels: int,
) -> dict[str, list]:
    """Encode the audio column of a batch of rows.

    Args:
        batch: columns, lists of cells.
        audio_column: the one that holds audio.
        encode_clips: gives the codes (C, K, T) of clips (C, S) at the model's rate.
        model_sample_rate: that rate, Hz.
        default_rate: of arrays that come without one, Hz.
        channels: of every clip; 1 is the mean of those it has.

    Returns the columns that `Codec.encode_batch` describes.
    """
    if audio_column not in batch:
        raise InputError(
            f"there is no column {audio_column!r} among {', '.join(batch)}; "
            "name it with audio_column"
        )
    recordings = [
        _read(cell, model_sample_rate, default_rate, channels) for cell in batch[audio_column]
    ]
    clips = [
        recording.audio
        for recording in recordings
        if isinstance(recording, Recording) and recording.audio is not None
    ]
    coded = iter(encode_clips(clips))
    rows = []
    for recording in recordings:
        if isinstance(recording, str):
            rows.append((None, None, None, None, recording))
            continue
        codes = next(coded).astype(np.uint16)
        if channels == 1:
            codes = codes[0]
        rows.append((codes, codes.shape[-1], recording.num_samples, recording.sample_rate, None))
    return {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}


def _read(cell: Any, model_sample_rate: int, default_rate: int, channels: int) -> Recording | str:
    """The recording of a cell at the model's rate, or why there is none."""
    try:
        return read_recording(cell, model_sample_rate, channels, default_rate=default_rate)
    except (CodecPlusError, OSError) as error:
        return str(error)
