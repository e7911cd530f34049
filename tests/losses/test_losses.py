import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from codecplus.losses import (
    LOSSES,
    PAPER_MEL_BANDS,
    BandLevelLoss,
    CellPowerLoss,
    CompressedSTFTLoss,
    DisturbanceLoss,
    EnvelopeLoss,
    LoudnessMelLoss,
    MultiScaleMelLoss,
    MultiScaleSTFTLoss,
    RelativeMelLoss,
    Spectrum,
    balanced_gradient,
    limit_bandwidth,
    losses_by_name,
    magnitude,
    registry,
    relative_waveform_loss,
    shared_spectra,
    weighted_gradient,
)
from codecplus.training.recipe import Objective, Recipe

RATE = 16_000


@pytest.fixture
def pair():
    return noisy(1200)


def noisy(samples):
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(2, samples, generator=generator) * torch.tensor([[0.1], [0.01]])
    return reference + 0.02 * torch.randn(2, samples, generator=generator), reference


def numpy_spectrum(signal, window):
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(signal.astype(np.float64), window // 2, mode="reflect")
    starts = range(0, len(padded) - window + 1, window // 4)
    return (
        np.stack([np.fft.rfft(padded[start : start + window] * hann) for start in starts])
        * 4
        / window
    )


def numpy_floor(reference):
    return 2e-3 * np.sqrt(np.mean(np.square(reference, dtype=np.float64))) + 2e-5


def numpy_magnitude(spectrum):
    return np.sqrt(np.abs(spectrum) ** 2 + 1e-12)


def test_waveform_loss_counts_a_quiet_item_like_a_loud_one(pair):
    reference = pair[1]
    quiet, loud = (
        relative_waveform_loss(1.1 * x, x) for x in (reference[:1] * 0.1, reference[:1] * 10)
    )
    assert quiet == pytest.approx(float(loud), rel=0.2)


@pytest.mark.parametrize("samples", [64, 67])
def test_spectra_and_magnitudes_have_the_gradients_that_differences_give(samples):
    signal = torch.randn(
        2, samples, dtype=torch.double, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    spectrum = Spectrum(16).double()
    assert torch.autograd.gradcheck(lambda x: torch.view_as_real(spectrum(x)), signal)
    assert torch.autograd.gradcheck(lambda x: magnitude(spectrum(x)), signal)


def test_spectrum_of_a_sine_peaks_at_its_amplitude():
    sine = 0.3 * torch.sin(2 * math.pi * 1000 / RATE * torch.arange(2048))
    middle = Spectrum(256)(sine[None])[0, 10].abs()
    assert middle.argmax() == 16
    assert float(middle.max()) == pytest.approx(0.3, rel=1e-3)


def test_stft_loss_equals_numpy(pair):
    estimate, reference = pair
    items = []
    for x, y in zip(estimate.numpy(), reference.numpy(), strict=True):
        for window in (64, 256):
            a, b = numpy_spectrum(x, window), numpy_spectrum(y, window)
            floor = numpy_floor(y)
            difference = (
                a * (numpy_magnitude(a) + floor) ** -0.7 - b * (numpy_magnitude(b) + floor) ** -0.7
            )
            items.append(np.mean(np.abs(difference) ** 2) / 2)
    assert float(CompressedSTFTLoss([64, 256])(estimate, reference)) == pytest.approx(
        np.mean(items), rel=1e-4
    )


def test_mel_loss_equals_a_sum_over_triangles(pair):
    estimate, reference = pair
    window, bands = 256, 10

    def mel(hz):  # Slaney's scale
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)

    def hertz(mel):
        return mel * 200 / 3 if mel < 15 else 1000 * math.exp(math.log(6.4) * (mel - 15) / 27)

    edges = [hertz(x) for x in np.linspace(0, mel(RATE / 2), bands + 2)]
    bins = np.arange(window // 2 + 1) * RATE / window
    triangles = []
    for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
        triangle = np.clip(
            np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)), 0, None
        )
        triangles.append(triangle / triangle.sum())
    total = []
    for x, y in zip(estimate.numpy(), reference.numpy(), strict=True):
        bands_of = [
            numpy_magnitude(numpy_spectrum(s, window)) @ np.array(triangles).T for s in (x, y)
        ]
        a, b = (np.log(m + numpy_floor(y)) for m in bands_of)
        total.append(np.abs(a - b).mean())
    assert float(RelativeMelLoss(RATE, {window: bands})(estimate, reference)) == pytest.approx(
        np.mean(total), rel=1e-4
    )


def test_too_short_a_signal_says_what_was_expected():
    with pytest.raises(ValueError, match="more than 128 samples for a window of 256, got 100"):
        Spectrum(256)(torch.zeros(1, 100))


def test_balance_gives_each_loss_its_share_at_any_scale():
    estimate = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)).requires_grad_()
    small, large = estimate[:, :25].square().sum(), 1e6 * estimate[:, 25:].square().sum()
    found = []
    gradient = balanced_gradient(
        [small, large], [0.75, 0.25], estimate, lambda norms: found.append(norms) or norms
    )
    norms = found[0]
    assert norms[1] > 1e5 * norms[0]
    assert float(gradient[:, :25].norm()) == pytest.approx(0.75 * float(norms[0]), rel=1e-5)
    assert float(gradient[:, 25:].norm()) == pytest.approx(0.25 * float(norms[0]), rel=1e-5)


def test_weighted_gradient_is_the_gradient_of_the_weighted_sum():
    estimate = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gradient = weighted_gradient(
        [estimate.square().sum(), estimate.abs().sum()], [15.0, 2.0], estimate
    )
    torch.testing.assert_close(gradient, 30 * estimate.detach() + 2 * estimate.detach().sign())


def plain_magnitudes(signal, window):
    return np.abs(numpy_spectrum(signal, window)) * window / 4


def test_the_papers_stft_loss_equals_its_formula(pair):
    estimate, reference = pair
    total = 0.0
    for window in (512, 64):
        items = []
        for x, y in zip(estimate.numpy(), reference.numpy(), strict=True):
            a, b = (plain_magnitudes(s, window) for s in (x, y))
            logs = np.log10(np.maximum(a, 1e-5) ** 2) - np.log10(np.maximum(b, 1e-5) ** 2)
            items.append(np.abs(a - b).mean() + np.abs(logs).mean())
        total += np.mean(items)
    assert float(MultiScaleSTFTLoss([512, 64])(estimate, reference)) == pytest.approx(
        total, rel=1e-4
    )


def test_the_papers_mel_loss_equals_transformers_log_mel(pair):
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    def log_mel(signal, window, filters):
        return spectrogram(
            signal.astype(np.float64),
            window_function(window, "hann"),
            frame_length=window,
            hop_length=window // 4,
            power=1.0,
            center=True,
            pad_mode="reflect",
            mel_filters=filters,
            mel_floor=1e-5,
            log_mel="log10",
        )

    estimate, reference = pair
    total = 0.0
    for window, bands in ((1024, 40), (32, 5)):
        filters = mel_filter_bank(
            window // 2 + 1, bands, 0, RATE / 2, RATE, norm="slaney", mel_scale="slaney"
        )
        items = []
        for x, y in zip(estimate.numpy(), reference.numpy(), strict=True):
            a, b = (log_mel(signal, window, filters) for signal in (x, y))
            items.append(np.abs(a - b).mean())
        total += np.mean(items)
    assert float(MultiScaleMelLoss(RATE, {1024: 40, 32: 5})(estimate, reference)) == pytest.approx(
        total, rel=1e-3
    )


def test_the_papers_windows_and_bands_are_seven():
    assert {2**i: 5 * 2 ** (i - 5) for i in range(5, 12)} == PAPER_MEL_BANDS


def test_loudness_mel_loss_weighs_added_energy_more_than_missing_energy(pair):
    loss, reference = LoudnessMelLoss(RATE, {256: 20}), pair[1]
    missing, added = (loss(scale * reference, reference) for scale in (0.5, 2.0))
    assert float(missing) == pytest.approx(1 - 0.5**0.3, rel=1e-2)
    assert float(added) == pytest.approx(1.3 * (2**0.3 - 1), rel=1e-2)
    assert float(loss(10 * pair[0], 10 * reference)) == pytest.approx(float(loss(*pair)), rel=0.02)


def test_envelope_loss_follows_stoi():
    """Ordered as pystoi orders them, blind to level and phase, and 1 where envelopes have nothing
    in common.
    """
    from pystoi import stoi

    generator = torch.Generator().manual_seed(0)
    time = torch.arange(RATE) / RATE
    speechlike = torch.randn(1, RATE, generator=generator) * (
        torch.sin(2 * math.pi * 4 * time) ** 4 + 0.01
    )
    noise, loss = torch.randn(1, RATE, generator=generator), EnvelopeLoss(RATE)
    found = [float(loss(speechlike + level * noise, speechlike)) for level in (0.1, 0.3, 1.0, 3.0)]
    measured = [
        stoi(speechlike[0].numpy(), (speechlike + level * noise)[0].numpy(), RATE)
        for level in (0.1, 0.3, 1.0, 3.0)
    ]
    assert found == sorted(found)
    assert measured == sorted(measured, reverse=True)
    assert found == pytest.approx([1 - score for score in measured], abs=0.12)
    assert float(loss(-0.01 * speechlike, speechlike)) == pytest.approx(0, abs=1e-4)
    assert float(loss(noise, speechlike)) == pytest.approx(
        1 - stoi(speechlike[0].numpy(), noise[0].numpy(), RATE), abs=0.12
    )
    with pytest.raises(ValueError, match="at least 6016 samples, got 6000"):
        loss(noise[:, :6000], noise[:, :6000])


def test_disturbance_loss_follows_pesq():
    """What is lost of 4.5 points, on harmonics under noise and under a hum; blind to the level of
    both.
    """
    from pesq import pesq

    generator = torch.Generator().manual_seed(0)
    time = torch.arange(2 * RATE) / RATE
    pitch = 2 * math.pi * (140 * time + 6 * torch.sin(2 * math.pi * time))
    voice = torch.stack([torch.cos(k * pitch) / k for k in range(1, 40)]).sum(dim=0)
    voice = (0.05 * voice * (torch.sin(2 * math.pi * 2 * time) ** 2 + 0.01))[None]
    noise, hum = (
        torch.randn(1, 2 * RATE, generator=generator),
        torch.sin(2 * math.pi * 1000 * time)[None],
    )
    loss = DisturbanceLoss(RATE)

    def lost(estimate):
        score = pesq(RATE, voice[0].numpy(), estimate[0].numpy(), "wb")
        return 4.5 - (3.8224 - math.log(4 / (score - 0.999) - 1)) / 1.3669  # raw, by ITU-T P.862.2

    estimates = [
        voice + level * sound for sound in (noise, hum) for level in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    ]
    found, measured = (
        [float(score(e)) for e in estimates] for score in (lambda e: loss(e, voice), lost)
    )
    assert float(np.corrcoef(found, measured)[0, 1]) > 0.9
    assert found[:5] == pytest.approx(measured[:5], abs=0.8)  # it is more lenient with a lone tone
    assert float(loss(0.1 * estimates[2], 0.1 * voice)) == pytest.approx(found[2], rel=0.05)


def test_shared_spectra_change_nothing():
    estimate, reference = noisy(8000)
    estimate.requires_grad_()
    losses = losses_by_name(LOSSES, RATE, {512: 40, 64: 8}, [512])

    def run():
        values = torch.stack([loss(estimate, reference) for loss in losses.values()])
        return values, torch.autograd.grad(values.sum(), estimate)[0]

    expected = run()
    with shared_spectra():
        found = run()
        other = losses["relative_mel"](estimate.detach() * 2, reference)
    assert float(other) == pytest.approx(
        float(losses["relative_mel"](estimate.detach() * 2, reference))
    )
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_threads_share_no_spectra():
    estimate, reference = noisy(8000)
    loss = losses_by_name(["relative_mel"], RATE, {512: 40, 64: 8}, [512])["relative_mel"]
    expected = float(loss(estimate, reference))

    def run(_):
        with shared_spectra():
            return float(loss(estimate, reference))

    with shared_spectra(), ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(40))) == [expected] * 40
        assert run(0) == expected


def test_faint_sound_counts_in_the_quiet_mel_alone():
    reference = torch.sin(torch.arange(8000) * 0.3)[None]
    faint = reference + 1e-4 * torch.sin(torch.arange(8000) * 1.3)
    losses = losses_by_name(["relative_mel", "quiet_mel"], RATE, {256: 20}, [])
    quiet = float(losses["quiet_mel"](faint, reference))
    relative = float(losses["relative_mel"](faint, reference))
    assert quiet > 5 * relative


def made(name):
    return losses_by_name([name], RATE, {512: 40, 64: 8}, [512])[name]


@pytest.mark.parametrize("name", LOSSES)
def test_every_registered_loss_is_zero_only_for_equal_signals(name):
    estimate, reference = noisy(8000)
    assert float(made(name)(reference, reference)) == pytest.approx(0, abs=1e-4)
    assert float(made(name)(estimate, reference)) > 0


@pytest.mark.parametrize("name", LOSSES)
def test_every_registered_loss_has_a_finite_gradient_even_for_silence(name):
    estimate, reference = noisy(8000)
    for x, y in ((estimate, reference), (torch.zeros(2, 8000), torch.zeros(2, 8000))):
        x = x.clone().requires_grad_()
        value = made(name)(x, y)
        (gradient,) = torch.autograd.grad(value, x)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert bool(gradient.any()) == bool(x.any())


@pytest.mark.parametrize("name", LOSSES)
def test_every_registered_loss_is_accepted_by_a_recipe(name):
    objective = Objective(weights={name: 0.5})
    assert objective.reconstruction == [name]


def test_a_loss_is_registered_where_it_is_defined(monkeypatch):
    monkeypatch.setattr(registry, "LOSSES", dict(LOSSES))

    @registry.loss("twice")
    def twice(estimate, reference):
        return 2 * (estimate - reference).abs().mean()

    assert registry.losses_by_name(["twice"], RATE, {}, []) == {"twice": twice}
    with pytest.raises(ValueError, match=r"'mel' is registered already, by .*MultiScaleMelLoss"):
        registry.loss("mel")(twice)


def test_losses_are_computed_in_the_order_of_the_balanced_recipes():
    order = list(LOSSES)
    for name in ("dac-16khz-live", "dac-44khz-small"):
        weights = Recipe.load(name).objective.weights
        assert [n for n in order if n in weights] == list(weights)


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
def test_band_level_is_the_log_ratio_of_the_band_alone_at_any_rate(rate):
    noise = torch.randn(1, rate, generator=torch.Generator().manual_seed(0))
    loss = BandLevelLoss(rate)
    bands = int(rate / 2 / 500)
    assert loss.means.shape[1] == bands
    assert float(loss(0.5 * noise, noise)) == pytest.approx(math.log(4), rel=1e-3)
    spectrum = torch.fft.rfft(noise)  # its bins are 1 Hz apart
    spectrum[:, 3000:3500] *= 0.5
    estimate = torch.fft.irfft(spectrum, n=rate)
    # Windows see some of the neighbours of a band, so that the ratio is not quite 4.
    assert float(loss(estimate, noise)) * bands == pytest.approx(math.log(4), rel=0.15)


def test_band_level_does_not_hear_where_in_the_crop_the_power_lies():
    noise = torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))
    moved = noise.roll(RATE // 2, dims=1).flip(1)
    assert float(BandLevelLoss(RATE)(moved, noise)) < 0.05
    assert float(made("relative_mel")(moved, noise)) > 0.3


def test_band_level_of_a_narrow_recording_counts_its_own_bands_alone():
    noise = torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))
    narrow = torch.tensor([4000.0])
    loss = BandLevelLoss(RATE)
    reference = limit_bandwidth(noise, narrow, RATE)
    bright = torch.fft.rfft(noise)
    bright[:, 4200:] *= 3  # above the band of the recording
    heard = limit_bandwidth(torch.fft.irfft(bright, n=RATE), narrow, RATE)
    assert float(loss(heard, reference)) < 1e-3
    halves = limit_bandwidth(0.5 * noise, narrow, RATE)
    assert float(loss(halves, reference)) == pytest.approx(math.log(4) / 2, rel=0.05)


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
def test_cell_power_is_the_divergence_of_powers_at_any_rate(rate):
    noise = torch.randn(1, rate, generator=torch.Generator().manual_seed(0))
    loss = CellPowerLoss(rate)
    for gain in (0.7, 1.4):
        ratio = gain**-2
        expected = ratio - math.log(ratio) - 1
        assert float(loss(gain * noise, noise)) == pytest.approx(expected, rel=1e-3)


def test_cell_power_of_a_far_too_quiet_estimate_rises_with_its_decibels():
    noise = torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))
    loss = CellPowerLoss(RATE)
    quiet = float(loss(0.3 * noise, noise))
    quieter = float(loss(0.15 * noise, noise))
    slope = (math.exp(1.5) - 1) * math.log(4)
    assert quieter - quiet == pytest.approx(slope, rel=0.01)


def test_cell_power_costs_least_at_the_mean_of_an_uncertain_power():
    generator = torch.Generator().manual_seed(0)
    loud = torch.randn(1, RATE, generator=generator)
    guess = torch.randn(1, RATE, generator=generator)
    costs = {}
    for power in (0.25, 0.505, 1.0):  # the reference's is 1 or 0.01, the mean is 0.505
        estimate = math.sqrt(power) * guess
        both = [float(CellPowerLoss(RATE)(estimate, gain * loud)) for gain in (1.0, 0.1)]
        costs[power] = sum(both)
    assert min(costs, key=costs.__getitem__) == 0.505


def test_cell_power_hears_where_in_the_crop_the_power_lies_but_no_phase():
    generator = torch.Generator().manual_seed(0)
    fade = torch.linspace(0.05, 1, RATE)
    noise = torch.randn(1, RATE, generator=generator) * fade
    other = torch.randn(1, RATE, generator=generator) * fade
    loss = CellPowerLoss(RATE)
    assert float(loss(other, noise)) < 0.15
    assert float(loss(noise.flip(1), noise)) > 1


def test_losses_on_samples_are_mean_differences():
    estimate, reference = noisy(8000)
    difference = estimate - reference
    assert float(made("waveform_l1")(estimate, reference)) == pytest.approx(
        float(difference.abs().mean())
    )
    assert float(made("waveform_l2")(estimate, reference)) == pytest.approx(
        float(difference.square().mean())
    )


def test_energy_above_the_bandwidth_of_a_recording_does_not_change_losses():
    time = torch.arange(4096, dtype=torch.float64) / RATE
    low, high = (0.3 * torch.sin(2 * math.pi * f * time)[None].float() for f in (500, 6000))
    low = low + 1e-3 * torch.randn(
        1, 4096, generator=torch.Generator().manual_seed(0)
    )  # above the loss's floor
    loss, full, narrow = (
        MultiScaleMelLoss(RATE, {512: 40}),
        torch.tensor([8000.0]),
        torch.tensor([4000.0]),
    )
    estimate = (low + high).requires_grad_()
    assert limit_bandwidth(estimate, full, RATE) is estimate
    heard, reference = limit_bandwidth(estimate, narrow, RATE), limit_bandwidth(low, narrow, RATE)
    torch.testing.assert_close(heard.detach(), reference, atol=1e-5, rtol=0)
    assert float(loss(heard.detach(), reference)) < 0.05 * float(loss(estimate.detach(), low))
    (gradient,) = torch.autograd.grad(loss(heard, 0.5 * reference), estimate)
    spectrum = torch.fft.rfft(gradient).abs()[0]
    assert float(spectrum[1024 + 10 :].max()) < 1e-4 * float(spectrum.max())


def test_bandwidth_is_limited_item_by_item():
    x = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    out = limit_bandwidth(x, torch.tensor([8000.0, 2000.0]), RATE)
    torch.testing.assert_close(out[0], x[0])
    assert float(out[1].square().mean()) == pytest.approx(0.25, rel=0.2)
