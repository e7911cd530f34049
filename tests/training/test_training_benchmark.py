"""The plain side of `benchmarks/training.py` is the same net, and a recipe trains it."""

import json
import math

import pytest
import torch
from benchmark_modules import load_benchmark
from tiny import GEOMETRIES, tiny_model
from training_recipes import CONFIG, PHASED, RATE

from codecplus.training.initialization import new_model
from codecplus.training.loop import Trainer
from codecplus.training.recipe import Recipe

benchmark = load_benchmark("training")


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("causal", [False, True])
def test_plain_layers_compute_what_ours_do(geometry, causal):
    model = tiny_model(causal, **GEOMETRIES[geometry])
    plain = benchmark.plain_model(model)
    hop = math.prod(model.config.downsampling_ratios)
    audio = torch.randn(2, 1, 12 * hop)
    with torch.no_grad():
        latents = model.encoder(audio)
        torch.testing.assert_close(plain.encoder(audio), latents, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            plain.decoder(latents), model.decoder(latents), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("kind", ["dac", "causal_dac"])
def test_a_recipe_of_phases_trains_the_plain_side(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "model_type": kind}))
    recipe = Recipe.from_dict(
        {
            **PHASED,
            "preset": str(tmp_path / "config.json"),
            "schedule": {"steps": 2},
            "codebooks": {"learning": "means", "placed": False},
        }
    )
    plain = benchmark.plain_model(new_model(recipe))
    noise = benchmark.Noise(recipe.batch, recipe.crop_samples(plain.config), RATE)
    trainer = Trainer(plain, noise, recipe)
    for _ in range(2):
        report = trainer.step()
        assert not report["skipped"]
        assert report["gradient_norm"] > 0
