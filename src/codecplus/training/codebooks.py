"""Codebooks in training: k-means places them, then moving means of latents train their entries.

Entries that are hardly used move to other latents. The module knows latents and codes, nothing of
audio or losses.

Letters: N vectors, D latent width, d width of the search, K codebooks, E entries of a codebook.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from codecplus.encoding.beam_search import BeamSearch
from codecplus.encoding.refinement import cheapest_entry
from codecplus.modeling_dac.layers_dac import (
    DacResidualVectorQuantizer,
    DacVectorQuantize,
    nearest_entry,
)

STEERING = 2  # coordinates that only steer the search, in a codebook placed with a rate weight
_BITS_DEVIATION = 1.5  # about the standard deviation of bits per code under an entropy model
_REVIVED_COUNT = 0.25  # count of a moved entry, as a share of the average
_BLOCK = 4096  # points whose distances to all entries are held at a time


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

    Each codebook searches in d directions: those in which the residual of the codebooks before it
    varies most.

    A DAC searches the entry of the nearest direction, and regards neither lengths nor how rare a
    code is. With a `rate_weight` λ it finds the entry of least cost instead: squared error plus λ
    times the variance of the latents for each bit of the code (entropy-constrained vector
    quantization, Chou, Lookabaugh and Gray 1989). λ = 0 gives the nearest point.

    Any DAC can search such codebooks, since two of their d coordinates steer its search (Neyshabur
    and Srebro 2015 turn inner products into angles in this way). Latents p become (p, b, 0) and
    entries e become (e, g, w). g is chosen so that b g is minus half the entry's cost at the
    origin, w so that all entries are equally long. The projection out ignores both coordinates.

    Args:
        quantizer: the codebooks, which are changed.
        latents: encoder output as vectors (N, D).
        rounds: iterations of k-means.
        generator: draws the first entries.
        metric: the cost of errors, a symmetric and positive definite matrix M (D, D): an error e
            costs eᵀ M e. Variance and energy are measured in it too, so that codebooks are fine
            where errors are expensive. By default all directions cost the same.
        rate_weight: λ; by default entries are searched by direction.

    Returns:
        The share of energy that stays uncoded.

    Raises:
        ValueError: if d coordinates leave none beside the two that steer.
    """
    if metric is None:
        metric = torch.eye(latents.shape[1])
    root, inverse = _roots(metric)
    weighed = latents.float() @ root  # plain distances between these are costs
    residual = weighed
    for quantize in _codebooks(quantizer):
        mean = residual.mean(dim=0)
        basis, offset, entries = _place(residual - mean, quantize, rounds, rate_weight, generator)
        points = (residual - mean) @ basis + offset
        _set_projection(quantize.in_proj, (root @ basis).t(), offset - mean @ basis)
        _set_projection(quantize.out_proj, inverse @ basis, mean @ inverse)
        quantize.codebook.weight.copy_(entries)
        residual = residual - entries[nearest_entry(points, entries)] @ basis.t() - mean
    energy = (weighed - weighed.mean(dim=0)).square().sum()
    return float(residual.square().sum() / energy)


def _place(
    vectors: Tensor,
    quantize: DacVectorQuantize,
    rounds: int,
    rate_weight: float | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Place one codebook for vectors (N, D) of mean 0.

    Returns the directions (D, d) and the offset (d,) of its projection, and its entries (E, d).
    """
    _, axes = torch.linalg.eigh(vectors.t() @ vectors)
    d = quantize.codebook_dim
    size = quantize.codebook.num_embeddings
    if rate_weight is None:
        basis = _widened(axes[:, -d:], d)
        entries = cosine_kmeans(vectors @ basis, size, rounds, generator)
        return basis, torch.zeros_like(basis[0]), entries
    if d <= STEERING:
        raise ValueError(f"a rate weight needs a codebook_dim above {STEERING}, got {d}")
    basis = _widened(axes[:, STEERING - d :], d - STEERING)
    points = vectors @ basis
    length = points.square().sum(dim=1).mean().sqrt()
    means, costs = constrained_kmeans(points, size, rounds, rate_weight, generator)
    offset = nn.functional.pad(length[None], (d - STEERING, STEERING - 1))
    return nn.functional.pad(basis, (0, STEERING)), offset, _steered(means, costs, length)


def _widened(basis: Tensor, d: int) -> Tensor:
    """Return directions (D, d), zeros behind those there are: latents may be narrower than d."""
    return nn.functional.pad(basis, (0, d - basis.shape[1]))


@torch.no_grad()
def steer(quantizer: DacResidualVectorQuantizer) -> None:
    """Let codebooks of rate weight 0 find the nearest point again, after their entries moved."""
    for quantize in _codebooks(quantizer):
        entries = quantize.codebook.weight
        points = entries[:, :-STEERING]
        length = cast(Tensor, quantize.in_proj.bias)[-STEERING]
        entries.copy_(_steered(points, torch.zeros_like(points[:, 0]), length))


def _steered(points: Tensor, costs: Tensor, offset: Tensor) -> Tensor:
    """Return entries (E, d + 2) for points e (E, d) and their costs (E,).

    The entry of the direction nearest to (p, offset, 0) is the one of least |p - e|² + cost.
    """
    squares = points.square().sum(dim=1)
    cost_at_origin = squares + costs
    along = (cost_at_origin.mean() - cost_at_origin) / (2 * offset)
    squares = squares + along.square()
    across = (1.001 * squares.max() - squares).sqrt()
    return torch.cat([points, along[:, None], across[:, None]], dim=1)


def is_steered(quantize: DacVectorQuantize) -> bool:
    """Return whether the last coordinates of a codebook only steer its search.

    Training must leave those as they are.
    """
    out = cast(Tensor, quantize.out_proj.weight)
    if out[:, -STEERING:].any():
        return False
    return bool(quantize.codebook.weight[:, -STEERING:].any())


def sensitivity(gradients: Tensor, floor: float) -> Tensor:
    """Return the cost of errors in latents, as a metric (D, D) for `initialize`.

    It is the empirical Fisher matrix of the latents, up to scale.

    Args:
        gradients: gᵀ g (D, D) of the losses' gradients g (N, D) at latents.
        floor: added to all directions, as a share of the average cost. Directions that the decoder
            does not read have no gradient, and cost this much.
    """
    size = len(gradients)
    fisher = size * gradients / gradients.trace().clamp(min=1e-30)
    return fisher + floor * torch.eye(size, device=gradients.device)


def cosine_kmeans(
    points: Tensor, entries: int, rounds: int, generator: torch.Generator | None = None
) -> Tensor:
    """Return the means (E, d) of clusters of points (N, d), which are clustered by direction.

    An empty cluster starts again at a random point.
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
    """Return the means (E, d) of clusters of points (N, d), and the costs (E,) of their bits.

    A point joins the cluster of least squared error plus cost. The bits of a cluster follow from
    its share of the points; one bit costs `rate_weight` times the variance of the points.
    """
    means = points[torch.randint(len(points), (entries,), generator=generator)]
    price = rate_weight * points.var(dim=0).sum()  # of one bit
    bits = torch.zeros(entries)
    for _ in range(rounds):
        blocks = [cheapest_entry(block, means, bits, price) for block in points.split(_BLOCK)]
        index = torch.cat(blocks)
        counts = torch.bincount(index, minlength=entries)
        sums = torch.zeros_like(means).index_add_(0, index, points)
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
        shares = (counts + 0.5) / (counts + 0.5).sum()
        bits = -shares.log2()
    return means, price * bits


def _same(x: Tensor) -> Tensor:
    return x


def relative_commitment(
    quantizer: DacResidualVectorQuantizer,
    projected: Tensor,
    codes: Tensor,
    mean: Callable[[Tensor], Tensor] = _same,
    steered: bool = False,
) -> Tensor:
    """Return the squared distance of latents from their entries, in units of the latents' variance.

    Units matter: an encoder lowers a plain distance by shrinking the latents, and one relative to
    their mean square by adding an offset.

    Args:
        quantizer: the codebooks.
        projected: latents (B, K * d, T) in the coordinates of the search.
        codes: the codes (B, K, T) of these latents.
        mean: averages moments over processes.
        steered: whether the last coordinates only steer the search; those are left out.

    Returns:
        The sum over codebooks, a scalar.
    """
    total = projected.new_zeros(())
    for latents, index, quantize in _by_codebook(quantizer, projected, codes):
        entries = quantize.codebook.weight[index]
        if steered:
            latents = latents[:, :-STEERING]
            entries = entries[:, :-STEERING]
        distance = (latents - entries).square().mean()
        moments = torch.stack([latents.mean(dim=0), latents.square().mean(dim=0)])
        first, second = mean(moments)  # (d,) each
        variance = (second - first.square()).mean()
        total = total + distance / (variance + 1e-6)
    return total


@torch.no_grad()
def search_some(
    quantizer: DacResidualVectorQuantizer, latents: Tensor, quantized: Tensor, share: float
) -> Tensor:
    """Code a share of the items by beam search, and return all quantized latents (B, D, T).

    Beam search finds sums of entries that lie nearer, but a decoder plays them better only if it
    was trained on such sums. The number of codebooks, the weight of bits and the bits of each code
    are drawn at random, because an entropy model is trained only afterwards.

    Args:
        quantizer: the codebooks.
        latents: encoder output (B, D, T).
        quantized: its quantized latents (B, D, T), by the quantizer's own search.
        share: the share of items to search, on average.
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
        noise = torch.randn(len(codes), 1, size).to(codes.device)
        return math.log2(size) + _BITS_DEVIATION * noise

    search = BeamSearch(quantizer, count, 4, rate_weight, costs)
    searched = quantizer.look_up(search(latents[chosen]))[0]
    return quantized.index_copy(0, chosen, searched.to(quantized.dtype))


class MovingCodebooks:
    """Counts how often entries are chosen, and moves them.

    Args:
        quantizer: the codebooks, which are changed.
        decay: decay per step of the moving counts and means.
        follow: whether entries become the moving means of their latents; if not, an optimizer
            trains them.
        revive_below: an entry moves to a random latent if its count is below this share of the
            average.
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
        """Count the codes (B, K, T) of a batch, and move entries towards its latents.

        Args:
            projected: the latents (B, K * d, T) in the coordinates of the search.
            codes: the codes of these latents.
            generator: draws random latents; it lives on the CPU.

        Returns:
            How many entries were moved to random latents.
        """
        num_codebooks = codes.shape[1]
        quantizers = _codebooks(self.quantizer)[:num_codebooks]
        codebooks = [quantize.codebook.weight for quantize in quantizers]  # (E, d) each
        latents, index, _ = zip(*_by_codebook(self.quantizer, projected, codes), strict=True)
        points = torch.stack(latents)  # (K, N, d)
        self._count(codes, points, torch.stack(index), codebooks)
        counts = self.counts[:num_codebooks]
        sums = self.sums[:num_codebooks]
        average = points.shape[1] / counts.shape[1]  # latents per entry
        # `nonzero` waits for a GPU, once a step.
        book, entry = (counts < self.revive_below * average).nonzero(as_tuple=True)
        drawn = torch.randint(points.shape[1], (len(book),), generator=generator)
        replacements = points[book, drawn.to(points.device)]
        counts[book, entry] = _REVIVED_COUNT * average
        sums[book, entry] = _REVIVED_COUNT * average * replacements
        for k, codebook in enumerate(codebooks):
            if self.follow:
                codebook.copy_(sums[k] / counts[k][:, None])
            elif len(book):
                codebook[entry[book == k]] = replacements[book == k].to(codebook.dtype)
        return len(book)

    def _count(self, codes: Tensor, points: Tensor, index: Tensor, codebooks: list[Tensor]) -> None:
        """Update the moving counts and sums by the codes (B, K, T) of points (K, N, d).

        `index` (K, N) are the same codes, by codebook.
        """
        num_codebooks, num_points, _ = points.shape
        num_entries = self.counts.shape[1]
        counts = self.counts[:num_codebooks]
        sums = self.sums[:num_codebooks]
        # A codebook begins as if all its entries had been chosen equally often.
        average = num_points / num_entries
        new = ~counts.any(dim=1)[:, None]
        counts.masked_fill_(new, average)
        sums.copy_(torch.where(new[:, None], torch.stack(codebooks) * average, sums))
        counts.lerp_(code_counts(codes, num_entries), 1 - self.decay)
        entry_of_point = index[..., None].expand_as(points)
        batch_sums = torch.zeros_like(sums).scatter_add_(1, entry_of_point, points)
        sums.lerp_(batch_sums, 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moving counts and sums."""
        return {"counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        self.counts.copy_(state["counts"])
        self.sums.copy_(state["sums"])


def code_counts(codes: Tensor, entries: int) -> Tensor:
    """Count how often each entry was chosen: codes (B, K, T) -> counts (K, E)."""
    counts = torch.zeros(codes.shape[1], entries, device=codes.device)
    flat = codes.transpose(0, 1).flatten(1)  # (K, B * T)
    return counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=counts.dtype))


def perplexity(counts: Tensor) -> Tensor:
    """Return the perplexity of counts (K, E) of each codebook: 2 to the power of its entropy, (K,).

    It is the number of entries that, used equally often, would have that entropy.

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
    """Set the matrix and bias of a pointwise convolution, through its weight norm if it has one."""
    weight = matrix.unsqueeze(-1)
    cast(Tensor, module.bias).copy_(bias)
    if parametrize.is_parametrized(module, "weight"):
        module.weight = weight.to(cast(Tensor, module.weight).device)
    else:
        cast(Tensor, module.weight).copy_(weight)


def _codebooks(quantizer: DacResidualVectorQuantizer) -> list[DacVectorQuantize]:
    return cast("list[DacVectorQuantize]", list(quantizer.quantizers))


def _by_codebook(quantizer: DacResidualVectorQuantizer, projected: Tensor, codes: Tensor):
    """Yield latents (N, d), codes (N,) and the module of each codebook in use."""
    books = _codebooks(quantizer)
    by_codebook = projected.float().split(books[0].codebook_dim, dim=1)
    for latents, index, quantize in zip(by_codebook, codes.unbind(dim=1), books, strict=False):
        yield latents.transpose(1, 2).flatten(0, 1), index.flatten(), quantize
