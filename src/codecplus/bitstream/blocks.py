"""The codes of one block as entropy-coded bytes and back. Knows one block, nothing of files.

A block starts with one byte that says how it is coded, then come the channels that repeat the first
one, if any, then everything else as one range-coded number: how many codebooks each frame has, if
frames differ, and the codes.
"""

import math
from collections.abc import Callable

import numpy as np

from codecplus.bitstream.predictors import (
    COUNTS,
    MAX_WEIGHTS,
    NETWORK,
    UNIFORM,
    Counts,
    EntropyModel,
    Predictor,
    Uniform,
    low_bits,
)
from codecplus.bitstream.ranges import Decoder, Encoder
from codecplus.errors import FileFormatError

MISSING = -1  # stands in arrays of codes where a frame has fewer codebooks
MAX_BLOCK_CODES = 1 << 20
_MODE, _VARIABLE, _COPIES = 3, 4, 8  # of the first byte: two bits and two flags
_KNOWN_BITS = 15
# Steps that an encoder computes at once, of all channels together. With more, products are so large
# that the library of NumPy wakes threads of its own, which take the cores from other workers.
_STEPS_AHEAD = 8
_CODES_PER_BYTE = 16  # at most, so that a small file cannot ask for much memory

# Takes symbols (N,), which a decoder ignores, and their weights (N, n); gives the symbols, coded or
# decoded.
Code = Callable[[np.ndarray, np.ndarray], np.ndarray]


def can_code(channels: int, num_codebooks: int, codebook_size: int) -> bool:
    """Return whether blocks of this shape may be entropy-coded; others must be packed."""
    return (
        codebook_size >= 4
        and channels * num_codebooks * max(codebook_size, 8 * num_codebooks) <= MAX_WEIGHTS
    )


def least_size(num_codes: int) -> int:
    """Return the fewest bytes that so many codes of a block take."""
    return max(1, -(-num_codes // _CODES_PER_BYTE))


def encode_block(codes: np.ndarray, codebook_size: int, entropy: EntropyModel | None) -> bytes:
    """Code codes (C, K, T) of one block, in no more bytes than packing takes, and some.

    From some codebook on, a frame may have `MISSING` in all of them, but not in the first.
    """
    data = _encode_as(NETWORK if entropy is not None else COUNTS, codes, codebook_size, entropy)
    present = int((codes[~_copied(codes)] >= 0).sum())
    if 8 * len(data) > present * (codebook_size.bit_length() - 1):
        data = min(data, _encode_as(UNIFORM, codes, codebook_size, None), key=len)
    return data


def decode_block(
    data: bytes, shape: tuple[int, int, int], codebook_size: int, entropy: EntropyModel | None
) -> np.ndarray:
    """Return the codes of a block, int16 (C, K, T) of that shape, `MISSING` where a frame has fewer
    codebooks.

    Raises FileFormatError if they cannot be codes of such a block, or need an entropy model that
    was not given.
    """
    channels, num_codebooks, frames = shape
    if (
        len(data) < least_size(math.prod(shape))
        or data[0] > _KNOWN_BITS
        or data[0] & _MODE > NETWORK
    ):
        raise FileFormatError("expected a block of codes, got damage; fetch the file again")
    if data[0] & _VARIABLE and num_codebooks == 1:
        raise FileFormatError(
            "expected one codebook in every frame of a block, got fewer in some; "
            "fetch the file again"
        )
    mode = data[0] & _MODE
    start = 1
    copied = np.zeros(channels, bool)
    if data[0] & _COPIES:
        start += -(-(channels - 1) // 8)
        copied[1:] = np.unpackbits(
            np.frombuffer(data[1:start].ljust(start - 1, b"\0"), np.uint8), count=channels - 1
        )
    if mode == NETWORK and entropy is None:
        raise FileFormatError("expected the entropy model of the file, got none")
    distinct = int(channels - copied.sum())  # channels that do not repeat the first
    coder = Decoder(data[start:])

    def decode(symbols: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return coder.decode(weights)

    lengths = np.full((distinct, frames), num_codebooks)
    if data[0] & _VARIABLE:
        _run_lengths(lengths, num_codebooks, decode)
    predictor = _predictor(mode, distinct, num_codebooks, codebook_size, entropy)
    grid = _Grid((distinct, num_codebooks, frames), codebook_size, predictor.lags)
    _run_codes(grid, None, lengths, predictor, decode)
    codes = np.empty(shape, np.int16)
    codes[~copied] = grid.codes()
    codes[copied] = codes[0]
    return codes


def _encode_as(
    mode: int, codes: np.ndarray, codebook_size: int, entropy: EntropyModel | None
) -> bytes:
    num_codebooks = codes.shape[1]
    copied = _copied(codes)
    distinct = codes[~copied].astype(np.int64)
    lengths = (distinct >= 0).sum(axis=1)  # (C, T)
    variable = bool((lengths < num_codebooks).any())
    head = bytes([mode | _VARIABLE * variable | _COPIES * bool(copied.any())])
    if copied.any():
        head += np.packbits(copied[1:]).tobytes()
    coder = Encoder()

    def encode(symbols: np.ndarray, weights: np.ndarray) -> np.ndarray:
        coder.encode(symbols, weights)
        return symbols

    if variable:
        _run_lengths(lengths, num_codebooks, encode)
    predictor = _predictor(mode, len(distinct), num_codebooks, codebook_size, entropy)
    grid = _Grid(distinct.shape, codebook_size, predictor.lags)
    if mode == NETWORK:
        _encode_ahead(grid, distinct, lengths, predictor, coder)
    else:
        _run_codes(grid, distinct, lengths, predictor, encode)
    data = head + coder.to_bytes()
    return data.ljust(least_size(codes.size), b"\0")


def _copied(codes: np.ndarray) -> np.ndarray:
    """Return which channels (C,) repeat the codes of the first one, itself left out."""
    return np.array([c > 0 and np.array_equal(codes[c], codes[0]) for c in range(len(codes))])


def _predictor(
    mode: int, channels: int, num_codebooks: int, codebook_size: int, entropy: EntropyModel | None
) -> Predictor:
    if mode == NETWORK:
        assert entropy is not None
        return entropy.predictor(num_codebooks)
    return (Counts if mode == COUNTS else Uniform)(channels, num_codebooks, codebook_size)


class _Grid:
    """Codes of a block as they become known, with room around them for predictors' windows."""

    def __init__(self, shape: tuple[int, int, int], codebook_size: int, lags: int):
        self.shape = channels, num_codebooks, frames = shape
        before = num_codebooks + lags - 2
        width = before + frames + num_codebooks
        self._padded = np.full((channels, num_codebooks * width), codebook_size, np.int64)
        self.codebook_size = codebook_size
        k, lag, j = np.ogrid[:num_codebooks, :lags, :num_codebooks]
        self._window = j * width + before - k - lag  # (K, L, K): where the window of step 0 lies
        self._places = np.arange(num_codebooks) * width + before - np.arange(num_codebooks)

    def window(self, step: int) -> np.ndarray:
        """Windows (C, K, L, K) of the codes of this step."""
        return self._padded[:, self._window + step]

    def windows(self, first: int, stop: int) -> np.ndarray:
        """Windows (S, C, K, L, K) of the steps from `first` to `stop`, of codes that are filled in.

        What a decoder does not know yet is left out, but for finer codebooks.
        """
        steps = np.arange(first, stop)[:, None, None, None]
        windows = self._padded[:, self._window + steps].swapaxes(0, 1)
        books = np.arange(self.shape[1])
        finer = books[:, None] <= books  # (K, K): unknown where both are of one frame
        windows[:, :, :, 0][..., finer] = self.codebook_size
        return windows

    def fill(self, codes: np.ndarray) -> None:
        """Let all codes (C, K, T) be known."""
        _, num_codebooks, frames = self.shape
        places = self._padded.reshape(*self.shape[:2], -1)
        places = places[..., -frames - num_codebooks : -num_codebooks]
        places[...] = np.where(codes == MISSING, self.codebook_size, codes)

    def put(self, step: int, rows: np.ndarray, codes: np.ndarray) -> None:
        """Let codes (N,) of this step be known, of rows (N,) of the flattened (C, K)."""
        channel, k = np.divmod(rows, self.shape[1])
        self._padded[channel, self._places[k] + step] = codes

    def codes(self) -> np.ndarray:
        """Return all codes, int16 (C, K, T)."""
        channels, num_codebooks, frames = self.shape
        codes = self._padded.reshape(channels, num_codebooks, -1)[
            ..., -frames - num_codebooks : -num_codebooks
        ]
        return np.where(codes == self.codebook_size, MISSING, codes).astype(np.int16)


def _run_codes(
    grid: _Grid, codes: np.ndarray | None, lengths: np.ndarray, predictor: Predictor, code: Code
) -> None:
    """Code every code of a block along the diagonals and put it into the grid; `codes` (C, K, T),
    or None to decode.
    """
    channels, num_codebooks, frames = grid.shape
    lows = 1 << low_bits(grid.codebook_size)
    books = np.arange(num_codebooks)
    flat = np.zeros(1, np.int64) if codes is None else codes.reshape(-1)
    starts = np.arange(channels * num_codebooks) * frames
    for step in range(frames + num_codebooks - 1):
        frame = step - books  # (K,)
        inside = (frame >= 0) & (frame < frames)
        rows = np.flatnonzero(inside & (lengths[:, frame.clip(0, frames - 1)] > books))
        if not rows.size:
            continue
        here = (
            np.zeros(len(rows), np.int64)
            if codes is None
            else flat[starts[rows] + frame[rows % num_codebooks]]
        )
        ranks = predictor.ranks(rows, here)
        high = code(ranks // lows, predictor.high(grid.window(step))[rows])
        low = code(ranks % lows, predictor.low(rows, high))
        here = predictor.codes(rows, high.astype(np.int64) * lows + low)
        grid.put(step, rows, here)
        predictor.learn(rows, here)


def _encode_ahead(
    grid: _Grid, codes: np.ndarray, lengths: np.ndarray, predictor: Predictor, coder: Encoder
) -> None:
    """Encode what `_run_codes` does, many steps at once, under a predictor that does not learn.

    Each step is a channel of its own to the predictor. Its arithmetic is exact, so that a decoder,
    which goes step by step, finds the same weights. This takes half of the time.
    """
    channels, num_codebooks, frames = grid.shape
    lows = 1 << low_bits(grid.codebook_size)
    books = np.arange(num_codebooks)
    grid.fill(codes)
    last = frames + num_codebooks - 1
    ahead = max(1, _STEPS_AHEAD // channels)
    for first in range(0, last, ahead):
        stop = min(first + ahead, last)
        windows = grid.windows(first, stop)
        weights = predictor.high(windows.reshape(-1, *windows.shape[2:]))
        frame = np.arange(first, stop)[:, None] - books  # (S, K)
        inside = (frame >= 0) & (frame < frames)
        frame = frame.clip(0, frames - 1)
        present = inside & (lengths[:, frame] > books)  # (C, S, K)
        rows = np.flatnonzero(present.swapaxes(0, 1))  # of the flattened (S, C, K)
        step, channel, k = np.unravel_index(rows, (stop - first, channels, num_codebooks))
        ranks = predictor.ranks(rows, codes[channel, k, frame[step, k]])
        high, low = np.divmod(ranks, lows)
        coder.encode_pairs(step, high, weights[rows], low, predictor.low(rows, high))


def _run_lengths(lengths: np.ndarray, num_codebooks: int, code: Code) -> None:
    """Code how many codebooks each frame has, (C, T), from the number before; fills `lengths`."""
    channels, frames = lengths.shape
    seen = np.ones((num_codebooks, num_codebooks), np.int64)  # (number before, number), less 1 each
    seen += 8 * num_codebooks * np.eye(num_codebooks, dtype=np.int64)
    before = np.full(channels, num_codebooks - 1)
    for frame in range(frames):
        now = code(lengths[:, frame] - 1, seen[before])
        np.add.at(seen, (before, now), 24)
        lengths[:, frame] = now + 1
        before = now
