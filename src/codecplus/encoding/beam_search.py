"""Which codes to write: codebooks per frame by what can be heard, what codes cost, and beam search
for the nearest sum.

The codes are the same model's: any decoder plays them. Greedy search takes the nearest entry of
each codebook in turn. From there, a beam keeps several sums of entries alive, and takes the one
with the least squared error plus λ times bits. Errors are weighed as all codebooks together weigh
them. What `refinement` finds sounds better.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from codecplus.bitstream import EntropyModel
from codecplus.modeling_dac.layers_dac import DacResidualVectorQuantizer

_BATCH_FRAMES = 128  # searched at once
_MEL_BANDS, _MEL_SECONDS = 64, 0.046  # the analysis of a frame's error
# A band so far below the loudest one of the last seconds, or below full scale, is not heard.
_FLOOR = 1e-3
_LEVELS = 6  # numbers of codebooks that a frame may have, beside 1


class BeamSearch:
    """Chooses codes for latents: of `beam` sums, that of the least squared error and λ times bits.

    `rate_weight` is λ, as a share of a frame's squared error per bit. `costs` gives the bits (N, B,
    2**W) of all codes of codebook k, after codes (N, B, k) of its frame and all codes (N, K) of the
    frame before, where 2**W stands for none: `costs(k, before, codes)`.
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
        # What no codebook looks at costs nothing. Weighed by the decoder's first convolution
        # instead, what takes the same bits sounds worse.
        into = quantizer._weights(quantizer.quantizers)[0].detach()  # (all d, D)
        power, axes = torch.linalg.eigh(into.t() @ into)
        self.metric = (
            axes * power.clamp(min=0).sqrt()
        )  # (D, D): |x @ metric|² is what comes out of x
        out, biases = self.metric.t() @ out, biases @ self.metric
        self.parts = []
        for k, book in enumerate(books):
            into = out[:, k * d : (k + 1) * d]  # (D, d)
            self.parts.append((into, biases[k], book, (book @ into.t()).square().sum(dim=1)))

    def __call__(self, latents: Tensor) -> Tensor:
        """Codes (C, K, T) of latents (C, D, T)."""
        z = latents.float()
        codes = self.quantizer(z, self.num_codebooks)[
            1
        ]  # greedy: where to start, and never to be left for worse
        target, nearest = (
            x.transpose(1, 2) @ self.metric for x in (z, self.quantizer.look_up(codes)[0].float())
        )
        error = (target - nearest).square().sum(dim=2)  # (C, T)
        weight = self.rate_weight * error.clamp(min=0.1 * float(error.mean()))
        codes = codes.transpose(1, 2).clone()  # (C, T, K)
        # A frame's codes cost what those before them make likely: every second frame is chosen
        # given those between.
        for parity in range(min(2, codes.shape[1])):
            every = slice(parity, None, 2)
            before = torch.cat(
                [torch.full_like(codes[:, :1], len(self.parts[0][2])), codes[:, :-1]], dim=1
            )
            chosen = self._search(
                *(x[:, every].flatten(0, 1) for x in (target, codes, before, weight))
            )
            codes[:, every] = chosen.unflatten(0, codes[:, every].shape[:2])
        return codes.transpose(1, 2)

    def _search(self, z: Tensor, greedy: Tensor, earlier: Tensor, weight: Tensor) -> Tensor:
        """Codes (N, K) of targets (N, D) with greedy codes (N, K), given the codes (N, K) of the
        frames before.
        """
        parts = [
            [x[i : i + _BATCH_FRAMES] for x in (z, greedy, earlier, weight)]
            for i in range(0, len(z), _BATCH_FRAMES)
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
            scores = (
                residual.square().sum(-1, keepdim=True) - 2 * (residual @ into) @ book.t() + lengths
            )
            new_bits = bits[..., None] + self.costs(k, earlier, codes)
            scores = scores + weight[:, None, None] * new_bits
            size = book.shape[0]
            last = k + 1 == len(self.parts)
            if not last:
                # The greedy sum stays, in place 0: what looks worse on the way may be the best in
                # the end.
                scores[:, 0].scatter_(1, greedy[:, k : k + 1], -torch.inf)
            kept = 1 if last else min(self.beam, scores[0].numel())
            best = (
                scores.flatten(1).topk(kept, dim=1, largest=False).indices
            )  # (N, kept), the best first
            parent, code = best // size, best % size
            codes = torch.cat([codes[rows, parent], code[..., None]], dim=-1)
            residual = residual[rows, parent] - book[code] @ into.t()
            bits = new_bits[rows, parent, code]
        return codes[:, 0]


class EntropyCosts:
    """Bits of every code by an entropy model, in floats: good enough to choose by."""

    def __init__(self, entropy: EntropyModel, num_codebooks: int, device: torch.device):
        arrays = {
            name: torch.from_numpy(array).to(device) for name, array in entropy.arrays.items()
        }
        K, d = entropy.num_codebooks, arrays["codes"].shape[2]
        self.books = num_codebooks
        self.ranks = arrays["ranks"].long()
        self.table = arrays["codes"].float()
        # Of the frames before, only the one just before is looked at; models see more only if made
        # elsewhere.
        hidden = arrays["hidden"].float().view(K, entropy.lags, K, d, -1)
        self.hidden = hidden[:, :2].flatten(1, 3)
        self.bias = arrays["hidden_bias"].float()
        self.scale = {
            name: 2.0 ** -arrays[f"{name}_shift"].float() for name in ("hidden", "high", "low")
        }
        self.high, self.high_bias = arrays["high"].float(), arrays["high_bias"].float()
        self.low, self.low_bias = (
            arrays["low"].float().transpose(1, 2).flatten(2),
            arrays["low_bias"].float(),
        )
        self.all_books = K

    def __call__(self, k: int, earlier: Tensor, codes: Tensor) -> Tensor:
        """Bits (N, B, 2**W) of codebook k after codes (N, B, k) in its frame and (N, K) in the one
        before.
        """
        count, beam, _ = codes.shape
        d, K = self.table.shape[2], self.all_books
        x = torch.zeros(count, beam, 2, K, d, device=codes.device)
        books = torch.arange(self.books, device=codes.device)
        x[:, :, 0, :k] = self.table[books[:k], codes]
        x[:, :, 1, : self.books] = self.table[books, earlier][:, None]
        h = (
            ((x.flatten(2) @ self.hidden[k] + self.bias[k]) * self.scale["hidden"][k])
            .floor()
            .clamp(0, 255)
        )
        high = (h @ self.high[k] + self.high_bias[k]) * (self.scale["high"][k] * math.log(2) / 32)
        low = (h @ self.low[k] + self.low_bias[k].flatten()) * (
            self.scale["low"][k] * math.log(2) / 32
        )
        low = low.unflatten(-1, self.low_bias.shape[1:]).log_softmax(-1)
        by_rank = (high.log_softmax(-1)[..., None] + low).flatten(2) / -math.log(2)
        return by_rank[..., self.ranks[k]]
