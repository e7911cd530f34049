"""Entropy coding, rate control, search and seeking as a user meets them: `compress`, `decompress`,
`codecplus`.
"""

import numpy as np
import pytest
import torch
from tiny import GEOMETRIES, tiny_model

from codecplus import Codec, load_codec
from codecplus.bitstream import EntropyModel, unpack
from codecplus.bitstream.blocks import NETWORK, _encode_as
from codecplus.cli import main
from codecplus.decompression import DamageWarning
from codecplus.errors import FileFormatError, InputError, ModelMismatchError
from codecplus.training.entropy import (
    CodebookGeometry,
    _encoded,
    _FloatNetwork,
    _windows,
    fit_network,
    numbered_recordings,
)
from codecplus.utils import load_audio, save_audio


@pytest.fixture(scope="module")
def audio():
    """Two seconds of noise that swells and falls, half a second of silence in it, loud enough for
    tiny models.
    """
    rng = np.random.default_rng(0)
    clip = rng.standard_normal(32000) * np.repeat(rng.uniform(0, 5, 32), 1000)
    clip[12000:20000] = 0
    return clip.astype(np.float32)


def plain_codec(**options) -> Codec:
    return Codec(tiny_model(**GEOMETRIES["16khz"]), **options)


@pytest.fixture(scope="module")
def trained(audio) -> Codec:
    """A codec with an entropy model that has seen very much the same."""
    codec = plain_codec()
    model = fit_network(
        [np.asarray(codec.encode(audio))], CodebookGeometry.of(codec), codec.fingerprint, steps=60
    )
    return plain_codec(entropy_models=[model])


def test_entropy_coding_is_lossless_and_smaller(trained, audio):
    data = trained.compress(audio)
    np.testing.assert_array_equal(trained.decompress(data), trained.decode(trained.encode(audio)))
    by_counts = plain_codec().compress(audio)
    assert len(data) < len(by_counts)
    assert len(data) < len(trained.compress(audio, entropy_coding=False))
    np.testing.assert_array_equal(plain_codec().decompress(by_counts), trained.decompress(data))
    with pytest.raises(ModelMismatchError, match="the entropy model"):
        plain_codec().decompress(data)


def test_while_time_is_left_recordings_are_encoded_again_a_little_changed(audio, tmp_path):
    codec, file, ever = plain_codec(), tmp_path / "in.wav", float("inf")
    save_audio(0.05 * audio, file, 16000)
    (plain,) = _encoded(codec, numbered_recordings([file]), ever, 0, seed=0)
    np.testing.assert_array_equal(plain, codec.encode(*load_audio(file)))
    clips = list(_encoded(codec, numbered_recordings([file]), ever, ever, seed=0))
    np.testing.assert_array_equal(clips[0], plain)
    assert len({clip.tobytes() for clip in clips}) == len(clips) > 2
    assert all(0.9 < clip.shape[-1] / plain.shape[-1] < 1.1 for clip in clips)
    assert (
        len(list(_encoded(codec, numbered_recordings([file, file]), 0, 0, seed=0))) == 1
    )  # one at least


def test_codebooks_see_each_other_through_their_projections():
    codec = plain_codec()
    first, second = codec.model.quantizer.quantizers[:2]
    books = CodebookGeometry.of(codec)
    entry = first.codebook.weight[3]
    with torch.no_grad():
        seen = second.in_proj(first.out_proj(entry[None, :, None])) - second.in_proj(
            first.out_proj(torch.zeros(1, len(entry), 1))
        )
    torch.testing.assert_close(books.views[1, :, 0] @ books.entries[0, 3], seen[0, :, 0])


def test_the_integer_network_takes_the_bits_that_the_rounded_floats_predict(audio):
    codec = plain_codec()
    books, codes = CodebookGeometry.of(codec), np.asarray(codec.encode(np.tile(audio, 4)))
    frames = torch.from_numpy(_windows(codes, books.entries.shape[1]))
    network = _FloatNetwork(frames, books, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():  # weights that matter
        for weights in (network.high, network.slopes, network.own, network.codes):
            weights += 0.05 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1))
        network.round(frames)
        bits = float(network.bits(frames).sum())
    model = EntropyModel(network.arrays(), codec.fingerprint)
    block = _encode_as(NETWORK, codes[None], model.codebook_size, model)
    assert 8 * len(block) == pytest.approx(bits, rel=0.02)


def test_the_trained_integers_predict_what_the_floats_did(trained, audio):
    (model,) = trained.entropy_models.values()
    assert EntropyModel.from_bytes(model.to_bytes()).identity == model.identity
    packed = len(trained.compress(audio, entropy_coding=False))
    assert len(trained.compress(audio)) < 0.75 * packed


def test_an_entropy_model_of_another_checkpoint_is_left_alone(trained):
    other = Codec(
        tiny_model(seed=1, **GEOMETRIES["16khz"]), entropy_models=trained.entropy_models.values()
    )
    assert not other.entropy_models


@pytest.mark.parametrize(
    ("share", "channels"),
    [
        (0.5, 2),
        (0.85, 1),
        pytest.param(0.5, 1, marks=pytest.mark.slow),
        pytest.param(0.85, 2, marks=pytest.mark.slow),
    ],
)
def test_abr_meets_its_target(channels, share):
    codec = plain_codec()
    rng = np.random.default_rng(1)
    clip = (
        rng.standard_normal((channels, 192000))
        * rng.uniform(0, 5, (channels, 192)).repeat(1000, axis=1)
    ).astype("f4")
    bitrate = share * len(codec.compress(clip)) * 8 / 12000
    data = codec.compress(clip, rate_control="abr", bitrate=bitrate)
    assert len(data) * 8 / 12000 == pytest.approx(bitrate, rel=0.02)
    assert codec.decompress(data).shape == (clip if channels > 1 else clip[0]).shape


def test_a_target_that_cannot_be_met_is_refused(audio):
    with pytest.raises(InputError, match=r"takes 0\.\d\d kbit/s at least"):
        plain_codec().compress(np.tile(audio, 6), rate_control="abr", bitrate=0.05)


def test_vbr_gives_more_for_more_and_little_for_silence(audio):
    codec = load_codec("dac-16khz-live")
    audio = 0.05 * audio
    sizes = [
        len(codec.compress(audio, rate_control="vbr", quality=quality)) for quality in (0, 6, 10)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]
    codes = unpack(codec.compress(audio, rate_control="vbr", quality=9), codec.entropy_models)[1][0]
    kept = (codes >= 0).sum(axis=0)
    assert kept[:35].mean() > 1.2 * kept[45:58].mean()


def test_a_frame_without_its_finest_codebooks_is_their_sum_without_them(audio):
    codec = plain_codec()
    codes = np.asarray(codec.encode(audio))[None]
    short = codes.copy()
    short[:, 2:] = -1
    full = np.concatenate(list(codec.network.decode_blocks([short])), axis=-1)
    np.testing.assert_allclose(
        full, np.concatenate(list(codec.network.decode_blocks([codes[:, :2]])), axis=-1)
    )


@pytest.mark.parametrize("effort", [1, 2, 3])
def test_effort_gives_codes_that_any_decoder_plays(trained, audio, effort):
    data = trained.compress(audio, effort=effort)
    codes = unpack(data, trained.entropy_models)[1]
    np.testing.assert_array_equal(trained.decompress(data), trained.decode(codes[0])[: len(audio)])
    plain = len(trained.compress(audio))
    assert len(data) <= 1.01 * plain


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize(
    ("start", "duration"), [(0, 0.5), (0.7, 0.4), (1.5, None), (2.0, 1.0), (0.3, 0.0)]
)
def test_a_part_is_a_slice_of_the_whole(audio, rate, start, duration):
    codec = plain_codec()
    data = codec.compress(audio, sample_rate=rate)
    whole = codec.decompress(data)
    start = start * 16000 / rate
    first = round(start * rate)
    stop = len(whole) if duration is None else min(len(whole), first + round(duration * rate))
    part = codec.decompress(data, start=start, duration=duration)
    np.testing.assert_allclose(part, whole[first:stop], atol=1e-3 if rate != 16000 else 1e-5)
    with pytest.raises(InputError, match="within the"):
        codec.decompress(data, start=99)


def test_recovery_conceals_what_is_lost_and_tells(audio):
    codec = plain_codec()
    clip = np.tile(audio, 42)
    data = bytearray(codec.compress(clip, entropy_coding=False))
    data[len(data) // 2] ^= 1
    with pytest.raises(FileFormatError, match="damaged"):
        codec.decompress(bytes(data))
    ((first, last),) = codec.find_damage(bytes(data)).lost_seconds
    with pytest.warns(DamageWarning, match=f"; lost: {first:.2f} to {last:.2f} s$") as told:
        heard = codec.decompress(bytes(data), recover=True)
    assert told[0].message.damage == codec.find_damage(bytes(data))
    assert heard.shape == clip.shape
    whole = codec.decode(codec.encode(clip))
    before, behind = round((first - 0.5) * 16000), round((last + 0.5) * 16000)
    np.testing.assert_allclose(heard[:before], whole[:before], atol=1e-5)
    np.testing.assert_allclose(heard[behind:], whole[behind:], atol=1e-5)
    assert not heard[round((first + 0.2) * 16000) : round((last - 0.1) * 16000)].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate_control": "nonsense"}, "'cbr', 'abr' or 'vbr'"),
        ({"rate_control": "abr"}, "needs a bitrate"),
        ({"rate_control": "vbr", "bitrate": 0.6}, "goes by quality"),
        ({"rate_control": "vbr", "quality": 11}, "quality from 0 to 10"),
        ({"quality": 5}, "rate_control='vbr' alone"),
        ({"rate_control": "vbr", "entropy_coding": False}, "needs entropy coding"),
        ({"effort": 4}, "effort from 0 to 3"),
    ],
)
def test_options_that_do_not_fit_are_refused(codec, options, message):
    with pytest.raises(InputError, match=message):
        codec.compress(np.zeros(3200, np.float32), **options)


def test_the_command_line_has_it_all(audio, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_audio(0.05 * audio, "in.wav", 16000)
    model = ["--model", "dac-16khz-live"]
    for name, options in {
        "packed": ["--packed"],
        "cbr": [],
        "vbr": ["--vbr", "--quality", "7"],
        "abr": ["--abr", "--bitrate", "3"],
    }.items():
        assert main(["encode", "in.wav", "-o", f"{name}.dacp", *model, *options]) == 0
        assert main(["decode", f"{name}.dacp", "-o", f"{name}.wav"]) == 0
    assert (tmp_path / "cbr.dacp").stat().st_size < (tmp_path / "packed.dacp").stat().st_size
    assert main(["info", "cbr.dacp"]) == 0
    assert "entropy" in capsys.readouterr().out
    assert (
        main(
            [
                "decode",
                "cbr.dacp",
                "-o",
                "part.wav",
                "--start",
                "0.5",
                "--duration",
                "0.25",
                "--recover",
            ]
        )
        == 0
    )


def test_an_entropy_model_is_trained_beside_the_weights(audio, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_model(**GEOMETRIES["16khz"]).save_pretrained("mine")
    save_audio(0.05 * audio, "in.wav", 16000)
    assert main(["entropy", "--model", "mine", "--data", "in.wav", "--minutes", "0.03"]) == 0
    codec = load_codec("mine")
    (model,) = codec.entropy_models.values()
    assert (
        unpack(codec.compress("in.wav"), {model.identity: model})[0].entropy_model == model.identity
    )
    assert main(["encode", "in.wav", "-o", "effort.dacp", "--model", "mine", "--effort", "1"]) == 0
    assert main(["entropy", "--model", "mine", "--data", "in.wav", "--minutes", "0.03"]) == 2
    assert "exists already" in capsys.readouterr().err
