"""Audio files are read and written whole, in bounded memory, or refused in a sentence."""

import io
import math
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_signals import few_examples, noise, piece_sizes, pieces
from hypothesis import given

import codecplus
from codecplus.audio import files
from codecplus.audio.files import AudioFileReader, AudioFileWriter
from codecplus.audio.loudness import integrated_loudness
from codecplus.audio.resampling import resample
from codecplus.errors import FileFormatError, InputError, OutputExistsError
from codecplus.utils import load_audio, save_audio


def write_stream(path, blocks, channels=1, error=None):
    with AudioFileWriter(path, 44100, channels) as writer:
        for block in blocks:
            writer.write(block)
        if error:
            raise error


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


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs devices")
def test_a_device_and_a_pipe_without_end_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="expected an audio file or a pipe, got the device"):
        load_audio("/dev/zero")
    monkeypatch.setattr("codecplus.audio.files._MOST_PIPED", 1 << 18)
    os.mkfifo(tmp_path / "pipe")
    feeder = subprocess.Popen(["sh", "-c", 'cat /dev/zero > "$0"', tmp_path / "pipe"])
    with pytest.raises(InputError, match=r"at most 262144 bytes from the pipe .*, got more"):
        load_audio(tmp_path / "pipe")
    feeder.wait(10)


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
            r"is not readable audio \(Format not recognised\); expected WAV, FLAC, OGG, MP3 or another",
        ),
        (b"plain text, for sure\n" * 50, r"is not readable audio \(Format not recognised\)"),
        (wav_header(data=b""), "has 0 samples by its header, expected 1 at least"),
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


def test_a_header_that_claims_too_much_takes_no_memory(tmp_path):
    (tmp_path / "x.wav").write_bytes(wav_header(claim=0xFFFFFFF0))
    assert load_audio(tmp_path / "x.wav")[0].shape == (500,)


def test_load_refuses_a_flac_of_absurd_length(tmp_path):
    save_audio(noise(5000), tmp_path / "x.flac", 16000)
    data = bytearray((tmp_path / "x.flac").read_bytes())
    length = ((data[21] >> 4) << 36) + 2**36 - 1  # the last 36 bits count the samples
    data[21:26] = length.to_bytes(5, "big")
    (tmp_path / "x.flac").write_bytes(data)
    with pytest.raises(FileFormatError, match=r"is (truncated|damaged)"):
        load_audio(tmp_path / "x.flac")


@pytest.mark.parametrize("suffix", [".flac", ".mp3"])
def test_load_refuses_half_a_file(tmp_path, suffix):
    save_audio(noise(44100), tmp_path / f"x{suffix}", 44100)
    data = (tmp_path / f"x{suffix}").read_bytes()
    (tmp_path / f"x{suffix}").write_bytes(data[: len(data) // 2])
    said = r"is (truncated: its header says 44100 samples, .* are there|damaged after)"
    if suffix == ".mp3":
        said = f"is truncated: its header says {len(data)} bytes of audio, {len(data) // 2} are"
    with pytest.raises(FileFormatError, match=said):
        load_audio(tmp_path / f"x{suffix}")


def test_an_mp3_with_too_few_samples_for_its_index_is_refused(tmp_path):
    save_audio(noise(441_000), tmp_path / "x.mp3", 44100)
    data = bytearray((tmp_path / "x.mp3").read_bytes())
    flags = max(data.find(b"Xing"), data.find(b"Info")) + 4
    data[flags + 3] &= ~2  # the index says nothing of its size
    size = bytes(data[flags + 8 : flags + 12])
    del data[flags + 8 : flags + 12]
    data[flags + 24 : flags + 24] = size  # the frame keeps its length
    (tmp_path / "x.mp3").write_bytes(data[: len(data) // 2])
    with pytest.raises(FileFormatError, match=r"its header says \d+ samples, \d+ are there"):
        load_audio(tmp_path / "x.mp3")


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
            "FLAC holds up to 8 channels at 655350 Hz, got 9 at 44100 Hz; resample, or write a "
            ".wav",
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


@few_examples
@given(piece_sizes)
def test_a_stream_is_written_as_one_shot_is(tmp_path_factory, sizes):
    folder = tmp_path_factory.mktemp("stream")
    audio = noise(2, 9000)
    save_audio(audio, folder / "once.wav", 44100)
    write_stream(folder / "stream.wav", pieces(audio, sizes), channels=2)
    assert (folder / "stream.wav").read_bytes() == (folder / "once.wav").read_bytes()


def test_a_wav_stream_beyond_full_scale_becomes_float(tmp_path):
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
from codecplus.errors import OutputError
from codecplus.utils import save_audio
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
audio = 0.1 * np.random.default_rng(0).standard_normal(20_000)
try:
    save_audio(audio, sys.argv[1], 44100)
except OutputError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / f"x{suffix}"], capture_output=True, text=True
    )
    assert "cannot write" in run.stdout, run.stderr
    assert "File too large; make room or write elsewhere" in run.stdout
    assert os.listdir(tmp_path) == [f"whole{suffix}"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_the_reason_for_a_full_disk_is_the_space(tmp_path):
    (tmp_path / "x.wav").symlink_to("/dev/full")
    assert files._refusal_to_write(tmp_path / "x.wav") == "no space left on the disk"
    assert files._refusal_to_write(tmp_path / "y.wav") is None


def test_writing_to_a_device_is_refused(tmp_path):
    (tmp_path / "x.wav").symlink_to(os.devnull)
    with pytest.raises(InputError, match=r"x\.wav: it is a device or a pipe; write a file"):
        save_audio(noise(10), tmp_path / "x.wav", 44100)


# ---- the door of the package and its clip


def test_importing_is_quick():
    script = "import sys, codecplus.utils; print(*{'torch', 'scipy', 'pyloudnorm', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_the_demo_clip_is_short_clean_and_at_a_sensible_level():
    path = Path(codecplus.__file__).parent / "assets" / "demo.flac"
    audio, sample_rate = load_audio(path)
    assert sample_rate == 44100
    assert path.stat().st_size < 600_000
    assert 6 <= audio.shape[-1] / sample_rate <= 8.5
    assert -23 < integrated_loudness(audio, sample_rate) < -17
    assert np.abs(audio).max() < 0.95
    assert np.abs(audio[..., [0, -1]]).max() < 1e-3
