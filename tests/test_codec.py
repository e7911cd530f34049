"""The codec: any audio in, codes or bytes out, and the same audio's shape back."""

import os
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from tiny import GEOMETRIES, tiny_model

import codecplus.compression
from codecplus import Codec, CompressionOptions, load_codec
from codecplus.errors import (
    CodecPlusError,
    FileFormatError,
    InputError,
    ModelMismatchError,
    OutputError,
    OutputExistsError,
)
from codecplus.utils import load_audio, save_audio


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("shape", [(1,), (777,), (1, 500), (2, 3001), (6, 40)])
def test_audio_comes_back_in_its_shape(codec, rng, rate, shape):
    audio = (rng.standard_normal(shape) * 0.2).astype(np.float32)
    latents = codec.encode(audio, rate)
    assert latents.dtype == np.int16
    assert latents.shape[:-1] == ((4,) if len(shape) == 1 else (shape[0], 4))
    decoded = codec.decode(latents)
    assert decoded.shape == audio.shape
    assert decoded.dtype == np.float32
    from_file = codec.decompress(codec.compress(audio, sample_rate=rate))
    assert (
        from_file.shape == (audio[0] if shape[0] == 1 and len(shape) == 2 else audio).shape
    )  # a mono file is (S,)
    np.testing.assert_array_equal(from_file.ravel(), decoded.ravel())


def test_bytes_and_codes_decode_alike(codec, rng):
    audio = rng.standard_normal((2, 5000)).astype(np.float32) * 0.2
    latents = codec.encode(audio, 22050, n_quantizers=2)
    data = codec.compress(audio, sample_rate=22050, n_quantizers=2)
    np.testing.assert_array_equal(codec.decode(latents), codec.decompress(data))


def test_every_kind_of_array_gives_the_same_codes(codec, rng):
    audio = (rng.standard_normal(2000) * 3000).astype(np.int16)
    floats = audio.astype(np.float32) / 32768
    expected = codec.encode(floats)
    for other in (audio, floats.astype(np.float64), floats.tolist(), torch.from_numpy(floats)):
        np.testing.assert_array_equal(codec.encode(other), expected)


def test_a_list_of_clips_is_a_batch(codec, rng):
    clips = [rng.standard_normal(n).astype(np.float32) for n in (5, 700)]
    batch = codec.encode(clips)
    assert [b.shape for b in batch] == [codec.encode(c).shape for c in clips]
    assert [d.shape for d in codec.decode(batch)] == [c.shape for c in clips]
    channels = codec.encode(
        [[0.1, 0.2], [0.3, 0.4]]
    )  # lists of numbers are the channels of one clip
    assert channels.shape == (2, 4, 1)


def test_codes_equal_those_of_the_model(codec, rng):
    audio = rng.standard_normal(5000).astype(np.float32) * 0.3
    with torch.no_grad():
        expected = codec.model(torch.from_numpy(audio)[None, None])
    np.testing.assert_array_equal(codec.encode(audio), expected.audio_codes[0].numpy())
    np.testing.assert_allclose(
        codec.decode(codec.encode(audio)), expected.audio_values[0].numpy(), atol=1e-5
    )


def test_plain_codes_decode_to_whole_frames(codec, rng):
    codes = rng.integers(0, 64, (3, 10))
    assert codec.decode(codes).shape == (3200,)
    assert codec.decode(torch.from_numpy(codes)).shape == (3200,)
    assert codec.decode(codec.encode(np.zeros(3200, np.float32))[:2, 3:5]).shape == (640,)


def test_latents_keep_what_decoding_needs_through_pickle_and_copy(codec):
    latents = codec.encode(np.zeros(777, np.float32), 8000)
    for other in (pickle.loads(pickle.dumps(latents)), latents.copy()):
        assert codec.decode(other).shape == (777,)


@pytest.mark.parametrize(
    ("bitrate", "codebooks"), [(0.3, 1), (0.5, 2), (0.62, 2), (1.2, 4), (1.3, 4)]
)
def test_bitrate_picks_the_nearest_number_of_codebooks(codec, bitrate, codebooks):
    # 50 frames a second, 6 bits a code: 0.3 kbit/s per codebook
    assert codec.bitrates == pytest.approx([0.3, 0.6, 0.9, 1.2])
    assert codec.encode(np.zeros(320, np.float32), bitrate=bitrate).shape[0] == codebooks
    stereo = codec.encode(np.zeros((2, 320), np.float32), bitrate=2 * bitrate)
    assert stereo.shape == (2, codebooks, 1)


def test_an_unreachable_bitrate_says_which_exist(codec):
    with pytest.raises(
        InputError, match=r"no 6.0 kbit/s for 1 channel; choose from 0.30, 0.60, 0.90, 1.20"
    ):
        codec.encode(np.zeros(320, np.float32), bitrate=6.0)
    with pytest.raises(InputError, match="1 to 4 codebooks, got n_quantizers=0"):
        codec.encode(np.zeros(320, np.float32), n_quantizers=0)
    with pytest.raises(InputError, match="got both"):
        codec.encode(np.zeros(320, np.float32), bitrate=0.3, n_quantizers=1)
    with pytest.raises(InputError, match="bitrate as a number of kbit/s, got '3'"):
        codec.encode(np.zeros(320, np.float32), bitrate="3")
    for wrong in ("2", 2.0, True):
        with pytest.raises(InputError, match=f"n_quantizers as an integer, got {wrong!r}"):
            codec.encode(np.zeros(320, np.float32), n_quantizers=wrong)


@pytest.mark.parametrize("channels", [1, 2])
def test_size_is_within_1_percent_of_the_nominal_rate(channels, rng):
    codec = Codec(tiny_model(codebook_size=1024, **GEOMETRIES["44khz"]))
    audio = (rng.standard_normal((channels, 12 * 44100)) * 0.2).astype(np.float32)
    nominal = codec.bitrates[2] * channels
    size = len(codec.compress(audio, bitrate=nominal, entropy_coding=False))
    assert size * 8 / 12000 == pytest.approx(nominal, rel=0.01)
    assert len(codec.compress(audio, bitrate=nominal)) <= 1.01 * size
    assert len(codec.compress(np.zeros_like(audio), bitrate=nominal)) <= 0.1 * size


def test_a_file_and_its_samples_compress_alike(codec, rng, tmp_path):
    audio = (rng.standard_normal((2, 30000)) * 0.2).clip(-1, 1).astype(np.float32)
    save_audio(audio, tmp_path / "in.wav", 22050)
    stored, rate = load_audio(tmp_path / "in.wav")
    data = codec.compress(stored, sample_rate=rate, loudness=-23)
    assert codec.compress(tmp_path / "in.wav", loudness=-23) == data
    path = codec.compress(str(tmp_path / "in.wav"), str(tmp_path / "out.dacp"), loudness=-23)
    assert path.read_bytes() == data
    assert codec.decompress(path, tmp_path / "out.wav") == tmp_path / "out.wav"
    written, rate = load_audio(tmp_path / "out.wav")
    assert (written.shape, rate) == ((2, 30000), 22050)
    np.testing.assert_allclose(written, codec.decompress(data), atol=1e-4)


def test_many_files_at_once(codec, rng, tmp_path):
    for name in ("a", "b"):
        save_audio(rng.standard_normal(900) * 0.1, tmp_path / f"{name}.wav", 16000)
    (tmp_path / "coded").mkdir()
    paths = codec.compress([tmp_path / "a.wav", tmp_path / "b.wav"], tmp_path / "coded")
    assert [p.name for p in paths] == ["a.dacp", "b.dacp"]
    assert [a.shape for a in codec.decompress(paths)] == [(900,), (900,)]


def test_loudness_is_brought_back(codec, rng):
    quiet = rng.standard_normal(16000).astype(np.float32) * 0.001
    latents = codec.encode(quiet, loudness=-23)
    assert latents.info.gain > 10
    np.testing.assert_array_equal(codec.encode(quiet * np.float32(latents.info.gain)), latents)
    unity = latents.copy()
    unity.info = codec.encode(quiet).info
    np.testing.assert_allclose(
        codec.decode(latents) * latents.info.gain, codec.decode(unity), rtol=1e-5, atol=1e-7
    )
    assert codec.encode(np.zeros(16000, np.float32), loudness=-23).info.gain == 1.0


def test_a_loud_clip_is_not_driven_over_full_scale(codec):
    clicks = np.zeros(16000, np.float32)
    clicks[::4000] = 0.9
    assert codec.encode(clicks, loudness=-5).info.gain == pytest.approx(1 / 0.9)


def test_codes_of_another_model_are_refused(codec):
    other = Codec(tiny_model(seed=1, **GEOMETRIES["16khz"]))
    audio = np.zeros(640, np.float32)
    with pytest.raises(ModelMismatchError, match="codes of another one"):
        other.decode(codec.encode(audio))
    with pytest.raises(ModelMismatchError, match="load the model that made them"):
        other.decompress(codec.compress(audio))


def test_a_file_of_an_embedded_model_names_it(codec):
    data = load_codec("dac-16khz-live").compress(np.zeros(640, np.float32))
    with pytest.raises(ModelMismatchError, match="load_codec\\('dac-16khz-live'\\) decodes them"):
        codec.decompress(data)


def test_damage_is_one_error_and_nothing_is_written(codec, rng, tmp_path):
    data = codec.compress(rng.standard_normal(9000).astype(np.float32))
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        (tmp_path / "in.dacp").write_bytes(damaged)
        with pytest.raises(CodecPlusError):
            codec.decompress(tmp_path / "in.dacp", tmp_path / "out.wav")
        with pytest.raises(FileFormatError):
            codec.decompress(data[:position])
    assert [p.name for p in tmp_path.iterdir()] == ["in.dacp"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_error_of_the_package(codec):
    audio = np.zeros(9, np.float32)
    for write in (codec.compress, lambda _, path: codec.write_codes(codec.encode(audio), path)):
        with pytest.raises(OutputError, match="cannot write /dev/full: no space left on the disk"):
            write(audio, "/dev/full")


def test_files_are_not_overwritten_when_that_is_not_wanted(codec, tmp_path):
    (tmp_path / "out.dacp").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"out\.dacp exists already"):
        codec.compress(np.zeros(9, np.float32), tmp_path / "out.dacp", overwrite=False)
    assert (tmp_path / "out.dacp").read_text() == "mine"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.encode([]), "at least 1 sample"),
        (lambda c: c.encode(np.full(9, np.nan)), "NaN"),
        (lambda c: c.encode(c.encode(np.zeros(9, np.float32))), "these are codes"),
        (lambda c: c.encode(np.zeros(9), 0), "positive integer, got 0"),
        (lambda c: c.decode(np.full((2, 3), 64)), "codes from 0 to 63, got 64 to 64"),
        (lambda c: c.decode(np.zeros((5, 3), int)), "1 to 4 codebooks, got 5"),
        (lambda c: c.decode(np.zeros((2, 3))), "integer codes"),
        (lambda c: c.decompress(3), "path or the bytes of a .dacp file, got int"),
        (lambda c: c.decompress("/nowhere.dacp"), "cannot open /nowhere.dacp"),
        (lambda c: c.compress("/nowhere.wav"), "no file /nowhere.wav"),
        (lambda c: c.compress(np.zeros(9), "/nowhere/out.dacp"), "no folder /nowhere"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(codec, call, message):
    with pytest.raises(InputError, match=message):
        call(codec)


def test_memory_does_not_grow_with_the_file(codec, tmp_path, monkeypatch):
    monkeypatch.setattr("codecplus.inference.chunked._CHUNK_ELEMENTS", 1 << 18)  # chunks of 2 s
    peaks = []
    for seconds in (8, 40):
        save_audio(np.zeros(seconds * 16000, np.float32), tmp_path / "in.wav", 16000)
        tracemalloc.start()  # numpy reports its arrays to it
        codec.compress(tmp_path / "in.wav", tmp_path / "out.dacp")
        codec.decompress(tmp_path / "out.dacp", tmp_path / "out.wav")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_the_contract_runs_as_it_stands(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    save_audio(rng.standard_normal((2, 30000)) * 0.05, "input.wav", 48000)

    audio, sr = load_audio("input.wav")
    codec = load_codec("dac", sample_rate=44100, n_mels=80)
    latents = codec.encode(audio)
    assert latents.shape[:2] == (2, 12)
    assert latents.itemsize == 2
    assert latents.size == np.prod(latents.shape)
    audio2 = codec.decode(latents)
    assert audio2.shape == audio.shape
    save_audio(audio2, "output.wav", sr)
    codec.compress("input.wav", "output.dacp", bitrate=6.0)
    data = codec.compress(audio, sample_rate=sr, bitrate=6.0)
    audio3 = codec.decompress(data)
    assert audio3.shape == audio.shape
    assert codec.mel_spectrogram(audio).shape[:2] == (2, 80)
    assert (codec.sample_rate, codec.hop_length) == (44100, 512)
    assert codec.frame_rate == 86.1328125
    assert codec.latency == pytest.approx(0.645, abs=5e-4)  # as the README says


def test_load_codec_takes_the_checkpoint_for_the_rate():
    assert load_codec().model.config.sampling_rate == 44100
    assert load_codec(sample_rate=16000).model.config.model_type == "causal_dac"
    other = load_codec(sample_rate=22050)
    assert (other.sample_rate, other.model_sample_rate) == (22050, 44100)
    assert load_codec(sample_rate=16000).latency == 0.02


def test_options_of_load_codec_are_checked():
    with pytest.raises(InputError, match="expected dtype float32, bfloat16, float16, got 'int8'"):
        load_codec(dtype="int8")
    with pytest.raises(InputError, match="no device nonsense"):
        load_codec(device="nonsense")
    with pytest.raises(InputError, match="positive integer, got -1"):
        load_codec(sample_rate=-1)


def test_half_precision_keeps_the_fingerprint():
    codec = load_codec("dac-16khz-live")
    half = load_codec("dac-16khz-live", dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    data = codec.compress(np.zeros(1000, np.float32))
    assert half.decompress(data).shape == (1000,)


def test_streams_give_what_files_give(codec, rng):
    audio = rng.standard_normal(5000).astype(np.float32) * 0.2
    encoder, decoder = codec.encoder_stream(), codec.decoder_stream()
    codes = [encoder.push(audio[i : i + 777]) for i in range(0, 5000, 777)] + [encoder.flush()]
    np.testing.assert_array_equal(np.concatenate(codes, axis=-1), codec.encode(audio))
    samples = np.concatenate([decoder.push(piece) for piece in codes] + [decoder.flush()])
    np.testing.assert_allclose(samples[:5000], codec.decode(codec.encode(audio)), atol=1e-5)
    assert codec.encoder_stream(bitrate=0.6, batch=3).push(np.zeros((3, 9000), np.float32)).shape[
        :2
    ] == (3, 2)


# ---- codes under a view, and codes to files


def test_the_first_codebooks_decode_as_the_signal_they_come_from(codec, rng):
    audio = rng.standard_normal(5000).astype(np.float32) * 0.02
    codes = codec.encode(audio, 22050, loudness=-23)
    first = codes[:2]
    np.testing.assert_array_equal(
        codec.decode(first), codec.decode(codec.encode(audio, 22050, 2 * 0.3, loudness=-23))
    )
    assert (first.info, first.num_samples) == (codes.info, 5000)
    assert codes[:, ::-1].num_samples is None  # other frames in their place
    other = Codec(tiny_model(seed=1, **GEOMETRIES["16khz"]))
    with pytest.raises(ModelMismatchError):
        other.decode(first)


def test_some_frames_keep_rate_gain_and_model(codec, rng):
    codes = codec.encode(rng.standard_normal((2, 16000)) * 0.02, 8000, loudness=-23)
    part = codes[..., 10:20]
    assert (part.info, part.num_samples) == (codes.info, None)
    decoded = codec.decode(part)
    assert decoded.shape == (2, 10 * 320 // 2)
    quiet = codec.decode(np.asarray(part))  # plain codes: the model's rate, no gain undone
    assert np.abs(quiet).max() > 2 * np.abs(decoded).max()
    assert codec.decode(codes[1]).shape == (16000,)  # one channel of two


def test_codebooks_other_than_the_first_ones_lose_their_info(codec):
    codes = codec.encode(np.zeros(3200, np.float32))
    for view in (codes[1:], codes[::-1], codes[[0, 2]], codes[0], codes[:0]):
        assert view.info is None
        assert view.num_samples is None
    assert type(codes + 1) is np.ndarray
    assert (codes == np.asarray(codes)).mean() == 1


def test_a_bad_file_of_a_batch_takes_no_other_along(codec, rng, tmp_path):
    for name in ("a.wav", "c.wav"):
        save_audio(rng.uniform(-0.5, 0.5, 1600), tmp_path / name, 16000)
    (tmp_path / "b.wav").write_bytes(b"no audio")
    for name in ("coded", "again"):
        (tmp_path / name).mkdir()
    sources = [tmp_path / name for name in ("a.wav", "b.wav", "c.wav")]
    with pytest.raises(FileFormatError, match=r"1 of 3 files failed, the others .*b\.wav: "):
        codec.compress(sources, tmp_path / "coded")
    coded = [tmp_path / "coded" / name for name in ("a.dacp", "c.dacp")]
    assert all(path.is_file() for path in coded)
    coded[0].write_bytes(coded[0].read_bytes()[:-3])
    with pytest.raises(FileFormatError, match=r"1 of 2 files failed, the others .*a\.dacp: "):
        codec.decompress(coded, tmp_path / "again")
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["c.wav"]


def test_a_file_that_the_system_refuses_takes_no_other_along(codec, tmp_path, monkeypatch):
    for name in ("a.wav", "b.wav", "c.wav"):
        save_audio(np.zeros(640), tmp_path / name, 16000)

    def locked(source, *_):
        if source.name == "b.wav":
            raise PermissionError(13, "Permission denied", str(source))
        return open_audio(source, *_)

    open_audio = codecplus.compression.open_audio
    monkeypatch.setattr("codecplus.compression.open_audio", locked)
    (tmp_path / "out").mkdir()
    sources = [tmp_path / name for name in ("a.wav", "b.wav", "c.wav")]
    said = r"1 of 3 files failed, the others .*b\.wav: .*b\.wav: permission denied"
    with pytest.raises(PermissionError, match=said):
        codec.compress(sources, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.dacp", "c.dacp"]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [{}, {"n_quantizers": 2}, {"loudness": -30}, {"rate_control": "vbr", "quality": 7}],
    ids=str,
)
def test_compressing_is_encoding_then_writing(codec, rng, tmp_path, channels, settings):
    audio = (rng.standard_normal((channels, 9000)) * 0.1).astype(np.float32)
    data = codec.compress(audio, sample_rate=22050, **settings)
    codes = codec.encode(audio, 22050, **settings)
    assert codec.write_codes(codes) == data
    assert codec.write_codes(codes, tmp_path / "out.dacp").read_bytes() == data
    read = codec.read_codes(tmp_path / "out.dacp")
    np.testing.assert_array_equal(np.asarray(read).reshape(codes.shape), codes)
    assert read.num_samples == 9000
    assert codec.write_codes(read) == data
    np.testing.assert_array_equal(
        codec.decode(read).reshape(audio.shape), codec.decompress(data).reshape(audio.shape)
    )


def test_plain_codes_are_written_as_whole_frames(codec, rng):
    codes = rng.integers(0, 64, (3, 10))
    data = codec.write_codes(codes)
    np.testing.assert_array_equal(codec.decompress(data), codec.decode(codes))
    with pytest.raises(InputError, match="codes from 0 to 63, got -100 to 5; take padding out"):
        codec.write_codes(np.array([[5, -100]]))
    with pytest.raises(InputError, match="codes from 0 to 63, got -1 to 5"):
        codec.decode(np.array([[5, 5], [5, -1]]))  # plain arrays have no variable rate


@pytest.mark.parametrize("form", ["path", "pair", "pair of gradio", "dict", "tensor pair"])
def test_audio_comes_as_the_ecosystem_gives_it(codec, rng, tmp_path, form):
    audio = (rng.standard_normal(4000) * 0.1).astype(np.float32)
    save_audio(audio, tmp_path / "in.wav", 8000, subtype="FLOAT")
    given = {
        "path": tmp_path / "in.wav",
        "pair": (audio, 8000),
        "pair of gradio": (8000, audio),
        "dict": {"array": audio, "sampling_rate": 8000},
        "tensor pair": (torch.from_numpy(audio)[None], 8000),
    }[form]
    codes = codec.encode(given)
    np.testing.assert_array_equal(np.asarray(codes).reshape(4, -1), codec.encode(audio, 8000))
    assert codes.info.original_sample_rate == 8000
    with pytest.raises(InputError, match="knows its own rate"):
        codec.encode(given, 16000)


def test_two_files_never_become_one(codec, tmp_path):
    names = ["a/x.wav", "b/x.wav", "b/x.flac"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_audio(np.zeros(900), tmp_path / name, 16000)
    sources = [tmp_path / name for name in names]
    out = tmp_path / "out"
    out.mkdir()
    assert codec.compress(sources, out) == [
        out / name for name in ("a/x.dacp", "b/x.wav.dacp", "b/x.flac.dacp")
    ]
    assert all(path.is_file() for path in out.glob("*/x*"))
    with pytest.raises(InputError, match=r"would both become .*x\.wav\.dacp; rename one"):
        codec.compress([sources[0], sources[0]], out)
    coded = codec.compress(sources[0], out / "y.dacp")
    (out / "y.wav").symlink_to(coded)
    with pytest.raises(InputError, match=r"would be written over .*; name another folder"):
        codec.decompress([coded], out)


def test_a_recording_is_never_written_over_itself(codec, tmp_path):
    save_audio(np.zeros(900), tmp_path / "x.wav", 16000)
    (tmp_path / "link.dacp").symlink_to(tmp_path / "x.wav")
    content = (tmp_path / "x.wav").read_bytes()
    for output in ("x.wav", "link.dacp"):
        with pytest.raises(InputError, match=r"x\.wav would be written over itself"):
            codec.compress(tmp_path / "x.wav", tmp_path / output)
    assert (tmp_path / "x.wav").read_bytes() == content
    codec.compress(tmp_path / "x.wav", tmp_path / "x.dacp")
    coded = (tmp_path / "x.dacp").read_bytes()
    (tmp_path / "link.wav").symlink_to(tmp_path / "x.dacp")
    with pytest.raises(InputError, match=r"x\.dacp would be written over itself"):
        codec.decompress(tmp_path / "x.dacp", tmp_path / "link.wav")
    assert (tmp_path / "x.dacp").read_bytes() == coded


def test_options_are_checked_once_and_by_name(codec):
    options = CompressionOptions(bitrate=0.6)
    audio = np.zeros(900, np.float32)
    assert codec.compress(audio, options=options) == codec.compress(audio, bitrate=0.6)
    with pytest.raises(InputError, match=r"unknown option 'bitrte'; expected bitrate, n_quant"):
        codec.compress(audio, bitrte=0.6)
    with pytest.raises(InputError, match="expected options or keywords, got options and effort"):
        codec.compress(audio, options=options, effort=1)


def test_a_codec_says_what_it_is(codec):
    text = repr(load_codec("dac-16khz-live", kernels=False))
    assert text == (
        "Codec(dac-16khz-live: 16000 Hz, 50 frames/s, 15 codebooks of 1024, "
        "0.50 to 7.50 kbit/s a channel, latency 20 ms, float32 on cpu)"
    )
    assert (codec.num_codebooks, codec.codebook_size) == (4, 64)
    assert (codec.device, codec.dtype) == ("cpu", "float32")


# ---- rows of data sets


@pytest.mark.parametrize("bad", [{0, 1, 2, 3}, {4, 5, 6, 7}, {1, 6}, set(range(8))], ids=str)
def test_map_of_datasets_goes_on_over_bad_clips(codec, rng, tmp_path, bad):
    datasets = pytest.importorskip("datasets")
    cells = []
    for i in range(8):
        if i in bad:
            cells.append({"bytes": b"no audio", "path": None})
        else:
            save_audio(rng.standard_normal(500 + i) * 0.1, tmp_path / f"{i}.wav", 16000)
            cells.append({"bytes": (tmp_path / f"{i}.wav").read_bytes(), "path": None})
    rows = datasets.Dataset.from_list([{"audio": cell, "n": i} for i, cell in enumerate(cells)])
    for options in ({}, {"features": codec.batch_features(rows.features)}):
        mapped = rows.map(codec.encode_batch, batched=True, batch_size=4, **options)
        assert mapped["n"] == list(range(8))
        for i, row in enumerate(mapped):
            assert bool(row["error"]) == (i in bad)
            assert row["num_samples"] == (0 if i in bad else 500 + i)
            assert np.shape(row["codes"])[0] == 4
    with pytest.raises(InputError, match="batched=True"):
        rows.map(codec.encode_batch)
    for cells in ([0.1] * 900, np.zeros(900), torch.zeros(900), None, "a.wav"):
        with pytest.raises(InputError, match="batched=True"):
            codec.encode_batch({"audio": cells})
    for cells in ([[0.1] * 900], np.zeros((1, 900)), torch.zeros(1, 900), []):
        assert codec.encode_batch({"audio": cells})["error"] == [""] * len(cells)
    stereo = rows.map(codec.encode_batch, batched=True, fn_kwargs={"channels": 2})
    assert stereo.features["codes"] == codec.batch_features(channels=2)["codes"]
