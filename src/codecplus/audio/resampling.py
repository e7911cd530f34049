"""Sample rates: conversion by soxr at its best quality (VHQ), of whole arrays and of streams."""

from typing import Any

import numpy as np
import soxr

from codecplus.audio.arrays import MAX_CHANNELS, as_audio, as_block, check_count, check_rate
from codecplus.errors import InputError


def resampled_length(num_samples: int, from_rate: int, to_rate: int) -> int:
    """Return samples after resampling: ceil(num_samples * to_rate / from_rate).

    Rounding up keeps every signal (1 sample stays at least 1), and there and back is never shorter
    than the original, so that cutting gives its exact length.
    """
    return -(-num_samples * to_rate // from_rate)


class Resampler:
    """A stateful resampler (soxr, VHQ) from one rate to another, in Hz; equal rates pass through.

    The output starts with the input, without delay, and is `resampled_length` long in total for
    every chunking. The filter looks ahead, so pushes give samples late; `flush` gives the last.
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int = 1):
        self.from_rate = check_rate(from_rate, "from_rate")
        self.to_rate = check_rate(to_rate, "to_rate")
        self.channels = check_count("channels", channels, 1, MAX_CHANNELS)
        self._stream = soxr.ResampleStream(
            self.from_rate, self.to_rate, self.channels, dtype="float32", quality="VHQ"
        )
        self._samples_in = 0
        self._samples_out = 0
        self._flushed = False

    def push(self, audio: Any) -> np.ndarray:
        """Take (channels, n) and return the samples that are ready, (channels, m) with m >= 0.

        Raises InputError for audio that `as_block` refuses.
        """
        return self.push_block(as_block(audio, self.channels))

    def push_block(self, block: np.ndarray) -> np.ndarray:
        """Do what `push` does, with a block that was checked already: finite float32 (channels, n),
        as `AudioFileReader` and `as_audio` give it.
        """
        if self._flushed:
            raise InputError("this Resampler is flushed; make a new one for the next signal")
        self._samples_in += block.shape[1]
        if self.from_rate == self.to_rate:
            return block
        return self._resample(block)

    def flush(self) -> np.ndarray:
        """End the signal and return its last (channels, m) samples."""
        if self._flushed or self.from_rate == self.to_rate:
            self._flushed = True
            return np.zeros((self.channels, 0), np.float32)
        length = resampled_length(self._samples_in, self.from_rate, self.to_rate)
        missing = length - self._samples_out
        # soxr rounds the length to the nearest: one output sample's worth of silence makes it round
        # up
        silence = np.zeros((self.channels, -(-self.from_rate // self.to_rate)), np.float32)
        self._flushed = True
        return self._resample(silence, last=True)[:, :missing]

    def _resample(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        out = self._stream.resample_chunk(np.ascontiguousarray(block.T), last=last)
        self._samples_out += len(out)
        return np.ascontiguousarray(out.T)


def resample(audio: Any, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample (samples,) or (channels, samples) from one rate to another, in Hz, as `Resampler`
    does.

    Raises InputError for audio that `as_audio` refuses and for rates outside 4 kHz to 1 MHz.
    """
    audio = as_audio(audio)
    block = np.atleast_2d(audio)
    resampler = Resampler(from_rate, to_rate, len(block))
    out = np.concatenate([resampler.push_block(block), resampler.flush()], axis=1)
    return out.reshape(*audio.shape[:-1], -1)
