"""Entropy-coded files: whatever codes go in come back, on a second decoder too, and damage costs
its block alone.
"""

import dataclasses
import io
import threading
import tracemalloc
import zlib

import numpy as np
import pytest
from bitstream_second_decoder import decode
from hypothesis import given, settings
from hypothesis import strategies as st

from codecplus import load_codec
from codecplus.bitstream import EntropyModel, Reader, StreamInfo, Writer, pack, unpack
from codecplus.errors import FileFormatError, InputError, ModelMismatchError

INFO = StreamInfo(
    fingerprint=bytes(range(8)),
    sample_rate=16000,
    original_sample_rate=16000,
    channels=1,
    num_codebooks=3,
    codebook_size=16,
    hop_length=320,
    entropy_model=b"",
)


def random_model(codebooks=3, width=4, lags=2, d=3, hidden=5, seed=0) -> EntropyModel:
    """An entropy model that predicts something, if nothing true."""
    rng, K, N, lows = np.random.default_rng(seed), codebooks, 1 << width, 1 << width // 2

    def weights(*shape, bound=127):
        return rng.integers(-bound, bound + 1, shape, dtype=np.int8)

    known = np.zeros((K, lags, K, d, 1), np.int8)
    for k in range(K):
        known[k, 0, :k], known[k, 1:, : k + 1] = 1, 1
    arrays = {
        "ranks": np.stack([rng.permutation(N) for _ in range(K)]).astype(np.int16),
        "codes": weights(K, N + 1, d),
        "hidden": weights(K, lags * K * d, hidden) * known.reshape(K, -1, 1),
        "hidden_bias": rng.integers(-9999, 9999, (K, hidden), dtype=np.int32),
        "hidden_shift": np.full(K, 8, np.uint8),
        "high": weights(K, hidden, N // lows),
        "high_bias": rng.integers(-9999, 9999, (K, N // lows), dtype=np.int32),
        "high_shift": np.full(K, 8, np.uint8),
        "low": weights(K, N // lows, hidden, lows),
        "low_bias": rng.integers(-9999, 9999, (K, N // lows, lows), dtype=np.int32),
        "low_shift": np.full(K, 9, np.uint8),
    }
    return EntropyModel(arrays, bytes(16))


def some_codes(info, frames, kind, seed=0):
    """Codes (C, K, T): noise, all the same, or a walk; with channels that repeat the first, and
    short frames.
    """
    rng = np.random.default_rng(seed)
    shape = (info.channels, info.num_codebooks, frames)
    codes = rng.integers(0, info.codebook_size, shape)
    if "same" in kind:
        codes[:] = codes[:1, :, :1]
    if "walk" in kind:
        codes = (
            codes[..., :1] + np.cumsum(rng.integers(0, 2, shape), axis=-1)
        ) % info.codebook_size
    if "copies" in kind:
        codes[1::2] = codes[:1]
    if "short" in kind:
        lengths = rng.integers(1, info.num_codebooks + 1, (info.channels, 1, frames))
        codes = np.where(np.arange(info.num_codebooks)[:, None] < lengths, codes, -1)
    return codes.astype(np.int16)


@st.composite
def files(draw):
    width, books = draw(st.sampled_from([2, 3, 4, 5, 10])), draw(st.integers(1, 4))
    model = None
    if draw(st.booleans()):
        more = books + draw(st.integers(0, 1))
        model = random_model(
            more, width, lags=draw(st.sampled_from([2, 3])), seed=draw(st.integers(0, 9))
        )
    info = dataclasses.replace(
        INFO,
        channels=draw(st.sampled_from([1, 1, 2, 3])),
        num_codebooks=books,
        codebook_size=1 << width,
        block_length=draw(st.sampled_from([0, 1, 3, 7])),
        entropy_model=model.identity if model else b"",
    )
    kind = draw(
        st.sampled_from(
            ["noise", "same", "walk", "noise copies", "walk short", "noise short copies"]
        )
    )
    codes = some_codes(info, draw(st.integers(0, 20)), kind, draw(st.integers(0, 99)))
    return info, model, codes, pack(codes, info, entropy=model)


def models(model):
    return {} if model is None else {model.identity: model}


@given(files(), st.data())
@settings(max_examples=60, deadline=None)
def test_codes_come_back_whole_and_in_parts(file, data):
    info, model, codes, written = file
    header, found = unpack(written, models(model))
    np.testing.assert_array_equal(found, codes)
    assert header.entropy_model == info.entropy_model
    start = data.draw(st.integers(0, codes.shape[-1]))
    stop = data.draw(st.integers(start, codes.shape[-1]))
    reader = Reader(io.BytesIO(written), models(model))
    np.testing.assert_array_equal(reader.read(start, stop), codes[..., start:stop])
    blocks = [codes[..., :0], *reader.blocks(start, stop)]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=-1), codes[..., start:stop])


@given(files())
@settings(max_examples=15, deadline=None)
def test_a_decoder_written_from_the_documentation_agrees(file):
    _, model, codes, written = file
    arrays = (
        None if model is None else {name: array.tolist() for name, array in model.arrays.items()}
    )
    _, found = decode(written, arrays)
    np.testing.assert_array_equal(np.array(found).reshape(codes.shape), codes)


@pytest.mark.parametrize(
    "way", [{}, {"rate_control": "vbr", "quality": 8}], ids=["constant", "variable"]
)
@pytest.mark.parametrize("name", ["dac-16khz-live", "dac-44khz-small"])
def test_a_decoder_written_from_the_documentation_reads_files_of_the_embedded_models(name, way):
    codec = load_codec(name)
    (model,) = codec.entropy_models.values()
    samples = np.arange(8 * codec.hop_length)
    audio = np.stack(
        [0.3 * np.sin(0.05 * samples) * (samples < 1500), 0.01 * np.sin(0.001 * samples**2)]
    )
    data = codec.compress(audio.astype(np.float32), sample_rate=codec.sample_rate, **way)
    facts, found = decode(data, {name: array.tolist() for name, array in model.arrays.items()})
    assert facts["entropy_model"] == model.identity
    assert data[data.index(model.identity) + 4 + 3] & 7 == (
        6 if way else 2
    )  # the network; codebooks per frame
    np.testing.assert_array_equal(found, unpack(data, codec.entropy_models)[1])


def test_a_frame_of_one_codebook_cannot_have_fewer():
    info = dataclasses.replace(INFO, num_codebooks=1)
    data = bytearray(pack(some_codes(info, 9, "noise"), info))
    data[17 + 3] |= 4
    crc = zlib.crc32(bytes(data[17:-4]), zlib.crc32(bytes(8), zlib.crc32(bytes(data[:17]))))
    with pytest.raises(FileFormatError, match="one codebook"):
        unpack(bytes(data[:-4]) + crc.to_bytes(4, "big"))


def big_info(**fields):
    return dataclasses.replace(INFO, num_codebooks=4, codebook_size=1024, **fields)


def test_noise_is_no_larger_than_packed_and_silence_nearly_free():
    info, packed = big_info(), big_info(entropy_model=None)
    noise, silence = some_codes(info, 3000, "noise"), some_codes(info, 3000, "same")
    assert len(pack(noise, info)) <= 1.01 * len(pack(noise, packed))
    assert len(pack(silence, info)) <= 0.02 * len(pack(silence, packed)) + 1000
    assert len(pack(some_codes(info, 3000, "walk"), info)) < 0.8 * len(pack(noise, packed))


def test_mono_stored_as_stereo_costs_nearly_nothing():
    mono, stereo = big_info(), big_info(channels=2)
    codes = some_codes(mono, 1000, "noise")
    assert len(pack(np.concatenate([codes, codes]), stereo)) < 1.02 * len(pack(codes, mono))


def test_the_bytes_do_not_depend_on_threads(monkeypatch):
    info, model = dataclasses.replace(INFO, entropy_model=random_model().identity), random_model()
    codes, results = some_codes(info, 300, "walk"), []

    def run():
        results.append(pack(codes, info, entropy=model))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1


def test_a_golden_file_reads_on_every_machine():
    model = random_model()
    info = dataclasses.replace(INFO, entropy_model=model.identity)
    codes = some_codes(info, 12, "walk")
    assert (model.identity.hex(), pack(codes, info, entropy=model).hex()) == GOLDEN


GOLDEN = (
    "0564effc",
    "da432b11214401400300010203040506070564effc00001500de4e57e9873643243751714c1850653e93f534800f002037043cf5",
)


def test_a_model_survives_its_file_and_names_itself():
    model = random_model()
    again = EntropyModel.from_bytes(model.to_bytes())
    assert again.identity == model.identity
    assert random_model(seed=1).identity != model.identity
    for data in (b"", b"x" * 100, model.to_bytes()[:-1], model.to_bytes()[:50]):
        with pytest.raises(FileFormatError, match="entropy model"):
            EntropyModel.from_bytes(data)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("codes", lambda a: a.astype(np.int16), "expected the arrays"),
        ("codes", lambda a: a[:, :-1], "fit together"),
        ("ranks", lambda a: a * 0, "every rank once"),
        ("high_shift", lambda a: a + 99, "at most 24 bits"),
        ("low_bias", lambda a: a + (1 << 30), "below 2\\*\\*23"),
        ("hidden", lambda a: a * 0 + 1, "looks at codes known already"),
    ],
)
def test_a_model_that_cannot_be_exact_is_refused(name, change, message):
    arrays = random_model().arrays
    with pytest.raises(FileFormatError, match=message):
        EntropyModel({**arrays, name: change(arrays[name])}, bytes(16))


def test_the_right_model_is_asked_for():
    model, other = random_model(), random_model(seed=1)
    info = dataclasses.replace(INFO, entropy_model=model.identity)
    data = pack(some_codes(info, 9, "walk"), info, entropy=model)
    assert (
        Reader(io.BytesIO(data)).header.num_frames == 9
    )  # what a file says of itself needs no model
    with pytest.raises(
        ModelMismatchError, match=f"{model.identity.hex()}.*got {other.identity.hex()}"
    ):
        unpack(data, {other.identity: other})
    with pytest.raises(InputError, match="the entropy model that the stream names"):
        Writer(io.BytesIO(), info, other)
    with pytest.raises(InputError, match="at least 4 codebooks of 16, got one of 3 of 16"):
        Writer(io.BytesIO(), dataclasses.replace(info, num_codebooks=4), model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"entropy_model": b"12345"}, "entropy_model of 4 bytes"),
        ({"codebook_size": 2}, "pack it"),
        ({"channels": 255, "num_codebooks": 255}, "pack it"),
        ({"block_length": 1 << 20}, "at most 1048576 codes"),
    ],
)
def test_shapes_that_cannot_be_entropy_coded_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(INFO, **fields)


def test_only_the_finest_codebooks_may_be_missing():
    codes = some_codes(INFO, 4, "noise")
    for hole in ((0, 0, 2), (0, 1, 2)):
        holed = codes.copy()
        holed[hole] = -1
        with pytest.raises(InputError, match="finest codebooks"):
            pack(holed, INFO)
    codes[0, 2, 2] = -1
    with pytest.raises(InputError, match="from 0 to 15, got -1"):
        pack(codes, dataclasses.replace(INFO, entropy_model=None))


# ---- damage

DAMAGED = dataclasses.replace(INFO, block_length=8)
CODES = some_codes(DAMAGED, 36, "walk")
FILE = pack(CODES, DAMAGED)


def test_every_flipped_bit_is_found():
    for position in range(len(FILE) * 8):
        data = bytearray(FILE)
        data[position // 8] ^= 1 << position % 8
        with pytest.raises((FileFormatError, ModelMismatchError)):
            unpack(bytes(data))


def test_a_file_cut_anywhere_is_refused_and_recovered_up_to_there():
    for size in range(len(FILE)):
        with pytest.raises(FileFormatError):
            unpack(FILE[:size])
        try:
            reader = Reader(io.BytesIO(FILE[:size]), recover=True)
        except FileFormatError:
            assert size < 60  # not one whole block
            continue
        frames = reader.header.num_frames
        assert not reader.damage.lost
        np.testing.assert_array_equal(reader.read(), CODES[..., :frames])
        assert frames >= 8 * ((size - 30) // 30 - 1)


@pytest.mark.parametrize("packed", [False, True])
def test_damage_loses_only_the_block_it_is_in(packed):
    info = dataclasses.replace(DAMAGED, entropy_model=None) if packed else DAMAGED
    whole = pack(CODES, info)
    for position in range(20, len(whole)):  # behind the head
        data = bytearray(whole)
        data[position] ^= 0x55
        reader = Reader(io.BytesIO(bytes(data)), recover=True)
        found = reader.read()
        assert sum(last - first for first, last in reader.damage.lost) <= 8
        frames = found.shape[-1]
        assert frames >= 32  # the end may be what is damaged
        good = found[0, 0] >= 0
        assert (~good).sum() == sum(last - first for first, last in reader.damage.lost)
        np.testing.assert_array_equal(found[..., good], CODES[..., np.flatnonzero(good)])
        assert frames == 36 or reader.damage  # a shorter or longer recording is never silent


def test_lost_and_doubled_bytes_lose_only_their_block():
    for position in range(40, len(FILE) - 40, 7):
        for data in (
            FILE[:position] + FILE[position + 3 :],
            FILE[:position] + b"xyz" + FILE[position:],
        ):
            reader = Reader(io.BytesIO(data), recover=True)
            assert (
                sum(last - first for first, last in reader.damage.lost) <= 16
            )  # two, where they meet
            assert reader.header.num_frames == 36


@pytest.mark.parametrize("packed", [False, True])
def test_recovery_believes_no_more_than_the_size_allows(packed):
    info = dataclasses.replace(DAMAGED, entropy_model=None if packed else b"")
    head = pack(CODES[..., :0], info)[:20]
    for block in (1 << 40, 5):  # the end says that so many blocks of 8 frames come before it
        body = bytes(0 if packed else 3) + (320 * 8 * block).to_bytes(8, "big") + b"\x80"
        crc = zlib.crc32(body, zlib.crc32(block.to_bytes(8, "big"), zlib.crc32(head)))
        with pytest.raises(FileFormatError, match="neither"):
            Reader(io.BytesIO(head + body + crc.to_bytes(4, "big")), recover=True)


def test_recovery_gives_up_on_a_file_made_to_be_slow():
    info = dataclasses.replace(DAMAGED, block_length=1 << 18)
    data = pack(CODES[..., :0], info)[:20] + b"\x02\x00\x00" * 100_000
    with pytest.raises(FileFormatError, match="neither"):
        Reader(io.BytesIO(data), recover=True)  # without a bound, it would take an hour


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_block_with_a_good_checksum_is_codes_or_one_error(block):
    head = FILE[:20]
    body = len(block).to_bytes(3, "big") + block + (6 * 320 + 1).to_bytes(2, "big") + b"\x20"
    data = head + body + zlib.crc32(head + bytes(8) + body).to_bytes(4, "big")
    tracemalloc.start()
    try:
        codes = unpack(data)[1]
        assert codes.shape == (1, 3, 7)
        assert codes.max() < 16
        assert codes.min() >= -1
    except FileFormatError:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 22
