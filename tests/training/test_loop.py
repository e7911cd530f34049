import copy
import json
import math

import numpy as np
import pytest
import torch
from training_recipes import CONFIG, PAPER, PHASED, RATE

from codecplus.configuration import preset_names
from codecplus.errors import InputError, TrainingError
from codecplus.modeling_dac import CausalDacConfig, CausalDacModel, DacConfig, DacModel
from codecplus.training import loop, optimizer
from codecplus.training.codebooks import initialize, is_steered
from codecplus.training.data import AudioFile, Batches, Crops, Cutter, FileSource
from codecplus.training.initialization import initialize_weights, new_model
from codecplus.training.loop import Trainer
from codecplus.training.optimizer import Muon, build_optimizers, orthogonalized
from codecplus.training.recipe import Recipe, Schedule
from codecplus.training.reporting import Window
from codecplus.training.widening import with_wider_decoder, with_wider_encoder
from codecplus.utils import save_audio


@pytest.fixture(scope="module")
def tone(tmp_path_factory):
    path = tmp_path_factory.mktemp("recordings") / "tone.wav"
    time = np.arange(2 * RATE) / RATE
    save_audio((0.3 * np.sin(2 * np.pi * 500 * time)).astype(np.float32), path, RATE)
    return path


def model(causal=True):
    torch.manual_seed(0)
    if causal:
        net = CausalDacModel(CausalDacConfig.from_dict(CONFIG))
    else:
        net = DacModel(DacConfig.from_dict({**CONFIG, "model_type": "dac"}))
    initialize_weights(net)
    return net


def trainer(tone, fields, net=None, **options):
    recipe = Recipe.from_dict(fields)
    net = net or model()
    cutter = Cutter(RATE, recipe.crop_samples(net.config), recipe.augmentation)
    crops = Crops(FileSource([AudioFile(tone, RATE, 2 * RATE)]), cutter, recipe.seed)
    share = recipe.batch // options.get("accumulate", 1)
    return Trainer(net, Batches(crops, share), recipe, **options)


def changed(fields, **settings):
    fields = json.loads(json.dumps(fields))
    for key, value in settings.items():
        part = fields
        *parents, last = key.split("__")
        for parent in parents:
            part = part[parent]
        part[last] = value
    return fields


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def test_a_new_model_keeps_the_level_and_begins_quiet():
    net = model()
    audio = 0.1 * torch.randn(1, 1, 16 * 50, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = net.encoder(audio)
        decoded = net.decoder(latents)
    assert 0.03 < float(latents.std()) < 0.5
    assert float(decoded.abs().max()) < 0.1


@pytest.mark.parametrize("fields", [PHASED, PAPER], ids=["phased", "paper"])
def test_training_lowers_the_reconstruction_loss(tone, fields):
    late = {} if fields is PAPER else {"schedule__quantize_at": 20, "schedule__freeze_at": 1000}
    alone = {
        "objective__weights__adversarial": 0,
        "objective__weights__feature_matching": 0,
        "lr": 1e-2,
    }
    run = trainer(tone, changed(fields, schedule__steps=50, schedule__decay_at=40, **late, **alone))
    name = run.recipe.objective.reconstruction[0]
    values = [float(run.step()[name]) for _ in range(50)]
    assert np.mean(values[-10:]) < 0.8 * np.mean(values[:5])


def test_phases_begin_where_the_recipe_says(tone):
    run = trainer(tone, PHASED)
    reports = [run.step() for _ in range(8)]
    assert ["commitment" in report for report in reports] == [False] * 2 + [True] * 4 + [False] * 2
    assert ["revived" in report for report in reports] == [False] * 2 + [True] * 4 + [False] * 2
    assert ["adversarial" in report for report in reports] == [False] * 3 + [True] * 5


def test_encoder_and_codebooks_do_not_change_once_frozen(tone):
    run = trainer(tone, PHASED)
    for _ in range(7):
        run.step()
    resting = {
        k: v.clone() for k, v in run.model.state_dict().items() if not k.startswith("decoder.")
    }
    decoder = run.model.decoder.conv1.weight.detach().clone()
    run.step()
    assert all(torch.equal(v, run.model.state_dict()[k]) for k, v in resting.items())
    assert not torch.equal(decoder, run.model.decoder.conv1.weight)


def test_codebooks_are_placed_anew_for_the_averaged_encoder_when_it_is_frozen(tone):
    run = trainer(tone, PHASED)
    for _ in range(6):
        run.step()
    average = {k: v.clone() for k, v in run.average.encoder.state_dict().items()}
    codebook = run.model.quantizer.quantizers[0].codebook.weight.detach().clone()
    run.step()
    torch.testing.assert_close(run.model.encoder.state_dict(), average, rtol=0, atol=0)
    assert not torch.equal(codebook, run.model.quantizer.quantizers[0].codebook.weight)


def test_codebooks_are_placed_in_directions_that_the_decoder_reads(tone):
    fields = changed(PHASED, schedule__quantize_at=0, codebooks__placement_floor=1e-4)
    net = model()
    with torch.no_grad():  # half of the latents, and the louder half, goes nowhere
        half = net.config.hidden_size // 2
        net.decoder.conv1.weight[:, half:] = 0
        net.encoder.conv2.weight[half:] *= 4

    def read(run):
        run.step()
        weight = run.average.quantizer.quantizers[0].in_proj.weight.detach()
        return float(weight[:, :half].norm() / weight.norm())

    assert read(trainer(tone, changed(fields, lr=0.0), copy.deepcopy(net))) > 0.95
    assert read(trainer(tone, changed(fields, lr=0.0, codebooks__placement_floor=None), net)) < 0.7


def test_codebooks_are_placed_at_the_steps_that_the_recipe_names(tone, monkeypatch):
    run = trainer(tone, changed(PHASED, schedule__place_at=[4], codebooks__placement_floor=0.05))
    placed, original = [], loop.codebooks.initialize

    def initialize(*args, **options):
        placed.append((run.step_number, options["metric"] is not None, options["rate_weight"]))
        return original(*args, **options)

    monkeypatch.setattr(loop.codebooks, "initialize", initialize)
    for _ in range(8):
        run.step()
    assert placed == [(2, True, None), (4, True, None), (6, True, 0.02)]
    assert run.recipe.schedule.scaled(80).place_at == [40]


def test_the_unread_term_shrinks_directions_that_no_codebook_reads(tone):
    def unread(weight):
        run = trainer(
            tone,
            changed(
                PHASED,
                objective__unread=weight,
                schedule__steps=40,
                schedule__freeze_at=40,
                lr=3e-3,
            ),
        )
        for _ in range(30):
            run.step()
        with torch.no_grad():
            latents = run.model.encoder(next(run.batches).audio.unsqueeze(1))
            read = run.model.quantizer.from_codes(run.model.quantizer(latents)[1])[0]
        return float((latents - read).square().mean() / latents.square().mean())

    assert unread(3.0) < 0.7 * unread(0.0)


def test_the_papers_recipe_moves_codebooks_and_discriminators_by_gradient(tone):
    run = trainer(tone, PAPER)
    codebook = run.model.quantizer.quantizers[0].codebook.weight.detach().clone()
    judge = run.adversary.discriminator.discriminators[0].conv_post.bias.detach().clone()
    report = run.step()
    assert float(report["codebook"]) > 0
    assert not torch.equal(codebook, run.model.quantizer.quantizers[0].codebook.weight)
    assert not torch.equal(judge, run.adversary.discriminator.discriminators[0].conv_post.bias)


@pytest.mark.parametrize("fields", [PHASED, PAPER], ids=["phased", "paper"])
def test_accumulated_batches_are_one_batch(tone, fields):
    # From the first step on quantized, and without what is random or a running mean per batch.
    settings = {
        "quantizer_dropout": 0.0,
        "objective__balanced": False,
        "optimizer": "adamw",
        "lr": 1e-3,
    }
    if fields is PHASED:
        settings |= {"schedule__quantize_at": 100, "objective__latent_scale": 0}
    whole, parts = (trainer(tone, changed(fields, **settings), accumulate=n) for n in (1, 2))
    for _ in range(2):
        a, b = whole.step(), parts.step()
        for name in a:
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-3, abs=1e-5), name


def test_a_step_that_is_not_finite_is_skipped_and_counted(tone, monkeypatch):
    run = trainer(tone, PAPER)
    run.step()
    before, average = weights(run), [p.clone() for p in run.average.parameters()]
    original = loop.losses.limit_bandwidth
    monkeypatch.setattr(loop.losses, "limit_bandwidth", lambda x, *a: original(x, *a) * math.nan)
    assert run.step()["skipped"] == 1
    assert torch.equal(before, weights(run))
    assert all(torch.equal(a, b) for a, b in zip(average, run.average.parameters(), strict=True))
    monkeypatch.undo()
    assert run.step()["skipped"] == 0
    assert weights(run).isfinite().all()
    assert not torch.equal(before, weights(run))
    assert (run.progress["skipped"], run.progress["skipped_in_a_row"], run.progress["step"]) == (
        1,
        0,
        3,
    )


def test_logged_means_are_over_the_steps_that_had_a_value(tone, monkeypatch):
    run = trainer(tone, PHASED)
    window = Window(run)
    reports = [run.step() for _ in range(4)]
    for report in reports:
        window.add(report)
    numbers = window.close()
    for name, first in (("relative_mel", 0), ("commitment", 2), ("adversarial", 3)):
        values = [float(report[name]) for report in reports[first:]]
        assert numbers[f"train/{name}"] == pytest.approx(np.mean(values)), name
    assert numbers["train/revived"] == sum(report.get("revived", 0) for report in reports)
    assert numbers["learning_rate/decoder"] == pytest.approx(1e-2)
    assert numbers["learning_rate/encoder"] == pytest.approx(0.5e-2)
    assert numbers["learning_rate/discriminator"] == pytest.approx(1e-3)
    assert 0 <= numbers["train/discriminator_accuracy"] <= 1
    original = loop.losses.limit_bandwidth
    monkeypatch.setattr(loop.losses, "limit_bandwidth", lambda x, *a: original(x, *a) * math.nan)
    window.add(run.step())
    monkeypatch.undo()
    report = run.step()
    window.add(report)
    numbers = window.close()
    assert numbers["train/skipped"] == 1
    assert numbers["train/relative_mel"] == pytest.approx(float(report["relative_mel"]))


def test_shares_of_the_balancer_are_those_of_the_recipe_in_the_mean(tone):
    run = trainer(tone, PHASED)
    first = run.step()
    shares = {k.removeprefix("share/"): v for k, v in first.items() if k.startswith("share/")}
    weights = {n: w for n, w in PHASED["objective"]["weights"].items() if n in shares}
    assert shares == pytest.approx({n: w / sum(weights.values()) for n, w in weights.items()})
    second = run.step()
    shares = {k.removeprefix("share/"): v for k, v in second.items() if k.startswith("share/")}
    assert sum(shares.values()) == pytest.approx(1)


def test_steps_that_are_never_finite_stop_the_run(tone):
    run = trainer(tone, PHASED)
    with torch.no_grad():
        run.model.decoder.conv2.bias.fill_(math.nan)
    for _ in range(9):
        assert run.step()["skipped"] == 1
    with pytest.raises(
        TrainingError, match="codec was not finite for 10 steps in a row, the last at step 9"
    ):
        run.step()


def test_fine_tuning_keeps_codebooks_and_quantizes_at_once(tone):
    net = model()
    before = [q.codebook.weight.detach().clone() for q in net.quantizer.quantizers]
    run = trainer(tone, PHASED, net, fine_tune=True)
    report = run.step()
    assert "commitment" in report
    assert report["learning_rate"] == pytest.approx(1e-2 * 0.5 * 0.5)  # warm-up, fine_tuning_lr
    moved = [
        float((q.codebook.weight - b).abs().max())
        for q, b in zip(net.quantizer.quantizers, before, strict=True)
    ]
    follow = run.recipe.codebooks.decay
    assert 0 < max(moved) < 20 * (1 - follow)


@pytest.mark.parametrize("fields", [PAPER, PHASED])
@pytest.mark.parametrize("resting", [["decoder", "quantizer"], ["encoder"], ["quantizer"]])
def test_resting_parts_keep_their_weights_and_others_train(tone, fields, resting):
    run = trainer(tone, changed(fields, schedule__freeze_at=1, resting=resting), fine_tune=True)
    parts = {name: getattr(run.model, name) for name in ("encoder", "quantizer", "decoder")}
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    for _ in range(3):
        assert math.isfinite(run.step()["gradient_norm"])
    for name, part in parts.items():
        same = all(
            torch.equal(tensor, before[name][key]) for key, tensor in part.state_dict().items()
        )
        assert same == (name in resting), name


def test_modules_within_a_part_rest_and_those_behind_them_train(tone):
    resting = ["encoder", "quantizer", "decoder.conv1", "decoder.block.0"]
    run = trainer(tone, changed(PHASED, resting=resting), fine_tune=True)
    before = copy.deepcopy(run.model.state_dict())
    run.step()
    for name, value in run.model.state_dict().items():
        rests = name.startswith(tuple(f"{part}." for part in resting))
        if rests or name.endswith("weight"):
            assert torch.equal(value, before[name]) == rests, name
    with pytest.raises(InputError, match=r"decoder\.block\.9, which .* decoder\.block\.0"):
        trainer(tone, changed(PHASED, resting=["decoder.block.9"]), fine_tune=True)


@pytest.mark.parametrize("resting", [["encoder", "quantizer", "decoder"], ["coder"]])
def test_resting_parts_are_some_of_three(resting):
    with pytest.raises(
        InputError, match="resting parts from encoder, quantizer, decoder, but not all"
    ):
        Recipe.from_dict({**PAPER, "resting": resting})


def test_a_wider_encoder_begins_as_the_narrow_one_and_uses_its_new_channels(tone):
    net = model()
    with torch.no_grad():
        for module in net.encoder.modules():
            if hasattr(module, "alpha"):
                module.alpha.uniform_(0.5, 2)
    normed = copy.deepcopy(net)
    normed.apply_weight_norm()
    wide, audio = with_wider_encoder(normed, 12), torch.randn(2, 1, 320)
    torch.testing.assert_close(wide.encoder(audio), net.encoder(audio))
    for part in ("quantizer", "decoder"):
        for name, tensor in getattr(net, part).state_dict().items():
            torch.testing.assert_close(getattr(wide, part).state_dict()[name], tensor)
    run = trainer(tone, changed(PHASED, resting=["decoder"]), wide, fine_tune=True)
    for _ in range(2):
        run.step()
    assert wide.encoder.conv2.weight[:, net.encoder.conv2.in_channels :].abs().min() > 0
    with pytest.raises(InputError, match="wider than its 8 channels, got 8"):
        with_wider_encoder(net, 8)


@pytest.mark.parametrize("causal", [True, False])
def test_a_wider_decoder_begins_as_the_narrow_one_and_uses_its_new_channels(tone, causal):
    net = model(causal)
    with torch.no_grad():
        for module in net.decoder.modules():
            if hasattr(module, "alpha"):
                module.alpha.uniform_(0.5, 2)
    wide = with_wider_decoder(net, 48)
    latents = torch.randn(2, net.config.hidden_size, 20)
    torch.testing.assert_close(wide.decoder(latents), net.decoder(latents))
    for part in ("encoder", "quantizer"):
        for name, tensor in getattr(net, part).state_dict().items():
            torch.testing.assert_close(getattr(wide, part).state_dict()[name], tensor)
    run = trainer(tone, changed(PHASED, resting=["encoder", "quantizer"]), wide, fine_tune=True)
    for _ in range(2):
        run.step()
    assert wide.decoder.conv2.weight[:, net.decoder.conv2.in_channels :].abs().min() > 0
    for width, message in ((32, "wider than its 32 channels, got 32"), (50, "a multiple of 4")):
        with pytest.raises(InputError, match=message):
            with_wider_decoder(net, width)


@pytest.mark.parametrize("fields", [PAPER, PHASED])
def test_fine_tuning_does_not_change_steered_codebooks(tone, fields):
    net = model()
    initialize(net.quantizer, torch.randn(500, net.config.hidden_size), rate_weight=0.02)
    before, encoder = (
        copy.deepcopy(net.quantizer.state_dict()),
        copy.deepcopy(net.encoder.state_dict()),
    )
    run = trainer(tone, fields, net, fine_tune=True)
    for _ in range(3):
        report = run.step()
        assert math.isfinite(report["commitment"])
        assert report["skipped"] == 0
    run.average.remove_weight_norm()
    torch.testing.assert_close(run.average.quantizer.state_dict(), before)
    found = run.average.encoder.state_dict()
    assert any(not torch.equal(found[name], value) for name, value in encoder.items())


@torch.no_grad()
def uncoded(run, net):
    """Share of the latents' energy that its codebooks leave uncoded."""
    latents = net.encoder(torch.cat([next(run.batches).audio for _ in range(8)])[:, None])
    return float((latents - net.quantizer(latents)[0]).square().sum() / latents.square().sum())


@pytest.mark.parametrize("freeze_at", [0, 2])
@pytest.mark.parametrize("steered", [False, True])
def test_new_codebooks_are_placed_for_the_latents_of_the_checkpoint(tone, steered, freeze_at):
    net = model()
    initialize(
        net.quantizer,
        torch.randn(500, net.config.hidden_size),
        rate_weight=0.02 if steered else None,
    )
    fields = changed(
        PHASED,
        codebooks__kept=False,
        codebooks__placement_vectors=500,
        schedule__freeze_at=freeze_at,
    )
    run = trainer(tone, fields, copy.deepcopy(net), fine_tune=True)
    for step in range(3):
        report = run.step()
        assert math.isfinite(report.get("commitment", 0.0))
        rests = steered or step >= freeze_at
        assert is_steered(run.model.quantizer.quantizers[0]) == rests
    assert uncoded(run, run.average.eval()) < 0.5 * uncoded(run, net.eval())
    encoder = torch.cat([p.flatten() for p in net.encoder.parameters()])
    assert torch.equal(
        encoder, torch.cat([p.flatten() for p in run.model.encoder.parameters()])
    ) == (freeze_at == 0)


@pytest.mark.parametrize(
    ("steps", "vectors", "batches"),
    [(8, 10**6, 10), (80, 10**6, 20), (80, 1, 1)],
    ids=["ten-at-least", "a-quarter-of-the-steps", "enough-vectors"],
)
def test_a_placement_takes_latents_of_so_many_batches(tone, steps, vectors, batches):
    fields = changed(
        PHASED,
        schedule__steps=steps,
        codebooks__kept=False,
        codebooks__placement_vectors=vectors,
    )
    run = trainer(tone, fields, fine_tune=True)
    run.step()
    assert run.batches.position == batches + 1  # the last one is that of the step


def test_new_codebooks_without_a_rate_weight_are_trained(tone):
    net = model()
    initialize(net.quantizer, torch.randn(500, net.config.hidden_size), rate_weight=0.02)
    run = trainer(
        tone,
        changed(PHASED, codebooks__kept=False, codebooks__rate_weight=None),
        net,
        fine_tune=True,
    )
    run.step()
    placed = run.model.quantizer.quantizers[0].codebook.weight.clone()
    run.step()
    assert not is_steered(net.quantizer.quantizers[0])
    assert not torch.equal(run.model.quantizer.quantizers[0].codebook.weight, placed)


def test_a_checkpoint_with_weight_norm_is_saved_folded(tone, tmp_path):
    run = trainer(tone, PAPER)
    run.step()
    run.average.save_pretrained(tmp_path)
    loaded = CausalDacModel.from_pretrained(tmp_path)
    audio = torch.randn(1, 1, 320)
    with torch.no_grad():
        expected, found = (net.decoder(net.encoder(audio)) for net in (run.average, loaded))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_bf16_steps_are_close_to_fp32(tone):
    settings = {
        "quantizer_dropout": 0.0,
        "objective__weights__adversarial": 0,
        "objective__weights__feature_matching": 0,
    }
    values = {}
    for dtype in (torch.float32, torch.bfloat16):
        values[dtype] = float(trainer(tone, changed(PAPER, **settings), dtype=dtype).step()["mel"])
    assert values[torch.bfloat16] == pytest.approx(values[torch.float32], rel=0.05)


# ---- schedule, optimizers, recipes


def test_the_rate_rises_holds_and_falls_to_zero():
    schedule = Schedule(steps=100, warmup=10, decay_at=80)
    factors = [schedule.factor(step) for step in (0, 9, 50, 80, 90, 100)]
    assert factors == pytest.approx([0.1, 1, 1, 1, 0.5, 0])


def test_the_papers_rate_falls_by_a_factor():
    schedule = Schedule(steps=100, warmup=1, gamma=0.9)
    assert [schedule.factor(step) for step in (0, 1, 99)] == pytest.approx([1, 0.9, 0.9**99])


def test_another_number_of_steps_scales_the_schedule():
    schedule = Schedule(
        steps=1000, warmup=100, quantize_at=200, freeze_at=900, decay_at=800, gamma=0.99
    )
    short = schedule.scaled(100)
    assert (short.steps, short.quantize_at, short.freeze_at, short.decay_at) == (100, 20, 90, 80)
    assert short.factor(60) == pytest.approx(schedule.factor(600))


def test_a_short_run_warms_up_over_a_tenth_of_its_steps():
    schedule = Schedule(steps=50_000, warmup=100)
    assert [schedule.scaled(steps).warmup for steps in (5, 50, 500, 5000, 90_000)] == [
        1, 5, 50, 100, 100,
    ]  # fmt: skip


@pytest.mark.parametrize("flags", [frozenset(), frozenset({"amx_bf16"})])
@pytest.mark.parametrize("shape", [(2, 16, 40), (1, 40, 16)])
def test_orthogonalized_brings_singular_values_near_one(shape, flags, monkeypatch):
    monkeypatch.setattr(optimizer, "processor_flags", lambda: flags)
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrices))
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_muon_multiplies_in_bf16_only_where_the_processor_does(monkeypatch):
    products = []
    multiply = optimizer._gram_matrices

    def gram_matrices(x, tall):
        products.append(x.dtype)
        return multiply(x, tall)

    monkeypatch.setattr(optimizer, "_gram_matrices", gram_matrices)
    for flags in (frozenset({"avx2"}), frozenset({"avx512_bf16"})):
        monkeypatch.setattr(optimizer, "processor_flags", lambda flags=flags: flags)
        assert orthogonalized(torch.randn(1, 16, 16)).dtype == torch.float32
    assert products == [torch.float32] * 5 + [torch.bfloat16] * 5


def test_muon_moves_against_the_gradient():
    weight = torch.nn.Parameter(torch.eye(16))
    optimizer = Muon([weight], lr=0.1, weight_decay=0)
    weight.square().sum().backward()
    optimizer.step()
    assert float(weight.detach().trace()) < 16


@pytest.mark.parametrize(("muon", "train_codebooks"), [(True, False), (False, True)])
def test_every_parameter_is_trained_once(muon, train_codebooks):
    net = model()
    optimizers = build_optimizers(net, muon=muon, lr=1e-3, train_codebooks=train_codebooks)
    trained = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    rest = [n for n, p in net.named_parameters() if id(p) not in trained]
    assert len(set(trained)) == len(trained)
    assert len(rest) == (0 if train_codebooks else net.config.n_codebooks)
    assert all(name.endswith("codebook.weight") for name in rest)
    assert [type(o).__name__ for o in optimizers] == (["AdamW", "Muon"] if muon else ["AdamW"])
    assert id(net.encoder.conv2.weight) in [
        id(p) for group in optimizers[0].param_groups for p in group["params"]
    ]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_a_recipe_whose_windows_fit(name):
    recipe = Recipe.load(name)
    assert recipe.preset == name
    samples = recipe.crop_samples(recipe.config())
    if recipe.whole_frames:
        assert samples % (9 * recipe.config().hop_length) == 0
    else:
        assert samples == int(recipe.seconds * recipe.config().sampling_rate)
    assert Recipe.from_dict(recipe.as_dict()) == recipe


def test_by_default_weights_and_sizes_are_the_papers():
    recipe = Recipe.load("dac-44khz")
    assert recipe.objective.weights == {"mel": 15, "feature_matching": 2, "adversarial": 1}
    assert (recipe.objective.codebook, recipe.objective.commitment) == (1, 0.25)
    assert (recipe.batch, recipe.lr, recipe.schedule.gamma, recipe.clip) == (
        72,
        1e-4,
        0.999996,
        1000,
    )
    assert recipe.adversary.periods == [2, 3, 5, 7, 11]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective.weights.mell": 3}, "no loss 'mell'; did you mean mel"),
        ({"bacth": 3}, "no setting 'bacth'; did you mean batch"),
        ({"batch": "many"}, "expected batch as int, got 'many'"),
        ({"optimizer": "sgd"}, "adamw or muon, got 'sgd'"),
        ({"codebooks.rate_weight": -1}, "rate_weight of 0 or more, or none, got -1"),
        ({"codebooks.rate_weight": 0.02}, "set freeze_at too"),
        ({"codebooks.kept": False}, "set codebooks.placed too"),
        (
            {"codebooks.kept": False, "codebooks.placed": True, "resting": ["quantizer"]},
            "decoder that follow",
        ),
        (
            {"codebooks.kept": False, "codebooks.placed": True, "resting": ["decoder"]},
            "decoder that follow",
        ),
        ({"schedule.steps": 0}, "at least 1 step"),
        ({"objective.weights": {"adversarial": 1}}, "no reconstruction loss"),
    ],
)
def test_a_wrong_setting_says_what_was_expected(settings, message):
    with pytest.raises(InputError, match=message):
        Recipe.load("dac-44khz", settings)


def test_an_unknown_recipe_is_refused_with_similar_names():
    with pytest.raises(
        InputError, match="no recipe 'dac-16khz-life'; give a JSON file, or dac-16khz-live"
    ):
        Recipe.load("dac-16khz-life")


def test_an_architecture_in_a_file_gets_the_papers_recipe(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    recipe = Recipe.load(tmp_path / "config.json")
    assert new_model(recipe).config.n_codebooks == 3
    assert recipe.objective == Recipe.load("dac-44khz").objective


def test_crops_too_short_for_a_window_are_refused(tmp_path):
    recipe = Recipe.load("dac-44khz", {"seconds": 0.01, "objective.mel_bands": {"32768": 80}})
    with pytest.raises(InputError, match="too short for the window of 32768"):
        recipe.crop_samples(recipe.config())


def test_levelled_losses_leave_levels_to_band_gains(tone):
    """All but those on levels themselves get the same for decoded audio of any level."""
    fields = changed(PHASED, objective__levelled=True, seconds=0.3)
    fields["objective"]["weights"] = {"relative_mel": 1.0, "cell_power": 1.0}
    run = trainer(tone, fields)
    generator = torch.Generator().manual_seed(0)
    reference, estimate = 0.1 * torch.randn(2, 2, 8000, generator=generator)
    losses = run._reconstruction_losses(estimate, reference)
    quiet = run._reconstruction_losses(0.3 * estimate, reference)
    assert quiet["cell_power"] > 1.5 * losses["cell_power"]
    torch.testing.assert_close(quiet["relative_mel"], losses["relative_mel"], rtol=0.05, atol=0)
    before = weights(run)
    run.step()
    assert not torch.equal(weights(run), before)
    fields["objective"]["levelled"] = False
    plain = trainer(tone, fields)._reconstruction_losses(0.3 * estimate, reference)
    assert plain["relative_mel"] > 1.5 * quiet["relative_mel"]
