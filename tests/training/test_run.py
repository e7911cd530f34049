import json
import math
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_recipes import CONFIG, PAPER, PHASED, RATE

from codecplus import CausalDacModel, DacFeatureExtractor, load_codec
from codecplus.cli import main
from codecplus.errors import CheckpointError, InputError, OutputExistsError
from codecplus.training import run as runs
from codecplus.training import run_folder
from codecplus.training.codebooks import initialize
from codecplus.training.initialization import new_model
from codecplus.training.loop import Trainer
from codecplus.training.recipe import Recipe
from codecplus.training.run import RunOptions, adjusted, train
from codecplus.training.validation import Validation
from codecplus.utils import save_audio

OPTIONS = RunOptions(
    workers=0,
    cpu=True,
    precision="no",
    tracker="none",
    save_every=2,
    log_every=1,
    validate_every=0,
    progress=False,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of recordings, an architecture, and a recipe of each kind."""
    folder = tmp_path_factory.mktemp("place")
    random = np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    (folder / "recordings").mkdir()
    for index in range(20):
        tone = 0.3 * np.sin(2 * np.pi * (200 + 100 * index) * time) + 0.01 * random.standard_normal(
            RATE
        )
        save_audio(tone.astype(np.float32), folder / "recordings" / f"{index}.wav", RATE)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name, fields in (("phased", PHASED), ("paper", PAPER)):
        (folder / f"{name}.json").write_text(
            json.dumps({**fields, "preset": str(folder / "config.json")})
        )
    return folder


HERE = (
    *(
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--tracker",
        "none",
        "--workers",
        "0",
        "--log-every",
        "1",
    ),
    *("--validate-every", "0", "--quiet"),
)
LAUNCH = (
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    # A free port: the default one is taken where a second launch begins in the same moment.
    *("--main_process_port", "0", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "codecplus"),
)


class Killed(BaseException):
    """As if the process had gone."""


def lines(folder):
    lines = [
        json.loads(line) for line in (folder / "training" / "log.jsonl").read_text().splitlines()
    ]
    return [{k: v for k, v in line.items() if not k.startswith("speed")} for line in lines]


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize(
    ("name", "killed_at", "fine_tuned", "kept"),
    [
        ("phased", 3, False, True),
        ("phased", 5, False, True),
        ("paper", 7, False, True),
        ("phased", 3, True, True),
        ("paper", 7, True, True),
        ("phased", 3, True, False),
    ],
)
def test_interrupted_equals_uninterrupted(
    place, tmp_path, monkeypatch, name, killed_at, fine_tuned, kept
):
    recipe, data = (
        Recipe.load(place / f"{name}.json", {"codebooks.kept": kept}),
        place / "recordings",
    )
    start = None
    if fine_tuned:
        net, start = new_model(recipe), tmp_path / "start"
        initialize(net.quantizer, torch.randn(500, net.config.hidden_size), rate_weight=0.02)
        net.save_pretrained(start)
    whole = train(recipe, data, tmp_path / "whole", init_from=start, options=OPTIONS)
    step = Trainer.step

    def step_or_die(trainer):
        if trainer.step_number == killed_at:
            raise Killed
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", step_or_die)
    with pytest.raises(Killed):
        train(recipe, data, tmp_path / "parts", init_from=start, options=OPTIONS)
    monkeypatch.undo()
    torch.manual_seed(99)
    parts = train(recipe, data, tmp_path / "parts", resume=True, options=OPTIONS)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[key]), key
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


def test_a_run_ends_with_a_checkpoint_that_loads(place, tmp_path):
    model = train(
        Recipe.load(place / "paper.json"), place / "recordings", tmp_path / "out", options=OPTIONS
    )
    loaded = CausalDacModel.from_pretrained(tmp_path / "out")
    codec = load_codec(tmp_path / "out")
    assert DacFeatureExtractor.from_pretrained(tmp_path / "out").sampling_rate == RATE
    assert model.state_dict().keys() == loaded.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in loaded.parameters())
    assert codec.encode(np.zeros(RATE, np.float32)).shape[0] == 3
    assert {p.name for p in (tmp_path / "out" / "training").iterdir()} == {
        "state.pt", "recipe.json", "discriminators.safetensors", "log.jsonl",
    }  # fmt: skip
    assert not list((tmp_path / "out").rglob("*partial*"))


def test_a_stock_class_loads_a_plain_dac_after_training(place, tmp_path):
    import transformers

    (tmp_path / "plain.json").write_text(json.dumps({**CONFIG, "model_type": "dac"}))
    fields = json.loads((place / "paper.json").read_text())
    recipe = Recipe.from_dict(
        {**fields, "preset": str(tmp_path / "plain.json"), "schedule": {"steps": 1}}
    )
    model = train(recipe, place / "recordings", tmp_path / "out", options=OPTIONS)
    stock = transformers.DacModel.from_pretrained(tmp_path / "out")
    audio = torch.randn(1, 1, 320)
    with torch.no_grad():
        torch.testing.assert_close(stock.encoder(audio), model.encoder(audio), atol=1e-5, rtol=1e-4)


def test_fine_tuning_starts_from_the_checkpoint_and_its_discriminators(
    place, tmp_path, monkeypatch
):
    recipe = Recipe.load(place / "paper.json", {"schedule.steps": 2})
    model = train(recipe, place / "recordings", tmp_path / "first", options=OPTIONS)
    seen = {}

    def look(run):
        seen["weights"] = run.trainer.model.folded_state_dict()
        seen["judge"] = run.trainer.adversary.discriminator.state_dict()
        return run.trainer.average

    monkeypatch.setattr(runs.Run, "run", look)
    train(
        recipe,
        place / "recordings",
        tmp_path / "second",
        init_from=tmp_path / "first",
        options=OPTIONS,
    )
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(seen["weights"][name], tensor)
    saved = load_file(tmp_path / "first" / "training" / "discriminators.safetensors")
    assert all(torch.equal(seen["judge"][name], tensor) for name, tensor in saved.items())


def test_a_checkpoint_that_got_new_codebooks_keeps_them(place, tmp_path):
    new_model(Recipe.load(place / "phased.json")).save_pretrained(tmp_path / "first")
    common = ("--steps", "2", "--data", str(place / "recordings"), *HERE)
    again = (
        "--preset",
        str(place / "phased.json"),
        "--model",
        str(tmp_path / "first"),
        "--new-codebooks",
    )
    for name, arguments, kept in (
        ("second", again, False),
        ("third", ("--model", str(tmp_path / "second")), True),
    ):
        assert main(["train", *arguments, *common, "-o", str(tmp_path / name)]) == 0
        recipe = json.loads((tmp_path / name / "training" / "recipe.json").read_text())
        assert recipe["codebooks"]["kept"] == kept


def test_a_wider_encoder_for_the_decoder_of_a_checkpoint(place, tmp_path):
    recipe = Recipe.load(
        place / "phased.json", {"schedule.steps": 3, "resting": ["decoder", "quantizer"]}
    )
    net = new_model(recipe)
    net.save_pretrained(tmp_path / "narrow")
    options = {"init_from": tmp_path / "narrow", "encoder_width": 12, "options": OPTIONS}
    train(recipe, place / "recordings", tmp_path / "wide", **options)
    wide = load_codec(tmp_path / "wide").model
    assert wide.config.encoder_hidden_size == 12
    codes = torch.randint(0, 16, (1, 3, 20))
    torch.testing.assert_close(
        wide.decode(audio_codes=codes).audio_values, net.decode(audio_codes=codes).audio_values
    )
    with pytest.raises(InputError, match="an encoder is widened where training begins"):
        train(
            recipe,
            place / "recordings",
            tmp_path / "wide",
            encoder_width=16,
            resume=True,
            options=OPTIONS,
        )


def test_a_folder_that_holds_a_run_is_not_overwritten(place, tmp_path):
    recipe = Recipe.load(place / "paper.json", {"schedule.steps": 1})
    train(recipe, place / "recordings", tmp_path / "out", options=OPTIONS)
    with pytest.raises(
        OutputExistsError, match="holds a run already; resume it, or choose another folder"
    ):
        train(recipe, place / "recordings", tmp_path / "out", options=OPTIONS)
    other = Recipe.load(place / "paper.json", {"lr": 0.5, "schedule.steps": 1})
    with pytest.raises(InputError, match=r"the run to resume has lr = 0\.001, not 0\.5"):
        train(other, place / "recordings", tmp_path / "out", resume=True, options=OPTIONS)
    with pytest.raises(InputError, match="there is no run to resume"):
        train(recipe, place / "recordings", tmp_path / "elsewhere", resume=True, options=OPTIONS)
    (tmp_path / "out" / "training" / "state.pt").write_bytes(b"no state")
    with pytest.raises(CheckpointError, match="cannot read the state"):
        train(recipe, place / "recordings", tmp_path / "out", resume=True, options=OPTIONS)


def test_ctrl_c_saves_and_can_be_resumed(place, tmp_path, monkeypatch):
    import signal

    recipe, step = Recipe.load(place / "paper.json"), Trainer.step

    def interrupted(trainer):
        if trainer.step_number == 2:
            signal.raise_signal(signal.SIGINT)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, place / "recordings", tmp_path / "out", options=OPTIONS)
    state = torch.load(tmp_path / "out" / "training" / "state.pt", weights_only=True)
    assert state["trainer"]["progress"]["step"] == 3


def test_a_stopped_run_prints_how_to_resume_it(place, tmp_path, monkeypatch, capsys):
    import signal

    step = Trainer.step

    def terminated(trainer):
        signal.raise_signal(signal.SIGTERM)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", terminated)
    recipe = Recipe.load(place / "paper.json")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, place / "recordings", tmp_path / "out", options=OPTIONS)
    assert "stopped at step 1 of 8 and saved; --resume goes on" in capsys.readouterr().err
    # The command ends as any other that is terminated, so that a scheduler knows why.
    arguments = ("--preset", str(place / "paper.json"), "--data", str(place / "recordings"), *HERE)
    assert main(["train", *arguments, "-o", str(tmp_path / "again")]) == 143
    assert "codecplus: terminated" in capsys.readouterr().err


def test_without_a_terminal_a_run_prints_what_it_is_and_a_line_at_each_log(place, tmp_path, capsys):
    recipe = Recipe.load(place / "phased.json")
    options = replace(OPTIONS, progress=True, log_every=4)
    train(recipe, place / "recordings", tmp_path / "out", options=options)
    printed = capsys.readouterr().err.splitlines()
    text = "\n".join(printed)
    assert f"training {tmp_path / 'out'}: 8 steps" in text
    assert "recordings: 20 files, 20 s, to train on; 0 to validate with" in text
    assert "computing: float32 on cpu, processes: 1, 4 crops of 0.02 s a step" in text
    assert (
        "warm-up from step 0; quantizer from step 2; discriminators from step 3; "
        "decay from step 5; decoder alone from step 6" in text
    )
    lines = [line for line in printed if line.startswith("step ")]
    assert [line.split(",")[0] for line in lines] == ["step 4 of 8", "step 8 of 8"]
    assert "relative_mel" in lines[0]
    assert lines[0].endswith("left")


def test_the_best_checkpoint_and_milestones_are_kept_and_can_be_started_from(
    place, tmp_path, monkeypatch
):
    scores = iter([3.0, 1.0, 2.0, 2.0])
    monkeypatch.setattr(
        runs.Validator,
        "__call__",
        lambda self, model, quantize: Validation(
            {"mel": next(scores)}, [clip.audio for clip in self.clips]
        ),
    )
    recipe = Recipe.load(place / "paper.json")
    options = replace(OPTIONS, validate_every=2, keep_every=4)
    train(recipe, place / "recordings", tmp_path / "out", options=options)
    training = tmp_path / "out" / "training"
    kept = {
        name: CausalDacModel.from_pretrained(training / name).state_dict()
        for name in ("best", "step-4", "step-8")
    }
    assert sorted(path.parent.name for path in training.glob("*/config.json")) == sorted(kept)
    key = "decoder.conv1.weight"
    assert torch.equal(kept["best"][key], kept["step-4"][key])
    assert not torch.equal(kept["best"][key], kept["step-8"][key])
    assert run_folder.checkpoint_to_load(f"{tmp_path / 'out'}@best") == training / "best"
    short = Recipe.load(place / "paper.json", {"schedule.steps": 1, "lr": 0.0})
    best = f"{tmp_path / 'out'}@best"
    tuned = train(short, place / "recordings", tmp_path / "next", init_from=best, options=OPTIONS)
    torch.testing.assert_close(tuned.state_dict()[key], kept["best"][key])
    with pytest.raises(InputError, match="kept no checkpoint 'step-5'; it has best and step-4 and"):
        run_folder.checkpoint_to_load(f"{tmp_path / 'out'}@step-5")


def test_codebooks_that_are_not_placed_yet_are_neither_scored_nor_saved(
    place, tmp_path, monkeypatch
):
    quantized = []

    def score(self, model, quantize):
        quantized.append(quantize)
        return Validation({"mel": 1.0}, [clip.audio for clip in self.clips])

    monkeypatch.setattr(runs.Validator, "__call__", score)
    begin, seen = Trainer._begin_phase, []

    def look(trainer):
        seen.append((tmp_path / "out" / "config.json").exists())
        begin(trainer)

    monkeypatch.setattr(Trainer, "_begin_phase", look)
    recipe = Recipe.load(place / "phased.json", {"schedule.steps": 5})  # quantizes from step 2 on
    options = replace(OPTIONS, validate_every=1, save_every=1)
    train(recipe, place / "recordings", tmp_path / "out", options=options)
    assert quantized == [False, False, True, True, True]
    assert seen == [False, False, False, True, True]


def test_without_validation_all_recordings_are_trained_on(place, tmp_path, monkeypatch):
    heard = []
    begin = runs.Run._begin

    def look(run):
        heard.append((len(run.trainer.batches.crops.source.files), run.validator is not None))
        begin(run)

    monkeypatch.setattr(runs.Run, "_begin", look)
    recipe = Recipe.load(place / "paper.json", {"schedule.steps": 1})
    for every in (0, 5):
        options = replace(OPTIONS, validate_every=every)
        out = tmp_path / str(every)
        train(recipe, place / "recordings", out, options=options)
    assert heard == [(20, False), (19, True)]
    with pytest.raises(InputError, match="got validate_every=0 with hold_out='folder'"):
        train(recipe, place / "recordings", tmp_path / "o", hold_out="folder", options=OPTIONS)
    with pytest.raises(InputError, match="expected validate_every of 0 or more, got -1"):
        replace(OPTIONS, validate_every=-1)


def test_a_resumed_run_warns_of_other_recordings(place, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.Run, "_train", lambda run: run.trainer.step())
    recipe = Recipe.load(place / "paper.json")
    train(recipe, place / "recordings", tmp_path / "out", options=OPTIONS)
    again = {"resume": True, "options": OPTIONS}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(None, place / "recordings", tmp_path / "out", **again)
    with pytest.warns(UserWarning, match="are not those of the run that is resumed"):
        train(None, place / "recordings" / "3.wav", tmp_path / "out", **again)


def test_milestones_are_kept_at_the_steps_of_the_recipe(place, tmp_path):
    recipe = Recipe.load(place / "paper.json", {"schedule.keep_at": [2, 4]})
    assert recipe.schedule.scaled(4).keep_at == [1, 2]
    train(adjusted(recipe, steps=4), place / "recordings", tmp_path / "out", options=OPTIONS)
    kept = (tmp_path / "out" / "training").glob("*/config.json")
    assert sorted(path.parent.name for path in kept) == ["step-1", "step-2"]


def test_weights_and_whole_speakers_from_the_command_line(place, tmp_path):
    rows = [f"recordings/{n}.wav,{('speech', 'music')[n % 2]},s{n % 4}" for n in range(20)]
    (place / "MANIFEST.csv").write_text("\n".join(["path,kind,speaker", *rows]))
    arguments = ("train", "--preset", str(place / "paper.json"), "--steps", "1", *HERE)
    data = ("--data", str(place / "recordings"), "--hold-out", "speaker", "--validate-every", "1")
    out = ("-o", str(tmp_path / "out"))
    assert main([*arguments, *data, "--weights", "speech=3", "music=1", *out]) == 0
    assert "validation/mel" in (tmp_path / "out" / "training" / "log.jsonl").read_text()


def test_recordings_of_silence_are_refused(place, tmp_path):
    (tmp_path / "silence").mkdir()
    save_audio(np.zeros(RATE, np.float32), tmp_path / "silence" / "silence.wav", RATE)
    recipe = Recipe.load(place / "paper.json")
    with pytest.raises(InputError, match="the recordings are silent: 320 places were tried"):
        train(recipe, tmp_path / "silence", tmp_path / "out", options=OPTIONS)
    assert not (tmp_path / "out").exists()


# A run that looks whether all models of the group are gone before the group ends, and one of whose
# processes is killed before the step DIE_AT.
SCRIPT = """
import os, signal, sys, weakref
import torch
from torch.nn.parallel import DistributedDataParallel
from codecplus.cli import main
from codecplus.training.loop import Trainer

models = []
init, step, destroy = DistributedDataParallel.__init__, Trainer.step, \
    torch.distributed.destroy_process_group

def remembered(self, *args, **options):
    init(self, *args, **options)
    models.append(weakref.ref(self))

def step_or_die(self):
    if os.environ["RANK"] == "1" and self.step_number == int(os.environ["DIE_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)

def looked(group=None):
    left = sum(model() is not None for model in models)
    print(f"rank {os.environ['RANK']}: {len(models)} models, {left} left", flush=True)
    destroy(group)

DistributedDataParallel.__init__ = remembered
Trainer.step = step_or_die
torch.distributed.destroy_process_group = looked
sys.exit(main())
"""


def launched(script, arguments, die_at):
    environment = {**os.environ, "DIE_AT": str(die_at)}
    return subprocess.run(
        [*LAUNCH[:-2], str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


@pytest.mark.slow
def test_two_processes_one_of_them_killed_compute_what_one_does_with_the_whole_batch(
    place, tmp_path
):
    # Muon in bf16 makes rounding a difference of 1 %, by which k-means then decides otherwise.
    # What processes draw for themselves is left out.
    drawn = {"quantizer_dropout": 0.0, "codebooks": {**PHASED["codebooks"], "searched": 0.0}}
    recipe = {**PHASED, **drawn, "optimizer": "adamw", "lr": 1e-3}
    recipe |= {
        "preset": str(place / "config.json"),
        "schedule": {**PHASED["schedule"], "steps": 5, "freeze_at": 4},
        "adversary": {**PHASED["adversary"], "first": True},
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    (tmp_path / "script.py").write_text(SCRIPT)
    common = ["train", "--data", str(place / "recordings"), "--save-every", "2", *HERE]
    new = [*common, "--preset", str(tmp_path / "recipe.json")]
    assert main([*new, "-o", str(tmp_path / "one")]) == 0

    two = ["-o", str(tmp_path / "two")]
    killed = launched(tmp_path / "script.py", [*new, *two], die_at=4)
    assert killed.returncode != 0
    state = torch.load(tmp_path / "two" / "training" / "state.pt", weights_only=True)
    assert state["trainer"]["progress"]["step"] == 4
    resumed = launched(tmp_path / "script.py", [*common, "--resume", *two], die_at=-1)
    assert resumed.returncode == 0, resumed.stderr
    for rank in (0, 1):
        assert f"rank {rank}: 2 models, 0 left" in resumed.stdout

    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=2e-3, abs=2e-5), (a["step"], key)


def test_a_batch_that_does_not_divide_says_so(place, tmp_path):
    options = RunOptions(**{**OPTIONS.__dict__, "accumulate": 3})
    with pytest.raises(
        InputError, match="a batch of 4 crops does not divide among 1 processes times 3"
    ):
        train(
            Recipe.load(place / "paper.json"),
            place / "recordings",
            tmp_path / "out",
            options=options,
        )


def test_tensorboard_gets_numbers_audio_and_spectrograms(place, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = RunOptions(**{**OPTIONS.__dict__, "tracker": "tensorboard", "validate_every": 2})
    recipe = Recipe.load(place / "paper.json", {"schedule.steps": 4})
    train(recipe, place / "recordings", tmp_path / "out", options=options)
    events = EventAccumulator(str(tmp_path / "out" / "training" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    names = (
        "train/mel",
        "train/adversarial",
        "train/gradient_norm",
        "train/revived",
        "codebooks/perplexity",
        "codebooks/used",
        "validation/mel",
        "validation/band/0-1 kHz",
        "speed/audio_seconds_per_second",
    )
    for name in names:
        values = [event.value for event in events.Scalars(name)]
        assert values
        assert all(map(math.isfinite, values))
    assert [event.step for event in events.Scalars("train/mel")] == [1, 2, 3, 4]
    assert any(tag.endswith("decoded") for tag in tags["audio"])
    assert any(tag.endswith("reference") for tag in tags["images"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "dac-16khz-life"], "no recipe 'dac-16khz-life'"),
        ([], "expected --preset to train from the start, --model to fine-tune, or --resume"),
        (["--preset", "dac-16khz-live", "--tracker", "paper"], "no tracker 'paper'"),
        (["--preset", "dac-16khz-live", "--set", "lr"], "expected --set KEY=VALUE"),
        (["--model", "dac-16khz-life"], "no checkpoint 'dac-16khz-life'"),
        (
            ["--preset", "dac-16khz-live", "--encoder-width", "64"],
            "an encoder is widened where training begins, from",
        ),
        (
            ["--preset", "dac-16khz-live", "--set", 'resting=["decoder"]'],
            "parts rest where training starts from a",
        ),
        (
            ["--preset", "dac-16khz-live", "--new-codebooks"],
            "new codebooks are for a checkpoint that has some",
        ),
        (
            ["--preset", "dac-16khz-live", "--decoder-width", "1024"],
            "a decoder is widened where training begins, from",
        ),
        (["--preset", "dac-16khz-live", "--weights", "much"], "as numbers or KIND=NUMBER, got"),
        (["--preset", "dac-16khz-live", "--weights", "a=1", "2"], "by kind, got some of both"),
        (["--resume", "--new-codebooks"], "resumes with the settings it began with"),
        (["--resume", "--steps", "3"], "resumes with the settings it began with"),
        (["--preset", "dac-16khz-live", "--data", "nowhere"], "there is no folder or file nowhere"),
    ],
)
def test_bad_arguments_print_one_line(place, tmp_path, capsys, arguments, message):
    data = [] if "--data" in arguments else ["--data", str(place / "recordings")]
    assert main(["train", *arguments, *data, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_commands_of_the_page_can_be_parsed():
    import shlex
    from pathlib import Path

    from codecplus.cli import build_parser

    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    commands = [
        line for line in page.splitlines() if line.startswith(("codecplus ", "accelerate launch"))
    ]
    assert len(commands) >= 8
    for line in commands:
        words = shlex.split(line)
        build_parser().parse_args(words[words.index("codecplus") + 1 :])
