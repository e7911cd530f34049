"""A range coder in Python, for systems that `constriction` has no wheels for, such as Linux on ARM.

It writes and reads the bytes of constriction's range coder: words of 32 bits, probabilities of 24.
"""

import numpy as np

PRECISION = 24
_WORD = 1 << 32
_STATE = 1 << 64


class RangeEncoder:
    """Codes symbols one row after the other; what it does to its state is in `docs/format.md`."""

    def __init__(self) -> None:
        self._words: list[int] = []
        self._low = 0
        self._range = _STATE - 1

    def encode(self, symbols: np.ndarray, frequencies: np.ndarray) -> None:
        """Append symbols (N,) under integer frequencies (N, n), whose rows sum up to 2**24."""
        rows = np.arange(len(symbols))
        counts = frequencies[rows, symbols]
        starts = np.cumsum(frequencies, axis=-1)[rows, symbols] - counts
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            scale = self._range >> PRECISION
            self._low += scale * start
            self._range = scale * count
            if self._low >= _STATE:
                self._low -= _STATE
                _carry(self._words)
            if self._range < _WORD:
                self._words.append(self._low >> 32)
                self._low = (self._low << 32) % _STATE
                self._range <<= 32

    def get_compressed(self) -> np.ndarray:
        """Return the words of all that was encoded: uint32 (M,)."""
        words = list(self._words)
        if self._range < _STATE - 1:  # something was encoded
            point = self._low + _WORD - 1  # its highest word alone lies within the range
            if point >= _STATE:
                point -= _STATE
                _carry(words)
            words.append(point >> 32)
        return np.array(words, np.uint32)


def _carry(words: list[int]) -> None:
    """Add one to a number that is written in words, the most significant first."""
    last = len(words) - 1
    while words[last] == _WORD - 1:
        words[last] = 0
        last -= 1
    words[last] += 1


class RangeDecoder:
    """Gives back what a `RangeEncoder` was given; behind the last word it reads zeros."""

    def __init__(self, words: np.ndarray):
        self._words = iter(words.tolist())
        self._low = 0
        self._range = _STATE - 1
        self._point = (self._next_word() << 32) + self._next_word()

    def _next_word(self) -> int:
        return next(self._words, 0)

    def decode(self, frequencies: np.ndarray) -> np.ndarray:
        """Return the next symbols, int32 (N,), under integer frequencies (N, n).

        Raises AssertionError, as constriction does, if no encoder can have written what is there.
        """
        symbols = np.empty(len(frequencies), np.int32)
        for row, ends in enumerate(np.cumsum(frequencies, axis=-1)):
            scale = self._range >> PRECISION
            quantile = (self._point - self._low) % _STATE // scale
            if quantile >> PRECISION:
                raise AssertionError("impossible data")
            symbol = int(np.searchsorted(ends, quantile, side="right"))
            count = int(frequencies[row, symbol])
            self._low = (self._low + scale * (int(ends[symbol]) - count)) % _STATE
            self._range = scale * count
            if self._range < _WORD:
                self._low = (self._low << 32) % _STATE
                self._range <<= 32
                self._point = (self._point << 32) % _STATE + self._next_word()
            symbols[row] = symbol
        return symbols
