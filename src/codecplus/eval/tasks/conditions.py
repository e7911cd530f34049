"""A task under other conditions: with noise, at another level, or with lost packets.

Noise and level change the recordings, so codecs are given the changed ones and are scored against
them. Lost packets change what a decoder is given.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from codecplus.errors import InputError
from codecplus.eval.tasks.clips import Clip, Problem

_UNITS = {"noise": "dB", "level": "dBFS", "loss": "%"}
_SILENT = 1e-6  # RMS: nothing to set noise or a level against


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What is done to every clip.

    Attributes:
        noise: pink noise is added at this ratio of the clip's power to its own, in dB.
        level: RMS in dBFS to which the clip is brought, after the noise; less where its peaks would
            be beyond full scale.
        loss: packets that are lost, in percent, each on its own.
    """

    noise: float | None = None
    level: float | None = None
    loss: float | None = None

    def __post_init__(self) -> None:
        if self.noise is not None and not -40 <= self.noise <= 100:
            raise InputError(f"expected noise from -40 to 100 dB, got {self.noise:g}")
        if self.level is not None and not -70 <= self.level <= 0:
            raise InputError(f"expected a level from -70 to 0 dBFS, got {self.level:g}")
        if self.loss is not None and not 0 < self.loss < 100:
            raise InputError(f"expected a loss between 0 and 100 %, got {self.loss:g}")

    @classmethod
    def parse(cls, words: Iterable[str]) -> "Conditions":
        """Read `noise=10`, `level=-30` and `loss=5`.

        Raises:
            InputError: for another word, or a value out of range.
        """
        values = {}
        for word in words:
            name, equals, value = word.partition("=")
            try:
                number = float(value)
            except ValueError:
                number = np.nan
            if name not in _UNITS or not equals or np.isnan(number):
                raise InputError(
                    f"expected a condition such as noise=10 (dB), level=-30 (dBFS) or loss=5 (%), "
                    f"got {word!r}"
                )
            if name in values:
                raise InputError(f"expected each condition once, got {name} twice")
            values[name] = number
        return cls(**values)

    def as_dict(self) -> dict[str, float]:
        """Those that are set, as plain data."""
        values = {name: getattr(self, name) for name in _UNITS}
        return {name: value for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        parts = [f"{name} {value:g} {_UNITS[name]}" for name, value in self.as_dict().items()]
        return ", ".join(parts)

    def apply(self, clip: Clip) -> Clip:
        """Return the clip under these conditions; the same clip gets the same noise each time."""
        audio = clip.audio
        power = float(np.mean(np.square(audio, dtype=np.float64)))
        if power <= _SILENT**2:
            return replace(clip, loss=self.loss)
        if self.noise is not None:
            noise = _pink(audio.shape, clip.hash)
            audio = audio + noise * np.sqrt(power * 10 ** (-self.noise / 10))
        if self.level is not None:
            rms = np.sqrt(np.mean(np.square(audio, dtype=np.float64)))
            gain = 10 ** (self.level / 20) / rms
            audio = audio * min(gain, 1 / np.abs(audio).max())
        return replace(clip, audio=np.asarray(audio, np.float32), loss=self.loss)


@dataclass(frozen=True)
class ConditionTask:
    """The clips of a task under some conditions."""

    task: Any
    conditions: Conditions

    @property
    def name(self) -> str:
        """The name of the task and its conditions."""
        return f"{self.task.name}, {self.conditions}"

    def describe(self) -> dict:
        """Return the task as plain data."""
        described = self.task.describe()
        return {**described, "name": self.name, "conditions": self.conditions.as_dict()}

    def fingerprint(self) -> str:
        """Return a hash that changes with the task and the conditions."""
        text = repr((self.task.fingerprint(), self.conditions))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __iter__(self) -> Iterator[Clip | Problem]:
        for item in self.task:
            yield self.conditions.apply(item) if isinstance(item, Clip) else item


def _pink(shape: tuple[int, ...], seed: str) -> np.ndarray:
    """Noise (C, S) of power 1 whose power falls by 3 dB per octave, the same for the same seed."""
    rng = np.random.default_rng(int(seed, 16))
    spectrum = np.fft.rfft(rng.standard_normal(shape))
    spectrum[..., 0] = 0
    spectrum[..., 1:] /= np.sqrt(np.arange(1, spectrum.shape[-1]))
    noise = np.fft.irfft(spectrum, shape[-1])
    return noise / np.sqrt(np.mean(np.square(noise)))
