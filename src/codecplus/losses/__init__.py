"""Reconstruction losses, and their balance. They know waveforms (B, S) and nothing of models.

A loss compares what came out with what went in and is 0 where they are equal. Two families: those
of the DAC paper, which are meant to be summed with its weights, and relative ones, in units of each
item's own level, which are meant to be balanced. Letters: B batch, S samples, T time frames, F
frequency bins, M mel bands.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codecplus.audio.mel import mel_filterbank

PAPER_MEL_BANDS = {32: 5, 64: 10, 128: 20, 256: 40, 512: 80, 1024: 160, 2048: 320}  # window: bands
PAPER_STFT_WINDOWS = (2048, 512)


def rms(x: Tensor) -> Tensor:
    """Root mean square of each item: (B, S) -> (B, 1)."""
    return x.square().mean(dim=-1, keepdim=True).sqrt()


def relative_waveform_loss(estimate: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute difference, each item (B, S) in units of its own level, so that quiet ones
    count as much as loud.

    >>> reference = torch.tensor([[0.1, -0.1], [0.5, 0.5]])
    >>> round(float(relative_waveform_loss(0.5 * reference, reference)), 3)
    0.497
    """
    return ((estimate - reference) / (rms(reference) + 1e-3)).abs().mean()


class Spectrum(nn.Module):
    """Hann-windowed spectrum at a hop of a quarter window, scaled so that a sine of amplitude 1
    peaks at 1.
    """

    hann: Tensor

    def __init__(self, window: int, *, scaled: bool = True):
        super().__init__()
        if window < 4 or window % 4:
            raise ValueError(f"window must be a positive multiple of 4 samples, got {window}")
        self.window = window
        self.scale = 4 / window if scaled else 1
        self.register_buffer("hann", torch.hann_window(window) * self.scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, S) -> (B, T, F), complex
        return self._once("spectrum", x, self._spectrum)

    def magnitude(self, x: Tensor) -> Tensor:  # (B, S) -> (B, T, F)
        """Magnitudes of the spectrum."""
        return self._once("magnitude", x, lambda x: magnitude(self(x)))

    def _once(self, what: str, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        if _shared is None:
            return compute(x)
        key = (what, self.window, self.scale, id(x))
        if key not in _shared:
            _shared[key] = (x, compute(x))  # with x, whose id would otherwise become another's
        return _shared[key][1]

    def _spectrum(self, x: Tensor) -> Tensor:
        half = self.window // 2
        if x.shape[-1] <= half:
            raise ValueError(
                f"expected more than {half} samples for a window of {self.window}, got {x.shape[-1]}"
            )
        x = F.pad(x.unsqueeze(1), (half, half), mode="reflect").squeeze(1)
        return cast(Tensor, _Frames.apply(x, self.hann))


_shared: dict[tuple, tuple[Tensor, Tensor]] | None = None


@contextmanager
def shared_spectra() -> Iterator[None]:
    """Within, spectra of a signal are computed once for all losses. Signals must stay as they are;
    not for threads.
    """
    global _shared
    _shared = {}
    try:
        yield
    finally:
        _shared = None


class _Frames(torch.autograd.Function):
    """Spectra (B, T, F) of x (B, S) in frames under a window of N samples, at a hop of N / 4.

    Autograd's way back takes complex transforms of full length, and adds up frames sample by
    sample: three times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Tensor) -> Tensor:
        size = len(window)
        ctx.samples, ctx.window = x.shape[-1], window
        return torch.fft.rfft(x.unfold(-1, size, size // 4) * window)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        size, (batch, frames, bins) = len(ctx.window), gradients[0].shape
        # The inverse counts every bin but the first and the last twice, for the bins of negative
        # frequency.
        once = torch.full((bins,), 0.5, device=ctx.window.device, dtype=ctx.window.dtype)
        once[0] = once[-1] = 1
        parts = torch.fft.irfft(gradients[0] * once, n=size, norm="forward") * ctx.window
        found = parts.new_zeros(batch, ctx.samples)
        quarters = found[:, : (frames + 3) * size // 4].unflatten(
            1, (-1, size // 4)
        )  # (B, T + 3, N / 4)
        for index, quarter in enumerate(parts.unflatten(2, (4, -1)).unbind(2)):
            quarters[:, index : index + frames] += quarter
        return found, None


class MultiScaleSTFTLoss(nn.Module):
    """Mean absolute difference of STFT magnitudes plus that of their log10 powers, summed over
    windows.

    Kumar et al. 2023; spectra are not scaled by the window, magnitudes below 1e-5 count as that.
    """

    def __init__(self, windows: Sequence[int] = PAPER_STFT_WINDOWS):
        super().__init__()
        self.spectra = nn.ModuleList(Spectrum(window, scaled=False) for window in windows)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        total = estimate.new_zeros(())
        for spectrum in cast(Iterable[Spectrum], self.spectra):
            x, y = (magnitude(spectrum(signal)) for signal in (estimate, reference))
            logs = (x.clamp(min=1e-5).log10() - y.clamp(min=1e-5).log10()).abs().mean()
            total = total + (x - y).abs().mean() + 2 * logs
        return total


class MultiScaleMelLoss(nn.Module):
    """Mean absolute difference of log10 mel magnitudes, summed over windows of 32 to 2048 samples.

    Kumar et al. 2023: Slaney's filters, spectra not scaled by the window, magnitudes below 1e-5
    count as that. `bands` maps windows to numbers of bands.
    """

    def __init__(self, sample_rate: int, bands: Mapping[int, int] = PAPER_MEL_BANDS):
        super().__init__()
        self.spectra = nn.ModuleList(Spectrum(window, scaled=False) for window in bands)
        for window, count in bands.items():
            filters = torch.from_numpy(mel_filterbank(sample_rate, window, count))  # (M, F)
            self.register_buffer(f"filters{window}", filters.t(), persistent=False)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        total = estimate.new_zeros(())
        for spectrum in cast(Iterable[Spectrum], self.spectra):
            filters = self.get_buffer(f"filters{spectrum.window}")
            x, y = (
                (spectrum.magnitude(s) @ filters).clamp(min=1e-5).log10()
                for s in (estimate, reference)
            )
            total = total + (x - y).abs().mean()
        return total


def magnitude(spectrum: Tensor) -> Tensor:
    """Absolute value with a finite gradient at 0."""
    return cast(Tensor, _Magnitude.apply(spectrum))


class _Magnitude(torch.autograd.Function):
    """√(|z|² + 1e-12), whose gradient is z / √(|z|² + 1e-12)."""

    @staticmethod
    def forward(ctx: Any, spectrum: Tensor) -> Tensor:
        found = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag).add_(1e-12).sqrt_()
        ctx.save_for_backward(spectrum, found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        spectrum, found = ctx.saved_tensors
        scaled = torch.view_as_real(spectrum) * (gradients[0] / found).unsqueeze(-1)
        return torch.view_as_complex(scaled)


QUIET = 2e-3  # what counts as silence in a bin, in units of an item's level: 54 dB under it
FAINT = 3e-5  # and for `quiet_mel`: 90 dB under


def quiet_floor(reference: Tensor, share: float = QUIET) -> Tensor:
    """What counts as silence in a bin, so far under the level of the item: (B, S) -> (B, 1, 1).

    A fixed, very low floor makes the loss live in the gaps between words, with gradients that drown
    all others.
    """
    return share * rms(reference).unsqueeze(-1) + share / 100


class CompressedSTFTLoss(nn.Module):
    """Mean square difference of complex spectra whose magnitudes are compressed by a power (Ephrat
    et al. 2018).

    The phase counts where there is energy, and quiet harmonics count beside loud ones.
    """

    def __init__(self, windows: Sequence[int], power: float = 0.3):
        super().__init__()
        self.power = power
        self.spectra = nn.ModuleList(Spectrum(window) for window in windows)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        floor = quiet_floor(reference)
        total = estimate.new_zeros(())
        for spectrum in cast(Iterable[Spectrum], self.spectra):
            difference = self._compressed(spectrum, estimate, floor) - self._compressed(
                spectrum, reference, floor
            )
            total = total + (difference.real.square() + difference.imag.square()).mean() / 2
        return total / len(self.spectra)

    def _compressed(self, spectrum: Spectrum, signal: Tensor, floor: Tensor) -> Tensor:
        return spectrum(signal) * (spectrum.magnitude(signal) + floor).pow(self.power - 1)


class RelativeMelLoss(nn.Module):
    """Mean absolute difference of log mel magnitudes over several window lengths, `bands` {window:
    mel bands}.

    A band is the weighted mean of its bins. Bands that fall between two bins are left out. `quiet`
    is the share of an item's level below which magnitudes hardly count.
    """

    def __init__(self, sample_rate: int, bands: Mapping[int, int], quiet: float = QUIET):
        super().__init__()
        self.quiet = quiet
        self.spectra = nn.ModuleList(Spectrum(window) for window in bands)
        for window, count in bands.items():
            filters = torch.from_numpy(mel_filterbank(sample_rate, window, count))  # (M, F)
            filters = filters[filters.sum(dim=1) > 0]
            self.register_buffer(
                f"filters{window}",
                (filters / filters.sum(dim=1, keepdim=True)).t(),
                persistent=False,
            )

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        floor = quiet_floor(reference, self.quiet)
        total = estimate.new_zeros(())
        for spectrum in cast(Iterable[Spectrum], self.spectra):
            filters = self.get_buffer(f"filters{spectrum.window}")
            x, y = (
                torch.log(spectrum.magnitude(s) @ filters + floor) for s in (estimate, reference)
            )
            total = total + (x - y).abs().mean()
        return total / len(self.spectra)


class LoudnessMelLoss(nn.Module):
    """Mean absolute difference of mel magnitudes to the power of 0.3, in units of the reference's
    mean, over windows.

    The power is about that of loudness (Stevens), so that loud bands count more than in a
    logarithm. What the estimate adds is heard more than what it lacks, which is also how PESQ
    weighs (ITU-T P.862), and counts `added` times more on top. `bands` is as of `RelativeMelLoss`.
    """

    def __init__(
        self, sample_rate: int, bands: Mapping[int, int], power: float = 0.3, added: float = 0.3
    ):
        super().__init__()
        self.power, self.added = power, added
        self.mel = RelativeMelLoss(sample_rate, bands)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        total = estimate.new_zeros(())
        for spectrum in cast(Iterable[Spectrum], self.mel.spectra):
            filters = self.mel.get_buffer(f"filters{spectrum.window}")
            x, y = (
                (spectrum.magnitude(s) @ filters + 1e-5).pow(self.power)
                for s in (estimate, reference)
            )
            difference = ((x - y).abs() + self.added * F.relu(x - y)).mean(dim=(1, 2))
            total = total + (difference / y.mean(dim=(1, 2))).mean()
        return total / len(self.mel.spectra)


class EnvelopeLoss(nn.Module):
    """One minus the correlation of envelopes in third-octave bands over 0.4 s: what STOI measures
    (Taal et al. 2011).

    Fifteen bands from 150 Hz, segments of 384 ms, the estimate's envelopes scaled to the energy of
    the reference and clipped at 15 dB below it; segments 30 dB under the loudest one of their item
    count for nothing. Needs crops of more than 0.4 s.
    """

    bands: Tensor

    def __init__(self, sample_rate: int):
        super().__init__()
        window = 4 * round(sample_rate * 0.008)  # hops of 8 ms
        self.spectrum, self.frames = Spectrum(window), 48
        bins = torch.arange(window // 2 + 1) * sample_rate / window
        centres = 150 * 2 ** (torch.arange(15) / 3)
        inside = (bins[:, None] >= centres * 2 ** (-1 / 6)) & (
            bins[:, None] < centres * 2 ** (1 / 6)
        )
        self.register_buffer("bands", inside.float(), persistent=False)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        shortest = (self.frames - 1) * self.spectrum.window // 4
        if reference.shape[-1] < shortest:
            raise ValueError(
                f"expected crops of at least {shortest} samples, got {reference.shape[-1]}"
            )
        x, y = (
            self._segments(signal) for signal in (estimate, reference)
        )  # (B, segments, 15, frames)
        energy = y.square().sum(dim=(2, 3))
        loud = (energy > 1e-3 * energy.amax(dim=1, keepdim=True)).to(y.dtype)
        x = x * (y.norm(dim=-1, keepdim=True) / (x.norm(dim=-1, keepdim=True) + 1e-8))
        x = torch.minimum(x, y * (1 + 10**0.75))
        x, y = (s - s.mean(dim=-1, keepdim=True) for s in (x, y))
        alike = (x * y).sum(dim=-1) / (x.norm(dim=-1) * y.norm(dim=-1)).clamp(min=1e-9)
        return 1 - (alike.mean(dim=-1) * loud).sum() / loud.sum().clamp(min=1)

    def _segments(self, signal: Tensor) -> Tensor:
        power = self.spectrum.magnitude(signal).square() @ self.bands  # (B, T, 15)
        return (power + 1e-12).sqrt().unfold(1, self.frames, 4)


class DisturbanceLoss(nn.Module):
    """Points of PESQ that are lost: 4.5 minus its raw score, after the perceptual model of ITU-T
    P.862 (2001).

    Power in half-Bark bands, at the level of the standard and frame by frame at that of the
    reference, becomes loudness (Zwicker's law over Terhardt's threshold in quiet). Differences
    count where a quarter of the quieter one does not mask them, and once more where the estimate
    adds far more than there was; the worst frames of 320 ms weigh most. Left out are the alignment
    in time and that of the filter between the signals, which a codec should not need.
    """

    bands: Tensor
    threshold: Tensor
    exponent: Tensor

    def __init__(self, sample_rate: int):
        super().__init__()
        window = 4 * round(sample_rate * 0.008)  # 32 ms
        self.spectrum, self.span = Spectrum(window), 40  # frames of 8 ms in 320 ms
        top, count = min(8000.0, sample_rate / 2), 48
        frequencies = torch.arange(1, window // 2 + 1) * sample_rate / window  # without 0 Hz
        width = float(_bark(torch.tensor(top))) / count
        index = (_bark(frequencies) / width).floor().long()
        inside = F.one_hot(index.clamp(max=count), count + 1)[
            :, :count
        ]  # what lies above is in the last one
        inside = inside * (frequencies <= top).unsqueeze(1)
        used = inside.sum(dim=0) > 0
        centres = ((torch.arange(count) + 0.5) * width)[used]
        kilohertz = 0.65 * torch.sinh(centres / 7)
        hearing = (
            3.64 * kilohertz**-0.8
            - 6.5 * torch.exp(-0.6 * (kilohertz - 3.3) ** 2)
            + 1e-3 * kilohertz**4
        )  # dB
        steeper = (6 / (centres + 2)).clamp(1, 2) ** 0.15  # below 4 Bark
        self.total = width * int(used.sum())  # Bark
        self.register_buffer(
            "bands", F.pad(inside[:, used], (0, 0, 1, 0)).float(), persistent=False
        )
        self.register_buffer("threshold", 10 ** (hearing / 10), persistent=False)
        self.register_buffer("exponent", 0.23 * steeper, persistent=False)

    def forward(self, estimate: Tensor, reference: Tensor) -> Tensor:  # (B, S), (B, S) -> ()
        x, y = (self._power(signal) for signal in (estimate, reference))
        to_level = 10**8.36 / (
            y.sum(dim=-1).mean(dim=1) + 1e-9
        )  # mean power of P.862 after its level alignment
        x, y = (power * to_level[:, None, None] for power in (x, y))
        x = x * ((self._audible(y) + 5e3) / (self._audible(x) + 5e3)).clamp(3e-4, 5)
        loud_x, loud_y = self._loudness(x), self._loudness(y)
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


def _bark(frequencies: Tensor) -> Tensor:
    """Critical-band rate of frequencies in Hz (Schroeder et al. 1979)."""
    return 7 * torch.asinh(frequencies / 650)


def limit_bandwidth(x: Tensor, bandwidth: Tensor, sample_rate: int) -> Tensor:
    """Remove from each item of x (B, S) what lies above its `bandwidth` (B,) in Hz; a full band
    changes nothing.

    A recording of a lower rate says nothing about what belongs above its band. With estimate and
    reference limited alike, no loss teaches the codec that silence does. The edge is a cosine over
    the highest 5 % of the band. Keep `bandwidth` on the processor: to look at it on a GPU would be
    to wait for that.
    """
    if bool((bandwidth >= sample_rate / 2).all()):
        return x
    frequencies = torch.linspace(0, sample_rate / 2, x.shape[-1] // 2 + 1, device=x.device)
    edge = bandwidth.to(x.device, x.dtype).unsqueeze(-1)
    position = ((frequencies - 0.95 * edge) / (0.05 * edge)).clamp(0, 1)
    keep = torch.where(edge >= sample_rate / 2, 1.0, 0.5 + 0.5 * torch.cos(torch.pi * position))
    return torch.fft.irfft(torch.fft.rfft(x) * keep, n=x.shape[-1])


def losses_by_name(
    names: Sequence[str],
    sample_rate: int,
    mel_bands: Mapping[int, int],
    stft_windows: Sequence[int],
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The reconstruction losses of these names, those of `LOSSES`, each a function of estimate and
    reference (B, S).
    """
    made: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
        "mel": lambda: MultiScaleMelLoss(sample_rate, mel_bands),
        "stft": lambda: MultiScaleSTFTLoss(stft_windows),
        "waveform_l1": lambda: F.l1_loss,
        "waveform_l2": lambda: F.mse_loss,
        "relative_mel": lambda: RelativeMelLoss(sample_rate, mel_bands),
        "quiet_mel": lambda: RelativeMelLoss(sample_rate, mel_bands, FAINT),
        "compressed_stft": lambda: CompressedSTFTLoss(stft_windows),
        "relative_waveform": lambda: relative_waveform_loss,
        "loudness_mel": lambda: LoudnessMelLoss(sample_rate, mel_bands),
        "envelope": lambda: EnvelopeLoss(sample_rate),
        "disturbance": lambda: DisturbanceLoss(sample_rate),
    }
    return {name: made[name]() for name in names}


LOSSES = (
    "mel",
    "stft",
    "waveform_l1",
    "waveform_l2",
    "relative_mel",
    "quiet_mel",
    "compressed_stft",
    "relative_waveform",
    "loudness_mel",
    "envelope",
    "disturbance",
)


def weighted_gradient(
    losses: Sequence[Tensor], weights: Sequence[float], estimate: Tensor
) -> Tensor:
    """Gradient at `estimate` of the weighted sum of losses."""
    total = torch.stack([weight * loss for loss, weight in zip(losses, weights, strict=True)]).sum()
    return torch.autograd.grad(total, estimate, retain_graph=True)[0]


def balanced_gradient(
    losses: Sequence[Tensor],
    weights: Sequence[float],
    estimate: Tensor,
    norms: Callable[[Tensor], Tensor] = lambda found: found,
) -> Tensor:
    """Gradient at `estimate` in which each loss has the share `weights` gives it (Défossez et al.
    2022, the balancer).

    Each gradient is divided by its norm, and the sum has the scale of the first loss. `norms` is
    given the norms of this call and returns those to divide by, running means say. Backpropagate
    with `(estimate * gradient).sum().backward()`.
    """
    gradients = [torch.autograd.grad(loss, estimate, retain_graph=True)[0] for loss in losses]
    found = norms(torch.stack([gradient.norm() for gradient in gradients]))
    shares = torch.tensor(weights, device=found.device) * found[0] / found.clamp(min=1e-12)
    return torch.stack(
        [share * gradient for share, gradient in zip(shares, gradients, strict=True)]
    ).sum(dim=0)
