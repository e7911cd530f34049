"""Whatever is done to a .dacp file, reading it gives one FileFormatError: nothing wrong, nothing
huge, nothing else.
"""

import dataclasses
import io
import random
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codecplus.bitstream import Reader, StreamInfo, pack, unpack
from codecplus.bitstream.header import info_from_bytes
from codecplus.errors import FileFormatError

INFO = StreamInfo(
    fingerprint=bytes(range(16)),
    sample_rate=22500,
    original_sample_rate=48000,
    channels=2,
    num_codebooks=3,
    codebook_size=1024,
    hop_length=320,
    gain=0.25,
    block_length=5,
)


def make(info, frames):
    shape = (info.channels, info.num_codebooks, frames)
    return pack(np.random.default_rng(0).integers(0, info.codebook_size, shape), info)


FILES = {
    "every field": make(INFO, 13),
    "plain": make(
        dataclasses.replace(INFO, channels=1, gain=1.0, block_length=0, original_sample_rate=22500),
        9,
    ),
    "empty": make(INFO, 0),
    "full blocks": make(INFO, 10),
    "one bit": make(dataclasses.replace(INFO, codebook_size=2, num_codebooks=1, channels=1), 23),
}


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found(name):
    for position in range(len(FILES[name]) * 8):
        data = bytearray(FILES[name])
        data[position // 8] ^= 1 << position % 8
        with pytest.raises(FileFormatError):
            unpack(bytes(data))


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_refused(name):
    for size in range(len(FILES[name])):
        with pytest.raises(FileFormatError):
            unpack(FILES[name][:size])


@given(st.sampled_from(sorted(FILES)), st.binary(min_size=1, max_size=60))
@settings(max_examples=200, deadline=None)
def test_bytes_before_the_start_or_after_the_end_are_refused(name, garbage):
    for data in (FILES[name] + garbage, garbage + FILES[name], FILES[name] + FILES[name]):
        with pytest.raises(FileFormatError):
            unpack(data)


def test_thousands_of_mutations_are_refused():
    rng = random.Random(0)
    files = list(FILES.values())
    for _ in range(8000):
        original = rng.choice(files)
        data = mutate(original, rng)
        if data != original:
            with pytest.raises(FileFormatError):
                unpack(data)


def mutate(data, rng):
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        kind = rng.randrange(4)
        if kind == 0:
            data[at:to] = rng.randbytes(rng.randint(0, 8))
        elif kind == 1:
            data[at:at] = data[at:to]
        elif kind == 2 and at < len(data):
            data[at] = rng.choice((0, 1, 127, 128, 255))
        else:
            data[at:to] = bytes(reversed(data[at:to]))
    return bytes(data)


def test_blocks_cannot_change_places_or_files():
    data = bytearray(FILES["full blocks"])
    size = 38 + 4  # 5 frames of 60 bits, and the checksum
    start = len(data) - 2 * size - 7  # behind them, a section of 3 bytes of counts and the checksum
    first, second = data[start : start + size], data[start + size : start + 2 * size]
    data[start : start + 2 * size] = second + first
    with pytest.raises(FileFormatError, match="expected block 0 or the header to match checksum"):
        unpack(bytes(data))
    data[start : start + 2 * size] = first + first
    with pytest.raises(FileFormatError, match="expected block 1"):
        unpack(bytes(data))


def test_damage_is_found_when_its_block_is_read_and_not_before():
    data = bytearray(make(INFO, 1000))
    data[len(data) // 2] ^= 1
    reader = Reader(io.BytesIO(bytes(data)))
    assert reader.read(0, 100).shape == (2, 3, 100)
    with pytest.raises(FileFormatError, match="the file is damaged"):
        reader.read()
    with pytest.raises(FileFormatError, match="the file is damaged"):
        list(reader.blocks())


def sealed(head, counts):
    """Return a file without codes whose only checksum is right, whatever it claims."""
    return head + counts + zlib.crc32(head + bytes(8) + counts).to_bytes(4, "big")


@pytest.mark.parametrize(
    "counts",
    [
        (2**60).to_bytes(8, "big") + b"\x80",  # 2**60 samples
        (2**60).to_bytes(8, "big")
        + (-(2**55)).to_bytes(8, "big", signed=True)
        + b"\x88",  # and few frames
        (2**60).to_bytes(8, "big") + b"\x08",  # 2**60 frames
        (2**63).to_bytes(8, "big") + b"\x80",
        b"\xff" * 8 + b"\x08",
        b"\x01\x10",  # one sample, hence one frame
        b"\x99",
        b"\xff",
        b"\x80",
        b"",
    ],
)
def test_counts_beyond_the_size_of_the_file_are_refused_with_little_memory(counts):
    head = FILES["plain"][:25] + (22500).to_bytes(3, "big")
    assert unpack(sealed(head, b"\x00"))[1].shape == (1, 3, 0)
    tracemalloc.start()
    with pytest.raises(FileFormatError):
        unpack(sealed(head, counts))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, 0x50, "expected a .dacp file, which starts with the bytes da 43 2b, got 50 43 2b"),
        (
            3,
            0x20,
            "version 1 of the format with coding 0 or 1, got version 2 with coding 0; a newer "
            "codecplus",
        ),
        (3, 0x12, "got version 1 with coding 2; a newer codecplus may read it"),
        (4, 0x20, "expected flags of at most 31, got 32; a newer codecplus may read it"),
        (5, 0xEA, "expected a sample rate code of at most 13, got 14"),
        (5, 0x0F, "the file is damaged|length"),
        (5, 0x00, "codebook_size from 2 to 32768, got 1"),
        (8, 0, "num_codebooks from 1 to 255, got 0"),
    ],
)
def test_a_refusal_says_what_was_expected(position, value, message):
    data = bytearray(FILES["plain"])
    data[position] = value
    with pytest.raises(FileFormatError, match=message):
        unpack(bytes(data))


def test_a_file_that_shrinks_while_it_is_read_is_refused():
    file = io.BytesIO(make(INFO, 1000))
    reader = Reader(file)
    file.truncate(1000)
    with pytest.raises(FileFormatError, match="bytes at position"):
        reader.read()


@pytest.mark.parametrize("counts", [b"\x00\xff\x01", b"\xff" * 8 + b"\x80", b"\xff" * 8 + b"\x08"])
def test_an_impossible_length_is_told_in_words_not_numbers(counts):
    data = FILES["plain"]
    info, head_size = info_from_bytes(data[:44])
    body = data[head_size : head_size + info.codes_size(9)] + counts
    checksum = zlib.crc32(body, zlib.crc32(bytes(8), zlib.crc32(data[:head_size])))
    message = "the end of the file is damaged: the length of the audio that it gives is impossible"
    with pytest.raises(FileFormatError, match=message):
        unpack(data[:head_size] + body + checksum.to_bytes(4, "big"))
