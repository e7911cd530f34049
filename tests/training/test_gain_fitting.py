"""Band gains for a codec that is trained: what is kept, what is learned, what is refused."""

import copy

import numpy as np
import pytest
import soundfile
import torch
from tiny import GEOMETRIES, KINDS, tiny_model
from transformers import DacModel as StockModel

from codecplus.errors import InputError
from codecplus.losses import RelativeMelLoss
from codecplus.training import gain_nets
from codecplus.training.autoencoder import Autoencoder
from codecplus.training.gain_nets import fit_nets, tune_nets
from codecplus.training.gains import fit_band_gains, measure, with_band_gains

PLACES = (2, 4)
SIZES = {"gain_size": 8, "gain_bands": 6, "gain_hidden_size": 16, "gain_linear_hz": 2000}
AUDIO = 0.1 * torch.randn(1, 1, 5120, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noise whose bands swell and fall, each by itself: what gains are for."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for number in range(3):
        spectrum = np.fft.rfft(rng.standard_normal((60, 800)))
        spectrum *= 10 ** (rng.uniform(-25, 5, (60, 6)).repeat(67, axis=1)[:, :401] / 20)
        audio = 0.1 * np.fft.irfft(spectrum).reshape(-1)
        soundfile.write(folder / f"{number}.wav", audio, 16000)
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.mark.parametrize("causal", [False, True])
def test_the_waveform_is_coded_as_before(causal):
    """Gains come beside the codec: codes of its coarse codebooks, and their sums, stay."""
    base = tiny_model(causal, n_codebooks=5, **GEOMETRIES["44khz"])
    model = with_band_gains(base, PLACES, SIZES)
    assert model.config.n_codebooks == 5
    assert model.gain_codebooks() == [1, 3]
    with torch.no_grad():
        codes = model.encode(AUDIO).audio_codes
        assert torch.equal(codes[:, [0, 2, 4]], base.encode(AUDIO, 3).audio_codes)
        latents = model.quantizer.from_codes(codes)[0][:, : model.config.waveform_size]
        torch.testing.assert_close(latents, base.quantizer.from_codes(codes[:, [0, 2, 4]])[0])
        torch.testing.assert_close(model.decoder.waveform(latents), base.decoder(latents))


def test_transformers_own_class_plays_the_waveform_without_gains(tmp_path):
    base = tiny_model(n_codebooks=5, **GEOMETRIES["44khz"])
    model = with_band_gains(base, PLACES, SIZES)
    model.save_pretrained(tmp_path)
    stock = StockModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        codes = model.encode(AUDIO).audio_codes
        played = stock.decode(audio_codes=codes).audio_values
        alone = base.decode(audio_codes=codes[:, [0, 2, 4]]).audio_values
        torch.testing.assert_close(played, alone, atol=1e-5, rtol=0)
        assert not torch.allclose(played, model.decode(audio_codes=codes).audio_values, atol=1e-3)
        theirs = stock.encode(AUDIO).audio_codes
        assert (theirs[:, [0, 2, 4]] == codes[:, [0, 2, 4]]).float().mean() > 0.99


@pytest.mark.parametrize("causal", [False, True])
def test_fitting_brings_bands_to_the_power_of_the_original(causal, folder):
    fields = {"downsampling_ratios": [2, 4, 4, 10], "sampling_rate": 16000}
    base = tiny_model(causal, **fields)
    lines = []
    with pytest.warns(UserWarning, match="1 of 4 recordings left out"):
        model = fit_band_gains(
            base,
            folder,
            places=PLACES,
            gain_size=8,
            gain_bands=6,
            gain_hidden_size=32,
            gain_linear_hz=None,
            steps=400,
            tuning_steps=0,
            lr=5e-3,
            progress=lines.append,
        )
    audio, _ = soundfile.read(folder / "1.wav", dtype="float32")
    audio = torch.from_numpy(audio)[None, None, :16000]
    gains = model.decoder.gains

    def lacking(codec, number):
        with torch.no_grad():
            decoded = codec(audio, n_quantizers=number).audio_values[:, None]
        error = (gains.powers(decoded) - gains.powers(audio))[..., 5:]
        return float(error.square().mean().sqrt())

    assert lacking(model, 4) < 0.7 * lacking(base, 2)
    # Channels have the scale of activations, so that checkpoints may be kept in fp16.
    level = gains.encode(audio, audio).detach().square().mean()
    assert 0.01 < level < 100
    # Where nothing is told, little is changed: with fewer codebooks than the first one of gains.
    with torch.no_grad():
        latents = model.quantizer.from_codes(model.encode(audio, 1).audio_codes)[0]
        untold = model.decoder.waveform(latents[:, : model.config.waveform_size])
        changed = gains.powers(model.decoder(latents)) - gains.powers(untold)
    assert changed.square().mean().sqrt() < 0.5 * lacking(base, 2)


def test_tuning_makes_the_sound_better_at_equal_levels(folder, monkeypatch):
    """Losses on filtered audio fall, further than by decibels alone, which stay as they were."""
    fields = {"downsampling_ratios": [2, 4, 4, 10], "sampling_rate": 16000}
    sizes = {**SIZES, "gain_hidden_size": 32}
    fitted = with_band_gains(tiny_model(True, **fields), PLACES, sizes)
    measured = measure(fitted, folder / "1.wav")
    torch.manual_seed(0)  # of dropped codebooks
    fit_nets(fitted, measured, 100, 5e-3, torch.Generator().manual_seed(0))

    def tuned(share):
        monkeypatch.setattr(gain_nets, "_SOUND_SHARE", share)
        model = copy.deepcopy(fitted)
        lines = []
        generator = torch.Generator().manual_seed(1)
        tune_nets(model, measured, 100, 2e-3, generator, lines.append)
        assert lines[0].startswith("step 100 of tuning: gains lack ")
        assert all(f"{name} " in lines[0] for name in ("disturbance", "relative_mel"))
        return model

    def scores(model):
        original = measured[0].audio.original.float()[None]
        with torch.no_grad():
            decoded = model(original[None], n_quantizers=4).audio_values
            lacking = model.decoder.gains.powers(decoded[:, None]) - measured[0].wanted.float()
        mel = RelativeMelLoss(16000, {512: 32, 128: 8})
        return float(mel(decoded, original)), float(lacking.square().mean().sqrt())

    mel, lacking = scores(fitted)
    tuned_mel, tuned_lacking = scores(tuned(0.7))
    assert tuned_mel < 0.97 * mel
    assert tuned_mel < 0.97 * scores(tuned(0.0))[0]
    assert tuned_lacking < 1.05 * lacking
    shipped_mel, shipped_lacking = scores(tuned(gain_nets._SOUND_SHARE))
    assert shipped_mel < mel
    assert shipped_lacking < 1.05 * lacking


def test_audio_is_kept_with_the_numbers_that_it_was_decoded_with(folder, monkeypatch):
    model = with_band_gains(tiny_model(True, **GEOMETRIES["16khz"]), PLACES, SIZES)
    numbers = []
    look_up = model.quantizer.look_up
    monkeypatch.setattr(
        model.quantizer,
        "look_up",
        lambda codes: numbers.append(codes.shape[1]) or look_up(codes),
    )
    told = [number for one in measure(model, folder / "0.wav") for number in one.told]
    assert told == [sum(place <= number for place in PLACES) for number in numbers]
    for recording in measure(model, folder / "0.wav"):
        for powers, audio in zip(recording.decoded, recording.audio.decoded, strict=True):
            again = model.decoder.gains.powers(audio.float()[None, None])[0]
            loud = powers > -60
            assert (again - powers)[loud].abs().max() < 0.5
    assert all(one.audio is None for one in measure(model, folder / "0.wav", kept_seconds=0))


def test_new_gains_are_not_tuned_before_they_are_fitted(folder):
    base = tiny_model(True, **GEOMETRIES["16khz"])
    with pytest.raises(InputError, match="nothing to tune: give steps above 0"):
        fit_band_gains(base, folder, steps=0)
    unfitted = with_band_gains(base, PLACES, SIZES)
    with pytest.raises(InputError, match="not placed by a fit: give steps above 0"):
        fit_band_gains(unfitted, folder, steps=0)
    with pytest.raises(InputError, match="numbers of steps from 0 on"):
        fit_band_gains(base, folder, tuning_steps=-1)


def test_tuning_alone_fills_no_codebooks_anew(folder):
    model = with_band_gains(tiny_model(True, **GEOMETRIES["16khz"]), PLACES, SIZES)
    model = fit_band_gains(model, folder / "0.wav", steps=5, tuning_steps=0)
    tuned, again = (
        fit_band_gains(model, folder / "0.wav", steps=0, tuning_steps=3) for _ in range(2)
    )
    before, after = model.state_dict(), tuned.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved
    assert all(name.startswith("decoder.gains.") or "codebook.weight" in name for name in moved)
    for i in model.gain_codebooks():
        entries, old = (m.quantizer.quantizers[i].codebook.weight[:, :-2] for m in (tuned, model))
        assert (entries - old).norm() < 0.2 * old.norm()
    assert all(torch.equal(after[name], value) for name, value in again.state_dict().items())


def test_gains_that_are_there_are_trained_on(folder):
    model = with_band_gains(tiny_model(True, **GEOMETRIES["16khz"]), PLACES, SIZES)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match="leave their places out"):
        fit_band_gains(model, folder, places=PLACES)
    again = fit_band_gains(model, folder / "0.wav", steps=3, tuning_steps=2)
    moved = {
        name for name, value in again.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved
    books = ("quantizer.quantizers.1.", "quantizer.quantizers.3.", "decoder.gains.")
    assert all(name.startswith(books) for name in moved)
    assert again.gain_codebooks() == [1, 3]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_measured_is_what_the_model_hears(folder):
    """The powers that the nets are trained on are those that they get in use."""
    model = with_band_gains(tiny_model(True, **GEOMETRIES["16khz"]), PLACES, SIZES)
    measured = measure(model, folder / "0.wav")
    audio, _ = soundfile.read(folder / "0.wav", dtype="float32")
    seen = []
    model.decoder.gains.encoder.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        model.encode(torch.from_numpy(audio)[None, None])
    given = seen[0][0, :6] * 20 - 60
    torch.testing.assert_close(measured[0].given.float(), given, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("causal", "places", "message"),
    [
        (False, (2,), "a stride of 5 cannot have band gains"),
        (True, (2, 2), "different places from 1 to 4"),
        (True, (0,), "different places from 1 to 4"),
        (True, (5,), "different places from 1 to 4"),
        (True, (), "expected 1 to 3 codebooks for gains"),
        (True, (1, 2, 3, 4), "expected 1 to 3 codebooks for gains"),
    ],
)
def test_impossible_places_are_refused(causal, places, message, folder):
    with pytest.raises(InputError, match=message):
        fit_band_gains(tiny_model(causal, **GEOMETRIES["16khz"]), folder, places=places)


def test_codebooks_too_narrow_for_gains_are_refused(folder):
    narrow = tiny_model(codebook_dim=2, **GEOMETRIES["44khz"])
    with pytest.raises(
        InputError, match="codebook_dim above 2 and two codebooks, this model has 2 and 4"
    ):
        fit_band_gains(narrow, folder, places=(2,))


def test_recordings_of_which_none_can_be_read_are_refused(folder):
    together = tiny_model(True, **KINDS["gains", True])
    with pytest.raises(InputError, match="trained together"):
        fit_band_gains(together, folder)
    with pytest.raises(InputError, match="can be read, have a whole frame and are not silent"):
        fit_band_gains(
            tiny_model(True, **GEOMETRIES["16khz"]),
            folder / "broken.wav",
            places=(2,),
            gain_bands=6,
        )


@pytest.mark.parametrize("samples", [8000, 10])
def test_silence_and_clips_without_a_frame_are_refused(samples, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(samples), 16000)
    base = tiny_model(True, **GEOMETRIES["16khz"])
    with pytest.raises(InputError, match="have a whole frame and are not silent"):
        fit_band_gains(base, tmp_path, places=(2,), gain_bands=6)


def test_beam_search_in_training_leaves_what_gains_are_told():
    model = with_band_gains(tiny_model(True, **GEOMETRIES["16khz"]), PLACES, SIZES)
    plain, searched = Autoencoder(model, torch.float32), Autoencoder(model, torch.float32, 1.0)
    told = []
    model.decoder.gains.register_forward_pre_hook(lambda _, inputs: told.append(inputs[0]))
    audio = 0.1 * torch.randn(2, 6400, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    waveforms = [step(audio, True, True)["audio"] for step in (plain, searched)]
    torch.testing.assert_close(told[0], told[1])
    assert not torch.equal(*waveforms)


@pytest.mark.parametrize(("count", "places"), [(15, [5, 8, 12]), (9, [3, 4, 7]), (2, [1])])
def test_codebooks_of_gains_have_places_by_default(count, places, folder):
    base = tiny_model(True, n_codebooks=count, **GEOMETRIES["16khz"])
    model = fit_band_gains(
        base, folder / "0.wav", gain_bands=6, gain_hidden_size=16, steps=2, tuning_steps=1
    )
    assert model.gain_codebooks() == places


def test_tones_are_measured_with_recordings(folder):
    """Gains that have met no bare tone take it away: nearly all of its bands are to be silent."""
    model = with_band_gains(tiny_model(True, **GEOMETRIES["16khz"]), PLACES, SIZES)
    recording, tones = measure(model, folder / "0.wav")
    assert tones.wanted.shape[-1] == np.ceil(0.15 * recording.wanted.shape[-1])
    contrast = tones.wanted.float().amax(dim=0) - tones.wanted.float().median(dim=0).values
    assert contrast.max() > 15
