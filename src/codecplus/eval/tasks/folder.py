"""Audio files as a task, with the kinds and speakers that a table beside them gives."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from codecplus.errors import InputError
from codecplus.eval.tasks.clips import Clip, Problem, SegmentPolicy, read_clips
from codecplus.recordings.folders import FileRecordings


@dataclass(frozen=True)
class FolderTask:
    """All audio files under a folder, in the order of their names.

    The folder is listed once, when it is first needed. Kinds and speakers come from the tables that
    `codecplus.recordings.open_recordings` reads, or from a `MANIFEST.csv` beside the folder, whose
    column `path` is relative to itself.

    Attributes:
        folder: a folder or audio file, or several.
        policy: how long recordings are cut.
        limit: recordings at most.
    """

    folder: Path | Sequence[Path]
    policy: SegmentPolicy = field(default_factory=SegmentPolicy)
    limit: int | None = None

    def __post_init__(self) -> None:
        for path in self._inputs:
            if not path.exists():
                raise InputError(f"there is no folder {path}")

    @property
    def _inputs(self) -> list[Path]:
        if isinstance(self.folder, Path):
            return [self.folder]
        return list(self.folder)

    @cached_property
    def _recordings(self) -> FileRecordings:
        return FileRecordings(self._inputs)

    @property
    def _count(self) -> int:
        return len(self._recordings.files[: self.limit])

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self._recordings.name

    def describe(self) -> dict:
        """Return the task as plain data, without the place of the folder."""
        return {
            "type": "folder",
            "name": self.name,
            "files": self._count,
            "segment_seconds": self.policy.seconds,
            "segments_per_file": self.policy.per_file,
            "limit": self.limit,
        }

    def fingerprint(self) -> str:
        """Return a hash that changes when a file is added, removed or written."""
        digest = hashlib.sha256(repr((self.policy, self.limit)).encode())
        paths = [path for path, _ in self._recordings.files[: self.limit]]
        for path in [*paths, *self._recordings.label_files]:
            stat = path.stat()
            digest.update(os.fsencode(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"))
        return digest.hexdigest()[:16]

    def __iter__(self) -> Iterator[Clip | Problem]:
        if not self._count:
            raise InputError(f"there is no audio file in {', '.join(map(str, self._inputs))}")
        for index in range(self._count):
            yield from read_clips(self._recordings[index], self.policy)
