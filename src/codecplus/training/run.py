"""A whole training run: from a recipe and recordings to a folder that `load_codec` reads, stopped
and resumed at will.

The folder holds the checkpoint, and in `training/` what the run needs: `state.pt`, `recipe.json`,
the discriminators, `log.jsonl` and the tracker's files. Everything is written to a temporary name
first.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from codecplus.acceleration.training import use_training_layers
from codecplus.checkpoints import load_model
from codecplus.configuration import CausalDacConfig, DacConfig
from codecplus.errors import CheckpointError, InputError, MissingExtraError, OutputExistsError
from codecplus.kernels import processor_flags
from codecplus.modeling_dac import CausalDacModel, DacFeatureExtractor, DacModel
from codecplus.training.codebooks import perplexity
from codecplus.training.data import Cutter
from codecplus.training.loop import Trainer, new_model
from codecplus.training.recipe import Recipe
from codecplus.training.sources import TableOptions, ValidationClip, open_data
from codecplus.training.tracking import Tracker, check_tracker
from codecplus.training.validation import Validator
from codecplus.training.widening import with_wider_encoder

_SHOWN_CLIPS = 4  # of the validation clips, whose audio goes to the tracker


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a recipe is carried out here; none of it changes what is learned, but for rounding."""

    workers: int | None = (
        None  # processes that read recordings; none: one per two cores, at most four
    )
    accumulate: int = (
        1  # batches per step, each of `recipe.batch / accumulate` crops over all processes
    )
    precision: str = "auto"  # bf16, no, or auto: bf16 where the hardware computes in it
    cpu: bool = False
    save_every: int = 500  # steps
    validate_every: int = 1000  # 0: never
    log_every: int = 10
    tracker: str = "tensorboard"
    run_name: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "bf16", "no"):
            raise InputError(f"expected precision auto, bf16 or no, got {self.precision!r}")
        for name in ("accumulate", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"expected {name} of at least 1, got {getattr(self, name)}")


def train(
    recipe: Recipe | None,
    data: Any,
    output: str | os.PathLike,
    *,
    init_from: str | os.PathLike | DacModel | None = None,
    encoder_width: int | None = None,
    resume: bool = False,
    validation: Any = None,
    table: TableOptions | None = None,
    options: RunOptions | None = None,
) -> DacModel:
    """Train a codec on recordings, write it to `output`, and return its averaged weights.

    Args: recipe: what to do; may be left out to resume. data: a folder, several, or a data set: see
        `sources.open_data`. output: folder of the checkpoint; must not hold a run already, unless
        it is resumed. init_from: a checkpoint, anything that `load_codec` reads, or a model, whose
        training goes on from there with
            its own architecture.
        encoder_width: give the encoder of `init_from` so many channels in its first layer, more
        than it has.
        resume: go on where the run in `output` was when it last saved; it must be the same recipe.
        validation: data to validate with; by default a small part of `data`, which is not trained
        on.
        table: how a data set is read.
        options: how to go about it here.

    Raises:
        InputError: for arguments or data that cannot be used.
        CheckpointError: for a checkpoint or a state that cannot be read.
        OutputExistsError: if `output` holds a run and is not to be resumed.
        TrainingError: if the gradient is not finite again and again.
    """
    options, folder = options or RunOptions(), Path(output)
    check_tracker(options.tracker)
    state = _find_state(folder, resume)
    if encoder_width is not None and (init_from is None or state is not None):
        raise InputError(
            "an encoder is widened where training begins, from a checkpoint: give it with init_from alone"
        )
    if state is not None:
        recipe = _resumed_recipe(state, recipe)
        model = _build(state["config"])
    elif recipe is None:
        raise InputError("expected a recipe; one can be left out only to resume a run")
    elif init_from is not None:
        model = init_from if isinstance(init_from, DacModel) else load_model(init_from)
        if encoder_width is not None:
            model = with_wider_encoder(model, encoder_width, recipe.seed)
    else:
        model = new_model(recipe)
    fine_tune = init_from is not None if state is None else state["trainer"]["fine_tune"]
    if recipe.resting and not fine_tune:
        raise InputError(
            "parts rest where training starts from a checkpoint: give init_from, or leave resting empty"
        )
    if not recipe.codebooks.kept and not fine_tune:
        raise InputError(
            "new codebooks are for a checkpoint that has some: give init_from, or leave codebooks.kept"
        )
    steered = None if state is None else state["trainer"].get("steered", False)
    phases = recipe.schedule.freeze_at is not None or not (
        fine_tune or recipe.schedule.quantize_at == 0
    )
    accelerator = _accelerator(options, phases)
    processes = accelerator.num_processes
    share, rest = divmod(recipe.batch, processes * options.accumulate)
    if rest or not share:
        raise InputError(
            f"a batch of {recipe.batch} crops does not divide among {processes} processes times {options.accumulate} "
            f"accumulated batches; choose a batch that is a multiple of {processes * options.accumulate}"
        )
    cutter = Cutter(
        model.config.sampling_rate, recipe.crop_samples(model.config), recipe.augmentation
    )
    workers = (
        min(4, (os.cpu_count() or 1) // 2 or 1) if options.workers is None else options.workers
    )
    batches, clips = open_data(
        data, cutter, share, validation=validation, options=table, seed=recipe.seed, rank=accelerator.process_index,
        processes=processes, workers=workers,
    )  # fmt: skip
    use_training_layers(model)
    dtype = _dtype(options.precision, accelerator.device)
    trainer = Trainer(
        model, batches, recipe, accelerator, dtype=dtype, accumulate=options.accumulate, fine_tune=fine_tune,
        steered=steered,
    )  # fmt: skip
    if state is not None:
        _load(trainer, state)
    elif isinstance(init_from, str | os.PathLike):
        _warm_discriminators(trainer, Path(init_from) / "training" / "discriminators.safetensors")
    return _Run(trainer, folder, options, clips).run()


class _Run:
    """The steps of a run, and what happens between them."""

    def __init__(
        self, trainer: Trainer, folder: Path, options: RunOptions, clips: list[ValidationClip]
    ):
        self.trainer, self.folder, self.options = trainer, folder, options
        self.accelerator, self.recipe = trainer.accelerator, trainer.recipe
        self.validator = None
        if clips and options.validate_every:
            self.validator = Validator(clips, trainer.model.config.sampling_rate)
        self.sums: dict[str, Tensor] = {}
        self.counted = 0
        self.started, self.first = time.monotonic(), trainer.step_number

    def run(self) -> DacModel:
        """Do what is left to do; return the averaged weights."""
        steps, main = self.recipe.schedule.steps, self.accelerator.is_main_process
        if main:
            (self.folder / "training").mkdir(parents=True, exist_ok=True)
            _write_json(self.folder / "training" / "recipe.json", self.recipe.as_dict())
        self.accelerator.wait_for_everyone()
        self.tracker = Tracker(
            self.accelerator, self.options.tracker, self.folder / "training", self.recipe.as_dict(),
            self.options.run_name or self.folder.resolve().name,
        )  # fmt: skip
        self.tracker.rewind(self.trainer.step_number + 1)
        if self.validator is None and main and self.options.validate_every:
            warnings.warn(
                "there are too few recordings to keep some for validation; none is done",
                stacklevel=3,
            )
        from tqdm import tqdm

        shown = main and self.options.progress
        with _asked_to_stop() as stop, tqdm(
            total=steps, initial=self.trainer.step_number, desc="training", unit="step", disable=None if shown else True
        ) as bar:  # fmt: skip
            while self.trainer.step_number < steps:
                self._count(self.trainer.step())
                self._after_step(bar)
                if self._agreed(stop):
                    self.save()
                    raise KeyboardInterrupt
        self.trainer.batches.close()
        if self.validator is not None:
            self.validator.speech.close()
        self.save()
        self.tracker.close()  # ends the group of processes, too
        average = self.trainer.average
        average.remove_weight_norm()
        return average

    def _after_step(self, bar: Any) -> None:
        step, options, last = self.trainer.step_number, self.options, self.recipe.schedule.steps
        bar.update()
        if step % options.log_every == 0 or step == last:
            bar.set_postfix(self._log(step), refresh=False)
        if self.validator is not None and (step % options.validate_every == 0 or step == last):
            self._validate(self.validator, step)
        if step % options.save_every == 0 and step != last:
            self.save()

    def _count(self, report: dict[str, Any]) -> None:
        for name, value in report.items():
            value = torch.as_tensor(value, dtype=torch.float32, device=self.accelerator.device)
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.counted += 1

    def _log(self, step: int) -> dict[str, str]:
        """Means since the last time, over processes too, to the tracker; a few of them for the
        progress bar.
        """
        names = sorted(self.sums)
        sums = torch.stack([self.sums[name] for name in names])
        means = cast(Tensor, self.accelerator.reduce(sums / self.counted, "mean"))
        values = {f"train/{name}": value for name, value in zip(names, means.tolist(), strict=True)}
        self.sums, self.counted = {}, 0
        for name in ("skipped", "revived"):  # these are counted, not averaged
            if f"train/{name}" in values:
                values[f"train/{name}"] *= self.options.log_every
        config, recipe = self.trainer.model.config, self.recipe
        elapsed, done = time.monotonic() - self.started, step - self.first
        crop = recipe.crop_samples(config) / config.sampling_rate
        values["speed/audio_seconds_per_second"] = done * recipe.batch * crop / elapsed
        values["train/audio_hours"] = step * recipe.batch * crop / 3600
        chosen = self.trainer.chosen
        if bool(chosen.any()):
            used = (chosen > 0).float().mean(dim=1)
            values["codebooks/used"] = float(used.mean())
            values["codebooks/perplexity"] = float(perplexity(chosen).mean())
            for index, (share, effective) in enumerate(
                zip(used, perplexity(chosen), strict=True), 1
            ):
                values[f"codebook {index:02d}/used"], values[f"codebook {index:02d}/perplexity"] = (
                    float(share), float(effective),
                )  # fmt: skip
            chosen.zero_()
        self.tracker.numbers(values, step)
        shown = {name: f"{values[f'train/{name}']:.3f}" for name in self.trainer.losses}
        for name, key in (("perplexity", "codebooks/perplexity"), ("skipped", "train/skipped")):
            if values.get(key):
                shown[name] = f"{values[key]:.0f}"
        return shown

    def _validate(self, validator: Validator, step: int) -> None:
        if not self.accelerator.is_main_process:
            return
        rate = validator.sample_rate
        found = validator(self.trainer.average, quantize=self.trainer.quantized)
        self.tracker.numbers(
            {f"validation/{name}": value for name, value in found.scores.items()}, step
        )
        for clip, decoded in list(zip(validator.clips, found.decoded, strict=True))[:_SHOWN_CLIPS]:
            if step <= self.options.validate_every:
                self.tracker.clip(f"{clip.name}/reference", clip.audio, rate, step)
            self.tracker.clip(f"{clip.name}/decoded", decoded, rate, step)

    def _agreed(self, stop: threading.Event) -> bool:
        """Whether any process was asked to stop; all must do so at the same step."""
        if self.accelerator.num_processes == 1:
            return stop.is_set()
        asked = torch.tensor(float(stop.is_set()), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, "sum"))

    def save(self) -> None:
        """Write the state, and the checkpoint where there is one already worth its name."""
        from accelerate.utils import gather_object

        trainer, folder = self.trainer, self.folder
        places = gather_object([trainer.batches.state_dict()])
        if self.accelerator.is_main_process:
            state = {
                "trainer": trainer.state_dict(),
                "batches": places,
                "recipe": self.recipe.as_dict(),
                "config": trainer.model.config.to_json_string(use_diff=False),
            }
            partial = folder / "training" / "state.pt.partial"
            torch.save(state, partial)
            if trainer.discriminator is not None:
                _save_discriminators(trainer, folder / "training" / "discriminators.safetensors")
            if trainer.quantized or trainer.step_number == self.recipe.schedule.steps:
                export(trainer.average, folder)
            # Last, so that what it says of the step holds for the rest.
            os.replace(partial, folder / "training" / "state.pt")
        self.accelerator.wait_for_everyone()


def export(model: DacModel, folder: Path) -> None:
    """Write a codec and its feature extractor to a folder, as `save_pretrained` does, each file
    whole or not at all.
    """
    config = model.config
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        model.save_pretrained(partial)
        DacFeatureExtractor(
            sampling_rate=config.sampling_rate, hop_length=config.hop_length
        ).save_pretrained(partial)
        for path in sorted(Path(partial).iterdir()):
            if path.is_file():
                os.replace(path, folder / path.name)
            elif path.is_dir():
                shutil.copytree(path, folder / path.name, dirs_exist_ok=True)


def _accelerator(options: RunOptions, phases: bool) -> Any:
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise MissingExtraError(
            "training needs accelerate: pip install codecplus[train]"
        ) from error
    # While there is no quantizer, and while the encoder rests, parts of the codec are not used.
    parallel = DistributedDataParallelKwargs(find_unused_parameters=phases)
    return Accelerator(
        cpu=options.cpu,
        mixed_precision="no",  # the codec is cast as a whole, which autocast does not do for snake and residual sums
        log_with=None if options.tracker == "none" else options.tracker,
        project_dir="." if options.tracker == "tensorboard" else None,
        kwargs_handlers=[parallel],
    )


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        if device.type == "cuda":
            precision = "bf16" if torch.cuda.is_bf16_supported() else "no"
        elif device.type == "cpu":
            capable = {"amx_bf16", "avx512_bf16"} & processor_flags()
            precision = "bf16" if capable else "no"
        else:
            precision = "no"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _find_state(folder: Path, resume: bool) -> dict[str, Any] | None:
    path = folder / "training" / "state.pt"
    if resume:
        if not path.exists():
            raise InputError(
                f"there is no run to resume in {folder}: it holds no training/state.pt"
            )
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"cannot read the state of the run at {path}: {type(error).__name__}"
            ) from error
    if path.exists() or (folder / "config.json").exists():
        what = "a run" if path.exists() else "a checkpoint"
        raise OutputExistsError(
            f"{folder} holds {what} already; resume it, or choose another folder"
        )
    return None


def _resumed_recipe(state: dict[str, Any], recipe: Recipe | None) -> Recipe:
    saved = Recipe.from_dict(state["recipe"])
    if recipe is None or recipe == saved:
        return saved
    old, new = _flat(saved.as_dict()), _flat(recipe.as_dict())
    name = next(key for key in sorted({*old, *new}) if old.get(key) != new.get(key))
    raise InputError(
        f"the run to resume has {name} = {old.get(name)}, not {new.get(name)}; leave its settings as they were, or "
        "start another run from its checkpoint"
    )


def _flat(fields: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in fields.items():
        flat |= (
            _flat(value, f"{before}{key}.")
            if isinstance(value, dict)
            else {f"{before}{key}": value}
        )
    return flat


def _build(config_json: str) -> DacModel:
    fields = json.loads(config_json)
    if fields["model_type"] == CausalDacConfig.model_type:
        return CausalDacModel(CausalDacConfig.from_dict(fields))
    return DacModel(DacConfig.from_dict(fields))


def _load(trainer: Trainer, state: dict[str, Any]) -> None:
    accelerator, places = trainer.accelerator, state["batches"]
    if len(places) != accelerator.num_processes:
        raise InputError(
            f"the run to resume had {len(places)} processes, this one has {accelerator.num_processes}; launch as many"
        )
    try:
        trainer.load_state_dict({**state["trainer"], "batches": places[accelerator.process_index]})
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the saved state does not fit its recipe: {str(error).splitlines()[0]}"
        ) from error


def _save_discriminators(trainer: Trainer, path: Path) -> None:
    assert trainer.discriminator is not None
    state = {
        name: value.detach().cpu().contiguous()
        for name, value in trainer.discriminator.state_dict().items()
    }
    partial = path.with_suffix(".partial")
    save_file(state, partial, metadata={"format": "pt"})
    os.replace(partial, path)


def _warm_discriminators(trainer: Trainer, path: Path) -> None:
    """Start from the discriminators that were trained with the checkpoint, where they are there and
    of this shape.
    """
    if trainer.discriminator is None or not path.is_file():
        return
    try:
        trainer.discriminator.load_state_dict(load_file(path))
    except Exception:
        warnings.warn(
            f"the discriminators at {path} have other sizes; new ones are trained", stacklevel=3
        )


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that is set by the first Ctrl-C or SIGTERM; the second interrupts at once."""
    event, before = threading.Event(), {}

    def ask(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(fields, indent=2) + "\n")
    os.replace(partial, path)


def adjusted(
    recipe: Recipe,
    *,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
) -> Recipe:
    """A recipe with some of its numbers replaced; another number of steps scales its whole course."""
    if steps is not None:
        if steps < 1:
            raise InputError(f"expected at least 1 step, got {steps}")
        recipe = replace(recipe, schedule=recipe.schedule.scaled(steps))
    given = {
        name: value
        for name, value in (("batch", batch), ("lr", lr), ("seed", seed))
        if value is not None
    }
    return replace(recipe, **given)
