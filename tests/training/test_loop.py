import json
import math

import numpy as np
import pytest
import soundfile
import torch
from tiny import tiny_model

from codecplus import CausalDacModel
from codecplus.configuration import load_preset
from codecplus.training.data import RandomCrops, find_recordings
from codecplus.training.loop import Trainer, initialize_weights, train
from codecplus.training.optimizer import Muon, orthogonalized, split_parameters
from codecplus.training.recipe import Objective, Recipe, Schedule

RATE = 8000
RECIPE = Recipe(
    preset="tiny",
    schedule=Schedule(steps=12, warmup=2, quantize_at=3, freeze_at=6, decay_at=8),
    objective=Objective(mel_bands={"64": 8}, stft_windows=[64]),
    batch=2,
    frames=9,
    lr=1e-2,
    placement_vectors=200,
    dtype="float32",
)


@pytest.fixture
def folder(tmp_path):
    time = np.arange(2 * RATE) / RATE
    tone = 0.3 * np.sin(2 * np.pi * 500 * time)
    soundfile.write(tmp_path / "tone.wav", tone.astype(np.float32), RATE)
    return tmp_path


def stream(folder, model, recipe, seed=0):
    samples = recipe.frames * model.config.hop_length
    return RandomCrops(find_recordings(folder), RATE, samples, recipe.batch, seed=seed)


def trainer(folder, seed=0, recipe=RECIPE):
    model = tiny_model(
        True, seed, encoder_hidden_size=8, decoder_hidden_size=32, downsampling_ratios=[4, 4], sampling_rate=RATE
    )
    return Trainer(model, stream(folder, model, recipe, seed), recipe)


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("stop", [2, 4, 7])
def test_interrupted_equals_uninterrupted(folder, tmp_path, stop):
    torch.manual_seed(0)
    whole = trainer(folder)
    for _ in range(10):
        if whole.progress["step"] == stop:
            whole.save(tmp_path / "state.pt")
        whole.step()
    torch.manual_seed(1)
    parts = trainer(folder, seed=1)
    parts.resume(tmp_path / "state.pt")
    for _ in range(10 - stop):
        parts.step()
    assert torch.equal(weights(whole), weights(parts))
    for a, b in zip(whole.average.parameters(), parts.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_train_writes_what_loads_and_goes_on_where_it_stood(folder, tmp_path):
    def run(output, steps):
        torch.manual_seed(0)
        schedule = Schedule(**{**RECIPE.schedule.__dict__, "steps": 6, "decay_at": 6})
        recipe = Recipe(**{**RECIPE.__dict__, "schedule": schedule})
        model = trainer(folder).model
        if steps < 6:  # interrupted
            stopped = Trainer(model, stream(folder, model, recipe), recipe)
            for _ in range(steps):
                stopped.step()
            output.mkdir()
            stopped.save(output / "state.pt")
            model = trainer(folder, seed=3).model
        return train(recipe, folder, output, model=model)

    whole, parts = run(tmp_path / "whole", 6), run(tmp_path / "parts", 4)
    loaded = CausalDacModel.from_pretrained(tmp_path / "whole").state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, loaded[name])
        assert torch.equal(tensor, parts.state_dict()[name])


def test_a_new_model_keeps_the_level_and_begins_quiet():
    model = tiny_model(True, encoder_hidden_size=16, decoder_hidden_size=64, downsampling_ratios=[4, 4])
    initialize_weights(model)
    audio = 0.1 * torch.randn(1, 1, 16 * 50, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = model.encoder(audio)
        decoded = model.decoder(latents)
    assert 0.03 < float(latents.std()) < 0.5
    assert float(decoded.abs().max()) < 0.1


def test_training_lowers_the_loss(folder):
    torch.manual_seed(0)
    schedule = Schedule(steps=60, warmup=2, quantize_at=1000, freeze_at=1000, decay_at=50)
    run = trainer(folder, recipe=Recipe(**{**RECIPE.__dict__, "schedule": schedule}))
    initialize_weights(run.model)
    reports = [run.step() for _ in range(60)]
    for name in ("mel", "waveform"):
        first, last = (np.mean([r[name] for r in part]) for part in (reports[:10], reports[-10:]))
        assert last < 0.9 * first


def test_encoder_and_codebooks_rest_once_frozen(folder):
    torch.manual_seed(0)
    run = trainer(folder)
    for _ in range(7):
        run.step()
    resting = {k: v.clone() for k, v in run.model.state_dict().items() if not k.startswith("decoder.")}
    decoder = run.model.decoder.conv1.weight.detach().clone()
    run.step()
    assert all(torch.equal(v, run.model.state_dict()[k]) for k, v in resting.items())
    assert not torch.equal(decoder, run.model.decoder.conv1.weight)


def test_latents_are_coded_from_the_step_the_recipe_names(folder):
    torch.manual_seed(0)
    run = trainer(folder)
    reports = [run.step() for _ in range(8)]
    assert ["revived" in report for report in reports] == [False] * 3 + [True] * 3 + [False] * 2


def test_a_loss_that_is_not_finite_stops_the_run(folder):
    run = trainer(folder)
    with torch.no_grad():
        run.model.decoder.conv2.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="not finite at step 0"):
        run.step()


def test_the_rate_rises_holds_and_falls_to_zero():
    schedule = Schedule(steps=100, warmup=10, quantize_at=20, freeze_at=30, decay_at=80)
    factors = [schedule.factor(step) for step in (0, 9, 50, 80, 90, 100)]
    assert factors == pytest.approx([0.1, 1, 1, 1, 0.5, 0])


@pytest.mark.parametrize("shape", [(2, 16, 40), (1, 40, 16)])
def test_orthogonalized_brings_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrices))
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_muon_moves_against_the_gradient():
    weight = torch.nn.Parameter(torch.eye(16))
    optimizer = Muon([weight], lr=0.1, weight_decay=0)
    weight.square().sum().backward()
    optimizer.step()
    assert float(weight.detach().trace()) < 16


def test_every_parameter_but_the_codebooks_is_trained_once():
    model = tiny_model(encoder_hidden_size=16)
    groups = [p for group in split_parameters(model) for p in group]
    rest = [n for n, p in model.named_parameters() if not any(p is q for q in groups)]
    assert len({id(p) for p in groups}) == len(groups)
    assert all(name.endswith("codebook.weight") for name in rest)
    assert len(rest) == model.config.n_codebooks


@pytest.mark.parametrize("name", ["dac-16khz-live", "dac-44khz-small"])
def test_recipes_name_a_preset_and_their_windows_fit(name):
    recipe = Recipe.load(name)
    config = load_preset(recipe.preset)
    samples = recipe.frames * config.hop_length
    assert max(map(int, recipe.objective.mel_bands)) // 2 < samples
    assert recipe.frames % 9 == 0


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(ValueError, match=r"no recipe 'dac'; give a JSON file or one of: dac-16khz-live"):
        Recipe.load("dac")


def test_a_recipe_of_ones_own(tmp_path):
    fields = json.loads(json.dumps({**RECIPE.__dict__}, default=lambda part: part.__dict__))
    (tmp_path / "mine.json").write_text(json.dumps(fields))
    assert Recipe.load(tmp_path / "mine.json") == RECIPE
