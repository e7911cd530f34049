"""The recipe `paper` against conf/final/44khz.yml and scripts/train.py of the original."""

import numpy as np
import pytest
import torch
from torch import nn
from training_recipes import CONFIG, PAPER, RATE

from codecplus.audio.loudness import integrated_loudness
from codecplus.errors import InputError
from codecplus.modeling_dac import CausalDacConfig, CausalDacModel
from codecplus.training.data import AudioFile, Batches, Crops, Cutter, FileSource, rotated
from codecplus.training.initialization import initialize_by_default, new_model
from codecplus.training.loop import Trainer
from codecplus.training.recipe import Augmentation, Recipe
from codecplus.training.run import _dtype
from codecplus.utils import save_audio

PAPERS = Augmentation(
    loudness_share=1,
    loudness_lufs=(-16, -16),
    peak=1,
    flip_share=0,
    silence_lufs=-40,
    attempts=8,
)


def test_the_settings_are_those_of_the_original():
    recipe = Recipe.load("dac-44khz")
    assert recipe == Recipe.load("paper")
    config = recipe.config()
    schedule = recipe.schedule
    # num_iters, ExponentialLR.gamma, save_iters
    assert (schedule.steps, schedule.gamma) == (400_000, 0.999996)
    assert schedule.keep_at == [10_000, 50_000, 100_000, 200_000]
    assert [schedule.factor(n) for n in (0, 1, 2)] == [1, 0.999996, 0.999996**2]
    # lambdas
    assert recipe.objective.weights == {"mel": 15, "feature_matching": 2, "adversarial": 1}
    assert (recipe.objective.codebook, recipe.objective.commitment) == (1, 0.25)
    assert recipe.objective.mel_bands == {
        32: 5, 64: 10, 128: 20, 256: 40, 512: 80, 1024: 160, 2048: 320,
    }  # fmt: skip
    assert not recipe.objective.limit_bandwidth
    # AdamW.lr, and its default weight decay; clip_grad_norm_ of the generator
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay) == ("adamw", 1e-4, 0.01)
    assert recipe.clip == 1000
    # Discriminator
    adversary = recipe.adversary
    assert adversary.first
    assert (adversary.lr, adversary.clip, adversary.stft_power) == (1e-4, 10, 1)
    assert (adversary.periods, adversary.fft_sizes) == ([2, 3, 5, 7, 11], [2048, 1024, 512])
    assert adversary.bands == [[0, 0.1], [0.1, 0.25], [0.25, 0.5], [0.5, 0.75], [0.75, 1]]
    # VolumeNorm, RescaleAudio, ShiftPhase, loudness_cutoff and num_tries of salient_excerpt
    augmentation = recipe.augmentation
    assert (augmentation.loudness_share, augmentation.loudness_lufs) == (1, (-16, -16))
    assert (augmentation.peak, augmentation.rotate_phase) == (1, True)
    assert (augmentation.silence_lufs, augmentation.attempts) == (-40, 8)
    assert (augmentation.speed_share, augmentation.gain_share, augmentation.flip_share) == (0, 0, 0)
    # AudioDataset.duration, batch_size, without_replacement, ConcatDataset
    assert (recipe.crop_samples(config), recipe.batch) == (16_758, 72)
    assert recipe.drawing == "files"
    # DAC.quantizer_dropout, amp, and weights as they are
    assert (recipe.quantizer_dropout, recipe.precision, recipe.average_decay) == (0.5, "no", 0)
    assert recipe.weight_norm
    assert recipe.initialization == "pytorch"


def test_our_changes_have_a_recipe_of_their_own():
    ours = Recipe.load("paper-plus", {"preset": "dac-24khz"})
    assert ours.preset == "dac-24khz"
    assert ours.average_decay == 0.999
    assert (ours.augmentation.loudness_share, ours.augmentation.rotate_phase) == (0.5, False)
    assert ours.objective.weights == Recipe.load("paper").objective.weights


def test_the_networks_compute_in_fp32_unless_the_run_says_otherwise():
    cpu = torch.device("cpu")
    assert _dtype("auto", "no", cpu) == torch.float32
    assert _dtype("bf16", "no", cpu) == torch.bfloat16
    assert _dtype("no", "auto", cpu) == torch.float32


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_begin_as_in_the_original():
    """Its draws of standard deviation 0.02 are replaced by weight norm before they are used."""
    torch.manual_seed(0)
    conv = torch.nn.utils.weight_norm(nn.Conv1d(64, 64, 7))
    drawn = conv.weight.detach().clone()
    nn.init.trunc_normal_(conv.weight, std=0.02)
    conv(torch.randn(1, 64, 20))
    torch.testing.assert_close(conv.weight.detach(), drawn)

    torch.manual_seed(0)
    net = CausalDacModel(CausalDacConfig.from_dict({**CONFIG, "codebook_size": 512}))
    initialize_by_default(net)
    conv = net.decoder.conv1
    bound = (conv.in_channels * conv.kernel_size[0]) ** -0.5
    assert 0.98 * bound < float(conv.weight.detach().abs().max()) <= bound
    assert not conv.bias.any()
    assert net.decoder.block[0].conv_t1.bias.any()
    assert float(net.quantizer.quantizers[0].codebook.weight.detach().std()) == pytest.approx(
        1, abs=0.05
    )


def crops(path, samples, augmentation, count=12):
    source = FileSource([AudioFile(path, RATE, 4 * RATE)])
    return next(Batches(Crops(source, Cutter(RATE, samples, augmentation)), count)).audio.numpy()


def test_crops_are_all_as_loud_and_silence_is_drawn_again_within_its_recording(tmp_path):
    random = np.random.default_rng(0)
    noise = 0.02 * random.standard_normal(4 * RATE).astype(np.float32)
    noise[: 2 * RATE] *= 1e-3  # about -94 LUFS
    save_audio(noise, tmp_path / "half.wav", RATE)
    samples = int(0.38 * RATE)
    for crop in crops(tmp_path / "half.wav", samples, PAPERS):
        assert integrated_loudness(crop, RATE) == pytest.approx(-16, abs=0.1)
    # A recording that is quiet everywhere is taken after eight attempts, and is raised by 54 dB.
    save_audio(noise[:RATE], tmp_path / "quiet.wav", RATE)
    quiet = crops(tmp_path / "quiet.wav", samples, PAPERS, 3)
    for crop in quiet:
        rms = 20 * np.log10(np.sqrt(np.mean(crop**2)))
        assert rms == pytest.approx(20 * np.log10(2e-5) + 54, abs=1)
    # Peaks limit the gain.
    save_audio(np.eye(1, 4 * RATE, 900, dtype=np.float32)[0], tmp_path / "click.wav", RATE)
    click = crops(tmp_path / "click.wav", 2 * RATE, PAPERS)
    assert np.abs(click).max() == pytest.approx(1, abs=1e-3)


def test_a_rotation_turns_every_phase_by_one_angle():
    time = np.arange(RATE) / RATE
    for frequency in (300, 1700):
        tone = np.cos(2 * np.pi * frequency * time).astype(np.float32)
        turned = rotated(tone, 0.8, RATE)
        inner = slice(RATE // 4, -RATE // 4)
        expected = np.cos(2 * np.pi * frequency * time + 0.8)
        np.testing.assert_allclose(turned[inner], expected[inner], atol=2e-3)
        np.testing.assert_allclose(rotated(tone, np.pi, RATE), -tone, atol=1e-4)


@pytest.fixture
def tone(tmp_path):
    time = np.arange(2 * RATE) / RATE
    save_audio((0.3 * np.sin(2 * np.pi * 500 * time)).astype(np.float32), tmp_path / "a.wav", RATE)
    return tmp_path / "a.wav"


def exact(**settings):
    fields = {
        **PAPER,
        "preset": "config.json",
        "adversary": {**PAPER["adversary"], "first": True},
        "objective": {**PAPER["objective"], "limit_bandwidth": False},
        "augmentation": {"loudness_share": 1, "loudness_lufs": [-16, -16], "rotate_phase": True},
        "whole_frames": False,
        "average_decay": 0.0,
        "weight_decay": 0.01,
        **settings,
    }
    return Recipe.from_dict(fields)


def trainer(tone, recipe, **options):
    net = CausalDacModel(CausalDacConfig.from_dict(CONFIG))
    torch.manual_seed(0)
    initialize_by_default(net)
    cutter = Cutter(RATE, recipe.crop_samples(net.config), recipe.augmentation)
    source = FileSource([AudioFile(tone, RATE, 2 * RATE)])
    return Trainer(net, Batches(Crops(source, cutter), recipe.batch), recipe, **options)


def test_the_codec_learns_from_discriminators_that_have_just_changed(tone, monkeypatch):
    run = trainer(tone, exact(seconds=0.02))
    assert run.recipe.crop_samples(run.model.config) == 160
    adversary = run.adversary
    first = next(adversary.discriminator.parameters())
    before = first.detach().clone()
    seen = []
    losses = adversary.codec_losses

    def look(estimate, reference):
        seen.append(first.detach().clone())
        return losses(estimate, reference)

    monkeypatch.setattr(adversary, "codec_losses", look)
    report = run.step()
    assert not torch.equal(seen[0], before)
    assert torch.equal(seen[0], first)  # and they do not change a second time
    assert {"discriminator", "discriminator_accuracy", "adversarial"} <= report.keys()
    assert all(parameter.grad is None for parameter in adversary.discriminator.parameters())
    with pytest.raises(InputError, match="need the whole batch at once: leave accumulate at 1"):
        trainer(tone, exact(seconds=0.02), accumulate=2)


def test_the_checkpoint_has_the_weights_as_they_are(tone):
    run = trainer(tone, exact(seconds=0.02, batch=2))
    for _ in range(2):
        run.step()
    for average, current in zip(run.average.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(average, current)
    assert run.optimizers[0].param_groups[0]["weight_decay"] == 0.01


def test_crops_that_are_no_whole_frames_are_coded_with_zeros_behind_them(tone):
    recipe = exact(seconds=0.0213)  # 170 samples, ten frames of 16 and ten samples
    run = trainer(tone, recipe)
    audio = next(run.batches).audio
    assert audio.shape[1] == 170
    run.model.eval()
    with torch.no_grad():
        out = run.local_coding(audio, True, False)
        padded = run.local_coding(nn.functional.pad(audio, (0, 6)), True, False)
    assert torch.equal(out["codes"], padded["codes"])
    assert torch.equal(out["audio"], padded["audio"][:, :170])


def test_a_new_model_begins_as_the_recipe_says():
    recipe = Recipe.load("dac-16khz-live", {"initialization": "pytorch"})
    assert new_model(recipe).decoder.block[0].conv_t1.bias.any()
