"""Reconstruction losses, and their balance. They know waveforms (B, S) and nothing of models.

A loss compares what came out with what went in and is 0 where they are equal. Letters: B batch, S samples, T time
frames, F frequency bins, M mel bands.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codecplus.utils import mel_filterbank


def rms(x: Tensor) -> Tensor:
    """Root mean square of each item: (B, S) -> (B, 1)."""
    return x.square().mean(dim=-1, keepdim=True).sqrt()


def waveform_loss(estimate: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute difference, each item (B, S) in units of its own level, so that quiet ones count as much as loud.

    >>> reference = torch.tensor([[0.1, -0.1], [0.5, 0.5]])
    >>> round(float(waveform_loss(0.5 * reference, reference)), 3)
    0.497
    """
    return ((estimate - reference) / (rms(reference) + 1e-3)).abs().mean()


class Spectrum(nn.Module):
    """Hann-windowed spectrum at a hop of a quarter window, scaled so that a sine of amplitude 1 peaks at 1."""

    hann: Tensor

    def __init__(self, window: int):
        super().__init__()
        if window < 4 or window % 4:
            raise ValueError(f"window must be a positive multiple of 4 samples, got {window}")
        self.window = window
        self.register_buffer("hann", torch.hann_window(window) * (4 / window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, S) -> (B, T, F), complex
        half = self.window // 2
        if x.shape[-1] <= half:
            raise ValueError(f"expected more than {half} samples for a window of {self.window}, got {x.shape[-1]}")
        x = F.pad(x.unsqueeze(1), (half, half), mode="reflect").squeeze(1)
        return torch.fft.rfft(x.unfold(-1, self.window, self.window // 4) * self.hann)


def magnitude(spectrum: Tensor) -> Tensor:
    """Absolute value with a finite gradient at 0."""
    return (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt()


def quiet_floor(reference: Tensor) -> Tensor:
    """What counts as silence in a bin, 54 dB under the level of the item: (B, S) -> (B, 1, 1).

    A fixed, very low floor makes the loss live in the gaps between words, with gradients that drown all others.
    """
    return 2e-3 * rms(reference).unsqueeze(-1) + 2e-5


class STFTLoss(nn.Module):
    """Mean square difference of complex spectra whose magnitudes are compressed by a power (Ephrat et al. 2018).

    The phase counts where there is energy, and quiet harmonics count beside loud ones.
    """

    def __init__(self, windows: list[int], power: float = 0.3):
        super().__init__()
        self.power = power
        self.spectra = nn.ModuleList(Spectrum(window) for window in windows)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        floor = quiet_floor(reference)
        total = estimate.new_zeros(())
        for spectrum in self.spectra:
            difference = self._compressed(spectrum(estimate), floor) - self._compressed(spectrum(reference), floor)
            total = total + (difference.real.square() + difference.imag.square()).mean() / 2
        return total / len(self.spectra)

    def _compressed(self, spectrum: Tensor, floor: Tensor) -> Tensor:
        return spectrum * (magnitude(spectrum) + floor).pow(self.power - 1)


class MelLoss(nn.Module):
    """Mean absolute difference of log mel magnitudes over several window lengths, `bands` {window: mel bands}.

    A band is the weighted mean of its bins. Bands that fall between two bins are left out.
    """

    def __init__(self, sample_rate: int, bands: dict[int, int]):
        super().__init__()
        self.spectra = nn.ModuleList(Spectrum(window) for window in bands)
        for window, count in bands.items():
            filters = torch.from_numpy(mel_filterbank(sample_rate, window, count))  # (M, F)
            filters = filters[filters.sum(dim=1) > 0]
            self.register_buffer(f"filters{window}", (filters / filters.sum(dim=1, keepdim=True)).t(), persistent=False)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        floor = quiet_floor(reference)
        total = estimate.new_zeros(())
        for spectrum in self.spectra:
            filters = self.get_buffer(f"filters{spectrum.window}")
            x, y = (torch.log(magnitude(spectrum(s)) @ filters + floor) for s in (estimate, reference))
            total = total + (x - y).abs().mean()
        return total / len(self.spectra)


def balanced_gradient(
    losses: list[Tensor], weights: list[float], estimate: Tensor, norms: list[float] | None = None
) -> tuple[Tensor, list[float]]:
    """Gradient at `estimate` in which each loss has the share `weights` gives it (Défossez et al. 2022, the balancer).

    Each gradient is divided by its norm, `norms` (running means; those of this call by default), and the sum has the
    scale of the first loss. Returns the gradient and the norms of this call. Backpropagate with
    `(estimate * gradient).sum().backward()`.
    """
    gradients = [torch.autograd.grad(loss, estimate, retain_graph=True)[0] for loss in losses]
    found = [float(gradient.norm()) for gradient in gradients]
    norms = found if norms is None else norms
    total = torch.zeros_like(estimate)
    for gradient, weight, norm in zip(gradients, weights, norms, strict=True):
        total += gradient * (weight * norms[0] / max(norm, 1e-12))
    return total, found
