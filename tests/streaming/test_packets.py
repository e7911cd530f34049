"""Packets bring codes whole or not at all; whatever is lost, the clock goes on and the next packet
is understood.
"""

import doctest
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import GEOMETRIES, tiny_model

import codecplus.streaming.packets
from codecplus.bitstream.packing import pack_codes
from codecplus.errors import FileFormatError, InputError
from codecplus.streaming import (
    ConcealingDecoder,
    DecoderStream,
    PacketFormat,
    PacketGapError,
    PacketReader,
    PacketWriter,
    StreamingDecoder,
)

MODELS = {causal: tiny_model(causal, **GEOMETRIES["odd"]) for causal in (False, True)}
DECODERS = {causal: StreamingDecoder(model) for causal, model in MODELS.items()}
FORMAT = PacketFormat(num_codebooks=4, codebook_size=64, header=b"a model")


def some_codes(
    frames: int, channels: int = 1, codebooks: int = 4, size: int = 64, seed: int = 0
) -> np.ndarray:
    return (
        np.random.default_rng(seed)
        .integers(0, size, (channels, codebooks, frames))
        .astype(np.int16)
    )


def packed(
    codes: np.ndarray, form: PacketFormat = FORMAT, frames: int = 1, header_every: int = 10**9
) -> list[bytes]:
    writer = PacketWriter(form)
    pieces = (codes[..., start : start + frames] for start in range(0, codes.shape[-1], frames))
    return [
        writer.pack(piece, with_header=i % header_every == 0) for i, piece in enumerate(pieces)
    ] + [writer.end()]


def test_examples():
    result = doctest.testmod(codecplus.streaming.packets)
    assert result.attempted
    assert not result.failed


@settings(deadline=None)
@given(
    channels=st.integers(1, 3),
    codebooks=st.integers(1, 33),
    bits=st.integers(1, 15),
    frames=st.integers(1, 255),
    per_packet=st.integers(1, 255),
    header=st.binary(max_size=255),
)
def test_packed_codes_are_read_back(channels, codebooks, bits, frames, per_packet, header):
    form = PacketFormat(
        channels=channels, num_codebooks=codebooks, codebook_size=1 << bits, header=header
    )
    codes = some_codes(frames, channels, codebooks, 1 << bits)
    reader = PacketReader()
    received = [reader.read(packet) for packet in packed(codes, form, per_packet)]
    assert reader.format == form
    assert reader.ended
    assert not any(one.lost for one in received)
    assert np.array_equal(np.concatenate([one.codes for one in received], axis=-1), codes)


def test_a_packet_is_what_the_page_says():
    codes = some_codes(2)
    first, second, end = packed(codes)
    assert first[:7].hex(" ") == "da 11 00 00 00 00 01"
    assert first[7:18] == bytes([1, 4, 6, 7]) + b"a model"
    assert first[18:-4] == pack_codes(codes[0, :, 0], 6)
    assert second[:7].hex(" ") == "da 10 00 00 00 01 01"
    assert second[-4:] == zlib.crc32(first[7:18] + second[:-4]).to_bytes(4, "big")
    assert end[:-4].hex(" ") == "da 10 00 00 00 02 00"


@pytest.mark.parametrize("causal", [True, False])
@settings(max_examples=8, deadline=None)
@given(
    loss=st.floats(0.01, 0.2),
    per_packet=st.integers(1, 3),
    channels=st.sampled_from([1, 2]),
    seed=st.integers(0),
)
def test_losses_cost_no_sample_and_no_frame_longer_than_the_decoder_remembers(
    causal, loss, per_packet, channels, seed
):
    hop, (past, future) = 15, MODELS[causal].decoder_reach
    codes = some_codes(150, channels)
    form = PacketFormat(num_codebooks=4, codebook_size=64, channels=channels)
    batch, row = (None, 0) if channels == 1 else (channels, slice(None))
    packets = packed(codes, form, per_packet)
    kept = np.random.default_rng(seed).random(len(packets)) >= loss
    kept[[0, -1]] = True

    reader, decoder = PacketReader(), ConcealingDecoder(DECODERS[causal], batch)
    pieces, good = [], np.ones(150, bool)
    for i, packet in enumerate(packets):
        if kept[i]:
            received = reader.read(packet)
            pieces.append(decoder.push(received.codes[row], received.lost))
        else:
            good[i * per_packet : (i + 1) * per_packet] = False
    assert reader.lost == 150 - good.sum()
    audio = np.concatenate([*pieces, decoder.flush()], axis=-1)

    clean = DecoderStream(DECODERS[causal], batch)
    expected = np.concatenate([clean.push(codes[row]), clean.flush()], axis=-1)
    assert audio.shape == expected.shape
    for frame in range(150):
        if good[max(0, frame - past - 1) : frame + future + 1].all():
            here = slice(frame * hop, (frame + 1) * hop)
            np.testing.assert_allclose(audio[..., here], expected[..., here], atol=1e-5, rtol=1e-5)
    assert np.isfinite(audio).all()


@pytest.mark.parametrize("causal", [True, False])
def test_a_gap_fades_to_silence_and_back(causal):
    hop, (_, future) = 15, MODELS[causal].decoder_reach
    codes = some_codes(60)[0]
    decoder = ConcealingDecoder(DECODERS[causal])
    audio = np.concatenate(
        [decoder.push(codes[:, :30]), decoder.push(codes[:, 30:], lost=100), decoder.flush()]
    )
    frames = audio.reshape(-1, hop)
    assert len(frames) == 160
    assert frames[30].any()
    assert not frames[34:130].any()
    assert (np.abs(frames[130:]).max(axis=1) > 0).all()
    assert abs(frames[130, 0]) == 0
    # The decoder repeats frames until the gap is silent, and no longer.
    assert decoder.stream.network is DECODERS[causal]
    again = ConcealingDecoder(DECODERS[causal])
    again.push(codes)
    again.conceal(1000)
    assert again.stream.state.received <= 60 + 4 + future + 1


def test_the_clock_goes_on_while_nothing_comes():
    decoder, reader = ConcealingDecoder(DECODERS[True]), PacketReader()
    packets = packed(some_codes(10), frames=2)
    assert decoder.conceal(3).shape == (45,)  # before the first packet
    assert not decoder.conceal().any()
    assert decoder.push(reader.read(packets[0]).codes[0]).shape == (30,)
    reader.skip(3)  # frames 2 to 4 are due and not there
    assert decoder.conceal(3).shape == (45,)
    assert reader.read(packets[1]) is None  # now it comes
    assert reader.late == 1
    half = reader.read(packets[2])  # of its frames 4 and 5 one can still be used
    assert half.lost == 0
    assert np.array_equal(half.codes, some_codes(10)[..., 5:6])
    assert reader.lost == 3


def test_joining_late_waits_for_a_header():
    codes = some_codes(20)
    packets, reader = packed(codes, header_every=8), PacketReader()
    assert [reader.read(packet) for packet in packets[3:8]] == [None] * 5
    received = [reader.read(packet) for packet in packets[8:]]
    assert received[0].lost == 0
    assert np.array_equal(np.concatenate([one.codes for one in received], axis=-1), codes[..., 8:])


def test_packets_that_come_twice_or_late_are_dropped():
    packets, reader = packed(some_codes(6)), PacketReader()
    assert [reader.read(packets[i]) is not None for i in (0, 0, 2, 1, 3, 3)] == [
        True,
        False,
        True,
        False,
        True,
        False,
    ]
    assert (reader.lost, reader.late) == (1, 3)


def test_the_end_of_a_stream_tells_of_losses_just_before_it():
    packets, reader = packed(some_codes(6)), PacketReader()
    reader.read(packets[0])
    received = reader.read(packets[-1])
    assert (received.lost, received.codes.shape, reader.ended) == (5, (1, 4, 0), True)
    assert ConcealingDecoder(DECODERS[True]).push(received.codes[0], received.lost).shape == (75,)


def test_numbers_begin_anew_after_four_billion_frames():
    writer, reader = PacketWriter(FORMAT), PacketReader()
    writer.frames = 2**32 - 2
    codes = some_codes(8)
    packets = [writer.pack(codes[..., i : i + 1], with_header=True) for i in range(8)]
    received = [reader.read(packets[i]) for i in (0, 1, 2, 5, 6, 7)]
    assert [one.lost for one in received] == [0, 0, 0, 2, 0, 0]


# ---- hostile packets


@given(data=st.data(), known=st.booleans())
def test_a_damaged_packet_is_refused_and_changes_nothing(data, known):
    packets, reader = (
        packed(some_codes(6), frames=2, header_every=data.draw(st.integers(1, 2))),
        PacketReader(),
    )
    if known:
        reader.read(packets[0])
    packet = bytearray(packets[2])
    bit = data.draw(st.integers(0, 8 * len(packet) - 1))
    packet[bit // 8] ^= 1 << bit % 8
    for damaged in (bytes(packet), bytes(packet[: bit // 8]), packets[2] + b"\0"):
        try:
            assert reader.read(damaged) is None  # without a header nothing can be said of it
            assert not known
        except FileFormatError:
            pass
    received = reader.read(packets[2])
    if received is not None:
        assert received.lost == (2 if known else 0)
        assert np.array_equal(received.codes, some_codes(6)[..., 4:])


@given(st.binary(max_size=64), st.booleans())
def test_arbitrary_bytes_are_refused(noise, marked):
    reader = PacketReader()
    with pytest.raises(FileFormatError):
        reader.read(b"\xda\x11" + noise if marked else noise)
    assert reader.format is None


def forged(number: int, frames: int, form: PacketFormat = FORMAT) -> bytes:
    packet = (
        bytes([0xDA, 0x10])
        + number.to_bytes(4, "big")
        + bytes([frames])
        + bytes(form.codes_size(frames))
    )
    return packet + zlib.crc32(packet, zlib.crc32(form.to_bytes())).to_bytes(4, "big")


def test_a_packet_too_far_ahead_is_refused():
    packets, reader = packed(some_codes(3)), PacketReader(max_gap=100)
    reader.read(packets[0])
    assert reader.read(forged(101, 1)).lost == 100
    with pytest.raises(
        FileFormatError, match="expected a packet at most 100 frames ahead, got one 101"
    ):
        reader.read(forged(203, 1))
    assert reader.read(forged(103, 1)).lost == 1  # the clock is where it was
    reader.rejoin()
    assert reader.read(forged(2**31, 1)).lost == 0


def test_a_packet_of_another_stream_is_refused():
    reader = PacketReader()
    reader.read(packed(some_codes(1))[0])
    other = packed(
        some_codes(2), PacketFormat(num_codebooks=4, codebook_size=64, header=b"another")
    )
    with pytest.raises(FileFormatError, match="the header of another"):
        reader.read(other[0])
    with pytest.raises(FileFormatError, match="of another stream"):
        reader.read(other[1])


def test_codes_that_no_packet_can_hold_are_refused():
    writer = PacketWriter(FORMAT)
    with pytest.raises(InputError, match=r"shape \(1, 4, 1 to 255\), got \(1, 4, 256\)"):
        writer.pack(np.zeros((1, 4, 256), int))
    with pytest.raises(InputError, match="from 0 to 63"):
        writer.pack(np.full((1, 4, 1), 64))
    assert writer.frames == 0
    with pytest.raises(InputError, match="power of two"):
        PacketFormat(num_codebooks=4, codebook_size=100)
    with pytest.raises(InputError, match="1 to 255 channels"):
        PacketFormat(num_codebooks=256, codebook_size=64)


def test_a_stream_conceals_no_more_than_it_received_and_five_seconds():
    decoder = ConcealingDecoder(DECODERS[True], batch=1)
    hop = decoder.hop_length
    writer = PacketWriter(FORMAT)
    reader = PacketReader()
    packets = []
    for _ in range(100):  # each one 2900 frames ahead of the last
        packets.append(writer.pack(some_codes(1)))
        writer.frames += 2900
    num_samples = 0
    for packet in packets:
        received = reader.read(packet)
        num_samples += decoder.push(received.codes, received.lost).shape[-1]
    num_samples += decoder.flush().shape[-1]
    assert reader.lost == 99 * 2900
    assert num_samples <= (100 + 250 + 100) * hop
    assert decoder.skipped >= reader.lost - 350


def test_a_gap_beyond_the_largest_has_an_error_of_its_own():
    writer = PacketWriter(FORMAT)
    reader = PacketReader(max_gap=10)
    reader.read(writer.pack(some_codes(1)))
    writer.frames += 11
    packet = writer.pack(some_codes(1))
    with pytest.raises(PacketGapError, match="11 frames ahead"):
        reader.read(packet)
    reader.rejoin()
    assert reader.read(packet).lost == 0
