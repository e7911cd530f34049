"""Live pipes: what goes in comes out, frame by frame, through real processes."""

import io
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile

from codecplus import Codec
from codecplus.cli.pipe import (
    PcmFormat,
    decode_pipe,
    encode_pipe,
    parse_raw,
    read_packets,
    read_wav_header,
    wav_header,
)
from codecplus.errors import FileFormatError, InputError
from codecplus.streaming import PacketReader, PacketWriter


def coded_packets(codec: Codec, data: bytes, raw: PcmFormat | None) -> list[bytes]:
    coded = io.BytesIO()
    encode_pipe(codec, io.BytesIO(data), coded, raw=raw)
    return list(read_packets(io.BytesIO(coded.getvalue())))


def played(codec: Codec, packets: list[bytes], out: io.BytesIO | None = None, **options) -> bytes:
    coded = b"".join(len(p).to_bytes(2, "big") + p for p in packets)
    out = out or io.BytesIO()
    decode_pipe(lambda fingerprint: codec, io.BytesIO(coded), out, raw=True, **options)
    return out.getvalue()


def through(
    codec: Codec, data: bytes, raw: PcmFormat | None = None, damage=lambda packets: packets
) -> bytes:
    return played(codec, damage(coded_packets(codec, data, raw)))


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (16000, 2), (8000, 1), (44100, 2)])
def test_a_pipe_gives_what_the_codec_gives(codec, rng, rate, channels):
    samples = (rng.standard_normal((5000, channels)) * 3000).astype("<i2")
    out = np.frombuffer(
        through(codec, samples.tobytes(), PcmFormat(rate, channels)), "<i2"
    ).reshape(-1, channels)
    expected = codec.decode(codec.encode(samples.T, rate))
    assert 5000 <= len(out) <= 5000 + rate // 50 + 2
    middle = slice(0, 4000)  # the end of a pipe is filled up to whole frames before it is resampled
    atol = 2e-3 if rate != 16000 else 1e-4
    np.testing.assert_allclose(out[middle].T / 32768, expected[:, middle].clip(-1, 1), atol=atol)


def test_lost_and_damaged_packets_do_not_shift_what_follows(codec, rng):
    samples = (rng.standard_normal(32000) * 3000).astype("<i2").tobytes()
    pcm = PcmFormat(16000, 1)
    whole = through(codec, samples, pcm)

    def damage(packets):
        packets[20] = packets[20][:-1] + b"\x00"
        return packets[:5] + packets[9:30] + packets[33:]

    with pytest.warns(UserWarning, match="8 frames were lost"):
        assert len(through(codec, samples, pcm, damage)) == len(whole)


def test_a_pipe_becomes_no_longer_than_max_seconds(codec, rng):
    samples = (rng.standard_normal(48000) * 3000).astype("<i2").tobytes()
    packets = coded_packets(codec, samples, PcmFormat(16000, 1))
    whole = played(codec, packets, max_seconds=4)
    out = io.BytesIO()
    with pytest.raises(InputError, match=r"a stream of at most 1\.5 s, got more; .*--max-seconds"):
        played(codec, packets, out, max_seconds=1.5)
    frame = 2 * 320
    assert 1.5 * 32000 < len(out.getvalue()) <= 1.5 * 32000 + frame
    assert whole.startswith(out.getvalue())  # what came before is written
    for limit in (0, -1, float("nan")):
        with pytest.raises(InputError, match="expected max_seconds above 0"):
            played(codec, packets, max_seconds=limit)


def test_a_long_gap_is_left_out_and_told(codec, rng):
    samples = (rng.standard_normal(16000) * 3000).astype("<i2").tobytes()
    packets = coded_packets(codec, samples, PcmFormat(16000, 1))
    reader = PacketReader()
    head = reader.read(packets[0])
    assert head is not None
    writer = PacketWriter(reader.format)
    for _ in range(4000):  # packets that never arrive, 80 s of them
        writer.pack(head.codes)
    behind = [writer.pack(head.codes, with_header=True) for _ in range(20)]
    with pytest.warns(UserWarning, match="1 gap of more than 3000 frames left out"):
        out = played(codec, [*packets[:20], *behind, writer.end()])
    assert len(out) == 40 * 320 * 2


def test_a_stream_that_breaks_off_is_told(codec, rng):
    samples = (rng.standard_normal(16000) * 3000).astype("<i2").tobytes()
    packets = coded_packets(codec, samples, PcmFormat(16000, 1))
    with pytest.warns(UserWarning, match="broke off before its end"):
        assert len(played(codec, packets[:30])) == 30 * 320 * 2


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_32", "FLOAT"])
@pytest.mark.parametrize("format", ["WAV", "WAVEX"])
def test_wav_headers_of_every_kind_are_read(rng, subtype, format):
    file = io.BytesIO()
    soundfile.write(
        file, rng.standard_normal((100, 2)) * 0.1, 22050, format=format, subtype=subtype
    )
    file.seek(0)
    pcm = read_wav_header(file)
    assert (pcm.sample_rate, pcm.channels) == (22050, 2)
    assert np.frombuffer(file.read(), pcm.dtype).size == 200


def test_the_wav_header_written_can_be_read():
    assert read_wav_header(io.BytesIO(wav_header(16000, 2))) == PcmFormat(16000, 2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RIFF",
        b"RIFF\0\0\0\0WAVE",
        b"RIFF\0\0\0\0WAVEdata\0\0\0\0",
        b"RIFF\0\0\0\0WAVELIST\xff\xff\xff\xff",
    ],
)
def test_input_that_is_not_wav_is_refused(data):
    with pytest.raises(FileFormatError, match="expected"):
        read_wav_header(io.BytesIO(data))


@pytest.mark.parametrize("data", [b"", b"\xff\xff" + bytes(70000), struct.pack(">H", 3) + b"abc"])
def test_input_without_packets_is_refused(codec, data):
    with pytest.raises(FileFormatError, match="got none"):
        decode_pipe(lambda fingerprint: codec, io.BytesIO(data), io.BytesIO())


def test_raw_is_rate_and_channels():
    assert parse_raw("48000:2") == PcmFormat(48000, 2)
    for text in ("", "fast", "16000:0", "-1", "16000:x"):
        with pytest.raises(InputError, match="RATE:CHANNELS"):
            parse_raw(text)


def command(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "codecplus", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_two_processes_pass_audio_on_before_it_ends(rng):
    encoder = command("encode", "-", "-o", "-", "--model", "dac-16khz-live", "--raw", "16000")
    decoder = subprocess.Popen(
        [sys.executable, "-m", "codecplus", "decode", "-", "-o", "-"],
        stdin=encoder.stdout,
        stdout=subprocess.PIPE,
    )
    heard = threading.Event()
    received = bytearray()

    def listen():
        while data := decoder.stdout.read1(4096):
            received.extend(data)
            heard.set()

    listener = threading.Thread(target=listen)
    listener.start()
    speech = (rng.standard_normal(3200) * 2000).astype("<i2").tobytes()
    encoder.stdin.write(speech)
    encoder.stdin.flush()
    assert heard.wait(120), "nothing came out while the microphone was on"
    encoder.stdin.write(speech)
    encoder.stdin.close()
    listener.join(120)
    assert encoder.wait(120) == decoder.wait(120) == 0
    assert received[:4] == b"RIFF"
    assert len(received) == 44 + 2 * 6400


def test_a_pipe_needs_both_ends(capsys):
    from codecplus.cli import main

    assert main(["encode", "-", "-o", "out.dacp"]) == 2
    assert "from - to -" in capsys.readouterr().err
