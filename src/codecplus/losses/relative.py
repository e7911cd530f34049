"""Losses in units of each item's own level, to be balanced: quiet items count like loud ones."""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codecplus.losses.registry import loss
from codecplus.losses.spectra import MelSpectra, Spectrum

QUIET = 2e-3  # a bin counts as silent below this share of the item's level: 54 dB below it
FAINT = 3e-5  # the same for `quiet_mel`: 90 dB below it


def rms(x: Tensor) -> Tensor:
    """Return the root mean square of each item: (B, S) -> (B, 1)."""
    return x.square().mean(dim=-1, keepdim=True).sqrt()


def quiet_floor(reference: Tensor, share: float = QUIET) -> Tensor:
    """Return the magnitude below which a bin counts as silent: (B, S) -> (B, 1, 1).

    It is a share of the item's level. With a fixed, very low floor the gaps between words would
    dominate a loss, with gradients far above all others.
    """
    return share * rms(reference).unsqueeze(-1) + share / 100


@loss("relative_mel")
class RelativeMelLoss(nn.Module):
    """Mean absolute difference of log mel magnitudes, averaged over windows.

    A band is the weighted mean of its bins. Bands that fall between two bins are left out.
    `mel_bands` maps windows to numbers of bands.
    """

    quiet = QUIET  # share of an item's level below which magnitudes hardly count

    def __init__(self, sample_rate: int, mel_bands: Mapping[int, int]):
        super().__init__()
        self.mel = MelSpectra(sample_rate, mel_bands, means=True)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        floor = quiet_floor(reference, self.quiet)
        total = estimate.new_zeros(())
        for x, y in self.mel.pairs(estimate, reference):
            total = total + (torch.log(x + floor) - torch.log(y + floor)).abs().mean()
        return total / len(self.mel)


@loss("quiet_mel")
class QuietMelLoss(RelativeMelLoss):
    """`RelativeMelLoss` with a lower floor, for the quiet gaps between notes and words."""

    quiet = FAINT


@loss("compressed_stft")
class CompressedSTFTLoss(nn.Module):
    """Mean square difference of complex spectra whose magnitudes are compressed by a power.

    The phase counts where there is energy, and quiet harmonics count beside loud ones (Ephrat et
    al. 2018).
    """

    power = 0.3

    def __init__(self, stft_windows: Sequence[int]):
        super().__init__()
        self.spectra = nn.ModuleList(Spectrum(window) for window in stft_windows)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        floor = quiet_floor(reference)
        total = estimate.new_zeros(())
        for module in self.spectra:
            spectrum = cast(Spectrum, module)
            x = self._compressed(spectrum, estimate, floor)
            y = self._compressed(spectrum, reference, floor)
            difference = x - y
            total = total + (difference.real.square() + difference.imag.square()).mean() / 2
        return total / len(self.spectra)

    def _compressed(self, spectrum: Spectrum, signal: Tensor, floor: Tensor) -> Tensor:
        return spectrum(signal) * (spectrum.magnitude(signal) + floor).pow(self.power - 1)


@loss("relative_waveform")
def relative_waveform_loss(estimate: Tensor, reference: Tensor) -> Tensor:
    """Return the mean absolute difference, each item (B, S) in units of its own level.

    >>> reference = torch.tensor([[0.1, -0.1], [0.5, 0.5]])
    >>> round(float(relative_waveform_loss(0.5 * reference, reference)), 3)
    0.497
    """
    return ((estimate - reference) / (rms(reference) + 1e-3)).abs().mean()


@loss("loudness_mel")
class LoudnessMelLoss(nn.Module):
    """Mean absolute difference of compressed mel magnitudes, in units of the reference's mean.

    The power of 0.3 is about that of loudness (Stevens), so that loud bands count more than in a
    logarithm. Energy that the estimate adds is more audible than energy that it lacks, as in PESQ
    (ITU-T P.862): it counts 1 + `added` times. Averaged over windows; `mel_bands` maps them to
    numbers of bands.
    """

    power = 0.3
    added = 0.3

    def __init__(self, sample_rate: int, mel_bands: Mapping[int, int]):
        super().__init__()
        self.mel = MelSpectra(sample_rate, mel_bands, means=True)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        total = estimate.new_zeros(())
        for x, y in self.mel.pairs(estimate, reference):
            x = (x + 1e-5).pow(self.power)
            y = (y + 1e-5).pow(self.power)
            difference = ((x - y).abs() + self.added * F.relu(x - y)).mean(dim=(1, 2))
            total = total + (difference / y.mean(dim=(1, 2))).mean()
        return total / len(self.mel)


@loss("band_level")
class BandLevelLoss(nn.Module):
    """Mean absolute log ratio of the powers of bands of 500 Hz, each over the whole crop.

    Where in the crop the power lies does not count. Losses that compare single bins or cells lower
    the power of bands that are hard to predict, because a guess that is too quiet costs least; this
    one brings it back. A band that lies 60 dB below the item's level counts as silent, so that
    bands above the bandwidth of a recording cost nothing. The last band is wider where 500 Hz do
    not divide half the rate.
    """

    width = 500.0  # of a band, in Hz
    seconds = 0.032  # of a window, about
    mirrored = 2  # frames at either end of a crop that see samples beyond it

    of_levels = True

    def __init__(self, sample_rate: int):
        super().__init__()
        window = 2 ** round(math.log2(self.seconds * sample_rate))
        self.spectrum = Spectrum(max(4, window))
        bins = self.spectrum.window // 2 + 1
        frequencies = torch.linspace(0, sample_rate / 2, bins, dtype=torch.float64)[1:]
        last = max(1, int(sample_rate / 2 / self.width)) - 1
        # A bin at the edge of two bands belongs to the lower one.
        bands = (torch.ceil(frequencies / self.width).long() - 1).clamp(max=last)
        means = F.one_hot(bands, last + 1).float()  # (F - 1, bands)
        means = means / means.sum(dim=0).clamp(min=1)
        self.register_buffer("means", means, persistent=False)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        floor = quiet_floor(reference, QUIET / 2).square().squeeze(-1)  # (B, 1)
        x = torch.log(self._powers(estimate) + floor)
        y = torch.log(self._powers(reference) + floor)
        return (x - y).abs().mean()

    def _powers(self, signal: Tensor) -> Tensor:  # (B, S) -> (B, bands)
        frames = self.spectrum.magnitude(signal).square()  # (B, T, F)
        # Samples mirrored at the ends of a crop make a kink, whose spectrum fills all bands.
        if frames.shape[1] > 2 * self.mirrored:
            frames = frames[:, self.mirrored : -self.mirrored]
        return frames.mean(dim=1)[:, 1:] @ self.get_buffer("means")


@loss("cell_power")
class CellPowerLoss(nn.Module):
    """Itakura-Saito divergence of the powers of cells in time and frequency.

    A cell is 64 ms by 250 Hz, or 16 ms by 500 Hz; cells overlap by half in both directions. How
    power lies within a cell does not count. With r the power of the reference's cell over that of
    the estimate's, a cell costs r - log r - 1. A guess at an uncertain power costs least at its
    mean, while losses on magnitudes or logarithms cost least below it, so that they leave bands too
    quiet. Cells that are more than `steep` too quiet cost in proportion to their log ratio. A cell
    that is about 53 dB below the level of its item counts as silent.
    """

    seconds = (0.064, 0.016)  # of windows, about
    widths = (250.0, 500.0)  # of cells, in Hz
    frames = 4  # of a cell, a quarter window apart
    mirrored = 2  # frames at either end of a crop that see samples beyond it
    steep = 1.5  # in nepers of power, 6.5 dB

    of_levels = True

    def __init__(self, sample_rate: int):
        super().__init__()
        self.spectra = nn.ModuleList()
        self.bins = []  # of a cell
        for seconds, width in zip(self.seconds, self.widths, strict=True):
            window = max(8, 2 ** round(math.log2(seconds * sample_rate)))
            self.spectra.append(Spectrum(window))
            bins = round(width * window / sample_rate)
            self.bins.append(min(max(1, bins), window // 2))

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        floor = quiet_floor(reference, QUIET / 2).square()
        total = estimate.new_zeros(())
        for module, bins in zip(self.spectra, self.bins, strict=True):
            spectrum = cast(Spectrum, module)
            x = self._cells(spectrum, estimate, bins) + floor
            y = self._cells(spectrum, reference, bins) + floor
            ratio = torch.log(y / x)
            near = ratio.clamp(max=self.steep)
            beyond = (math.exp(self.steep) - 1) * (ratio - near)
            total = total + (torch.exp(near) - near - 1 + beyond).mean()
        return total / len(self.spectra)

    def _cells(self, spectrum: Spectrum, signal: Tensor, bins: int) -> Tensor:
        """Return the mean powers of cells: (B, S) -> (B, cells, cells)."""
        power = spectrum.magnitude(signal).square()[..., 1:]  # (B, T, F - 1)
        if power.shape[1] >= self.frames + 2 * self.mirrored:
            power = power[:, self.mirrored : -self.mirrored]
        frames = min(self.frames, power.shape[1])
        step = (max(1, frames // 2), max(1, bins // 2))
        return F.avg_pool2d(power.unsqueeze(1), (frames, bins), step).squeeze(1)
