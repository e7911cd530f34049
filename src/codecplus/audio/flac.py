"""The length of a FLAC file that does not say it, as a program leaves it that writes to a pipe.

Letters and names are those of RFC 9639.
"""

import os
from typing import BinaryIO

from codecplus.errors import FileFormatError

_STREAMINFO = 4 + 34 + 4  # bytes: marker, block header, block
_TAIL_BYTES = 1 << 21  # the longest frame: 65,535 samples of 8 channels at 32 bits
_ID3V1_BYTES = 128
_MOST_SAMPLES = 2**36 - 1  # the header has 36 bits for the length
_ATTEMPTS = 8  # frames to check: chance begins none, and a hostile file shall not cost minutes
_BLOCK_SIZES = {1: 192, **{n: 144 << n for n in range(2, 6)}, **{n: 1 << n for n in range(8, 16)}}


def repair_length(file: BinaryIO, name: str) -> dict[int, bytes]:
    """Return the bytes, by position, that give the header its length; none if it has one.

    The length follows from the position that the last frame states. The frame's checksum shows that
    it is whole.

    Args:
        file: open for reading; its position is left at 0.
        name: of the file, for messages.

    Raises:
        FileFormatError: if the file ends within a frame.
    """
    file.seek(0)
    head = file.read(_STREAMINFO)
    file.seek(0)
    if head[:4] != b"fLaC" or len(head) < _STREAMINFO or head[4] & 0x7F != 0:
        return {}
    length = int.from_bytes(head[21:26], "big") & _MOST_SAMPLES
    if length:
        return {}
    total = _samples_by_last_frame(file, int.from_bytes(head[8:10], "big"))
    file.seek(0)
    if total is None:
        raise FileFormatError(
            f"{name} is truncated: it does not end with a whole FLAC frame, nor does its header "
            "say a length; fetch it again, or keep what is there with ffmpeg -i FILE whole.wav"
        )
    high = (head[21] >> 4) << 36
    return {21: (high | total).to_bytes(5, "big")}


def _samples_by_last_frame(file: BinaryIO, block_size: int) -> int | None:
    """Return the samples of a file up to the end of its last frame; None if that is cut."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL_BYTES))
    tail = file.read()
    if tail[-_ID3V1_BYTES:].startswith(b"TAG"):
        tail = tail[:-_ID3V1_BYTES]
    place = len(tail)
    attempts = 0
    while (place := tail.rfind(b"\xff", 0, place)) >= 0 and attempts < _ATTEMPTS:
        end = _end_by_header(tail[place : place + 16], block_size)
        if end is None:
            continue
        if _is_intact(tail[place:], _CRC16, 16):
            return end
        attempts += 1
    return None


def _end_by_header(frame: bytes, block_size: int) -> int | None:
    """Return the sample at which a frame ends; None if these bytes do not begin one, or if no file
    has so many samples.
    """
    if len(frame) < 6 or frame[1] & 0xFE != 0xF8:
        return None
    coded = _coded_number(frame[4:])
    if coded is None:
        return None
    number, length = coded
    at = 4 + length
    size_code = frame[2] >> 4
    samples = _BLOCK_SIZES.get(size_code, 0)
    if size_code in (6, 7):
        width = size_code - 5
        samples = int.from_bytes(frame[at : at + width], "big") + 1
        at += width
    at += {12: 1, 13: 2, 14: 2}.get(frame[2] & 15, 0)
    if not samples or len(frame) <= at or not _is_intact(frame[: at + 1], _CRC8, 8):
        return None
    counts_samples = frame[1] & 1
    end = samples + (number if counts_samples else number * block_size)
    return end if end <= _MOST_SAMPLES else None


def _coded_number(data: bytes) -> tuple[int, int] | None:
    """Return a number in the manner of UTF-8, and how many bytes it takes."""
    first = data[0]
    if first < 0x80:
        return first, 1
    length = 8 - (first ^ 0xFF).bit_length()
    if length < 2 or len(data) < length:
        return None
    number = first & (0x7F >> length)
    for byte in data[1:length]:
        if byte >> 6 != 2:
            return None
        number = number << 6 | byte & 0x3F
    return number, length


def _crc_table(width: int, polynomial: int) -> list[int]:
    """Return the remainders of all bytes, by which a check takes one step per byte."""
    table = []
    for byte in range(256):
        remainder = byte << (width - 8)
        for _ in range(8):
            remainder <<= 1
            if remainder >> width:
                remainder ^= 1 << width | polynomial
        table.append(remainder)
    return table


_CRC8 = _crc_table(8, 0x07)
_CRC16 = _crc_table(16, 0x8005)


def _is_intact(data: bytes, table: list[int], width: int) -> bool:
    """Return whether bytes end in their own cyclic redundancy check."""
    mask = (1 << width) - 1
    crc = 0
    for byte in data:
        crc = (crc << 8 & mask) ^ table[crc >> (width - 8) ^ byte]
    return crc == 0
