"""Codes chosen by what they sound like: analysis by synthesis.

An encoder guesses in one pass what the decoder will play well. Here the decoder is asked: latents
move, step by step, down the gradient of losses between decoded and original audio, and are
quantized anew at every step, to the entries of least squared error plus λ times the bits that the
entropy model asks for. The codes are the same model's: any decoder plays them. It is what
content-adaptive encoding is for images (Campos et al. 2019), with the gradient passed straight
through the quantizer as in training.

Letters: C channels, K codebooks, T frames, D width of the latents, d of a codebook's search, E
entries, S samples.
"""

import copy
import math
from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codecplus import losses
from codecplus.acceleration.training import use_training_layers
from codecplus.bitstream import EntropyModel
from codecplus.encoding.beam_search import EntropyCosts
from codecplus.inference.chunked import chunk_frames
from codecplus.inference.windows import frame_context, windows
from codecplus.kernels import processor_flags
from codecplus.modeling_dac import DacModel
from codecplus.modeling_dac.layers_dac import DacResidualVectorQuantizer, nearest_entry

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
_SHORTEST = 0.5  # seconds that losses need; what is shorter is followed by silence
_STEP = 0.1  # of the standard deviation of the latents
_BETAS = 0.5, 0.9  # moving averages forget soon: codes change under them
_PULL = 0.2  # towards the codes found, as a share of the gradient: latents that wander off are quantized worse
_RATE_WEIGHT = 0.05  # λ, as a share of a codebook's squared error per bit
_BITS = 0.25  # share of bits that a share of the losses is worth


@torch.inference_mode(False)
@torch.enable_grad()
def encode_with_effort(
    model: DacModel,
    blocks: Iterable[np.ndarray],
    num_codebooks: int,
    steps: int,
    entropy: EntropyModel | None,
) -> Iterator[np.ndarray]:
    """Codes, int16 (C, K, T) in pieces, of audio (C, S) in blocks, as `streaming.encode_blocks`
    does, but better.

    Pieces are refined one after the other: each is heard behind the codes of the one before, and
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
            latents = model.encoder(audio[:, None].to(model.dtype))[
                ..., start : stop + margin
            ].float()
        if held is None:
            held = torch.zeros(len(window), num_codebooks, 0, dtype=torch.long, device=model.device)
        first, end = start - held.shape[-1], start + latents.shape[-1]
        codes = refine(audio[:, first * hop : end * hop], latents, held, whole=first == 0)[
            ..., : stop - start
        ]
        held = torch.cat([held, codes], dim=-1)[..., -margin:] if margin else held
        yield codes.to(torch.int16).cpu().numpy()


class Refiner:
    """Finds codes for audio, from its latents on."""

    def __init__(
        self, model: DacModel, num_codebooks: int, steps: int, entropy: EntropyModel | None
    ):
        self.model, self.steps = model, steps
        self.quantizer = cast(DacResidualVectorQuantizer, model.quantizer)
        # A copy, in the precision that is fastest there and back, which does not change the model
        # in use.
        self.decoder = (
            copy.deepcopy(model.decoder).to(_working_dtype(model.device)).requires_grad_(False)
        )
        use_training_layers(self.decoder)
        rate = model.config.sampling_rate
        self.shares = _SPEECH if rate <= _SPEECH_RATE else _OBJECTIVE
        self.shortest = round(_SHORTEST * rate)
        scale = 2.0 ** round(math.log2(rate / _SPEECH_RATE))
        bands = {
            round(window * scale): round(count * scale**0.5) for window, count in _BANDS.items()
        }
        self.losses = losses.losses_by_name(list(self.shares), rate, bands, [round(512 * scale)])
        for loss in self.losses.values():
            if isinstance(loss, torch.nn.Module):
                loss.to(model.device)
        self.search = _CheapestEntries(self.quantizer, num_codebooks, entropy)

    def __call__(self, audio: Tensor, latents: Tensor, held: Tensor, whole: bool = True) -> Tensor:
        """Codes (C, K, T) of latents (C, D, T), which any decoder plays behind `held`, codes (C, K,
        H) that stay.

        `audio` (C, S) is the original of all H + T frames; with `whole` nothing was before them.
        """
        past = self._summed(held) if held.shape[-1] else latents[..., :0]
        unheard = (
            0
            if whole
            else min(self.model.decoder_reach[0], held.shape[-1]) * self.model.config.hop_length
        )
        last = held[..., -1] if held.shape[-1] else None
        moved = latents.clone().requires_grad_()
        rate = _STEP * float(latents.std(unbiased=False))
        optimizer = torch.optim.Adam([moved], lr=rate, betas=_BETAS)
        codes = found = self.search(latents, None, last)
        norms: dict[str, Tensor] = {}
        at_first, best = (0.0, 0.0), math.inf
        for step in range(self.steps + 1):
            quantized = self._summed(codes).requires_grad_()
            decoded = self._decoded(torch.cat([past, quantized], dim=-1), audio.shape[-1])
            heard = decoded.detach().requires_grad_()
            parts = self._parts(heard[:, unheard:], audio[:, unheard:])
            norms = norms or {name: _norm_at(part, heard) for name, part in parts.items()}
            objective = torch.stack(
                [self.shares[name] / norms[name] * part for name, part in parts.items()]
            ).sum()
            error, bits = float(objective.detach()), self.search.bits(codes, last)
            if step == 0:
                at_first = max(error, 1e-12), max(bits, 1e-12)
            score = error / at_first[0] + _BITS * bits / at_first[1]
            if score < best:  # never where it is not a number
                best, found = score, codes
            if step == self.steps or not math.isfinite(score):
                break
            (at_output,) = torch.autograd.grad(objective, heard)
            (gradient,) = torch.autograd.grad(decoded, quantized, at_output)
            if not bool(gradient.isfinite().all()):
                break
            away = (moved - quantized).detach()
            moved.grad = gradient + _PULL * gradient.norm() / away.norm().clamp(min=1e-12) * away
            optimizer.param_groups[0]["lr"] = rate * max(0.1, 1 - step / self.steps)
            optimizer.step()
            codes = self.search(moved.detach(), codes, last)
        return found

    @torch.no_grad()
    def _summed(self, codes: Tensor) -> Tensor:
        """Quantized latents (C, D, T) of codes (C, K, T)."""
        return self.quantizer.from_codes(codes)[0].float()

    def _decoded(self, latents: Tensor, samples: int) -> Tensor:
        """Audio (C, S) of latents (C, D, T)."""
        audio = self.decoder(latents.to(self.decoder.conv1.weight.dtype)).squeeze(1).float()
        return F.pad(audio, (0, samples - audio.shape[-1]))

    def _parts(self, estimate: Tensor, reference: Tensor) -> dict[str, Tensor]:
        missing = max(0, self.shortest - reference.shape[-1])
        estimate, reference = F.pad(estimate, (0, missing)), F.pad(reference, (0, missing))
        with losses.shared_spectra():
            return {name: loss(estimate, reference) for name, loss in self.losses.items()}


class _CheapestEntries:
    """Quantizes coarse to fine by squared error plus λ times bits, each codebook in its own d
    dimensions.
    """

    @torch.no_grad()
    def __init__(
        self,
        quantizer: DacResidualVectorQuantizer,
        num_codebooks: int,
        entropy: EntropyModel | None,
    ):
        parts = quantizer._weights(quantizer.quantizers[:num_codebooks])
        into, out, bias, self.biases, self.books = parts
        d = self.books[0].shape[1]
        self.into, self.bias, self.out = (
            into.split(d),
            bias.split(d),
            out.split(d, dim=1),
        )  # (d, D), (d,), (D, d) each
        # Coordinates that only steer a search (`training.codebooks`) are no error that is heard.
        self.audible = [part.any(dim=0).float() for part in self.out]
        self.costs = None if entropy is None else EntropyCosts(entropy, num_codebooks, into.device)
        self.errors: dict[
            int, Tensor
        ] = {}  # of the last plain codes, by codebook: what λ is a share of

    @torch.no_grad()
    def __call__(self, latents: Tensor, codes: Tensor | None, last: Tensor | None) -> Tensor:
        """Codes (C, K, T) of latents (C, D, T), where `codes` (C, K, T) were the ones of the step
        before.

        Without them entries are those of the nearest direction, as any DAC takes them. `last` (C,
        K) is the frame before the first, if there is one.
        """
        residual, chosen = latents.transpose(1, 2).flatten(0, 1), []  # (N, D)
        earlier = None if codes is None else _earlier(codes, last, len(self.books[0]))
        for k, book in enumerate(self.books):
            points = residual @ self.into[k].t() + self.bias[k]
            if earlier is None:
                index = nearest_entry(points, book)
                self.errors[k] = (
                    ((points - book[index]) * self.audible[k]).square().sum(dim=1).mean()
                )
            else:
                scores = book.square().sum(dim=1) - 2 * points @ book.t()
                if self.costs is not None:
                    before = (
                        torch.stack(chosen, dim=-1)[:, None] if chosen else earlier[:, None, :0]
                    )
                    scores += _RATE_WEIGHT * self.errors[k] * self.costs(k, earlier, before)[:, 0]
                index = scores.argmin(dim=1)
            chosen.append(index)
            residual = residual - book[index] @ self.out[k].t() - self.biases[k]
        return torch.stack(chosen).unflatten(1, (len(latents), -1)).transpose(0, 1)

    @torch.no_grad()
    def bits(self, codes: Tensor, last: Tensor | None) -> float:
        """What codes (C, K, T) cost behind the frame `last` (C, K); 0 without an entropy model."""
        if self.costs is None:
            return 0.0
        earlier, now = (
            _earlier(codes, last, len(self.books[0])),
            codes.transpose(1, 2).flatten(0, 1),
        )  # (N, K)
        costs = (self.costs(k, earlier, now[:, None, :k])[:, 0] for k in range(now.shape[1]))
        return sum(float(bits.gather(1, now[:, k, None]).sum()) for k, bits in enumerate(costs))


def _earlier(codes: Tensor, last: Tensor | None, none: int) -> Tensor:
    """The frame before each of codes (C, K, T), as (C * T, K); before the first is `last` (C, K),
    or `none`.
    """
    start = torch.full_like(codes[..., :1], none) if last is None else last[..., None]
    return torch.cat([start, codes[..., :-1]], dim=-1).transpose(1, 2).flatten(0, 1)


def _norm_at(loss: Tensor, signal: Tensor) -> Tensor:
    """The norm of a loss's gradient at a signal."""
    return torch.autograd.grad(loss, signal, retain_graph=True)[0].norm().clamp(min=1e-12)


def _working_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it, else fp32; fp16 has no room for gradients."""
    if device.type == "cpu":
        return torch.bfloat16 if {"amx_bf16", "avx512_bf16"} & processor_flags() else torch.float32
    return (
        torch.bfloat16
        if device.type == "cuda" and torch.cuda.is_bf16_supported()
        else torch.float32
    )
