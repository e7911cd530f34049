"""Losses modelled on metrics of speech: STOI's envelopes and PESQ's disturbance."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codecplus.losses.registry import loss
from codecplus.losses.spectra import Spectrum

_HOP_SECONDS = 0.008  # windows are 32 ms

# STOI
_ENVELOPE_BANDS = 15
_LOWEST_CENTRE = 150  # Hz
_SEGMENT_FRAMES = 48  # 384 ms
_LOUD_SHARE = 1e-3  # of the energy of the loudest segment: 30 dB below it
_CLIP = 1 + 10**0.75  # estimates are clipped 15 dB below the reference

# PESQ
_BARK_BANDS = 48
_TOP_FREQUENCY = 8000.0  # Hz
_SPAN_FRAMES = 40  # 320 ms
_LEVEL = 10**8.36  # the mean power of P.862 after its level alignment
_MAX_DISTURBANCE = 45


@loss("envelope")
class EnvelopeLoss(nn.Module):
    """One minus the correlation of envelopes in third-octave bands over 0.4 s.

    It is modelled on STOI (Taal et al. 2011): fifteen bands from 150 Hz and segments of 384 ms; the
    estimate's envelopes are scaled to the energy of the reference and clipped 15 dB below it.
    Segments 30 dB below the loudest one of their item do not count. Raises ValueError for crops of
    less than 0.4 s.
    """

    bands: Tensor

    def __init__(self, sample_rate: int):
        super().__init__()
        window = 4 * round(sample_rate * _HOP_SECONDS)
        self.spectrum = Spectrum(window)
        bins = torch.arange(window // 2 + 1) * sample_rate / window
        centres = _LOWEST_CENTRE * 2 ** (torch.arange(_ENVELOPE_BANDS) / 3)
        lowest = centres * 2 ** (-1 / 6)
        highest = centres * 2 ** (1 / 6)
        inside = (bins[:, None] >= lowest) & (bins[:, None] < highest)
        self.register_buffer("bands", inside.float(), persistent=False)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        shortest = (_SEGMENT_FRAMES - 1) * self.spectrum.window // 4
        if reference.shape[-1] < shortest:
            raise ValueError(
                f"expected crops of at least {shortest} samples, got {reference.shape[-1]}"
            )
        x = self._segments(estimate)  # (B, segments, 15, frames)
        y = self._segments(reference)
        energy = y.square().sum(dim=(2, 3))
        loudest = energy.amax(dim=1, keepdim=True)
        loud = (energy > _LOUD_SHARE * loudest).to(y.dtype)
        x_size = x.norm(dim=-1, keepdim=True)
        y_size = y.norm(dim=-1, keepdim=True)
        x = x * (y_size / (x_size + 1e-8))
        x = torch.minimum(x, y * _CLIP)
        x = x - x.mean(dim=-1, keepdim=True)
        y = y - y.mean(dim=-1, keepdim=True)
        sizes = x.norm(dim=-1) * y.norm(dim=-1)
        correlation = (x * y).sum(dim=-1) / sizes.clamp(min=1e-9)
        by_segment = correlation.mean(dim=-1) * loud
        return 1 - by_segment.sum() / loud.sum().clamp(min=1)

    def _segments(self, signal: Tensor) -> Tensor:
        """Return envelopes in overlapping segments: (B, S) -> (B, segments, 15, frames)."""
        power = self.spectrum.magnitude(signal).square() @ self.bands  # (B, T, 15)
        envelopes = (power + 1e-12).sqrt()
        return envelopes.unfold(1, _SEGMENT_FRAMES, 4)


@loss("disturbance")
class DisturbanceLoss(nn.Module):
    """The loss of PESQ in points: 4.5 minus its raw score, after ITU-T P.862 (2001).

    Power in half-Bark bands is brought to the level of the standard, and frame by frame to that of
    the reference. It becomes loudness by Zwicker's law over Terhardt's threshold in quiet.
    Differences count beyond a quarter of the smaller loudness, which masks the rest. They count
    once more where the estimate has far more power than the reference. The worst frames of 320 ms
    weigh most. PESQ's alignment in time and its filter between the signals are left out, because a
    codec should need neither.
    """

    bands: Tensor
    threshold: Tensor
    exponent: Tensor

    def __init__(self, sample_rate: int):
        super().__init__()
        window = 4 * round(sample_rate * _HOP_SECONDS)
        self.spectrum = Spectrum(window)
        top = min(_TOP_FREQUENCY, sample_rate / 2)
        width = float(_bark(torch.tensor(top))) / _BARK_BANDS
        inside = _bark_bands(sample_rate, window, top, _BARK_BANDS)  # (F - 1, bands)
        used = inside.sum(dim=0) > 0
        centres = ((torch.arange(_BARK_BANDS) + 0.5) * width)[used]
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
        gain = _LEVEL / (y.sum(dim=-1).mean(dim=1) + 1e-9)
        x = x * gain[:, None, None]
        y = y * gain[:, None, None]
        frame_gain = (self._audible(y) + 5e3) / (self._audible(x) + 5e3)
        x = x * frame_gain.clamp(3e-4, 5)
        x_loudness = self._loudness(x)
        y_loudness = self._loudness(y)
        masked = 0.25 * torch.minimum(x_loudness, y_loudness)
        difference = F.relu((x_loudness - y_loudness).abs() - masked)
        added = ((x.detach() + 50) / (y + 50)) ** 1.2
        added = torch.where(added < 3, 0.0, added.clamp(max=12))
        level = ((y.sum(dim=-1) + 1e5) / 1e7) ** 0.04  # differences count less in loud frames
        symmetric = (difference.square().mean(dim=-1) + 1e-12).sqrt() * self.total / level
        asymmetric = (difference * added).mean(dim=-1) * self.total / level
        points = 0.1 * self._over_time(symmetric) + 0.0309 * self._over_time(asymmetric)
        return points.mean()

    def _power(self, signal: Tensor) -> Tensor:  # (B, S) -> (B, T, bands)
        spectrum = self.spectrum(signal)  # not `magnitude`, whose floor would be audible here
        return (spectrum.real.square() + spectrum.imag.square()) @ self.bands

    def _audible(self, power: Tensor) -> Tensor:
        return torch.where(power > self.threshold, power, 0.0).sum(dim=-1, keepdim=True)

    def _loudness(self, power: Tensor) -> Tensor:  # (B, T, bands), in sone per Bark
        rise = (0.5 + 0.5 * power / self.threshold) ** self.exponent - 1
        return 0.187 * (self.threshold / 0.5) ** self.exponent * F.relu(rise)

    def _over_time(self, disturbance: Tensor) -> Tensor:  # (B, T) -> (B,)
        frames = min(_SPAN_FRAMES, disturbance.shape[1])
        limited = disturbance.clamp(max=_MAX_DISTURBANCE) + 1e-5
        spans = limited.unfold(1, frames, max(1, frames // 2))  # (B, spans, frames)
        squares = spans.pow(6).mean(dim=-1).pow(1 / 3)
        return squares.mean(dim=1).sqrt()


def _bark_bands(sample_rate: int, window: int, top: float, count: int) -> Tensor:
    """Return 1 where a bin lies in a band, else 0: (F - 1, count), without the bin of 0 Hz.

    `count` bands of equal width in Bark reach up to `top` Hz.
    """
    frequencies = torch.arange(1, window // 2 + 1) * sample_rate / window
    width = float(_bark(torch.tensor(top))) / count
    index = (_bark(frequencies) / width).floor().long()
    # Bins above the last band get a column of their own, which is dropped.
    inside = F.one_hot(index.clamp(max=count), count + 1)[:, :count]
    return inside * (frequencies <= top).unsqueeze(1)


def _threshold_in_quiet(bark: Tensor) -> Tensor:
    """Return the threshold of hearing in dB at critical-band rates (Terhardt 1979)."""
    kilohertz = 0.65 * torch.sinh(bark / 7)
    low = 3.64 * kilohertz**-0.8
    ear_canal = 6.5 * torch.exp(-0.6 * (kilohertz - 3.3) ** 2)
    high = 1e-3 * kilohertz**4
    return low - ear_canal + high


def _bark(frequencies: Tensor) -> Tensor:
    """Return the critical-band rate of frequencies in Hz (Schroeder et al. 1979)."""
    return 7 * torch.asinh(frequencies / 650)
