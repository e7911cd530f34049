"""Codebooks that follow what they code: first placed by k-means, then kept as moving means, the
unused ones moved.

Letters: N vectors, D latent width, d width of the search, K codebooks, E entries of a codebook.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from codecplus.encoding.beam_search import BeamSearch
from codecplus.modeling_dac.layers_dac import (
    DacResidualVectorQuantizer,
    DacVectorQuantize,
    give_directions,
    nearest_entry,
)

_SPREAD = 1.5  # bits by which codes differ for an entropy model, about
STEERING = 2  # coordinates of codebooks placed for few bits that only steer the search


@torch.no_grad()
def initialize(
    quantizer: DacResidualVectorQuantizer,
    latents: Tensor,
    rounds: int = 12,
    generator: torch.Generator | None = None,
    metric: Tensor | None = None,
    rate_weight: float | None = None,
) -> float:
    """Place projections and codebooks by encoder output (N, D), and return the share of energy left
    uncoded.

    Each codebook searches the d directions in which what the ones before left over varies most.
    `metric` (D, D), symmetric and positive definite, is what an error e costs, eᵀ M e; by default
    all directions cost the same. Variance and energy are meant in it, so that codebooks go where
    errors are dear.

    A DAC searches the entry of the nearest direction, which takes no account of lengths, nor of how
    rare a code is. With a `rate_weight` λ it finds the entry of least cost: squared error plus λ
    times the variance of the latents for each bit of the code (entropy-constrained vector
    quantization, Chou, Lookabaugh and Gray 1989). λ = 0 is the nearest point. Any DAC searches such
    codebooks, since two of their d coordinates steer it (as Neyshabur and Srebro 2015 turn inner
    products into angles): latents p become (p, b, 0), entries e (e, g, w), with g such that b g is
    half their cost at the origin, negative, and w such that all entries are equally long. The
    projection out ignores both.

    Raises ValueError where the d coordinates leave none beside those two.
    """
    root, inverse = _roots(torch.eye(latents.shape[1]) if metric is None else metric)
    weighed = residual = latents.float() @ root  # where plain distance is the cost
    for quantize in _codebooks(quantizer):
        mean = residual.mean(dim=0)
        basis, offset, codebook = _place(residual - mean, quantize, rounds, rate_weight, generator)
        points = (residual - mean) @ basis + offset
        for projection, weight, bias in (
            (quantize.in_proj, (root @ basis).t(), offset - mean @ basis),
            (quantize.out_proj, inverse @ basis, mean @ inverse),
        ):
            _set_weight(projection, weight.unsqueeze(-1))
            cast(Tensor, projection.bias).copy_(bias)
        quantize.codebook.weight.copy_(codebook)
        residual = residual - codebook[nearest_entry(points, codebook)] @ basis.t() - mean
    return float(residual.square().sum() / (weighed - weighed.mean(dim=0)).square().sum())


def _place(
    vectors: Tensor,
    quantize: DacVectorQuantize,
    rounds: int,
    rate_weight: float | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a codebook sees of vectors (N, D) of mean 0: directions (D, d) and an offset (d,); its
    entries (E, d).
    """
    _, axes = torch.linalg.eigh(vectors.t() @ vectors)
    d, size = quantize.codebook_dim, quantize.codebook.num_embeddings
    if rate_weight is None:
        basis = axes[:, -d:]
        return (
            basis,
            torch.zeros_like(basis[0]),
            cosine_kmeans(vectors @ basis, size, rounds, generator),
        )
    if d <= STEERING:
        raise ValueError(f"a rate weight needs a codebook_dim above {STEERING}, got {d}")
    basis = axes[:, STEERING - d :]
    points = vectors @ basis
    length = points.square().sum(dim=1).mean().sqrt()
    entries, costs = constrained_kmeans(points, size, rounds, rate_weight, generator)
    offset = nn.functional.pad(length[None], (d - STEERING, STEERING - 1))
    return nn.functional.pad(basis, (0, STEERING)), offset, _steered(entries, costs, length)


def _steered(points: Tensor, costs: Tensor, offset: Tensor) -> Tensor:
    """Entries (E, d + 2) whose direction is nearest to (p, offset, 0) where |p - e|² + cost is
    least.

    Takes points e (E, d) and costs (E,).
    """
    lengths = points.square().sum(dim=1)
    along = lengths + costs
    along = (along.mean() - along) / (2 * offset)
    lengths = lengths + along.square()
    return torch.cat(
        [points, along[:, None], (1.001 * lengths.max() - lengths).sqrt()[:, None]], dim=1
    )


def is_steered(quantize: DacVectorQuantize) -> bool:
    """Whether the last coordinates of a codebook only steer its search, and must be left as they
    are.
    """
    out = cast(Tensor, quantize.out_proj.weight)
    return not out[:, -STEERING:].any() and bool(quantize.codebook.weight[:, -STEERING:].any())


def sensitivity(gradients: Tensor, floor: float) -> Tensor:
    """What errors of latents cost, as a metric for `initialize`: from gᵀ g (D, D) of loss gradients
    g (N, D) at them.

    It is their empirical Fisher matrix, up to scale. Directions that the decoder does not read have
    no gradient; they count as `floor` of the average direction.
    """
    size = len(gradients)
    return size * gradients / gradients.trace().clamp(min=1e-30) + floor * torch.eye(
        size, device=gradients.device
    )


def cosine_kmeans(
    points: Tensor, entries: int, rounds: int, generator: torch.Generator | None = None
) -> Tensor:
    """Means (E, d) of the points (N, d) that point the same way; a cluster left empty starts again
    at some point.
    """
    means = points[torch.randint(len(points), (entries,), generator=generator)]
    for _ in range(rounds):
        index = nearest_entry(points, means)
        counts = torch.bincount(index, minlength=entries)
        means = torch.zeros_like(means).index_add_(0, index, points) / counts.clamp(
            min=1
        ).unsqueeze(-1)
        empty = (counts == 0).nonzero().squeeze(-1)
        means[empty] = points[torch.randint(len(points), (len(empty),), generator=generator)]
    return means


def constrained_kmeans(
    points: Tensor,
    entries: int,
    rounds: int,
    rate_weight: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Means (E, d) of the points (N, d) for which they are the cheapest, and what the bits of each
    cost (E,).

    Bits are those of how often an entry is chosen; one costs `rate_weight` times the variance of
    the points.
    """
    means = points[torch.randint(len(points), (entries,), generator=generator)]
    price = rate_weight * points.var(dim=0).sum()
    costs = torch.zeros(entries)
    for _ in range(rounds):
        index = _cheapest(points, means, costs)
        counts = torch.bincount(index, minlength=entries)
        sums = torch.zeros_like(means).index_add_(0, index, points)
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
        costs = -price * ((counts + 0.5) / (counts + 0.5).sum()).log2()
    return means, costs


def _cheapest(points: Tensor, means: Tensor, costs: Tensor) -> Tensor:
    """Index (N,) of the least |p - e|² + cost of means e (E, d), for points p (N, d)."""
    costs = costs + means.square().sum(dim=1)
    return torch.cat([(costs - 2 * part @ means.t()).argmin(dim=1) for part in points.split(4096)])


def relative_commitment(
    quantizer: DacResidualVectorQuantizer,
    projected: Tensor,
    codes: Tensor,
    mean: Callable[[Tensor], Tensor] = lambda moments: moments,
    steered: bool = False,
) -> Tensor:
    """Squared distance of latents from their entries in units of the variance of the latents,
    summed over codebooks.

    Relative, because the plain distance is best reduced by shrinking the latents; variance, because
    the mean square is best raised by an offset. Takes projected latents (B, K * d, T) and codes (B,
    K, T); `mean` averages moments over processes. Of `steered` codebooks only the coordinates count
    that the decoder hears.
    """
    total = projected.new_zeros(())
    for latents, index, quantize in _by_codebook(quantizer, projected, codes):
        entries = quantize.codebook.weight[index]
        if steered:
            latents, entries = latents[:, :-STEERING], entries[:, :-STEERING]
        distance = (latents - entries).square().mean()
        first, second = mean(
            torch.stack([latents.mean(dim=0), latents.square().mean(dim=0)])
        )  # (d,) each
        total = total + distance / ((second - first.square()).mean() + 1e-6)
    return total


@torch.no_grad()
def search_some(
    quantizer: DacResidualVectorQuantizer, latents: Tensor, quantized: Tensor, share: float
) -> Tensor:
    """Quantized latents (B, D, T) in which a share of the items is coded by beam search.

    A decoder that has only heard greedy sums plays the nearer ones no better. How many codebooks
    these items have and how much bits weigh is drawn, and so is what codes cost: an entropy model
    is only trained afterwards.
    """
    chosen = (torch.rand(len(latents)) < share).nonzero().squeeze(-1).to(latents.device)
    if not len(chosen):
        return quantized
    count = len(quantizer.quantizers)
    if torch.rand(()) < 0.5:
        count = int(torch.randint(1, count + 1, ()))
    rate_weight = float(0.03 * torch.rand(()))
    size = _codebooks(quantizer)[0].codebook.num_embeddings

    def costs(k: int, before: Tensor, codes: Tensor) -> Tensor:
        return math.log2(size) + _SPREAD * torch.randn(len(codes), 1, size).to(codes.device)

    codes = BeamSearch(quantizer, count, 4, rate_weight, costs)(latents[chosen])
    return quantized.index_copy(0, chosen, quantizer.from_codes(codes)[0].to(quantized.dtype))


class MovingCodebooks:
    """Keeps count of how often entries are chosen, moves the unused ones, and lets the others
    follow their latents.

    `follow`: entries become moving means of the latents they were chosen for; otherwise something
    else trains them.
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
        self.quantizer, self.decay, self.follow, self.revive_below = (
            quantizer,
            decay,
            follow,
            revive_below,
        )
        codebooks = torch.stack(
            [quantize.codebook.weight.detach() for quantize in _codebooks(quantizer)]
        )  # (K, E, d)
        self.counts = torch.zeros(codebooks.shape[:2], device=codebooks.device)
        self.sums = torch.zeros_like(codebooks, dtype=torch.float32)

    @torch.no_grad()
    def update(
        self, projected: Tensor, codes: Tensor, generator: torch.Generator | None = None
    ) -> int:
        """Take in the latents (B, K * d, T) of a batch and the codes (B, K, T) chosen for them.

        Returns how many entries were moved to random latents, which `generator`, one on the CPU,
        draws.
        """
        used, entries = codes.shape[1], self.counts.shape[1]
        counts, sums = self.counts[:used], self.sums[:used]
        weights = [quantize.codebook.weight for quantize in _codebooks(self.quantizer)[:used]]
        latents, index, _ = zip(*_by_codebook(self.quantizer, projected, codes), strict=True)
        z, average = torch.stack(latents), len(index[0]) / entries  # (K, N, d)
        # At first, as if every entry had been chosen as often as any.
        new = ~counts.any(dim=1)[:, None]
        counts.masked_fill_(new, average)
        sums.copy_(torch.where(new[:, None], torch.stack(weights) * average, sums))
        counts.lerp_(code_counts(codes, entries), 1 - self.decay)
        places = torch.stack(index)[..., None].expand_as(z)
        sums.lerp_(torch.zeros_like(sums).scatter_add_(1, places, z), 1 - self.decay)
        book, entry = (counts < self.revive_below * average).nonzero(
            as_tuple=True
        )  # the one time a GPU is waited for
        chosen = z[book, torch.randint(z.shape[1], (len(book),), generator=generator).to(z.device)]
        counts[book, entry] = 0.25 * average
        sums[book, entry] = 0.25 * average * chosen
        for k, weight in enumerate(weights):
            if self.follow:
                weight.copy_(sums[k] / counts[k][:, None])
            elif len(book):
                weight[entry[book == k]] = chosen[book == k].to(weight.dtype)
        return len(book)

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
        give_directions(module)
    else:
        cast(Tensor, module.weight).copy_(weight)


def _codebooks(quantizer: DacResidualVectorQuantizer) -> list[DacVectorQuantize]:
    return cast("list[DacVectorQuantize]", list(quantizer.quantizers))


def _by_codebook(quantizer: DacResidualVectorQuantizer, projected: Tensor, codes: Tensor):
    """Codes (N, d), indices (N,) and the codebook's module, for each codebook in use."""
    books = _codebooks(quantizer)
    parts = projected.float().split(books[0].codebook_dim, dim=1)
    for latents, index, quantize in zip(parts, codes.unbind(dim=1), books, strict=False):
        yield latents.transpose(1, 2).flatten(0, 1), index.flatten(), quantize
