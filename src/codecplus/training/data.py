"""Random crops of recordings, as an endless stream. It knows files, tables and samples, nothing of
models or losses.

Crop number n is drawn by a generator seeded with n, so that workers may prefetch it, a run may
resume at it, and several processes may share the numbers. Letters: B batch, S samples.
"""

import io
import signal
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from codecplus.audio.files import AudioFileReader
from codecplus.audio.loudness import integrated_loudness
from codecplus.errors import CodecPlusError, InputError, MissingExtraError
from codecplus.training.recipe import Augmentation

SUFFIXES = {
    ".wav",
    ".flac",
    ".ogg",
    ".oga",
    ".opus",
    ".mp3",
    ".aiff",
    ".aif",
    ".aifc",
    ".au",
    ".caf",
    ".w64",
}
_FULL_ROW_SECONDS = 30.0  # rows of a table are drawn in proportion to their duration up to this


class Batch(NamedTuple):
    """Mono crops (B, S), the bandwidth of each (B,) in Hz, and what the recordings that gave none
    suffer from.
    """

    audio: Tensor
    bandwidth: Tensor
    problems: list[str]
    state: dict[str, Any]  # of the stream behind this batch


@dataclass(frozen=True)
class Recording:
    """One file."""

    path: Path
    sample_rate: int
    samples: int

    @property
    def seconds(self) -> float:
        """Its duration."""
        return self.samples / self.sample_rate


class Source(Protocol):
    """Where recordings come from: one is drawn, and given as what soundfile opens, with its name."""

    def draw(self, random: np.random.Generator) -> tuple[str, Any]:
        """A recording, drawn in proportion to its duration."""
        ...


def find_recordings(*folders: Path | str, report: bool = True) -> list[Recording]:
    """The audio files below folders, in the order of their paths; one warning names those that
    cannot be read.

    Raises InputError if there is no such folder, or none can be read.
    """
    found, broken = [], []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}")
        for path in sorted(
            p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
        ):
            try:
                with AudioFileReader(path) as reader:
                    found.append(Recording(path, reader.sample_rate, reader.num_samples))
            except (CodecPlusError, OSError):
                broken.append(path.name)
    if broken and report:
        more = "" if len(broken) <= 5 else f" and {len(broken) - 5} more"
        warnings.warn(
            f"{len(broken)} unreadable files are skipped: {', '.join(broken[:5])}{more}",
            stacklevel=2,
        )
    if not found:
        raise InputError(
            f"found no readable audio below {', '.join(map(str, folders))}; expected files ending in "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    return found


def hold_out(
    recordings: Sequence[Recording], most: int = 16
) -> tuple[list[Recording], list[Recording]]:
    """Recordings to train on, and at most a twentieth to validate with, chosen by their names."""
    count = min(most, len(recordings) // 20)
    order = sorted(
        recordings, key=lambda recording: (zlib.crc32(recording.path.name.encode()), recording.path)
    )
    held = {recording.path for recording in order[:count]}
    return [r for r in recordings if r.path not in held], [r for r in recordings if r.path in held]


class FileSource:
    """Files, drawn in proportion to their duration."""

    def __init__(self, recordings: Iterable[Recording]):
        self.recordings = list(recordings)
        self._ends = np.cumsum([recording.seconds for recording in self.recordings])

    def draw(self, random: np.random.Generator) -> tuple[str, Any]:
        """A file's name and its path."""
        index = int(np.searchsorted(self._ends, random.uniform(0, self._ends[-1]), side="right"))
        path = self.recordings[min(index, len(self.recordings) - 1)].path
        return path.name, path


class TableSource:
    """Rows of a `datasets.Dataset` whose audio column holds bytes or paths.

    Durations are not known without reading all rows: a row is drawn, and kept with a probability in
    proportion to its duration, up to 30 s.
    """

    def __init__(self, table: Any, column: str = "audio"):
        self.table, self.column = undecoded(table, column), column
        if not len(self.table):
            raise InputError("expected a dataset with at least 1 row, got none")

    def draw(self, random: np.random.Generator) -> tuple[str, Any]:
        """A row's name, and its path or bytes."""
        for _ in range(100):
            index = int(random.integers(len(self.table)))
            name, file = audio_file(self.table[index], self.column, index)
            try:
                info = soundfile.info(io.BytesIO(file) if isinstance(file, bytes) else file)
            except (soundfile.LibsndfileError, OSError, TypeError):
                return name, file  # whoever reads it says what is wrong with it
            if random.random() < info.frames / info.samplerate / _FULL_ROW_SECONDS:
                break
        return name, file


class Cutter:
    """Cuts crops of one length and rate out of recordings of a source; shorter ones are padded with
    zeros behind.
    """

    attempts = 20  # to find a crop that is readable and not silent

    def __init__(self, sample_rate: int, samples: int, augmentation: Augmentation | None = None):
        self.sample_rate, self.samples = sample_rate, samples
        self.augmentation = augmentation or Augmentation()

    def cut(
        self, source: Source, random: np.random.Generator
    ) -> tuple[np.ndarray, float, list[str]]:
        """Return a crop (S,), its bandwidth in Hz, and the problems on the way to it.

        If all attempts met only silence, the last silence is given. Raises InputError if no
        recording can be read.
        """
        broken: dict[str, str] = {}
        silence = None
        tries = 0
        for _ in range(1000):
            name, file = source.draw(random)
            if name in broken:
                continue
            try:
                crop, rate = self._read(file, random)
            except (soundfile.LibsndfileError, OSError, ValueError, TypeError) as error:
                broken[name] = f"{name} cannot be read and is left out: {error}"
                if len(broken) == self.attempts:
                    break
                continue
            crop = self._augment(crop, random)
            bandwidth = min(rate, self.sample_rate) / 2
            if not self._is_silent(crop):
                return crop, bandwidth, list(broken.values())
            silence = (crop, bandwidth)
            tries += 1
            if tries == self.attempts:
                break
        if silence is None:
            raise InputError(
                f"no recording can be read; {len(broken)} were tried: {list(broken.values())[-1]}"
            )
        return *silence, list(broken.values())

    def _read(self, file: Any, random: np.random.Generator) -> tuple[np.ndarray, float]:
        chosen = self.augmentation
        speed = random.uniform(*chosen.speed) if random.random() < chosen.speed_share else 1.0
        with soundfile.SoundFile(io.BytesIO(file) if isinstance(file, bytes) else file) as audio:
            rate = audio.samplerate * speed  # what it is recorded at, played so much faster
            wanted = int(np.ceil(self.samples * rate / self.sample_rate))
            audio.seek(int(random.integers(0, max(0, audio.frames - wanted) + 1)))
            mono = audio.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
        if not len(mono) or not np.isfinite(mono).all():
            raise ValueError("it has no samples there, or some that are not finite")
        if rate != self.sample_rate:
            mono = soxr.resample(mono, rate, self.sample_rate, quality="VHQ")
        mono = mono[: self.samples]
        return np.pad(mono, (0, self.samples - len(mono))), rate

    def _augment(self, crop: np.ndarray, random: np.random.Generator) -> np.ndarray:
        chosen = self.augmentation
        # All are drawn whether they are used or not, so that changing one share leaves the others'
        # draws alone.
        shares = random.random(3)
        loudness = random.uniform(*chosen.loudness_lufs)
        gain = random.uniform(*chosen.gain_db)
        decibels = 0.0
        # What is silent stays so: noise made loud teaches noise.
        if shares[0] < chosen.loudness_share and not self._is_silent(crop):
            before = integrated_loudness(crop, self.sample_rate)
            if np.isfinite(before):
                decibels += loudness - before
        if shares[1] < chosen.gain_share:
            decibels += gain
        if decibels:
            loudest = 0.95 / (np.abs(crop).max() + 1e-9)
            crop = crop * np.float32(min(10 ** (decibels / 20), loudest))
        if shares[2] < chosen.flip_share:
            return -crop
        return crop

    def _is_silent(self, crop: np.ndarray) -> bool:
        return np.square(crop).mean() <= 10 ** (self.augmentation.silence_db / 10)


class Crops(Dataset):
    """Crop number n, for every n, of a source that can be drawn from at any time."""

    def __init__(self, source: Source, cutter: Cutter, seed: int = 0):
        self.source, self.cutter, self.seed = source, cutter, seed

    def __getitem__(self, n: int) -> tuple[np.ndarray, float, list[str]]:
        return self.cutter.cut(self.source, np.random.default_rng([self.seed, n]))


class StreamedCrops(IterableDataset):
    """Batches from a `datasets.IterableDataset`, which can only be read in order.

    A block of rows is held at a time, undecoded; from it come as many crops as cover its duration
    once.
    """

    def __init__(
        self, table: Any, column: str, cutter: Cutter, batch: int, *, seed: int = 0, block: int = 64
    ):
        self.table, self.column, self.cutter = undecoded(table, column), column, cutter
        self.batch, self.seed, self.block = batch, seed, block
        self.start: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Batch]:
        number, skip = self.start.get("block", 0), self.start.get("batches", 0)
        place = self.start.get("table")
        for rows, before in self._blocks(place):
            source = _Block(rows, self.column)
            seconds = self.cutter.samples / self.cutter.sample_rate
            batches = max(1, round(source.seconds / seconds / self.batch))
            for index in range(skip, batches):
                random = [
                    np.random.default_rng([self.seed, number, index, i]) for i in range(self.batch)
                ]
                crops = [self.cutter.cut(source, r) for r in random]
                yield collate(crops, {"block": number, "batches": index + 1, "table": before})
            number, skip = number + 1, 0

    def _blocks(self, place: dict | None) -> Iterator[tuple[list[dict], dict]]:
        """Rows, and where the table stood before them; over and over."""
        found = place is not None
        while True:
            # A table begins where it was last told to; its own start is its first state.
            self.table.load_state_dict(place or self._beginning)
            before, rows = place or self._beginning, []
            for row in self.table:
                rows.append(row)
                if len(rows) == self.block:
                    yield rows, before
                    before, rows, found = self.table.state_dict(), [], True
            if rows:
                found = True
                yield rows, before
            if not found:
                raise InputError("expected a dataset with at least 1 row, got none")
            place, found = None, False

    @property
    def _beginning(self) -> dict:
        if not hasattr(self, "_first"):
            self._first = self.table.state_dict()
        return self._first


class _Block:
    """Some rows, drawn in proportion to their duration."""

    def __init__(self, rows: list[dict], column: str):
        self.files = [audio_file(row, column, index) for index, row in enumerate(rows)]
        lengths = np.array([self._seconds(file) for _, file in self.files])
        self.seconds = float(lengths.sum())
        self._ends = np.cumsum(
            np.maximum(lengths, 1e-3)
        )  # unreadable ones are drawn too, rarely: they are reported

    def draw(self, random: np.random.Generator) -> tuple[str, Any]:
        index = int(np.searchsorted(self._ends, random.uniform(0, self._ends[-1]), side="right"))
        return self.files[min(index, len(self.files) - 1)]

    @staticmethod
    def _seconds(file: Any) -> float:
        try:
            info = soundfile.info(io.BytesIO(file) if isinstance(file, bytes) else file)
            return min(info.frames / info.samplerate, 3600.0)
        except (soundfile.LibsndfileError, OSError, TypeError):
            return 0.0


def audio_file(row: dict, column: str, index: int) -> tuple[str, Any]:
    """Name and path or bytes of a row's audio, which was not decoded."""
    audio = row[column] or {}
    path, data = audio.get("path"), audio.get("bytes")
    name = Path(path).name if path else f"row {index}"
    return name, data if data else path


def undecoded(table: Any, column: str) -> Any:
    """The audio column of a table alone, as bytes or paths. Raises InputError if it has no such
    column.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("data sets need datasets: pip install codecplus[train]") from error
    names = table.column_names or list(next(iter(table), {}))
    if column not in names:
        raise InputError(
            f"the dataset has no column {column!r}; name the one with the audio: {', '.join(names)}"
        )
    return table.select_columns([column]).cast_column(column, datasets.Audio(decode=False))


def collate(
    crops: list[tuple[np.ndarray, float, list[str]]], state: dict[str, Any] | None = None
) -> Batch:
    """A batch of crops."""
    audio, bandwidth, problems = zip(*crops, strict=True)
    return Batch(
        torch.from_numpy(np.stack(audio).astype(np.float32)),
        torch.tensor(bandwidth, dtype=torch.float32),
        sorted({problem for some in problems for problem in some}),
        state or {},
    )


class Batches:
    """Batches in order, made ahead of time by `workers` processes, and where they stand.

    Of every `batch * processes` crops, process number `rank` takes its share. Problems with
    recordings are warned of once each.
    """

    def __init__(
        self,
        crops: Crops | StreamedCrops,
        batch: int,
        *,
        rank: int = 0,
        processes: int = 1,
        workers: int = 0,
    ):
        self.crops = crops
        self.batch = batch
        self.rank = rank
        self.processes = processes
        self.workers = workers
        if isinstance(crops, StreamedCrops):  # a stream is read by one process, in order
            self.workers = min(workers, 1)
        self.position = 0
        self._streamed: dict[str, Any] = {}
        self._reported: set[str] = set()
        self._iterator: Iterator[Batch] | None = None
        self._peeked: list[Batch] = []

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        batch = self._peeked.pop(0) if self._peeked else self._load()
        self.position += 1
        self._streamed = batch.state
        for problem in batch.problems:
            if problem not in self._reported:
                self._reported.add(problem)
                warnings.warn(problem, stacklevel=2)
        return batch

    def peek(self, count: int = 1) -> list[Batch]:
        """Return the next batches, which will still be given."""
        while len(self._peeked) < count:
            self._peeked.append(self._load())
        return self._peeked[:count]

    def _load(self) -> Batch:
        if self._iterator is None:
            self._iterator = iter(self._loader())
        return next(self._iterator)

    def _loader(self) -> DataLoader:
        # Without a generator of its own, a loader takes numbers from everybody's.
        options: dict[str, Any] = {"num_workers": self.workers, "generator": torch.Generator()}
        if self.workers:
            options |= {
                "prefetch_factor": 4,
                "persistent_workers": True,
                "worker_init_fn": _leave_signals,
            }
        if isinstance(self.crops, StreamedCrops):
            self.crops.start = self._streamed
            return DataLoader(self.crops, batch_size=None, **options)
        return DataLoader(self.crops, batch_sampler=_Numbers(self), collate_fn=collate, **options)

    def close(self) -> None:
        """End the workers."""
        self._iterator = None
        self._peeked = []

    def state_dict(self) -> dict[str, Any]:
        """Return the state that continues behind the last batch given."""
        return {"position": self.position, "stream": self._streamed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the batches that returned `state` stood.

        They must have been made with the same arguments.
        """
        self.close()
        self.position = state["position"]
        self._streamed = state["stream"]


def _leave_signals(worker: int) -> None:
    """Ignore signals to stop, which go to all processes of a run.

    Workers must live until the step at hand is done.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Numbers:
    """The numbers of the crops of each batch, from where `batches` stands."""

    def __init__(self, batches: Batches):
        self.first = batches.position
        self.rank = batches.rank
        self.processes = batches.processes
        self.batch = batches.batch

    def __iter__(self) -> Iterator[list[int]]:
        position = self.first
        while True:
            start = (position * self.processes + self.rank) * self.batch
            yield list(range(start, start + self.batch))
            position += 1
