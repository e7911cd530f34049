"""Symbols to bytes and back under given integer weights. Knows the range coder, nothing of what
symbols mean.

The coder is that of `constriction`, 32-bit words and 24-bit probabilities. It takes probabilities
as floats; weights are scaled here so that every float in it is a small integer, and no machine can
round one in another way.
"""

from typing import Any

import constriction
import numpy as np

from codecplus.errors import FileFormatError

PRECISION = 24
_stream: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]
_FAMILY = _stream.model.Categorical(lazy=True)


class Encoder:
    """Codes symbols one row after the other."""

    def __init__(self) -> None:
        self._coder = _stream.queue.RangeEncoder()

    def encode(self, symbols: np.ndarray, weights: np.ndarray) -> None:
        """Append symbols (N,), each below n, under integer weights (N, n), n >= 2, which
        `Decoder.decode` must be given, too.
        """
        self._coder.encode(np.ascontiguousarray(symbols, np.int32), _FAMILY, _frequencies(weights))

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
        self._coder = _stream.queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))

    def decode(self, weights: np.ndarray) -> np.ndarray:
        """Return the next symbols (N,) under integer weights (N, n).

        Each weight is at least 0, and their sum lies from 1 to 2**29.

        Raises FileFormatError if no encoder can have written what is there.
        """
        try:
            return self._coder.decode(_FAMILY, _frequencies(weights))
        except AssertionError as error:  # what constriction says of impossible data
            raise FileFormatError(
                "expected codes of this entropy model, got damage; fetch the file again"
            ) from error


def _frequencies(weights: np.ndarray) -> np.ndarray:
    """Return weights (N, n) as integers in floats which constriction adds 1 to, and which sum up to
    2**24 then.
    """
    weights = weights.astype(np.int64)
    total = (1 << PRECISION) - weights.shape[-1]
    shares = weights * total // weights.sum(axis=-1, keepdims=True)
    shares[..., -1] += total - shares.sum(axis=-1)
    return shares.astype(np.float32)
