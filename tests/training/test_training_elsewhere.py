"""Training on another device than the processor computes what it does on the processor, and seldom
waits for it.
"""

import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from other_device import DEVICE, OnDevice, present, waits
from training_recipes import CONFIG, PAPER, PHASED, RATE

from codecplus.acceleration import training as gradients
from codecplus.training import optimizer, run_folder
from codecplus.training import run as runs
from codecplus.training.loop import Trainer
from codecplus.training.recipe import Recipe
from codecplus.training.run import RunOptions, train
from codecplus.utils import save_audio

OPTIONS = RunOptions(
    workers=0,
    cpu=True,
    precision="no",
    tracker="none",
    save_every=3,
    log_every=1,
    validate_every=4,
    progress=False,
)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    for index in range(20):
        save_audio(
            (0.1 * random.standard_normal(RATE)).astype(np.float32), folder / f"{index}.wav", RATE
        )
    return folder


@pytest.fixture
def elsewhere(monkeypatch):
    """Runs train on the other device; they write no checkpoints, whose writer asks tensors for
    their addresses.
    """
    states, original = (
        (PartialState._shared_state, AcceleratorState._shared_state),
        runs._accelerator,
    )

    def accelerator(options, phases):
        for state in states:
            state["device"] = torch.device("cpu")
        found = original(options, phases)
        for state in states:
            state["device"] = DEVICE
        return found

    monkeypatch.setattr(runs, "_accelerator", accelerator)
    monkeypatch.setattr(run_folder, "write_checkpoint", lambda model, folder: None)
    with present():
        yield
    for state in states:
        state["device"] = torch.device("cpu")


def losses(folder):
    """Of each step, those that are logged."""
    steps = map(json.loads, (folder / "training" / "log.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in step.items() if k.startswith("train/")}
        for step in steps
        if "train/gradient_norm" in step
    ]


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize(
    ("fields", "alike", "own_snake"),
    [
        pytest.param(PHASED, 3, False, id="phased"),
        pytest.param(PHASED, 2, True, id="phased-own-snake"),
        pytest.param(PAPER, 8, True, id="paper", marks=pytest.mark.slow),
    ],
)
def test_losses_are_the_same_in_a_resumed_run_too(
    recordings, tmp_path, monkeypatch, request, fields, alike, own_snake
):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    recipe = Recipe.from_dict({**fields, "preset": str(tmp_path / "config.json")})
    # Muon takes bf16 on processors that multiply it, and fp32 on the other device.
    monkeypatch.setattr(optimizer, "multiplies_bf16", lambda device, flags: False)
    with monkeypatch.context() as patch:
        patch.setattr(gradients, "recorded", lambda: False)  # every layer in torch's own operators
        train(recipe, recordings, tmp_path / "here", options=OPTIONS)
    if not own_snake:  # whose other rounding chooses other codes a step sooner
        monkeypatch.setattr(gradients, "recorded", lambda: False)

    request.getfixturevalue("elsewhere")
    step, counts = Trainer.step, []

    def counted(trainer):
        if trainer.step_number == 5 and len(counts) == 5:
            raise KeyboardInterrupt
        waits.clear()
        report = step(trainer)
        counts.append(len(waits))
        return report

    monkeypatch.setattr(Trainer, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, recordings, tmp_path / "there", options=OPTIONS)
    trained = train(recipe, recordings, tmp_path / "there", resume=True, options=OPTIONS)
    assert all(isinstance(p, OnDevice) and bool(p.isfinite().all()) for p in trained.parameters())
    here, there = losses(tmp_path / "here"), losses(tmp_path / "there")
    assert len(there) == len(here) == 8
    # Once codebooks are placed, rounding soon chooses other codes, and this net learns fast.
    for mine, others in zip(there[:alike], here[:alike], strict=True):
        assert mine == pytest.approx(others, rel=1e-4)
    # Norms of both nets, of the losses, and the entries to move: however many codebooks there are.
    assert max(counts[3:6]) <= 4
