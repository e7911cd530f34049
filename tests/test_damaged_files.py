"""Damaged, hostile and endless files as a user meets them: what is lost is told as data, and no
file becomes larger than it may.
"""

import dataclasses
import io
import json
import tracemalloc
import zlib

import numpy as np
import pytest
from tiny import GEOMETRIES, tiny_model

from codecplus import Codec, load_codec
from codecplus.bitstream import pack
from codecplus.bitstream.header import info_to_bytes
from codecplus.cli import main
from codecplus.decompression import DamageWarning
from codecplus.errors import FileFormatError, InputError
from codecplus.utils import load_audio

HOP = 320


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(tiny_model(**GEOMETRIES["16khz"]))


def some_codes(codec: Codec, frames: int) -> np.ndarray:
    shape = (1, codec.num_codebooks, frames)
    return np.random.default_rng(0).integers(0, codec.codebook_size, shape)


def small_blocks(codec: Codec, frames: int = 1000):
    """A file in blocks of 100 frames, and its codes."""
    info = dataclasses.replace(codec.stream_info(16000, 1), block_length=100)
    codes = some_codes(codec, frames)
    return pack(codes, info), codes[0]


def test_lost_spans_are_silent_and_the_rest_is_unchanged(codec):
    data, codes = small_blocks(codec)
    whole = codec.decode(codes)
    damaged = bytearray(data)
    damaged[len(data) // 3] ^= 1
    del damaged[len(data) * 2 // 3]
    damage = codec.find_damage(bytes(damaged))
    assert damage.lost == ((300, 400), (600, 700))
    with pytest.warns(DamageWarning, match="6.00 to 8.00 s, 12.00 to 14.00 s") as told:
        heard = codec.decompress(bytes(damaged), recover=True)
    assert told[0].message.damage == damage
    assert heard.shape == whole.shape
    margin = codec.network.decoder_context
    position = 0
    for start, stop in (*damage.lost, (1000, 1000)):
        good = slice(HOP * position, HOP * (start - margin))
        np.testing.assert_allclose(heard[good], whole[good], atol=1e-5)
        assert not heard[HOP * (start + 4) : HOP * stop].any()
        position = stop + margin + 1
    with pytest.warns(DamageWarning):
        part = codec.decompress(bytes(damaged), start=5, duration=4, recover=True)
    np.testing.assert_allclose(part, heard[5 * 16000 : 9 * 16000], atol=1e-5)


def test_lost_spans_do_not_go_through_the_network(codec, monkeypatch):
    data, _ = small_blocks(codec)
    cut = bytearray(data)
    cut[400:-400] = bytes(len(data) - 800)  # eight of ten blocks
    decode_blocks = codec.network.decode_blocks
    decoded = []

    def counted(blocks):
        for audio in decode_blocks(blocks):
            decoded.append(audio.shape[-1] // HOP)
            yield audio

    monkeypatch.setattr(codec.network, "decode_blocks", counted)
    with pytest.warns(DamageWarning):
        assert len(codec.decompress(bytes(cut), recover=True)) == 1000 * HOP
    lost = sum(stop - start for start, stop in codec.find_damage(bytes(cut)).lost)
    assert lost >= 800
    assert sum(decoded) <= 1000 - lost + 4 + 2 * codec.network.decoder_context


def test_a_missing_end_gives_a_warning_and_extra_bytes_give_none(codec):
    data, _ = small_blocks(codec)
    with pytest.warns(DamageWarning, match="the end is missing"):
        assert len(codec.decompress(data[:-1], recover=True)) == 1000 * HOP
    assert codec.find_damage(data[:-1]).end_missing
    whole = codec.decompress(data)
    np.testing.assert_array_equal(codec.decompress(data + data, recover=True), whole)
    assert codec.find_damage(data + b"junk").extra_bytes == 4


def test_a_file_may_become_no_longer_than_max_seconds(codec):
    data, _ = small_blocks(codec)
    for read in (codec.decompress, codec.read_codes):
        with pytest.raises(InputError, match=r"at most 19 s of audio, got one of 20 s.*max_secon"):
            read(data, max_seconds=19)
        with pytest.raises(InputError, match="max_seconds above 0"):
            read(data, max_seconds=-1)
        read(data, max_seconds=20)
        read(data, max_seconds=None)
    assert len(codec.decompress(data, start=10, duration=2, max_seconds=2)) == 32000


def test_a_day_is_the_default_limit_and_is_checked_before_memory_is_taken(codec):
    info = dataclasses.replace(codec.stream_info(16000, 1, n_quantizers=1), entropy_model=b"")
    data = long_silence(info, frames=50 * 86400 + 1)
    assert len(data) < 300_000
    tracemalloc.start()
    for read in (codec.decompress, codec.read_codes):
        with pytest.raises(InputError, match="at most 86400 s of audio"):
            read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * len(data)


def long_silence(info, frames: int) -> bytes:
    """A legal file, all checksums right, of blocks that hold as many frames as bytes may."""
    info = dataclasses.replace(info, block_length=1 << 16)
    head = info_to_bytes(info)
    data = head
    num_blocks, rest = divmod(frames, 1 << 16)
    for index in range(num_blocks + 1):
        length = 1 << 16 if index < num_blocks else rest
        block = b"\1" + bytes(-(-length // 16) - 1)
        body = len(block).to_bytes(3, "big") + block
        if index == num_blocks:
            body += (frames * HOP).to_bytes(5, "big") + b"\x50"
        seed = zlib.crc32(index.to_bytes(8, "big"), zlib.crc32(head))
        data += body + zlib.crc32(body, seed).to_bytes(4, "big")
    return data


def test_a_rate_that_would_make_audio_huge_is_refused(codec):
    info = codec.stream_info(16000, 1)
    data = pack(some_codes(codec, 100), dataclasses.replace(info, original_sample_rate=1_000_000))
    for read in (codec.decompress, codec.read_codes):
        with pytest.raises(FileFormatError, match="at most 256000 Hz from a model of 16000 Hz"):
            read(data)
    with pytest.raises(InputError, match="resample it first"):
        codec.compress(np.zeros(1000, np.float32), sample_rate=1_000_000)
    assert codec.decompress(codec.compress(np.zeros(999, np.float32), sample_rate=192000)).any()


@pytest.fixture(scope="module")
def live_file():
    """A file of the embedded live checkpoint: 12 s, three blocks."""
    codec = load_codec("dac-16khz-live")
    info = dataclasses.replace(codec.stream_info(16000, 1, n_quantizers=1), block_length=250)
    codes = np.random.default_rng(0).integers(0, codec.codebook_size, (1, 1, 600))
    return pack(codes, info)


def test_the_command_line_recovers_and_says_what_is_lost(live_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    damaged = bytearray(live_file)
    damaged[60] ^= 1
    (tmp_path / "damaged.dacp").write_bytes(damaged)
    (tmp_path / "cut.dacp").write_bytes(live_file[:-1])
    (tmp_path / "more.dacp").write_bytes(live_file + b"junk")
    for name in ("cut", "more"):
        assert main(["decode", f"{name}.dacp", "-o", "x.wav"]) == 2
        assert "--recover" in capsys.readouterr().err
        assert not (tmp_path / "x.wav").exists()
    assert main(["info", "cut.dacp", "damaged.dacp", "more.dacp", "--recover", "--json"]) == 0
    cut, lost, more = json.loads(capsys.readouterr().out)
    assert (cut["end_missing"], cut["lost"], cut["extra_bytes"]) == (True, [], 0)
    assert (lost["end_missing"], lost["lost"], lost["extra_bytes"]) == (False, [[0.0, 5.0]], 0)
    assert (more["end_missing"], more["lost"], more["extra_bytes"]) == (False, [], 4)
    for name, seconds in {"cut": 10, "damaged": 12, "more": 12}.items():
        assert main(["decode", f"{name}.dacp", "-o", f"{name}.wav", "--recover"]) == 0
        assert len(load_audio(f"{name}.wav")[0]) == 16000 * seconds
        told = capsys.readouterr().err
        assert ("the end is missing" in told) == (name == "cut")
        assert ("lost: 0.00 to 5.00 s" in told) == (name == "damaged")
    assert main(["decode", "more.dacp", "-f", "--recover", "--max-seconds", "9"]) == 2
    assert "at most 9 s of audio, got one of 12 s" in capsys.readouterr().err


def test_each_damaged_file_of_a_folder_is_told(live_file, tmp_path, capsys):
    names = ["a.dacp", "b.dacp"]
    for name in names:  # the same damage in both: of two equal warnings Python shows the first
        (tmp_path / name).write_bytes(live_file[:-1])
    paths = [str(tmp_path / name) for name in names]
    assert main(["decode", *paths, "-o", str(tmp_path / "out"), "--recover", "-q"]) == 0
    said = sorted(capsys.readouterr().err.splitlines())  # they are decoded at the same time
    assert said == [
        f"codecplus: {path} is damaged; the end is missing: the recording may have been longer"
        for path in paths
    ]


def test_parts_that_are_no_part_are_refused(codec):
    data, _ = small_blocks(codec)
    nan, inf = float("nan"), float("inf")
    for part in ({"start": nan}, {"start": inf}, {"start": -1.0}, {"start": 20.1}):
        with pytest.raises(InputError, match=r"a part within the 20\.000 s of the file"):
            codec.decompress(data, **part)
    for duration in (nan, -1.0):
        with pytest.raises(InputError, match=r"a part within the 20\.000 s of the file"):
            codec.decompress(data, duration=duration)
    assert len(codec.decompress(data, start=19, duration=inf)) == 16000


def official(codes: np.ndarray, **fields) -> bytes:
    """A `.dac` file as the original implementation writes it."""
    metadata = {
        "input_db": np.array([-20.0], np.float32),
        "original_length": codes.shape[-1] * HOP,
        "sample_rate": 16000,
        "chunk_length": codes.shape[-1],
        "channels": 1,
        "padding": False,
        "dac_version": "1.0.0",
        **fields,
    }
    file = io.BytesIO()
    content = {"codes": codes.astype(np.uint16), "metadata": metadata}
    np.save(file, content, allow_pickle=True)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def test_windows_of_an_official_file_that_are_too_small_are_refused(codec):
    least = 2 * codec.model.decoder_reach[1] + 1
    codes = some_codes(codec, 3 * least)
    one_sentence = f"windows of at least {least} frames.*in windows of {least - 1}; .*--model"
    with pytest.raises(FileFormatError, match=one_sentence):
        codec.decompress(official(codes, chunk_length=least - 1))
    audio = codec.decompress(official(codes, chunk_length=least, original_length=3))
    assert audio.shape == (3,)
