"""A local folder as a task: every audio file in it, with the kinds and speakers of its MANIFEST.csv
if there is one.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from codecplus.errors import FileFormatError, InputError
from codecplus.eval.tasks.clips import Clip, Problem, SegmentPolicy, read_clips
from codecplus.recordings.recording import SUFFIXES

MANIFEST = "MANIFEST.csv"


@dataclass(frozen=True)
class FolderTask:
    """All audio files under a folder, in order of their names.

    The manifest is looked for in the folder and then beside it; its columns `path` (relative to
    itself), `kind` and `speaker` are read, all but the first optional.
    """

    folder: Path
    policy: SegmentPolicy = field(default_factory=SegmentPolicy)
    limit: int | None = None

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise InputError(f"there is no folder {self.folder}")

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    def describe(self) -> dict:
        """What the task is, as plain data, without the place where it happens to lie."""
        return {
            "type": "folder",
            "name": self.name,
            "files": len(self._files),
            "segment_seconds": self.policy.seconds,
            "segments_per_file": self.policy.per_file,
            "limit": self.limit,
        }

    def fingerprint(self) -> str:
        """Changes when a file is added, removed or written."""
        digest = hashlib.sha256(repr((self.policy, self.limit)).encode())
        manifest = self._manifest_path()
        for path in [*self._files, *([manifest] if manifest else [])]:
            stat = path.stat()
            digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def __iter__(self) -> Iterator[Clip | Problem]:
        known = self._manifest()
        files = self._files
        if not files:
            raise InputError(f"there is no audio file in {self.folder}")
        for path in files:
            kind, speaker = known.get(path.resolve(), (None, None))
            yield from read_clips(
                path.relative_to(self.folder).as_posix(), path, self.policy, kind, speaker
            )

    @cached_property
    def _files(self) -> list[Path]:
        """All files, listed once in the life of a task."""
        found = [
            path
            for path in self.folder.rglob("*")
            if path.suffix.lower() in SUFFIXES and path.is_file()
        ]
        return sorted(found, key=lambda path: path.relative_to(self.folder).as_posix())[
            : self.limit
        ]

    def _manifest_path(self) -> Path | None:
        places = (self.folder / MANIFEST, self.folder.resolve().parent / MANIFEST)
        return next((path for path in places if path.is_file()), None)

    def _manifest(self) -> dict[Path, tuple[str | None, str | None]]:
        path = self._manifest_path()
        if path is None:
            return {}
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if "path" not in (reader.fieldnames or []):
                raise FileFormatError(
                    f"{path} has the columns {reader.fieldnames}; expected a column named path"
                )
            return {
                (path.parent / row["path"]).resolve(): (
                    row.get("kind") or None,
                    row.get("speaker") or None,
                )
                for row in reader
            }
