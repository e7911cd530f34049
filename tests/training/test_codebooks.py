import pytest
import torch
from tiny import tiny_model

from codecplus.training.codebooks import MovingCodebooks, initialize, relative_commitment, search_some, sensitivity


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
        quantizer, vectors, generator=generator.manual_seed(0), metric=sensitivity(7 * torch.eye(32), 0.05)
    )
    assert after == pytest.approx(before, rel=1e-3)
    assert float((quantize(quantizer, latents)[0] - expected).norm() / expected.norm()) < 0.02


def test_a_metric_lowers_what_errors_cost(quantizer, latents):
    vectors = latents.transpose(1, 2).flatten(0, 1)
    slopes = torch.randn(200, 32, generator=torch.Generator().manual_seed(1)) * torch.linspace(0, 3, 32)
    metric = sensitivity(slopes.t() @ slopes, 0.05)

    def cost():
        error = quantize(quantizer, latents)[0] - latents
        return float(torch.einsum("bit,ij,bjt->", error, metric, error))

    initialize(quantizer, vectors)
    plain = cost()
    initialize(quantizer, vectors, metric=metric)
    assert cost() < 0.95 * plain


def test_codebooks_placed_by_euclidean_distance_are_searched_by_it():
    quantizer = tiny_model(downsampling_ratios=[2, 2], codebook_size=128, codebook_dim=4, n_codebooks=2).quantizer
    latents = torch.randn(4, 32, 500, generator=torch.Generator().manual_seed(0))
    latents[:, 3:] *= 0.1
    left = {}
    for distance in ("cosine", "euclidean"):
        generator = torch.Generator().manual_seed(0)
        vectors = latents.transpose(1, 2).flatten(0, 1)
        left[distance] = initialize(quantizer, vectors, generator=generator, distance=distance)
    assert left["euclidean"] < 0.8 * left["cosine"]
    _, codes, projected, *_ = quantize(quantizer, latents)
    points, entries = projected[:, :4].transpose(1, 2), quantizer.quantizers[0].codebook.weight.detach()
    distances = torch.cdist(points, entries.expand(len(points), -1, -1))
    chosen = distances.gather(2, codes[:, 0, :, None])[..., 0]
    assert float(chosen.mean() / distances.amin(dim=2).mean()) < 1.02


def test_searched_items_have_other_codes_about_as_near_and_the_rest_stays(quantizer, latents):
    initialize(quantizer, latents.transpose(1, 2).flatten(0, 1), distance="euclidean")
    greedy = quantize(quantizer, latents)[0]
    assert torch.equal(search_some(quantizer, latents, greedy, 0.0), greedy)
    torch.manual_seed(5)  # one item, with all codebooks
    found = search_some(quantizer, latents, greedy, 0.5)
    assert [torch.equal(a, b) for a, b in zip(found, greedy, strict=True)].count(False) == 1
    assert float((found - latents).square().mean()) < 1.02 * float((greedy - latents).square().mean())


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
