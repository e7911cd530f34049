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
    num_codebooks: int,
    model_sample_rate: int,
    default_rate: int,
    channels: int,
) -> dict[str, list]:
    """Encode the audio column of a batch of rows.

    Args:
        batch: columns, lists of cells.
        audio_column: the one that holds audio.
        encode_clips: gives the codes (C, K, T) of clips (C, S) at the model's rate.
        num_codebooks: K.
        model_sample_rate: that rate, Hz.
        default_rate: of arrays that come without one, Hz.
        channels: of every clip; 1 is the mean of those it has.

    Returns the columns that `Codec.encode_batch` describes.
    """
    _check_batch(batch, audio_column)
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
    # No nulls: `map` takes a column's type from the first batch, and null is a type of its own.
    no_codes = np.zeros((channels, num_codebooks, 0), np.uint16)
    if channels == 1:
        no_codes = no_codes[0]
    rows = []
    for recording in recordings:
        if isinstance(recording, str):
            rows.append((no_codes, 0, 0, 0, recording))
            continue
        codes = next(coded).astype(np.uint16)
        if channels == 1:
            codes = codes[0]
        rows.append((codes, codes.shape[-1], recording.num_samples, recording.sample_rate, ""))
    return {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}


def batch_features(features: Any, channels: int = 1) -> Any:
    """`datasets.Features` of rows with these features and the columns that `encode_rows` adds."""
    from datasets import Features, List, Value

    codes = List(List(Value("uint16")))
    if channels > 1:
        codes = List(codes)
    added = {
        "codes": codes,
        "num_frames": Value("int64"),
        "num_samples": Value("int64"),
        "sample_rate": Value("int64"),
        "error": Value("string"),
    }
    return Features({**(features or {}), **added})


def _check_batch(batch: Any, audio_column: str) -> None:
    cells = batch.get(audio_column) if hasattr(batch, "get") else None
    if isinstance(cells, (str, bytes, Mapping)) or hasattr(cells, "get_all_samples"):
        raise InputError(
            f"expected a batch, lists of cells, got one row with {audio_column!r} as "
            f"{type(cells).__name__}; use dataset.map(codec.encode_batch, batched=True)"
        )


def _read(cell: Any, model_sample_rate: int, default_rate: int, channels: int) -> Recording | str:
    """The recording of a cell at the model's rate, or why there is none."""
    try:
        return read_recording(cell, model_sample_rate, channels, default_rate=default_rate)
    except (CodecPlusError, OSError) as error:
        return str(error)
