import numpy as np
import pytest
import torch

from codecplus.errors import InputError
from codecplus.training.adversary import new_discriminator
from codecplus.training.discriminators import (
    Discriminator,
    MultiBandSTFTDiscriminator,
    MultiPeriodDiscriminator,
    adversarial_losses,
)
from codecplus.training.recipe import Adversary


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Discriminator([2, 3], [128, 64], period_channels=(4, 8, 8), stft_channels=4)


def test_discriminators_are_the_papers_by_default():
    with torch.device("meta"):
        parts = Discriminator().discriminators
    assert [part.period for part in parts[:5]] == [2, 3, 5, 7, 11]
    assert [part.window for part in parts[5:]] == [2048, 1024, 512]
    assert parts[5].bands == [(0, 102), (102, 256), (256, 512), (512, 768), (768, 1025)]


def test_modules_are_named_as_in_the_original_implementation(small):
    names = {
        name.replace(".parametrizations.weight.original0", ".weight_g")
        for name in small.state_dict()
    }
    for name in (
        "discriminators.0.convs.0.0.weight_g",
        "discriminators.0.conv_post.weight_g",
        "discriminators.2.band_convs.4.4.0.bias",
        "discriminators.3.conv_post.bias",
    ):
        assert name in names
    old = {}
    for name, value in small.state_dict().items():  # the spelling of the original's weight norm
        old[name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v")] = value  # fmt: skip
    small.load_state_dict(old)


def test_every_pth_sample_lies_in_one_column():
    part = MultiPeriodDiscriminator(3, (4, 4))
    x = torch.randn(1, 1, 99)
    y = x.clone()
    y[..., 49] += 1  # 49 = 16 * 3 + 1: the second column
    changed = (part(x)[0] - part(y)[0]).abs().amax(dim=(0, 1, 2))
    assert (changed > 0).tolist() == [False, True, False]


def test_the_convolutions_of_a_band_see_only_its_frequencies():
    part = MultiBandSTFTDiscriminator(256, 4, bands=((0.0, 0.5), (0.5, 1.0)))
    noise = torch.randn(1, 1, 4096, generator=torch.Generator().manual_seed(0))
    spectrum = torch.fft.rfft(noise)
    spectrum[..., : spectrum.shape[-1] // 4] = 0  # what is changed lies in the lower band
    above = torch.fft.irfft(spectrum)
    with torch.no_grad():
        features, changed = part(noise), part(above)
    lower, upper = (float((features[i] - changed[i])[:, :, 4:-4].abs().max()) for i in (0, 5))
    assert upper < 1e-2 * lower


def test_the_spectrum_equals_numpy(small):
    part = small.discriminators[2]
    x = torch.randn(2, 1, 1000, generator=torch.Generator().manual_seed(0))
    found = part._spectrum(x).numpy()
    padded = np.pad(x[1, 0].numpy(), (48, 48 + -1000 % 32), mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(128) / 128)
    frames = np.stack(
        [np.fft.rfft(padded[s : s + 128] * window) for s in range(0, len(padded) - 127, 32)]
    )
    assert found.shape == (2, 2, 32, 65)
    np.testing.assert_allclose(found[1], [frames.real, frames.imag], atol=1e-4)


def test_discriminators_ignore_level_and_offset(small):
    x = torch.randn(1, 1, 600, generator=torch.Generator().manual_seed(0))
    for a, b in zip(small(x), small(0.01 * x + 0.3), strict=True):
        torch.testing.assert_close(a[-1], b[-1], rtol=1e-3, atol=1e-4)


def test_losses_are_least_squares_and_l1():
    generator = torch.Generator().manual_seed(0)
    fake, real = (
        [[torch.randn(2, 4, generator=generator) for _ in range(3)] for _ in range(2)]
        for _ in range(2)
    )
    found = adversarial_losses(fake, real)
    judge = sum(
        np.mean(f[-1].numpy() ** 2) + np.mean((1 - r[-1].numpy()) ** 2)
        for f, r in zip(fake, real, strict=True)
    )
    codec = sum(np.mean((1 - f[-1].numpy()) ** 2) for f in fake)
    matching = sum(
        np.mean(np.abs(a.numpy() - b.numpy()))
        for f, r in zip(fake, real, strict=True)
        for a, b in zip(f[:-1], r[:-1], strict=True)
    )
    for value, expected in zip(found[:3], (judge, codec, matching), strict=True):
        assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_accuracy_is_the_share_of_correct_logits():
    fake = [[torch.tensor([0.1, 0.6])], [torch.tensor([0.9])]]
    real = [[torch.tensor([0.7, 0.8])], [torch.tensor([0.4])]]
    assert float(adversarial_losses(fake, real).accuracy) == pytest.approx(0.75 / 2)


def test_the_real_features_get_no_gradient_from_matching():
    real, fake = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    last = torch.zeros(1)
    adversarial_losses([[fake, last]], [[real, last]]).feature_matching.backward()
    assert real.grad is None
    assert fake.grad is not None


def test_discriminators_learn_to_tell_noise_from_tones(small):
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(512) / 8000
    optimizer = torch.optim.AdamW(small.parameters(), lr=2e-3, betas=(0.8, 0.99))
    values = []
    for _ in range(40):
        tones = torch.sin(
            2 * torch.pi * (200 + 800 * torch.rand(4, 1, generator=generator)) * time
        ).unsqueeze(1)
        noise = torch.randn(4, 1, 512, generator=generator)
        loss = adversarial_losses(small(noise), small(tones)).discriminator
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss))
    assert np.mean(values[-5:]) < 0.6 * values[0]


def test_a_discriminator_without_parts_is_refused():
    with pytest.raises(ValueError, match="at least one period or one fft_size"):
        Discriminator([], [])


def test_a_power_below_one_lets_discriminators_see_quiet_bands():
    time = torch.arange(1024) / 1024
    loud = torch.sin(2 * torch.pi * 64 * time)
    quiet = 1e-2 * torch.sin(2 * torch.pi * 256 * time)
    ratios = []
    for power in (1.0, 0.3):
        judge = MultiBandSTFTDiscriminator(64, 4, power=power)
        spectrum = judge._spectrum((loud + quiet)[None, None])
        sizes = torch.linalg.vector_norm(spectrum, dim=1)[0, 4]
        ratios.append(float(sizes[16] / sizes[4]))
    assert ratios[0] == pytest.approx(0.01, rel=0.1)
    assert ratios[1] == pytest.approx(0.01**0.3, rel=0.1)


def test_a_recipe_chooses_the_power_of_discriminators():
    settings = Adversary(periods=[], fft_sizes=[64], stft_channels=4, stft_power=0.3)
    assert new_discriminator(settings).discriminators[0].power == 0.3
    with pytest.raises(InputError, match="above 0, up to 1, got 0"):
        Adversary(stft_power=0)
