"""Symbols to bytes and back under given integer weights. Knows the range coder, nothing of what
symbols mean.

The coder is that of `constriction`, 32-bit words and 24-bit probabilities. It takes probabilities
as floats; weights are scaled here so that every float in it is a small integer, and no machine can
round one in another way. Where there is no `constriction`, `range_coder` does the same in Python.
"""

from typing import Any

import numpy as np

from codecplus.bitstream.range_coder import PRECISION, RangeDecoder, RangeEncoder
from codecplus.errors import FileFormatError

try:
    import constriction
except ImportError:  # no wheels for Linux on ARM
    _stream: Any = None
    _FAMILY: Any = None
else:
    _stream = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]
    _FAMILY = _stream.model.Categorical(lazy=True)


class Encoder:
    """Codes symbols one row after the other."""

    def __init__(self) -> None:
        self._coder: Any = RangeEncoder()
        self._library = _stream
        if self._library is not None:
            self._coder = self._library.queue.RangeEncoder()

    def encode(self, symbols: np.ndarray, weights: np.ndarray) -> None:
        """Append symbols (N,), each below n, under integer weights (N, n), n >= 2, which
        `Decoder.decode` must be given, too.
        """
        shares = _shares(weights)
        if self._library is None:
            self._coder.encode(symbols, shares + 1)
            return
        symbols = np.ascontiguousarray(symbols, np.int32)
        self._coder.encode(symbols, _FAMILY, shares.astype(np.float32))

    def encode_pairs(
        self,
        groups: np.ndarray,
        first: np.ndarray,
        first_weights: np.ndarray,
        second: np.ndarray,
        second_weights: np.ndarray,
    ) -> None:
        """Append symbols (N,) of groups (N,) in ascending order: of each group the first ones, and
        then the second ones. Weights are those of `encode`.
        """
        if first_weights.shape[1] == second_weights.shape[1]:
            order = np.argsort(np.concatenate([2 * groups, 2 * groups + 1]), kind="stable")
            weights = np.concatenate([first_weights, second_weights])
            self.encode(np.concatenate([first, second])[order], weights[order])
            return
        for group in np.unique(groups):
            here = groups == group
            self.encode(first[here], first_weights[here])
            self.encode(second[here], second_weights[here])

    def to_bytes(self) -> bytes:
        """Return all that was encoded; zero bytes at the end are left out, since a decoder reads
        them there anyway.
        """
        return self._coder.get_compressed().astype(">u4").tobytes().rstrip(b"\0")


class Decoder:
    """Gives back what an `Encoder` was given, under the same weights. Any bytes decode to
    something.
    """

    def __init__(self, data: bytes):
        # Two words more than the coder may look at, so that it never has to be asked whether they
        # are there.
        padded = data + bytes(-len(data) % 4 + 8)
        words = np.frombuffer(padded, ">u4").astype(np.uint32)
        self._coder: Any = RangeDecoder(words)
        self._library = _stream
        if self._library is not None:
            self._coder = self._library.queue.RangeDecoder(words)

    def decode(self, weights: np.ndarray) -> np.ndarray:
        """Return the next symbols (N,) under integer weights (N, n).

        Each weight is at least 0, and their sum lies from 1 to 2**29.

        Raises FileFormatError if no encoder can have written what is there.
        """
        shares = _shares(weights)
        try:
            if self._library is None:
                return self._coder.decode(shares + 1)
            return self._coder.decode(_FAMILY, shares.astype(np.float32))
        except AssertionError as error:  # what constriction says of impossible data
            raise FileFormatError(
                "expected codes of this entropy model, got damage; fetch the file again"
            ) from error


def _shares(weights: np.ndarray) -> np.ndarray:
    """Return weights (N, n) as integers whose rows sum up to 2**24 when 1 is added to each of them,
    as constriction does.
    """
    weights = weights.astype(np.int64)
    total = (1 << PRECISION) - weights.shape[-1]
    shares = weights * total // weights.sum(axis=-1, keepdims=True)
    shares[..., -1] += total - shares.sum(axis=-1)
    return shares
