"""What is written to a .dacp file comes back, whole, in pieces and by an independent decoder."""

import contextlib
import dataclasses
import io
import math
import tracemalloc

import numpy as np
import pytest
from bitstream_second_decoder import decode
from hypothesis import given, settings
from hypothesis import strategies as st

from codecplus.bitstream import Header, Reader, StreamInfo, Writer, pack, unpack
from codecplus.errors import FileFormatError, InputError

INFO = StreamInfo(
    fingerprint=bytes(range(16)),
    sample_rate=16000,
    original_sample_rate=16000,
    channels=1,
    num_codebooks=4,
    codebook_size=1024,
    hop_length=320,
)


def random_codes(info, frames, seed=0):
    shape = (info.channels, info.num_codebooks, frames)
    return np.random.default_rng(seed).integers(0, info.codebook_size, shape, dtype=np.int16)


@st.composite
def streams(draw):
    return StreamInfo(
        fingerprint=draw(st.binary(min_size=8, max_size=8) | st.binary(min_size=16, max_size=16)),
        sample_rate=draw(st.sampled_from([16000, 24000, 44100, 1000, 2**24 - 1])),
        original_sample_rate=draw(st.sampled_from([8000, 16000, 48000, 7, 2**24 - 1])),
        channels=draw(st.sampled_from([1, 1, 2, 3, 255])),
        num_codebooks=draw(st.sampled_from([1, 2, 9, 255])),
        codebook_size=2 ** draw(st.integers(1, 15)),
        hop_length=draw(st.sampled_from([1, 320, 512, 65535])),
        gain=draw(st.sampled_from([1.0]) | st.floats(2**-20, 2**20, width=32)),
        block_length=draw(st.sampled_from([0, 1, 2, 3, 7, 64])),
    )


class Stream:
    """One stream and its codes, written in pieces."""

    def __init__(self, info, frames, cuts, seed):
        self.info, self.codes = info, random_codes(info, frames, seed)
        self.pieces = np.split(self.codes, sorted(cuts), axis=-1)
        file = io.BytesIO()
        with Writer(file, info) as writer:
            for piece in self.pieces:
                writer.write(piece)
        self.data = file.getvalue()


@st.composite
def written(draw):
    info = draw(streams())
    frames = draw(st.integers(0, max(1, min(200, 4000 // info.codes_per_frame))))
    return Stream(
        info, frames, draw(st.lists(st.integers(0, frames), max_size=5)), draw(st.integers(0, 1000))
    )


@given(written())
@settings(max_examples=150, deadline=None)
def test_codes_come_back_however_they_were_cut(stream):
    header, codes = unpack(stream.data)
    np.testing.assert_array_equal(codes, stream.codes)
    assert codes.dtype == np.int16
    assert stream.data == pack(stream.codes, stream.info)
    if stream.info.block_length == 0:  # the writer may have bounded it
        header = dataclasses.replace(header, block_length=0)
    for field in dataclasses.fields(StreamInfo):
        assert getattr(header, field.name) == getattr(stream.info, field.name)


@pytest.mark.parametrize("entropy_model", [None, b""])
@pytest.mark.parametrize(("rate", "hop", "frames"), [(16000, 320, 500), (44100, 512, 862)])
def test_a_block_lasts_ten_seconds_at_most(rate, hop, frames, entropy_model):
    info = dataclasses.replace(
        INFO,
        sample_rate=rate,
        original_sample_rate=rate,
        hop_length=hop,
        num_codebooks=1,
        entropy_model=entropy_model,
    )
    by_default = dataclasses.replace(info, block_length=info.frames_per_block)
    codes = random_codes(info, 2 * frames + 1) % 8
    short = pack(codes[..., :frames], info)  # ten seconds, to the byte as without a bound
    assert len(short) == len(pack(codes[..., :frames], by_default)) - 3
    assert Reader(io.BytesIO(short)).header.block_length == 0
    for count in (frames + 1, 2 * frames, 2 * frames + 1):
        for pieces in (1, 7, count):
            file = io.BytesIO()
            with Writer(file, info) as writer:
                for piece in np.array_split(codes[..., :count], pieces, axis=-1):
                    writer.write(piece)
            reader = Reader(io.BytesIO(file.getvalue()))
            assert reader.header.block_length == frames
            np.testing.assert_array_equal(reader.read(), codes[..., :count])


@given(written(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_seek_is_a_slice_of_the_whole(stream, data):
    reader = Reader(io.BytesIO(stream.data))
    start = data.draw(st.integers(0, reader.header.num_frames))
    stop = data.draw(st.integers(start, reader.header.num_frames))
    np.testing.assert_array_equal(reader.read(start, stop), stream.codes[..., start:stop])
    blocks = list(reader.blocks())
    assert all(block.shape[-1] <= stream.info.frames_per_block for block in blocks)
    np.testing.assert_array_equal(
        np.concatenate([stream.codes[..., :0], *blocks], axis=-1), stream.codes
    )


@given(written())
@settings(max_examples=60, deadline=None)
def test_a_decoder_written_from_the_documentation_agrees(stream):
    header = Reader(io.BytesIO(stream.data)).header
    facts, codes = decode(stream.data)
    np.testing.assert_array_equal(np.array(codes).reshape(stream.codes.shape), stream.codes)
    assert 1 << facts.pop("width") == header.codebook_size
    assert facts == {name: getattr(header, name) for name in facts}


@given(st.integers(0, 10**7), st.integers(-1, 300), st.sampled_from([8000, 16000, 44100, 48000]))
@settings(max_examples=100, deadline=None)
def test_lengths_and_numbers_of_frames_survive_the_file(num_samples, excess, rate):
    info = dataclasses.replace(INFO, original_sample_rate=rate, num_codebooks=1, codebook_size=2)
    frames = max(0, math.ceil(num_samples * 16000 / (rate * 320)) + excess)
    header, codes = unpack(pack(np.zeros((1, 1, frames), np.int8), info, num_samples=num_samples))
    assert (header.num_samples, header.num_frames, codes.shape[-1]) == (num_samples, frames, frames)


def test_a_seek_reads_the_blocks_it_needs_and_no_other():
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size=-1):
            self.taken += size
            return super().read(size)

    file = Counting(pack(random_codes(INFO, 20000), INFO))
    reader = Reader(file)
    file.taken = 0
    reader.read(9000, 9001)
    assert file.taken <= 4100


def test_writing_and_reading_an_hour_takes_little_memory(tmp_path):
    info = dataclasses.replace(
        INFO, sample_rate=44100, original_sample_rate=44100, hop_length=512, num_codebooks=9
    )
    second = random_codes(info, 86)
    tracemalloc.start()
    with open(tmp_path / "hour.dacp", "wb") as file, Writer(file, info) as writer:
        for _ in range(3600):
            writer.write(second)
    with open(tmp_path / "hour.dacp", "rb") as file:
        frames = sum(block.shape[-1] for block in Reader(file).blocks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames == 86 * 3600
    assert peak < 2**20


def test_the_output_need_not_seek():
    class Pipe:
        def __init__(self):
            self.data = b""

        def write(self, data):
            self.data += data

    pipe, codes = Pipe(), random_codes(INFO, 2000)
    with Writer(pipe, INFO) as writer:
        writer.write(codes)
    np.testing.assert_array_equal(unpack(pipe.data)[1], codes)


def test_the_length_defaults_to_all_that_the_frames_hold():
    info = dataclasses.replace(INFO, original_sample_rate=48000)
    assert unpack(pack(random_codes(info, 5), info))[0].num_samples == 5 * 960


def test_an_exception_leaves_a_file_that_is_refused():
    file = io.BytesIO()
    with contextlib.suppress(KeyboardInterrupt), Writer(file, INFO) as writer:
        writer.write(random_codes(INFO, 2000))
        raise KeyboardInterrupt
    with pytest.raises(FileFormatError):
        unpack(file.getvalue())


@pytest.mark.parametrize(
    ("rate", "hop", "codebooks", "fingerprint"),
    [
        (16000, 320, 4, 8),
        (24000, 320, 3, 8),
        (44100, 512, 3, 8),
        (16000, 320, 6, 16),
        (24000, 320, 32, 16),
    ],
)
def test_ten_seconds_are_within_one_percent_of_the_nominal_bitrate(
    rate, hop, codebooks, fingerprint
):
    info = dataclasses.replace(
        INFO,
        fingerprint=bytes(fingerprint),
        sample_rate=rate,
        original_sample_rate=rate,
        hop_length=hop,
        num_codebooks=codebooks,
    )
    size = len(pack(random_codes(info, math.ceil(10 * rate / hop)), info, num_samples=10 * rate))
    assert size <= 1.01 * codebooks * 10 * rate / hop * 10 / 8


def test_a_short_file_has_33_bytes_beside_its_codes():
    assert len(pack(random_codes(INFO, 500), INFO, num_samples=160000)) == 2500 + 33


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((1, 4, 3)), "expected integer codes, got float64"),
        (np.zeros((1, 3, 3), int), r"expected codes of shape \(1, 4, frames\), got \(1, 3, 3\)"),
        (np.zeros((4, 3), int), r"got \(4, 3\)"),
        (np.full((1, 4, 3), 1024), "expected codes from 0 to 1023, got 1024 to 1024"),
        (np.full((1, 4, 3), -1), "expected codes from 0 to 1023, got -1 to -1"),
        (np.full((1, 4, 3), 2**64 - 1, np.uint64), "expected codes from 0 to 1023"),
    ],
)
def test_impossible_codes_are_refused_before_anything_is_written(codes, message):
    file = io.BytesIO()
    writer = Writer(file, INFO)
    size = len(file.getvalue())
    with pytest.raises(InputError, match=message):
        writer.write(codes)
    assert len(file.getvalue()) == size


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("fingerprint", b"short", "fingerprint of 16 or 8 bytes, got 5"),
        ("fingerprint", "0123456789abcdef", "fingerprint of 16 or 8 bytes, got str"),
        ("sample_rate", 0, "sample_rate from 1 to 16777215, got 0"),
        ("sample_rate", 44100.0, "an integer sample_rate, got float"),
        ("channels", 10**9, "channels from 1 to 255"),
        ("codebook_size", 1000, "a power of two, got 1000"),
        ("codebook_size", 2**16, "codebook_size from 2 to 32768"),
        ("block_length", 2**24 - 1, "blocks of at most 16777216 bytes"),
        ("gain", 0.0, "positive, finite float32, got 0.0"),
        ("gain", float("nan"), "got nan"),
        ("gain", 1e300, "got 1e\\+300"),
        ("gain", None, "got None"),
    ],
)
def test_a_header_says_what_it_expected(field, value, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(INFO, **{field: value})


def test_a_length_that_the_frames_cannot_hold_is_refused():
    with pytest.raises(InputError, match="num_samples of at most 3520 for 10 frames, got 3521"):
        pack(random_codes(INFO, 10), INFO, num_samples=3521)
    with pytest.raises(InputError, match="num_samples from 0"):
        pack(random_codes(INFO, 10), INFO, num_samples=-1)


def test_a_header_accepts_numpy_numbers_and_rounds_the_gain():
    info = dataclasses.replace(INFO, sample_rate=np.int64(16000), gain=np.float64(0.1))
    assert type(info.sample_rate) is int
    assert info.gain == float(np.float32(0.1))
    fields = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    assert Header(**fields, num_samples=0, num_frames=0).gain == info.gain


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 3), (0, 11), (11, None)])
def test_frames_outside_the_file_are_refused(start, stop):
    reader = Reader(io.BytesIO(pack(random_codes(INFO, 10), INFO)))
    with pytest.raises(InputError, match="<= 10 frames"):
        reader.read(start, stop)


def test_a_closed_stream_takes_nothing_more():
    writer = Writer(io.BytesIO(), INFO)
    writer.close(num_samples=0)
    with pytest.raises(InputError, match="closed"):
        writer.write(random_codes(INFO, 1))
    with pytest.raises(InputError, match="closed"):
        writer.close()


def test_a_pipe_cannot_be_read_at_random():
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    with pytest.raises(InputError, match=r"got a pipe; read it into io\.BytesIO first"):
        Reader(Pipe())
