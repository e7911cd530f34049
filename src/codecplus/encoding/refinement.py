"""Codes chosen by their sound: analysis by synthesis.

It knows the model, the losses and an entropy model, and nothing of files. An encoder computes codes
in one pass, without the decoder. Here the decoder plays them: latents move, step by step, down the
gradient of losses between decoded and original audio, and are quantized anew at every step, to the
entries of least squared error plus λ times the bits that the entropy model asks for. The codes are
the same model's: any decoder plays them. For images this is content-adaptive encoding (Campos et
al. 2019); as in training, the gradient passes straight through the quantizer.

Letters: C channels, K codebooks, T frames, D width of the latents, d of a codebook's search, E
entries, S samples.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codecplus import losses
from codecplus.acceleration.plain import check_plain
from codecplus.acceleration.resting import use_resting_layers
from codecplus.acceleration.training import use_training_layers
from codecplus.bitstream import EntropyModel
from codecplus.encoding.beam_search import EntropyCosts
from codecplus.inference.chunked import chunk_frames
from codecplus.inference.windows import frame_context, windows
from codecplus.kernels import processor_flags
from codecplus.modeling_dac import DacNetwork
from codecplus.modeling_dac.layers_dac import DacResidualVectorQuantizer
from codecplus.system.devices import multiplies_bf16

EFFORTS = {1: 3, 2: 10, 3: 30}
"""Steps of each effort. One step takes about as long as decoding three times."""

# Shares of the gradient at the output, about those that the embedded checkpoints were trained with.
_OBJECTIVE = {
    "relative_mel": 0.4,
    "quiet_mel": 0.2,
    "compressed_stft": 0.13,
    "relative_waveform": 0.02,
    "loudness_mel": 0.25,
}
_SPEECH = {
    "relative_mel": 0.25,
    "compressed_stft": 0.1,
    "relative_waveform": 0.03,
    "loudness_mel": 0.22,
    "envelope": 0.15,
    "disturbance": 0.25,
}
_BANDS = {1024: 80, 512: 64, 128: 16}  # {window: mel bands} at 16 kHz
_SPEECH_RATE = 16_000  # up to here a codec is one for speech
_SHORTEST = 0.5  # seconds that losses need; shorter audio is followed by silence
_STEP = 0.1  # of the standard deviation of the latents
_BETAS = (0.5, 0.9)  # moving averages forget soon: codes change under them
# Towards the codes, as a share of the gradient: latents that wander off are quantized worse.
_PULL = 0.2
_RATE_WEIGHT = 0.05  # λ, as a share of a codebook's squared error per bit
_BITS = 0.25  # share of bits that a share of the losses is worth


@torch.inference_mode(False)
@torch.enable_grad()
def encode_with_effort(
    model: DacNetwork,
    blocks: Iterable[np.ndarray],
    num_codebooks: int,
    steps: int,
    entropy: EntropyModel | None,
) -> Iterator[np.ndarray]:
    """Yield codes, int16 (C, K, T) in pieces, of audio (C, S) in blocks, better than the encoder's.

    The audio is float32 at the model's rate, as for `encode_blocks`. `steps` is one of `EFFORTS`.
    Pieces are refined one after the other: each is heard after the codes of the one before, and
    together with as many frames of the next one as the decoder hears at once.
    """
    hop = model.config.hop_length
    before, behind = frame_context(model.encoder_reach, hop)
    past, future = model.decoder_reach
    margin = past + future
    frames = max(1, chunk_frames(model) // 2)  # gradients keep every activation
    refine = Refiner(model, num_codebooks, steps, entropy)
    held: Tensor | None = None  # codes (C, K, T) of the last frames
    for window, start, stop in windows(blocks, hop, max(before, margin), behind + margin, frames):
        audio = torch.from_numpy(window).to(model.device)
        with torch.no_grad():
            latents = model.analyze(audio[:, None])
        latents = latents[..., start : stop + margin].float()
        if held is None:
            held = torch.zeros(len(window), num_codebooks, 0, dtype=torch.long, device=model.device)
        first = start - held.shape[-1]
        end = start + latents.shape[-1]
        codes = refine(audio[:, first * hop : end * hop], latents, held, whole=first == 0)
        codes = codes[..., : stop - start]
        if margin:
            held = torch.cat([held, codes], dim=-1)[..., -margin:]
        yield codes.to(torch.int16).cpu().numpy()


class Refiner:
    """Finds codes for audio, starting from its latents.

    Args:
        model: the model.
        num_codebooks: codebooks to use.
        steps: steps of the search; the losses are evaluated after each.
        entropy: gives the bits of codes; None where they do not count.
    """

    def __init__(
        self, model: DacNetwork, num_codebooks: int, steps: int, entropy: EntropyModel | None
    ):
        self.model = model
        self.steps = steps
        self.quantizer = cast(DacResidualVectorQuantizer, model.quantizer)
        # A copy, in the precision that is fastest with gradients: the model in use stays as it is.
        decoder = copy.deepcopy(model.decoder).to(_working_dtype(model.device))
        self.decoder = decoder.requires_grad_(False)
        use_training_layers(self.decoder)
        use_resting_layers(self.decoder)
        rate = model.config.sampling_rate
        self.shares = _OBJECTIVE
        if rate <= _SPEECH_RATE:
            self.shares = _SPEECH
        self.shortest = round(_SHORTEST * rate)
        scale = 2.0 ** round(math.log2(rate / _SPEECH_RATE))
        bands = {
            round(window * scale): round(count * scale**0.5) for window, count in _BANDS.items()
        }
        self.losses = losses.losses_by_name(list(self.shares), rate, bands, [round(512 * scale)])
        for loss in self.losses.values():
            if isinstance(loss, torch.nn.Module):
                loss.to(model.device)
        # Gains are told by what the encoder measured: they are no matter of the search.
        self.searched = model.config.waveform_size
        kept = model.gain_codebooks()
        self.search = _CheapestEntries(self.quantizer, num_codebooks, entropy, kept)

    def __call__(self, audio: Tensor, latents: Tensor, held: Tensor, whole: bool = True) -> Tensor:
        """Return codes (C, K, T) of latents (C, D, T), to be played after `held`.

        `held` are codes (C, K, H) that stay; `audio` (C, S) is the original of all H + T frames;
        with `whole` nothing was before them.
        """
        last = None  # the frame before the first
        past = latents[..., :0]
        if held.shape[-1]:
            last = held[..., -1]
            past = self._quantized(held)
        first = self._first_sample(held, whole)
        moved = latents.clone().requires_grad_()
        rate = _STEP * float(latents[:, : self.searched].std(unbiased=False))
        optimizer = torch.optim.Adam([moved], lr=rate, betas=_BETAS)
        codes = self.search(latents, None, last)
        best_codes = codes
        best_score = math.inf
        norms: dict[str, Tensor] = {}  # of the losses' gradients, at the first step
        score_of = _Score()
        for step in range(self.steps + 1):
            quantized = self._quantized(codes).requires_grad_()
            decoded = self._decoded(torch.cat([past, quantized], dim=-1), audio.shape[-1])
            heard = decoded.detach().requires_grad_()
            objective = self._objective(heard, audio, first, norms)
            score = score_of(float(objective.detach()), self.search.bits(codes, last))
            if score < best_score:  # never where it is not a number
                best_score = score
                best_codes = codes
            if step == self.steps or not math.isfinite(score):
                break
            (at_output,) = torch.autograd.grad(objective, heard)
            (gradient,) = torch.autograd.grad(decoded, quantized, at_output)
            if not bool(gradient.isfinite().all()):
                break
            gradient[:, self.searched :] = 0
            apart = (moved - quantized).detach()
            apart[:, self.searched :] = 0
            moved.grad = gradient + _pull(apart, gradient)
            optimizer.param_groups[0]["lr"] = rate * max(0.1, 1 - step / self.steps)
            optimizer.step()
            codes = self.search(moved.detach(), codes, last)
        return best_codes

    def _first_sample(self, held: Tensor, whole: bool) -> int:
        """Return the first sample to compare: in those before it earlier frames are heard, too."""
        if whole:
            return 0
        frames = min(self.model.decoder_reach[0], held.shape[-1])
        return frames * self.model.config.hop_length

    def _objective(
        self, heard: Tensor, audio: Tensor, first: int, norms: dict[str, Tensor]
    ) -> Tensor:
        """Return the sum of the losses of decoded audio (C, S) from a sample on.

        Each loss is divided by the norm of its gradient at the first step, which is kept in
        `norms`.
        """
        values = self._losses(heard[:, first:], audio[:, first:])
        if not norms:
            norms.update({name: _norm_at(value, heard) for name, value in values.items()})
        weighted = [self.shares[name] / norms[name] * value for name, value in values.items()]
        return torch.stack(weighted).sum()

    @torch.no_grad()
    def _quantized(self, codes: Tensor) -> Tensor:
        """Return the quantized latents (C, D, T) of codes (C, K, T)."""
        return self.quantizer.look_up(codes)[0].float()

    def _decoded(self, latents: Tensor, samples: int) -> Tensor:
        """Return the audio (C, S) of latents (C, D, T)."""
        audio = self.decoder(latents.to(self.decoder.conv1.weight.dtype)).squeeze(1).float()
        return F.pad(audio, (0, samples - audio.shape[-1]))

    def _losses(self, estimate: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """Return the losses of audio (C, S) by name."""
        missing = max(0, self.shortest - reference.shape[-1])
        estimate = F.pad(estimate, (0, missing))
        reference = F.pad(reference, (0, missing))
        with losses.shared_spectra():
            return {name: loss(estimate, reference) for name, loss in self.losses.items()}


def cheapest_entry(
    points: Tensor, codebook: Tensor, bits: Tensor | None = None, rate_weight: Tensor | float = 0.0
) -> Tensor:
    """Return the index (N,) of the entry of least squared error plus `rate_weight` times bits.

    Takes points (N, d), entries (E, d), and the bits of each code: (E,), or (N, E) where they
    differ between points.
    """
    scores = codebook.square().sum(dim=1)  # (E,)
    if bits is not None and bits.ndim == 1:
        scores = scores + rate_weight * bits
    scores = scores - 2 * points @ codebook.t()  # (N, E)
    if bits is not None and bits.ndim == 2:
        scores += rate_weight * bits
    return scores.argmin(dim=1)


class _CheapestEntries:
    """Quantizes coarse to fine by squared error plus λ times bits.

    Every codebook is searched in its own d dimensions. It is no search of the model: a DAC takes
    the nearest direction, and ignores bits.
    """

    @torch.no_grad()
    def __init__(
        self,
        quantizer: DacResidualVectorQuantizer,
        num_codebooks: int,
        entropy: EntropyModel | None,
        kept: Sequence[int] = (),
    ):
        self.quantizer = quantizer
        weights = check_plain(quantizer).weights(num_codebooks)
        self.codebooks = weights.codebooks  # (E, d) each
        d = self.codebooks[0].shape[1]
        self.into = weights.into.split(d)  # (d, D) each
        self.into_bias = weights.into_bias.split(d)  # (d,) each
        self.out = weights.out.split(d, dim=1)  # (D, d) each
        self.out_bias = weights.out_bias  # (K, D)
        # Coordinates that only steer a search (`training.codebooks`) are no error that is heard.
        self.audible = [projection.any(dim=0).float() for projection in self.out]
        self.kept = kept  # codebooks with the codes of the model's own search
        self.costs: EntropyCosts | None = None
        if entropy is not None:
            self.costs = EntropyCosts(entropy, num_codebooks, weights.into.device)
        # Squared errors of the last codes of the model's own search; λ is a share of them.
        self.errors: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(self, latents: Tensor, codes: Tensor | None, last: Tensor | None) -> Tensor:
        """Return codes (C, K, T) of latents (C, D, T).

        `codes` (C, K, T) are those of the step before, which bits depend on; without them the codes
        are the model's own. `last` (C, K) is the frame before the first, if there is one.
        """
        if codes is None:
            return self._nearest(latents)
        residual = latents.transpose(1, 2).flatten(0, 1)  # (N, D)
        earlier = _frames_before(codes, last, len(self.codebooks[0]))  # (N, K)
        chosen = earlier[:, :0]  # (N, k)
        before = codes.transpose(1, 2).flatten(0, 1)  # (N, K)
        for k, codebook in enumerate(self.codebooks):
            if k in self.kept:
                index = before[:, k]
            else:
                points = residual @ self.into[k].t() + self.into_bias[k]
                bits = None
                if self.costs is not None:
                    bits = self.costs(k, earlier, chosen[:, None])[:, 0]
                index = cheapest_entry(points, codebook, bits, _RATE_WEIGHT * self.errors[k])
            chosen = torch.cat([chosen, index[:, None]], dim=1)
            residual = residual - codebook[index] @ self.out[k].t() - self.out_bias[k]
        return chosen.unflatten(0, (len(latents), -1)).transpose(1, 2)

    def _nearest(self, latents: Tensor) -> Tensor:
        """Return the codes of the model's own search, and note the squared errors it leaves."""
        d = self.codebooks[0].shape[1]
        _, codes, projected, _, _ = self.quantizer(latents, len(self.codebooks))
        for k, points in enumerate(projected.split(d, dim=1)):  # (C, d, T)
            off = (points.transpose(1, 2) - self.codebooks[k][codes[:, k]]) * self.audible[k]
            self.errors[k] = off.square().sum(dim=2).mean()
        return codes

    @torch.no_grad()
    def bits(self, codes: Tensor, last: Tensor | None) -> float:
        """Return the bits of codes (C, K, T) after the frame `last` (C, K).

        They are 0 without an entropy model.
        """
        if self.costs is None:
            return 0.0
        earlier = _frames_before(codes, last, len(self.codebooks[0]))  # (N, K)
        frames = codes.transpose(1, 2).flatten(0, 1)  # (N, K)
        total = 0.0
        for k in range(frames.shape[1]):
            bits = self.costs(k, earlier, frames[:, None, :k])[:, 0]
            total += float(bits.gather(1, frames[:, k, None]).sum())
        return total


def _frames_before(codes: Tensor, last: Tensor | None, none: int) -> Tensor:
    """Return the frame before each frame of codes (C, K, T), as (C * T, K).

    Before the first is `last` (C, K), or, where there was none, the code `none`.
    """
    if last is None:
        start = torch.full_like(codes[..., :1], none)
    else:
        start = last[..., None]
    return torch.cat([start, codes[..., :-1]], dim=-1).transpose(1, 2).flatten(0, 1)


class _Score:
    """Weighs errors and bits of codes, both as shares of those of the first step."""

    def __init__(self) -> None:
        self.first_error: float | None = None
        self.first_bits = 0.0

    def __call__(self, error: float, bits: float) -> float:
        """Return the score of codes with this error and these bits; less is better."""
        if self.first_error is None:
            self.first_error = max(error, 1e-12)
            self.first_bits = max(bits, 1e-12)
        return error / self.first_error + _BITS * bits / self.first_bits


def _pull(away: Tensor, gradient: Tensor) -> Tensor:
    """Return a gradient that pulls latents back to their codes, `away` (C, D, T) behind them."""
    return _PULL * gradient.norm() / away.norm().clamp(min=1e-12) * away


def _norm_at(loss: Tensor, signal: Tensor) -> Tensor:
    """Return the norm of a loss's gradient at a signal."""
    return torch.autograd.grad(loss, signal, retain_graph=True)[0].norm().clamp(min=1e-12)


def _working_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 where the hardware multiplies it, else fp32; fp16 has no room for gradients."""
    if multiplies_bf16(device, processor_flags()):
        return torch.bfloat16
    return torch.float32
