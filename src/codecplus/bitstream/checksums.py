"""CRC-32 as arithmetic: checksums of all windows of a file, and what stood before a known end.

It knows zlib's CRC-32 and nothing of files. A checksum is a polynomial modulo one of degree 32;
behind n more bytes it is multiplied by x^(8n), and that can be undone.
"""

import zlib
from functools import lru_cache

import numpy as np

_POLYNOMIAL = 0xEDB88320  # reflected: the highest bit is x^0
_ORDER = (1 << 32) - 1  # x^_ORDER = 1
_ALL_ONES = np.uint32(0xFFFFFFFF)
_COLUMNS = 256  # bytes that `prefix_sums` walks one after the other


def _multiply(a: int, b: int) -> int:
    """Return the product of two polynomials modulo that of CRC-32."""
    product = 0
    mask = 1 << 31
    while a:
        if a & mask:
            product ^= b
            a ^= mask
        mask >>= 1
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


def _squares() -> list[int]:
    """Return x^(2^k) for k from 0 to 31."""
    squares = [1 << 30]  # x
    for _ in range(31):
        squares.append(_multiply(squares[-1], squares[-1]))
    return squares


def _byte_table() -> np.ndarray:
    """Return what one byte does to a checksum of zero, for every byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


_SQUARES = _squares()
_BYTE_TABLE = _byte_table()


@lru_cache(maxsize=1 << 14)
def _power(exponent: int) -> int:
    """Return x^exponent."""
    power = 1 << 31  # 1
    for k in range(32):
        if exponent >> k & 1:
            power = _multiply(power, _SQUARES[k])
    return power


def unshift(checksum: int, size: int) -> int:
    """Return the value that `size` zero bytes turn into this one, initial and final xor left out.

    As `zlib.crc32(body, before) == zlib.crc32(body) ^ shifted`, it finds `before` from the rest.
    """
    return _multiply(_power(-8 * size % _ORDER), checksum)


class Unshift:
    """`unshift` of whole arrays, for one size."""

    def __init__(self, size: int):
        factor = _power(-8 * size % _ORDER)
        images = [_multiply(factor, 1 << bit) for bit in range(32)]
        self._tables = np.zeros((4, 256), np.uint32)
        for byte in range(4):
            for bit in range(8):
                has_bit = np.arange(256) >> bit & 1 == 1
                self._tables[byte, has_bit] ^= np.uint32(images[8 * byte + bit])

    def __call__(self, checksums: np.ndarray) -> np.ndarray:
        """Return uint32 (N,) of uint32 (N,)."""
        result = self._tables[0][checksums & 255]
        for byte in range(1, 4):
            result ^= self._tables[byte][checksums >> np.uint32(8 * byte) & 255]
        return result


def prefix_sums(data: bytes) -> np.ndarray:
    """Return the CRC-32 of every prefix of the data, the empty one included: uint32 (N + 1,)."""
    size = len(data)
    num_rows = -(-size // _COLUMNS)
    padded = np.zeros(num_rows * _COLUMNS, np.uint8)
    padded[:size] = np.frombuffer(data, np.uint8)
    rows = padded.reshape(num_rows, _COLUMNS)
    sums = np.zeros((num_rows, _COLUMNS), np.uint32)
    state = _row_starts(data, num_rows)
    for column in range(_COLUMNS):
        state = _BYTE_TABLE[(state ^ rows[:, column]) & 255] ^ (state >> np.uint32(8))
        sums[:, column] = state ^ _ALL_ONES
    return np.concatenate([np.zeros(1, np.uint32), sums.reshape(-1)[:size]])


def _row_starts(data: bytes, num_rows: int) -> np.ndarray:
    """Return the state in front of every row."""
    starts = np.empty(num_rows, np.uint32)
    checksum = 0
    for row in range(num_rows):
        starts[row] = checksum
        piece = data[row * _COLUMNS : (row + 1) * _COLUMNS]
        checksum = zlib.crc32(piece, checksum)
    return starts ^ _ALL_ONES


def checksums_of_numbers(first: int, stop: int, before: int) -> np.ndarray:
    """Return `zlib.crc32(number.to_bytes(8, "big"), before)` of a range of numbers: uint32."""
    numbers = np.arange(first, stop, dtype=np.uint64)
    state = np.full(len(numbers), np.uint32(before) ^ _ALL_ONES)
    for byte in range(7, -1, -1):
        digit = (numbers >> np.uint64(8 * byte) & np.uint64(255)).astype(np.uint32)
        state = _BYTE_TABLE[(state ^ digit) & 255] ^ (state >> np.uint32(8))
    return state ^ _ALL_ONES
