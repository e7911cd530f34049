"""Band gains: what makes every band of decoded audio as loud as that of the original.

A decoder trained to be near the waveform guesses what it does not know, and a guess is quieter than
the truth: bands of medium level lose their contour. Codecs by transform code the energy of each
band by itself for this reason (Valin et al. 2013, "High-Quality, Low-Delay Music Coding in the Opus
Codec", section 3). Here the encoder decodes its own latents, compares the power of bands with the
original's, and puts what is missing into channels of the latents of their own; they are quantized
as all channels are. The decoder makes a filter of them for every frame, in view of its own bands.

Filters are of minimum phase: they have no delay. In a causal model nothing looks ahead; in another
one windows lie around the middle of their frames, and nets see frames to come. All of it is matrix
products, exponentials and logarithms, which every exporter knows. Letters as in `layers_dac`; F
bands, N length of the window.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers_dac import DacChain, DacOutputConv1d, Snake1d, recording, zero_tail
from .sizes_dac import gain_window

# Changing any of these, or a length below, changes what trained models sound like under the
# fingerprint that they have.
_FADE = 4  # of a hop, the part in which the filter of the frame before gives way
FLOOR = 1e-10  # of power: -100 dB
HUGE = 1e9  # a sample, at most
LIMIT = 24.0  # dB of a gain, either way
STEP = 4.0  # dB of a gain per unit of the net's output, where the limit is far
LEVEL, SPREAD = -60.0, 20.0  # dB: powers less the one, by the other, are near 1
EXCESS = 6.0  # dB of the original above the decoded, the same
_BLOCK = 16  # samples that are filtered by one product, at most


class GainGeometry:
    """Lengths that follow from the hop, and the fixed matrices (NumPy, fp64).

    They are no weights: nothing trains, casts or saves them.
    """

    def __init__(self, hop: int, bands: int, causal: bool = True, linear: float = 1.0):
        self._tensors_of: dict[tuple, GainMatrices] = {}
        self._made_of = (hop, bands, causal, linear)
        self.hop = hop
        self.bands = bands
        self.window = gain_window(hop)  # it ends where its frame ends, or `ahead` samples later
        self.ahead = 0 if causal else (self.window - hop) // 2
        self.taps = self.window // 2
        self.block = max(size for size in range(1, _BLOCK + 1) if hop % size == 0)
        self.fade = self.block * max(1, hop // _FADE // self.block)
        bins = self.window // 2 + 1
        self.past = -(-self.window // hop) - 1  # frames that a window reaches into, besides its own
        self.rows_past = -(-(self.taps - 1) // self.block)  # the same of filters, in blocks
        phases = 2 * np.pi * np.outer(np.arange(self.window), np.arange(bins)) / self.window
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        spectrum = np.concatenate([np.cos(phases), np.sin(phases)], axis=1)
        shape = _triangles(bands, bins, linear)  # (F, bins), which add up to one
        weights = np.full(bins, 2.0)
        weights[[0, -1]] = 1.0
        inverse = np.concatenate([np.cos(phases), -np.sin(phases)], axis=1) * np.tile(weights, 2)
        analysis = spectrum * hann[:, None] / np.sqrt((hann**2).sum())
        unseen = (self.past + 1) * hop - self.window
        self.matrices = GainMatrices(
            analysis=np.pad(analysis, ((unseen, 0), (0, 0))),
            means=(shape / shape.sum(axis=1, keepdims=True)).T,
            log_filter=_minimum_phase(shape * math.log(10) / 20, self.window),
            inverse=inverse[: self.taps].T / self.window,
            fade=((np.arange(self.fade) + 0.5) / self.fade).reshape(-1, self.block),
        )
        # What each sample of a row is multiplied with for each sample of its block: the number of
        # a tap, or that of the zero behind all taps.
        sample, output = np.arange(self.row)[:, None], np.arange(self.block)
        tap = self.rows_past * self.block + output - sample
        self.tap = np.where((tap < 0) | (tap >= self.taps), self.taps, tap)  # (row, block)

    def __reduce__(self):
        return gain_geometry, self._made_of  # copies and pickles share the matrices

    @property
    def row(self) -> int:
        """Samples that a block's own are computed from."""
        return (self.rows_past + 1) * self.block

    def powers(self, audio: Tensor, frames: Tensor | None = None) -> Tensor:
        """Return the power of each band and frame (B, F, T), in dB of full scale."""
        if self.ahead and frames is not None:  # a window may reach into what follows them
            audio = zero_tail(audio, frames * self.hop)
        with torch.autocast(audio.device.type, enabled=False):
            audio = audio.squeeze(1).to(torch.promote_types(audio.dtype, torch.float32))
            windows = overlapping(audio, self.hop, self.past, self.ahead)
            return band_powers(windows, self).transpose(1, 2)

    def filter(self, audio: Tensor, gains: Tensor) -> Tensor:
        """Return audio (B, 1, S) of whole frames, filtered by gains (B, F, T) in dB."""
        with torch.autocast(audio.device.type, enabled=False):
            audio = audio.to(torch.promote_types(audio.dtype, torch.float32))
            gains = gains.to(audio.dtype).transpose(1, 2)  # (B, T, F)
            before = F.pad(gains, (0, 0, 1, 0))[:, :-1]  # in front of all frames, no gain
            rows = overlapping(audio.squeeze(1), self.block, self.rows_past)
            return filtered(rows, before, gains, self).unsqueeze(1)

    def like(self, x: Tensor) -> "GainMatrices":
        """Return the matrices in the dtype and on the device of x."""
        # What is made while work is recorded or faked is of use there alone.
        if recording() or torch._C._len_torch_dispatch_stack():
            return self._tensors(x.dtype, x.device)
        return self._kept(x.dtype, x.device)

    def _kept(self, dtype: torch.dtype, device: torch.device) -> "GainMatrices":
        key = (dtype, device)
        if key not in self._tensors_of:
            with torch.inference_mode(False):  # for gradients, too
                self._tensors_of[key] = self._tensors(dtype, device)
        return self._tensors_of[key]

    def _tensors(self, dtype: torch.dtype, device: torch.device) -> "GainMatrices":
        return GainMatrices(
            *(torch.from_numpy(np.ascontiguousarray(m)).to(device, dtype) for m in self.matrices)
        )


class GainMatrices(NamedTuple):
    """The fixed matrices, of NumPy or torch."""

    analysis: Any
    """(N, 2 * bins), samples of whole frames to real and imaginary parts, windowed."""
    means: Any
    """(bins, F), powers of bins to those of bands."""
    log_filter: Any
    """(F, 2 * bins), gains in dB to logarithms of magnitudes, and phases."""
    inverse: Any
    """(2 * bins, taps), spectra to the taps of filters."""
    fade: Any
    """(fade / block, block), the share of a frame's own filter at its start."""


@lru_cache(maxsize=16)
def gain_geometry(hop: int, bands: int, causal: bool = True, linear: float = 1.0) -> GainGeometry:
    """Return the geometry of so many bands and this hop.

    Bands have equal widths up to the share `linear` of the spectrum.
    """
    return GainGeometry(hop, bands, causal, linear)


def geometry_of(config, bands: int, linear_hz: float | None) -> GainGeometry:
    """Return the geometry of so many bands, of equal widths up to `linear_hz`, for a model."""
    linear = 1.0
    if linear_hz is not None:
        linear = min(1.0, 2 * linear_hz / config.sampling_rate)
    return gain_geometry(config.hop_length, bands, config.causal, linear)


def _triangles(bands: int, bins: int, linear: float) -> np.ndarray:
    """Return the share that each band has in each bin, linear between centres.

    Widths are equal up to the share `linear` of the bins, and grow with the frequency above.
    """
    places = np.arange(bins) / (bins - 1)
    above = np.maximum(places / linear, 1.0)
    places = (np.minimum(places, linear) + linear * np.log(above)) * (bins - 1)
    centres = (np.arange(bands) + 0.5) * places[-1] / bands
    return np.stack([np.interp(places, centres, row) for row in np.eye(bands)])


def _minimum_phase(log_magnitudes: np.ndarray, window: int) -> np.ndarray:
    """Return the complex logarithms of spectra of minimum phase, real parts before imaginary ones.

    The cepstrum is folded onto its causal half (Oppenheim & Schafer, Discrete-Time Signal
    Processing, section 13.5).
    """
    cepstrum = np.fft.irfft(log_magnitudes, n=window)
    fold = np.zeros(window)
    fold[[0, window // 2]] = 1
    fold[1 : window // 2] = 2
    spectrum = np.fft.rfft(cepstrum * fold, n=window)
    return np.concatenate([spectrum.real, spectrum.imag], axis=-1)


class GainNet(DacChain):
    """Three convolutions at the frame rate, in at least fp32: (B, C, T) -> (B, C', T)."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, causal: bool):
        super().__init__()
        self.conv1 = DacOutputConv1d(in_channels, hidden, 3, causal=causal)
        self.snake1 = Snake1d(hidden)
        self.conv2 = DacOutputConv1d(hidden, hidden, 3, causal=causal)
        self.snake2 = Snake1d(hidden)
        self.conv3 = DacOutputConv1d(hidden, out_channels, 1, causal=causal)

    def steps(self) -> list[tuple[str, nn.Module]]:
        """Return the layers in their order."""
        return [(name, getattr(self, name)) for name in GAIN_STEPS]


GAIN_STEPS = ("conv1", "snake1", "conv2", "snake2", "conv3")


class DacBandGains(nn.Module):
    """The gains of a model: latent channels from two signals, and a filter from latent channels."""

    def __init__(self, config):
        super().__init__()
        self.bands = config.gain_bands
        self.size = config.gain_size
        self.geometry = geometry_of(config, self.bands, config.gain_linear_hz)
        hidden = config.gain_hidden_size
        self.encoder = GainNet(2 * self.bands, hidden, self.size, config.causal)
        self.decoder = GainNet(self.size + self.bands, hidden, self.bands, config.causal)

    def input_ranges(self, first: int, last: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the samples, and the frames of latent channels, that samples depend on.

        Both are the first and the last one, for the samples `first` to `last`.
        """
        fixed = self.geometry
        frame = first // fixed.hop - (first % fixed.hop < fixed.fade)
        frames = self.decoder.input_range(frame, last // fixed.hop)
        samples, behind = self.seen(*frames)
        return (min(first - fixed.taps + 1, samples), max(last, behind)), frames

    def encoder_ranges(self, first: int, last: int) -> tuple[int, int]:
        """Return the first and the last sample that latent channels of these frames depend on."""
        return self.seen(*self.encoder.input_range(first, last))

    def seen(self, first: int, last: int) -> tuple[int, int]:
        """Return the first and the last sample of the windows of frames."""
        fixed = self.geometry
        first, last = ((frame + 1) * fixed.hop + fixed.ahead for frame in (first, last))
        return first - fixed.window, last - 1

    def encode(self, audio: Tensor, decoded: Tensor, frames: Tensor | None = None) -> Tensor:
        """Return latent channels (B, K, T) that tell audio from decoded audio, (B, 1, S) each.

        `frames` (B,) counts those of each item that are real.
        """
        wanted, given = self.powers(audio, frames), self.powers(decoded, frames)
        return self.encoder(encoder_features(wanted, given), frames)

    def forward(self, latents: Tensor, audio: Tensor, frames: Tensor | None = None) -> Tensor:
        """Return decoded audio (B, 1, S) with the gains that latent channels (B, K, T) ask for.

        `frames` (B,) counts those of each item that are real.
        """
        gains = self.gains(latents, self.powers(audio, frames), frames)
        return self.filter(audio, gains)

    def gains(self, latents: Tensor, powers: Tensor, frames: Tensor | None = None) -> Tensor:
        """Return gains (B, F, T) in dB of decoded audio whose bands have these powers."""
        return bounded(self.decoder(decoder_features(latents, powers), frames))

    def powers(self, audio: Tensor, frames: Tensor | None = None) -> Tensor:
        """Return the power of each band and frame (B, F, T), in dB of full scale."""
        return self.geometry.powers(audio, frames)

    def filter(self, audio: Tensor, gains: Tensor) -> Tensor:
        """Return audio (B, 1, S) of whole frames, filtered by gains (B, F, T) in dB."""
        return self.geometry.filter(audio, gains)


def bounded(raw: Tensor) -> Tensor:
    """Return gains in dB, within the limit; weights may be a stranger's."""
    return LIMIT * torch.tanh(raw * (STEP / LIMIT))


def level_features(powers: Tensor) -> Tensor:
    """Return powers in dB on the scale of activations."""
    return (powers - LEVEL) / SPREAD


def encoder_features(wanted: Tensor, given: Tensor) -> Tensor:
    """Return what the net of the encoder sees (B, 2F, T) of powers (B, F, T) in dB."""
    return torch.cat([level_features(given), (wanted - given) / EXCESS], dim=1)


def decoder_features(latents: Tensor, powers: Tensor) -> Tensor:
    """Return what the net of the decoder sees of channels (B, K, T) and powers (B, F, T) in dB."""
    return torch.cat([latents.to(powers.dtype), level_features(powers)], dim=1)


def overlapping(x: Tensor, size: int, past: int, ahead: int = 0) -> Tensor:
    """Return every block of x (B, S) behind the `past` blocks before it: (B, S / size, ·).

    All begin and end `ahead` samples later. Zeros come before the first and behind the last.
    Neither `unfold` nor `unflatten`: exporters record them for one length alone.
    """
    blocks = F.pad(x, (past * size - ahead, ahead)).reshape(x.shape[0], -1, size)
    earlier = [blocks[:, i : i - past] for i in range(past)]
    return torch.cat([*earlier, blocks[:, past:]], dim=-1)


def band_powers(frames: Tensor, fixed: GainGeometry) -> Tensor:
    """Return the power of each band (B, T, F), in dB, of frames behind those before (B, T, ·)."""
    matrices = fixed.like(frames)
    # A stranger's weights may give huge samples, whose squares must stay numbers.
    spectrum = (frames.clamp(-HUGE, HUGE) @ matrices.analysis).square()
    real, imaginary = spectrum.chunk(2, dim=-1)
    power = (real + imaginary) @ matrices.means
    return (power + FLOOR).log() * (10 / math.log(10))


def filtered(rows: Tensor, before: Tensor, gains: Tensor, fixed: GainGeometry) -> Tensor:
    """Return the samples (B, S) of blocks behind those before them (B, S / block, row).

    Gains (B, T, F) in dB are those of each frame and of the frame before, from which each frame
    fades over.
    """
    rows = rows.reshape(rows.shape[0], -1, fixed.hop // fixed.block, fixed.row)
    now = rows @ _products(gains, fixed)  # (B, T, hop / block, block)
    fading = fixed.fade // fixed.block
    old = rows[:, :, :fading] @ _products(before, fixed)
    start = old + fixed.like(rows).fade * (now[:, :, :fading] - old)
    return torch.cat([start, now[:, :, fading:]], dim=2).flatten(1)


def _products(gains: Tensor, fixed: GainGeometry) -> Tensor:
    """Return the filters of gains (B, T, F) as matrices (B, T, row, block)."""
    matrices = fixed.like(gains)
    log_magnitude, phase = (gains @ matrices.log_filter).chunk(2, dim=-1)
    magnitude = log_magnitude.exp()
    spectrum = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=-1)
    taps = F.pad(spectrum @ matrices.inverse, (0, 1))
    places = torch.from_numpy(fixed.tap).to(gains.device)
    spread = taps.index_select(-1, places.flatten())
    return spread.reshape(taps.shape[0], -1, fixed.row, fixed.block)


__all__ = [
    "DacBandGains",
    "GainGeometry",
    "GainMatrices",
    "GainNet",
    "gain_geometry",
    "geometry_of",
]
