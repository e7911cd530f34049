"""Where rows come from: folders of audio files, and whatever `datasets` reads. Knows tables, and
nothing of codes.

A source is cut into pieces that can be read in any order and by anybody: ranges of rows, or the
files of a stream.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from codecplus.errors import FileFormatError, InputError, MissingExtraError
from codecplus.recordings.recording import audio_files

AUDIO = "__audio__"  # the audio column in the tables of a source, whatever it is called in the data
_READ_ROWS = 32  # per table: rows may hold whole files
_MANIFESTS = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "MANIFEST.csv")


class Source(Protocol):
    """Rows with a recording each."""

    @property
    def name(self) -> str:
        """For readers."""
        ...

    @property
    def split(self) -> str:
        """Of the dataset; names the shards."""
        ...

    @property
    def features(self) -> Any:
        """`datasets.Features` of the columns that are kept."""
        ...

    @property
    def num_rows(self) -> int | None:
        """None if nobody knows before the end."""
        ...

    def num_pieces(self, shard_rows: int) -> int:
        """Pieces, of `shard_rows` rows each where rows can be counted."""
        ...

    def tables(self, piece: int, shard_rows: int, skip: int) -> Iterator[Any]:
        """Arrow tables of the columns that are kept and `AUDIO`, of a piece from a row on."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the rows depend on, as plain data."""
        ...


def open_source(
    data: Any,
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    audio_column: str | None = None,
    columns: Sequence[str] | None = None,
) -> Source:
    """Rows of a folder, a file or a dataset.

    Args: data: a folder of audio files, with a `metadata.csv`, `.jsonl` or `.parquet` (`file_name`)
        or a `MANIFEST.csv`
            (`path`) if there is one; a folder or file that `datasets` reads; a Hub id, optionally
            as `hf://datasets/ID`; or a `Dataset` or `IterableDataset`.
        config, split, revision: of a dataset on the Hub; a slice such as `"train[:100]"` is a split
        too.
        streaming: read while downloading.
        audio_column: by default the one that holds audio.
        columns: other columns to keep; all but the audio by default.

    Raises:
        InputError: if there are no such data, columns or rows.
        FileFormatError: if they cannot be read.
        MissingExtraError: without `datasets`.
    """
    datasets = _datasets()
    if isinstance(data, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        raise InputError(
            f"expected one split, got a dict of {', '.join(map(str, data))}; give data[{split!r}]"
        )
    name = "a dataset in memory"
    if not isinstance(data, (datasets.Dataset, datasets.IterableDataset)):
        path, name = Path(str(data)), str(data).removeprefix("hf://datasets/")
        if path.is_dir() and (files := audio_files(path)):
            return FolderSource(path, files, columns)
        data, revision = _load(data, path, name, config, split, revision, streaming)
        name = path.resolve().name if path.exists() else name
    features = data.features if data.features is not None else data._resolve_features().features
    audio = _audio_column(features, audio_column, datasets)
    kept = _kept([column for column in features if column != audio], columns, [*features])
    data = data.select_columns(list(dict.fromkeys([*kept, audio])))
    if isinstance(features[audio], datasets.Audio):
        data = data.cast_column(audio, datasets.Audio(decode=False))
        features = datasets.Features({**features, audio: datasets.Audio(decode=False)})
    features = datasets.Features({column: features[column] for column in kept})
    identity = {"name": name, "config": config, "split": split, "revision": revision}
    split = str(split).split("[")[0]
    if isinstance(data, datasets.Dataset):
        return TableSource(name, split, data, audio, features, identity)
    return StreamSource(name, split, data, audio, features, identity)


def load_rows(
    data: Any, *, split: str, revision: str | None = None, streaming: bool = False
) -> tuple[Any, str]:
    """Rows of a dataset as `datasets` gives them, and its path or Hub id. Errors as of
    `open_source`.
    """
    datasets = _datasets()
    if isinstance(data, (datasets.Dataset, datasets.IterableDataset)):
        return data, ""
    name = str(data).removeprefix("hf://datasets/")
    rows, _ = _load(data, Path(str(data)), name, None, split, revision, streaming)
    if "codes" not in (rows.column_names or []):
        raise InputError(f"{data} has no column 'codes' among {', '.join(rows.column_names or [])}")
    return rows, name


@dataclass(frozen=True)
class TableSource:
    """A `datasets.Dataset`: rows by number."""

    name: str
    split: str
    data: Any
    audio: str
    features: Any
    identity: dict[str, Any]

    @property
    def num_rows(self) -> int:
        """All of them."""
        return len(self.data)

    def num_pieces(self, shard_rows: int) -> int:
        """Ranges of rows."""
        return -(-self.num_rows // shard_rows)

    def tables(self, piece: int, shard_rows: int, skip: int) -> Iterator[Any]:
        """See `Source`."""
        stop = min(self.num_rows, (piece + 1) * shard_rows)
        rows = self.data.with_format("arrow")
        for start in range(piece * shard_rows + skip, stop, _READ_ROWS):
            yield _with_audio(
                rows[start : min(start + _READ_ROWS, stop)], self.audio, self.features
            )

    def describe(self) -> dict[str, Any]:
        """See `Source`."""
        return {**self.identity, "rows": self.num_rows, "columns": [*self.features]}


@dataclass(frozen=True)
class StreamSource:
    """A `datasets.IterableDataset`: files one after the other, each from its start."""

    name: str
    split: str
    data: Any
    audio: str
    features: Any
    identity: dict[str, Any]
    num_rows = None

    def num_pieces(self, shard_rows: int) -> int:
        """Files, or whatever else the stream is made of."""
        return max(1, self.data.num_shards)

    def tables(self, piece: int, shard_rows: int, skip: int) -> Iterator[Any]:
        """See `Source`."""
        pieces = self.num_pieces(shard_rows)
        data = self.data if pieces == 1 else self.data.shard(num_shards=pieces, index=piece)
        data = data.skip(skip) if skip else data
        for table in data.with_format("arrow").iter(batch_size=_READ_ROWS):
            yield _with_audio(table, self.audio, self.features)

    def describe(self) -> dict[str, Any]:
        """See `Source`."""
        return {**self.identity, "pieces": self.num_pieces(1), "columns": [*self.features]}


class FolderSource:
    """All audio files under a folder, in the order of their names, with what a manifest says of
    them.
    """

    split = "train"

    def __init__(self, folder: Path, files: list[str], columns: Sequence[str] | None):
        self.folder, self.files, self.name = folder, files, folder.resolve().name
        self._manifest, self._rows = _manifest(folder)
        known = [] if self._manifest is None else self._manifest.column_names
        kept = _kept(["path", *known], columns, ["path", *known])
        self._columns = [column for column in kept if column != "path"]
        self._has_path = "path" in kept

    @property
    def features(self) -> Any:
        """See `Source`."""
        datasets = _datasets()
        features = {"path": datasets.Value("string")} if self._has_path else {}
        if self._manifest is not None:
            features |= datasets.Features.from_arrow_schema(
                self._manifest.select(self._columns).schema
            )
        return datasets.Features(features)

    @property
    def num_rows(self) -> int:
        """Files."""
        return len(self.files)

    def num_pieces(self, shard_rows: int) -> int:
        """Ranges of files."""
        return -(-self.num_rows // shard_rows)

    def tables(self, piece: int, shard_rows: int, skip: int) -> Iterator[Any]:
        """See `Source`."""
        import pyarrow as pa

        stop = min(self.num_rows, (piece + 1) * shard_rows)
        for start in range(piece * shard_rows + skip, stop, _READ_ROWS):
            files = self.files[start : min(start + _READ_ROWS, stop)]
            columns = {"path": pa.array(files)} if self._has_path else {}
            if self._manifest is not None:
                found = self._manifest.take(
                    pa.array([self._rows.get(file) for file in files], pa.int64())
                )
                columns |= {name: found[name] for name in self._columns}
            cells = [{"bytes": None, "path": str(self.folder / file)} for file in files]
            columns[AUDIO] = pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
            yield pa.table(columns)

    def describe(self) -> dict[str, Any]:
        """Names and sizes count; when files were written, and where they lie, may differ from node
        to node.
        """
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file}\0{(self.folder / file).stat().st_size}\n".encode())
        return {
            "name": self.name,
            "rows": self.num_rows,
            "files": digest.hexdigest()[:16],
            "columns": [*self.features],
        }


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            "tokenising needs datasets: pip install codecplus[tokenize]"
        ) from error
    return datasets


def _load(
    data: Any,
    path: Path,
    name: str,
    config: str | None,
    split: str,
    revision: str | None,
    streaming: bool,
) -> tuple[Any, str | None]:
    """What `datasets` makes of it, and the commit it is of."""
    datasets = _datasets()
    kinds = {
        ".parquet": "parquet",
        ".json": "json",
        ".jsonl": "json",
        ".csv": "csv",
        ".arrow": "arrow",
    }
    try:
        if path.is_dir() and (
            (path / "state.json").exists() or (path / "dataset_dict.json").exists()
        ):
            loaded = datasets.load_from_disk(str(path))
            if isinstance(loaded, datasets.DatasetDict):
                loaded = loaded[split]
            return (loaded.to_iterable_dataset() if streaming else loaded), None
        if path.is_file():
            if path.suffix not in kinds:
                raise InputError(f"expected a folder, or a {', '.join(kinds)} file, got {path}")
            kind, files = kinds[path.suffix], {str(split).split("[")[0]: str(path)}
            return datasets.load_dataset(
                kind, data_files=files, split=split, streaming=streaming
            ), None
        if not path.is_dir():
            if str(data).startswith((".", "/", "~")) or name.count("/") > 1:
                raise InputError(f"there is no folder or file {data}")
            revision = _commit(name, revision)
        loaded = datasets.load_dataset(
            str(path) if path.is_dir() else name,
            config,
            split=split,
            revision=revision,
            streaming=streaming,
        )
    except InputError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise FileFormatError(
            f"cannot load {data}: {lines[0] if lines else type(error).__name__}"
        ) from error
    return loaded, revision


def _commit(name: str, revision: str | None) -> str | None:
    """The commit of a Hub dataset, which a branch may leave; the revision as it was given where
    nobody can be asked.
    """
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except Exception:  # offline: the cache of `datasets` may still have it
        return revision


def _audio_column(features: Any, asked: str | None, datasets: Any) -> str:
    if asked is not None:
        if asked not in features:
            raise InputError(f"there is no column {asked!r}; the data have {', '.join(features)}")
        return asked
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Audio)]
    found = found or [name for name, feature in features.items() if _looks_like_audio(feature)]
    if "audio" in features and (not found or "audio" in found):
        return "audio"
    if len(found) != 1:
        raise InputError(
            f"expected one column of audio, found {', '.join(found) or 'none'} among {', '.join(features)}; "
            "name it with --audio-column"
        )
    return found[0]


def _looks_like_audio(feature: Any) -> bool:
    return isinstance(feature, dict) and (
        {"bytes", "path"} <= set(feature) or {"array", "sampling_rate"} <= set(feature)
    )


def _kept(default: list[str], asked: Sequence[str] | None, known: list[str]) -> list[str]:
    if asked is None:
        return list(dict.fromkeys(default))
    if missing := [name for name in asked if name not in known]:
        raise InputError(f"there is no column {missing[0]!r}; the data have {', '.join(known)}")
    return list(dict.fromkeys(asked))


def _with_audio(table: Any, audio: str, features: Any) -> Any:
    kept = table.select([*features]).cast(features.arrow_schema)
    return kept.append_column(AUDIO, table[audio])


def _manifest(folder: Path) -> tuple[Any, dict[str, int]]:
    """The table beside the files, without its column of names, and the row of each name; None where
    there is none.
    """
    for name in _MANIFESTS:
        path = folder / name
        if not path.is_file():
            continue
        try:
            table = _read_table(path)
        except Exception as error:
            raise FileFormatError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
        key = "path" if name == "MANIFEST.csv" else "file_name"
        if key not in table.column_names:
            raise FileFormatError(
                f"{path} has the columns {', '.join(table.column_names)}; expected one named {key}"
            )
        rows = {str(file): row for row, file in enumerate(table[key].to_pylist())}
        return table.drop_columns([key]), rows
    return None, {}


def _read_table(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if path.suffix == ".csv":
        return pyarrow.csv.read_csv(path)
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path)
    with path.open(encoding="utf-8") as file:
        return pa.Table.from_pylist([json.loads(line) for line in file if line.strip()])
