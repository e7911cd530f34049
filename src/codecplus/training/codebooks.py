"""Codebooks that follow what they code: first placed by k-means, then kept as moving means, the unused ones moved.

Letters: N vectors, D latent width, d width of the search, K codebooks, E entries of a codebook.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from codecplus.modeling_dac.layers_dac import DacResidualVectorQuantizer, DacVectorQuantize, nearest_entry
from codecplus.search import BeamSearch, Effort

DISTANCES = ("cosine", "euclidean")  # by which the entry nearest to a latent is meant
_SPREAD = 1.5  # bits by which codes differ for an entropy model, about
_FAR = 8.0  # the constant coordinate, in lengths of a latent; the larger, the more often rounding decides a search


@torch.no_grad()
def initialize(
    quantizer: DacResidualVectorQuantizer,
    latents: Tensor,
    rounds: int = 12,
    generator: torch.Generator | None = None,
    metric: Tensor | None = None,
    distance: str = "cosine",
) -> float:
    """Place projections and codebooks by encoder output (N, D), and return the share of energy left uncoded.

    Each codebook searches the d directions in which what the ones before left over varies most. `metric` (D, D),
    symmetric and positive definite, is what an error e costs, eᵀ M e; by default all directions cost the same. Variance
    and energy are meant in it, so that codebooks go where errors are dear.

    A DAC searches the entry of the nearest direction, which takes no account of lengths. With `distance` "euclidean" it
    finds the nearest point all the same: one of the d coordinates is then a constant so large that directions nearly
    agree, and the small angles between them are distances in the other coordinates.
    """
    root, inverse = _roots(torch.eye(latents.shape[1]) if metric is None else metric)
    weighed = residual = latents.float() @ root  # where plain distance is the cost
    for quantize in _codebooks(quantizer):
        mean = residual.mean(dim=0)
        _, directions = torch.linalg.eigh((residual - mean).t() @ (residual - mean))
        basis = directions[:, -quantize.codebook_dim :]  # (D, d)
        offset = torch.zeros_like(basis[0])
        if distance == "euclidean":
            basis[:, 0] = 0  # the direction of least variance makes room
            offset[0] = _FAR * ((residual - mean) @ basis).square().sum(dim=1).mean().sqrt()
        points = (residual - mean) @ basis + offset
        codebook = cosine_kmeans(points, quantize.codebook.num_embeddings, rounds, generator)
        for projection, weight, bias in (
            (quantize.in_proj, (root @ basis).t(), offset - mean @ basis),
            (quantize.out_proj, inverse @ basis, mean @ inverse),
        ):
            _set_weight(projection, weight.unsqueeze(-1))
            cast(Tensor, projection.bias).copy_(bias)
        quantize.codebook.weight.copy_(codebook)
        residual = residual - codebook[nearest_entry(points, codebook)] @ basis.t() - mean
    return float(residual.square().sum() / (weighed - weighed.mean(dim=0)).square().sum())


def sensitivity(gradients: Tensor, floor: float) -> Tensor:
    """What errors of latents cost, as a metric for `initialize`: from gᵀ g (D, D) of loss gradients g (N, D) at them.

    It is their empirical Fisher matrix, up to scale. Directions that the decoder does not read have no gradient; they
    count as `floor` of the average direction.
    """
    size = len(gradients)
    return size * gradients / gradients.trace().clamp(min=1e-30) + floor * torch.eye(size, device=gradients.device)


def cosine_kmeans(points: Tensor, entries: int, rounds: int, generator: torch.Generator | None = None) -> Tensor:
    """Means (E, d) of the points (N, d) that point the same way; a cluster left empty starts again at some point."""
    means = points[torch.randint(len(points), (entries,), generator=generator)]
    for _ in range(rounds):
        index = nearest_entry(points, means)
        counts = torch.bincount(index, minlength=entries)
        means = torch.zeros_like(means).index_add_(0, index, points) / counts.clamp(min=1).unsqueeze(-1)
        empty = (counts == 0).nonzero().squeeze(-1)
        means[empty] = points[torch.randint(len(points), (len(empty),), generator=generator)]
    return means


def relative_commitment(
    quantizer: DacResidualVectorQuantizer,
    projected: Tensor,
    codes: Tensor,
    mean: Callable[[Tensor], Tensor] = lambda moments: moments,
) -> Tensor:
    """Squared distance of latents from their entries in units of the variance of the latents, summed over codebooks.

    Relative, because the plain distance is best reduced by shrinking the latents; variance, because the mean square is
    best raised by an offset. Takes projected latents (B, K * d, T) and codes (B, K, T); `mean` averages moments over
    processes.
    """
    total = projected.new_zeros(())
    for latents, index, quantize in _by_codebook(quantizer, projected, codes):
        distance = (latents - quantize.codebook.weight[index]).square().mean()
        first, second = mean(torch.stack([latents.mean(dim=0), latents.square().mean(dim=0)]))  # (d,) each
        total = total + distance / ((second - first.square()).mean() + 1e-6)
    return total


@torch.no_grad()
def search_some(quantizer: DacResidualVectorQuantizer, latents: Tensor, quantized: Tensor, share: float) -> Tensor:
    """Quantized latents (B, D, T) in which a share of the items is coded as files of some effort are.

    A decoder that has only heard greedy sums plays the nearer ones of a beam search no better. How many codebooks these
    items have and how much bits weigh is drawn, and so is what codes cost: an entropy model is only trained afterwards.
    """
    chosen = (torch.rand(len(latents)) < share).nonzero().squeeze(-1).to(latents.device)
    if not len(chosen):
        return quantized
    count = len(quantizer.quantizers)
    if torch.rand(()) < 0.5:
        count = int(torch.randint(1, count + 1, ()))
    effort = Effort(beam=4, rate_weight=float(0.03 * torch.rand(())), rounds=1)
    size = _codebooks(quantizer)[0].codebook.num_embeddings

    def costs(k: int, before: Tensor, codes: Tensor) -> Tensor:
        return math.log2(size) + _SPREAD * torch.randn(len(codes), 1, size).to(codes.device)

    codes = BeamSearch(quantizer, count, effort, costs)(latents[chosen])
    return quantized.index_copy(0, chosen, quantizer.from_codes(codes)[0].to(quantized.dtype))


class MovingCodebooks:
    """Keeps count of how often entries are chosen, moves the unused ones, and lets the others follow their latents.

    `follow`: entries become moving means of the latents they were chosen for; otherwise something else trains them.
    `revive_below`: entries chosen less than this share of the average go to random latents.
    """

    def __init__(
        self,
        quantizer: DacResidualVectorQuantizer,
        decay: float = 0.97,
        *,
        follow: bool = True,
        revive_below: float = 0.04,
    ):
        self.quantizer, self.decay, self.follow, self.revive_below = quantizer, decay, follow, revive_below
        codebooks = torch.stack([quantize.codebook.weight.detach() for quantize in _codebooks(quantizer)])  # (K, E, d)
        self.counts = torch.zeros(codebooks.shape[:2], device=codebooks.device)
        self.sums = torch.zeros_like(codebooks, dtype=torch.float32)

    @torch.no_grad()
    def update(self, projected: Tensor, codes: Tensor, generator: torch.Generator | None = None) -> int:
        """Take in the latents (B, K * d, T) of a batch and the codes (B, K, T) chosen for them.

        Returns how many entries were moved to random latents, which `generator`, one on the CPU, draws.
        """
        revived = 0
        parts = _by_codebook(self.quantizer, projected.detach(), codes)
        for counts, sums, (latents, index, quantize) in zip(self.counts, self.sums, parts, strict=False):
            average, weight = len(index) / len(counts), quantize.codebook.weight
            if not counts.any():  # at first, as if every entry had been chosen as often as any
                counts.fill_(average)
                sums.copy_(weight * average)
            counts.mul_(self.decay).add_(torch.bincount(index, minlength=len(counts)), alpha=1 - self.decay)
            sums.mul_(self.decay).add_(torch.zeros_like(sums).index_add_(0, index, latents), alpha=1 - self.decay)
            unused = (counts < self.revive_below * average).nonzero().squeeze(-1)
            chosen = torch.randint(len(latents), (len(unused),), generator=generator).to(latents.device)
            counts[unused] = 0.25 * average
            sums[unused] = latents[chosen] * counts[unused].unsqueeze(-1)
            if self.follow:
                weight.copy_(sums / counts.unsqueeze(-1))
            else:
                weight[unused] = latents[chosen].to(weight.dtype)
            revived += len(unused)
        return revived

    def state_dict(self) -> dict[str, Tensor]:
        """Moving counts and sums."""
        return {"counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The reverse of `state_dict`."""
        self.counts.copy_(state["counts"])
        self.sums.copy_(state["sums"])


def code_counts(codes: Tensor, entries: int) -> Tensor:
    """How often each entry was chosen: codes (B, K, T) -> (K, E)."""
    counts = torch.zeros(codes.shape[1], entries, device=codes.device)
    flat = codes.transpose(0, 1).flatten(1)  # (K, B * T)
    return counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=counts.dtype))


def perplexity(counts: Tensor) -> Tensor:
    """Entries that equally frequent use would need for the same entropy: counts (K, E) -> (K,).

    >>> perplexity(torch.tensor([[5.0, 5.0, 0.0], [9.0, 0.0, 0.0]]))
    tensor([2., 1.])
    """
    shares = counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.special.entr(shares).sum(dim=-1).exp()


def _roots(metric: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of a symmetric positive definite matrix, and its inverse."""
    values, vectors = torch.linalg.eigh(metric.float())
    root = values.clamp(min=1e-12).sqrt()
    return (vectors * root) @ vectors.t(), (vectors / root) @ vectors.t()


def _set_weight(module: nn.Module, weight: Tensor) -> None:
    """Give a layer this weight, through its weight norm if it has one."""
    if parametrize.is_parametrized(module, "weight"):
        module.weight = weight.to(cast(Tensor, module.weight).device)
    else:
        cast(Tensor, module.weight).copy_(weight)


def _codebooks(quantizer: DacResidualVectorQuantizer) -> list[DacVectorQuantize]:
    return cast("list[DacVectorQuantize]", list(quantizer.quantizers))


def _by_codebook(quantizer: DacResidualVectorQuantizer, projected: Tensor, codes: Tensor):
    """Latents (N, d), indices (N,) and the codebook's module, for each codebook in use."""
    books = _codebooks(quantizer)
    parts = projected.float().split(books[0].codebook_dim, dim=1)
    for latents, index, quantize in zip(parts, codes.unbind(dim=1), books, strict=False):
        yield latents.transpose(1, 2).flatten(0, 1), index.flatten(), quantize
