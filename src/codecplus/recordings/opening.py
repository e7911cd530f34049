"""`open_recordings`: opens recordings by the names that users give. Knows no model."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from codecplus.errors import InputError
from codecplus.recordings.columns import import_datasets
from codecplus.recordings.folders import FileRecordings
from codecplus.recordings.listing import AUDIO_SUFFIXES, holds_files
from codecplus.recordings.recording import Recording
from codecplus.recordings.tables import (
    FILE_KINDS,
    Origin,
    StreamRecordings,
    TableRecordings,
    dataset_recordings,
    load_dataset,
    load_files,
)
from codecplus.system.paths import PathLike


class Recordings(Protocol):
    """Recordings in a fixed order, with columns.

    Files and tables can be indexed, too, and have a length; a stream can only be iterated. Work on
    them is cut into pieces, which can be read in any order: ranges of rows, or the files of a
    stream.
    """

    @property
    def name(self) -> str:
        """The name of the data, for readers."""
        ...

    @property
    def split(self) -> str:
        """The split of the data set, `train` for files."""
        ...

    @property
    def columns(self) -> list[str]:
        """The names of the columns, without the audio."""
        ...

    @property
    def features(self) -> Any:
        """The `datasets.Features` of the columns, without the audio."""
        ...

    @property
    def num_recordings(self) -> int | None:
        """The number of recordings; None for a stream."""
        ...

    def __iter__(self) -> Iterator[Recording]: ...

    def num_pieces(self, shard_rows: int) -> int:
        """Return the number of pieces, of `shard_rows` rows each where rows can be counted."""
        ...

    def tables(self, piece: int, shard_rows: int, skip: int) -> Iterator[Any]:
        """Yield Arrow tables of the columns and `AUDIO` of one piece, from its row `skip` on."""
        ...

    def own_cell(self, cell: Any) -> Any:
        """Return a cell of `AUDIO` as it may be read."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what the rows depend on, as plain data."""
        ...


def open_recordings(
    data: Any,
    *,
    split: str = "train",
    audio_column: str | None = None,
    columns: Sequence[str] | None = None,
    streaming: bool = False,
    config: str | None = None,
    revision: str | None = None,
) -> FileRecordings | TableRecordings | StreamRecordings:
    """Open recordings, wherever they are.

    Audio files and folders of them need no `datasets`. A folder that holds audio files is taken as
    these, whatever else is in it.

    Args:
        data: a folder of audio files, with a `metadata.csv`, `.jsonl` or `.parquet` (`file_name`)
            or a `MANIFEST.csv` (`path`) if there is one; an audio file; a parquet, Arrow,
            webdataset (.tar), JSON or CSV file; a folder of such files, or one that
            `Dataset.save_to_disk` wrote; several of the same kind; a Hub id such as owner/name,
            also as `hf://datasets/owner/name`; or a `Dataset` or `IterableDataset`.
        split: of a data set. A slice such as `"train[:100]"` is a split too.
        audio_column: `outer.inner` for a nested one; by default the one that holds audio.
        columns: the other columns to keep; by default all, except the one that holds the audio.
        streaming: read a data set while downloading.
        config: of a data set on the Hub.
        revision: branch, tag or commit of a data set on the Hub.

    Raises:
        InputError: if there are no such data or columns.
        FileFormatError: if they cannot be read.
        MissingExtraError: for tables, without `datasets`.
    """
    if isinstance(data, (FileRecordings, TableRecordings, StreamRecordings)):
        return data
    if hasattr(data, "column_names"):
        rows, origin = _in_memory(data, split), Origin(name="a dataset in memory", split=split)
        return dataset_recordings(rows, origin, audio_column, columns)
    names = _as_names(data)
    paths = [Path(name) for name in names]
    if all(_is_audio(path) for path in paths):
        return FileRecordings(paths, columns)
    for name, path in zip(names, paths, strict=True):
        _check_folder(path)
        if len(names) > 1 and not path.exists():
            raise InputError(f"there is no folder or file {name}")
    options: dict[str, Any] = {"config": config, "split": split, "revision": revision}
    if len(names) > 1:
        rows, origin = load_files(paths, streaming=streaming, **options)
    else:
        rows, origin = load_dataset(names[0], streaming=streaming, **options)
    return dataset_recordings(rows, origin, audio_column, columns)


def _in_memory(data: Any, split: str) -> Any:
    datasets = import_datasets()
    if isinstance(data, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        raise InputError(
            f"expected one split, got a dict of {', '.join(map(str, data))}; give data[{split!r}]"
        )
    return data


def _as_names(data: PathLike | Iterable[PathLike]) -> list[str]:
    if isinstance(data, (str, os.PathLike)):
        data = [data]
    names = [os.fspath(name) for name in data]
    if not names:
        raise InputError("expected data, got an empty list")
    if "" in names:  # the working folder, to Python
        raise InputError("expected the name of data, got an empty one")
    return names


def _is_audio(path: Path) -> bool:
    """Return whether this is an audio file, or a folder that holds some."""
    if path.is_dir():
        return holds_files(path)
    return path.is_file() and path.suffix.lower() in AUDIO_SUFFIXES


def _check_folder(path: Path) -> None:
    """Refuse a folder that holds neither audio nor tables, before `datasets` guesses at it."""
    if path.is_dir() and not holds_files(path, {*FILE_KINDS, ".zip", ".gz", ".zst"}):
        raise InputError(
            f"there is no audio file in {path}, and no table; expected files ending in "
            f"{', '.join(sorted(AUDIO_SUFFIXES))} or {', '.join(FILE_KINDS)}"
        )
