"""Code datasets on disk: their columns, their parquet files, and the footers of these.

A file appears complete, under its name, or not at all. Its footer holds its statistics, so that
both are always of the same moment.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.errors import FileFormatError, InputError
from codecplus.system.paths import atomic_path
from codecplus.tokenizing.counts import Statistics

KEY = b"codecplus"  # of the JSON in a footer
NEW_COLUMNS = (
    "codes",
    "num_frames",
    "num_samples",
    "sample_rate",
    "model_fingerprint",
    "model_revision",
    "error",
)
SIDECARS = ".hub"  # in a folder whose shards go to the Hub: the footers of those on the Hub
_GROUP_ROWS = 250
_GROUP_CODES = 1 << 24  # a row group ends here too, so that memory stays bounded


@dataclass(frozen=True, kw_only=True)
class CodesFormat:
    """The properties that all rows of a code dataset share."""

    model: str
    model_revision: str | None
    model_fingerprint: str  # hexadecimal
    sample_rate: int  # Hz, of the model
    hop_length: int
    num_codebooks: int
    codebook_size: int
    channels: int

    def describe(self) -> dict[str, Any]:
        """Return the format as plain data, with the shape of `codes` in words."""
        shape = "(codebooks, frames)" if self.channels == 1 else "(channels, codebooks, frames)"
        return {
            **asdict(self),
            "frame_rate": self.sample_rate / self.hop_length,
            "codes_shape": shape,
        }

    @classmethod
    def from_description(cls, fields: dict[str, Any]) -> "CodesFormat":
        """Return the format of a description. Raises FileFormatError if a field is missing."""
        try:
            return cls(**{name: fields[name] for name in cls.__dataclass_fields__})
        except (KeyError, TypeError) as error:
            raise FileFormatError(
                f"the description of the codes lacks {error}; the file is damaged"
            ) from error

    def features(self, kept: Any) -> Any:
        """Return the `datasets.Features` of the rows: columns that were kept, then new ones.

        Raises:
            InputError: if a column that was kept has the name of a new one.
        """
        from datasets import Features, List, Value

        if clash := [name for name in NEW_COLUMNS if name in kept]:
            raise InputError(
                f"the data have a column {clash[0]!r} already, which tokenising writes; "
                "rename it, or name the columns to keep with --columns"
            )
        codes = List(List(Value("uint16")))
        return Features(
            {
                **kept,
                "codes": codes if self.channels == 1 else List(codes),
                "num_frames": Value("int32"),
                "num_samples": Value("int64"),
                "sample_rate": Value("int32"),
                "model_fingerprint": Value("string"),
                "model_revision": Value("string"),
                "error": Value("string"),
            }
        )


class ShardWriter:
    """Writes the rows of one parquet file in order, and counts them. See `open_shard`.

    `footer` holds the entries of the footer besides the format and the statistics.
    """

    def __init__(self, path: Path, codes_format: CodesFormat, features: Any):
        import pyarrow.parquet as pq

        self._format = codes_format
        self._schema = features.arrow_schema
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._columns: list[Any] = []
        self._rows: list[tuple] = []
        self._codes = 0
        self.footer: dict[str, Any] = {}
        self.statistics = Statistics.empty(codes_format.num_codebooks, codes_format.codebook_size)

    def write(self, columns: Any, codes: np.ndarray, num_samples: int, sample_rate: int) -> None:
        """Append a clip.

        Args:
            columns: a table of one row with the columns that were kept.
            codes: integers (C, K, T).
            num_samples, sample_rate: of the recording.
        """
        self.statistics.add(codes, num_samples / sample_rate)
        codes = codes.astype(np.uint16)
        if self._format.channels == 1:
            codes = codes[0]
        self._append(columns, (codes, num_samples, sample_rate, None))

    def fail(self, columns: Any, reason: str) -> None:
        """Append a clip that has no codes, with the reason."""
        self.statistics.fail(reason)
        self._append(columns, (None, None, None, reason))

    def _append(self, columns: Any, row: tuple) -> None:
        self._columns.append(columns)
        self._rows.append(row)
        if row[0] is not None:
            self._codes += row[0].size
        if len(self._rows) >= _GROUP_ROWS or self._codes >= _GROUP_CODES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        codes, num_samples, sample_rates, errors = zip(*self._rows, strict=True)
        table = pa.concat_tables(self._columns)
        frames = [None if item is None else item.shape[-1] for item in codes]
        new = [nested(codes, 2 + (self._format.channels > 1)), frames, num_samples, sample_rates]
        new += [
            [value] * len(codes)
            for value in (self._format.model_fingerprint, self._format.model_revision)
        ]
        columns: dict[str, Any] = {name: table[name] for name in table.column_names}
        for name, values in zip(NEW_COLUMNS, [*new, errors], strict=True):
            array: Any = values if isinstance(values, pa.Array) else pa.array(values)
            columns[name] = array.cast(self._schema.field(name).type)
        written = pa.table({name: columns[name] for name in self._schema.names})
        self._writer.write_table(written.cast(self._schema))
        self._columns = []
        self._rows = []
        self._codes = 0

    def close(self) -> None:
        """Write the remaining rows, and the footer: the format, the statistics, and `footer`."""
        if self._rows:
            self._flush()
        statistics = self.statistics.as_counts()
        footer = {**self._format.describe(), **self.footer, "statistics": statistics}
        self._writer.add_key_value_metadata({KEY.decode(): json.dumps(footer, sort_keys=True)})
        self._writer.close()

    def abandon(self) -> None:
        """Close the file as it is, to be removed."""
        self._writer.close()


def nested(arrays: Sequence[np.ndarray | None], axes: int) -> Any:
    """Return arrays, or None, of a number of axes as an Arrow array of nested lists."""
    import pyarrow as pa

    shapes = [None if array is None else array.shape for array in arrays]
    flat = [array.ravel() for array in arrays if array is not None]
    values = pa.array(np.concatenate(flat) if flat else np.zeros(0, np.uint16))
    for axis in reversed(range(1, axes)):
        lengths = [
            np.full(int(np.prod(shape[:axis])), shape[axis])
            for shape in shapes
            if shape is not None
        ]
        values = pa.ListArray.from_arrays(
            _offsets(np.concatenate(lengths) if lengths else np.zeros(0)), values
        )
    outer = np.array([0 if shape is None else shape[0] for shape in shapes])
    missing = np.array([shape is None for shape in shapes])
    return pa.ListArray.from_arrays(_offsets(outer), values, mask=pa.array(missing))


def _offsets(lengths: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


class CodesFolder:
    """A folder of shards.

    README.md             tells `datasets` how to read it
    tokenize.json         the settings that its rows depend on; another job is refused
    statistics.json       of all rows, when all shards exist
    data/SPLIT-PIECE.parquet, or SPLIT-PIECE-PART.parquet of a stream

    Unfinished files have names that begin with a dot, see `atomic_path`. Several processes may
    write to one folder, even the same shards: a shard depends on its rows alone.
    """

    def __init__(self, root: Path, split: str, pieces: int, stream: bool):
        self.root, self.split, self.pieces, self._stream = root, split, pieces, stream
        self._digits = max(5, len(str(pieces - 1)))

    def path(self, piece: int, part: int) -> Path:
        """Return the path of one shard."""
        name = f"{self.split}-{piece:0{self._digits}d}" + (f"-{part:05d}" if self._stream else "")
        return self.root / "data" / f"{name}.parquet"

    def done(self, piece: int) -> tuple[int, bool]:
        """Return how many parts of a piece exist, and whether the piece is complete."""
        part = 0
        while self._exists(self.path(piece, part)):
            part += 1
            if not self._stream:
                return part, True
        return part, part > 0 and self.footer(self.path(piece, part - 1))["last"]

    def _sidecar(self, path: Path) -> Path:
        return self.root / SIDECARS / f"{path.stem}.json"

    def _exists(self, path: Path) -> bool:
        return path.exists() or self._sidecar(path).exists()

    def footer(self, path: Path) -> dict[str, Any]:
        """Return the footer of a shard, here or on the Hub; FileFormatError if it is damaged."""
        if path.exists():
            return read_footer(path)
        try:
            return json.loads(self._sidecar(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileFormatError(
                f"{self._sidecar(path)} is damaged: {error}; delete it and run again"
            ) from error

    def complete(self) -> bool:
        """Return whether all shards exist."""
        return all(self.done(piece)[1] for piece in range(self.pieces))

    def shards(self) -> Iterator[Path]:
        """Yield the paths of all shards that exist, in order."""
        for piece in range(self.pieces):
            for part in range(self.done(piece)[0]):
                yield self.path(piece, part)

    def write_text(self, name: str, text: str) -> None:
        """Write a small file, completely or not at all."""
        self.root.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.root / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


@contextmanager
def open_shard(target: Path, codes_format: CodesFormat, features: Any) -> Iterator[ShardWriter]:
    """Yield a `ShardWriter` whose file appears, complete, when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        writer = ShardWriter(temporary, codes_format, features)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise
        writer.close()


def read_footer(path: Path) -> dict[str, Any]:
    """Return the footer of a shard. Raises FileFormatError if it is damaged or has none."""
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path).metadata or {}
        return json.loads(metadata[KEY])
    except KeyError as error:
        raise FileFormatError(f"{path} was not written by codecplus tokenize") from error
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} is damaged: {error}; delete it and run again") from error
