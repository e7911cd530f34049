"""Recovery loses the blocks that are damaged and no other, says all that is missing, and asks for
no more than the file could hold.
"""

import dataclasses
import io
import time
import zlib

import numpy as np
import pytest

from codecplus.bitstream import Reader, StreamInfo, pack
from codecplus.bitstream.checksums import Unshift, checksums_of_numbers, prefix_sums, unshift
from codecplus.errors import FileFormatError

PACKED = StreamInfo(
    fingerprint=bytes(8),
    sample_rate=16000,
    original_sample_rate=16000,
    channels=1,
    num_codebooks=3,
    codebook_size=16,
    hop_length=320,
    block_length=8,
)
CODINGS = {"packed": PACKED, "entropy-coded": dataclasses.replace(PACKED, entropy_model=b"")}
HEAD_SIZE = 20  # bytes
FRAMES = 436


def walk(frames: int, seed: int = 0) -> np.ndarray:
    """Codes that wander, so that blocks of them differ in size."""
    steps = np.random.default_rng(seed).integers(-1, 2, (1, 3, frames))
    return np.cumsum(steps, axis=-1) % 16


CODES = walk(FRAMES)
FILES = {name: pack(CODES, info) for name, info in CODINGS.items()}
OTHERS = {name: pack(walk(600, seed=1), info) for name, info in CODINGS.items()}  # longer ones
both_codings = pytest.mark.parametrize("name", FILES)


def recover(data: bytes, codes: np.ndarray = CODES) -> Reader:
    """Read a damaged file, and check its codes around what is lost and at the end."""
    reader = Reader(io.BytesIO(data), recover=True)
    num_frames = reader.header.num_frames
    for start, stop in (*reader.damage.lost, (num_frames, num_frames)):
        assert (reader.read(start, min(stop, start + 8)) == -1).all()
        for first, last in ((max(0, start - 8), start), (stop, min(stop + 8, num_frames))):
            read = reader.read(first, last)
            if (read >= 0).all():  # no other lost span is so near
                np.testing.assert_array_equal(read, codes[..., first:last])
    return reader


def lost_frames(reader: Reader) -> int:
    return sum(stop - start for start, stop in reader.damage.lost)


@both_codings
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_lost_byte_loses_only_the_blocks_it_was_in(name, count):
    data = FILES[name]
    for position in range(HEAD_SIZE, len(data) - 40, 41):
        reader = recover(data[:position] + data[position + count :])
        assert 0 < lost_frames(reader) <= 16
        assert reader.header.num_frames == FRAMES
        assert not reader.damage.end_missing


@both_codings
@pytest.mark.parametrize("noise", [b"x", bytes(3000), bytes(range(256)) * 8])
def test_added_bytes_lose_only_the_block_they_are_in(name, noise):
    data = FILES[name]
    for position in range(HEAD_SIZE, len(data) - 40, 193):
        reader = recover(data[:position] + noise + data[position:])
        assert lost_frames(reader) <= 8
        assert reader.header.num_frames == FRAMES


@both_codings
def test_overwriting_or_cutting_out_a_long_piece_loses_that_piece_alone(name):
    data = FILES[name]
    start, stop = len(data) * 2 // 5, len(data) * 4 // 5  # 22 blocks
    for damaged in (data[:start] + bytes(stop - start) + data[stop:], data[:start] + data[stop:]):
        reader = recover(damaged)
        assert reader.header.num_frames == FRAMES
        assert lost_frames(reader) <= FRAMES * 2 // 5 + 24
        assert not reader.damage.end_missing


@both_codings
def test_appended_bytes_lose_nothing(name):
    data = FILES[name]
    another_head = pack(walk(99), dataclasses.replace(CODINGS[name], gain=0.5))
    for extra in (
        b"\0",
        bytes(5000),
        b"junk " * 2000,
        data,
        OTHERS[name],
        another_head,
        data[:100],
    ):
        reader = recover(data + extra)
        assert not reader.damage
        assert reader.damage.extra_bytes == len(extra)
        assert reader.header == Reader(io.BytesIO(data)).header
        assert f"{len(extra)} bytes behind the end" in reader.damage.describe()


@both_codings
def test_a_damaged_file_with_another_behind_it_does_not_borrow_its_blocks(name):
    data = bytearray(FILES[name])
    data[-30] ^= 1  # in the last sections
    reader = recover(bytes(data) + OTHERS[name])
    assert reader.damage
    assert reader.header.num_frames <= FRAMES


@both_codings
def test_a_missing_end_is_always_reported(name):
    data = FILES[name]
    for size in range(len(data) - 1, 60, -29):
        reader = recover(data[:size])
        assert reader.damage.end_missing
        assert "the end is missing" in reader.damage.describe()
        assert not reader.damage.lost


@both_codings
def test_nothing_is_believed_without_the_head(name):
    data = FILES[name]
    damaged = [bytes([*data[:i], data[i] ^ 1, *data[i + 1 :]]) for i in range(HEAD_SIZE)]
    for without in (data[HEAD_SIZE:], data[1:], *damaged):
        with pytest.raises(FileFormatError):
            Reader(io.BytesIO(without), recover=True)


@both_codings
def test_a_damaged_last_block_is_a_lost_span_of_a_known_length(name):
    data = bytearray(FILES[name])
    data[-10] ^= 1
    reader = recover(bytes(data))
    assert reader.damage.lost == ((432, 436),)
    assert reader.damage.lost_seconds == ((8.64, 8.72),)
    assert not reader.damage.end_missing
    assert reader.damage.describe() == "lost: 8.64 to 8.72 s"


@both_codings
def test_a_whole_file_is_no_damage(name):
    damage = recover(FILES[name]).damage
    assert not damage
    assert damage.describe() == ""


def test_more_lost_blocks_than_the_file_could_hold_are_refused():
    info = dataclasses.replace(PACKED, block_length=1 << 20, num_codebooks=1)
    head = pack(np.zeros((1, 1, 0), np.int16), info)[:HEAD_SIZE]
    for block in range(1, 9):  # the end says that so many blocks of 20 hours come before it
        body = (320 * block << 20).to_bytes(5, "big") + b"\x50"
        crc = zlib.crc32(body, zlib.crc32(block.to_bytes(8, "big"), zlib.crc32(head)))
        data = head + body + crc.to_bytes(4, "big")
        assert len(data) == 30
        with pytest.raises(FileFormatError, match="neither"):
            Reader(io.BytesIO(data), recover=True)


@both_codings
def test_lost_frames_are_no_more_than_the_file_could_hold(name):
    info = CODINGS[name]
    head = FILES[name][:HEAD_SIZE]
    last = pack(CODES[..., :4], info)[HEAD_SIZE:]
    block = last[: -4 - 4]  # without counts and checksum
    for index in (2, 3, 40, 400):
        samples = (index * 8 + 4) * 320
        size = (samples.bit_length() + 7) // 8
        body = block + samples.to_bytes(size, "big") + bytes([size << 4])
        crc = zlib.crc32(body, zlib.crc32(index.to_bytes(8, "big"), zlib.crc32(head)))
        data = head + body + crc.to_bytes(4, "big")
        try:
            frames = Reader(io.BytesIO(data), recover=True).header.num_frames
        except FileFormatError:
            continue
        assert frames <= 16 * len(data)


@both_codings
def test_noise_costs_time_in_proportion_to_its_size(name):
    rng = np.random.default_rng(0)
    data = FILES[name]
    middle = len(data) // 2
    start = time.process_time()
    for noise in (rng.bytes(1 << 19), bytes(1 << 19), b"\0\0\x05" * (1 << 17)):
        reader = recover(data[:middle] + noise + data[middle:])
        assert lost_frames(reader) <= 8
    assert time.process_time() - start < 10


def test_many_damaged_blocks_cost_no_more_time_than_a_few():
    for name in CODINGS:
        data = bytearray(OTHERS[name])
        for position in range(50, len(data), 100):
            del data[position]
        start = time.process_time()
        reader = Reader(io.BytesIO(bytes(data)), recover=True)
        assert 0 < lost_frames(reader) < 400
        assert time.process_time() - start < 2


def test_checksums_are_those_of_zlib():
    data = np.random.default_rng(0).bytes(3000)
    sums = prefix_sums(data)
    assert sums.tolist() == [zlib.crc32(data[:size]) for size in range(len(data) + 1)]
    body, before = data[:1234], 0xDEADBEEF
    shifted = zlib.crc32(body, before) ^ zlib.crc32(body)
    assert unshift(shifted, len(body)) == before
    assert Unshift(len(body))(np.array([shifted, 0], np.uint32)).tolist() == [before, 0]
    numbers = checksums_of_numbers(250, 260, 7)
    assert numbers.tolist() == [zlib.crc32(n.to_bytes(8, "big"), 7) for n in range(250, 260)]
