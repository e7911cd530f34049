"""The paper's discriminators and their losses (Kumar et al. 2023).

They know waveforms (B, 1, S), nothing of codecs. Modules are named as in the original
implementation, so that its training states load. Letters: B batch, S
samples, T frames, F frequency bins, C channels, p period.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from codecplus.losses import magnitude

PAPER_BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))


def _conv(
    in_channels: int, out_channels: int, kernel: tuple[int, int], stride: tuple[int, int]
) -> nn.Sequential:
    """Return a weight-normed convolution, which divides sizes by the stride, and its activation."""
    return nn.Sequential(_plain_conv(in_channels, out_channels, kernel, stride), nn.LeakyReLU(0.1))


def _plain_conv(
    in_channels: int, out_channels: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)
) -> nn.Module:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return weight_norm(nn.Conv2d(in_channels, out_channels, kernel, stride, padding))


class MultiPeriodDiscriminator(nn.Module):
    """Convolutions over an image whose columns hold every p-th sample (Kong et al. 2020).

    Takes audio (B, 1, S), and returns the outputs of its layers. The last one, (B, 1, T', p), holds
    the logits.
    """

    def __init__(self, period: int, channels: Sequence[int] = (32, 128, 512, 1024, 1024)):
        super().__init__()
        self.period = period
        widths = [1, *channels]
        strides = [(3, 1)] * (len(channels) - 1) + [(1, 1)]
        self.convs = nn.ModuleList()
        for (inputs, outputs), stride in zip(pairwise(widths), strides, strict=True):
            self.convs.append(_conv(inputs, outputs, (5, 1), stride))
        self.conv_post = _plain_conv(widths[-1], 1, (3, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of all layers, the logits last."""
        missing = self.period - x.shape[-1] % self.period
        x = F.pad(x, (0, missing), mode="reflect")
        x = x.unflatten(-1, (-1, self.period))  # (B, 1, T, p)
        features = []
        for conv in self.convs:
            x = conv(x)
            features.append(x)
        features.append(self.conv_post(x))
        return features


class MultiBandSTFTDiscriminator(nn.Module):
    """Convolutions over the real and imaginary part of an STFT, band by band.

    Takes audio (B, 1, S), and returns the outputs of its layers. The last one, (B, 1, T, F'), holds
    the logits. With a `power` below 1 magnitudes are compressed by it, so that quiet bands count
    beside loud ones; the spectrum is then scaled so that a sine of amplitude 1 peaks at 1.
    """

    floor = 1e-3  # magnitudes below it are hardly raised by the compression
    hann: Tensor

    def __init__(
        self,
        window: int,
        channels: int = 32,
        bands: Sequence[tuple[float, float]] = PAPER_BANDS,
        layers: int = 5,
        power: float = 1.0,
    ):
        super().__init__()
        self.window = window
        self.power = power
        bins = window // 2 + 1
        self.bands = [(int(low * bins), int(high * bins)) for low, high in bands]
        self.band_convs = nn.ModuleList(nn.ModuleList(self._convs(channels, layers)) for _ in bands)
        self.conv_post = _plain_conv(channels, 1, (3, 3))
        self.register_buffer("hann", torch.hann_window(window), persistent=False)

    @staticmethod
    def _convs(channels: int, layers: int) -> list[nn.Sequential]:
        # Random weights depend on the order of creation: the last layer before the inner ones.
        first = _conv(2, channels, (3, 9), (1, 1))
        last = _conv(channels, channels, (3, 3), (1, 1))
        inner = [_conv(channels, channels, (3, 9), (1, 2)) for _ in range(layers - 2)]
        return [first, *inner, last]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of all layers of all bands, the logits last."""
        spectrum = self._spectrum(x)
        features = []
        band_outputs = []
        for (low, high), convs in zip(self.bands, self.band_convs, strict=True):
            band = spectrum[..., low:high]
            for conv in cast(nn.ModuleList, convs):
                band = conv(band)
                features.append(band)
            band_outputs.append(band)
        features.append(self.conv_post(torch.cat(band_outputs, dim=-1)))
        return features

    def _spectrum(self, x: Tensor) -> Tensor:  # (B, 1, S) -> (B, 2, T, F), T = ceil(S / hop)
        hop = self.window // 4
        pad = (self.window - hop) // 2
        x = F.pad(x.float(), (pad, pad + -x.shape[-1] % hop), mode="reflect").squeeze(1)
        with torch.autocast(x.device.type, enabled=False):
            frames = torch.fft.rfft(x.unfold(-1, self.window, hop) * self.hann)
            if self.power < 1:
                frames = frames * (4 / self.window)
                frames = frames * (magnitude(frames) + self.floor).pow(self.power - 1)
        return torch.stack([frames.real, frames.imag], dim=1)


class Discriminator(nn.Module):
    """Discriminators of several periods and several STFT windows, side by side.

    Sizes are the paper's by default; an empty list leaves a kind out. Takes audio (B, 1, S), brings
    it to zero mean and a peak of 0.8, and returns for each discriminator the outputs of its layers,
    the logits last. Raises ValueError if both kinds are left out.
    """

    def __init__(
        self,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        fft_sizes: Sequence[int] = (2048, 1024, 512),
        *,
        bands: Sequence[tuple[float, float]] = PAPER_BANDS,
        period_channels: Sequence[int] = (32, 128, 512, 1024, 1024),
        stft_channels: int = 32,
        stft_power: float = 1.0,
    ):
        super().__init__()
        if not periods and not fft_sizes:
            raise ValueError(
                "expected at least one period or one fft_size for the discriminator, got neither"
            )
        self.discriminators = nn.ModuleList()
        for period in periods:
            self.discriminators.append(MultiPeriodDiscriminator(period, period_channels))
        for size in fft_sizes:
            self.discriminators.append(
                MultiBandSTFTDiscriminator(size, stft_channels, bands, power=stft_power)
            )

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        """Return the outputs of all layers of each discriminator."""
        x = x - x.mean(dim=-1, keepdim=True)
        x = 0.8 * x / (x.abs().amax(dim=-1, keepdim=True) + 1e-9)
        return [part(x) for part in self.discriminators]


class AdversarialLosses(NamedTuple):
    """The losses of both sides, and how well the discriminators tell signals apart; scalars."""

    discriminator: Tensor
    adversarial: Tensor
    feature_matching: Tensor
    accuracy: Tensor  # share of logits on the right side of one half, without a gradient


def adversarial_losses(fake: list[list[Tensor]], real: list[list[Tensor]]) -> AdversarialLosses:
    """Return least-squares losses (Mao et al. 2017) and feature matching of two signals.

    Both arguments are outputs of `Discriminator`. Losses are summed over the discriminators,
    feature matching over their layers too, as in the paper. The loss of the discriminators is
    E[D(fake)²] + E[(1 − D(real))²], that of the codec E[(1 − D(fake))²].
    """
    zero = real[0][0].new_zeros((), dtype=torch.float32)
    discriminator = zero
    adversarial = zero
    matching = zero
    accuracy = zero
    for fake_layers, real_layers in zip(fake, real, strict=True):
        fake_logits = fake_layers[-1].float()
        real_logits = real_layers[-1].float()
        discriminator = discriminator + fake_logits.square().mean()
        discriminator = discriminator + (1 - real_logits).square().mean()
        adversarial = adversarial + (1 - fake_logits).square().mean()
        for x, y in zip(fake_layers[:-1], real_layers[:-1], strict=True):
            matching = matching + (x.float() - y.detach().float()).abs().mean()
        with torch.no_grad():
            correct = (fake_logits < 0.5).float().mean() + (real_logits > 0.5).float().mean()
            accuracy = accuracy + correct / (2 * len(fake))
    return AdversarialLosses(discriminator, adversarial, matching, accuracy)
