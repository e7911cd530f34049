"""Band gains: filters, powers, and what a model with them promises."""

import math

import numpy as np
import pytest
import torch
from tiny import KINDS, tiny_model

from codecplus import CausalDacConfig, CausalDacModel
from codecplus.inference.unpadded import decode_unpadded
from codecplus.modeling_dac.gains_dac import DacBandGains, gain_geometry

FIELDS = KINDS["gains", True]
HOP, BANDS = 320, 16


@pytest.fixture
def gains() -> DacBandGains:
    return DacBandGains(CausalDacConfig(**{**FIELDS, "gain_bands": BANDS}))


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(1, 1, samples, generator=generator)


def test_without_gain_the_filter_gives_back_its_input(gains):
    audio = noise(20 * HOP)
    torch.testing.assert_close(
        gains.filter(audio, torch.zeros(1, BANDS, 20)), audio, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("first", [0, 5, BANDS - 5])
@pytest.mark.parametrize("decibels", [-12.0, 9.0])
def test_a_gain_changes_its_bands_and_leaves_those_further_away(gains, first, decibels):
    audio = noise(200 * HOP)
    wanted = torch.zeros(1, BANDS, 200)
    wanted[:, first : first + 5] = decibels
    before, after = (gains.powers(x)[..., 2:] for x in (audio, gains.filter(audio, wanted)))
    change = 10 * torch.log10((10 ** (after / 10)).mean(-1) / (10 ** (before / 10)).mean(-1))[0]
    assert float(change[first + 2]) == pytest.approx(decibels, abs=0.3)
    far = [band for band in range(BANDS) if not first - 2 <= band < first + 7]
    assert change[far].abs().max() < 0.3


def test_the_filter_is_of_minimum_phase_and_fades_over_within_the_frame(gains):
    """The energy of an impulse comes out at once; a new filter holds behind the fade alone."""
    impulse = torch.zeros(1, 1, 4 * HOP)
    impulse[..., HOP] = 1.0
    slope = torch.linspace(-12, 12, BANDS)[:, None].expand(1, BANDS, 4)
    answer = gains.filter(impulse, slope)[0, 0]
    assert not answer[:HOP].any()
    assert answer[HOP : HOP + 16].square().sum() > 0.95 * answer.square().sum()

    steps = torch.zeros(1, BANDS, 4)
    steps[..., 2] = 6.0
    audio = noise(4 * HOP)
    changed = (gains.filter(audio, steps) / audio)[0, 0]
    ones, louder = torch.tensor(1.0), torch.tensor(10 ** (6 / 20))
    fade = gains.geometry.fade
    torch.testing.assert_close(changed[: 2 * HOP], ones.expand(2 * HOP), atol=1e-3, rtol=1e-3)
    inside = changed[2 * HOP + fade : 3 * HOP]
    torch.testing.assert_close(inside, louder.expand_as(inside), atol=1e-3, rtol=1e-3)
    assert (changed[3 * HOP + fade :] - 1).abs().max() < 1e-3


def test_powers_are_those_of_full_scale_and_of_silence(gains):
    seconds = torch.arange(100 * HOP) / 16000
    centre = (3 + 0.5) * 8000 / BANDS
    sine = torch.sin(2 * math.pi * centre * seconds)[None, None]
    power = gains.powers(sine)[0, :, 50]
    assert int(power.argmax()) == 3
    assert gains.powers(torch.zeros(1, 1, 5 * HOP)).unique().tolist() == [pytest.approx(-100)]
    white = gains.powers(noise(400 * HOP))[..., 2:]
    level = 10 * torch.log10((10 ** (white / 10)).mean((0, 2)))
    torch.testing.assert_close(level, torch.full_like(level, -20.0), atol=0.5, rtol=0)


def test_bands_grow_with_the_frequency_above_the_linear_ones():
    """8 bands up to 4 kHz, and 1 + ln 2 times as many up to 8 kHz; shares of a bin add up to one."""
    fixed = gain_geometry(HOP, 13, linear=0.5)
    shares = fixed.matrices.means
    bins = np.linspace(0, 8000, len(shares))
    centres = (shares * bins[:, None]).sum(axis=0)[1:-1]
    steps = np.diff(centres)
    width = 4000 * (1 + math.log(2)) / 13
    np.testing.assert_allclose(steps[centres[1:] < 4000], width, rtol=0.02)
    high = centres[1:-1] > 4500
    np.testing.assert_allclose(steps[1:][high], width * centres[1:-1][high] / 4000, rtol=0.1)


def test_windows_look_ahead_in_a_model_that_is_not_causal_alone():
    """There they lie around the middle of their frames, so that neighbours hear a click alike."""
    for causal in (False, True):
        model = tiny_model(causal, **KINDS["gains", causal])
        hop = model.config.hop_length
        click = torch.zeros(1, 1, 9 * hop)
        click[..., 4 * hop + hop // 2] = 1.0
        before, now, after = model.decoder.gains.powers(click)[0].mean(dim=0)[3:6].tolist()
        assert now > -40
        if causal:
            assert before == pytest.approx(-100)
        else:
            assert before == pytest.approx(after, abs=1e-3)
            assert before > -100


def test_matrices_serve_every_precision(gains):
    audio = noise(6 * HOP)
    gain = 6 * torch.randn(1, BANDS, 6, generator=torch.Generator().manual_seed(1))
    exact = gains.filter(audio.double(), gain.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(gains.filter(audio, gain).double(), exact, atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            gains.powers(audio).double(), gains.powers(audio.double()), atol=1e-3, rtol=0
        )


def test_what_no_gain_can_be_made_of_gives_numbers_all_the_same():
    model = tiny_model(True, **FIELDS)
    with torch.no_grad():
        for parameter in model.decoder.gains.parameters():
            parameter.mul_(1e6)
        audio = model.decode(audio_codes=torch.zeros(1, 4, 9, dtype=torch.long)).audio_values
        assert audio.isfinite().all()
        assert model.encode(1e20 * noise(4 * HOP)).audio_codes.max() < 64


def test_matrices_made_without_gradients_serve_training():
    gain_geometry.cache_clear()
    model = tiny_model(True, **FIELDS)
    with torch.inference_mode():
        model(noise(8 * HOP))
    model.train()
    out = model(noise(8 * HOP), return_dict=False)
    (out[0] + out[1].square().mean()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_rounded_weights_do_not_round_what_is_measured():
    """In bf16 the powers of quiet bands are those of the audio, not of its rounding."""
    model = tiny_model(True, **FIELDS).to(torch.bfloat16)
    audio = noise(8 * HOP)
    seen = []
    model.decoder.gains.encoder.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        model.encode(audio)
    assert seen[0].dtype == torch.float32
    bands = FIELDS["gain_bands"]
    given = seen[0][:, :bands] * 20 - 60
    excess = seen[0][:, bands:] * 6
    torch.testing.assert_close(
        given + excess, model.decoder.gains.powers(audio), atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gain_size": 40}, "below hidden_size"),
        ({"gain_size": -1}, "at least 0"),
        ({"gain_bands": 0}, "gain_bands must lie between 1 and 128"),
        ({"gain_bands": 129}, "gain_bands must lie between 1 and 128"),
        ({"gain_hidden_size": 0}, "gain_hidden_size"),
        ({"gain_linear_hz": 0}, "gain_linear_hz must be a frequency above 0 or None"),
        ({"gain_linear_hz": 10**400}, "gain_linear_hz must be a frequency above 0 or None"),
        ({"gain_linear_hz": 50, "gain_bands": 36}, "36 gain_bands .* too narrow to be measured"),
        ({"downsampling_ratios": [8, 8, 8, 4]}, "4 to 1024 samples per frame, got 2048"),
    ],
)
def test_impossible_gains_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CausalDacConfig(**{**FIELDS, **fields})


def test_decoding_without_padding_is_refused():
    with pytest.raises(ValueError, match="band gains"):
        decode_unpadded(tiny_model(True, **FIELDS), np.zeros((1, 4, 400), np.int16), 400)


def test_a_saved_model_comes_back_with_its_gains(tmp_path):
    model = tiny_model(True, **FIELDS)
    model.save_pretrained(tmp_path)
    loaded = CausalDacModel.from_pretrained(tmp_path).eval()
    audio = noise(9 * HOP)
    with torch.no_grad():
        torch.testing.assert_close(loaded(audio).audio_values, model(audio).audio_values)
