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
from codecplus.errors import CodecPlusError, InputError
from codecplus.recordings import AUDIO_SUFFIXES, Recording
from codecplus.recordings.cells import as_file
from codecplus.recordings.folders import FileRecordings
from codecplus.recordings.tables import StreamRecordings, TableRecordings
from codecplus.training.recipe import Augmentation

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
class AudioFile:
    """A file and what its header says: the rate in Hz, and the samples per channel."""

    path: Path
    sample_rate: int
    num_samples: int

    @property
    def seconds(self) -> float:
        """The duration."""
        return self.num_samples / self.sample_rate


class Source(Protocol):
    """Recordings to draw from."""

    def draw(self, random: np.random.Generator) -> tuple[str, Any]:
        """Draw a recording in proportion to its duration; return its name, and a path or bytes."""
        ...


def find_recordings(*folders: Path | str, report: bool = True) -> list[AudioFile]:
    """Return the audio files below folders, in the order of their paths.

    Args:
        folders: to search with all their subfolders.
        report: warn once of the files that cannot be read.

    Raises:
        InputError: if there is no such folder, or no file in them can be read.
    """
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}")
    return readable_files(FileRecordings([Path(folder) for folder in folders]), report=report)


def readable_files(recordings: FileRecordings, *, report: bool = True) -> list[AudioFile]:
    """Return the files that can be read, those of each folder in the order of their paths.

    Raises:
        InputError: if there is none.
    """
    readable = []
    broken = []
    for path in recordings.sorted_paths():
        try:
            with AudioFileReader(path) as reader:
                readable.append(AudioFile(path, reader.sample_rate, reader.num_samples))
        except (CodecPlusError, OSError):
            broken.append(path.name)
    if broken and report:
        more = "" if len(broken) <= 5 else f" and {len(broken) - 5} more"
        warnings.warn(
            f"{len(broken)} unreadable files are skipped: {', '.join(broken[:5])}{more}",
            stacklevel=2,
        )
    if not readable:
        raise InputError(
            f"found no readable audio below {', '.join(map(str, recordings.inputs))}; "
            f"expected files ending in {', '.join(sorted(AUDIO_SUFFIXES))}"
        )
    return readable


def hold_out(files: Sequence[AudioFile], most: int = 16) -> tuple[list[AudioFile], list[AudioFile]]:
    """Return the files to train on, and at most a twentieth of all, up to `most`, to validate with.

    They are chosen by a hash of their names, so that a growing folder keeps most of its choices.
    """
    count = min(most, len(files) // 20)
    order = sorted(files, key=lambda file: (zlib.crc32(file.path.name.encode()), file.path))
    held = {file.path for file in order[:count]}
    train = [file for file in files if file.path not in held]
    return train, [file for file in files if file.path in held]


class FileSource:
    """Files, drawn in proportion to their duration."""

    def __init__(self, files: Iterable[AudioFile]):
        self.files = list(files)
        self._ends = np.cumsum([file.seconds for file in self.files])

    def draw(self, random: np.random.Generator) -> tuple[str, Any]:
        """Return the name of a file, and its path."""
        path = self.files[_draw_index(self._ends, random)].path
        return path.name, path


class TableSource:
    """Rows of a table.

    Their durations are not known without reading all rows. So a row is drawn, and kept with a
    probability in proportion to its duration, up to 30 s.
    """

    def __init__(self, recordings: TableRecordings):
        self.recordings = recordings
        if not len(recordings):
            raise InputError("expected a dataset with at least 1 row, got none")

    def draw(self, random: np.random.Generator) -> tuple[str, Any]:
        """Return the name of a row, and its path or bytes."""
        for _ in range(100):
            index = int(random.integers(len(self.recordings)))
            recording = self.recordings[index]
            file = _file_or_cell(recording)
            seconds = _duration(file)
            if seconds is None:  # the reader says what is wrong with it
                break
            if random.random() < seconds / _FULL_ROW_SECONDS:
                break
        return recording.name, file


def _draw_index(ends: np.ndarray, random: np.random.Generator) -> int:
    """Draw an index in proportion to the steps of a cumulative sum."""
    index = int(np.searchsorted(ends, random.uniform(0, ends[-1]), side="right"))
    return min(index, len(ends) - 1)


def _file_or_cell(recording: Recording) -> Any:
    """Return the path or bytes of a recording, or what its row holds if it has neither."""
    try:
        return recording.file
    except CodecPlusError:
        return recording.cell


def _duration(file: Any) -> float | None:
    """Return the seconds of an audio file, None where its header cannot be read."""
    try:
        info = soundfile.info(io.BytesIO(file) if isinstance(file, bytes) else file)
    except (soundfile.LibsndfileError, OSError, TypeError):
        return None
    return info.frames / info.samplerate


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
        file = as_file(file)
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
    """Batches from a stream, which can only be read in order.

    A block of rows is held at a time, undecoded. From it come as many crops as cover its duration
    once.
    """

    def __init__(
        self,
        recordings: StreamRecordings,
        cutter: Cutter,
        batch: int,
        *,
        seed: int = 0,
        block: int = 64,
    ):
        self.recordings = recordings
        self.table = recordings.rows
        self.cutter = cutter
        self.batch = batch
        self.seed = seed
        self.block = block
        self.start: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Batch]:
        number, skip = self.start.get("block", 0), self.start.get("batches", 0)
        place = self.start.get("table")
        for rows, before in self._blocks(place):
            source = _Block(
                [self.recordings.recording(row, index) for index, row in enumerate(rows)]
            )
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

    def __init__(self, recordings: Sequence[Recording]):
        self.files = [(recording.name, _file_or_cell(recording)) for recording in recordings]
        durations = [_duration(file) for _, file in self.files]
        lengths = np.array([min(seconds or 0.0, 3600.0) for seconds in durations])
        self.seconds = float(lengths.sum())
        # Unreadable rows are drawn too, rarely, so that they are reported.
        self._ends = np.cumsum(np.maximum(lengths, 1e-3))

    def draw(self, random: np.random.Generator) -> tuple[str, Any]:
        """Return the name of a row, and its path or bytes."""
        return self.files[_draw_index(self._ends, random)]


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
