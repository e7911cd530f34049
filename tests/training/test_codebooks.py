import pytest
import torch
from tiny import tiny_model

from codecplus.training.codebooks import (
    MovingCodebooks,
    code_counts,
    initialize,
    perplexity,
    relative_commitment,
    search_some,
    sensitivity,
    steer,
)


@pytest.fixture
def quantizer():
    return tiny_model(downsampling_ratios=[2, 2], codebook_size=32, n_codebooks=3).quantizer


@pytest.fixture
def latents():  # (B, D, T) of low rank, as encoders give them
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(12, 32, generator=generator)
    return (torch.randn(4, 250, 12, generator=generator) @ basis).transpose(1, 2) + 3


def quantize(quantizer, latents):
    with torch.no_grad():
        return quantizer(latents)


def test_placed_codebooks_code_most_of_the_energy(quantizer, latents):
    vectors = latents.transpose(1, 2).flatten(0, 1)
    left = initialize(quantizer, vectors)
    quantized = quantize(quantizer, latents)[0]
    assert left < 0.4
    energy = (latents - latents.mean(dim=(0, 2), keepdim=True)).square().mean()
    assert float((latents - quantized).square().mean() / energy) == pytest.approx(left, rel=1e-3)


def test_directions_that_cost_nothing_get_no_bits(quantizer):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 32, 400, generator=generator) + 2
    latents[:, 16:] *= 5  # loud, and not read
    vectors = latents.transpose(1, 2).flatten(0, 1)
    read = torch.zeros(32, 32)
    read[:16, :16] = torch.eye(16)

    def errors():
        error = (quantize(quantizer, latents)[0] - latents).square().mean(dim=(0, 2))
        return float(error[:16].mean()), float(error[16:].mean())

    initialize(quantizer, vectors)
    plain = errors()
    left = initialize(quantizer, vectors, metric=sensitivity(read, 1e-6))
    found = errors()
    assert found[0] < 0.8 < 0.95 < plain[0]
    assert found[1] > 24.5  # their variance is 25
    assert left == pytest.approx(found[0], rel=0.05)
    for quantize_one in quantizer.quantizers:
        weight = quantize_one.in_proj.weight[..., 0].detach()
        assert float(weight[:, 16:].norm() / weight.norm()) < 0.01


def test_a_metric_that_tells_no_directions_apart_changes_nothing(quantizer, latents):
    vectors, generator = latents.transpose(1, 2).flatten(0, 1), torch.Generator()
    before = initialize(quantizer, vectors, generator=generator.manual_seed(0))
    expected = quantize(quantizer, latents)[0]
    after = initialize(
        quantizer,
        vectors,
        generator=generator.manual_seed(0),
        metric=sensitivity(7 * torch.eye(32), 0.05),
    )
    assert after == pytest.approx(before, rel=1e-3)
    assert float((quantize(quantizer, latents)[0] - expected).norm() / expected.norm()) < 0.02


def test_a_metric_lowers_what_errors_cost(quantizer, latents):
    vectors = latents.transpose(1, 2).flatten(0, 1)
    slopes = torch.randn(200, 32, generator=torch.Generator().manual_seed(1)) * torch.linspace(
        0, 3, 32
    )
    metric = sensitivity(slopes.t() @ slopes, 0.05)

    def cost():
        error = quantize(quantizer, latents)[0] - latents
        return float(torch.einsum("bit,ij,bjt->", error, metric, error))

    initialize(quantizer, vectors)
    plain = cost()
    initialize(quantizer, vectors, metric=metric)
    assert cost() < 0.95 * plain


@pytest.fixture
def skewed():
    """A quantizer, and latents (B, D, T) that lie in few directions, some of them often."""
    generator = torch.Generator().manual_seed(0)
    quantizer = tiny_model(
        downsampling_ratios=[2, 2], codebook_size=128, codebook_dim=5, n_codebooks=2
    ).quantizer
    latents = torch.randn(4, 32, 500, generator=generator)
    latents[:, 3:] *= 0.1
    latents[..., ::3] *= 0.1
    return quantizer, latents


def costs_of_codes(quantizer, latents, codes):
    """Squared errors (K, B, T) of the first codebooks' sums, and bits per frame by how often codes
    are chosen.
    """
    errors = [(latents - quantizer.from_codes(codes[:, :k])[0]).square().sum(dim=1) for k in (1, 2)]
    counts = code_counts(codes, quantizer.quantizers[0].codebook.num_embeddings)
    return torch.stack(errors).detach(), float(perplexity(counts).log2().sum())


def test_codebooks_placed_without_regard_to_bits_are_searched_by_distance(skewed):
    quantizer, latents = skewed
    vectors = latents.transpose(1, 2).flatten(0, 1)
    by_direction = initialize(quantizer, vectors, generator=torch.Generator().manual_seed(0))
    by_distance = initialize(
        quantizer, vectors, generator=torch.Generator().manual_seed(0), rate_weight=0.0
    )
    assert by_distance < 0.8 * by_direction
    assert share_of_nearest(quantizer, latents) > 0.999


def test_steered_codebooks_find_entries_that_moved(skewed):
    quantizer, latents = skewed
    initialize(quantizer, latents.transpose(1, 2).flatten(0, 1), rate_weight=0.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for book in quantizer.quantizers:
            moved = 0.3 * torch.randn(128, 3, generator=generator)
            book.codebook.weight[:, :3] += moved
    assert share_of_nearest(quantizer, latents) < 0.95
    steer(quantizer)
    assert share_of_nearest(quantizer, latents) > 0.999


def test_latents_narrower_than_codebooks_are_coded(skewed):
    _, latents = skewed
    narrow = tiny_model(
        downsampling_ratios=[2, 2], hidden_size=2, codebook_dim=5, n_codebooks=2
    ).quantizer
    few = latents[:, :2]
    for weight in (None, 0.0):
        left = initialize(narrow, few.transpose(1, 2).flatten(0, 1), rate_weight=weight)
        error = (quantize(narrow, few)[0] - few).square().mean() / few.var()
        assert float(error) == pytest.approx(left, rel=0.05)
        assert left < 0.15


def share_of_nearest(quantizer, latents):
    """How many codes name the nearest entry; the last two of five coordinates steer the search."""
    _, codes, projected, *_ = quantize(quantizer, latents)
    shares = []
    for k, book in enumerate(quantizer.quantizers):
        points = projected[:, 5 * k : 5 * k + 3].transpose(1, 2)
        entries = book.codebook.weight.detach()[:, :3]
        nearest = torch.cdist(points, entries.expand(len(points), -1, -1)).argmin(dim=2)
        shares.append(float((codes[:, k] == nearest).float().mean()))
    return min(shares)


def test_a_rate_weight_saves_more_bits_than_it_costs_in_error(skewed):
    quantizer, latents = skewed
    vectors, found = latents.transpose(1, 2).flatten(0, 1), []
    for weight in (0.0, 0.05):
        initialize(
            quantizer, vectors, generator=torch.Generator().manual_seed(0), rate_weight=weight
        )
        codes = quantize(quantizer, latents)[1]
        errors, bits = costs_of_codes(quantizer, latents, codes)
        found.append((float(errors[-1].mean()), bits, codes))
    (error, bits, codes), (constrained_error, constrained_bits, constrained) = found
    assert constrained_bits < bits - 1
    # Three coordinates matter: by rate–distortion theory a bit less for them raises the error by
    # the factor 2^(2/3).
    assert constrained_error < error * 2 ** (2 / 3 * (bits - constrained_bits))
    assert not torch.equal(codes, constrained)


def test_any_implementation_of_dac_finds_the_same_codes(skewed):
    quantizer, latents = skewed
    initialize(quantizer, latents.transpose(1, 2).flatten(0, 1), rate_weight=0.03)
    residual, codes = latents, []
    for book in quantizer.quantizers:  # as the original implementation writes it
        points = torch.nn.functional.normalize(book.in_proj(residual).transpose(1, 2).flatten(0, 1))
        entries = torch.nn.functional.normalize(book.codebook.weight)
        distance = (
            points.square().sum(1, keepdim=True)
            - 2 * points @ entries.t()
            + entries.square().sum(1)
        )
        codes.append((-distance).max(1).indices.view(len(latents), -1))
        residual = residual - book.out_proj(book.codebook(codes[-1]).transpose(1, 2))
    assert (
        float((torch.stack(codes, dim=1) == quantize(quantizer, latents)[1]).float().mean()) > 0.999
    )


def test_codebooks_too_narrow_to_steer_are_refused(quantizer, latents):
    narrow = tiny_model(downsampling_ratios=[2, 2], codebook_size=32, codebook_dim=2).quantizer
    with pytest.raises(ValueError, match="codebook_dim"):
        initialize(narrow, latents.transpose(1, 2).flatten(0, 1), rate_weight=0.0)


def test_searched_items_get_other_codes_of_similar_error_and_other_items_stay(quantizer, latents):
    initialize(quantizer, latents.transpose(1, 2).flatten(0, 1), rate_weight=0.01)
    greedy = quantize(quantizer, latents)[0]
    assert torch.equal(search_some(quantizer, latents, greedy, 0.0), greedy)
    torch.manual_seed(5)  # one item, with all codebooks
    found = search_some(quantizer, latents, greedy, 0.5)
    assert [torch.equal(a, b) for a, b in zip(found, greedy, strict=True)].count(False) == 1
    assert float((found - latents).square().mean()) < 1.02 * float(
        (greedy - latents).square().mean()
    )


def test_each_codebook_lowers_the_error(quantizer, latents):
    initialize(quantizer, latents.transpose(1, 2).flatten(0, 1))
    errors = []
    with torch.no_grad():
        for n in (1, 2, 3):
            errors.append(float((quantizer(latents, n)[0] - latents).square().mean()))
    assert errors == sorted(errors, reverse=True)


def test_codebooks_follow_latents_that_move(quantizer, latents):
    initialize(quantizer, latents.transpose(1, 2).flatten(0, 1))
    moved = latents * 1.5
    moving = MovingCodebooks(quantizer, decay=0.5)

    def error():
        return float((quantize(quantizer, moved)[0] - moved).square().mean())

    before = error()
    for _ in range(20):
        _, codes, projected, _, _ = quantize(quantizer, moved)
        moving.update(projected, codes)
    assert error() < 0.8 * before


def test_unused_entries_are_moved_to_latents(quantizer, latents):
    initialize(quantizer, latents.transpose(1, 2).flatten(0, 1))
    codebook = quantizer.quantizers[0].codebook.weight
    with torch.no_grad():
        codebook[5] = -1e3 * codebook[6]
    moving = MovingCodebooks(quantizer, decay=0.1)
    _, codes, projected, _, _ = quantize(quantizer, latents)
    codes[codes == 5] = 6
    # At first every entry counts as used like any other, so that one batch moves none.
    assert moving.update(projected, codes) == 0
    assert moving.update(projected, codes) >= 1
    assert codebook.abs().max() < 100


def test_commitment_does_not_depend_on_scale_or_offset(quantizer, latents):
    initialize(quantizer, latents.transpose(1, 2).flatten(0, 1))
    _, codes, projected, _, _ = quantize(quantizer, latents)
    with torch.no_grad():
        plain = relative_commitment(quantizer, projected, codes)
        for part in quantizer.quantizers:
            part.codebook.weight.mul_(7).add_(2)
        changed = relative_commitment(quantizer, projected * 7 + 2, codes)
    assert float(changed) == pytest.approx(float(plain), rel=1e-3)
