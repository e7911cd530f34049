"""Losses that leave levels to band gains: what they hear, and what they do not."""

import pytest
import torch
from tiny import GEOMETRIES, KINDS, tiny_model
from training_recipes import PAPER

from codecplus.training.levels import Levels, default_bands
from codecplus.training.recipe import Recipe

MODELS = {
    "plain": lambda: tiny_model(**GEOMETRIES["44khz"]),
    "causal": lambda: tiny_model(True, **GEOMETRIES["16khz"]),
    "with gains": lambda: tiny_model(True, **KINDS["gains", True]),
}


def noise(seed, samples=9000):
    return 0.1 * torch.randn(2, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", MODELS)
def test_levels_of_decoded_audio_do_not_matter(kind):
    levels = Levels(MODELS[kind]().config)
    estimate, reference = noise(0), noise(1)
    heard = levels(estimate, reference)
    assert heard.shape == estimate.shape
    quieter = levels(0.5 * estimate, reference)
    assert (quieter - heard).square().mean() < 0.01 * heard.square().mean()
    powers = [levels.geometry.powers(x[:, None, :7680]) for x in (heard, reference)]
    assert abs(float((powers[0] - powers[1])[..., 4:].mean())) < 0.5
    far = levels(0.1 * estimate, reference)  # 20 dB
    assert abs(float((levels.geometry.powers(far[:, None, :7680]) - powers[1])[..., 4:].mean())) < 1


def test_a_gradient_behind_the_filter_asks_for_structure_alone():
    """It hardly asks for another level, as far as it is along the decoded audio itself."""
    levels = Levels(MODELS["causal"]().config)
    reference = noise(1)
    estimate = (0.3 * reference + 0.3 * noise(0)).requires_grad_()

    def share_along(heard):
        gradient = torch.autograd.grad((heard - reference).square().sum(), estimate)[0]
        along = (gradient * estimate).sum() / (gradient.norm() * estimate.norm())
        return float(along.detach().abs())

    assert share_along(levels(estimate, reference)) < 0.2 * share_along(1.0 * estimate)


def test_bands_of_a_codec_without_gains_are_as_many_as_its_hop_allows():
    config = MODELS["plain"]().config
    assert 1 <= default_bands(config) <= 36
    assert Levels(config).geometry.bands == default_bands(config)
    with_gains = MODELS["with gains"]().config
    assert Levels(with_gains).geometry.bands == with_gains.gain_bands


def test_a_recipe_says_that_losses_are_levelled():
    assert not Recipe.from_dict(PAPER).objective.levelled
    fields = {**PAPER, "objective": {**PAPER["objective"], "levelled": True}}
    assert Recipe.from_dict(fields).objective.levelled
