"""`tokenize`: from recordings to shards of codes, on one process or on many that know nothing of
each other.

    rows of my pieces -> decoded by workers, in order -> a window of rows -> batches of like lengths
    -> a shard

What a shard holds depends on its rows alone: neither on who else is at work, nor on timing, nor on
being killed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from codecplus._version import __version__
from codecplus.audio.resampling import Resampler
from codecplus.checkpoints.identity import find_embedded
from codecplus.codec import Codec
from codecplus.errors import CodecPlusError, FileFormatError, InputError
from codecplus.recordings.recording import Recording, open_recording
from codecplus.tokenizing.outputs import LocalOutput, open_output
from codecplus.tokenizing.shards import CodesFolder, CodesFormat, ShardWriter, open_shard
from codecplus.tokenizing.sources import AUDIO, Source, open_source
from codecplus.tokenizing.statistics import Statistics, describe
from codecplus.tokenizing.workers import read_ordered

JOB, README, STATISTICS = "tokenize.json", "README.md", "statistics.json"
_WINDOW_ROWS = 512
_WINDOW_BATCHES = 4  # of audio in a window: enough to find rows of like lengths in it
_WINDOW_SECONDS = 60.0  # of audio in a window where there are no batches


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How clips become codes, and codes shards. `batch_seconds` as for `Codec.encode_clips`."""

    bitrate: float | None = None
    n_quantizers: int | None = None
    channels: int = 1
    batch_seconds: float | None = None
    shard_rows: int = 1000

    def __post_init__(self) -> None:
        if self.shard_rows < 1 or self.channels < 1 or (self.batch_seconds or 0) < 0:
            raise InputError(
                f"expected at least 1 row per shard, 1 channel and 0 seconds per batch, got {self.shard_rows}, "
                f"{self.channels} and {self.batch_seconds}"
            )


@dataclass
class Pace:
    """How fast this process was: seconds of wall time in all, and of those the seconds spent in the
    network.
    """

    started: float = field(default_factory=time.perf_counter)
    coding: float = 0.0
    audio: float = 0.0
    clips: int = 0

    def __str__(self) -> str:
        wall = max(time.perf_counter() - self.started, 1e-9)
        busy = f"{100 * self.coding / wall:.0f} % in the network"
        return f"{self.clips / wall:.1f} clips/s, {self.audio / 3600 / wall:.4f} audio-h/s, {busy}"


def tokenize(
    data: Any,
    codec: Codec,
    out: str | os.PathLike[str],
    *,
    coding: Coding | None = None,
    shard: tuple[int, int] | None = None,
    workers: int | None = None,
    model_name: str | None = None,
    private: bool = False,
    progress: bool = True,
) -> dict[str, Any] | None:
    """Tokenise a dataset to a folder of parquet files, which `load_dataset` reads.

    A run that was stopped goes on after the last shard that is whole. Several processes may write
    to one folder, each its share of the pieces; whoever finishes last writes the statistics.

    Args: data: what `open_source` made, or what it takes. out: the folder; or
        `hf://datasets/OWNER/NAME`, to which shards are committed every few minutes. shard: (i, n)
        for the i-th of n shares, i from 0; as the launcher says, by default (`shard_of_launcher`).
        workers: processes that decode; 0 decodes in this one. By default one, or half the cores for
        an accelerator. model_name: to write down; the name the codec was loaded by, where that is
        known, by default. private: make a new dataset on the Hub private.

    Returns:
        The statistics of the whole dataset, or None if other processes have not finished.

    Raises:
        InputError: for options that cannot be used, or a folder that holds another job.
        HubError: if the Hub cannot be reached, or refuses.
    """
    coding = coding or Coding()
    source = data if hasattr(data, "tables") else open_source(data)
    index, count = shard or shard_of_launcher()
    if not 0 <= index < count:
        raise InputError(f"expected a share i/n with i from 0 to n - 1, got {index}/{count}")
    codes_format = _format(codec, coding, model_name)
    codes_format.features(source.features)  # refuses names that clash
    pieces = source.num_pieces(coding.shard_rows)
    if not pieces:
        raise InputError(f"{source.name} has no rows")
    output = open_output(out, private)
    folder = CodesFolder(output.root, source.split, pieces, source.num_rows is None)
    output.join(JOB)
    coding = _join(folder, output, codec, source, codes_format, coding)
    job = _Job(codec, source, folder, output, codes_format, coding)
    workers = _default_workers(codec) if workers is None else workers
    job.run(range(index, pieces, count), workers, progress and index == 0)
    if progress and job.pace.clips:
        print(f"share {index}/{count}: {job.pace.clips} clips, {job.pace}", file=sys.stderr)
    output.flush()
    output.join(JOB)
    return _finish(folder, output, codes_format) if folder.complete() else None


@dataclass(frozen=True)
class _Row:
    """A row on its way: the shard it goes to, what the footer says if it is the last one there, and
    its columns.
    """

    target: Path
    footer: dict[str, Any]
    kept: Any  # a table of one row; None for the shard of a piece without rows
    cell: Any


_Read = tuple[_Row, Recording | str]


class _Job:
    """One process at work."""

    def __init__(
        self,
        codec: Codec,
        source: Source,
        folder: CodesFolder,
        output: LocalOutput,
        codes_format: CodesFormat,
        coding: Coding,
    ):
        self._codec, self._source, self._folder, self._output = codec, source, folder, output
        self._format, self._coding = codes_format, coding
        self._features = codes_format.features(source.features)
        self._batch_seconds = coding.batch_seconds or 0.0
        self.pace = Pace()

    def run(self, pieces: Iterable[int], workers: int, progress: bool) -> None:
        """Write the shards of these pieces that are not there yet."""
        from tqdm import tqdm

        cells = ((row, row.cell) for row in self._rows(pieces))
        rows = read_ordered(cells, self._codec.model_sample_rate, self._format.channels, workers)
        hidden = None if progress else True  # None: where there is no terminal
        with tqdm(total=self._total(pieces), desc="tokenising", unit="clip", disable=hidden) as bar:
            for target, shard in groupby(rows, key=lambda read: read[0].target):
                with open_shard(self._folder, target, self._format, self._features) as writer:
                    for window in self._windows(shard):
                        self._code(window, writer)
                        writer.footer = window[-1][0].footer
                        bar.set_postfix_str(str(self.pace), refresh=False)
                        bar.update(len(window))
                self._output.shard_written(target)

    def _total(self, pieces: Iterable[int]) -> int | None:
        if self._source.num_rows is None:
            return None
        size = self._coding.shard_rows
        left = [piece for piece in pieces if not self._folder.done(piece)[1]]
        return sum(min(size, self._source.num_rows - piece * size) for piece in left)

    def _rows(self, pieces: Iterable[int]) -> Iterator[_Row]:
        """Every row that is missing. One is held back, so that the last of a piece is known to be
        the last.
        """
        size = self._coding.shard_rows
        for piece in pieces:
            part, complete = self._folder.done(piece)
            if complete:
                continue
            number, held = part * size, None
            for table in self._source.tables(piece, size, number):
                for i in range(table.num_rows):
                    if held is not None:
                        yield self._row(piece, number, held, last=False)
                        number += 1
                    held = table.slice(i, 1)
            if held is not None or part == 0:
                yield self._row(piece, number, held, last=True)

    def _row(self, piece: int, number: int, table: Any, last: bool) -> _Row:
        part = number // self._coding.shard_rows
        target, footer = (
            self._folder.path(piece, part),
            {"piece": piece, "part": part, "last": last},
        )
        if table is None:
            return _Row(target, footer, None, None)
        return _Row(target, footer, table.drop_columns([AUDIO]), table[AUDIO][0].as_py())

    def _windows(self, rows: Iterable[_Read]) -> Iterator[list[_Read]]:
        """Rows in their order, as many at a time as a few batches hold."""
        seconds = _WINDOW_BATCHES * self._batch_seconds or _WINDOW_SECONDS
        limit, window, held = seconds * self._codec.model_sample_rate, [], 0
        for row, found in rows:
            window.append((row, found))
            held += (
                found.audio.size if isinstance(found, Recording) and found.audio is not None else 0
            )
            if held >= limit or len(window) >= _WINDOW_ROWS:
                yield window
                window, held = [], 0
        if window:
            yield window

    def _code(self, window: list[_Read], writer: ShardWriter) -> None:
        found = [found for _, found in window]
        clips = [
            item.audio for item in found if isinstance(item, Recording) and item.audio is not None
        ]
        started = time.perf_counter()
        coded = iter(
            self._codec.encode_clips(
                clips, self._format.num_codebooks, batch_seconds=self._batch_seconds
            )
        )
        self.pace.coding += time.perf_counter() - started
        for row, item in window:
            if row.kept is None:
                continue
            if isinstance(item, Recording) and item.audio is None:
                item, codes = self._code_long(row.cell)
            else:
                codes = next(coded) if isinstance(item, Recording) else None
            self.pace.clips += 1
            if isinstance(item, str) or codes is None:
                writer.fail(row.kept, str(item))
            else:
                self.pace.audio += item.num_samples / item.sample_rate
                writer.write(row.kept, codes, item.num_samples, item.sample_rate)

    def _code_long(self, cell: Any) -> tuple[Recording | str, np.ndarray | None]:
        """Read and code a recording in blocks, in memory that does not grow with it."""
        try:
            blocks = open_recording(cell, self._format.channels)
        except (CodecPlusError, OSError) as error:
            return str(error), None
        started = time.perf_counter()
        try:
            audio = resampled(
                blocks, blocks.sample_rate, self._codec.model_sample_rate, self._format.channels
            )
            codes = list(self._codec.network.encode_blocks(audio, self._format.num_codebooks))
            return Recording(None, blocks.num_samples, blocks.sample_rate), np.concatenate(
                codes, axis=-1
            )
        except (CodecPlusError, OSError) as error:
            return str(error), None
        finally:
            blocks.close()
            self.pace.coding += time.perf_counter() - started


def resampled(
    blocks: Iterable[np.ndarray], from_rate: int, to_rate: int, channels: int
) -> Iterator[np.ndarray]:
    """Blocks (C, n) at another rate, without empty ones."""
    resampler = Resampler(from_rate, to_rate, channels)
    for block in blocks:
        if (out := resampler.push(block)).shape[-1]:
            yield out
    if (out := resampler.flush()).shape[-1]:
        yield out


def shard_of_launcher() -> tuple[int, int]:
    """(i, n) of this process among those that `accelerate launch`, `torchrun` or `mpirun` started."""
    for rank, size in (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def _format(codec: Codec, coding: Coding, name: str | None) -> CodesFormat:
    if coding.bitrate is not None and coding.n_quantizers is not None:
        raise InputError("expected bitrate or n_quantizers, got both; leave one out")
    config, count = codec.config, coding.n_quantizers
    if coding.bitrate is not None:
        count = codec.n_quantizers_for(coding.bitrate, coding.channels)
    count = config.n_codebooks if count is None else count
    codec.encode_clips([], count)  # refuses a count that cannot be
    if config.codebook_size > 1 << 16:
        raise InputError(f"expected codebooks of up to 65536 entries, got {config.codebook_size}")
    embedded = find_embedded(codec.fingerprint)
    known = name or embedded or getattr(config, "_name_or_path", "") or "unknown"
    return CodesFormat(
        model=embedded or (Path(known).resolve().name if Path(known).exists() else known),
        model_revision=f"codecplus {__version__}"
        if embedded
        else getattr(config, "_commit_hash", None),
        model_fingerprint=codec.fingerprint.hex(),
        sample_rate=config.sampling_rate,
        hop_length=config.hop_length,
        num_codebooks=count,
        codebook_size=config.codebook_size,
        channels=coding.channels,
    )


def _join(
    folder: CodesFolder,
    output: LocalOutput,
    codec: Codec,
    source: Source,
    codes_format: CodesFormat,
    coding: Coding,
) -> Coding:
    """Make the folder's job ours, or ours the folder's; return it with what the folder's says where
    ours is silent.

    Rounding depends on the number of threads and the batches, so these are the first process's in
    every process.
    """
    import torch

    if coding.batch_seconds is None:
        default = float(getattr(codec.network, "batch_seconds", 0.0))
    else:
        default = coding.batch_seconds
    job = {
        "data": source.describe(),
        "codes": codes_format.describe(),
        "shard_rows": coding.shard_rows,
        "dtype": str(getattr(codec.model, "dtype", "float32")).removeprefix("torch."),
        "batch_seconds": default,
        "threads": torch.get_num_threads(),
    }
    path = folder.root / JOB
    if not path.exists():
        _check_vacant(folder.root)
        folder.write_text(JOB, json.dumps(job, indent=2, default=str) + "\n")
        folder.write_text(README, _readme(folder.split, source.name, codes_format, None))
        output.begin([JOB, README])
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} is damaged: {error}") from error
    ours = json.loads(json.dumps(job, default=str))
    silent = {"threads"} | ({"batch_seconds"} if coding.batch_seconds is None else set())
    for key in ours.keys() - silent:
        if theirs.get(key) != ours[key]:
            raise InputError(
                f"{folder.root} holds another job: {_difference(key, theirs.get(key), ours[key])}; "
                "name another folder, or give the settings it was begun with"
            )
    torch.set_num_threads(int(theirs["threads"]))
    return replace(coding, batch_seconds=float(theirs["batch_seconds"]))


def _difference(key: str, theirs: Any, ours: Any) -> str:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        key, theirs, ours = next(
            (f"{key}.{name}", theirs.get(name), ours.get(name))
            for name in {**theirs, **ours}
            if theirs.get(name) != ours.get(name)
        )
    return f"{key} is {theirs!r} there and {ours!r} here"


def _check_vacant(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise InputError(f"expected a folder to write to, got the file {root}")
    ours = {"data", JOB, README, STATISTICS}
    strangers = [
        path.name
        for path in root.glob("*")
        if path.name not in ours and not path.name.startswith(".")
    ]
    if strangers or any((root / "data").glob("*")):
        raise InputError(f"{root} is not empty and no job of codecplus tokenize; name a new folder")


def _finish(folder: CodesFolder, output: LocalOutput, codes_format: CodesFormat) -> dict[str, Any]:
    """Add up the statistics of all shards, and write them."""
    total = Statistics.empty(codes_format.num_codebooks, codes_format.codebook_size)
    for path in folder.shards():
        total.merge(Statistics.from_counts(folder.footer(path)["statistics"]))
    summary = total.summary()
    job = json.loads((folder.root / JOB).read_text(encoding="utf-8"))
    folder.write_text(
        STATISTICS, json.dumps({**codes_format.describe(), **summary}, indent=2) + "\n"
    )
    folder.write_text(README, _readme(folder.split, job["data"]["name"], codes_format, summary))
    output.finish([README, STATISTICS])
    folder.tidy()
    return summary


def _readme(
    split: str, data: str, codes_format: CodesFormat, summary: dict[str, Any] | None
) -> str:
    said = codes_format.describe()
    state = (
        "This is unfinished: more shards are to come."
        if summary is None
        else f"```\n{describe(summary)}\n```"
    )
    return f"""---
configs:
- config_name: default
  data_files:
  - split: {split}
    path: data/{split}-*
tags:
- audio
- neural-audio-codec
- codes
---

# {data}, as codes of {said["model"]}

Each row is a recording of {data}: its other columns, and

| column | |
|---|---|
| `codes` | uint16 {said["codes_shape"]}, {said["num_codebooks"]} codebooks of {said["codebook_size"]} entries |
| `num_frames` | {said["frame_rate"]:g} per second |
| `num_samples`, `sample_rate` | of the recording, before it was resampled to {said["sample_rate"]} Hz |
| `model_fingerprint`, `model_revision` | {said["model_fingerprint"]}, {said["model_revision"]} |
| `error` | null, or why there are no codes |

```python
from codecplus import load_codec

audio = load_codec("{said["model"]}").decode(row["codes"])    # at {said["sample_rate"]} Hz
```

{state}
"""


def _default_workers(codec: Codec) -> int:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if str(getattr(codec.model, "device", "cpu")) == "cpu":
        return 1
    return max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


__all__ = ["Coding", "Pace", "shard_of_launcher", "tokenize"]
