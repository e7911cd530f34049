"""Opens data as training crops and validation clips."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.audio.resampling import resample
from codecplus.errors import CodecPlusError, InputError
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
    hold_out_groups,
    readable_files,
)

HOLD_OUTS = ("file", "speaker", "folder")
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


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which recordings are drawn how often, and which are kept for validation.

    Attributes:
        weights: share of each of several data in a list, in its order; or of each kind of
            recording, by its name in the manifest. They need not sum to 1. By default each counts
            by its duration, or by `drawing`.
        drawing: how recordings are drawn, as `Recipe.drawing` says.
        hold_out: the unit that is kept for validation: a `file`, all recordings of a `speaker`, or
            all files in a `folder`. None: nothing is kept.
    """

    weights: Sequence[float] | Mapping[str, float] | None = None
    drawing: str = "duration"
    hold_out: str | None = "file"

    def __post_init__(self) -> None:
        if self.hold_out is not None and self.hold_out not in HOLD_OUTS:
            raise InputError(f"expected hold_out {' or '.join(HOLD_OUTS)}, got {self.hold_out!r}")


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
    sampling: Sampling | None = None,
    seed: int = 0,
    rank: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> tuple[Batches, list[ValidationClip]]:
    """Return the batches of one process, and the clips to validate with.

    Of a stream, only process 0 gets validation clips.

    Args:
        data: as for `codecplus.recordings.open_recordings`: folders, files, tables, the id of a
            data set on the Hub, or a `datasets` object.
        cutter: makes the crops.
        batch: crops per batch of this process.
        validation: the same kinds of data; by default a small part of `data`, which is not trained
            on, if `sampling` holds out some.
        options: how a data set is read.
        sampling: how often recordings are drawn, and which are kept for validation.
        seed, rank, processes, workers: see `Crops` and `Batches`.

    Raises:
        InputError: if there is no such data, or no audio in it.
        FileFormatError: if a data set cannot be loaded.
    """
    options = options or TableOptions()
    sampling = sampling or Sampling()
    recordings = _open(data, options)
    if not isinstance(recordings, FileRecordings):
        _refuse_sampling_of_tables(sampling)
    clips: list[ValidationClip] = []
    if validation is not None:
        clips = _validation_clips(_open(validation, options), cutter, report=rank == 0)
    unit = sampling.hold_out
    if validation is not None:
        unit = None
    by_duration = sampling.drawing == "duration"
    crops: Crops | StreamedCrops
    if isinstance(recordings, FileRecordings):
        files = readable_files(recordings, report=rank == 0)
        if unit is not None:
            files, held_files = _hold_out(files, recordings, unit)
            clips = _file_clips(held_files, cutter)
        weights = _file_weights(files, recordings, sampling)
        crops = Crops(FileSource(files, weights), cutter, seed)
    elif isinstance(recordings, StreamRecordings):
        recordings = _share(recordings, rank, processes)
        # Rows are held out after the stream is split: no other process sees this share. Rows that
        # are skipped before the split would be missing in another part of each share.
        if unit is not None and rank == 0:
            clips = _clips(recordings.with_data(recordings.data.take(_HELD_ROWS)), cutter)
            recordings = recordings.with_data(recordings.data.skip(_HELD_ROWS))
        crops = StreamedCrops(recordings, cutter, batch, seed=seed + rank, by_duration=by_duration)
    else:
        if unit is not None:
            recordings, clips = _hold_out_rows(recordings, cutter)
        crops = Crops(TableSource(recordings, by_duration=by_duration), cutter, seed)
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


def _refuse_sampling_of_tables(sampling: Sampling) -> None:
    """Raise InputError for options that only audio files and folders have."""
    if sampling.weights is not None:
        raise InputError("weights are for audio files and folders; a table is drawn as one")
    if sampling.hold_out not in ("file", None):
        raise InputError(
            f"hold_out={sampling.hold_out!r} is for audio files and folders; give recordings to "
            "validate with instead"
        )


def _validation_clips(
    recordings: FileRecordings | TableRecordings | StreamRecordings, cutter: Cutter, *, report: bool
) -> list[ValidationClip]:
    """Return the clips of data that were given for validation."""
    if isinstance(recordings, FileRecordings):
        return _file_clips(readable_files(recordings, report=report), cutter)
    return _clips(recordings, cutter)


def _hold_out_rows(
    recordings: TableRecordings, cutter: Cutter
) -> tuple[TableRecordings, list[ValidationClip]]:
    """Return the rows of a table to train on, and clips of its last rows to validate with."""
    rows = len(recordings)
    first_held = rows - min(_HELD_ROWS, rows // 20)
    if first_held == rows:  # too few rows, and `select` takes no empty range at the end
        return recordings, []
    train = recordings.data.select(range(first_held))
    held = recordings.data.select(range(first_held, rows))
    return recordings.with_data(train), _clips(recordings.with_data(held), cutter)


def _hold_out(
    files: Sequence[AudioFile], recordings: FileRecordings, unit: str
) -> tuple[list[AudioFile], list[AudioFile]]:
    """Return the files to train on, and those of whole files, speakers or folders to validate with.

    Of whole groups, the clips are taken in turn, so that each speaker is heard.
    """
    if unit == "file":
        return hold_out(files)
    if unit == "folder":
        groups = {file.path: str(file.path.resolve().parent) for file in files}
        missing = "expected recordings in at least 2 folders to hold one out"
    else:
        groups = {}
        for recording in recordings:
            if recording.speaker is not None:
                groups[Path(recording.cell)] = recording.speaker
        missing = (
            "expected at least 2 speakers to hold one out; a MANIFEST.csv or metadata.csv names "
            "them in its column `speaker`"
        )
    if len(set(groups.values())) < 2:
        raise InputError(f"{missing}, got {len(set(groups.values()))}")
    train, held = hold_out_groups(files, groups)
    turns: dict[str, int] = {}
    order: dict[Path, int] = {}
    for file in held:
        group = groups[file.path]
        order[file.path] = turns.get(group, 0)
        turns[group] = order[file.path] + 1
    return train, sorted(held, key=lambda file: order[file.path])


def _file_weights(
    files: Sequence[AudioFile], recordings: FileRecordings, sampling: Sampling
) -> list[float] | None:
    """Return the weight of each file in drawing; None where its duration is its weight."""
    by_duration = sampling.drawing == "duration"
    if sampling.weights is None and by_duration:
        return None
    classes = _classes(files, recordings, sampling.weights)
    shares = _shares(classes, recordings.inputs, sampling.weights)
    own = [file.seconds if by_duration else 1.0 for file in files]
    sums: dict[int | str, float] = {}
    for name, weight in zip(classes, own, strict=True):
        sums[name] = sums.get(name, 0.0) + weight
    weights = []
    for name, weight in zip(classes, own, strict=True):
        weights.append(shares[name] * weight / sums[name])
    return weights


def _classes(
    files: Sequence[AudioFile],
    recordings: FileRecordings,
    weights: Sequence[float] | Mapping[str, float] | None,
) -> list[int | str]:
    """Return the class of each file: its kind if weights are of kinds, or the number of its input.

    Raises InputError for a file whose kind is unknown.
    """
    if not isinstance(weights, Mapping):
        return [_input_of(file.path, recordings) for file in files]
    kinds = {Path(recording.cell): recording.kind for recording in recordings}
    classes: list[int | str] = []
    for file in files:
        kind = kinds[file.path]
        if kind is None:
            raise InputError(
                f"{file.path.name} is of no kind; weights by kind need a MANIFEST.csv or "
                "metadata.csv that names it in its column `kind`"
            )
        classes.append(kind)
    return classes


def _input_of(path: Path, recordings: FileRecordings) -> int:
    """Return the number of the input that a file belongs to, the first of several."""
    for number, source in enumerate(recordings.inputs):
        if path == source or source in path.parents:
            return number
    raise AssertionError(f"{path} is below none of the inputs")


def _shares(
    classes: Sequence[int | str],
    inputs: Sequence[Path],
    weights: Sequence[float] | Mapping[str, float] | None,
) -> dict[int | str, float]:
    """Return the share of each class of recordings.

    Raises InputError for weights that do not fit.
    """
    present = set(classes)
    if weights is None:
        return dict.fromkeys(present, 1.0)
    shares: dict[int | str, float]
    if isinstance(weights, Mapping):
        shares = {**weights}
        unknown = [f"kind {name}" for name in weights if name not in present]
    else:
        if len(weights) != len(inputs):
            raise InputError(
                f"expected a weight for each of {len(inputs)} data, got {len(weights)} weights"
            )
        shares = dict(enumerate(weights))
        unknown = [str(path) for number, path in enumerate(inputs) if number not in present]
    if unknown:
        raise InputError(
            f"there are weights for {', '.join(unknown)}, of which there is no "
            "recording to train on"
        )
    missing = sorted(str(name) for name in present - set(shares))
    if missing:
        raise InputError(
            f"there is no weight for kind {', '.join(missing)}; give 0 to leave it out"
        )
    if min(shares.values()) < 0 or not 0 < sum(shares.values()) < math.inf:
        raise InputError(f"expected weights of 0 or more, not all 0, got {list(shares.values())}")
    return shares


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
