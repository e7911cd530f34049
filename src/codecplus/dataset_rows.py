"""Many clips in one call: rows of data sets to rows with codes, for `datasets`' `map`.

The public functions are methods of `Codec`, which is their first argument.
"""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from codecplus.errors import CodecPlusError, InputError
from codecplus.inference import network
from codecplus.recordings.cells import DecodedAudio, read_cell

if TYPE_CHECKING:
    from codecplus.codec import Codec

COLUMNS = ("codes", "num_frames", "num_samples", "sample_rate", "error")


def encode_clips(
    codec: "Codec",
    clips: Sequence[np.ndarray],
    n_quantizers: int | None = None,
    *,
    batch_seconds: float | None = None,
) -> list[np.ndarray]:
    """Encode clips at the model's rate, each to the codes that `encode` gives it.

    Args:
        clips: float32 (channels, samples).
        n_quantizers: codebooks to use; all by default.
        batch_seconds: of audio in one padded batch. On a CPU clips are coded one by one, to the
            same bits; elsewhere the default is 100. In a batch float sums are in another order, so
            that a code may differ now and then where two entries are equally near. 0 codes one by
            one there too.

    Returns:
        Codes, int16 (channels, codebooks, frames), of each clip.

    Raises:
        InputError: for another shape, or a number of codebooks that does not exist.
    """
    info = codec.stream_info(codec.model_sample_rate, 1, n_quantizers=n_quantizers)
    return network.encode_clips(codec.network, clips, info.num_codebooks, batch_seconds)


def encode_batch(
    codec: "Codec",
    batch: Mapping[str, Sequence],
    *,
    audio_column: str = "audio",
    bitrate: float | None = None,
    n_quantizers: int | None = None,
    channels: int = 1,
    batch_seconds: float | None = None,
) -> dict[str, list]:
    """Encode a batch of rows, for `dataset.map(codec.encode_batch, batched=True)`.

    Args:
        batch: columns; cells of the audio column are as `datasets` gives them, decoded or
            `Audio(decode=False)`, encoded bytes, paths, or arrays at `codec.sample_rate`.
        audio_column: its name.
        bitrate, n_quantizers: see `CompressionOptions`.
        channels: channels of every clip; 1 is the mean of those it has.
        batch_seconds: see `encode_clips`.

    Returns:
        New columns: `codes`, uint16 (codebooks, frames) for one channel, else (channels, codebooks,
        frames); `num_frames`; `num_samples` and `sample_rate` of the original; and `error`, with
        the reason for a clip that failed.

    Raises:
        InputError: for a missing column, or a rate or number of codebooks that does not exist.
    """
    model_rate = codec.model_sample_rate
    info = codec.stream_info(model_rate, channels, bitrate=bitrate, n_quantizers=n_quantizers)
    _check_batch(batch, audio_column)
    recordings = [
        _read(cell, model_rate, codec.sample_rate, channels) for cell in batch[audio_column]
    ]
    clips = [
        recording.audio
        for recording in recordings
        if isinstance(recording, DecodedAudio) and recording.audio is not None
    ]
    coded = iter(network.encode_clips(codec.network, clips, info.num_codebooks, batch_seconds))
    # No nulls: `map` takes a column's type from the first batch, and null is a type of its own.
    no_codes = np.zeros((channels, info.num_codebooks, 0), np.uint16)
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


def batch_features(features: Any = None, *, channels: int = 1) -> Any:
    """Return the `datasets.Features` of rows with these features and those of `encode_batch`.

    Args:
        features: of the rows; None for the new columns alone.
        channels: as for `encode_batch`.
    """
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
    if audio_column not in batch:
        raise InputError(
            f"there is no column {audio_column!r} among {', '.join(batch)}; "
            "name it with audio_column"
        )
    cells = batch[audio_column]
    if _is_one_cell(cells):
        raise InputError(
            f"expected a batch, lists of cells, got one row with {audio_column!r} as "
            f"{type(cells).__name__}; use dataset.map(codec.encode_batch, batched=True)"
        )


def _is_one_cell(cells: Any) -> bool:
    """Return whether this is the cell of one row, where the cells of a batch are expected."""
    if cells is None or isinstance(cells, (str, bytes, Mapping)):
        return True
    if hasattr(cells, "get_all_samples"):  # a decoder of torchcodec
        return True
    if isinstance(cells, np.ndarray):
        return cells.ndim < 2 and cells.dtype.kind in "biufc"
    if hasattr(cells, "ndim"):  # a tensor
        return cells.ndim < 2
    return len(cells) > 0 and isinstance(cells[0], Real)


def _read(
    cell: Any, model_sample_rate: int, default_rate: int, channels: int
) -> DecodedAudio | str:
    """Return the recording of a cell at the model's rate, or why there is none."""
    try:
        return read_cell(cell, model_sample_rate, channels, default_rate=default_rate)
    except (CodecPlusError, OSError) as error:
        return str(error)
