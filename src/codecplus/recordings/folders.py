"""Audio files as a data set: their order, and the columns that a table beside them gives."""

import csv
import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from codecplus.errors import FileFormatError, InputError, first_line
from codecplus.recordings.columns import AUDIO, READ_ROWS, checked_columns, import_datasets
from codecplus.recordings.listing import (
    MANIFESTS,
    NamedFile,
    describe_left_out,
    files_in_folder,
    folder_prefixes,
)
from codecplus.recordings.recording import Recording
from codecplus.system.paths import printable

_MANIFEST = "MANIFEST.csv"


class FileRecordings:
    """Audio files, and the columns that a table beside them gives.

    Names are relative to the folder; of several folders, they begin with the folder's own name.
    Bytes that are no UTF-8 stand in names as `\\xff`. A warning counts the files that are left out.
    The table is `metadata.csv`, `.jsonl` or `.parquet` in the folder, with a column `file_name`, or
    `MANIFEST.csv`, with a column `path`. Kind and speaker come from it, or from a `MANIFEST.csv`
    beside the folder.
    """

    split = "train"

    def __init__(self, inputs: Sequence[Path], columns: Sequence[str] | None = None):
        self.inputs = list(inputs)
        self._groups, self.left_out = _named_files(self.inputs)
        self.files = [file for group in self._groups for file in group]
        self.name = printable(self.inputs[0].resolve().name)
        if self.left_out:
            described = describe_left_out(dict(sorted(self.left_out.items())))
            warnings.warn(f"other files left out: {described}", stacklevel=3)
        if len(self.inputs) > 1:
            self.name += f" and {len(self.inputs) - 1} more"
        self._asked = columns
        if columns is not None:
            _ = self.columns  # refuses columns that do not exist

    @property
    def folder(self) -> Path | None:
        """The folder, where there is just one."""
        if len(self.inputs) == 1 and self.inputs[0].is_dir():
            return self.inputs[0]
        return None

    @property
    def num_recordings(self) -> int:
        """The number of files."""
        return len(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Recording:
        path, name = self.files[index]
        name = printable(name)
        kind, speaker = None, None
        if self._labels:
            kind, speaker = self._labels.get(path.resolve(), (None, None))
        return Recording(index, name, path, {"path": name}, kind, speaker)

    def __iter__(self) -> Iterator[Recording]:
        return map(self.__getitem__, range(len(self.files)))

    def sorted_paths(self) -> list[Path]:
        """Return the paths input by input, in the order in which paths compare.

        There `a/b` comes before `a-b`, while names are in the order of their characters. The
        random numbers of a training run count files in this order.
        """
        return [path for group in self._groups for path in sorted(path for path, _ in group)]

    # ---- columns, as Arrow has them

    @property
    def columns(self) -> list[str]:
        """The names of the columns, without the audio."""
        known = ["path"]
        if self._table is not None:
            known += self._table.columns.column_names
        return checked_columns(known, self._asked, known)

    @property
    def features(self) -> Any:
        """The `datasets.Features` of the columns."""
        datasets = import_datasets()
        features = {}
        if "path" in self.columns:
            features["path"] = datasets.Value("string")
        if self._table is not None:
            schema = self._table.columns.select(self._table_columns).schema
            features |= datasets.Features.from_arrow_schema(schema)
        return datasets.Features(features)

    def own_cell(self, cell: Any) -> Any:
        """Return a cell of `AUDIO` as it may be read: these files were found in what was named."""
        return cell

    def num_pieces(self, shard_rows: int) -> int:
        """Return the number of ranges of `shard_rows` files."""
        return -(-len(self.files) // shard_rows)

    def tables(self, piece: int, shard_rows: int, skip: int) -> Iterator[Any]:
        """Yield Arrow tables of the columns and `AUDIO` of one piece, from its file `skip` on."""
        import pyarrow as pa

        # A path is no text: its name may be no UTF-8.
        cell_type = pa.struct({"bytes": pa.binary(), "path": pa.binary()})
        stop = min(len(self.files), (piece + 1) * shard_rows)
        for start in range(piece * shard_rows + skip, stop, READ_ROWS):
            files = self.files[start : min(start + READ_ROWS, stop)]
            columns = {}
            if "path" in self.columns:
                columns["path"] = pa.array([printable(name) for _, name in files])
            if self._table is not None:
                rows = [self._table.rows.get(name) for _, name in files]
                taken = self._table.columns.take(pa.array(rows, pa.int64()))
                columns |= {name: taken[name] for name in self._table_columns}
            cells = [{"bytes": None, "path": os.fsencode(path)} for path, _ in files]
            columns[AUDIO] = pa.array(cells, cell_type)
            yield pa.table(columns)

    @property
    def _table_columns(self) -> list[str]:
        return [column for column in self.columns if column != "path"]

    @cached_property
    def _table(self) -> "_ColumnTable | None":
        if self.folder is None:
            return None
        for name in MANIFESTS:
            path = self.folder / name
            if path.is_file():
                return _read_column_table(path)
        return None

    # ---- identity

    def describe(self) -> dict[str, Any]:
        """Return what the rows depend on, as plain data.

        Names and sizes count. Modification times and the folder's place do not, because they differ
        from node to node.
        """
        digest = hashlib.sha256()
        for path, name in self.files:
            digest.update(os.fsencode(f"{name}\0{path.stat().st_size}\n"))
        return {
            "name": self.name,
            "rows": len(self.files),
            "files": digest.hexdigest()[:16],
            "columns": [*self.features],
        }

    # ---- kind and speaker

    @cached_property
    def label_files(self) -> list[Path]:
        """The tables that say kinds and speakers, those that win last.

        Raises:
            FileFormatError: for a table without a column of file names.
        """
        folders = dict.fromkeys(path if path.is_dir() else path.parent for path in self.inputs)
        tables: list[Path] = []
        for folder in folders:
            beside = (folder / _MANIFEST, folder.resolve().parent / _MANIFEST)
            tables += [path for path in beside if path.is_file()][:1]
            for name in MANIFESTS:
                path = folder / name
                if name != _MANIFEST and path.is_file() and _says_labels(path):
                    tables.append(path)
        return list(dict.fromkeys(tables))

    @cached_property
    def _labels(self) -> dict[Path, tuple[str | None, str | None]]:
        """Kind and speaker by resolved path."""
        labels: dict[Path, tuple[str | None, str | None]] = {}
        for table in self.label_files:
            key = _key_column(table)
            for row in _plain_rows(table):
                path = (table.parent / str(row[key])).resolve()
                kind, speaker = labels.get(path, (None, None))
                labels[path] = (
                    _text(row.get("kind")) or kind,
                    _text(row.get("speaker")) or speaker,
                )
        return labels


def _named_files(inputs: Sequence[Path]) -> tuple[list[list[NamedFile]], Counter[str]]:
    """Return the files of each input, with names that tell the folders apart, and a count of the
    files that are left out.
    """
    groups = []
    left_out: Counter[str] = Counter()
    for path, prefix in zip(inputs, folder_prefixes(inputs), strict=True):
        if os.path.isdir(path):
            names, others = files_in_folder(path)
            left_out.update(others)
            groups.append([NamedFile(path / name, prefix + name) for name in names])
        elif os.path.isfile(path):
            groups.append([NamedFile(path, prefix + path.name)])
        else:
            raise InputError(f"there is no folder or file {path}")
    return groups, left_out


@dataclass(frozen=True)
class _ColumnTable:
    """The columns of a table beside files, without that of the names, and the row of each name."""

    columns: Any
    rows: dict[str, int]


def _read_column_table(path: Path) -> _ColumnTable:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if path.suffix == ".csv":
            table = pyarrow.csv.read_csv(path)
        elif path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            table = pa.Table.from_pylist(_json_rows(path))
    except Exception as error:
        raise FileFormatError(f"cannot read {path}: {first_line(error)}") from error
    key = _key_column(path)
    _check_key(path, table.column_names)
    rows = {str(name): row for row, name in enumerate(table[key].to_pylist())}
    return _ColumnTable(table.drop_columns([key]), rows)


def _key_column(path: Path) -> str:
    """Return the column that names the files."""
    return "path" if path.name == _MANIFEST else "file_name"


def _check_key(path: Path, columns: Sequence[str]) -> None:
    if _key_column(path) not in columns:
        raise FileFormatError(
            f"{path} has the columns {', '.join(columns)}; "
            f"expected a column named {_key_column(path)}"
        )


def _says_labels(path: Path) -> bool:
    rows = _plain_rows(path)
    return bool(rows) and bool({"kind", "speaker"} & set(rows[0]))


def _plain_rows(path: Path) -> list[dict[str, Any]]:
    """Read a table without `datasets`, and without pyarrow unless it is parquet."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            _check_key(path, list(reader.fieldnames or []))
        return rows
    if path.suffix == ".jsonl":
        rows = _json_rows(path)
    else:
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(path).to_pylist()
    for row in rows[:1]:
        _check_key(path, list(row))
    return rows


def _json_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def _text(value: Any) -> str | None:
    if value is None or value == "":
        return None
    return str(value)
