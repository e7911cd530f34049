"""Spectra for losses, with finite and fast gradients. They know signals (B, S), no losses."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codecplus.audio.mel import mel_filterbank

# Within `shared_spectra`: spectra by kind, window and id of the signal. The signal is kept too, so
# that its id cannot become that of another one.
_Spectra = dict[tuple, tuple[Tensor, Tensor]]
_shared: ContextVar[_Spectra | None] = ContextVar("shared_spectra", default=None)


@contextmanager
def shared_spectra() -> Iterator[None]:
    """Compute each spectrum of a signal once for all losses within the block, in this thread.

    Signals must not be changed there.
    """
    token = _shared.set({})
    try:
        yield
    finally:
        _shared.reset(token)


class Spectrum(nn.Module):
    """Hann-windowed spectrum at a hop of a quarter window: (B, S) -> (B, T, F), complex.

    It is scaled so that a sine of amplitude 1 peaks at 1, unless `scaled` is false. Raises
    ValueError for a window that no quarter fits, and for signals of half a window or less.
    """

    hann: Tensor

    def __init__(self, window: int, *, scaled: bool = True):
        super().__init__()
        if window < 4 or window % 4:
            raise ValueError(f"window must be a positive multiple of 4 samples, got {window}")
        self.window = window
        self.scale = 1.0
        if scaled:
            self.scale = 4 / window
        self.register_buffer("hann", torch.hann_window(window) * self.scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, S) -> (B, T, F), complex
        return self._once("spectrum", x, self._spectrum)

    def magnitude(self, x: Tensor) -> Tensor:
        """Return the magnitudes of the spectrum: (B, S) -> (B, T, F)."""
        return self._once("magnitude", x, lambda x: magnitude(self(x)))

    def _once(self, kind: str, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        shared = _shared.get()
        if shared is None:
            return compute(x)
        key = (kind, self.window, self.scale, id(x))
        if key not in shared:
            shared[key] = (x, compute(x))
        return shared[key][1]

    def _spectrum(self, x: Tensor) -> Tensor:
        half = self.window // 2
        if x.shape[-1] <= half:
            raise ValueError(
                f"expected more than {half} samples for a window of {self.window}, "
                f"got {x.shape[-1]}"
            )
        x = F.pad(x.unsqueeze(1), (half, half), mode="reflect").squeeze(1)
        return cast(Tensor, _Frames.apply(x, self.hann))


class MelSpectra(nn.Module):
    """Mel magnitudes of signals at several window lengths.

    Args:
        sample_rate: of the signals, in Hz.
        bands: maps windows, in samples, to numbers of mel bands.
        scaled: whether spectra are scaled by the window, as `Spectrum` says.
        means: whether a band is the weighted mean of its bins instead of their sum; bands that
            fall between two bins are then left out.
    """

    def __init__(
        self,
        sample_rate: int,
        bands: Mapping[int, int],
        *,
        scaled: bool = True,
        means: bool = False,
    ):
        super().__init__()
        self.spectra = nn.ModuleList(Spectrum(window, scaled=scaled) for window in bands)
        for window, count in bands.items():
            filters = torch.from_numpy(mel_filterbank(sample_rate, window, count))  # (M, F)
            if means:
                filters = filters[filters.sum(dim=1) > 0]
                filters = filters / filters.sum(dim=1, keepdim=True)
            self.register_buffer(f"filters{window}", filters.t(), persistent=False)

    def __len__(self) -> int:
        return len(self.spectra)

    def pairs(self, estimate: Tensor, reference: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the mel magnitudes (B, T, M) of both signals (B, S), window by window."""
        for module in self.spectra:
            spectrum = cast(Spectrum, module)
            filters = self.get_buffer(f"filters{spectrum.window}")
            yield spectrum.magnitude(estimate) @ filters, spectrum.magnitude(reference) @ filters


def magnitude(spectrum: Tensor) -> Tensor:
    """Return the absolute value, with a finite gradient at 0."""
    return cast(Tensor, _Magnitude.apply(spectrum))


def limit_bandwidth(x: Tensor, bandwidth: Tensor, sample_rate: int) -> Tensor:
    """Remove frequencies above its bandwidth from each item of x (B, S).

    A recording of a lower rate has no frequencies above its band, but the original sound had. With
    estimate and reference limited alike, losses do not teach the codec to be silent there. The edge
    is a cosine over the highest 5 % of the band. A full bandwidth changes nothing.

    Args:
        x: the signals (B, S).
        bandwidth: of each item (B,), in Hz. It should be on the CPU, because reading it from a GPU
            waits for the GPU.
        sample_rate: of the signals, in Hz.
    """
    if bool((bandwidth >= sample_rate / 2).all()):
        return x
    frequencies = torch.linspace(0, sample_rate / 2, x.shape[-1] // 2 + 1, device=x.device)
    edge = bandwidth.to(x.device, x.dtype).unsqueeze(-1)
    position = ((frequencies - 0.95 * edge) / (0.05 * edge)).clamp(0, 1)
    cosine = 0.5 + 0.5 * torch.cos(torch.pi * position)
    gain = torch.where(edge >= sample_rate / 2, 1.0, cosine)
    return torch.fft.irfft(torch.fft.rfft(x) * gain, n=x.shape[-1])


class _Frames(torch.autograd.Function):
    """Spectra (B, T, F) of x (B, S) in frames under a window of N samples, at a hop of N / 4.

    Autograd's own gradient takes complex transforms of full length, and adds up frames sample by
    sample, which takes three times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Tensor) -> Tensor:
        size = len(window)
        ctx.samples = x.shape[-1]
        ctx.window = window
        return torch.fft.rfft(x.unfold(-1, size, size // 4) * window)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        size = len(ctx.window)
        quarter = size // 4
        batch, frames, bins = gradients[0].shape
        # The inverse counts every bin but the first and the last twice, for the bins of negative
        # frequency.
        once = torch.full((bins,), 0.5, device=ctx.window.device, dtype=ctx.window.dtype)
        once[0] = once[-1] = 1
        pieces = torch.fft.irfft(gradients[0] * once, n=size, norm="forward") * ctx.window
        gradient = pieces.new_zeros(batch, ctx.samples)
        covered = gradient[:, : (frames + 3) * quarter]
        quarters = covered.unflatten(1, (-1, quarter))  # (B, T + 3, N / 4)
        for index, piece in enumerate(pieces.unflatten(2, (4, -1)).unbind(2)):
            quarters[:, index : index + frames] += piece
        return gradient, None


class _Magnitude(torch.autograd.Function):
    """√(|z|² + 1e-12), whose gradient is z / √(|z|² + 1e-12)."""

    @staticmethod
    def forward(ctx: Any, spectrum: Tensor) -> Tensor:
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
        size = power.add_(1e-12).sqrt_()
        ctx.save_for_backward(spectrum, size)
        return size

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        spectrum, size = ctx.saved_tensors
        scaled = torch.view_as_real(spectrum) * (gradients[0] / size).unsqueeze(-1)
        return torch.view_as_complex(scaled)
