"""Tasks: what is encoded and scored. A task is iterated once and yields clips, and problems where
there is no clip.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from codecplus.errors import FileFormatError, InputError
from codecplus.eval.tasks.clips import Clip, Problem, SegmentPolicy
from codecplus.eval.tasks.folder import FolderTask
from codecplus.eval.tasks.table import TableTask

__all__ = [
    "Clip",
    "FolderTask",
    "Problem",
    "SegmentPolicy",
    "TableTask",
    "Task",
    "load_task",
    "preset_names",
]


class Task(Protocol):
    """A named set of clips."""

    @property
    def name(self) -> str:
        """Names the task in reports."""
        ...

    def describe(self) -> dict:
        """What it is, as plain data."""
        ...

    def fingerprint(self) -> str:
        """Changes whenever the clips may have: for the cache alone, a copy of the same files may
        have another.
        """
        ...

    def __iter__(self) -> Iterator[Clip | Problem]: ...


def preset_names() -> list[str]:
    """The tasks that ship with the package."""
    return sorted(
        path.name.removesuffix(".json")
        for path in _presets().iterdir()
        if path.name.endswith(".json")
    )


def load_task(
    data: str,
    *,
    limit: int | None = None,
    segment_seconds: float | None = None,
    segments_per_file: int | None = None,
) -> Task:
    """The task that a folder, a parquet file, a JSON file of the presets' form, or a preset's name
    stands for.

    The other arguments, where given, replace the task's own.
    """
    if limit is not None and limit < 1:
        raise InputError(f"expected a limit of 1 or more recordings, got {limit}")
    asked = {
        "limit": limit,
        "segment_seconds": segment_seconds,
        "segments_per_file": segments_per_file,
    }
    changes = {key: value for key, value in asked.items() if value is not None}
    path = Path(data)
    if path.is_dir():
        seconds, per_file = (
            changes.get("segment_seconds", 30.0),
            changes.get("segments_per_file", 4),
        )
        return FolderTask(path, SegmentPolicy(seconds, per_file), limit)
    if path.suffix == ".parquet":
        return TableTask(name=path.stem, files=[str(path)], **changes)
    if path.suffix == ".json" and path.is_file():
        return _from_json(path.stem, path.read_text(encoding="utf-8"), changes)
    if data in preset_names():
        return _from_json(data, (_presets() / f"{data}.json").read_text(encoding="utf-8"), changes)
    raise InputError(
        f"there is no data {data!r}; expected a folder, a .parquet file, a task's .json file, or one of "
        f"{', '.join(preset_names())}"
    )


def _from_json(name: str, text: str, changes: dict[str, Any]) -> TableTask:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise FileFormatError(f"the task {name!r} is no JSON: {error}") from error
    known = {field.name for field in dataclasses.fields(TableTask)}
    if not isinstance(fields, dict) or set(fields) - known:
        extra = sorted(set(fields) - known) if isinstance(fields, dict) else fields
        raise FileFormatError(
            f"the task {name!r} has unknown fields {extra}; known are {', '.join(sorted(known))}"
        )
    return TableTask(**{"name": name, **fields, **changes})


def _presets() -> Any:
    return files("codecplus.configuration") / "evaluation"
