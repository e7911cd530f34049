"""Codebooks that follow what they code: first placed by k-means, then kept as moving means, the unused ones moved.

Letters: N vectors, D latent width, d width of the search, K codebooks, E entries of a codebook.
"""

from typing import cast

import torch
from torch import Tensor

from codecplus.modeling_dac.layers_dac import DacResidualVectorQuantizer, DacVectorQuantize, nearest_entry


@torch.no_grad()
def initialize(quantizer: DacResidualVectorQuantizer, latents: Tensor, rounds: int = 12) -> float:
    """Place projections and codebooks by encoder output (N, D), and return the share of energy left uncoded.

    Each codebook searches the d directions in which what the ones before left over varies most.
    """
    residual = latents.float()
    for quantize in _codebooks(quantizer):
        mean = residual.mean(dim=0)
        _, directions = torch.linalg.eigh((residual - mean).t() @ (residual - mean))
        basis = directions[:, -quantize.codebook_dim :]  # (D, d)
        points = (residual - mean) @ basis
        codebook = cosine_kmeans(points, quantize.codebook.num_embeddings, rounds)
        for projection, weight, bias in (
            (quantize.in_proj, basis.t(), -(mean @ basis)),
            (quantize.out_proj, basis, mean),
        ):
            projection.weight.copy_(weight.unsqueeze(-1))
            cast(Tensor, projection.bias).copy_(bias)
        quantize.codebook.weight.copy_(codebook)
        residual = residual - codebook[nearest_entry(points, codebook)] @ basis.t() - mean
    return float(residual.square().mean() / latents.float().var())


def cosine_kmeans(points: Tensor, entries: int, rounds: int) -> Tensor:
    """Means (E, d) of the points (N, d) that point the same way; a cluster left empty starts again at some point."""
    means = points[torch.randint(len(points), (entries,))]
    for _ in range(rounds):
        index = nearest_entry(points, means)
        counts = torch.bincount(index, minlength=entries)
        means = torch.zeros_like(means).index_add_(0, index, points) / counts.clamp(min=1).unsqueeze(-1)
        means[counts == 0] = points[torch.randint(len(points), (int((counts == 0).sum()),))]
    return means


def relative_commitment(quantizer: DacResidualVectorQuantizer, projected: Tensor, codes: Tensor) -> Tensor:
    """Squared distance of latents from their entries in units of the variance of the latents, summed over codebooks.

    Relative, because the plain distance is best reduced by shrinking the latents; variance, because the mean square is
    best raised by an offset. Takes projected latents (B, K * d, T) and codes (B, K, T).
    """
    total = projected.new_zeros(())
    for latents, index, quantize in _by_codebook(quantizer, projected, codes):
        distance = (latents - quantize.codebook.weight[index]).square().mean()
        total = total + distance / (latents.var(dim=0, correction=0).mean() + 1e-6)
    return total


class MovingCodebooks:
    """Codebook entries as moving means of the latents they were chosen for."""

    def __init__(self, quantizer: DacResidualVectorQuantizer, decay: float = 0.97):
        self.quantizer, self.decay = quantizer, decay
        codebooks = torch.stack([quantize.codebook.weight.detach() for quantize in _codebooks(quantizer)])  # (K, E, d)
        self.counts = torch.full(codebooks.shape[:2], 0.25, device=codebooks.device)
        self.sums = codebooks * self.counts.unsqueeze(-1)

    @torch.no_grad()
    def update(self, projected: Tensor, codes: Tensor) -> int:
        """Move the entries towards the latents (B, K * d, T) that chose them, codes (B, K, T).

        Entries that were chosen less than a 25th as often as the average go to random latents; returns how many.
        """
        revived = 0
        parts = _by_codebook(self.quantizer, projected.detach(), codes)
        for counts, sums, (latents, index, quantize) in zip(self.counts, self.sums, parts, strict=False):
            average = len(index) / len(counts)
            counts.mul_(self.decay).add_(torch.bincount(index, minlength=len(counts)), alpha=1 - self.decay)
            sums.mul_(self.decay).add_(torch.zeros_like(sums).index_add_(0, index, latents), alpha=1 - self.decay)
            unused = (counts < 0.04 * average).nonzero().squeeze(-1)
            counts[unused] = 0.25 * average
            chosen = torch.randint(len(latents), (len(unused),)).to(latents.device)
            sums[unused] = latents[chosen] * counts[unused].unsqueeze(-1)
            quantize.codebook.weight.copy_(sums / counts.unsqueeze(-1))
            revived += len(unused)
        return revived

    def state_dict(self) -> dict[str, Tensor]:
        """Moving counts and sums."""
        return {"counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The reverse of `state_dict`."""
        self.counts.copy_(state["counts"])
        self.sums.copy_(state["sums"])


def _codebooks(quantizer: DacResidualVectorQuantizer) -> list[DacVectorQuantize]:
    return cast("list[DacVectorQuantize]", list(quantizer.quantizers))


def _by_codebook(quantizer: DacResidualVectorQuantizer, projected: Tensor, codes: Tensor):
    """Latents (N, d), indices (N,) and the codebook's module, for each codebook in use."""
    books = _codebooks(quantizer)
    parts = projected.float().split(books[0].codebook_dim, dim=1)
    for latents, index, quantize in zip(parts, codes.unbind(dim=1), books, strict=False):
        yield latents.transpose(1, 2).flatten(0, 1), index.flatten(), quantize
