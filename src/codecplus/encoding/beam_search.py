"""Beam search for codes that are near to latents and cost few bits.

Any decoder of the model plays them. Greedy search takes the nearest entry of each codebook in turn.
A beam keeps several sums of entries, and takes the one with the least squared error plus λ times
bits in the end. Errors are weighed as all codebooks together weigh them. `refinement` looks further
from there, for codes that sound better.

Letters: C channels, K codebooks, T frames, N frames that are searched at once, D width of the
latents, d width of a codebook, 2**W entries.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from codecplus.acceleration.plain import check_plain
from codecplus.bitstream import EntropyModel
from codecplus.modeling_dac.layers_dac import DacResidualVectorQuantizer

_BATCH_FRAMES = 128  # searched at once


class BeamSearch:
    """Chooses codes for latents: the sums with the least squared error plus λ times bits.

    Args:
        quantizer: whose codes they are.
        num_codebooks: K, how many of its codebooks are used.
        beam: B, sums that are kept from one codebook to the next.
        rate_weight: λ, as a share of a frame's squared error per bit.
        costs: gives the bits (N, B, 2**W) of all codes of codebook k: `costs(k, before, codes)`.
            `codes` (N, B, k) are chosen in the same frame, `before` (N, K) are all codes of the
            frame before, where 2**W stands for none.

    Raises InputError for a quantizer with adapters or hooks.
    """

    def __init__(
        self,
        quantizer: DacResidualVectorQuantizer,
        num_codebooks: int,
        beam: int,
        rate_weight: float,
        costs: Callable[[int, Tensor, Tensor], Tensor],
    ):
        self.quantizer = check_plain(quantizer)
        self.num_codebooks = num_codebooks
        self.costs = costs
        self.beam = beam
        self.rate_weight = rate_weight
        self.metric = _metric(quantizer)  # (D, D)
        weights = quantizer.weights(num_codebooks)
        out = self.metric.t() @ weights.out
        biases = weights.out_bias @ self.metric
        width = weights.codebooks[0].shape[1]
        self.codebooks = []
        for k, book in enumerate(weights.codebooks):
            into = out[:, k * width : (k + 1) * width]  # (D, d)
            lengths = (book @ into.t()).square().sum(dim=1)  # (2**W,)
            self.codebooks.append((into, biases[k], book, lengths))

    def __call__(self, latents: Tensor) -> Tensor:
        """Choose codes (C, K, T) for latents (C, D, T)."""
        z = latents.float()
        # Greedy codes: where to start, and never to be left for worse.
        codes = self.quantizer(z, self.num_codebooks)[1]
        nearest = self.quantizer.look_up(codes)[0].float()
        target = z.transpose(1, 2) @ self.metric  # (C, T, D)
        nearest = nearest.transpose(1, 2) @ self.metric
        error = (target - nearest).square().sum(dim=2)  # (C, T)
        weight = self.rate_weight * error.clamp(min=0.1 * float(error.mean()))
        codes = codes.transpose(1, 2).clone()  # (C, T, K)
        # A frame's codes cost what those before them make likely: every second frame is chosen
        # given those between.
        nothing = torch.full_like(codes[:, :1], len(self.codebooks[0][2]))
        for parity in range(min(2, codes.shape[1])):
            every = slice(parity, None, 2)
            before = torch.cat([nothing, codes[:, :-1]], dim=1)
            frames = [x[:, every].flatten(0, 1) for x in (target, codes, before, weight)]
            chosen = self._search(*frames)
            codes[:, every] = chosen.unflatten(0, codes[:, every].shape[:2])
        return codes.transpose(1, 2)

    def _search(self, z: Tensor, greedy: Tensor, earlier: Tensor, weight: Tensor) -> Tensor:
        """Choose codes (N, K) for targets (N, D) with greedy codes (N, K).

        `earlier` (N, K) are the codes of the frames before, `weight` (N,) is λ of each frame.
        """
        chosen = []
        for start in range(0, len(z), _BATCH_FRAMES):
            batch = slice(start, start + _BATCH_FRAMES)
            codes = self._search_batch(z[batch], greedy[batch], earlier[batch], weight[batch])
            chosen.append(codes)
        return torch.cat(chosen)

    def _search_batch(self, z: Tensor, greedy: Tensor, earlier: Tensor, weight: Tensor) -> Tensor:
        count = len(z)
        residual = z[:, None]  # (N, B, D)
        codes = torch.zeros(count, 1, 0, dtype=torch.long, device=z.device)
        bits = torch.zeros(count, 1, device=z.device)
        rows = torch.arange(count, device=z.device)[:, None]
        for k, (into, bias, book, lengths) in enumerate(self.codebooks):
            residual = residual - bias
            # |r - o|² for all entries o = into @ e, without ever forming them.
            scores = (
                residual.square().sum(-1, keepdim=True) - 2 * (residual @ into) @ book.t() + lengths
            )
            new_bits = bits[..., None] + self.costs(k, earlier, codes)
            scores = scores + weight[:, None, None] * new_bits  # (N, B, 2**W)
            if k + 1 == len(self.codebooks):
                width = 1
            else:
                width = min(self.beam, scores[0].numel())
                # The greedy sum stays, in place 0: it may be worse on the way and the best in the
                # end.
                scores[:, 0].scatter_(1, greedy[:, k : k + 1], -torch.inf)
            best = scores.flatten(1).topk(width, dim=1, largest=False).indices  # the best first
            parent = best // len(book)
            code = best % len(book)
            codes = torch.cat([codes[rows, parent], code[..., None]], dim=-1)
            residual = residual[rows, parent] - book[code] @ into.t()
            bits = new_bits[rows, parent, code]
        return codes[:, 0]


def _metric(quantizer: DacResidualVectorQuantizer) -> Tensor:
    """Return a matrix (D, D): |x @ metric|² is the energy of x that all codebooks together see.

    Directions that no codebook looks at cost nothing. With the weights of the decoder's first
    convolution instead, the same bits sound worse.
    """
    into = quantizer.weights().into.detach()  # (all d, D)
    power, axes = torch.linalg.eigh(into.t() @ into)
    return axes * power.clamp(min=0).sqrt()


class EntropyCosts:
    """Bits of every code by an entropy model, in floats: good enough to choose by."""

    def __init__(self, entropy: EntropyModel, num_codebooks: int, device: torch.device):
        arrays = {
            name: torch.from_numpy(array).to(device) for name, array in entropy.arrays.items()
        }
        self.all_codebooks = entropy.num_codebooks
        self.num_codebooks = num_codebooks
        self.ranks = arrays["ranks"].long()
        self.table = arrays["codes"].float()
        # Of the frames before, only the one just before is looked at; models see more only if made
        # elsewhere.
        shape = (self.all_codebooks, entropy.lags, self.all_codebooks, self.table.shape[2], -1)
        self.hidden = arrays["hidden"].float().view(shape)[:, :2].flatten(1, 3)
        self.bias = arrays["hidden_bias"].float()
        self.scale = {
            name: 2.0 ** -arrays[f"{name}_shift"].float() for name in ("hidden", "high", "low")
        }
        self.high = arrays["high"].float()
        self.high_bias = arrays["high_bias"].float()
        self.low = arrays["low"].float().transpose(1, 2).flatten(2)
        self.low_bias = arrays["low_bias"].float()

    def __call__(self, k: int, earlier: Tensor, codes: Tensor) -> Tensor:
        """Return the bits (N, B, 2**W) of all codes of codebook k.

        `codes` (N, B, k) stand before it in the frame, `earlier` (N, K) in the frame before.
        """
        count, beam, _ = codes.shape
        books = torch.arange(self.num_codebooks, device=codes.device)
        x = torch.zeros(
            count, beam, 2, self.all_codebooks, self.table.shape[2], device=codes.device
        )
        x[:, :, 0, :k] = self.table[books[:k], codes]
        x[:, :, 1, : self.num_codebooks] = self.table[books, earlier][:, None]
        h = x.flatten(2) @ self.hidden[k] + self.bias[k]
        h = (h * self.scale["hidden"][k]).floor().clamp(0, 255)
        # The model counts in 32nds of a bit.
        high_scale = self.scale["high"][k] * math.log(2) / 32
        low_scale = self.scale["low"][k] * math.log(2) / 32
        high = (h @ self.high[k] + self.high_bias[k]) * high_scale
        low = (h @ self.low[k] + self.low_bias[k].flatten()) * low_scale
        low = low.unflatten(-1, self.low_bias.shape[1:]).log_softmax(-1)
        by_rank = (high.log_softmax(-1)[..., None] + low).flatten(2) / -math.log(2)
        return by_rank[..., self.ranks[k]]
