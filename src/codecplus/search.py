"""Which codes to write: codebooks per frame by what can be heard, what codes cost, and beam search for the nearest sum.

The codes are the same model's: any decoder plays them. Greedy search takes the nearest entry of each codebook in
turn. From there, a beam keeps several sums of entries alive, and takes the one with the least squared error plus λ
times bits. Errors are weighed as all codebooks together weigh them. What `refinement` finds sounds better.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from . import utils
from .bitstream import EntropyModel
from .modeling_dac import DacModel
from .modeling_dac.layers_dac import DacResidualVectorQuantizer
from .streaming.chunked import chunk_frames, decode_blocks
from .streaming.windows import windows

_BATCH_FRAMES = 128  # searched at once
_MEL_BANDS, _MEL_SECONDS = 64, 0.046  # the analysis of a frame's error
_FLOOR = 1e-3  # what is so far below the loudest band of the last seconds, or below full scale, is not heard
_LEVELS = 6  # numbers of codebooks that a frame may have, beside 1


class BeamSearch:
    """Chooses codes for latents: of `beam` sums, that of the least squared error and λ times bits.

    `rate_weight` is λ, as a share of a frame's squared error per bit. `costs` gives the bits (N, B, 2**W) of all codes
    of codebook k, after codes (N, B, k) of its frame and all codes (N, K) of the frame before, where 2**W stands for
    none: `costs(k, before, codes)`.
    """

    def __init__(
        self,
        quantizer: DacResidualVectorQuantizer,
        num_codebooks: int,
        beam: int,
        rate_weight: float,
        costs: Callable[[int, Tensor, Tensor], Tensor],
    ):
        self.quantizer, self.num_codebooks, self.costs = quantizer, num_codebooks, costs
        self.beam, self.rate_weight = beam, rate_weight
        _, out, _, biases, books = quantizer._weights(quantizer.quantizers[:num_codebooks])
        d = books[0].shape[1]
        # What no codebook looks at costs nothing. Weighed by the decoder's first convolution instead, what takes the
        # same bits sounds worse.
        into = quantizer._weights(quantizer.quantizers)[0].detach()  # (all d, D)
        power, axes = torch.linalg.eigh(into.t() @ into)
        self.metric = axes * power.clamp(min=0).sqrt()  # (D, D): |x @ metric|² is what comes out of x
        out, biases = self.metric.t() @ out, biases @ self.metric
        self.parts = []
        for k, book in enumerate(books):
            into = out[:, k * d : (k + 1) * d]  # (D, d)
            self.parts.append((into, biases[k], book, (book @ into.t()).square().sum(dim=1)))

    def __call__(self, latents: Tensor) -> Tensor:
        """Codes (C, K, T) of latents (C, D, T)."""
        z = latents.float()
        codes = self.quantizer(z, self.num_codebooks)[1]  # greedy: where to start, and never to be left for worse
        target, nearest = (x.transpose(1, 2) @ self.metric for x in (z, self.quantizer.from_codes(codes)[0].float()))
        error = (target - nearest).square().sum(dim=2)  # (C, T)
        weight = self.rate_weight * error.clamp(min=0.1 * float(error.mean()))
        codes = codes.transpose(1, 2).clone()  # (C, T, K)
        # A frame's codes cost what those before them make likely: every second frame is chosen given those between.
        for parity in range(min(2, codes.shape[1])):
            every = slice(parity, None, 2)
            before = torch.cat([torch.full_like(codes[:, :1], len(self.parts[0][2])), codes[:, :-1]], dim=1)
            chosen = self._search(*(x[:, every].flatten(0, 1) for x in (target, codes, before, weight)))
            codes[:, every] = chosen.unflatten(0, codes[:, every].shape[:2])
        return codes.transpose(1, 2)

    def _search(self, z: Tensor, greedy: Tensor, earlier: Tensor, weight: Tensor) -> Tensor:
        """Codes (N, K) of targets (N, D) with greedy codes (N, K), given the codes (N, K) of the frames before."""
        parts = [
            [x[i : i + _BATCH_FRAMES] for x in (z, greedy, earlier, weight)] for i in range(0, len(z), _BATCH_FRAMES)
        ]
        return torch.cat([self._search_batch(*part) for part in parts])

    def _search_batch(self, z: Tensor, greedy: Tensor, earlier: Tensor, weight: Tensor) -> Tensor:
        count = len(z)
        residual = z[:, None]  # (N, B, D)
        codes = torch.zeros(count, 1, 0, dtype=torch.long, device=z.device)
        bits = torch.zeros(count, 1, device=z.device)
        rows = torch.arange(count, device=z.device)[:, None]
        for k, (into, bias, book, lengths) in enumerate(self.parts):
            residual = residual - bias
            # |r - o|² for all entries o = into @ e, without ever forming them.
            scores = residual.square().sum(-1, keepdim=True) - 2 * (residual @ into) @ book.t() + lengths
            new_bits = bits[..., None] + self.costs(k, earlier, codes)
            scores = scores + weight[:, None, None] * new_bits
            size = book.shape[0]
            last = k + 1 == len(self.parts)
            if not last:
                # The greedy sum stays, in place 0: what looks worse on the way may be the best in the end.
                scores[:, 0].scatter_(1, greedy[:, k : k + 1], -torch.inf)
            kept = 1 if last else min(self.beam, scores[0].numel())
            best = scores.flatten(1).topk(kept, dim=1, largest=False).indices  # (N, kept), the best first
            parent, code = best // size, best % size
            codes = torch.cat([codes[rows, parent], code[..., None]], dim=-1)
            residual = residual[rows, parent] - book[code] @ into.t()
            bits = new_bits[rows, parent, code]
        return codes[:, 0]


class EntropyCosts:
    """Bits of every code by an entropy model, in floats: good enough to choose by."""

    def __init__(self, entropy: EntropyModel, num_codebooks: int, device: torch.device):
        arrays = {name: torch.from_numpy(array).to(device) for name, array in entropy.arrays.items()}
        K, d = entropy.num_codebooks, arrays["codes"].shape[2]
        self.books = num_codebooks
        self.ranks = arrays["ranks"].long()
        self.table = arrays["codes"].float()
        # Of the frames before, only the one just before is looked at; models see more only if made elsewhere.
        hidden = arrays["hidden"].float().view(K, entropy.lags, K, d, -1)
        self.hidden = hidden[:, :2].flatten(1, 3)
        self.bias = arrays["hidden_bias"].float()
        self.scale = {name: 2.0 ** -arrays[f"{name}_shift"].float() for name in ("hidden", "high", "low")}
        self.high, self.high_bias = arrays["high"].float(), arrays["high_bias"].float()
        self.low, self.low_bias = arrays["low"].float().transpose(1, 2).flatten(2), arrays["low_bias"].float()
        self.all_books = K

    def __call__(self, k: int, earlier: Tensor, codes: Tensor) -> Tensor:
        """Bits (N, B, 2**W) of codebook k after codes (N, B, k) in its frame and (N, K) in the one before."""
        count, beam, _ = codes.shape
        d, K = self.table.shape[2], self.all_books
        x = torch.zeros(count, beam, 2, K, d, device=codes.device)
        books = torch.arange(self.books, device=codes.device)
        x[:, :, 0, :k] = self.table[books[:k], codes]
        x[:, :, 1, : self.books] = self.table[books, earlier][:, None]
        h = ((x.flatten(2) @ self.hidden[k] + self.bias[k]) * self.scale["hidden"][k]).floor().clamp(0, 255)
        high = (h @ self.high[k] + self.high_bias[k]) * (self.scale["high"][k] * math.log(2) / 32)
        low = (h @ self.low[k] + self.low_bias[k].flatten()) * (self.scale["low"][k] * math.log(2) / 32)
        low = low.unflatten(-1, self.low_bias.shape[1:]).log_softmax(-1)
        by_rank = (high.log_softmax(-1)[..., None] + low).flatten(2) / -math.log(2)
        return by_rank[..., self.ranks[k]]


def codebook_levels(num_codebooks: int) -> list[int]:
    """The numbers of codebooks that a frame of a variable-rate file may have."""
    return sorted({max(1, round(num_codebooks * i / _LEVELS)) for i in range(_LEVELS + 1)})


def audible_errors(
    model: DacModel, blocks: Iterable[np.ndarray], code_blocks: Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Encode audio (C, S) in blocks by `code_blocks`, and tell how far every frame is off at fewer codebooks.

    Yields pieces of codes, int16 (C, K, T), and errors, float32 (levels, C, T): mean difference in dB of the mel
    spectra of original and decoded audio at these `codebook_levels`, where bands that nobody hears count as equal.
    """
    config, waiting = model.config, _Pending()
    hop, rate = config.hop_length, config.sampling_rate
    fft = 1 << round(math.log2(_MEL_SECONDS * rate))

    def mel(audio: np.ndarray) -> Tensor:  # (C, S) -> (C, M, T), at the middle of each frame
        padded = np.pad(audio, ((0, 0), (0, hop)))[:, hop // 2 :]
        options = {"n_mels": _MEL_BANDS, "n_fft": fft, "hop_length": hop}
        spectrum = utils.mel_spectrogram(torch.from_numpy(padded.copy()), rate, **options)
        return spectrum[..., : audio.shape[-1] // hop]

    def together() -> Iterator[np.ndarray]:
        """Codes and the samples of their frames, float32 (C, K + hop, T)."""
        for codes in code_blocks(waiting.passing(blocks)):
            channels, _, frames = codes.shape
            samples = waiting.take(frames * hop, channels).reshape(channels, frames, hop).transpose(0, 2, 1)
            yield np.concatenate([codes.astype(np.float32), samples], axis=1)

    past, future = model.decoder_reach
    context = -(-fft // (2 * hop))
    for window, start, stop in windows(together(), 1, past + context, future + context, chunk_frames(model)):
        codes = window[:, :-hop].astype(np.int64)
        channels, K, _ = codes.shape
        original = np.ascontiguousarray(window[:, -hop:].transpose(0, 2, 1)).reshape(channels, -1)

        wanted = mel(original)
        floor = torch.clamp(_FLOOR * wanted.amax(dim=(1, 2), keepdim=True), min=_FLOOR)
        errors = []
        for level in codebook_levels(K):
            decoded = np.concatenate(list(decode_blocks(model, [codes[:, :level]])), axis=-1)
            difference = 20 * (torch.log10(mel(decoded) + floor) - torch.log10(wanted + floor))
            errors.append(difference.abs().mean(dim=1)[..., start:stop].numpy())
        yield codes[..., start:stop].astype(np.int16), np.stack(errors)


def truncated(codes: np.ndarray, errors: np.ndarray, tolerance: float) -> np.ndarray:
    """Codes (C, K, T) with -1 for the codebooks that a frame can do without.

    A frame keeps the fewest codebooks with which it and its neighbours are at most `tolerance` dB further off than with
    all; errors (levels, C, T) as of `audible_errors`.
    """
    levels = np.array(codebook_levels(codes.shape[1]))
    worse = np.pad(errors - errors[-1:], ((0, 0), (0, 0), (1, 1)), mode="edge")
    worse = np.maximum(np.maximum(worse[..., :-2], worse[..., 1:-1]), worse[..., 2:])
    enough = worse <= tolerance
    enough[-1] = True
    kept = levels[np.argmax(enough, axis=0)]  # (C, T)
    return np.where(np.arange(codes.shape[1])[:, None] < kept[:, None], codes, -1).astype(np.int16)


def tolerance_of(quality: float) -> float:
    """dB that a frame may be further off than with all codebooks, at a quality from 0 to 10."""
    return 0.4 * (10 - quality) ** 1.25


def meet_target(size_of: Callable[[float], int], target: float) -> float:
    """The tolerance whose file comes nearest to `target` bytes; `size_of` gives the size at a tolerance."""
    low, high = -5.0, 5.0  # tolerances are sinh of these: fine steps around 0, where they matter
    sizes = {low: size_of(math.sinh(low)), high: size_of(math.sinh(high))}
    for _ in range(14):
        best = min(sizes, key=lambda place: abs(sizes[place] - target))
        if abs(sizes[best] - target) <= 0.005 * target or not sizes[high] < target < sizes[low]:
            break
        middle = (low + high) / 2
        sizes[middle] = size_of(math.sinh(middle))
        low, high = (middle, high) if sizes[middle] > target else (low, middle)
    return math.sinh(min(sizes, key=lambda place: abs(sizes[place] - target)))


class _Pending:
    """Samples that went into an encoder and are waiting for their codes."""

    def __init__(self) -> None:
        self.blocks: list[np.ndarray] = []

    def passing(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same blocks (C, n), remembered."""
        for block in blocks:
            self.blocks.append(block)
            yield block

    def take(self, count: int, channels: int) -> np.ndarray:
        """The next samples (C, count), zeros where the signal has ended."""
        held = np.concatenate(self.blocks or [np.zeros((channels, 0), np.float32)], axis=-1)
        self.blocks = [held[:, count:]]
        return np.pad(held[:, :count], ((0, 0), (0, count - min(count, held.shape[-1]))))
