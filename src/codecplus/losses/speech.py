"""Losses that follow what metrics of speech hear: STOI's envelopes, and PESQ's disturbance."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codecplus.losses.registry import loss
from codecplus.losses.spectra import Spectrum

_HOP_SECONDS = 0.008  # windows are 32 ms


@loss("envelope")
class EnvelopeLoss(nn.Module):
    """One minus the correlation of envelopes in third-octave bands over 0.4 s.

    It is what STOI measures (Taal et al. 2011): fifteen bands from 150 Hz, segments of 384 ms, the
    estimate's envelopes scaled to the energy of the reference and clipped at 15 dB below it.
    Segments 30 dB under the loudest one of their item count for nothing. Raises ValueError for
    crops of less than 0.4 s.
    """

    bands: Tensor

    def __init__(self, sample_rate: int):
        super().__init__()
        window = 4 * round(sample_rate * _HOP_SECONDS)
        self.spectrum = Spectrum(window)
        self.frames = 48  # of a segment
        bins = torch.arange(window // 2 + 1) * sample_rate / window
        centres = 150 * 2 ** (torch.arange(15) / 3)
        lowest = centres * 2 ** (-1 / 6)
        highest = centres * 2 ** (1 / 6)
        inside = (bins[:, None] >= lowest) & (bins[:, None] < highest)
        self.register_buffer("bands", inside.float(), persistent=False)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        shortest = (self.frames - 1) * self.spectrum.window // 4
        if reference.shape[-1] < shortest:
            raise ValueError(
                f"expected crops of at least {shortest} samples, got {reference.shape[-1]}"
            )
        x = self._segments(estimate)  # (B, segments, 15, frames)
        y = self._segments(reference)
        energy = y.square().sum(dim=(2, 3))
        loud = (energy > 1e-3 * energy.amax(dim=1, keepdim=True)).to(y.dtype)
        x = x * (y.norm(dim=-1, keepdim=True) / (x.norm(dim=-1, keepdim=True) + 1e-8))
        x = torch.minimum(x, y * (1 + 10**0.75))
        x = x - x.mean(dim=-1, keepdim=True)
        y = y - y.mean(dim=-1, keepdim=True)
        correlation = (x * y).sum(dim=-1) / (x.norm(dim=-1) * y.norm(dim=-1)).clamp(min=1e-9)
        return 1 - (correlation.mean(dim=-1) * loud).sum() / loud.sum().clamp(min=1)

    def _segments(self, signal: Tensor) -> Tensor:
        power = self.spectrum.magnitude(signal).square() @ self.bands  # (B, T, 15)
        return (power + 1e-12).sqrt().unfold(1, self.frames, 4)


@loss("disturbance")
class DisturbanceLoss(nn.Module):
    """Points of PESQ that are lost: 4.5 minus its raw score, after ITU-T P.862 (2001).

    Power in half-Bark bands, at the level of the standard and frame by frame at that of the
    reference, becomes loudness (Zwicker's law over Terhardt's threshold in quiet). Differences
    count where a quarter of the quieter one does not mask them, and once more where the estimate
    adds far more than there was. The worst frames of 320 ms weigh most. The alignment in time and
    the filter between the signals are left out, since a codec should need neither.
    """

    bands: Tensor
    threshold: Tensor
    exponent: Tensor

    def __init__(self, sample_rate: int):
        super().__init__()
        window = 4 * round(sample_rate * _HOP_SECONDS)
        self.spectrum = Spectrum(window)
        self.span = 40  # frames of 8 ms in 320 ms
        count = 48  # of bands
        top = min(8000.0, sample_rate / 2)
        width = float(_bark(torch.tensor(top))) / count
        inside = _bark_bands(sample_rate, window, top, count)  # (F - 1, count)
        used = inside.sum(dim=0) > 0
        centres = ((torch.arange(count) + 0.5) * width)[used]
        steeper = (6 / (centres + 2)).clamp(1, 2) ** 0.15  # below 4 Bark
        self.total = width * int(used.sum())  # Bark
        bands = F.pad(inside[:, used], (0, 0, 1, 0)).float()
        threshold = 10 ** (_threshold_in_quiet(centres) / 10)
        self.register_buffer("bands", bands, persistent=False)
        self.register_buffer("threshold", threshold, persistent=False)
        self.register_buffer("exponent", 0.23 * steeper, persistent=False)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        x = self._power(estimate)
        y = self._power(reference)
        # The mean power of P.862 after its level alignment.
        to_level = 10**8.36 / (y.sum(dim=-1).mean(dim=1) + 1e-9)
        x = x * to_level[:, None, None]
        y = y * to_level[:, None, None]
        x = x * ((self._audible(y) + 5e3) / (self._audible(x) + 5e3)).clamp(3e-4, 5)
        loud_x = self._loudness(x)
        loud_y = self._loudness(y)
        heard = F.relu((loud_x - loud_y).abs() - 0.25 * torch.minimum(loud_x, loud_y))
        added = ((x.detach() + 50) / (y + 50)) ** 1.2
        added = torch.where(added < 3, 0.0, added.clamp(max=12))
        quiet = ((y.sum(dim=-1) + 1e5) / 1e7) ** 0.04
        symmetric = (heard.square().mean(dim=-1) + 1e-12).sqrt() * self.total / quiet
        asymmetric = (heard * added).mean(dim=-1) * self.total / quiet
        return (0.1 * self._over_time(symmetric) + 0.0309 * self._over_time(asymmetric)).mean()

    def _power(self, signal: Tensor) -> Tensor:  # (B, S) -> (B, T, bands)
        spectrum = self.spectrum(signal)  # not `magnitude`, whose floor would be heard
        return (spectrum.real.square() + spectrum.imag.square()) @ self.bands

    def _audible(self, power: Tensor) -> Tensor:
        return torch.where(power > self.threshold, power, 0.0).sum(dim=-1, keepdim=True)

    def _loudness(self, power: Tensor) -> Tensor:  # (B, T, bands), in sone per Bark
        rise = (0.5 + 0.5 * power / self.threshold) ** self.exponent - 1
        return 0.187 * (self.threshold / 0.5) ** self.exponent * F.relu(rise)

    def _over_time(self, disturbance: Tensor) -> Tensor:  # (B, T) -> (B,)
        span = min(self.span, disturbance.shape[1])
        spans = (disturbance.clamp(max=45) + 1e-5).unfold(1, span, max(1, span // 2))
        return spans.pow(6).mean(dim=-1).pow(1 / 3).mean(dim=1).sqrt()


def _bark_bands(sample_rate: int, window: int, top: float, count: int) -> Tensor:
    """Return which bin without 0 Hz lies in which of `count` bands up to `top` Hz, as 0 and 1."""
    frequencies = torch.arange(1, window // 2 + 1) * sample_rate / window
    width = float(_bark(torch.tensor(top))) / count
    index = (_bark(frequencies) / width).floor().long()
    # What lies above the last band gets a column of its own, which is dropped.
    inside = F.one_hot(index.clamp(max=count), count + 1)[:, :count]
    return inside * (frequencies <= top).unsqueeze(1)


def _threshold_in_quiet(bark: Tensor) -> Tensor:
    """Return the level in dB at which a tone is just heard (Terhardt 1979)."""
    kilohertz = 0.65 * torch.sinh(bark / 7)
    low = 3.64 * kilohertz**-0.8
    ear_canal = 6.5 * torch.exp(-0.6 * (kilohertz - 3.3) ** 2)
    high = 1e-3 * kilohertz**4
    return low - ear_canal + high


def _bark(frequencies: Tensor) -> Tensor:
    """Return the critical-band rate of frequencies in Hz (Schroeder et al. 1979)."""
    return 7 * torch.asinh(frequencies / 650)
