"""Random crops of recordings, as an endless stream. It knows files, tables and samples, nothing of
models or losses.

Crop number n is drawn by a generator seeded with n, so that workers may prefetch it, a run may
resume at it, and several processes may share the numbers. Letters: B batch, S samples.
"""

import io
import math
import signal
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
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
from codecplus.audio.soundfiles import native_path
from codecplus.errors import CodecPlusError, InputError
from codecplus.recordings import AUDIO_SUFFIXES, Recording
from codecplus.recordings.cells import as_file
from codecplus.recordings.folders import FileRecordings
from codecplus.recordings.tables import StreamRecordings, TableRecordings
from codecplus.training.recipe import Augmentation

_FULL_ROW_SECONDS = 30.0  # longer rows of a table are not drawn more often
_MAX_ROW_SECONDS = 3600.0  # longer rows of a stream are not drawn more often
_MIN_ROW_SECONDS = 1e-3  # unreadable rows of a stream are drawn, rarely, so that they are reported
_MAX_DRAWS = 1000  # recordings drawn for one crop
_SILENT_LUFS = -70.0  # digital silence counts as this loud where crops are made equally loud
_NAMED_FILES = 5  # unreadable files that a warning names


class Batch(NamedTuple):
    """Mono crops, with the bandwidth of each and the problems on the way to them."""

    audio: Tensor  # (B, S)
    bandwidth: Tensor  # (B,), in Hz
    problems: list[str]  # of recordings that gave no crop
    state: dict[str, Any]  # of the stream after this batch


Crop = tuple[np.ndarray, float, list[str]]  # samples (S,), bandwidth in Hz, problems


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
        """Draw a recording in proportion to its duration; return its name and its path or bytes."""
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
    broken = {}
    for path in recordings.sorted_paths():
        try:
            with AudioFileReader(path) as reader:
                readable.append(AudioFile(path, reader.sample_rate, _quick_length(reader)))
        except (CodecPlusError, OSError) as error:
            broken[path] = error
    if broken and report:
        names = ", ".join(path.name for path in [*broken][:_NAMED_FILES])
        if len(broken) > _NAMED_FILES:
            names += f" and {len(broken) - _NAMED_FILES} more"
        reason = next(iter(broken.values()))
        warnings.warn(
            f"{len(broken)} unreadable files are skipped: {names}; of the first: {reason}",
            stacklevel=2,
        )
    if not readable:
        raise InputError(
            f"found no readable audio below {', '.join(map(str, recordings.inputs))}; "
            f"expected files ending in {', '.join(sorted(AUDIO_SUFFIXES))}"
        )
    return readable


def _quick_length(reader: AudioFileReader) -> int:
    """Return the samples by the header; a file is decoded to know them only if it does not say."""
    return round(reader.header_seconds * reader.sample_rate) or reader.num_samples


def hold_out(files: Sequence[AudioFile], most: int = 16) -> tuple[list[AudioFile], list[AudioFile]]:
    """Return the files to train on, and the files to validate with.

    A twentieth of all files is held out for validation, `most` at the most. They are chosen by a
    hash of their names, so that a growing folder keeps most of its choices.
    """
    count = min(most, len(files) // 20)
    order = sorted(files, key=lambda file: (zlib.crc32(file.path.name.encode()), file.path))
    return _without(files, {file.path for file in order[:count]})


def hold_out_groups(
    files: Sequence[AudioFile], groups: Mapping[Path, str]
) -> tuple[list[AudioFile], list[AudioFile]]:
    """Return the files to train on, and whole groups of files to validate with.

    Groups, such as speakers, are held out by a hash of their names, until they have a twentieth of
    the files that belong to a group. At least one group is held out, and one is trained on. Files
    without a group are trained on.

    Args:
        files: all files.
        groups: the group of each path that has one.

    Raises:
        InputError: for fewer than two groups.
    """
    members: dict[str, list[Path]] = {}
    for file in files:
        if file.path in groups:
            members.setdefault(groups[file.path], []).append(file.path)
    if len(members) < 2:
        raise InputError(
            f"expected at least 2 groups of recordings to hold one out, got {len(members)}"
        )
    wanted = sum(map(len, members.values())) / 20
    order = sorted(members, key=lambda name: (zlib.crc32(name.encode()), name))
    held_paths: set[Path] = set()
    for name in order[:-1]:
        held_paths.update(members[name])
        if len(held_paths) >= wanted:
            break
    return _without(files, held_paths)


def _without(
    files: Sequence[AudioFile], held_paths: Set[Path]
) -> tuple[list[AudioFile], list[AudioFile]]:
    """Return the files at other paths, and those at these paths."""
    train = []
    held = []
    for file in files:
        if file.path in held_paths:
            held.append(file)
        else:
            train.append(file)
    return train, held


class FileSource:
    """Files, drawn in proportion to weights: by default their durations."""

    def __init__(self, files: Iterable[AudioFile], weights: Sequence[float] | None = None):
        self.files = list(files)
        if weights is None:
            weights = [file.seconds for file in self.files]
        self._ends = np.cumsum(weights)

    def draw(self, random: np.random.Generator) -> tuple[str, Any]:
        """Return the name of a file, and its path."""
        path = self.files[_draw_index(self._ends, random)].path
        return path.name, path


class TableSource:
    """Rows of a table.

    Their durations are unknown until a row is read. So a row is drawn, and accepted with a
    probability in proportion to its duration, up to 30 s; or always, with `by_duration` false.
    """

    def __init__(self, recordings: TableRecordings, *, by_duration: bool = True):
        self.recordings = recordings
        self.by_duration = by_duration
        if not len(recordings):
            raise InputError("expected a dataset with at least 1 row, got none")

    def draw(self, random: np.random.Generator) -> tuple[str, Any]:
        """Return the name of a row, and its path or bytes."""
        for _ in range(100):
            index = int(random.integers(len(self.recordings)))
            recording = self.recordings[index]
            file = _file_or_cell(recording)
            if not self.by_duration:
                break
            seconds = _duration(file)
            if seconds is None:  # whoever reads it reports why
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
    """Return the seconds of an audio file by its header, None where that does not say them."""
    try:
        info = soundfile.info(_for_soundfile(file))
        return info.frames / info.samplerate
    except (soundfile.LibsndfileError, OSError, TypeError):
        pass  # perhaps a format that libsndfile does not know
    try:
        with AudioFileReader(_readable(file)) as reader:
            return reader.header_seconds or None
    except (CodecPlusError, OSError):
        return None


def _readable(file: Any) -> Any:
    """Return bytes as a file object, and a path as it is."""
    if isinstance(file, bytes):
        return io.BytesIO(file)
    return file


def _for_soundfile(file: Any) -> Any:
    """Return bytes as a file object, and a path as soundfile takes it."""
    if isinstance(file, Path):
        return native_path(file)
    return _readable(file)


def _piece_of(reader: AudioFileReader, start: int, count: int) -> np.ndarray:
    """Return `count` samples (S', C) from `start` on, fewer at the end of the file.

    The samples before `start` are decoded, too.
    """
    pieces = []
    position = 0
    for block in reader.blocks():
        pieces.append(block[:, max(0, start - position) : max(0, start + count - position)])
        position += block.shape[1]
        if position >= start + count:
            break
    return np.concatenate(pieces, axis=1).T


class Cutter:
    """Cuts crops of one length and rate out of the recordings of a source.

    A recording that is shorter than a crop is followed by zeros. With `silence_lufs`, crops of the
    same recording are drawn until one is loud enough, as in Descript's audiotools.

    Args:
        sample_rate: of crops, in Hz.
        samples: of a crop.
        augmentation: how crops are changed; by default their sign is turned now and then.
    """

    def __init__(self, sample_rate: int, samples: int, augmentation: Augmentation | None = None):
        self.sample_rate = sample_rate
        self.samples = samples
        self.augmentation = augmentation or Augmentation()
        self.attempts = self.augmentation.attempts  # at a crop that is readable and not silent

    def cut(self, source: Source, random: np.random.Generator) -> Crop:
        """Return a crop (S,), its bandwidth in Hz, and the problems on the way to it.

        It is silent only if all attempts gave silence. Raises InputError if no recording can be
        read.
        """
        broken: dict[str, str] = {}
        silence: tuple[np.ndarray, float] | None = None
        silent_crops = 0
        for _ in range(_MAX_DRAWS):
            name, file = source.draw(random)
            if name in broken:
                continue
            try:
                crop, rate = self._read_loud(file, random)
            except (CodecPlusError, OSError, RuntimeError, ValueError, TypeError) as error:
                broken[name] = f"{name} cannot be read and is left out: {error}"
                if len(broken) == self.attempts:
                    break
                continue
            crop = self._augment(crop, random)
            bandwidth = min(rate, self.sample_rate) / 2
            if self.augmentation.silence_lufs is not None or not self._is_silent(crop):
                return crop, bandwidth, list(broken.values())
            silence = (crop, bandwidth)
            silent_crops += 1
            if silent_crops == self.attempts:
                break
        problems = list(broken.values())
        if silence is None:
            raise InputError(f"no recording can be read; {len(broken)} were tried: {problems[-1]}")
        return *silence, problems

    def _read_loud(self, file: Any, random: np.random.Generator) -> tuple[np.ndarray, float]:
        """Return what `_read` does; with `silence_lufs` from a loud place, if one is found."""
        silence = self.augmentation.silence_lufs
        crop, rate, loudness = self._read(file, random)
        if silence is not None:
            for _ in range(self.attempts - 1):
                if loudness > silence:
                    break
                crop, rate, loudness = self._read(file, random)
        return crop, rate

    def _read(self, file: Any, random: np.random.Generator) -> tuple[np.ndarray, float, float]:
        """Return a random piece (S,) of a file at the crops' rate, its rate, and its loudness.

        The rate is that at which the piece is played. The loudness in LUFS is that of all channels
        together, infinite where nobody asks for it.
        """
        speed = 1.0
        if random.random() < self.augmentation.speed_share:
            speed = random.uniform(*self.augmentation.speed)
        channels, original_rate = self._piece(as_file(file), speed, random)  # (S', C)
        rate = original_rate * speed
        mono = channels.mean(axis=1)
        if not len(mono) or not np.isfinite(mono).all():
            raise ValueError("it has no samples there, or some that are not finite")
        loudness = math.inf
        if self.augmentation.silence_lufs is not None:
            loudness = integrated_loudness(channels.T, original_rate)
        if rate != self.sample_rate:
            mono = soxr.resample(mono, rate, self.sample_rate, quality="VHQ")
        mono = mono[: self.samples]
        return np.pad(mono, (0, self.samples - len(mono))), rate, loudness

    def _piece(
        self, file: Any, speed: float, random: np.random.Generator
    ) -> tuple[np.ndarray, int]:
        """Return a random piece (S', C) of a file that gives a crop at this speed, and its rate.

        libsndfile jumps to the piece. Formats that it does not read are decoded from their start.
        """
        try:
            with soundfile.SoundFile(_for_soundfile(file)) as audio:
                start, count = self._place(audio.frames, audio.samplerate * speed, random)
                audio.seek(start)
                return audio.read(count, dtype="float32", always_2d=True), audio.samplerate
        except soundfile.LibsndfileError:
            pass
        with AudioFileReader(_readable(file)) as reader:
            length = _quick_length(reader)
            start, count = self._place(length, reader.sample_rate * speed, random)
            return _piece_of(reader, start, count), reader.sample_rate

    def _place(self, length: int, rate: float, random: np.random.Generator) -> tuple[int, int]:
        """Return where a piece starts and how many samples it has, of a file of this length."""
        count = int(np.ceil(self.samples * rate / self.sample_rate))
        return int(random.integers(0, max(0, length - count) + 1)), count

    def _augment(self, crop: np.ndarray, random: np.random.Generator) -> np.ndarray:
        settings = self.augmentation
        # All numbers are drawn whether they are used or not, so that one share does not change the
        # draws of the others.
        loudness_draw, gain_draw, flip_draw = random.random(3)
        loudness = random.uniform(*settings.loudness_lufs)
        gain = random.uniform(*settings.gain_db)
        decibels = 0.0
        if loudness_draw < settings.loudness_share:
            decibels += self._decibels_to(loudness, crop)
        if gain_draw < settings.gain_share:
            decibels += gain
        if decibels:
            largest_factor = settings.peak / (np.abs(crop).max() + 1e-9)
            crop = crop * np.float32(min(10 ** (decibels / 20), largest_factor))
        if flip_draw < settings.flip_share:
            crop = -crop
        if settings.rotate_phase:
            return rotated(crop, random.uniform(-np.pi, np.pi), self.sample_rate)
        return crop

    def _decibels_to(self, loudness: float, crop: np.ndarray) -> float:
        """Return the gain in dB that brings a crop (S,) to a loudness in LUFS."""
        if self.augmentation.silence_lufs is not None:  # then silence is what it is in audiotools
            return loudness - max(_SILENT_LUFS, integrated_loudness(crop, self.sample_rate))
        # Silence stays as it is: loud noise would teach the codec to make noise.
        if self._is_silent(crop):
            return 0.0
        before = integrated_loudness(crop, self.sample_rate)
        if not np.isfinite(before):
            return 0.0
        return loudness - before

    def _is_silent(self, crop: np.ndarray) -> bool:
        return np.square(crop).mean() <= 10 ** (self.augmentation.silence_db / 10)


def rotated(crop: np.ndarray, angle: float, sample_rate: int) -> np.ndarray:
    """Return a crop (S,) with an angle added to the phase of all its frequencies.

    It is computed frame by frame, by a short-time Fourier transform of 32 ms, rounded up to a power
    of 2, under the root of a Hann window, as in Descript's audiotools.
    """
    window_length = 2 ** math.ceil(math.log2(0.032 * sample_rate))
    window = torch.hann_window(window_length).sqrt()
    options: dict[str, Any] = {"hop_length": window_length // 4, "window": window}
    audio = torch.from_numpy(crop.astype(np.float32))
    spectrum = torch.stft(audio, window_length, return_complex=True, **options)
    turn = torch.polar(torch.ones(()), torch.tensor(angle, dtype=torch.float32))
    return torch.istft(spectrum * turn, window_length, length=len(crop), **options).numpy()


class Crops(Dataset):
    """Crops by number, of a source that can be drawn from at any time: crop n follows from n."""

    def __init__(self, source: Source, cutter: Cutter, seed: int = 0):
        self.source = source
        self.cutter = cutter
        self.seed = seed

    def __getitem__(self, n: int) -> Crop:
        return self.cutter.cut(self.source, np.random.default_rng([self.seed, n]))


class StreamedCrops(IterableDataset):
    """Batches from a stream, which can only be read in order.

    A block of rows is held at a time, undecoded. It gives as many crops as cover its duration once.

    Args:
        recordings: the stream.
        cutter: makes the crops.
        batch: crops per batch.
        seed: of the draws.
        block: rows per block.
        by_duration: whether rows of a block are drawn in proportion to their duration.
    """

    def __init__(
        self,
        recordings: StreamRecordings,
        cutter: Cutter,
        batch: int,
        *,
        seed: int = 0,
        block: int = 64,
        by_duration: bool = True,
    ):
        self.recordings = recordings
        self.by_duration = by_duration
        self.table = recordings.rows
        self.cutter = cutter
        self.batch = batch
        self.seed = seed
        self.block = block
        self.start: dict[str, Any] = {}  # the state of a batch, to continue after it
        self._first_state: dict = {}  # of the table; empty until it is opened

    def __iter__(self) -> Iterator[Batch]:
        block_number = self.start.get("block", 0)
        batches_done = self.start.get("batches", 0)
        for rows, table_state in self._blocks(self.start.get("table")):
            source = self._source(rows)
            for index in range(batches_done, self._batches_of(source)):
                crops = []
                for item in range(self.batch):
                    random = np.random.default_rng([self.seed, block_number, index, item])
                    crops.append(self.cutter.cut(source, random))
                state = {"block": block_number, "batches": index + 1, "table": table_state}
                yield collate(crops, state)
            block_number += 1
            batches_done = 0

    def _source(self, rows: list[dict]) -> "_RowBlock":
        recordings = []
        for index, row in enumerate(rows):
            recordings.append(self.recordings.recording(row, index))
        return _RowBlock(recordings, by_duration=self.by_duration)

    def _batches_of(self, source: "_RowBlock") -> int:
        """Return how many batches cover the duration of a block once."""
        crop_seconds = self.cutter.samples / self.cutter.sample_rate
        return max(1, round(source.seconds / crop_seconds / self.batch))

    def _blocks(self, state: dict | None) -> Iterator[tuple[list[dict], dict]]:
        """Yield blocks of rows, each with the state of the table before it; over and over.

        `state` is where to begin, None for the first row. Raises InputError for a table that has no
        rows.
        """
        if not self._first_state:
            self._first_state = self.table.state_dict()
        is_empty = state is None  # a state proves that there are rows
        while True:
            before = state or self._first_state
            # A table begins where it was last told to, also in the next round.
            self.table.load_state_dict(before)
            rows: list[dict] = []
            for row in self.table:
                rows.append(row)
                if len(rows) == self.block:
                    yield rows, before
                    before = self.table.state_dict()
                    rows = []
                    is_empty = False
            if rows:
                yield rows, before
                is_empty = False
            if is_empty:
                raise InputError("expected a dataset with at least 1 row, got none")
            state = None
            is_empty = True


class _RowBlock:
    """Some rows of a stream, drawn in proportion to their duration, or each as often as others."""

    def __init__(self, recordings: Sequence[Recording], *, by_duration: bool = True):
        self.files: list[tuple[str, Any]] = []
        durations: list[float] = []
        for recording in recordings:
            file = _file_or_cell(recording)
            self.files.append((recording.name, file))
            durations.append(min(_duration(file) or 0.0, _MAX_ROW_SECONDS))
        self.seconds = float(np.sum(durations))
        weights = np.maximum(durations, _MIN_ROW_SECONDS)
        if not by_duration:
            weights = np.ones(len(durations))
        self._ends = np.cumsum(weights)

    def draw(self, random: np.random.Generator) -> tuple[str, Any]:
        """Return the name of a row, and its path or bytes."""
        return self.files[_draw_index(self._ends, random)]


def collate(crops: list[Crop], state: dict[str, Any] | None = None) -> Batch:
    """Return crops as a batch, with the state of the stream after it."""
    audio, bandwidth, problems = zip(*crops, strict=True)
    return Batch(
        torch.from_numpy(np.stack(audio).astype(np.float32)),
        torch.tensor(bandwidth, dtype=torch.float32),
        sorted(set(chain.from_iterable(problems))),
        state or {},
    )


class Batches:
    """Batches in order, without end.

    Each problem with a recording is reported once, as a warning.

    Args:
        crops: the crops to batch.
        batch: crops per batch of this process.
        rank: number of this process among those of the run.
        processes: of the run; of every `batch * processes` crops each takes its share.
        workers: processes that make batches ahead of time; with 0 this one makes them.
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
        if self._peeked:
            batch = self._peeked.pop(0)
        else:
            batch = self._load()
        self.position += 1
        self._streamed = batch.state
        for problem in batch.problems:
            if problem not in self._reported:
                self._reported.add(problem)
                warnings.warn(problem, stacklevel=2)
        return batch

    def peek(self, count: int = 1) -> list[Batch]:
        """Return the next batches without taking them."""
        while len(self._peeked) < count:
            self._peeked.append(self._load())
        return self._peeked[:count]

    def _load(self) -> Batch:
        if self._iterator is None:
            self._iterator = iter(self._loader())
        return next(self._iterator)

    def _loader(self) -> DataLoader:
        # Without a generator of its own, a loader draws from the global one.
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
        """End the workers; those that do not end within seconds are killed.

        They ignore SIGTERM, so that Python would wait for them for ever when it ends.
        """
        workers = getattr(self._iterator, "_workers", [])
        self._iterator = None
        self._peeked = []
        for worker in workers:
            if worker.is_alive():
                worker.kill()

    def state_dict(self) -> dict[str, Any]:
        """Return a state that continues after the last batch taken."""
        return {"position": self.position, "stream": self._streamed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch at which `state_dict` returned this state.

        Those batches must have been made with the same arguments.
        """
        self.close()
        self.position = state["position"]
        self._streamed = state["stream"]


def _leave_signals(worker: int) -> None:
    """Ignore signals to stop, which reach all processes of a run.

    Workers must live until the current step is done.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Numbers:
    """The numbers of the crops of each batch, from the position of `batches` on."""

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
