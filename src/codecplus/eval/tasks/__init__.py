"""Tasks: the clips that are encoded and scored.

A task is iterated once. It yields clips, and problems where a recording gives no clip.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from codecplus.errors import FileFormatError, InputError
from codecplus.eval.tasks.clips import Clip, Problem, SegmentPolicy
from codecplus.eval.tasks.conditions import Conditions, ConditionTask
from codecplus.eval.tasks.folder import FolderTask
from codecplus.eval.tasks.kinds import KindTask
from codecplus.eval.tasks.table import MemoryTask, TableTask
from codecplus.recordings import AUDIO_SUFFIXES, open_recordings
from codecplus.recordings.listing import holds_files
from codecplus.recordings.tables import FILE_KINDS, is_dataset_id

__all__ = [
    "Clip",
    "ConditionTask",
    "Conditions",
    "FolderTask",
    "KindTask",
    "MemoryTask",
    "Problem",
    "SegmentPolicy",
    "TableTask",
    "Task",
    "load_task",
    "task_names",
]


class Task(Protocol):
    """A named set of clips."""

    @property
    def name(self) -> str:
        """The name of the task in reports."""
        ...

    def describe(self) -> dict:
        """Return the task as plain data."""
        ...

    def fingerprint(self) -> str:
        """Return a hash that changes whenever the clips may have changed.

        It is for the cache alone: a copy of the same files may have another one.
        """
        ...

    def __iter__(self) -> Iterator[Clip | Problem]: ...


def task_names() -> list[str]:
    """Return the names of the tasks that come with the package."""
    return sorted(
        path.name.removesuffix(".json")
        for path in _presets().iterdir()
        if path.name.endswith(".json")
    )


def load_task(
    data: Any,
    *,
    kinds: Iterable[str] | None = None,
    conditions: Conditions | None = None,
    limit: int | None = None,
    segment_seconds: float | None = None,
    segments_per_file: int | None = None,
    **table: Any,
) -> Task:
    """Return the task that some data stand for.

    Args:
        data: the name of a preset, a JSON file of the presets' form, or anything that
            `codecplus.recordings.open_recordings` takes: files, folders, tables, a Hub id, a
            `datasets` object.
        kinds: only recordings of these kinds are read; None: all.
        conditions: what is done to every clip; None: nothing.
        limit: recordings at most.
        segment_seconds, segments_per_file: how long recordings are cut, see `SegmentPolicy`.
        table: other fields of `TableTask`, such as `split` and `audio_column`, for data that are
            tables. All arguments replace what the task's file says.

    Raises:
        InputError: if there are no such data, or an option cannot be used.
        FileFormatError: for a JSON file of another form.
    """
    if limit is not None and limit < 1:
        raise InputError(f"expected a limit of 1 or more recordings, got {limit}")
    asked = {
        "segment_seconds": segment_seconds,
        "segments_per_file": segments_per_file,
        **table,
    }
    changes = {key: value for key, value in asked.items() if value is not None}
    if kinds:
        task: Task = KindTask(_open_task(data, changes), tuple(kinds), limit)
    elif limit is not None:
        task = _open_task(data, {"limit": limit, **changes})
    else:
        task = _open_task(data, changes)
    if conditions is not None and conditions.as_dict():
        return ConditionTask(task, conditions)
    return task


def _open_task(data: Any, changes: dict[str, Any]) -> Task:
    """Return the task of some data, in which `changes` replace what the task's file says."""
    policy = SegmentPolicy(
        changes.get("segment_seconds", SegmentPolicy.seconds),
        changes.get("segments_per_file", SegmentPolicy.per_file),
    )
    if hasattr(data, "column_names"):
        options = {key: changes[key] for key in ("split", "audio_column") if key in changes}
        recordings = open_recordings(data, **options)
        limit = changes.get("limit")
        return MemoryTask(recordings, policy, limit)  # pyright: ignore[reportArgumentType]
    if not isinstance(data, (str, os.PathLike)):
        return _local_task([Path(item) for item in data], policy, changes)
    name = os.fspath(data)
    path = Path(name)
    if name in task_names() and not path.is_dir():
        return _from_json(name, (_presets() / f"{name}.json").read_text("utf-8"), changes)
    if path.suffix == ".json" and path.is_file():
        return _from_json(path.stem, path.read_text("utf-8"), changes)
    if not path.exists() and is_dataset_id(name):
        dataset = name.removeprefix("hf://datasets/")
        return TableTask(**{"name": dataset.split("/")[1], "dataset": dataset, **changes})
    return _local_task([path], policy, changes)


def _local_task(paths: list[Path], policy: SegmentPolicy, changes: dict[str, Any]) -> Task:
    """Return the task of files and folders."""
    for path in paths:
        if not path.exists():
            raise InputError(
                f"there is no data {str(path)!r}; expected a folder, an audio file, a table such "
                "as a .parquet file, a task's .json file, the id of a data set on the Hub, or one "
                f"of {', '.join(task_names())}"
            )
    if paths and all(_is_table(path) for path in paths):
        task = {"name": paths[0].stem, "files": [str(path) for path in paths]}
        return TableTask(**{**task, **changes})
    return FolderTask(paths, policy, changes.get("limit"))


def _is_table(path: Path) -> bool:
    """Whether this is a file of a table, or a folder of such files that holds no audio file."""
    if path.is_dir():
        return not holds_files(path) and holds_files(path, FILE_KINDS)
    return path.suffix.lower() not in AUDIO_SUFFIXES


def _from_json(name: str, text: str, changes: dict[str, Any]) -> TableTask:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise FileFormatError(f"the task {name!r} is no JSON: {error}") from error
    known = {field.name for field in dataclasses.fields(TableTask)}
    if not isinstance(fields, dict) or set(fields) - known:
        extra: Any = fields
        if isinstance(fields, dict):
            extra = sorted(set(fields) - known)
        raise FileFormatError(
            f"the task {name!r} has unknown fields {extra}; known are {', '.join(sorted(known))}"
        )
    return TableTask(**{"name": name, **fields, **changes})


def _presets() -> Any:
    return files("codecplus.configuration") / "evaluation"
