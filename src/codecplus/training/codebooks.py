"""Codebooks placed by k-means, then kept as moving means of what they code, unused entries moved.

They know latents and codes, nothing of audio or losses.

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

_SPREAD = 1.5  # standard deviation of what codes cost by an entropy model, in bits, about
STEERING = 2  # coordinates of a codebook placed for few bits that only steer the search


@torch.no_grad()
def initialize(
    quantizer: DacResidualVectorQuantizer,
    latents: Tensor,
    rounds: int = 12,
    generator: torch.Generator | None = None,
    metric: Tensor | None = None,
    rate_weight: float | None = None,
) -> float:
    """Place projections and codebooks by encoder output (N, D).

    Each codebook searches the d directions in which what the ones before left over varies most.

    A DAC searches the entry of the nearest direction, which takes no account of lengths, nor of how
    rare a code is. With a `rate_weight` λ it finds the entry of least cost: squared error plus λ
    times the variance of the latents for each bit of the code (entropy-constrained vector
    quantization, Chou, Lookabaugh and Gray 1989). λ = 0 is the nearest point. Any DAC searches such
    codebooks, since two of their d coordinates steer it (as Neyshabur and Srebro 2015 turn inner
    products into angles): latents p become (p, b, 0), entries e (e, g, w), with g such that b g is
    half their cost at the origin, negative, and w such that all entries are equally long. The
    projection out ignores both.

    Args:
        quantizer: the codebooks, which are changed.
        latents: what the encoder gives, as vectors.
        rounds: of k-means.
        generator: draws the first entries.
        metric: (D, D), symmetric and positive definite: an error e costs eᵀ M e, and variance and
            energy are meant in it, so that codebooks go where errors are dear. By default all
            directions cost the same.
        rate_weight: λ; by default entries are searched by direction.

    Returns the share of energy left uncoded. Raises ValueError where the d coordinates leave none
    beside the two that steer.
    """
    root, inverse = _roots(torch.eye(latents.shape[1]) if metric is None else metric)
    weighed = latents.float() @ root  # where plain distance is the cost
    residual = weighed
    for quantize in _codebooks(quantizer):
        mean = residual.mean(dim=0)
        basis, offset, entries = _place(residual - mean, quantize, rounds, rate_weight, generator)
        points = (residual - mean) @ basis + offset
        _set_projection(quantize.in_proj, (root @ basis).t(), offset - mean @ basis)
        _set_projection(quantize.out_proj, inverse @ basis, mean @ inverse)
        quantize.codebook.weight.copy_(entries)
        residual = residual - entries[nearest_entry(points, entries)] @ basis.t() - mean
    return float(residual.square().sum() / (weighed - weighed.mean(dim=0)).square().sum())


def _place(
    vectors: Tensor,
    quantize: DacVectorQuantize,
    rounds: int,
    rate_weight: float | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Place one codebook for vectors (N, D) of mean 0.

    Returns the directions (D, d) and the offset (d,) by which it sees them, and its entries (E, d).
    """
    _, axes = torch.linalg.eigh(vectors.t() @ vectors)
    d = quantize.codebook_dim
    size = quantize.codebook.num_embeddings
    if rate_weight is None:
        basis = axes[:, -d:]
        entries = cosine_kmeans(vectors @ basis, size, rounds, generator)
        return basis, torch.zeros_like(basis[0]), entries
    if d <= STEERING:
        raise ValueError(f"a rate weight needs a codebook_dim above {STEERING}, got {d}")
    basis = axes[:, STEERING - d :]
    points = vectors @ basis
    length = points.square().sum(dim=1).mean().sqrt()
    means, costs = constrained_kmeans(points, size, rounds, rate_weight, generator)
    offset = nn.functional.pad(length[None], (d - STEERING, STEERING - 1))
    return nn.functional.pad(basis, (0, STEERING)), offset, _steered(means, costs, length)


def _steered(points: Tensor, costs: Tensor, offset: Tensor) -> Tensor:
    """Return entries (E, d + 2) of points e (E, d) and their costs (E,).

    Their direction is nearest to (p, offset, 0) where |p - e|² + cost is least.
    """
    lengths = points.square().sum(dim=1)
    along = lengths + costs
    along = (along.mean() - along) / (2 * offset)
    lengths = lengths + along.square()
    across = (1.001 * lengths.max() - lengths).sqrt()
    return torch.cat([points, along[:, None], across[:, None]], dim=1)


def is_steered(quantize: DacVectorQuantize) -> bool:
    """Whether the last coordinates of a codebook only steer its search, and must be left as they
    are.
    """
    out = cast(Tensor, quantize.out_proj.weight)
    return not out[:, -STEERING:].any() and bool(quantize.codebook.weight[:, -STEERING:].any())


def sensitivity(gradients: Tensor, floor: float) -> Tensor:
    """Return what errors of latents cost, as a metric (D, D) for `initialize`.

    It is the empirical Fisher matrix of the latents, up to scale.

    Args:
        gradients: gᵀ g (D, D) of the losses' gradients g (N, D) at latents.
        floor: what directions that the decoder does not read count, as a share of the average one:
            they have no gradient.
    """
    size = len(gradients)
    fisher = size * gradients / gradients.trace().clamp(min=1e-30)
    return fisher + floor * torch.eye(size, device=gradients.device)


def cosine_kmeans(
    points: Tensor, entries: int, rounds: int, generator: torch.Generator | None = None
) -> Tensor:
    """Return means (E, d) of the points (N, d) that have the same direction.

    A cluster left empty starts again at a random point.
    """
    means = points[torch.randint(len(points), (entries,), generator=generator)]
    for _ in range(rounds):
        index = nearest_entry(points, means)
        counts = torch.bincount(index, minlength=entries)
        sums = torch.zeros_like(means).index_add_(0, index, points)
        means = sums / counts.clamp(min=1).unsqueeze(-1)
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
    """Return means (E, d) of the points (N, d) for which they are cheapest, and their costs (E,).

    A cost is that of the bits by how often an entry is chosen; one bit costs `rate_weight` times
    the variance of the points.
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
    """Return the index (N,) of the least |p - e|² + cost of means e (E, d), for points p (N, d)."""
    costs = costs + means.square().sum(dim=1)
    indices = [(costs - 2 * block @ means.t()).argmin(dim=1) for block in points.split(4096)]
    return torch.cat(indices)


def _unchanged(x: Tensor) -> Tensor:
    return x


def relative_commitment(
    quantizer: DacResidualVectorQuantizer,
    projected: Tensor,
    codes: Tensor,
    mean: Callable[[Tensor], Tensor] = _unchanged,
    steered: bool = False,
) -> Tensor:
    """Return the squared distance of latents from their entries, in units of the latents' variance.

    It is relative, because the plain distance is best reduced by shrinking the latents, and to the
    variance, because the mean square is best raised by an offset.

    Args:
        quantizer: the codebooks.
        projected: latents (B, K * d, T).
        codes: chosen for them (B, K, T).
        mean: averages moments over processes.
        steered: whether the last coordinates only steer the search: those do not count.

    Returns the sum over codebooks, a scalar.
    """
    total = projected.new_zeros(())
    for latents, index, quantize in _by_codebook(quantizer, projected, codes):
        entries = quantize.codebook.weight[index]
        if steered:
            latents, entries = latents[:, :-STEERING], entries[:, :-STEERING]
        distance = (latents - entries).square().mean()
        moments = torch.stack([latents.mean(dim=0), latents.square().mean(dim=0)])
        first, second = mean(moments)  # (d,) each
        total = total + distance / ((second - first.square()).mean() + 1e-6)
    return total


@torch.no_grad()
def search_some(
    quantizer: DacResidualVectorQuantizer, latents: Tensor, quantized: Tensor, share: float
) -> Tensor:
    """Return quantized latents (B, D, T) in which a share of the items is coded by beam search.

    A decoder that has only heard greedy sums plays the nearer ones no better. The number of
    codebooks of these items and the weight of their bits is drawn, and so is what codes cost: an
    entropy model is only trained afterwards.
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
    return quantized.index_copy(0, chosen, quantizer.look_up(codes)[0].to(quantized.dtype))


class MovingCodebooks:
    """Counts how often entries are chosen, and moves them.

    Args:
        quantizer: the codebooks, which are changed.
        decay: of the moving counts and means.
        follow: whether entries become moving means of the latents they were chosen for; if not,
            something else trains them.
        revive_below: entries chosen less than this share of the average go to random latents.
    """

    def __init__(
        self,
        quantizer: DacResidualVectorQuantizer,
        decay: float = 0.97,
        *,
        follow: bool = True,
        revive_below: float = 0.04,
    ):
        self.quantizer = quantizer
        self.decay = decay
        self.follow = follow
        self.revive_below = revive_below
        entries = [quantize.codebook.weight.detach() for quantize in _codebooks(quantizer)]
        codebooks = torch.stack(entries)  # (K, E, d)
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
        used = codes.shape[1]
        entries = self.counts.shape[1]
        counts = self.counts[:used]
        sums = self.sums[:used]
        weights = [quantize.codebook.weight for quantize in _codebooks(self.quantizer)[:used]]
        latents, index, _ = zip(*_by_codebook(self.quantizer, projected, codes), strict=True)
        z = torch.stack(latents)  # (K, N, d)
        average = len(index[0]) / entries
        # At first, as if every entry had been chosen as often as any.
        new = ~counts.any(dim=1)[:, None]
        counts.masked_fill_(new, average)
        sums.copy_(torch.where(new[:, None], torch.stack(weights) * average, sums))
        counts.lerp_(code_counts(codes, entries), 1 - self.decay)
        rows = torch.stack(index)[..., None].expand_as(z)
        sums.lerp_(torch.zeros_like(sums).scatter_add_(1, rows, z), 1 - self.decay)
        # A GPU is waited for here, once.
        book, entry = (counts < self.revive_below * average).nonzero(as_tuple=True)
        drawn = torch.randint(z.shape[1], (len(book),), generator=generator).to(z.device)
        chosen = z[book, drawn]
        counts[book, entry] = 0.25 * average
        sums[book, entry] = 0.25 * average * chosen
        for k, weight in enumerate(weights):
            if self.follow:
                weight.copy_(sums[k] / counts[k][:, None])
            elif len(book):
                weight[entry[book == k]] = chosen[book == k].to(weight.dtype)
        return len(book)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moving counts and sums."""
        return {"counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        self.counts.copy_(state["counts"])
        self.sums.copy_(state["sums"])


def code_counts(codes: Tensor, entries: int) -> Tensor:
    """Return how often each entry was chosen: codes (B, K, T) -> (K, E)."""
    counts = torch.zeros(codes.shape[1], entries, device=codes.device)
    flat = codes.transpose(0, 1).flatten(1)  # (K, B * T)
    return counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=counts.dtype))


def perplexity(counts: Tensor) -> Tensor:
    """Return how many entries, equally used, have the same entropy: counts (K, E) -> (K,).

    >>> perplexity(torch.tensor([[5.0, 5.0, 0.0], [9.0, 0.0, 0.0]]))
    tensor([2., 1.])
    """
    shares = counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.special.entr(shares).sum(dim=-1).exp()


def _roots(metric: Tensor) -> tuple[Tensor, Tensor]:
    """Return the square root of a symmetric positive definite matrix, and its inverse."""
    values, vectors = torch.linalg.eigh(metric.float())
    root = values.clamp(min=1e-12).sqrt()
    return (vectors * root) @ vectors.t(), (vectors / root) @ vectors.t()


def _set_projection(module: nn.Module, matrix: Tensor, bias: Tensor) -> None:
    """Give a pointwise convolution this matrix, through its weight norm if it has one."""
    weight = matrix.unsqueeze(-1)
    cast(Tensor, module.bias).copy_(bias)
    if parametrize.is_parametrized(module, "weight"):
        module.weight = weight.to(cast(Tensor, module.weight).device)
        give_directions(module)
    else:
        cast(Tensor, module.weight).copy_(weight)


def _codebooks(quantizer: DacResidualVectorQuantizer) -> list[DacVectorQuantize]:
    return cast("list[DacVectorQuantize]", list(quantizer.quantizers))


def _by_codebook(quantizer: DacResidualVectorQuantizer, projected: Tensor, codes: Tensor):
    """Give latents (N, d), indices (N,) and the module of each codebook in use."""
    books = _codebooks(quantizer)
    seen = projected.float().split(books[0].codebook_dim, dim=1)
    for latents, index, quantize in zip(seen, codes.unbind(dim=1), books, strict=False):
        yield latents.transpose(1, 2).flatten(0, 1), index.flatten(), quantize
