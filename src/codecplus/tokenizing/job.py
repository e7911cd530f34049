"""`tokenize`: from recordings to shards of codes, in one process or in many independent ones.

    rows of this process's pieces -> decoded by workers, in order -> a window of rows
    -> batches of similar lengths -> a shard

A shard depends on its rows alone: not on the other processes, on timing, or on interruptions.
"""

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
from codecplus.audio.blocks import resample_blocks
from codecplus.checkpoints.identity import find_embedded
from codecplus.codec import Codec
from codecplus.errors import CodecPlusError, FileFormatError, InputError
from codecplus.recordings import Recordings, open_recordings
from codecplus.recordings.cells import DecodedAudio, MixedBlocks, open_cell
from codecplus.recordings.columns import AUDIO
from codecplus.system.devices import available_cores
from codecplus.system.progress import progress_bar
from codecplus.tokenizing.counts import Statistics, describe
from codecplus.tokenizing.outputs import LocalOutput, open_output
from codecplus.tokenizing.reading import read_ordered
from codecplus.tokenizing.shards import CodesFolder, CodesFormat, ShardWriter, open_shard

JOB, README, STATISTICS = "tokenize.json", "README.md", "statistics.json"
_WINDOW_ROWS = 512
_WINDOW_BATCHES = 4  # of audio in a window: enough to find rows of similar lengths in it
_WINDOW_SECONDS = 60.0  # of audio in a window where there are no batches


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How clips become codes, and codes become shards.

    Attributes:
        bitrate: in kbit/s for all channels together; by default all codebooks are used.
        n_quantizers: the number of codebooks, instead of a bitrate.
        channels: of the codes; 1 averages the channels of a recording.
        batch_seconds: audio per padded batch, see `Codec.encode_clips`.
        shard_rows: rows per file.
    """

    bitrate: float | None = None
    n_quantizers: int | None = None
    channels: int = 1
    batch_seconds: float | None = None
    shard_rows: int = 1000

    def __post_init__(self) -> None:
        if self.shard_rows < 1 or self.channels < 1 or (self.batch_seconds or 0) < 0:
            raise InputError(
                "expected at least 1 row per shard, 1 channel and 0 seconds per batch, got "
                f"{self.shard_rows}, {self.channels} and {self.batch_seconds}"
            )


@dataclass
class Pace:
    """The speed of this process: seconds since its start, and seconds spent in the network."""

    started: float = field(default_factory=time.perf_counter)
    coding: float = 0.0
    audio: float = 0.0
    clips: int = 0

    def __str__(self) -> str:
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        busy = f"{100 * self.coding / elapsed:.0f} % in the network"
        clips = self.clips / elapsed
        hours = self.audio / 3600 / elapsed
        return f"{clips:.1f} clips/s, {hours:.4f} audio-h/s, {busy}"


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
    """Tokenise recordings to a folder of parquet files, which `load_dataset` reads.

    A run that was stopped continues after the last complete shard. Several processes may write to
    one folder, each its share of the pieces; the last one to finish writes the statistics.

    Args:
        data: recordings, or what `codecplus.recordings.open_recordings` takes.
        codec: makes the codes.
        out: the folder; or `hf://datasets/OWNER/NAME`, to which shards are committed every few
            minutes.
        coding: the number of codebooks and channels, and the sizes of batches and shards.
        shard: (i, n) for the i-th of n shares, i from 0; by default the launcher says it, see
            `shard_of_launcher`.
        workers: processes that decode; 0 decodes in this one. By default one, or half the cores for
            an accelerator.
        model_name: the name of the model in the results; by default the name that the codec was
            loaded by, where that is known.
        private: make a new dataset on the Hub private.
        progress: show a progress bar on stderr.

    Returns:
        The statistics of the whole dataset, or None if other processes have not finished.

    Raises:
        InputError: for options that cannot be used, or a folder that holds another job.
        HubError: if the Hub cannot be reached, or refuses.
    """
    coding = coding or Coding()
    recordings = open_recordings(data)
    index, count = shard or shard_of_launcher()
    if not 0 <= index < count:
        raise InputError(f"expected a share i/n with i from 0 to n - 1, got {index}/{count}")
    codes_format = _codes_format(codec, coding, model_name)
    codes_format.features(recordings.features)  # refuses names that clash
    pieces = recordings.num_pieces(coding.shard_rows)
    if not pieces:
        raise InputError(f"{recordings.name} has no rows")
    output = open_output(out, private)
    is_stream = recordings.num_recordings is None
    folder = CodesFolder(output.root, recordings.split, pieces, is_stream)
    output.join(JOB)
    coding = _join(folder, output, codec, recordings, codes_format, coding)
    job = _Job(codec, recordings, folder, output, codes_format, coding)
    workers = _default_workers(codec) if workers is None else workers
    job.run(range(index, pieces, count), workers, progress and index == 0)
    if progress and job.pace.clips:
        print(f"share {index}/{count}: {job.pace.clips} clips, {job.pace}", file=sys.stderr)
    output.flush()
    output.join(JOB)
    if not folder.complete():
        return None
    return _finish(folder, output, codes_format)


@dataclass(frozen=True)
class _Row:
    """A row to tokenise.

    Attributes:
        target: the shard that it goes to.
        footer: the footer of that shard if this is its last row.
        columns: a table of one row, without the audio; None for the shard of an empty piece.
        cell: the audio.
    """

    target: Path
    footer: dict[str, Any]
    columns: Any
    cell: Any


_ReadRow = tuple[_Row, DecodedAudio | str]  # a string says why there is no audio


class _Job:
    """The work of one process."""

    def __init__(
        self,
        codec: Codec,
        recordings: Recordings,
        folder: CodesFolder,
        output: LocalOutput,
        codes_format: CodesFormat,
        coding: Coding,
    ):
        self._codec = codec
        self._recordings = recordings
        self._folder = folder
        self._output = output
        self._format = codes_format
        self._coding = coding
        self._features = codes_format.features(recordings.features)
        self._batch_seconds = coding.batch_seconds or 0.0
        self.pace = Pace()

    def run(self, pieces: Iterable[int], workers: int, progress: bool) -> None:
        """Write the missing shards of these pieces."""
        cells = ((row, row.cell) for row in self._rows(pieces))
        rows = read_ordered(cells, self._codec.model_sample_rate, self._format.channels, workers)
        total = self._total(pieces)
        with progress_bar(shown=progress, total=total, desc="tokenising", unit="clip") as bar:
            for target, shard in groupby(rows, key=lambda read: read[0].target):
                with open_shard(target, self._format, self._features) as writer:
                    for window in self._windows(shard):
                        self._code(window, writer)
                        writer.footer = window[-1][0].footer
                        bar.set_postfix_str(str(self.pace), refresh=False)
                        bar.update(len(window))
                self._output.shard_written(target)

    def _total(self, pieces: Iterable[int]) -> int | None:
        """Return the number of rows to do, where it is known."""
        count = self._recordings.num_recordings
        if count is None:
            return None
        size = self._coding.shard_rows
        missing = [piece for piece in pieces if not self._folder.done(piece)[1]]
        return sum(min(size, count - piece * size) for piece in missing)

    def _rows(self, pieces: Iterable[int]) -> Iterator[_Row]:
        """Yield every missing row. One is held back, so that the last of a piece is known."""
        size = self._coding.shard_rows
        for piece in pieces:
            part, complete = self._folder.done(piece)
            if complete:
                continue
            number = part * size
            previous = None
            for table in self._recordings.tables(piece, size, number):
                for i in range(table.num_rows):
                    if previous is not None:
                        yield self._row(piece, number, previous, last=False)
                        number += 1
                    previous = table.slice(i, 1)
            if previous is not None or part == 0:
                yield self._row(piece, number, previous, last=True)

    def _row(self, piece: int, number: int, table: Any, last: bool) -> _Row:
        part = number // self._coding.shard_rows
        target = self._folder.path(piece, part)
        footer = {"piece": piece, "part": part, "last": last}
        if table is None:
            return _Row(target, footer, None, None)
        cell = table[AUDIO][0].as_py()
        if isinstance(cell, dict) and isinstance(cell.get("path"), bytes):
            cell["path"] = os.fsdecode(cell["path"])
        cell = self._recordings.own_cell(cell)
        return _Row(target, footer, table.drop_columns([AUDIO]), cell)

    def _windows(self, rows: Iterable[_ReadRow]) -> Iterator[list[_ReadRow]]:
        """Yield rows in their order, as many at a time as a few batches hold."""
        seconds = _WINDOW_BATCHES * self._batch_seconds or _WINDOW_SECONDS
        limit = seconds * self._codec.model_sample_rate
        window: list[_ReadRow] = []
        samples = 0
        for row, audio in rows:
            window.append((row, audio))
            if isinstance(audio, DecodedAudio) and audio.audio is not None:
                samples += audio.audio.size
            if samples >= limit or len(window) >= _WINDOW_ROWS:
                yield window
                window = []
                samples = 0
        if window:
            yield window

    def _code(self, window: list[_ReadRow], writer: ShardWriter) -> None:
        """Encode a window and write its rows."""
        coded = iter(self._encoded(window))
        for row, audio in window:
            if row.columns is None:
                continue
            codes = None
            if isinstance(audio, DecodedAudio) and audio.audio is None:
                audio, codes = self._code_long(row.cell)
            elif isinstance(audio, DecodedAudio):
                codes = next(coded)
            self.pace.clips += 1
            if isinstance(audio, str) or codes is None:
                writer.fail(row.columns, str(audio))
            else:
                self.pace.audio += audio.num_samples / audio.sample_rate
                writer.write(row.columns, codes, audio.num_samples, audio.sample_rate)

    def _encoded(self, window: list[_ReadRow]) -> list[np.ndarray]:
        """Return the codes (C, K, T) of all clips of a window that were read at once."""
        clips = [
            audio.audio
            for _, audio in window
            if isinstance(audio, DecodedAudio) and audio.audio is not None
        ]
        started = time.perf_counter()
        count = self._format.num_codebooks
        codes = self._codec.encode_clips(clips, count, batch_seconds=self._batch_seconds)
        self.pace.coding += time.perf_counter() - started
        return codes

    def _code_long(self, cell: Any) -> tuple[DecodedAudio | str, np.ndarray | None]:
        """Read and encode a recording in blocks, in memory that does not grow with it."""
        try:
            blocks = MixedBlocks(open_cell(cell), self._format.channels)
        except (CodecPlusError, OSError) as error:
            return str(error), None
        started = time.perf_counter()
        try:
            audio = resample_blocks(
                blocks, blocks.sample_rate, self._codec.model_sample_rate, self._format.channels
            )
            codes = list(self._codec.network.encode_blocks(audio, self._format.num_codebooks))
            read = DecodedAudio(None, blocks.num_samples, blocks.sample_rate)
            return read, np.concatenate(codes, axis=-1)
        except (CodecPlusError, OSError) as error:
            return str(error), None
        finally:
            blocks.close()
            self.pace.coding += time.perf_counter() - started


def shard_of_launcher() -> tuple[int, int]:
    """Return the share (i, n) of this process as `accelerate launch`, `torchrun` or `mpirun` say.

    It is (0, 1) without a launcher.
    """
    for rank, size in (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def _codes_format(codec: Codec, coding: Coding, name: str | None) -> CodesFormat:
    if coding.bitrate is not None and coding.n_quantizers is not None:
        raise InputError("expected bitrate or n_quantizers, got both; leave one out")
    config = codec.config
    count = coding.n_quantizers
    if coding.bitrate is not None:
        count = codec.n_quantizers_for(coding.bitrate, coding.channels)
    if count is None:
        count = config.n_codebooks
    codec.encode_clips([], count)  # refuses a count that cannot be
    if config.codebook_size > 1 << 16:
        raise InputError(f"expected codebooks of up to 65536 entries, got {config.codebook_size}")
    embedded = find_embedded(codec.fingerprint)
    if embedded:
        model = embedded
        revision = f"codecplus {__version__}"
    else:
        model = name or getattr(config, "_name_or_path", "") or "unknown"
        revision = getattr(config, "_commit_hash", None)
        if Path(model).exists():
            model = Path(model).resolve().name
    return CodesFormat(
        model=model,
        model_revision=revision,
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
    recordings: Recordings,
    codes_format: CodesFormat,
    coding: Coding,
) -> Coding:
    """Begin the folder's job, or check that it is the same as ours.

    Rounding depends on the number of threads and on the batches. So these are the first process's
    in every process: the threads are set here, and the batches are in the `Coding` that is
    returned.
    """
    import torch

    job = _job_description(codec, recordings, codes_format, coding)
    path = folder.root / JOB
    if not path.exists():
        _check_vacant(folder.root)
        folder.write_text(JOB, json.dumps(job, indent=2, default=str) + "\n")
        folder.write_text(README, _readme(folder.split, recordings.name, codes_format, None))
        output.begin([JOB, README])
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} is damaged: {error}") from error
    wanted = json.loads(json.dumps(job, default=str))
    free = {"threads"}
    if coding.batch_seconds is None:
        free.add("batch_seconds")
    for key in wanted.keys() - free:
        if begun.get(key) != wanted[key]:
            difference = _difference(key, begun.get(key), wanted[key])
            raise InputError(
                f"{folder.root} holds another job: {difference}; "
                "name another folder, or give the settings it was begun with"
            )
    torch.set_num_threads(int(begun["threads"]))
    return replace(coding, batch_seconds=float(begun["batch_seconds"]))


def _job_description(
    codec: Codec, recordings: Recordings, codes_format: CodesFormat, coding: Coding
) -> dict[str, Any]:
    import torch

    batch_seconds = coding.batch_seconds
    if batch_seconds is None:
        batch_seconds = float(getattr(codec.network, "batch_seconds", 0.0))
    return {
        "data": recordings.describe(),
        "codes": codes_format.describe(),
        "shard_rows": coding.shard_rows,
        "dtype": str(getattr(codec.model, "dtype", "float32")).removeprefix("torch."),
        "batch_seconds": batch_seconds,
        "threads": torch.get_num_threads(),
    }


def _difference(key: str, begun: Any, wanted: Any) -> str:
    """Say where two settings differ: those of the job in the folder, and those of this one."""
    if isinstance(begun, dict) and isinstance(wanted, dict):
        names = {**begun, **wanted}
        inner = next(name for name in names if begun.get(name) != wanted.get(name))
        return _difference(f"{key}.{inner}", begun.get(inner), wanted.get(inner))
    return f"{key} is {begun!r} there and {wanted!r} here"


def _check_vacant(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise InputError(f"expected a folder to write to, got the file {root}")
    known = {"data", JOB, README, STATISTICS}
    strangers = [
        path.name
        for path in root.glob("*")
        if path.name not in known and not path.name.startswith(".")
    ]
    shards = [path for path in (root / "data").glob("*") if not path.name.startswith(".")]
    if strangers or shards:
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
    return summary


def _readme(
    split: str, data: str, codes_format: CodesFormat, summary: dict[str, Any] | None
) -> str:
    facts = codes_format.describe()
    rate = facts["sample_rate"]
    if summary is None:
        state = "This is unfinished: more shards are to come."
    else:
        state = f"```\n{describe(summary)}\n```"
    shape = facts["codes_shape"]
    count = facts["num_codebooks"]
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

# {data}, as codes of {facts["model"]}

Each row is a recording of {data}: its other columns, and

| column | |
|---|---|
| `codes` | uint16 {shape}, {count} codebooks of {facts["codebook_size"]} entries |
| `num_frames` | {facts["frame_rate"]:g} per second |
| `num_samples`, `sample_rate` | of the recording, before it was resampled to {rate} Hz |
| `model_fingerprint`, `model_revision` | {facts["model_fingerprint"]}, {facts["model_revision"]} |
| `error` | null, or why there are no codes |

```python
from codecplus import load_codec

audio = load_codec("{facts["model"]}").decode(row["codes"])    # at {rate} Hz
```

{state}
"""


def _default_workers(codec: Codec) -> int:
    if str(getattr(codec.model, "device", "cpu")) == "cpu":
        return 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(16, available_cores() // processes - 1))


__all__ = ["Coding", "Pace", "shard_of_launcher", "tokenize"]
