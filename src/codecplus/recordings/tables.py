"""Tables and streams of recordings, as `datasets` reads them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from codecplus.errors import CodecPlusError, FileFormatError, InputError, first_line
from codecplus.recordings.cells import OutsideFile
from codecplus.recordings.columns import (
    AUDIO,
    READ_ROWS,
    checked_columns,
    find_audio_column,
    import_datasets,
    is_audio,
    undecoded,
)
from codecplus.recordings.listing import AUDIO_SUFFIXES
from codecplus.recordings.recording import Recording

FILE_KINDS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "webdataset",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
}
_LABELS = ("kind", "speaker")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a table comes from."""

    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    on_hub: bool = False

    def __str__(self) -> str:
        revision = "" if self.revision is None else f" at revision {self.revision}"
        return f"{self.name}{revision}"


@dataclass(frozen=True)
class _DatasetRecordings:
    """Rows of a `datasets` object with a recording each.

    Attributes:
        origin: where the data come from.
        data: the `datasets` object, with the audio column and no more columns than needed.
        audio_path: the name of the audio column, or the names from the outer column inwards.
        features: the `datasets.Features` of the columns that are kept, without the audio.
    """

    origin: Origin
    data: Any
    audio_path: tuple[str, ...]
    features: Any

    @property
    def name(self) -> str:
        """The name of the data, for readers."""
        return self.origin.name

    @property
    def split(self) -> str:
        """The split, without the slice that it may have been cut to."""
        return str(self.origin.split).split("[")[0]

    @property
    def columns(self) -> list[str]:
        """The names of the columns, without the audio."""
        return [*self.features]

    def with_data(self, data: Any) -> Any:
        """Return these recordings with other rows, such as a part of them."""
        return replace(self, data=data)

    def select_columns(self, columns: Sequence[str]) -> Any:
        """Return these recordings with fewer columns. Raises InputError for unknown ones."""
        kept = checked_columns((), columns, self.columns)
        present = self.data.column_names or self.columns
        labels = [name for name in _LABELS if name in present]
        needed = list(dict.fromkeys([*kept, *labels, self.audio_path[0]]))
        features = type(self.features)({name: self.features[name] for name in kept})
        return replace(self, data=self.data.select_columns(needed), features=features)

    def recording(self, row: Mapping[str, Any], index: int) -> Recording:
        """Return the recording that a row of `data` holds."""
        cell = row
        for name in self.audio_path:
            cell = {} if cell is None else cell[name]
        path = cell.get("path") if isinstance(cell, dict) else cell
        file_name = Path(path).name if isinstance(path, (str, Path)) and path else None
        columns = {name: row[name] for name in self.features}
        kind = row.get("kind")
        speaker = row.get("speaker")
        return Recording(
            index,
            file_name,
            self.own_cell(cell),
            columns,
            None if kind is None else str(kind),
            None if speaker is None else str(speaker),
        )

    def own_cell(self, cell: Any) -> Any:
        """Return an audio cell as it may be read.

        A table that lies here is the user's list, and may name any file. One of the Hub may be a
        stranger's: what it names beyond itself becomes an `OutsideFile`.
        """
        path = cell
        if isinstance(cell, dict):
            path = None if cell.get("bytes") is not None else cell.get("path")
        if not self.origin.on_hub or not isinstance(path, str) or not path or "://" in path:
            return cell
        return cell if _is_downloaded(path) else OutsideFile(path)

    @cached_property
    def rows(self) -> Any:
        """The rows as plain Python objects, which `recording` takes."""
        if getattr(self.data, "_formatting", None) is None and not hasattr(self.data, "__len__"):
            return self.data  # a stream without a format; another wrapper would change its state
        return self.data.with_format(None)

    def _described(self) -> dict[str, Any]:
        origin = self.origin
        return {
            "name": origin.name,
            "config": origin.config,
            "split": origin.split,
            "revision": origin.revision,
        }

    def _with_audio(self, table: Any) -> Any:
        """Return an Arrow table of the columns and `AUDIO`."""
        import pyarrow as pa
        import pyarrow.compute as pc

        cells = table[self.audio_path[0]]
        for name in self.audio_path[1:]:
            cells = pc.call_function("struct_field", [cells], pc.StructFieldOptions([name]))
        if not self.columns:
            return pa.table({AUDIO: cells})
        columns = table.select(self.columns).cast(self.features.arrow_schema)
        return columns.append_column(AUDIO, cells)


@dataclass(frozen=True)
class TableRecordings(_DatasetRecordings):
    """Rows of a `datasets.Dataset`, by number."""

    @property
    def num_recordings(self) -> int:
        """The number of rows."""
        return len(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Recording:
        return self.recording(self.rows[index], index)

    def __iter__(self) -> Iterator[Recording]:
        for index, row in enumerate(self.rows):
            yield self.recording(row, index)

    def num_pieces(self, shard_rows: int) -> int:
        """Return the number of ranges of `shard_rows` rows."""
        return -(-len(self.data) // shard_rows)

    def tables(self, piece: int, shard_rows: int, skip: int) -> Iterator[Any]:
        """Yield Arrow tables of the columns and `AUDIO` of one piece, from its row `skip` on."""
        stop = min(len(self.data), (piece + 1) * shard_rows)
        rows = self.data.with_format("arrow")
        for start in range(piece * shard_rows + skip, stop, READ_ROWS):
            yield self._with_audio(rows[start : min(start + READ_ROWS, stop)])

    def describe(self) -> dict[str, Any]:
        """Return what the rows depend on, as plain data."""
        return {**self._described(), "rows": len(self.data), "columns": self.columns}


@dataclass(frozen=True)
class StreamRecordings(_DatasetRecordings):
    """Rows of a `datasets.IterableDataset`: its files one after the other, in order."""

    num_recordings = None

    def __iter__(self) -> Iterator[Recording]:
        for index, row in enumerate(self.rows):
            yield self.recording(row, index)

    def num_pieces(self, shard_rows: int) -> int:
        """Return the number of files, or of other parts that the stream is made of."""
        return max(1, self.data.num_shards)

    def tables(self, piece: int, shard_rows: int, skip: int) -> Iterator[Any]:
        """Yield Arrow tables of the columns and `AUDIO` of one piece, from its row `skip` on."""
        pieces = self.num_pieces(shard_rows)
        data = self.data
        if pieces > 1:
            data = data.shard(num_shards=pieces, index=piece)
        if skip:
            data = data.skip(skip)
        for table in data.with_format("arrow").iter(batch_size=READ_ROWS):
            yield self._with_audio(table)

    def describe(self) -> dict[str, Any]:
        """Return what the rows depend on, as plain data."""
        return {**self._described(), "pieces": self.num_pieces(1), "columns": self.columns}


def dataset_recordings(
    data: Any, origin: Origin, audio_column: str | None, columns: Sequence[str] | None
) -> TableRecordings | StreamRecordings:
    """Return the recordings of a `datasets` object.

    Raises:
        InputError: for columns that do not exist.
    """
    datasets = import_datasets()
    features = data.features
    if features is None:
        features = data._resolve_features().features
    path = find_audio_column(features, audio_column)
    others = [name for name in features if name != path[0]]
    kept = checked_columns(others, columns, [*features])
    labels = [name for name in _LABELS if name in features and name != path[0]]
    needed = list(dict.fromkeys([*kept, *labels, path[0]]))
    data = data.select_columns(needed)
    plain = undecoded(features[path[0]], path[1:])
    if plain != features[path[0]]:
        data = data.cast_column(path[0], plain)
        features = datasets.Features({**features, path[0]: plain})
    kept_features = datasets.Features({name: features[name] for name in kept})
    if isinstance(data, datasets.Dataset):
        return TableRecordings(origin, data, path, kept_features)
    return StreamRecordings(origin, data, path, kept_features)


def load_dataset(
    data: str,
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
) -> tuple[Any, Origin]:
    """Return what `datasets` makes of a folder or file of tables, or of a data set on the Hub.

    Args:
        data: a folder that `save_to_disk` wrote, another folder, or a Hub id such as owner/name,
            also as `hf://datasets/owner/name`.
        config, split, revision: of the data set. A slice such as `"train[:100]"` is a split too.
        streaming: read while downloading.

    Raises:
        InputError: if there is no such folder or file.
        FileFormatError: if it cannot be loaded.
        MissingExtraError: without `datasets`.
    """
    datasets = import_datasets()
    path = Path(data)
    if path.is_dir() or path.is_file():
        origin = Origin(name=path.resolve().name, config=config, split=split, revision=revision)
    else:
        name = data.removeprefix("hf://datasets/")
        if not is_dataset_id(name):
            raise InputError(
                f"there is no folder or file {data}; "
                "give one, or the id of a data set like owner/name"
            )
        commit = hub_commit(name, revision)
        origin = Origin(name=name, config=config, split=split, revision=commit, on_hub=True)
    if path.is_file():
        return _load_files([path], origin, streaming)
    try:
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(str(path))
            if isinstance(loaded, datasets.DatasetDict):
                loaded = loaded[split]
            return (loaded.to_iterable_dataset() if streaming else loaded), replace(
                origin, revision=None
            )
        loaded = datasets.load_dataset(
            str(path) if path.is_dir() else origin.name,
            config,
            split=split,
            revision=origin.revision,
            streaming=streaming,
        )
    except Exception as error:
        what = data
        if not path.is_dir():
            what = f"the data set {origin.name} at revision {origin.revision or 'main'}"
        raise FileFormatError(f"cannot load {what}: {_reason(error)}") from error
    return loaded, origin


def load_files(
    paths: Sequence[Path], *, config: str | None, split: str, revision: str | None, streaming: bool
) -> tuple[Any, Origin]:
    """Return what `datasets` makes of files of one kind. See `load_dataset` and `FILE_KINDS`."""
    name = paths[0].resolve().name
    if len(paths) > 1:
        name += f" and {len(paths) - 1} more"
    return _load_files(
        paths, Origin(name=name, config=config, split=split, revision=revision), streaming
    )


def _load_files(paths: Sequence[Path], origin: Origin, streaming: bool) -> tuple[Any, Origin]:
    kinds = {FILE_KINDS.get(path.suffix.lower()) for path in paths}
    if len(kinds) != 1 or None in kinds:
        raise InputError(
            "expected folders or audio files, or files of one kind ending in one of "
            f"{', '.join(FILE_KINDS)}, got {', '.join(str(path) for path in paths)}"
        )
    datasets = import_datasets()
    kind = kinds.pop()
    options: dict[str, Any] = {
        "data_files": {origin.split.split("[")[0]: [str(path) for path in paths]},
        "split": origin.split,
    }
    try:
        if kind == "webdataset":
            # As `Audio`, encoded bytes would need torchcodec on their way through.
            stream = datasets.load_dataset(kind, streaming=True, **options)
            options["features"] = datasets.Features(
                {
                    name: datasets.Value("binary") if is_audio(feature) else feature
                    for name, feature in stream.features.items()
                }
            )
        loaded = datasets.load_dataset(kind, streaming=streaming, **options)
    except CodecPlusError:
        raise
    except Exception as error:
        names = ", ".join(str(path) for path in paths)
        raise FileFormatError(f"cannot load {names}: {_reason(error)}") from error
    return loaded, replace(origin, revision=None)


def _reason(error: BaseException) -> str:
    """Return what an error of `datasets` is about: some say only that there was one."""
    if isinstance(error, import_datasets().exceptions.DatasetGenerationError):
        error = error.__cause__ or error
    reason = first_line(error)
    if "BatchSize must be greater than 0" in reason:  # of Parquet, the rows of its first group
        return "it has no rows, or none in its first row group"
    no_rows = type(error).__name__ == "SchemaInferenceError" or "corresponds to no data" in reason
    return "it has no rows" if no_rows else reason


def _is_downloaded(path: str) -> bool:
    """Return whether a file lies where `datasets` and the Hub keep what they download."""
    from huggingface_hub.constants import HF_HUB_CACHE

    config = import_datasets().config
    file = Path(path).resolve()
    caches = (HF_HUB_CACHE, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH)
    return any(file.is_relative_to(Path(cache).resolve()) for cache in caches)


def is_dataset_id(name: str) -> bool:
    """Return whether this may be the id of a data set on the Hub, such as owner/name."""
    parts = name.removeprefix("hf://datasets/").split("/")
    is_file = Path(name).suffix.lower() in {*FILE_KINDS, *AUDIO_SUFFIXES}
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and not is_file


@cache
def hub_commit(name: str, revision: str | None) -> str | None:
    """Return the commit of a data set on the Hub that a branch or tag names.

    A commit is returned as it is, as is any revision where the Hub cannot be asked.
    """
    if revision is not None and len(revision) == 40:
        return revision
    try:
        from huggingface_hub import HfApi

        return HfApi().dataset_info(name, revision=revision).sha
    except Exception:  # offline: the cache of `datasets` may still have it
        return revision
