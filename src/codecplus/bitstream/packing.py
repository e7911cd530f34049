"""Codes of a fixed width as a string of bits and back. Knows integers and bytes, nothing of files
or headers.
"""

import functools

import numpy as np


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that `count` codes of `bits` bits take, the last byte filled up with zero
    bits.
    """
    return (count * bits + 7) // 8


def pack_codes(codes: np.ndarray, bits: int) -> bytes:
    """Write codes (N,) below 2**bits one after the other, each most significant bit first; `bits`
    is 1 to 15.
    """
    groups = -(-codes.size // 8)  # eight codes fill whole bytes at every width
    padded = np.zeros(groups * 8, np.uint16)
    padded[: codes.size] = codes
    columns = np.ascontiguousarray(padded.reshape(groups, 8).T)  # (8, groups)
    packed = np.zeros((bits, groups), np.uint8)
    for code, byte, shift in _overlaps(bits):
        column = columns[code]
        packed[byte] |= (column << shift if shift >= 0 else column >> -shift).astype(np.uint8)
    return packed.T.tobytes()[: packed_size(codes.size, bits)]


def unpack_codes(data: bytes, count: int, bits: int) -> np.ndarray:
    """Read the first `count` codes from `data` as int16 (count,); the inverse of `pack_codes`."""
    groups = -(-count // 8)
    padded = np.zeros(groups * bits, np.uint8)
    padded[: packed_size(count, bits)] = np.frombuffer(data, np.uint8, packed_size(count, bits))
    columns = padded.reshape(groups, bits).T.astype(np.uint16, order="C")  # (bits, groups)
    codes = np.zeros((8, groups), np.uint16)
    for code, byte, shift in _overlaps(bits):
        column = columns[byte]
        codes[code] |= column >> shift if shift >= 0 else column << -shift
    codes &= (1 << bits) - 1  # a byte's share of the code before it is still there
    return codes.T.reshape(-1)[:count].astype(np.int16)


@functools.cache
def _overlaps(bits: int) -> tuple[tuple[int, int, int], ...]:
    """Return for eight codes every (code, byte, shift) that meet; code << shift lines the code up
    with the byte.
    """
    return tuple(
        (code, byte, 8 * (byte + 1) - bits * (code + 1))
        for code in range(8)
        for byte in range(code * bits // 8, ((code + 1) * bits + 7) // 8)
    )
