"""Integrated loudness (ITU-R BS.1770-4) of arrays and of streams."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from codecplus.audio.arrays import as_audio, as_block, check_count, check_rate, split_blocks
from codecplus.errors import InputError

_LOUDNESS_WEIGHTS = {n: [1.0, 1.0, 1.0, 1.41, 1.41][:n] for n in range(1, 6)} | {
    6: [1.0, 1.0, 1.0, 0.0, 1.41, 1.41]
}
_GATE = 0.4  # seconds of one gating block; a new one starts every quarter of it


class LoudnessMeter:
    """Integrated loudness (ITU-R BS.1770-4) of a stream with 1 to 6 channels, in bounded memory.

    Channels are left, right, centre, surround left and right; with six, the fourth is the
    low-frequency channel, which does not count. Signals under 0.5 s are measured as if silence
    filled them up to it, as in Descript's audiotools.
    """

    def __init__(self, sample_rate: int, channels: int = 1):
        import pyloudnorm

        self.sample_rate = check_rate(sample_rate)
        self.channels = check_count("channels", channels, 1, 6)
        self._weights = np.array(_LOUDNESS_WEIGHTS[self.channels])
        # at its default, a Meter holds the two stages of K-weighting
        self._filters = [
            (stage.b, stage.a) for stage in pyloudnorm.Meter(self.sample_rate)._filters.values()
        ]
        self._states = [np.zeros((self.channels, 2)) for _ in self._filters]
        self._samples = 0
        self._powers: list[float] = []  # of the gating blocks so far
        self._open = np.zeros(0)  # weighted squares since the first unfinished gating block
        self._open_start = 0

    def push(self, audio: Any) -> None:
        """Take the next block, (channels, n) or for one channel (n,).

        Raises InputError for audio that `as_block` refuses.
        """
        self.push_block(as_block(audio, self.channels))

    def push_block(self, block: np.ndarray) -> None:
        """Do what `push` does, with a block that was checked already: finite float32 (channels, n),
        as `AudioFileReader` and `as_audio` give it.
        """
        from scipy.signal import lfilter

        x = block.astype(np.float64)
        if x.size == 0:
            return
        for i, (b, a) in enumerate(self._filters):
            x, self._states[i] = lfilter(b, a, x, axis=-1, zi=self._states[i])
        self._open = np.concatenate([self._open, self._weights @ np.square(x)])
        self._samples += x.shape[1]
        while self._bounds(len(self._powers))[1] <= self._samples:
            self._powers.append(self._power(len(self._powers)))
        start = self._bounds(len(self._powers))[0]
        self._open = self._open[start - self._open_start :]
        self._open_start = start

    def _bounds(self, block: int) -> tuple[int, int]:
        # rounded as pyloudnorm rounds, else a block may begin one sample elsewhere
        start = int(_GATE * (block * 0.25) * self.sample_rate)
        stop = int(_GATE * (block * 0.25 + 1) * self.sample_rate)
        return start, stop

    def _power(self, block: int) -> float:
        start, stop = (bound - self._open_start for bound in self._bounds(block))
        return float(self._open[start:stop].sum()) / (_GATE * self.sample_rate)

    def loudness(self) -> float:
        """Return the loudness so far in LUFS; -inf when no gating block reaches -70 LUFS."""
        missing = int(0.5 * self.sample_rate) - self._samples
        if missing > 0:
            padded = copy.deepcopy(self)
            padded.push_block(np.zeros((self.channels, missing), np.float32))
            return padded.loudness()
        # the last gating block counts from half of its quarter on, as in pyloudnorm
        count = round((self._samples / self.sample_rate - _GATE) / (_GATE * 0.25)) + 1
        powers = self._powers[:count] + [
            self._power(block) for block in range(len(self._powers), count)
        ]
        return _gated_loudness(np.array(powers))


def _gated_loudness(powers: np.ndarray) -> float:
    def level(power: Any) -> Any:
        with np.errstate(divide="ignore"):
            return -0.691 + 10 * np.log10(power)

    powers = powers[level(powers) >= -70]
    if powers.size:
        powers = powers[level(powers) > max(-70.0, level(powers.mean()) - 10)]
    return float(level(powers.mean())) if powers.size else -math.inf


def integrated_loudness(audio: Any, sample_rate: int) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4) of an array or of an iterator of (channels, n)
    blocks.

    See `LoudnessMeter`. Raises InputError for audio that `as_audio` refuses, more than 6 channels,
    and no blocks.
    """
    if not isinstance(audio, Iterator):
        signal = np.atleast_2d(as_audio(audio))
        meter = LoudnessMeter(sample_rate, len(signal))
        for block in split_blocks(signal):
            meter.push_block(block)
        return meter.loudness()
    meter = None
    for block in audio:
        if meter is None:
            meter = LoudnessMeter(sample_rate, len(np.atleast_2d(block)))
        meter.push(block)
    if meter is None:
        raise InputError("expected audio with at least 1 sample, got no blocks")
    return meter.loudness()
