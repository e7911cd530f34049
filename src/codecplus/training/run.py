"""A whole training run: from recordings and a recipe to a folder that `load_codec` reads.

It knows when to log, validate, save and stop. `loop` knows the steps, `saving` the files.
"""

import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from codecplus.acceleration.training import use_training_layers
from codecplus.checkpoints import load_model
from codecplus.errors import InputError, MissingExtraError
from codecplus.kernels import processor_flags
from codecplus.modeling_dac import DacModel
from codecplus.system.devices import available_cores, multiplies_bf16
from codecplus.system.progress import progress_bar
from codecplus.training.data import Batches, Cutter
from codecplus.training.initialization import new_model
from codecplus.training.loop import Trainer
from codecplus.training.processes import ended_group
from codecplus.training.recipe import Recipe
from codecplus.training.reporting import Window, banner
from codecplus.training.run_folder import (
    RunFolder,
    checkpoint_to_load,
    load_discriminators,
    load_state,
    resumed_model,
    resumed_recipe,
)
from codecplus.training.sampling import Sampling, TableOptions, ValidationClip, open_data
from codecplus.training.tracking import Tracker, check_tracker
from codecplus.training.validation import Validator
from codecplus.training.widening import with_wider_decoder, with_wider_encoder

_FIRST_CROPS = 16  # that are checked for silence before training begins
_SHOWN_CLIPS = 4  # validation clips whose audio goes to the tracker


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How this machine carries out a recipe. Except for rounding, results do not depend on it."""

    # Processes that read recordings. None: one per two cores, at most four.
    workers: int | None = None
    # Batches per step, each of `recipe.batch / accumulate` crops over all processes.
    accumulate: int = 1
    # bf16, no (fp32), or auto: as the recipe says.
    precision: str = "auto"
    cpu: bool = False
    save_every: int = 500  # steps
    validate_every: int = 1000  # steps; 0: never, and no recording is kept for it
    keep_every: int = 0  # steps between checkpoints that are kept; 0: only the last is kept
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
        for name in ("validate_every", "keep_every"):
            if getattr(self, name) < 0:
                raise InputError(f"expected {name} of 0 or more, got {getattr(self, name)}")


def train(
    recipe: Recipe | None,
    data: Any,
    output: str | os.PathLike,
    *,
    init_from: str | os.PathLike | DacModel | None = None,
    encoder_width: int | None = None,
    decoder_width: int | None = None,
    resume: bool = False,
    validation: Any = None,
    table: TableOptions | None = None,
    weights: Sequence[float] | Mapping[str, float] | None = None,
    hold_out: str = "file",
    options: RunOptions | None = None,
) -> DacModel:
    """Train a codec on recordings, write it to `output`, and return its averaged weights.

    Args:
        recipe: the settings of the training; may be None to resume a run.
        data: a folder, several, or a data set: see `sources.open_data`.
        output: folder of the checkpoint. It must not hold a run, unless that is resumed.
        init_from: a checkpoint to fine-tune, anything that `load_codec` reads, or a model. The
            architecture is its own. `OUT@best` is the best checkpoint of the run in OUT by
            validation, `OUT@step-5000` one that `keep_every` kept.
        encoder_width: number of channels in the first layer of the encoder, more than `init_from`
            has; its encoder is widened to it.
        decoder_width: the same for the decoder, which begins with its most channels.
        resume: continue the run in `output` from its last save, with the same recipe.
        validation: data to validate with; by default a small part of `data`, which is then not
            trained on. Where `options.validate_every` is 0, all of `data` is trained on.
        table: how a data set is read.
        weights: share of each of several folders or files in `data`, in their order, or of each
            kind of recording by its name in the manifest, such as `{"speech": 9, "music": 1}`.
            Without it every second counts the same, or as `recipe.drawing` says.
        hold_out: the unit that is kept for validation: `file`, `speaker` or `folder`.
        options: how this machine carries out the recipe.

    To resume, give the same data, weights and hold_out.

    Raises:
        InputError: for arguments or data that cannot be used.
        CheckpointError: for a checkpoint or a state that cannot be read.
        OutputExistsError: if `output` holds a run and is not to be resumed.
        TrainingError: if the gradient is not finite for several steps in a row.
    """
    options = options or RunOptions()
    check_tracker(options.tracker)
    folder = RunFolder(output)
    for part, width in (("an encoder", encoder_width), ("a decoder", decoder_width)):
        if width is not None and (init_from is None or resume):
            raise InputError(
                f"{part} is widened where training begins, from a checkpoint: give it with "
                "init_from alone"
            )
    if resume:
        start = _saved_start(folder.read_state(), recipe)
    else:
        folder.refuse_to_overwrite()
        start = _new_start(recipe, init_from, encoder_width, decoder_width)
    recipe = start.recipe
    _check_recipe(recipe, start.fine_tune)

    accelerator = _accelerator(options, _leaves_parts_unused(recipe, start.fine_tune))
    sampling = Sampling(
        weights=weights, drawing=recipe.drawing, hold_out=_held_out(hold_out, options)
    )
    with ended_group(accelerator):
        batches, clips = _open_batches(
            start, data, validation, table, sampling, options, accelerator
        )
        trainer = _new_trainer(start, batches, options, accelerator)
        return Run(trainer, folder, options, clips).run()


def _held_out(hold_out: str, options: RunOptions) -> str | None:
    """Return the unit to keep for validation; None without validation.

    Raises InputError where whole speakers or folders are to be kept for no validation.
    """
    if options.validate_every:
        return hold_out
    if hold_out != "file":
        raise InputError(
            f"expected validation of what is held out, got validate_every=0 with hold_out="
            f"{hold_out!r}; leave one of them away"
        )
    return None


@dataclass(frozen=True)
class _Start:
    """Where a run starts: a new model, a checkpoint, or the saved state of the run itself."""

    recipe: Recipe
    model: DacModel
    fine_tune: bool
    steered: bool | None  # None: the weights tell
    state: dict[str, Any] | None  # of the run that is resumed, still to be loaded
    discriminators: Path | None  # of the checkpoint, if there are some


def _saved_start(state: dict[str, Any], recipe: Recipe | None) -> _Start:
    """Return the start of a run that is resumed. Raises InputError for another recipe."""
    return _Start(
        recipe=resumed_recipe(state, recipe),
        model=resumed_model(state),
        fine_tune=state["trainer"]["fine_tune"],
        steered=state["trainer"].get("steered", False),
        state=state,
        discriminators=None,
    )


def _new_start(
    recipe: Recipe | None,
    init_from: str | os.PathLike | DacModel | None,
    encoder_width: int | None,
    decoder_width: int | None,
) -> _Start:
    """Return the start of a new run. Raises InputError without a recipe."""
    if recipe is None:
        raise InputError("expected a recipe; one can be left out only to resume a run")
    discriminators = None
    if isinstance(init_from, str | os.PathLike):
        discriminators = RunFolder.of_checkpoint(init_from).discriminators
    return _Start(
        recipe=recipe,
        model=_model_to_start_from(recipe, init_from, encoder_width, decoder_width),
        fine_tune=init_from is not None,
        steered=None,
        state=None,
        discriminators=discriminators,
    )


def _new_trainer(start: _Start, batches: Batches, options: RunOptions, accelerator: Any) -> Trainer:
    """Return the trainer of a run, with all that is loaded. Raises InputError for silent data."""
    recipe = start.recipe
    if start.state is None:
        _refuse_silence(batches, recipe)
    use_training_layers(start.model)
    trainer = Trainer(
        start.model,
        batches,
        recipe,
        accelerator,
        dtype=_dtype(options.precision, recipe.precision, accelerator.device),
        accumulate=options.accumulate,
        fine_tune=start.fine_tune,
        steered=start.steered,
    )
    if start.state is not None:
        load_state(trainer, start.state)
    elif start.discriminators is not None:
        load_discriminators(trainer, start.discriminators)
    return trainer


def adjusted(
    recipe: Recipe,
    *,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
) -> Recipe:
    """Return a recipe with some of its numbers replaced.

    Another number of steps scales its whole course. Raises InputError for less than one.
    """
    if steps is not None:
        if steps < 1:
            raise InputError(f"expected at least 1 step, got {steps}")
        recipe = replace(recipe, schedule=recipe.schedule.scaled(steps))
    for name, number in (("batch", batch), ("lr", lr), ("seed", seed)):
        if number is not None:
            recipe = replace(recipe, **{name: number})
    return recipe


def _model_to_start_from(
    recipe: Recipe,
    init_from: str | os.PathLike | DacModel | None,
    encoder_width: int | None,
    decoder_width: int | None,
) -> DacModel:
    """Return the model of a run that begins: a new one, or that of a checkpoint."""
    if init_from is None:
        return new_model(recipe)
    if isinstance(init_from, DacModel):
        model = init_from
    else:
        model = load_model(checkpoint_to_load(init_from))
    if encoder_width is not None:
        model = with_wider_encoder(model, encoder_width, recipe.seed)
    if decoder_width is not None:
        model = with_wider_decoder(model, decoder_width, recipe.seed)
    return model


def _check_recipe(recipe: Recipe, fine_tune: bool) -> None:
    """Raise InputError for settings that need a checkpoint where there is none."""
    if recipe.resting and not fine_tune:
        raise InputError(
            "parts rest where training starts from a checkpoint: give init_from, or leave resting "
            "empty"
        )
    if not recipe.codebooks.kept and not fine_tune:
        raise InputError(
            "new codebooks are for a checkpoint that has some: give init_from, or leave "
            "codebooks.kept"
        )


def _leaves_parts_unused(recipe: Recipe, fine_tune: bool) -> bool:
    """Return whether some steps leave out parts of the codec: the quantizer at first, a frozen
    encoder.
    """
    schedule = recipe.schedule
    begins_without_quantizer = not fine_tune and schedule.quantize_at != 0
    return schedule.freeze_at is not None or begins_without_quantizer


def _open_batches(
    start: _Start,
    data: Any,
    validation: Any,
    table: TableOptions | None,
    sampling: Sampling,
    options: RunOptions,
    accelerator: Any,
) -> tuple[Batches, list[ValidationClip]]:
    """Return the crops of this process, and the clips to validate with."""
    recipe = start.recipe
    processes = accelerator.num_processes
    batches_per_step = processes * options.accumulate
    if recipe.batch % batches_per_step:
        raise InputError(
            f"a batch of {recipe.batch} crops does not divide among {processes} processes times "
            f"{options.accumulate} accumulated batches; choose a batch that is a multiple of "
            f"{batches_per_step}"
        )
    config = start.model.config
    cutter = Cutter(config.sampling_rate, recipe.crop_samples(config), recipe.augmentation)
    workers = options.workers
    if workers is None:
        workers = min(4, max(1, available_cores() // 2))
    return open_data(
        data,
        cutter,
        recipe.batch // batches_per_step,
        validation=validation,
        options=table,
        sampling=sampling,
        seed=recipe.seed,
        rank=accelerator.process_index,
        processes=processes,
        workers=workers,
    )


def _refuse_silence(batches: Batches, recipe: Recipe) -> None:
    """Raise InputError if the first crops are all silent, each after twenty draws."""
    silence_db = recipe.augmentation.silence_db
    num_batches = math.ceil(_FIRST_CROPS / batches.batch)
    crops = torch.cat([batch.audio for batch in batches.peek(num_batches)])
    places = len(crops) * recipe.augmentation.attempts
    if bool((crops.square().mean(dim=1) <= 10 ** (silence_db / 10)).all()):
        raise InputError(
            f"the recordings are silent: {places} places were tried, and all lie below "
            f"{silence_db:g} dB (augmentation.silence_db); give others to train on"
        )


def _accelerator(options: RunOptions, unused_parts: bool) -> Any:
    """Return an accelerator. Raises MissingExtraError if accelerate is not installed."""
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise MissingExtraError(
            "training needs accelerate: pip install 'codecplus[train]'"
        ) from error
    trackers: dict[str, Any] = {}
    if options.tracker != "none":
        trackers["log_with"] = options.tracker
    if options.tracker == "tensorboard":
        trackers["project_dir"] = "."  # required, but replaced when the tracker starts
    return Accelerator(
        cpu=options.cpu,
        # The codec is cast as a whole, which autocast does not do for snake and residual sums.
        mixed_precision="no",
        **trackers,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused_parts)],
    )


def _dtype(precision: str, recipe_precision: str, device: torch.device) -> torch.dtype:
    """Return the precision of the networks, that of the recipe where `precision` is auto.

    There, auto is bf16 where the hardware multiplies it.
    """
    if precision == "auto":
        precision = recipe_precision
    if precision == "auto":
        bf16 = multiplies_bf16(device, processor_flags())
    else:
        bf16 = precision == "bf16"
    if bf16:
        return torch.bfloat16
    return torch.float32


class _Stop:
    """Whether Ctrl-C or SIGTERM asked to stop; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._number = 0  # of the signal
        self._handlers: dict[int, Any] = {}  # those before the run

    def ask(self, number: int, frame: Any) -> None:
        """Handle a signal."""
        if self.asked:
            self.end()
        self.asked = True
        self._number = number

    def listen(self) -> None:
        """Handle the signals, in the main thread; elsewhere they cannot be."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self.ask)

    def listen_no_more(self) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def end(self) -> NoReturn:
        """Do what the signal would have done without the run, or else raise KeyboardInterrupt."""
        handler = self._handlers.get(self._number)
        if callable(handler):
            handler(self._number, None)
        raise KeyboardInterrupt


@contextmanager
def _asked_to_stop() -> Iterator[_Stop]:
    """Return whether a signal asks to stop, while the block runs."""
    stop = _Stop()
    stop.listen()
    try:
        yield stop
    finally:
        stop.listen_no_more()


class Run:
    """A run: the steps of its trainer, with logs, validation and saves between them."""

    def __init__(
        self, trainer: Trainer, folder: RunFolder, options: RunOptions, clips: list[ValidationClip]
    ):
        self.trainer = trainer
        self.folder = folder
        self.options = options
        self.accelerator = trainer.accelerator
        self.recipe = trainer.recipe
        self.steps = self.recipe.schedule.steps
        self.validator: Validator | None = None
        if clips and options.validate_every:
            self.validator = Validator(clips, trainer.model.config.sampling_rate)
        self.window = Window(trainer)

    def run(self) -> DacModel:
        """Train to the last step; return the averaged weights.

        However it ends, no worker is left, and no model that the group of processes shares.
        """
        with ExitStack() as stack:
            stack.callback(self._close)
            self._begin()
            stack.callback(self.tracker.close)
            self._train()
            self.save()
        return _finished(self.trainer.average)

    def _close(self) -> None:
        self.trainer.close()
        if self.validator is not None:
            self.validator.speech.close()

    def _begin(self) -> None:
        main = self.accelerator.is_main_process
        if main:
            self.folder.create(self.recipe)
        self.accelerator.wait_for_everyone()
        self.tracker = Tracker(
            self.accelerator,
            self.options.tracker,
            self.folder.training,
            self.recipe.as_dict(),
            self.options.run_name or self.folder.path.resolve().name,
        )
        self.tracker.rewind(self.trainer.step_number + 1)
        if main and self.validator is None and self.options.validate_every:
            warnings.warn(
                "there are too few recordings to keep some for validation; none is done",
                stacklevel=4,
            )
        if self.options.progress:
            clips = len(self.validator.clips) if self.validator is not None else 0
            self._say(banner(self.trainer, self.folder.path, clips))

    def _say(self, text: str) -> None:
        """Print to stderr, in one of the processes."""
        if self.accelerator.is_main_process:
            print(text, file=sys.stderr, flush=True)

    def _train(self) -> None:
        bar = progress_bar(
            shown=self.accelerator.is_main_process and self.options.progress,
            total=self.steps,
            initial=self.trainer.step_number,
            desc="training",
            unit="step",
        )
        with _asked_to_stop() as stop, bar:
            while self.trainer.step_number < self.steps:
                self.window.add(self.trainer.step())
                self._after_step(bar)
                if self._agreed(stop):
                    self.save()
                    bar.close()
                    self._say(
                        f"stopped at step {self.trainer.step_number} of {self.steps} and saved; "
                        "--resume goes on from here"
                    )
                    stop.end()

    def _after_step(self, bar: Any) -> None:
        step = self.trainer.step_number
        options = self.options
        last = step == self.steps
        bar.update()
        if step % options.log_every == 0 or last:
            self._log(step, bar)
        if self.validator is not None and (step % options.validate_every == 0 or last):
            self._validate(self.validator, step)
        if step % options.save_every == 0 and not last:
            self.save()
        every = options.keep_every
        if (every and step % every == 0) or step in self.recipe.schedule.keep_at:
            self._keep(f"step-{step}")

    def _log(self, step: int, bar: Any) -> None:
        """Write the numbers since the last log to the tracker, and show a few of them."""
        numbers = self.window.close()
        self.tracker.numbers(numbers, step)
        if bar.disable and self.options.progress:  # no terminal: a line each time
            self._say(self.window.line(numbers))
        else:
            bar.set_postfix(self.window.shown(numbers), refresh=False)

    def _validate(self, validator: Validator, step: int) -> None:
        """Score the averaged weights, and give the tracker some clips."""
        if not self.accelerator.is_main_process:
            return
        rate = validator.sample_rate
        validation = validator(self.trainer.average, quantize=self.trainer.has_codebooks)
        scores = {f"validation/{name}": value for name, value in validation.scores.items()}
        self.tracker.numbers(scores, step)
        self._keep_if_best(validation.scores["mel"])
        pairs = list(zip(validator.clips, validation.decoded, strict=True))
        for clip, decoded in pairs[:_SHOWN_CLIPS]:
            if step <= self.options.validate_every:
                self.tracker.clip(f"{clip.name}/reference", clip.audio, rate, step)
            self.tracker.clip(f"{clip.name}/decoded", decoded, rate, step)

    def _keep_if_best(self, mel: float) -> None:
        """Keep the averaged weights as `best` if their mel loss is the lowest so far.

        Scores from before the quantizer do not count: without it the task is easier.
        """
        progress = self.trainer.progress
        best = progress.get("best")  # states of earlier versions have none
        if self.trainer.has_codebooks and (best is None or mel < best):
            progress["best"] = mel
            self._keep("best")

    def _keep(self, name: str) -> None:
        """Write the averaged weights as a checkpoint of this name beside the last one."""
        if self.accelerator.is_main_process:
            self.folder.keep(name, self.trainer.average)

    def _agreed(self, stop: _Stop) -> bool:
        """Return whether any process was asked to stop; all must do so at the same step."""
        if self.accelerator.num_processes == 1:
            return stop.asked
        asked = torch.tensor(float(stop.asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, "sum"))

    def save(self) -> None:
        """Write the state, and the checkpoint once there are codebooks."""
        from accelerate.utils import gather_object

        batches = gather_object([self.trainer.batches.state_dict()])
        if self.accelerator.is_main_process:
            self.folder.write_state(self.trainer, batches)
        self.accelerator.wait_for_everyone()


def _finished(average: DacModel) -> DacModel:
    """Return averaged weights as a model like any other, without weight norm."""
    # Without this torch folds weight norm into plain tensors, which are no parameters.
    average.requires_grad_(True)
    average.remove_weight_norm()
    return average
