"""From what a user names to crops and validation clips: folders, files of tables, data sets, on
disk or on the Hub.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.audio.files import AudioFileReader
from codecplus.audio.resampling import resample
from codecplus.errors import CodecPlusError, InputError, MissingExtraError
from codecplus.training.data import (
    Batches,
    Crops,
    Cutter,
    FileSource,
    StreamedCrops,
    TableSource,
    audio_file,
    find_recordings,
    hold_out,
    undecoded,
)

_TABLES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
_CLIP_SECONDS = 8.0


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How a data set is read; folders need none of it."""

    split: str = "train"
    config: str | None = None
    column: str = "audio"
    revision: str | None = None
    streaming: bool = False


@dataclass(frozen=True)
class Clip:
    """A recording to validate with, mono (S,) at the codec's rate."""

    name: str
    audio: np.ndarray


def open_data(
    data: Any,
    cutter: Cutter,
    batch: int,
    *,
    validation: Any = None,
    options: TableOptions | None = None,
    seed: int = 0,
    rank: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> tuple[Batches, list[Clip]]:
    """Batches for one process, and the clips to validate with, which process 0 of a streamed data
    set alone gets.

    Args: data: a folder, several, a parquet, arrow or webdataset file, a folder that
        `Dataset.save_to_disk` wrote, the id
            of a data set on the Hub, or a `datasets` object.
        cutter: makes the crops.
        batch: crops per batch of this process.
        validation: the same kinds of thing; by default a small part of `data` is kept for it, and
        not trained on.
        options, seed, rank, processes, workers: of the data set, and as `Batches` has them.

    Raises:
        InputError: if there is no such data, or no audio in it.
    """
    options = options or TableOptions()
    opened = _open(data, options, report=rank == 0)
    clips = (
        []
        if validation is None
        else _clips(_open(validation, options, report=rank == 0), options, cutter)
    )
    if isinstance(opened, list):
        train, held = (opened, []) if validation is not None else hold_out(opened)
        clips = clips or _clips(held, options, cutter)
        crops: Crops | StreamedCrops = Crops(FileSource(train), cutter, seed)
    elif _is_stream(opened):
        if processes > 1:
            from datasets.distributed import split_dataset_by_node

            opened = split_dataset_by_node(opened, rank=rank, world_size=processes)
        # Of its own share, which no other process sees: what is skipped before a split is another
        # part of each share.
        if validation is None and rank == 0:
            clips, opened = _clips(opened.take(8), options, cutter), opened.skip(8)
        crops = StreamedCrops(opened, options.column, cutter, batch, seed=seed + rank)
    else:
        rows, held = len(opened), 0 if validation is not None else min(8, len(opened) // 20)
        if held:
            clips = _clips(opened.select(range(rows - held, rows)), options, cutter)
        crops = Crops(TableSource(opened.select(range(rows - held)), options.column), cutter, seed)
    return Batches(crops, batch, rank=rank, processes=processes, workers=workers), clips


def _open(data: Any, options: TableOptions, *, report: bool) -> Any:
    """A list of recordings, or a table."""
    if hasattr(data, "column_names"):
        return data
    names = (
        [os.fspath(data)]
        if isinstance(data, str | os.PathLike)
        else [os.fspath(name) for name in data]
    )
    if not names:
        raise InputError("expected data to train on, got an empty list")
    paths = [Path(name) for name in names]
    if all(path.is_dir() for path in paths):
        if not any((path / "dataset_info.json").exists() for path in paths):
            return find_recordings(*paths, report=report)
        return _from_disk(paths, options)
    if all(path.is_file() for path in paths):
        kinds = {path.suffix.lower() for path in paths}
        if len(kinds) != 1 or not kinds <= set(_TABLES):
            raise InputError(
                f"expected folders, or files ending in one of {', '.join(_TABLES)}, got {names[0]}"
            )
        return _load(_TABLES[kinds.pop()], options, data_files=names)
    if len(names) > 1 or not _is_hub_id(names[0]):
        missing = next(name for name in names if not Path(name).exists())
        raise InputError(
            f"there is no folder or file {missing}; give one, or the id of a data set like owner/name"
        )
    return _load(names[0], options, options.config, revision=options.revision)


def _is_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~"))


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("data sets need datasets: pip install codecplus[train]") from error
    return datasets


def _load(name: str, options: TableOptions, *config: str | None, **arguments: Any) -> Any:
    datasets = _datasets()
    split = "train" if "data_files" in arguments else options.split
    try:
        return datasets.load_dataset(
            name, *config, split=split, streaming=options.streaming, **arguments
        )
    except Exception as error:
        raise InputError(
            f"cannot open the data set {name!r}: {' '.join(str(error).split())[:300]}"
        ) from error


def _from_disk(paths: Sequence[Path], options: TableOptions) -> Any:
    if len(paths) > 1:
        raise InputError(f"expected one saved data set, got {len(paths)} folders")
    table = _datasets().load_from_disk(str(paths[0]))
    return table.to_iterable_dataset(num_shards=min(64, len(table))) if options.streaming else table


def _is_stream(table: Any) -> bool:
    return not hasattr(table, "__len__")


def _clips(found: Any, options: TableOptions, cutter: Cutter) -> list[Clip]:
    """Up to 16 clips: the beginnings of recordings."""
    if isinstance(found, list):
        files: Iterable[tuple[str, Any]] = ((r.path.name, r.path) for r in found)
    else:
        rows = undecoded(found, options.column)
        files = (audio_file(row, options.column, index) for index, row in enumerate(rows))
    clips = []
    for name, file in files:
        try:
            with AudioFileReader(io.BytesIO(file) if isinstance(file, bytes) else file) as reader:
                block = next(reader.blocks(max(1, int(_CLIP_SECONDS * reader.sample_rate))))
                clips.append(
                    Clip(name, resample(block.mean(axis=0), reader.sample_rate, cutter.sample_rate))
                )
        except CodecPlusError as error:
            warnings.warn(f"{name} is no use for validation: {error}", stacklevel=2)
        if len(clips) == 16:
            break
    return clips
