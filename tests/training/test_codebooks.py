import pytest
import torch
from tiny import tiny_model

from codecplus.training.codebooks import MovingCodebooks, initialize, relative_commitment


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
    assert float((latents - quantized).square().mean() / latents.var()) == pytest.approx(left, rel=1e-3)


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
