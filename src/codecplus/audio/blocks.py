"""Signals that pass in blocks (C, n): cutting, resampling, counting and joining them.

Long files go through the codec this way, in bounded memory. Letters: C channels, n samples of a
block.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from codecplus.audio.arrays import BLOCK_SAMPLES, check_finite
from codecplus.audio.resampling import Resampler


def resample_blocks(
    blocks: Iterable[np.ndarray], from_rate: int, to_rate: int, channels: int
) -> Iterator[np.ndarray]:
    """Resample blocks (C, n) from one rate to another, in Hz; empty blocks are left out.

    Blocks are finite float32, as readers give them; others go through `check_blocks` first.
    """
    resampler = Resampler(from_rate, to_rate, channels)
    for block in blocks:
        resampled = resampler.push_block(block)
        if resampled.shape[-1]:
            yield resampled
    rest = resampler.flush()
    if rest.shape[-1]:
        yield rest


def check_blocks(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Pass blocks on; raise InputError for NaN and infinite values, such as a network may give."""
    for block in blocks:
        yield check_finite(block)


def scale_blocks(blocks: Iterable[np.ndarray], gain: float) -> Iterator[np.ndarray]:
    """Multiply blocks by a gain."""
    for block in blocks:
        yield block if gain == 1.0 else block * np.float32(gain)


def unscale_blocks(blocks: Iterable[np.ndarray], gain: float) -> Iterator[np.ndarray]:
    """Divide blocks by a gain: the inverse of `scale_blocks`."""
    for block in blocks:
        yield block if gain == 1.0 else block / np.float32(gain)


def take_samples(blocks: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """Yield the first `length` samples of the signal; zeros follow where it is shorter."""
    missing = length
    channels = 1
    for block in blocks:
        channels = len(block)
        if missing <= 0:
            break
        yield block[:, :missing]
        missing -= block.shape[-1]
    while missing > 0:
        yield np.zeros((channels, min(missing, BLOCK_SAMPLES)), np.float32)
        missing -= BLOCK_SAMPLES


def drop_samples(blocks: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Leave out the first `count` samples of the signal."""
    for block in blocks:
        yield block[:, count:]
        count = max(0, count - block.shape[-1])


def join_blocks(blocks: Iterable[np.ndarray], channels: int, length: int) -> np.ndarray:
    """Join blocks into one array (C, length) without a second copy in memory."""
    audio = np.empty((channels, length), np.float32)
    position = 0
    for block in blocks:
        audio[:, position : position + block.shape[-1]] = block
        position += block.shape[-1]
    return audio


class CountedBlocks:
    """Passes blocks on and counts their samples.

    `progress`, if given, is called with the seconds of each block.
    """

    def __init__(
        self,
        blocks: Iterable[np.ndarray],
        sample_rate: int,
        progress: Callable[[float], Any] | None = None,
    ):
        self.num_samples = 0
        self._blocks = blocks
        self._sample_rate = sample_rate
        self._progress = progress

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._blocks:
            self.num_samples += block.shape[-1]
            if self._progress is not None:
                self._progress(block.shape[-1] / self._sample_rate)
            yield block
