import math

import numpy as np
import pytest
import torch

from codecplus.training.losses import (
    MelLoss,
    Spectrum,
    STFTLoss,
    balanced_gradient,
    waveform_loss,
)

RATE = 16_000


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(2, 1200, generator=generator) * torch.tensor([[0.1], [0.01]])
    return reference + 0.02 * torch.randn(2, 1200, generator=generator), reference


def numpy_spectrum(signal, window):
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(signal.astype(np.float64), window // 2, mode="reflect")
    starts = range(0, len(padded) - window + 1, window // 4)
    return np.stack([np.fft.rfft(padded[start : start + window] * hann) for start in starts]) * 4 / window


def numpy_floor(reference):
    return 2e-3 * np.sqrt(np.mean(np.square(reference, dtype=np.float64))) + 2e-5


def numpy_magnitude(spectrum):
    return np.sqrt(np.abs(spectrum) ** 2 + 1e-12)


def test_waveform_loss_counts_a_quiet_item_like_a_loud_one(pair):
    reference = pair[1]
    quiet, loud = (waveform_loss(1.1 * x, x) for x in (reference[:1] * 0.1, reference[:1] * 10))
    assert quiet == pytest.approx(float(loud), rel=0.2)


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
            difference = a * (numpy_magnitude(a) + floor) ** -0.7 - b * (numpy_magnitude(b) + floor) ** -0.7
            items.append(np.mean(np.abs(difference) ** 2) / 2)
    assert float(STFTLoss([64, 256])(estimate, reference)) == pytest.approx(np.mean(items), rel=1e-4)


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
        triangle = np.clip(np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)), 0, None)
        triangles.append(triangle / triangle.sum())
    total = []
    for x, y in zip(estimate.numpy(), reference.numpy(), strict=True):
        bands_of = [numpy_magnitude(numpy_spectrum(s, window)) @ np.array(triangles).T for s in (x, y)]
        a, b = (np.log(m + numpy_floor(y)) for m in bands_of)
        total.append(np.abs(a - b).mean())
    assert float(MelLoss(RATE, {window: bands})(estimate, reference)) == pytest.approx(np.mean(total), rel=1e-4)


@pytest.mark.parametrize("loss", [waveform_loss, STFTLoss([64]), MelLoss(RATE, {64: 8, 256: 80})])
def test_equal_signals_cost_nothing(loss, pair):
    assert float(loss(pair[1], pair[1])) == 0


@pytest.mark.parametrize("loss", [STFTLoss([64]), MelLoss(RATE, {64: 8})])
def test_silence_has_a_finite_gradient(loss):
    estimate = torch.zeros(1, 400, requires_grad=True)
    loss(estimate, torch.zeros(1, 400)).backward()
    assert estimate.grad.isfinite().all()


def test_too_short_a_signal_says_what_was_expected():
    with pytest.raises(ValueError, match="more than 128 samples for a window of 256, got 100"):
        Spectrum(256)(torch.zeros(1, 100))


def test_balance_gives_each_loss_its_share_whatever_its_scale():
    estimate = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)).requires_grad_()
    small, large = estimate[:, :25].square().sum(), 1e6 * estimate[:, 25:].square().sum()
    gradient, norms = balanced_gradient([small, large], [0.75, 0.25], estimate)
    assert norms[1] > 1e5 * norms[0]
    assert float(gradient[:, :25].norm()) == pytest.approx(0.75 * norms[0], rel=1e-5)
    assert float(gradient[:, 25:].norm()) == pytest.approx(0.25 * norms[0], rel=1e-5)
