import io
import math
import os
import stat
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import codecplus
from codecplus.audio import files
from codecplus.audio.arrays import as_audio
from codecplus.audio.files import AudioFileReader, AudioFileWriter
from codecplus.audio.loudness import LoudnessMeter, integrated_loudness
from codecplus.audio.mel import mel_filterbank, mel_spectrogram
from codecplus.audio.resampling import Resampler, resample, resampled_length
from codecplus.errors import CodecPlusError, FileFormatError, InputError, OutputExistsError
from codecplus.system.paths import atomic_path, check_output
from codecplus.utils import load_audio, save_audio

RATES = [8000, 11025, 16000, 22050, 24000, 44100, 48000, 96000]
quick = settings(max_examples=25, deadline=None)


def noise(*shape, seed=0, gain=0.1):
    return (gain * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def pieces(audio, sizes):
    """Cut (C, S) at repeated sizes, zeros included."""
    start, i = 0, 0
    while start < audio.shape[1]:
        yield audio[:, start : start + sizes[i % len(sizes)]]
        start += sizes[i % len(sizes)]
        i += 1


def write_stream(path, blocks, channels=1, error=None):
    with AudioFileWriter(path, 44100, channels) as writer:
        for block in blocks:
            writer.write(block)
        if error:
            raise error


sizes = st.lists(st.integers(0, 5000), min_size=1, max_size=6).filter(any)


# ---- as_audio


@pytest.mark.parametrize(
    ("given_array", "expected"),
    [
        ([0.5, -0.25], [0.5, -0.25]),
        (np.array([16384, -32768], np.int16), [0.5, -1.0]),
        (np.array([2**30, -(2**31)], np.int32), [0.5, -1.0]),
        (np.array([128, 0, 192], np.uint8), [0.0, -1.0, 0.5]),
        (np.array([0.5, 2.0], np.float64), [0.5, 2.0]),
        (np.array([0.5, 0.25], ">f4"), [0.5, 0.25]),
        (np.array([[0.5, 0.25], [0.0, 1.0]], np.float32).T, [[0.5, 0.0], [0.25, 1.0]]),
        (torch.tensor([0.5, -0.5], requires_grad=True), [0.5, -0.5]),
        (torch.tensor([0.5, -0.5], dtype=torch.bfloat16), [0.5, -0.5]),
        (torch.tensor([16384, -16384], dtype=torch.int16), [0.5, -0.5]),
    ],
)
def test_as_audio_takes_arrays_lists_and_tensors(given_array, expected):
    audio = as_audio(given_array)
    assert audio.dtype == np.float32
    assert audio.flags.c_contiguous
    np.testing.assert_array_equal(audio, np.array(expected, np.float32))


def test_integers_are_scaled_as_soundfile_scales_them(tmp_path):
    for dtype, subtype in (("int16", "PCM_16"), ("int32", "PCM_32")):
        values = (
            np.random.default_rng(0)
            .integers(np.iinfo(dtype).min, np.iinfo(dtype).max, 1000)
            .astype(dtype)
        )
        soundfile.write(tmp_path / "x.wav", values, 8000, subtype=subtype)
        np.testing.assert_array_equal(
            as_audio(values), soundfile.read(tmp_path / "x.wav", dtype="float32")[0]
        )


def test_float_audio_is_not_copied():
    audio = noise(2, 10)
    assert as_audio(audio) is audio


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            np.float32(0.5),
            r"expected audio of shape \(samples,\) or \(channels, samples\), got \(\)",
        ),
        (np.zeros((1, 1, 8)), r"got \(1, 1, 8\); pass one item of a batch at a time"),
        ([], r"at least 1 sample, got shape \(0,\)"),
        (np.zeros((2, 0)), r"at least 1 sample, got shape \(2, 0\)"),
        (
            np.zeros((100, 2)),
            r"at most 64 channels, got \(100, 2\); if this is \(samples, channels\), pass its transpose",
        ),
        (np.zeros(3, np.int64), "got int64 values; divide other integers by full scale"),
        (np.zeros(3, np.int8), "got int8 values"),
        (np.zeros(3, bool), "got bool values"),
        (np.zeros(3, complex), "got complex128 values"),
        (torch.zeros(3, dtype=torch.int64), "got int64 values"),
        ("input.wav", "floats in \\[-1, 1\\], or int16, int32, uint8, got str"),
        (None, "got NoneType"),
        ([[0.1], [0.1, 0.2]], "got list"),
        ([0.1, math.nan, math.inf], "2 NaN or infinite values of 3, the first at index 1"),
        (
            np.array([[0, 0], [0, 1e300]]),
            r"1 NaN or infinite values of 4, the first at index \(1, 1\)",
        ),
    ],
)
def test_as_audio_says_what_was_expected(bad, message):
    with pytest.raises(InputError, match=message):
        as_audio(bad)


# ---- output paths


def test_atomic_path_appears_only_on_success(tmp_path):
    target = tmp_path / "out.bin"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".bin"
        assert not target.exists()
    assert target.read_bytes() == b"new"

    def fail_halfway():
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_halfway()
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out.bin"]


def test_atomic_path_gives_the_permissions_of_a_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with atomic_path(tmp_path / "out") as temporary:
        temporary.write_bytes(b"")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(os.name == "nt", reason="links and devices of POSIX")
def test_atomic_path_writes_through_links_and_leaves_devices_alone(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_path(tmp_path / "link") as temporary:
        temporary.write_bytes(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"x"
    with atomic_path("/dev/null") as temporary:
        temporary.write_bytes(b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_atomic_path_takes_the_longest_file_name(tmp_path):
    target = tmp_path / ("a" * 251 + ".wav")
    save_audio([0.5], target, 8000)
    assert os.listdir(tmp_path) == [target.name]


def test_check_output_says_what_is_in_the_way(tmp_path):
    file = tmp_path / "out.wav"
    assert check_output(str(file), overwrite=False) == file
    file.write_bytes(b"x")
    assert check_output(file) == file
    with pytest.raises(
        OutputExistsError,
        match=r"out\.wav exists already; choose another name or allow overwriting",
    ):
        check_output(file, overwrite=False)
    with pytest.raises(InputError, match="expected a file name to write to, got the folder"):
        check_output(tmp_path)
    with pytest.raises(InputError, match=r"there is no folder .*nowhere; create it first"):
        check_output(tmp_path / "nowhere" / "out.wav")
    with pytest.raises(
        InputError, match=r"expected a path as a string or pathlib\.Path, got ndarray"
    ):
        check_output(noise(3))  # type: ignore[arg-type]
    for name in ("", "a\0b"):
        with pytest.raises(InputError, match="expected a file name, got"):
            check_output(name)


# ---- reading


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".WAV"])
@pytest.mark.parametrize("channels", [1, 2])
def test_saved_audio_loads_with_its_shape_and_rate(tmp_path, suffix, channels):
    t = np.arange(5001) / 16000
    audio = np.stack([0.3 * np.sin(2 * np.pi * 440 * (c + 1) * t) for c in range(channels)]).astype(
        np.float32
    )
    audio = audio[0] if channels == 1 else audio
    save_audio(audio, tmp_path / f"x{suffix}", 16000)
    loaded, sample_rate = load_audio(tmp_path / f"x{suffix}")
    assert (loaded.dtype, loaded.shape, sample_rate) == (np.float32, audio.shape, 16000)
    tolerance = 0.6 / 2**15 if suffix in (".wav", ".flac", ".WAV") else 0.05
    assert np.abs(loaded - audio).max() < tolerance
    assert os.listdir(tmp_path) == [f"x{suffix}"]


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_sixteen_bit_audio_survives_exactly(tmp_path, suffix):
    values = np.arange(-(2**15), 2**15).astype(np.int16)
    save_audio(values, tmp_path / f"x{suffix}", 44100)
    assert soundfile.info(tmp_path / f"x{suffix}").subtype == "PCM_16"
    np.testing.assert_array_equal(load_audio(tmp_path / f"x{suffix}")[0] * 2**15, values)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT"])
def test_full_scale_does_not_wrap_around(tmp_path, subtype):
    audio = np.array([1.0, -1.0, 0.0], np.float32)
    save_audio(audio, tmp_path / "x.wav", 8000, subtype=subtype)
    np.testing.assert_allclose(load_audio(tmp_path / "x.wav")[0], audio, atol=2**-15)


def test_load_changes_channels_and_rate(tmp_path):
    stereo = noise(2, 4000)
    save_audio(stereo, tmp_path / "x.wav", 16000, subtype="FLOAT")
    save_audio(stereo[0], tmp_path / "mono.wav", 16000, subtype="FLOAT")
    mono, _ = load_audio(tmp_path / "x.wav", channels=1)
    np.testing.assert_allclose(mono, stereo.mean(axis=0), atol=1e-7)
    np.testing.assert_array_equal(load_audio(tmp_path / "x.wav", channels=2)[0], stereo)
    np.testing.assert_array_equal(
        load_audio(tmp_path / "mono.wav", channels=3)[0], stereo[[0, 0, 0]]
    )
    louder, sample_rate = load_audio(tmp_path / "x.wav", sample_rate=44100)
    assert sample_rate == 44100
    np.testing.assert_array_equal(louder, resample(stereo, 16000, 44100))
    with pytest.raises(
        InputError,
        match=r"x\.wav has 2 channels and cannot become 3; possible are 2, or 1 \(their mean\)",
    ):
        load_audio(tmp_path / "x.wav", channels=3)
    with pytest.raises(InputError, match="expected channels as an integer from 1 to 64, got 0"):
        load_audio(tmp_path / "x.wav", channels=0)
    with pytest.raises(InputError, match=r"from 4000 to 1000000, got 44\.1"):
        load_audio(tmp_path / "x.wav", sample_rate=44.1)  # type: ignore[arg-type]


class Pipe(io.RawIOBase):
    """A file object that cannot seek."""

    def __init__(self, data):
        self.source = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.source.readinto(buffer)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_load_takes_file_objects_that_cannot_seek_too(tmp_path, suffix):
    save_audio(noise(3000), tmp_path / f"x{suffix}", 16000)
    expected, _ = load_audio(tmp_path / f"x{suffix}")
    data = (tmp_path / f"x{suffix}").read_bytes()
    for file in (io.BytesIO(data), Pipe(data)):
        np.testing.assert_array_equal(load_audio(file)[0], expected)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_load_takes_a_named_pipe(tmp_path):
    save_audio(noise(300), tmp_path / "x.wav", 16000)
    os.mkfifo(tmp_path / "pipe")
    feeder = subprocess.Popen(
        ["sh", "-c", 'cat "$0" > "$1"', tmp_path / "x.wav", tmp_path / "pipe"]
    )
    assert load_audio(tmp_path / "pipe")[0].shape == (300,)
    assert feeder.wait() == 0


def test_load_says_what_is_wrong_with_the_path(tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*missing\.wav"):
        load_audio(tmp_path / "missing.wav")
    with pytest.raises(InputError, match="expected an audio file, got the folder"):
        load_audio(tmp_path)
    with pytest.raises(InputError, match=r"expected a path as a string or pathlib\.Path, got int"):
        load_audio(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="got StringIO opened as text; open it with 'rb'"):
        load_audio(io.StringIO("text"))  # type: ignore[arg-type]


def wav_header(rate=44100, channels=1, bits=16, data=b"\0" * 1000, claim=None):
    def u32(value):
        return (value % 2**32).to_bytes(4, "little")

    def u16(value):
        return (value % 2**16).to_bytes(2, "little")

    claim = len(data) if claim is None else claim
    width = channels * bits // 8
    fmt = u16(1) + u16(channels) + u32(rate) + u32(rate * width) + u16(width) + u16(bits)
    return b"RIFF" + u32(36 + claim) + b"WAVEfmt " + u32(16) + fmt + b"data" + u32(claim) + data


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "no audio " * 100)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\); expected an audio file"),
        (
            zipped(),
            r"is not readable audio \(Format not recognised\); expected WAV, FLAC, OGG or MP3",
        ),
        (b"plain text, for sure\n" * 50, r"is not readable audio \(Format not recognised\)"),
        (wav_header(data=b""), "has 0 samples by its header, expected 1 to"),
        (wav_header(rate=0), "is not readable audio"),
        (wav_header(rate=1), "has 1 Hz by its header, expected 4000 to 1000000"),
        (wav_header(rate=4_000_000_000), "is not readable audio"),
        (wav_header(channels=0), "is not readable audio"),
        (
            wav_header(channels=200, data=b"\0" * 8000),
            "has 200 channels by its header, expected 1 to 64",
        ),
        (wav_header(channels=60000), "is not readable audio"),
    ],
)
def test_load_refuses_what_is_not_audio(tmp_path, content, message):
    (tmp_path / "x.wav").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"x\.wav " + message):
        load_audio(tmp_path / "x.wav")
    with pytest.raises(FileFormatError, match=message):
        load_audio(io.BytesIO(content))


def test_load_refuses_headerless_audio(tmp_path):
    (tmp_path / "x.raw").write_bytes(b"\0" * 100)
    with pytest.raises(FileFormatError, match=r"x\.raw is not readable audio"):
        load_audio(tmp_path / "x.raw")


def test_a_header_that_promises_too_much_costs_no_memory(tmp_path):
    (tmp_path / "x.wav").write_bytes(wav_header(claim=0xFFFFFFF0))
    assert load_audio(tmp_path / "x.wav")[0].shape == (500,)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (
            0,
            "has 9223372036854775807 samples by its header, expected 1 to",
        ),  # as a FLAC from a pipe
        (2**36 - 1, "is (truncated|damaged)"),
    ],
)
def test_load_refuses_a_flac_of_unknown_or_absurd_length(tmp_path, length, message):
    save_audio(noise(5000), tmp_path / "x.flac", 16000)
    data = bytearray((tmp_path / "x.flac").read_bytes())
    data[21:26] = (((data[21] >> 4) << 36) + length).to_bytes(
        5, "big"
    )  # the last 36 bits count the samples
    (tmp_path / "x.flac").write_bytes(data)
    with pytest.raises(FileFormatError, match=message):
        load_audio(tmp_path / "x.flac")


@pytest.mark.parametrize("suffix", [".flac", ".mp3"])
def test_load_refuses_half_a_file(tmp_path, suffix):
    save_audio(noise(44100), tmp_path / f"x{suffix}", 44100)
    data = (tmp_path / f"x{suffix}").read_bytes()
    (tmp_path / f"x{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(
        FileFormatError,
        match=r"is (truncated: its header says 44100 samples, .* are there|damaged after)",
    ):
        load_audio(tmp_path / f"x{suffix}")


def test_load_refuses_samples_that_are_not_finite(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.array([0, np.nan, 0], np.float32), 8000, subtype="FLOAT")
    with pytest.raises(
        FileFormatError, match=r"x\.wav is damaged after sample 0: expected finite audio, got 1 NaN"
    ):
        load_audio(tmp_path / "x.wav")


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
@pytest.mark.parametrize("block_samples", [777, 4096, 10**6])
def test_blocks_are_the_file_and_can_be_read_again(tmp_path, suffix, block_samples):
    save_audio(noise(2, 10000), tmp_path / f"x{suffix}", 44100)
    expected, _ = load_audio(tmp_path / f"x{suffix}")
    with AudioFileReader(tmp_path / f"x{suffix}") as reader:
        assert (reader.sample_rate, reader.channels, reader.num_samples) == (44100, 2, 10000)
        for _ in range(2):
            blocks = list(reader.blocks(block_samples))
            assert {block.shape[1] for block in blocks[:-1]} <= {block_samples}
            np.testing.assert_array_equal(np.concatenate(blocks, axis=1), expected)
    with (
        AudioFileReader(tmp_path / f"x{suffix}") as reader,
        pytest.raises(InputError, match="block_samples"),
    ):
        next(reader.blocks(0))


# ---- writing


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype", "message"),
    [
        (
            "x.m4a",
            44100,
            1,
            None,
            r"expected a file name ending in \.wav, \.flac, \.ogg, \.mp3, got x\.m4a",
        ),
        ("x", 44100, 1, None, "expected a file name ending in"),
        (
            "x.wav",
            44100,
            1,
            "PCM_99",
            "expected subtype PCM_16 or PCM_24 or PCM_32 or FLOAT for .wav, got 'PCM_99'",
        ),
        (
            "x.flac",
            44100,
            9,
            None,
            "FLAC holds up to 8 channels at 655350 Hz, got 9 at 44100 Hz; resample, or write a .wav",
        ),
        ("x.mp3", 96000, 1, None, "MP3 holds up to 2 channels at 48000 Hz, got 1 at 96000 Hz"),
        ("x.ogg", 384000, 1, None, "OGG holds up to 64 channels at 200000 Hz"),
        (
            "x.mp3",
            44000,
            1,
            None,
            r"cannot write .*x\.mp3 \(MPEG_LAYER_III, 1 channels, 44000 Hz\): .*check the rate",
        ),
        ("x.wav", 0, 1, None, "expected sample_rate as an integer from 4000 to 1000000, got 0"),
        ("x.wav", "44100", 1, None, "got '44100'"),
        ("x.wav", True, 1, None, "got True"),
        ("missing/x.wav", 44100, 1, None, "there is no folder"),
    ],
)
def test_save_says_what_a_format_cannot_hold(tmp_path, name, rate, channels, subtype, message):
    with pytest.raises(InputError, match=message):
        save_audio(noise(channels, 100), tmp_path / name, rate, subtype=subtype)
    assert os.listdir(tmp_path) == []


def test_save_with_swapped_arguments_says_so(tmp_path):
    with pytest.raises(InputError, match=r"expected audio as floats .* got str"):
        save_audio(str(tmp_path / "x.wav"), noise(100), 44100)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"expected a path as a string or pathlib\.Path, got int"):
        save_audio(noise(100), 44100, str(tmp_path / "x.wav"))  # type: ignore[arg-type]


def test_save_replaces_unless_told_otherwise(tmp_path):
    save_audio([0.5], tmp_path / "x.wav", 8000)
    save_audio([0.5, 0.5], tmp_path / "x.wav", 8000.0)  # type: ignore[arg-type]
    with pytest.raises(OutputExistsError, match="exists already"):
        save_audio([0.5], tmp_path / "x.wav", 8000, overwrite=False)
    assert load_audio(tmp_path / "x.wav")[0].shape == (2,)


def test_save_never_clips(tmp_path):
    audio = noise(1000)
    audio[500] = -1.25
    with pytest.warns(
        UserWarning,
        match=r"x\.wav: the peak 1\.25 is beyond full scale, written as 32-bit float WAV",
    ):
        save_audio(audio, tmp_path / "x.wav", 44100)
    np.testing.assert_array_equal(load_audio(tmp_path / "x.wav")[0], audio)
    for name, subtype in (("x.flac", None), ("y.wav", "PCM_16")):
        with pytest.raises(
            InputError,
            match=r"the peak 1\.25 is beyond full scale, which PCM_16 in .* cannot hold; scale",
        ):
            save_audio(audio, tmp_path / name, 44100, subtype=subtype)
    assert os.listdir(tmp_path) == ["x.wav"]


@pytest.mark.parametrize("name", ["x.ogg", "x.mp3"])
def test_lossy_formats_keep_what_is_beyond_full_scale(tmp_path, name):
    audio = (1.5 * np.sin(2 * np.pi * 440 * np.arange(20000) / 44100)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_audio(audio, tmp_path / name, 44100)
    assert 1.4 < np.abs(load_audio(tmp_path / name)[0]).max() < 1.6


@quick
@given(sizes)
def test_a_stream_is_written_as_one_shot_is(tmp_path_factory, sizes):
    folder = tmp_path_factory.mktemp("stream")
    audio = noise(2, 9000)
    save_audio(audio, folder / "once.wav", 44100)
    write_stream(folder / "stream.wav", pieces(audio, sizes), channels=2)
    assert (folder / "stream.wav").read_bytes() == (folder / "once.wav").read_bytes()


def test_a_wav_stream_that_leaves_full_scale_becomes_float(tmp_path):
    audio = noise(100_000, seed=1)
    audio[70_000] = 1.5
    with pytest.warns(
        UserWarning, match=r"the peak 1\.5 is beyond full scale, written as 32-bit float WAV"
    ) as caught:
        write_stream(tmp_path / "x.wav", pieces(audio[None], [30_000]))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    loaded, _ = load_audio(tmp_path / "x.wav")
    np.testing.assert_allclose(
        loaded[:60_000], audio[:60_000], atol=2**-16 + 1e-9
    )  # was 16-bit when it came
    np.testing.assert_array_equal(loaded[60_000:], audio[60_000:])
    assert os.listdir(tmp_path) == ["x.wav"]


def test_other_streams_are_clipped_with_one_warning(tmp_path):
    with pytest.warns(
        UserWarning, match="the peak 2 is beyond full scale, 3 samples were clipped; scale"
    ) as caught:
        write_stream(tmp_path / "x.flac", ([0.5, 1.5], [-2.0, 0.0], [1.25, 1.0]))
    assert len(caught) == 1
    np.testing.assert_allclose(
        load_audio(tmp_path / "x.flac")[0], [0.5, 1, -1, 0, 1, 1], atol=2**-15
    )


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.ogg", "x.mp3"])
def test_a_failed_stream_leaves_the_old_file(tmp_path, name):
    save_audio(noise(500), tmp_path / name, 44100)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(ZeroDivisionError):
        write_stream(tmp_path / name, [noise(1000), 1.5 * np.ones(1000)], error=ZeroDivisionError)
    assert (tmp_path / name).read_bytes() == before
    assert os.listdir(tmp_path) == [name]


def test_a_stream_says_what_it_expects(tmp_path):
    for bad, message in (
        (noise(3, 10), r"expected a block of shape \(2, samples\), got \(3, 10\)"),
        (noise(10), r"got \(10,\)"),
        ([[0, math.nan], [0.0, 0]], "1 NaN or infinite values"),
    ):
        with pytest.raises(InputError, match=message):
            write_stream(tmp_path / "x.wav", [noise(2, 10), bad], channels=2)
    with pytest.raises(
        InputError, match=r"nothing was written to .*x\.wav; expected at least 1 sample"
    ):
        write_stream(tmp_path / "x.wav", [])
    assert os.listdir(tmp_path) == []


def test_a_wav_ends_at_4_gib(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_WAV_LIMIT", 100_000)
    with pytest.raises(InputError, match="a WAV file ends at 4 GiB"):
        save_audio(noise(200_000), tmp_path / "x.wav", 44100)
    save_audio(noise(200_000), tmp_path / "x.flac", 44100)
    assert os.listdir(tmp_path) == ["x.flac"]


@pytest.mark.skipif(os.name == "nt", reason="file size limits of POSIX")
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_a_full_disk_leaves_nothing_and_says_so(tmp_path, suffix):
    save_audio(noise(20_000), tmp_path / f"whole{suffix}", 44100)
    limit = (
        tmp_path / f"whole{suffix}"
    ).stat().st_size - 10  # fails in the last write, which happens on closing
    script = f"""
import resource, signal, sys
import numpy as np
from codecplus.errors import InputError
from codecplus.utils import save_audio
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
audio = 0.1 * np.random.default_rng(0).standard_normal(20_000)
try:
    save_audio(audio, sys.argv[1], 44100)
except InputError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / f"x{suffix}"], capture_output=True, text=True
    )
    assert "cannot write" in run.stdout, run.stderr
    assert "the space left" in run.stdout
    assert os.listdir(tmp_path) == [f"whole{suffix}"]


def test_writing_to_a_device_is_refused(tmp_path):
    (tmp_path / "x.wav").symlink_to(os.devnull)
    with pytest.raises(InputError, match=r"x\.wav: it is a device or a pipe; write a file"):
        save_audio(noise(10), tmp_path / "x.wav", 44100)


# ---- sample rates


@quick
@given(st.integers(1, 20000), st.sampled_from(RATES), st.sampled_from(RATES))
def test_there_and_back_is_never_shorter(n, from_rate, to_rate):
    there = resampled_length(n, from_rate, to_rate)
    assert there == math.ceil(n * to_rate / from_rate) >= 1
    back = resampled_length(there, to_rate, from_rate)
    assert n <= back < n + from_rate / to_rate + 1


@quick
@given(
    st.integers(1, 12000),
    st.sampled_from([*RATES, 44101]),
    st.sampled_from(RATES),
    st.integers(1, 2),
    sizes,
)
def test_a_stream_is_resampled_as_one_shot_is(n, from_rate, to_rate, channels, sizes):
    audio = noise(channels, n)
    resampler = Resampler(from_rate, to_rate, channels)
    stream = np.concatenate(
        [*(resampler.push(block) for block in pieces(audio, sizes)), resampler.flush()], axis=1
    )
    once = resample(audio, from_rate, to_rate)
    assert stream.dtype == once.dtype == np.float32
    assert stream.shape == once.shape == (channels, resampled_length(n, from_rate, to_rate))
    np.testing.assert_allclose(stream, once, rtol=0, atol=1e-6)


@pytest.mark.parametrize("from_rate", [8000, 44100, 96000])
@pytest.mark.parametrize("to_rate", [16000, 22050, 44100, 48000])
def test_resampling_shifts_nothing(from_rate, to_rate):
    def tone(rate):
        return np.sin(2 * np.pi * 440 * np.arange(rate) / rate)

    middle = slice(to_rate // 4, 3 * to_rate // 4)
    np.testing.assert_allclose(
        resample(tone(from_rate), from_rate, to_rate)[middle], tone(to_rate)[middle], atol=1e-6
    )


def test_resampling_is_soxr_at_its_best():
    audio = noise(30000)
    expected = soxr.resample(audio, 44100, 16000, quality="VHQ")
    np.testing.assert_allclose(resample(audio, 44100, 16000)[: len(expected)], expected, atol=1e-6)


def test_equal_rates_change_nothing():
    audio = noise(2, 100)
    np.testing.assert_array_equal(resample(audio, 44100, 44100), audio)
    assert resample(audio, 44100, 44100) is not audio


def test_resampler_says_what_it_expects():
    with pytest.raises(
        InputError, match="expected from_rate as an integer from 4000 to 1000000, got -1"
    ):
        Resampler(-1, 44100)
    with pytest.raises(InputError, match="expected to_rate"):
        resample(noise(10), 44100, 3)
    with pytest.raises(
        InputError, match=r"expected a block of shape \(2, samples\), got \(1, 10\)"
    ):
        Resampler(8000, 44100, 2).push(noise(1, 10))
    for to_rate in (8000, 44100):
        resampler = Resampler(8000, to_rate)
        assert resampler.flush().shape == (1, 0)
        with pytest.raises(InputError, match="this Resampler is flushed; make a new one"):
            resampler.push(noise(10))
        assert resampler.flush().shape == (1, 0)


# ---- loudness


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([8000, 11025, 16000, 44100, 48000]),
    st.integers(1, 5),
    st.floats(0.5, 3.0),
    sizes,
    st.integers(0, 99),
)
def test_loudness_is_that_of_pyloudnorm_for_every_chunking(rate, channels, seconds, sizes, seed):
    audio = noise(channels, int(seconds * rate) + 1, seed=seed)
    audio[:, audio.shape[1] // 2 :] *= 1e-3  # so that the gate has work
    meter = LoudnessMeter(rate, channels)
    for block in pieces(audio, sizes):
        meter.push(block)
    expected = pyloudnorm.Meter(rate).integrated_loudness(audio.T.astype(np.float64))
    assert meter.loudness() == pytest.approx(expected, abs=1e-6)
    assert meter.loudness() == meter.loudness()
    assert integrated_loudness(audio, rate) == pytest.approx(expected, abs=1e-6)
    assert integrated_loudness(pieces(audio, [1000]), rate) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n", [1, 1000, 17639, 17641, 22049])
def test_short_signals_are_filled_up_to_half_a_second(n):
    audio = noise(n, gain=0.5)
    padded = np.pad(audio, (0, 22050 - n)).astype(np.float64)
    expected = pyloudnorm.Meter(44100).integrated_loudness(padded)
    assert integrated_loudness(audio, 44100) == pytest.approx(expected, abs=1e-6)


def test_a_full_scale_tone_of_997_hz_has_minus_3_lufs():  # ITU-R BS.1770-4, annex 1
    tone = np.sin(2 * np.pi * 997 * np.arange(48000 * 2) / 48000)
    assert integrated_loudness(tone, 48000) == pytest.approx(-3.01, abs=0.05)


def test_asking_for_the_loudness_so_far_changes_nothing():
    audio, meter = noise(1, 44100), LoudnessMeter(44100)
    for block in pieces(audio, [5000]):
        meter.push(block)
        meter.loudness()
    assert meter.loudness() == pytest.approx(integrated_loudness(audio, 44100), abs=1e-9)


def test_silence_has_no_loudness():
    assert integrated_loudness(np.zeros(44100), 44100) == -math.inf
    assert integrated_loudness(noise(44100, gain=1e-5), 44100) == -math.inf
    assert LoudnessMeter(44100, 2).loudness() == -math.inf


def test_the_low_frequency_channel_does_not_count():
    audio = noise(6, 44100)
    expected = pyloudnorm.Meter(44100).integrated_loudness(
        audio[[0, 1, 2, 4, 5]].T.astype(np.float64)
    )
    assert integrated_loudness(audio, 44100) == pytest.approx(expected, abs=1e-6)


def test_loudness_says_what_it_expects():
    with pytest.raises(InputError, match="expected channels as an integer from 1 to 6, got 7"):
        integrated_loudness(noise(7, 1000), 44100)
    with pytest.raises(InputError, match="at least 1 sample, got no blocks"):
        integrated_loudness(iter([]), 44100)
    with pytest.raises(
        InputError, match=r"expected a block of shape \(1, samples\), got \(2, 10\)"
    ):
        LoudnessMeter(44100).push(noise(2, 10))


# ---- mel spectrograms


@pytest.mark.parametrize(
    ("rate", "n_fft", "n_mels"), [(44100, 2048, 80), (16000, 512, 40), (24000, 1024, 128)]
)
def test_mel_filters_have_slaneys_shape(rate, n_fft, n_mels):
    filters = mel_filterbank(rate, n_fft, n_mels)
    assert filters.shape == (n_mels, n_fft // 2 + 1)
    assert filters.dtype == np.float32
    # corners by Slaney's Auditory Toolbox: 15 mels per 1000 Hz, then 27 per factor of 6.4
    mels = np.linspace(0, 15 + 27 * math.log(rate / 2000) / math.log(6.4), n_mels + 2)
    corners = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    frequencies = np.arange(n_fft // 2 + 1) * rate / n_fft
    for row, (low, centre, high) in zip(
        filters, zip(corners, corners[1:], corners[2:], strict=False), strict=True
    ):
        expected = np.interp(frequencies, [low, centre, high], [0, 2 / (high - low), 0])
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_more_mel_bands_than_bins_leave_some_empty_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = mel_filterbank(44100, 256, 128)
    assert (filters.sum(axis=1) == 0).any()


def test_mel_filters_say_what_they_expect():
    with pytest.raises(InputError, match="expected an even n_fft, got 511"):
        mel_filterbank(16000, 511, 40)
    with pytest.raises(InputError, match="expected n_mels as an integer from 1 to 65536, got 0"):
        mel_filterbank(16000, 512, 0)
    with pytest.raises(
        InputError, match=r"0 <= fmin < fmax <= sample_rate / 2 \(= 8000\), got 0.0 and 9000"
    ):
        mel_filterbank(16000, 512, 40, fmax=9000)


@pytest.mark.parametrize("win_length", [None, 100])
@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("n", [1, 2, 3, 64, 127, 128, 129, 1000])
def test_mel_spectrogram_is_the_plain_definition(n, win_length, power):
    audio = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    width = win_length or 256
    window = np.zeros(256)
    start = (256 - width) // 2
    window[start : start + width] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(width) / width)
    mirrored = np.pad(audio.numpy(), 128, mode="reflect")
    frames = np.stack(
        [mirrored[64 * t : 64 * t + 256] * window for t in range(1 + n // 64)], axis=1
    )
    expected = (
        mel_filterbank(16000, 256, 20).astype(np.float64)
        @ np.abs(np.fft.rfft(frames, axis=0)) ** power
    )
    mel = mel_spectrogram(
        audio, 16000, n_mels=20, n_fft=256, hop_length=64, win_length=win_length, power=power
    )
    assert mel.shape == (20, 1 + n // 64)
    np.testing.assert_allclose(mel, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(500,), (3, 500), (2, 3, 500), (2, 1, 1)])
def test_mel_spectrogram_keeps_leading_dimensions_and_gradients(shape):
    audio = torch.randn(shape, requires_grad=True)
    mel = mel_spectrogram(audio, 16000, n_mels=8, n_fft=128, hop_length=32)
    assert mel.shape == (*shape[:-1], 8, 1 + shape[-1] // 32)
    mel.sum().backward()
    assert audio.grad is not None
    assert torch.isfinite(audio.grad).all()
    flat = audio.detach().reshape(-1, shape[-1])[-1]
    last = mel_spectrogram(flat, 16000, n_mels=8, n_fft=128, hop_length=32)
    torch.testing.assert_close(mel.detach().reshape(-1, *mel.shape[-2:])[-1], last)


def test_mel_spectrogram_of_silence_has_gradients():
    audio = torch.zeros(1000, requires_grad=True)
    mel_spectrogram(audio, 16000).sum().backward()
    assert torch.isfinite(audio.grad).all()


def test_mel_spectrogram_is_computed_in_float32_under_autocast_and_for_half():
    audio = torch.randn(4000).bfloat16()
    expected = mel_spectrogram(audio.float(), 16000)
    torch.testing.assert_close(mel_spectrogram(audio, 16000), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(mel_spectrogram(audio.float(), 16000), expected)


def test_mel_spectrogram_trains_after_inference_mode():
    settings = {
        "n_mels": 7,
        "n_fft": 64,
        "hop_length": 16,
    }  # used by no other test: the filters are cached
    with torch.inference_mode():
        mel_spectrogram(torch.randn(100), 16000, **settings)
    audio = torch.randn(100, requires_grad=True)
    mel_spectrogram(audio, 16000, **settings).sum().backward()
    assert audio.grad is not None


@pytest.mark.parametrize(
    ("audio", "settings", "message"),
    [
        (np.zeros(10), {}, "expected audio as a torch tensor of floats, got ndarray"),
        (
            torch.zeros(10, dtype=torch.int16),
            {},
            "expected audio as a torch tensor of floats, got torch.int16",
        ),
        (torch.zeros(2, 0), {}, r"at least 1 sample, got \(2, 0\)"),
        (torch.zeros(()), {}, r"\(\.\.\., samples\) with at least 1 sample, got \(\)"),
        (
            torch.zeros(10),
            {"win_length": 4096},
            "expected win_length as an integer from 1 to 2048, got 4096",
        ),
        (torch.zeros(10), {"hop_length": 0}, "expected hop_length as an integer from 1 to"),
        (torch.zeros(10), {"n_fft": 2047}, "expected an even n_fft, got 2047"),
    ],
)
def test_mel_spectrogram_says_what_it_expects(audio, settings, message):
    with pytest.raises(InputError, match=message):
        mel_spectrogram(audio, 16000, **settings)


# ---- the module


def test_importing_is_quick():
    script = "import sys, codecplus.utils; print(*{'torch', 'scipy', 'pyloudnorm', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_errors_are_what_callers_catch():
    assert issubclass(InputError, CodecPlusError)
    assert issubclass(InputError, ValueError)


def test_the_demo_clip_is_short_clean_and_at_a_sensible_level():
    path = Path(codecplus.__file__).parent / "assets" / "demo.flac"
    audio, sample_rate = load_audio(path)
    assert sample_rate == 44100
    assert path.stat().st_size < 600_000
    assert 6 <= audio.shape[-1] / sample_rate <= 8.5
    assert -23 < integrated_loudness(audio, sample_rate) < -17
    assert np.abs(audio).max() < 0.95
    assert np.abs(audio[..., [0, -1]]).max() < 1e-3
