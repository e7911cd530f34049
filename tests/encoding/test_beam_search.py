import pytest
import torch
from tiny import tiny_model

from codecplus.encoding.beam_search import BeamSearch
from codecplus.training.codebooks import initialize


@pytest.fixture(scope="module")
def quantizer():
    quantizer = tiny_model(hidden_size=32, downsampling_ratios=[2, 2]).quantizer
    initialize(
        quantizer,
        torch.randn(4000, 32, generator=torch.Generator().manual_seed(0)),
        rate_weight=0.0,
    )
    return quantizer


def costs(k, before, codes):
    """The first code is for free, the last costs most."""
    return torch.linspace(0, 12, 64).expand(*codes.shape[:2], 64)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 301])
def test_beam_search_is_never_worse_than_the_greedy_search_and_weighs_bits(quantizer, frames):
    latents = torch.randn(2, 32, frames, generator=torch.Generator().manual_seed(1))

    def error_and_bits(codes):
        off = (latents - quantizer.from_codes(codes)[0]).transpose(1, 2) @ searches[0].metric
        return float(off.square().sum()), float(12 / 63 * codes.sum())

    searches = [BeamSearch(quantizer, 4, 8, weight, costs) for weight in (0.0, 0.05)]
    greedy, *found = [
        error_and_bits(codes) for codes in (quantizer(latents)[1], *(s(latents) for s in searches))
    ]
    assert found[0][0] <= greedy[0]
    assert found[1][1] < found[0][1]
    if frames > 2:
        assert found[0][0] < greedy[0]
