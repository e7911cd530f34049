"""Codes found by listening: they decode nearer, cost what the model says, and are the codes of the
model in use.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import GEOMETRIES, tiny_model

import codecplus
from codecplus import load_codec
from codecplus.audio.resampling import resample
from codecplus.codec import Codec
from codecplus.encoding.refinement import Refiner, _CheapestEntries, encode_with_effort
from codecplus.eval.metrics import score
from codecplus.inference.chunked import encode_blocks
from codecplus.training.codebooks import initialize
from codecplus.training.entropy import CodebookGeometry, fit_network
from codecplus.training.gains import with_band_gains
from codecplus.utils import load_audio

NETS = {
    **GEOMETRIES,
    "causal": {"causal": True, "downsampling_ratios": [2, 4, 5, 8], "sampling_rate": 16000},
}
# The net at 44.1 kHz takes half the time of all.
MOSTLY_QUICK = [
    pytest.param(net, marks=pytest.mark.slow) if net == "44khz" else net for net in NETS
]


@pytest.fixture(scope="module")
def speech():
    """Two seconds of the bundled clip at 16 kHz."""
    audio, rate = load_audio(Path(codecplus.__file__).parent / "assets/demo.flac")
    return resample(audio, rate, 16000)[8000:40000]


def lively(samples, channels=1):
    """Noise (C, S) that swells and falls."""
    rng = np.random.default_rng(0)
    swell = rng.uniform(0, 3, samples // 500 + 1).repeat(500)[:samples]
    return (rng.standard_normal((channels, samples)) * swell).astype("f4")


@pytest.mark.parametrize("net", MOSTLY_QUICK)
@pytest.mark.parametrize("frames", [9, 1000])
def test_without_steps_codes_are_the_plain_ones_for_any_chunking(net, frames, monkeypatch):
    model = tiny_model(**NETS[net])
    audio = lively(40 * model.config.hop_length + 3, channels=2)
    monkeypatch.setattr("codecplus.encoding.refinement.chunk_frames", lambda model: frames)
    found = np.concatenate(list(encode_with_effort(model, [audio], 3, 0, None)), axis=-1)
    expected = np.concatenate(list(encode_blocks(model, [audio], 3)), axis=-1)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("net", MOSTLY_QUICK)
@pytest.mark.parametrize("frames", [40, 1000])
def test_effort_brings_decoded_audio_nearer_in_one_piece_or_many(net, frames, monkeypatch):
    model = tiny_model(hidden_size=32, **NETS[net])
    audio = 0.3 * lively(150 * model.config.hop_length)
    with torch.no_grad():
        initialize(model.quantizer, model.encoder(torch.from_numpy(audio)[:, None])[0].t())
    monkeypatch.setattr("codecplus.encoding.refinement.chunk_frames", lambda model: frames)
    refiner = Refiner(model, 4, 0, None)

    def error(codes):
        with torch.no_grad():
            decoded = model.decode(
                audio_codes=torch.from_numpy(codes.astype(np.int64)), return_dict=False
            )[0]
            decoded = torch.nn.functional.pad(decoded, (0, audio.shape[-1] - decoded.shape[-1]))
            parts = refiner._losses(decoded, torch.from_numpy(audio))
        return sum(refiner.shares[name] * float(part) for name, part in parts.items())

    plain, found = (
        np.concatenate(list(encode_with_effort(model, [audio], 4, n, None)), axis=-1)
        for n in (0, 8)
    )
    assert found.shape == plain.shape
    assert error(found) < error(plain)


def test_codes_of_gains_stay_what_the_encoder_measured():
    """They are decibels, at any scale: the search cannot weigh their errors."""
    base = tiny_model(True, n_codebooks=5, hidden_size=32, **GEOMETRIES["16khz"])
    audio = 0.3 * lively(150 * 640)
    with torch.no_grad():
        initialize(base.quantizer, base.encoder(torch.from_numpy(audio)[:, None])[0].t())
        model = with_band_gains(
            base, (2, 4), {"gain_size": 8, "gain_bands": 6, "gain_hidden_size": 16}
        )
        model.decoder.gains.encoder.conv3.weight.mul_(100)
    plain, found = (
        np.concatenate(list(encode_with_effort(model, [audio], 5, n, None)), axis=-1)
        for n in (0, 8)
    )
    np.testing.assert_array_equal(found[:, [1, 3]], plain[:, [1, 3]])
    assert (found[:, [0, 2, 4]] != plain[:, [0, 2, 4]]).mean() > 0.02


def test_speech_sounds_better_for_no_more_bits(speech):
    codec = load_codec("dac-16khz-live")
    sizes, scores = [], []
    for effort in (0, 2):
        data = codec.compress(speech, sample_rate=16000, n_quantizers=6, effort=effort)
        sizes.append(len(data))
        scores.append(
            score(speech, codec.decompress(data), 16000, ["mel_distance", "stoi", "si_sdr"])
        )
    assert sizes[1] < 1.02 * sizes[0]
    plain, found = ({name: result.value for name, result in each.items()} for each in scores)
    assert found["mel_distance"] < 0.97 * plain["mel_distance"]
    assert found["stoi"] > plain["stoi"]
    assert found["si_sdr"] > plain["si_sdr"]


def test_the_model_in_use_stays_as_it_is():
    model = tiny_model(**NETS["16khz"])
    before = {name: (type(module), module.training) for name, module in model.named_modules()}
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = list(encode_with_effort(model, [lively(16000)], 4, 2, None))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            np.testing.assert_array_equal(
                found, list(encode_with_effort(model, [lively(16000)], 4, 2, None))
            )
            assert not torch.is_grad_enabled()
    assert {
        name: (type(module), module.training) for name, module in model.named_modules()
    } == before
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    assert all(
        p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in model.parameters()
    )


def test_the_search_weighs_bits_where_there_is_an_entropy_model():
    codec = Codec(tiny_model(**NETS["16khz"]))
    audio = lively(32000)
    codes = np.asarray(codec.encode(audio[0]))
    entropy = fit_network([codes], CodebookGeometry.of(codec), codec.fingerprint, steps=60)
    with torch.no_grad():
        latents = codec.model.encoder(torch.from_numpy(audio)[:, None])
        search, free = (
            _CheapestEntries(codec.model.quantizer, 4, model) for model in (entropy, None)
        )
        plain = search(latents, None, None)
        free(latents, None, None)
        np.testing.assert_array_equal(plain[0].numpy(), codes)
        assert search.bits(search(latents, plain, None), None) < 0.99 * search.bits(
            free(latents, plain, None), None
        )
    file = Codec(codec.model, entropy_models=[entropy]).compress(audio[0])
    assert search.bits(plain, None) / 8 == pytest.approx(len(file), rel=0.05, abs=40)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("samples", [1, 100, 4000])
def test_silence_and_single_samples_are_coded_like_anything(net, samples):
    codec = Codec(tiny_model(**NETS[net]))
    for audio in (
        np.zeros(samples, "f4"),
        np.ones(samples, "f4"),
        np.stack([np.zeros(samples), lively(samples)[0]]),
    ):
        data = codec.compress(audio.astype("f4"), sample_rate=codec.sample_rate, effort=1)
        assert codec.decompress(data).shape == audio.shape
        assert np.isfinite(codec.decompress(data)).all()
