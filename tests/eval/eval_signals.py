"""Signals that every test of the harness shares; all synthetic, all seeded."""

import os
from pathlib import Path

import numpy as np

# The networks of Lyra are no part of the project: beside it, or where the variable says.
LYRA = Path(os.environ.get("CODECPLUS_LYRA", Path(__file__).parents[3] / "shared" / "lyra"))


def speech_like(seconds: float = 2.0, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """A voice as PESQ and STOI see one: a gliding pulse train through two formants, in syllables
    with pauses.
    """
    # Codecs of tests run in processes that import this module and have no use for SciPy.
    from scipy.signal import lfilter

    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * t + seed)
    pulses = (np.diff(np.floor(np.cumsum(pitch) / rate), prepend=0) > 0).astype(float)
    voice = pulses + 0.02 * rng.standard_normal(t.size)
    for centre, width in ((600, 90), (1700, 150)):
        radius = np.exp(-np.pi * width / rate)
        voice = lfilter([1], [1, -2 * radius * np.cos(2 * np.pi * centre / rate), radius**2], voice)
    syllables = np.clip(np.sin(2 * np.pi * 3 * t), 0, None) ** 0.5
    voice = voice * syllables
    return (0.5 * voice / np.abs(voice).max()).astype(np.float32)


class HalfCodec:
    """A third party's codec: float16 samples."""

    name = "half"

    def __init__(self, kbps: float | None = None) -> None:
        pass

    def config(self) -> dict:
        return {}

    def encode(self, audio: np.ndarray, sample_rate: int):
        from codecplus.eval.codecs import Payload

        data = audio.astype(np.float16).tobytes()
        return Payload(data, 8 * len(data))

    def decode(self, data: bytes, original) -> np.ndarray:
        return (
            np.frombuffer(data, np.float16)
            .reshape(original.channels, original.samples)
            .astype(np.float32)
        )
