"""Levels that no sound has: floats that were not scaled to ±1."""

import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

# Full scale is 1. Mixes and filters overshoot it by some decibels, never by 24; the samples of a
# 16-bit file, taken as floats without dividing, reach thousands.
MAX_PEAK = 16.0
_PACKAGE = str(Path(__file__).parents[1])


def check_level(audio: np.ndarray) -> bool:
    """Warn of audio, of any shape, whose peak lies far beyond full scale; return whether it does.

    The warning is a `UserWarning` at the line outside this package that led here.
    """
    if not audio.size:
        return False
    peak = max(float(audio.max()), -float(audio.min()))
    if peak <= MAX_PEAK:
        return False
    warnings.warn(
        f"expected audio within ±1, got a peak of {peak:g}; if these are 16-bit samples, divide "
        "them by 32768, or give them as int16",
        stacklevel=_callers_level(),
    )
    return True


def watch_level(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Pass blocks on, and warn once, as `check_level`, if their peak lies far beyond full scale."""
    warned = False
    for block in blocks:
        warned = warned or check_level(block)
        yield block


def _callers_level() -> int:
    """Return the `stacklevel`, seen from `check_level`, of the first line outside this package."""
    frame = sys._getframe(2)
    level = 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
        level += 1
    return level
