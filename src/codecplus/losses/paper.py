"""The losses of the DAC paper (Kumar et al. 2023), meant to be summed with its weights.

Spectra are not scaled by the window, and magnitudes below 1e-5 count as 1e-5.
"""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from codecplus.losses.registry import loss
from codecplus.losses.spectra import MelSpectra, Spectrum, magnitude

PAPER_MEL_BANDS = {32: 5, 64: 10, 128: 20, 256: 40, 512: 80, 1024: 160, 2048: 320}  # window: bands
PAPER_STFT_WINDOWS = (2048, 512)
_SMALLEST = 1e-5


@loss("mel")
class MultiScaleMelLoss(nn.Module):
    """Mean absolute difference of log10 mel magnitudes, summed over windows of 32 to 2048 samples.

    The filters are Slaney's. `mel_bands` maps windows to numbers of bands.
    """

    def __init__(self, sample_rate: int, mel_bands: Mapping[int, int] = PAPER_MEL_BANDS):
        super().__init__()
        self.mel = MelSpectra(sample_rate, mel_bands, scaled=False)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        total = estimate.new_zeros(())
        for x, y in self.mel.pairs(estimate, reference):
            difference = x.clamp(min=_SMALLEST).log10() - y.clamp(min=_SMALLEST).log10()
            total = total + difference.abs().mean()
        return total


@loss("stft")
class MultiScaleSTFTLoss(nn.Module):
    """Mean absolute difference of STFT magnitudes plus that of their log10 powers, summed over
    windows.
    """

    def __init__(self, stft_windows: Sequence[int] = PAPER_STFT_WINDOWS):
        super().__init__()
        self.spectra = nn.ModuleList(Spectrum(window, scaled=False) for window in stft_windows)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        total = estimate.new_zeros(())
        for spectrum in self.spectra:
            x = magnitude(spectrum(estimate))
            y = magnitude(spectrum(reference))
            logs = x.clamp(min=_SMALLEST).log10() - y.clamp(min=_SMALLEST).log10()
            total = total + (x - y).abs().mean() + 2 * logs.abs().mean()
        return total


@loss("waveform_l1")
def waveform_l1_loss(estimate: Tensor, reference: Tensor) -> Tensor:
    """Return the mean absolute difference of samples."""
    return F.l1_loss(estimate, reference)


@loss("waveform_l2")
def waveform_l2_loss(estimate: Tensor, reference: Tensor) -> Tensor:
    """Return the mean square difference of samples."""
    return F.mse_loss(estimate, reference)
