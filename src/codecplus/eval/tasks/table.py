"""Tables and data sets as tasks, as files of tasks describe them."""

import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from codecplus.errors import CodecPlusError, FileFormatError, InputError
from codecplus.eval.tasks.clips import Clip, Problem, SegmentPolicy, read_clips
from codecplus.recordings import Recording, open_recordings
from codecplus.recordings.tables import (
    StreamRecordings,
    TableRecordings,
    hub_commit,
)


@dataclass(frozen=True, kw_only=True)
class TableTask:
    """Rows with a column of audio. The fields are those of a preset's JSON file.

    Attributes:
        name: of the task in reports.
        dataset: Hub id.
        files: instead of a dataset, files of one kind that `open_recordings` reads, or one folder
            of them.
        config, split: of the dataset.
        revision: a commit; a branch is resolved to its commit, which the results name.
        audio_column: `outer.inner` for a nested one.
        kind: of every row.
        kind_column: by default `kind`, where there is such a column and no `kind` is given.
        speaker_column: by default `speaker`, where there is such a column.
        where: only rows whose columns have these values are read.
        every: of these, each n-th is scored.
        limit: recordings at most.
        streaming: read while downloading.
        licence, homepage: of the data, for reports.
        segment_seconds, segments_per_file: how long recordings are cut, see `SegmentPolicy`.
    """

    name: str
    dataset: str | None = None
    files: list[str] | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    audio_column: str = "audio"
    kind: str | None = None
    kind_column: str | None = None
    speaker_column: str | None = None
    where: dict[str, Any] = field(default_factory=dict)
    every: int = 1
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

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def describe(self) -> dict:
        """Return the task as plain data."""
        described = {
            name: value for name, value in self._settings().items() if value not in (None, {}, [])
        }
        if self.files:
            described["files"] = [Path(file).name for file in self.files]
        described["revision"] = self._commit()
        return {
            "type": "table",
            **{name: value for name, value in described.items() if value is not None},
        }

    def fingerprint(self) -> str:
        """Return a hash that changes with any setting, with the commit, and with local files."""
        settings = {**self._settings(), "revision": self._commit()}
        if self.files:
            paths = [path for file in self.files for path in _files_of(Path(file))]
            stats = [(path, path.stat()) for path in paths]
            settings["files"] = [(path.name, s.st_size, s.st_mtime_ns) for path, s in stats]
        text = json.dumps(settings, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __iter__(self) -> Iterator[Clip | Problem]:
        count = 0
        for number, recording in enumerate(self._rows()):
            if number % self.every:
                continue
            if self.limit is not None and count >= self.limit:
                return
            count += 1
            yield from self._clips(number, recording)

    def _clips(self, number: int, recording: Recording) -> Iterator[Clip | Problem]:
        kind = self.kind
        if self.kind_column:
            kind = recording.columns[self.kind_column]
        speaker = None
        if self.speaker_column:
            speaker = recording.columns[self.speaker_column]
        yield from read_clips(
            recording,
            self.policy,
            source=recording_name(number, recording),
            kind=kind,
            speaker=None if speaker is None else str(speaker),
        )

    def _rows(self) -> Iterator[Recording]:
        """Yield the recordings that `where` selects."""
        try:
            for recording in self._open():
                if all(recording.columns[name] == value for name, value in self.where.items()):
                    yield recording
        except CodecPlusError:
            raise
        except Exception as error:  # of `datasets`: a stream may break off in its middle
            lines = str(error).strip().splitlines()
            data = str(self.files)
            if self.dataset:
                data = f"the data set {self.dataset} at revision {self._commit()}"
            raise FileFormatError(
                f"cannot load {data}: {lines[0] if lines else type(error).__name__}"
            ) from error

    def _open(self) -> TableRecordings | StreamRecordings:
        for file in self.files or []:
            if not Path(file).exists():
                raise InputError(f"there is no file {file}")
        recordings = open_recordings(
            self.files or self.dataset,
            split=self.split,
            audio_column=None if self.audio_column == "audio" else self.audio_column,
            streaming=self.streaming,
            config=self.config,
            revision=self._commit(),
        )
        if not isinstance(recordings, (TableRecordings, StreamRecordings)):
            raise InputError(f"the task {self.name!r} needs tables, got audio files")
        named = [*self.where, self.kind_column, self.speaker_column]
        needed = [name for name in named if name is not None]
        missing = [name for name in needed if name not in recordings.columns]
        if missing:
            columns = [recordings.audio_path[0], *recordings.columns]
            raise FileFormatError(
                f"the task {self.name!r} has no column {missing[0]!r}; "
                f"it has {', '.join(dict.fromkeys(columns))}"
            )
        return recordings.select_columns(needed)

    def _commit(self) -> str | None:
        if self.dataset is None:
            return self.revision
        return hub_commit(self.dataset.removeprefix("hf://datasets/"), self.revision)


@dataclass(frozen=True)
class MemoryTask:
    """Rows of a `datasets` object.

    Attributes:
        recordings: the rows.
        policy: how long recordings are cut.
        limit: recordings at most.
    """

    recordings: TableRecordings | StreamRecordings
    policy: SegmentPolicy = field(default_factory=SegmentPolicy)
    limit: int | None = None

    @property
    def name(self) -> str:
        """The name of the task in reports."""
        return self.recordings.name

    def describe(self) -> dict:
        """Return the task as plain data."""
        return {
            "type": "table",
            **self.recordings.describe(),
            "segment_seconds": self.policy.seconds,
            "segments_per_file": self.policy.per_file,
            "limit": self.limit,
        }

    @cached_property
    def _identity(self) -> str:
        """The fingerprint of the table. A stream has none, so it is read again by every run."""
        return getattr(self.recordings.data, "_fingerprint", None) or uuid.uuid4().hex

    def fingerprint(self) -> str:
        """Return a hash that changes with the rows."""
        text = repr((self._identity, self.recordings.audio_path, self.policy, self.limit))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __iter__(self) -> Iterator[Clip | Problem]:
        for number, recording in enumerate(self.recordings):
            if self.limit is not None and number >= self.limit:
                return
            yield from read_clips(recording, self.policy, source=recording_name(number, recording))


def recording_name(number: int, recording: Recording) -> str:
    """Return the name of a row in the results: its number, and the name of its file if known."""
    if recording.file_name is None:
        return f"{number:06d}"
    return f"{number:06d} {recording.file_name}"


def _files_of(path: Path) -> list[Path]:
    """Return a file, or the files in a folder."""
    if path.is_dir():
        return sorted(inner for inner in path.rglob("*") if inner.is_file())
    return [path]
