"""Parquet files and Hub datasets as tasks, through `datasets`, whose own audio decoder is not used:
soundfile is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from codecplus.errors import CodecPlusError, FileFormatError, InputError, MissingExtraError
from codecplus.eval.tasks.clips import Clip, Problem, SegmentPolicy, read_clips


@dataclass(frozen=True, kw_only=True)
class TableTask:
    """Rows with an audio column of bytes or paths. The fields are those of a preset's JSON file."""

    name: str
    dataset: str | None = None  # Hub id
    files: list[str] | None = None  # or parquet files
    config: str | None = None
    split: str = "train"
    revision: str | None = (
        None  # a commit; a branch is resolved to its commit, which the results name
    )
    audio_column: str = "audio"
    kind: str | None = None  # of every row
    kind_column: str | None = None
    speaker_column: str | None = None
    where: dict[str, Any] = field(default_factory=dict)  # rows whose columns have these values
    every: int = 1  # keep each n-th of them
    limit: int | None = None
    streaming: bool = False
    licence: str | None = None
    homepage: str | None = None
    segment_seconds: float = 30.0
    segments_per_file: int = 4

    def __post_init__(self) -> None:
        if (self.dataset is None) == (self.files is None):
            raise InputError(f"the task {self.name!r} needs either a dataset or files")
        if self.every < 1:
            raise InputError(
                f"the task {self.name!r} keeps every {self.every}-th row; expected 1 or more"
            )
        _ = self.policy

    @property
    def policy(self) -> SegmentPolicy:
        """How long recordings are cut."""
        return SegmentPolicy(self.segment_seconds, self.segments_per_file)

    def describe(self) -> dict:
        """What the task is, as plain data."""
        fields = {key: value for key, value in vars(self).items() if value not in (None, {}, [])}
        fields["files"] = [Path(file).name for file in self.files] if self.files else None
        fields["revision"] = self._commit()
        return {"type": "table", **{k: v for k, v in fields.items() if v is not None}}

    def fingerprint(self) -> str:
        """Changes with any setting, with the commit, and when a local file is written."""
        fields = {**vars(self), "revision": self._commit()}
        if self.files:
            fields["files"] = [
                (Path(f).name, Path(f).stat().st_size, Path(f).stat().st_mtime_ns)
                for f in self.files
            ]
        return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[
            :16
        ]

    def __iter__(self) -> Iterator[Clip | Problem]:
        kept = 0
        for number, row in enumerate(self._rows()):
            if number % self.every:
                continue
            if self.limit is not None and kept >= self.limit:
                return
            kept += 1
            yield from self._clips(number, row)

    def _clips(self, number: int, row: dict) -> Iterator[Clip | Problem]:
        audio = row[self.audio_column] or {}
        data, path = audio.get("bytes"), audio.get("path")
        source = f"{number:06d}" + (f" {Path(path).name}" if path else "")
        kind = row.get(self.kind_column) if self.kind_column else self.kind
        speaker = row.get(self.speaker_column) if self.speaker_column else None
        file = data or (Path(path) if path else None)
        if file is None:
            yield Problem(source, "the row holds neither audio bytes nor a path")
            return
        yield from read_clips(
            source, file, self.policy, kind, None if speaker is None else str(speaker)
        )

    def _rows(self) -> Iterator[dict]:
        try:
            yield from self._selected()
        except CodecPlusError:
            raise
        except (
            Exception
        ) as error:  # of `datasets` and what it reads with; a stream may break off in its middle
            lines = str(error).strip().splitlines()
            named = (
                f"the data set {self.dataset} at revision {self._commit()}"
                if self.dataset
                else f"{self.files}"
            )
            raise FileFormatError(
                f"cannot load {named}: {lines[0] if lines else type(error).__name__}"
            ) from error

    def _selected(self) -> Iterator[dict]:
        rows = self._load()
        names = rows.column_names or list(next(iter(rows), {}))
        needed = [
            self.audio_column,
            *self.where,
            *filter(None, (self.kind_column, self.speaker_column)),
        ]
        if missing := [name for name in needed if name not in names]:
            raise FileFormatError(
                f"the task {self.name!r} has no column {missing[0]!r}; it has {', '.join(names)}"
            )
        rows = rows.select_columns(sorted(set(needed))).cast_column(self.audio_column, _undecoded())
        return (
            row for row in rows if all(row[column] == value for column, value in self.where.items())
        )

    def _load(self) -> Any:
        datasets = _datasets()
        if self.files:
            for file in self.files:
                if not Path(file).is_file():
                    raise InputError(f"there is no file {file}")
            return datasets.load_dataset(
                "parquet", data_files=self.files, split="train", streaming=self.streaming
            )
        return datasets.load_dataset(
            self.dataset,
            self.config,
            split=self.split,
            revision=self._commit(),
            streaming=self.streaming,
        )

    def _commit(self) -> str | None:
        if self.dataset is None or (self.revision and len(self.revision) == 40):
            return self.revision
        return _resolve(self.dataset, self.revision)


@cache
def _resolve(dataset: str, revision: str | None) -> str | None:
    """The commit of a Hub dataset; when the Hub cannot be asked, the revision as it was given."""
    try:
        from huggingface_hub import HfApi

        return HfApi().dataset_info(dataset, revision=revision).sha
    except Exception:  # offline: the local cache of `datasets` may still have it under that name
        return revision


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            "parquet and Hub data need datasets: pip install codecplus[eval]"
        ) from error
    return datasets


def _undecoded() -> Any:
    return _datasets().Audio(decode=False)
