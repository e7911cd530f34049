"""Opens data as training crops and validation clips."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.audio.resampling import resample
from codecplus.errors import CodecPlusError
from codecplus.recordings import Recording, open_recordings
from codecplus.recordings.folders import FileRecordings
from codecplus.recordings.tables import StreamRecordings, TableRecordings
from codecplus.training.data import (
    AudioFile,
    Batches,
    Crops,
    Cutter,
    FileSource,
    StreamedCrops,
    TableSource,
    hold_out,
    readable_files,
)

_CLIP_SECONDS = 8.0
_MOST_CLIPS = 16
_HELD_ROWS = 8  # of a table or stream


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How a data set is read. Audio files and folders of them ignore these options.

    Attributes:
        split: of the data set.
        config: of a data set on the Hub.
        column: the audio column, `outer.inner` for a nested one; by default the one that holds
            audio.
        revision: branch, tag or commit on the Hub.
        streaming: read while downloading.
    """

    split: str = "train"
    config: str | None = None
    column: str | None = None
    revision: str | None = None
    streaming: bool = False


@dataclass(frozen=True)
class ValidationClip:
    """A recording to validate with, mono (S,) at the codec's rate."""

    name: str
    audio: np.ndarray


def open_data(
    data: Any,
    cutter: Cutter,
    batch: int,
    *,
    validation: Any = None,
    options: TableOptions | None = None,
    seed: int = 0,
    rank: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> tuple[Batches, list[ValidationClip]]:
    """Return the batches of one process, and the clips to validate with.

    Of a stream, only process 0 gets validation clips.

    Args:
        data: what `codecplus.recordings.open_recordings` takes: folders, files, tables, the id of a
            data set on the Hub, or a `datasets` object.
        cutter: makes the crops.
        batch: crops per batch of this process.
        validation: the same kinds of data; by default a small part of `data`, which is not trained
            on.
        options: how a data set is read.
        seed, rank, processes, workers: see `Crops` and `Batches`.

    Raises:
        InputError: if there is no such data, or no audio in it.
        FileFormatError: if a data set cannot be loaded.
    """
    options = options or TableOptions()
    recordings = _open(data, options)
    clips: list[ValidationClip] = []
    if validation is not None:
        held = _open(validation, options)
        if isinstance(held, FileRecordings):
            clips = _file_clips(readable_files(held, report=rank == 0), cutter)
        else:
            clips = _clips(held, cutter)
    holds_out = validation is None
    crops: Crops | StreamedCrops
    if isinstance(recordings, FileRecordings):
        files = readable_files(recordings, report=rank == 0)
        if holds_out:
            files, held_files = hold_out(files)
            clips = _file_clips(held_files, cutter)
        crops = Crops(FileSource(files), cutter, seed)
    elif isinstance(recordings, StreamRecordings):
        recordings = _share(recordings, rank, processes)
        # Rows are held out after the stream is split: no other process sees this share. Rows that
        # are skipped before the split would be missing in another part of each share.
        if holds_out and rank == 0:
            clips = _clips(recordings.with_data(recordings.data.take(_HELD_ROWS)), cutter)
            recordings = recordings.with_data(recordings.data.skip(_HELD_ROWS))
        crops = StreamedCrops(recordings, cutter, batch, seed=seed + rank)
    else:
        rows = len(recordings)
        held_rows = 0
        if holds_out:
            held_rows = min(_HELD_ROWS, rows // 20)
        train = recordings.with_data(recordings.data.select(range(rows - held_rows)))
        if held_rows:
            last = recordings.data.select(range(rows - held_rows, rows))
            clips = _clips(recordings.with_data(last), cutter)
        crops = Crops(TableSource(train), cutter, seed)
    return Batches(crops, batch, rank=rank, processes=processes, workers=workers), clips


def _open(data: Any, options: TableOptions) -> FileRecordings | TableRecordings | StreamRecordings:
    return open_recordings(
        data,
        split=options.split,
        audio_column=options.column,
        columns=(),
        streaming=options.streaming,
        config=options.config,
        revision=options.revision,
    )


def _share(recordings: StreamRecordings, rank: int, processes: int) -> StreamRecordings:
    """Return the part of a stream that belongs to one of several processes."""
    if processes == 1:
        return recordings
    from datasets.distributed import split_dataset_by_node

    return recordings.with_data(
        split_dataset_by_node(recordings.data, rank=rank, world_size=processes)
    )


def _file_clips(files: Iterable[AudioFile], cutter: Cutter) -> list[ValidationClip]:
    paths = [file.path for file in files]
    return _clips((_file_recording(path) for path in paths), cutter)


def _file_recording(path: Path) -> Recording:
    return Recording(0, path.name, path)


def _clips(recordings: Iterable[Recording], cutter: Cutter) -> list[ValidationClip]:
    """Return the beginnings of up to 16 recordings; one warning names each that cannot be read."""
    clips = []
    for recording in recordings:
        try:
            with recording.open() as audio:
                rate = audio.sample_rate
                block = next(audio.blocks(max(1, int(_CLIP_SECONDS * rate))))
            samples = resample(block.mean(axis=0), rate, cutter.sample_rate)
            clips.append(ValidationClip(recording.name, samples))
        except CodecPlusError as error:
            warnings.warn(f"{recording.name} is not used for validation: {error}", stacklevel=2)
        if len(clips) == _MOST_CLIPS:
            break
    return clips
