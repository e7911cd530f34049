"""Losses in units of each item's own level, to be balanced: quiet items count like loud ones."""

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
