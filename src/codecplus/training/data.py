"""Random crops of a folder of recordings. It knows files and samples, nothing of models or losses."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"}


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What happens to a crop. Levels are RMS in dB below full scale; peaks stay under 0.95."""

    gain_share: float = 0.6  # of the crops are set to a random level, the others keep their own
    lowest_db: float = -34.0
    highest_db: float = -15.0
    flip_share: float = 0.5  # have their sign turned
    silence_db: float = -54.0  # a crop below this is drawn again


@dataclass(frozen=True)
class Recording:
    """One readable file."""

    path: Path
    sample_rate: int
    samples: int

    @property
    def seconds(self) -> float:
        """Its duration."""
        return self.samples / self.sample_rate


def find_recordings(folder: Path | str) -> list[Recording]:
    """The audio files below `folder`, in the order of their paths; one warning names those that cannot be read.

    Raises `ValueError` if none can.
    """
    found, broken = [], []
    for path in sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES):
        try:
            info = soundfile.info(path)
        except (soundfile.LibsndfileError, OSError):
            broken.append(path.name)
            continue
        if info.frames > 0:
            found.append(Recording(path, info.samplerate, info.frames))
    if broken:
        warnings.warn(f"{len(broken)} unreadable files are skipped: {', '.join(broken[:5])}", stacklevel=2)
    if not found:
        raise ValueError(
            f"found no readable audio below {folder}; expected files ending in {', '.join(sorted(SUFFIXES))}"
        )
    return found


class RandomCrops:
    """An endless, seeded stream of batches (B, S) of mono audio at one rate.

    A recording is drawn in proportion to its duration, a place in it uniformly. Shorter recordings are padded with
    zeros behind. A file that fails while it is read is reported once and never drawn again.
    """

    attempts = 20  # to find a crop that is not silent

    def __init__(
        self,
        recordings: Iterable[Recording],
        sample_rate: int,
        samples: int,
        batch: int,
        *,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ):
        self.recordings = list(recordings)
        self.sample_rate, self.samples, self.batch = sample_rate, samples, batch
        self.augmentation = augmentation or Augmentation()
        self.random = np.random.default_rng(seed)
        self.weights = np.array([recording.seconds for recording in self.recordings])

    def __iter__(self):
        return self

    def __next__(self) -> Tensor:  # (B, S)
        return torch.from_numpy(np.stack([self._crop() for _ in range(self.batch)]))

    def state_dict(self) -> dict[str, Any]:
        """What continues the stream at this place."""
        return {"random": self.random.bit_generator.state, "weights": self.weights.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the stream that gave `state` stood; it must have been made with the same arguments."""
        self.random.bit_generator.state = state["random"]
        self.weights = np.array(state["weights"])

    def _crop(self) -> np.ndarray:
        crop = np.zeros(self.samples, np.float32)
        for _ in range(self.attempts):
            crop = self._read()
            if np.square(crop).mean() > 10 ** (self.augmentation.silence_db / 10):
                break
        return self._augment(crop)

    def _read(self) -> np.ndarray:
        if not self.weights.any():
            raise ValueError("no recording could be read")
        index = self.random.choice(len(self.recordings), p=self.weights / self.weights.sum())
        recording = self.recordings[index]
        wanted = int(np.ceil(self.samples * recording.sample_rate / self.sample_rate))
        start = int(self.random.integers(0, max(0, recording.samples - wanted) + 1))
        try:
            audio, _ = soundfile.read(recording.path, wanted, start, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError) as error:
            warnings.warn(f"{recording.path.name} cannot be read and is left out: {error}", stacklevel=2)
            self.weights[index] = 0
            return self._read()
        mono = audio.mean(axis=1)
        if recording.sample_rate != self.sample_rate:
            mono = soxr.resample(mono, recording.sample_rate, self.sample_rate, quality="VHQ")
        mono = mono[: self.samples]
        return np.pad(mono, (0, self.samples - len(mono)))

    def _augment(self, crop: np.ndarray) -> np.ndarray:
        chosen = self.augmentation
        if self.random.random() < chosen.gain_share:
            level = 10 ** (self.random.uniform(chosen.lowest_db, chosen.highest_db) / 20)
            gain = level / (np.sqrt(np.square(crop).mean()) + 1e-4)
            crop = crop * np.float32(min(gain, 0.95 / (np.abs(crop).max() + 1e-6)))
        return -crop if self.random.random() < chosen.flip_share else crop
