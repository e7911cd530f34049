"""Every format is read whole, to its exact length, or refused in a sentence."""

import io
import struct
from fractions import Fraction

import numpy as np
import pytest
import soundfile
from audio_signals import noise

from codecplus.audio import containers
from codecplus.audio.files import AudioFileReader
from codecplus.audio.formats import AUDIO_SUFFIXES, CONTAINER_SUFFIXES, SOUNDFILE_SUFFIXES
from codecplus.errors import FileFormatError, MissingExtraError
from codecplus.utils import load_audio

RATE = 16000


def written(format, subtype="PCM_16", samples=5000) -> bytes:
    """A file as libsndfile writes it."""
    file = io.BytesIO()
    soundfile.write(file, 0.1 * noise(samples), RATE, format=format, subtype=subtype)
    return file.getvalue()


def exact(data: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(data), dtype="float32")[0]


# ---- files that were cut short

SIZED = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "IMA_ADPCM"),
    ("WAVEX", "FLOAT"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("CAF", "PCM_16"),
    ("CAF", "ALAC_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("SVX", "PCM_16"),
    ("NIST", "PCM_16"),
    ("NIST", "ULAW"),
    ("MPC2K", "PCM_16"),
    ("MAT4", "FLOAT"),
    ("MAT4", "PCM_16"),
    ("SDS", "PCM_16"),
    ("SDS", "PCM_24"),
    ("VOC", "PCM_U8"),
    ("VOC", "PCM_16"),
    ("AVR", "PCM_16"),
    ("AVR", "PCM_S8"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
]


@pytest.mark.parametrize(("format", "subtype"), SIZED)
def test_a_file_that_was_cut_short_is_refused(tmp_path, format, subtype, rng):
    data = written(format, subtype)
    cuts = [len(data) - 2, len(data) // 2, *rng.integers(200, len(data) - 2, 5)]
    for cut in cuts:
        (tmp_path / "x").write_bytes(data[:cut])
        with pytest.raises(FileFormatError, match=r"/x is (truncated|damaged|not readable)"):
            load_audio(tmp_path / "x")
    (tmp_path / "x").write_bytes(data)
    np.testing.assert_array_equal(load_audio(tmp_path / "x")[0], exact(data))


def test_a_psion_file_that_was_cut_short_is_refused(tmp_path):
    file = io.BytesIO()
    soundfile.write(file, 0.1 * noise(5000), 8000, format="WVE")  # it has this rate alone
    (tmp_path / "x.wve").write_bytes(file.getvalue())
    assert load_audio(tmp_path / "x.wve")[0].shape == (5000,)
    (tmp_path / "x.wve").write_bytes(file.getvalue()[:-1])
    with pytest.raises(FileFormatError, match="says 5000 bytes of audio, 4999 are there"):
        load_audio(tmp_path / "x.wve")


def test_the_refusal_says_how_much_is_missing_and_what_to_do(tmp_path):
    (tmp_path / "x.wav").write_bytes(written("WAV")[:-4000])
    message = (
        r"x\.wav is truncated: its header says 10000 bytes of audio, 6000 are there; fetch it "
        r"again, or keep what is there with ffmpeg -i FILE whole\.wav"
    )
    with pytest.raises(FileFormatError, match=message):
        load_audio(tmp_path / "x.wav")
    with pytest.raises(FileFormatError, match=r"BytesIO is truncated"):
        load_audio(io.BytesIO(written("WAV")[:-4000]))


def test_a_wav_is_read_whatever_follows_its_samples(tmp_path):
    data = written("WAV")
    behind = b"LIST" + struct.pack("<I", 1000) + b"INFO"
    for more in (behind, b"junk", bytes(100)):
        (tmp_path / "x.wav").write_bytes(data + more)
        np.testing.assert_array_equal(load_audio(tmp_path / "x.wav")[0], exact(data))


# ---- files of a program that wrote to a pipe and could not go back


def with_sizes(format, order, sizes):
    """A file whose header says other sizes, by the bytes before them."""
    data = bytearray(written(format))
    for before, offset, kind, value in sizes:
        start = data.index(before) + offset
        data[start : start + struct.calcsize(kind)] = struct.pack(order + kind, value)
    return bytes(data)


STREAMED = [
    *[
        ("WAV", "<", [(b"RIFF", 4, "I", riff), (b"data", 4, "I", size)])
        for riff, size in (
            (0, 0),
            (36, 0),
            (2**32 - 1, 0),
            (2**32 - 1, 2**32 - 1),
            (0x7FFFF024, 0x7FFFF000),
            (2**31 + 36, 2**31),
        )
    ],
    ("AU", ">", [(b".snd", 8, "I", 2**32 - 1)]),
    ("AU", ">", [(b".snd", 8, "I", 0)]),
    ("AIFF", ">", [(b"FORM", 4, "I", 0), (b"COMM", 10, "I", 0), (b"SSND", 4, "I", 0)]),
    ("AIFF", ">", [(b"FORM", 4, "I", 46), (b"COMM", 10, "I", 0), (b"SSND", 4, "I", 8)]),
    ("AIFF", ">", [(b"COMM", 10, "I", 0x1FC00000), (b"SSND", 4, "I", 0x7F000008)]),
    ("CAF", ">", [(b"data", 4, "q", -1)]),
    ("RF64", "<", [(b"ds64", 8, "q", 0), (b"ds64", 16, "q", 0), (b"ds64", 24, "q", 0)]),
    ("RF64", "<", [(b"ds64", 8, "q", -1), (b"ds64", 16, "q", -1), (b"ds64", 24, "q", -1)]),
    ("W64", "<", [(b"riff", 16, "q", -1), (b"data\xf3", 16, "q", 2**63 - 1)]),
    ("W64", "<", [(b"riff", 16, "q", 0), (b"data\xf3", 16, "q", 0)]),
]


@pytest.mark.parametrize(("format", "order", "sizes"), STREAMED)
def test_a_file_of_open_length_is_read_to_its_end(tmp_path, format, order, sizes):
    (tmp_path / "x").write_bytes(with_sizes(format, order, sizes))
    np.testing.assert_array_equal(load_audio(tmp_path / "x")[0], exact(written(format)))


def test_a_wav_without_samples_is_refused(tmp_path):
    data = written("WAV")[:40] + bytes(4) + b"LIST" + struct.pack("<I", 4) + b"INFO"
    (tmp_path / "x.wav").write_bytes(data)
    with pytest.raises(FileFormatError, match="has 0 samples by its header"):
        load_audio(tmp_path / "x.wav")


def piped_flac(samples, **settings) -> bytes:
    data = bytearray(written("FLAC", samples=samples, **settings))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


@pytest.mark.parametrize("samples", [1, 100, 4096, 8192, 70_001])
@pytest.mark.parametrize("behind", [b"", b"TAG" + bytes(125)])
def test_a_flac_from_a_pipe_is_read_to_its_end(tmp_path, samples, behind):
    (tmp_path / "x.flac").write_bytes(piped_flac(samples) + behind)
    with AudioFileReader(tmp_path / "x.flac") as reader:
        assert reader.num_samples == samples
        blocks = [np.concatenate(list(reader.blocks(1000)), axis=1) for _ in range(2)]
    expected = exact(written("FLAC", samples=samples))
    np.testing.assert_array_equal(blocks[0][0], expected)
    np.testing.assert_array_equal(blocks[1][0], expected)


def test_a_flac_from_a_pipe_that_was_cut_is_refused(tmp_path, rng):
    data = piped_flac(20_000)
    for cut in (len(data) - 1, *rng.integers(100, len(data), 5)):
        (tmp_path / "x.flac").write_bytes(data[:cut])
        with pytest.raises(FileFormatError, match=r"x\.flac is (truncated|damaged)"):
            load_audio(tmp_path / "x.flac")


def with_check(data: bytes, width: int, polynomial: int) -> bytes:
    """Bytes with the check of FLAC behind them, by polynomial division."""
    value = int.from_bytes(data, "big") << width
    divisor = 1 << width | polynomial
    while value >> width:
        value ^= divisor << (value.bit_length() - width - 1)
    return data + value.to_bytes(width // 8, "big")


@pytest.mark.parametrize("numbering", [0, 1])  # frames of one length, or samples
def test_a_flac_from_a_pipe_is_no_longer_than_a_header_can_say(tmp_path, numbering):
    data = piped_flac(4096)
    frame = data.rindex(b"\xff\xf8")
    most = b"\xfe" + 6 * b"\xbf"  # 2**36 - 1
    head = bytes([0xFF, 0xF8 | numbering]) + data[frame + 2 : frame + 4] + most
    body = with_check(head, 8, 0x07) + bytes(20)
    (tmp_path / "x.flac").write_bytes(data[:frame] + with_check(body, 16, 0x8005))
    with pytest.raises(FileFormatError, match="is truncated: it does not end with a whole FLAC"):
        load_audio(tmp_path / "x.flac")


@pytest.mark.parametrize("size", [11, 12, 40])
def test_a_damaged_header_of_a_sample_dump_is_refused(tmp_path, size):
    data = bytearray(written("SDS")[:size])
    data[6] = 0  # bits of a sample
    (tmp_path / "x.sds").write_bytes(data)
    with pytest.raises(FileFormatError, match="is not readable audio"):
        load_audio(tmp_path / "x.sds")


# ---- MP3: frames lean on earlier ones, and an index is optional


def encoded_mp3(audio, index=True) -> bytes:
    """An MP3 of variable rate, whose frames borrow bits of each other."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    options = {"write_xing": str(int(index))}
    with av.open(file, "w", format="mp3", options=options) as opened:
        stream = opened.add_stream("libmp3lame", rate=44100, layout="mono")
        stream.codec_context.qscale = True
        stream.codec_context.global_quality = 2 * 118
        stream.format = "fltp"
        frame = av.AudioFrame.from_ndarray(audio[None], format="fltp", layout="mono")
        frame.sample_rate = 44100
        frame.pts = 0
        frame.time_base = Fraction(1, 44100)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            opened.mux(packet)
    return file.getvalue()


def loud_then_quiet() -> np.ndarray:
    tone = 0.05 * np.sin(2 * np.pi * 440 * np.arange(441_000) / 44100)
    tone[:88_200] += noise(88_200)
    return tone.astype(np.float32)


@pytest.mark.parametrize("index", [True, False])
def test_an_mp3_read_in_blocks_is_the_one_read_at_once(tmp_path, index):
    (tmp_path / "x.mp3").write_bytes(encoded_mp3(noise(441_000) * 0.1, index))
    whole = exact((tmp_path / "x.mp3").read_bytes())
    for source in (tmp_path / "x.mp3", io.BytesIO((tmp_path / "x.mp3").read_bytes())):
        audio = load_audio(source)[0]
        np.testing.assert_array_equal(audio[: len(whole)], whole)
        assert index is False or len(audio) == len(whole)


ID3 = b"ID3\4\0\0\0\0\1\0" + bytes(128)  # a tag in front


@pytest.mark.parametrize("writer", ["FFmpeg", "LAME"])
@pytest.mark.parametrize("tag", [b"", ID3])
def test_an_mp3_with_an_index_that_was_cut_short_is_refused(tmp_path, writer, tag):
    if writer == "FFmpeg":
        data = encoded_mp3(noise(441_000) * 0.1)  # with a tag of its own
    else:
        data = tag + written("MP3", "MPEG_LAYER_III", 160_000)
    (tmp_path / "x.mp3").write_bytes(data)
    assert len(load_audio(tmp_path / "x.mp3")[0]) in (160_000, 441_000)
    (tmp_path / "x.mp3").write_bytes(data[:-200])  # far less than a hundredth
    with pytest.raises(FileFormatError, match=r"x\.mp3 is truncated: its header says \d+ bytes"):
        load_audio(tmp_path / "x.mp3")


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])  # MPEG 2.5, 2 and 1
def test_the_index_of_an_mp3_is_found_in_every_kind_of_frame(tmp_path, rate, channels):
    soundfile.write(tmp_path / "x.mp3", np.zeros((2 * rate, channels)), rate)
    data = (tmp_path / "x.mp3").read_bytes()
    (tmp_path / "x.mp3").write_bytes(data + b"TAG" + bytes(125))
    assert len(load_audio(tmp_path / "x.mp3", channels=1)[0]) == 2 * rate
    (tmp_path / "x.mp3").write_bytes(data[:-200])
    with pytest.raises(FileFormatError, match=rf"says {len(data)} bytes .* {len(data) - 200} are"):
        load_audio(tmp_path / "x.mp3")


def test_an_mp3_without_a_whole_frame_is_refused_for_what_it_is(tmp_path):
    (tmp_path / "x.mp3").write_bytes(encoded_mp3(noise(441_000), index=False)[45:105])
    with pytest.raises(FileFormatError, match=r"not readable audio \(no whole frame of an MP3\)"):
        load_audio(tmp_path / "x.mp3")


@pytest.mark.parametrize("behind", [b"", b"TAG" + bytes(125)])
def test_an_mp3_without_an_index_is_read_to_its_end(tmp_path, behind):
    audio = loud_then_quiet()
    data = encoded_mp3(audio, index=False)
    assert len(exact(data)) < 200_000  # all that its first frames promise
    (tmp_path / "x.mp3").write_bytes(data + behind)
    with AudioFileReader(tmp_path / "x.mp3") as reader:
        loaded = np.concatenate(list(reader.blocks()), axis=1)[0]
        assert reader.num_samples == len(loaded)
    assert 0 <= len(loaded) - len(audio) < 2400
    np.testing.assert_allclose(np.std(loaded[100_000:]), np.std(audio[100_000:]), rtol=0.5)


# ---- containers


def encoded(container, encoder, samples, rate=44100) -> bytes:
    """A tone as FFmpeg writes it."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format=container) as opened:
        stream = opened.add_stream(encoder, rate=rate, layout="mono")
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(samples) / rate)
        kind = stream.format.name.removesuffix("p")
        scale, dtype = {"s16": (2**15, "i2"), "s32": (2**31, "i4")}.get(kind, (1, "f4"))
        frame = av.AudioFrame.from_ndarray(
            (scale * tone[None]).astype(dtype), format=stream.format.name, layout="mono"
        )
        frame.sample_rate = rate
        frame.pts = 0
        frame.time_base = Fraction(1, rate)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            opened.mux(packet)
    return file.getvalue()


EXACT = [
    ("mp4", "aac", 44100),
    ("ipod", "aac", 16000),
    ("ipod", "alac", 44100),
    ("mp4", "libopus", 48000),
    ("mp4", "flac", 44100),
    ("mov", "pcm_s16le", 44100),
    ("webm", "libopus", 48000),
    ("matroska", "flac", 44100),
]


@pytest.mark.parametrize(("container", "encoder", "rate"), EXACT)
def test_a_container_gives_the_samples_that_went_in(tmp_path, container, encoder, rate):
    (tmp_path / "x").write_bytes(encoded(container, encoder, 30_001, rate))
    audio, loaded_rate = load_audio(tmp_path / "x")
    assert (audio.shape, loaded_rate) == ((30_001,), rate)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(30_001) / rate)
    assert np.abs(audio - tone)[500:-500].max() < 0.05  # it is in its place
    with AudioFileReader(tmp_path / "x") as reader:
        assert reader.num_samples == 30_001
        assert reader.header_seconds == pytest.approx(30_001 / rate, abs=0.05)
        shapes = {block.shape for block in reader.blocks(10_000)}
    assert shapes == {(1, 10_000), (1, 1)}


@pytest.mark.parametrize(
    ("container", "encoder", "most"), [("adts", "aac", 2048), ("ac3", "ac3", 1792)]
)
def test_a_container_without_gapless_marks_keeps_priming_and_padding(
    tmp_path, container, encoder, most
):
    (tmp_path / "x").write_bytes(encoded(container, encoder, 30_001))
    assert 30_001 <= load_audio(tmp_path / "x")[0].shape[-1] <= 30_001 + most


@pytest.mark.parametrize(
    ("container", "encoder", "rate"), [case for case in EXACT if case[0] != "mov"]
)
def test_a_container_that_was_cut_short_is_refused(tmp_path, container, encoder, rate, rng):
    data = encoded(container, encoder, 30_001, rate)
    for cut in (len(data) - 5, len(data) // 2, *rng.integers(200, len(data) - 5, 3)):
        (tmp_path / "x").write_bytes(data[:cut])
        with pytest.raises(FileFormatError, match=r"/x (is|has)"):
            load_audio(tmp_path / "x")


def test_a_live_recording_says_no_length_and_is_read_to_its_end(tmp_path):
    data = bytearray(encoded("webm", "libopus", 30_001, 48000))
    segment = data.index(b"\x18\x53\x80\x67") + 4
    data[segment : segment + 8] = b"\x01" + b"\xff" * 7
    (tmp_path / "x.webm").write_bytes(data)
    assert load_audio(tmp_path / "x.webm")[0].shape == (30_001,)


def test_playlists_and_empty_containers_are_refused(tmp_path):
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n"
    for content in (playlist, b"ffconcat version 1.0\nfile x\n", b"\0\0\0\x10ftypM4A \0\0\0\0"):
        (tmp_path / "x.m4a").write_bytes(content)
        with pytest.raises(FileFormatError, match=r"x\.m4a is not readable"):
            load_audio(tmp_path / "x.m4a")


def test_without_pyav_the_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "x.m4a").write_bytes(b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42")
    with pytest.raises(MissingExtraError, match=r"pip install 'codecplus\[formats\]', or convert"):
        load_audio(tmp_path / "x.m4a")


def test_unusual_decoders_are_refused(tmp_path, monkeypatch):
    (tmp_path / "x.mov").write_bytes(encoded("mov", "pcm_s16le", 1000))
    monkeypatch.setattr(containers, "_DECODER_FAMILIES", ())
    with pytest.raises(FileFormatError, match="holds audio of pcm_s16le, which is not read"):
        load_audio(tmp_path / "x.mov")


def test_suffixes_are_lower_case_and_in_one_list():
    assert AUDIO_SUFFIXES == SOUNDFILE_SUFFIXES | CONTAINER_SUFFIXES
    assert not SOUNDFILE_SUFFIXES & CONTAINER_SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in AUDIO_SUFFIXES)
