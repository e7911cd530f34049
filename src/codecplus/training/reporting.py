"""The numbers of a run between two lines of its log, and texts about a run for people."""

import time
from typing import Any, cast

import torch
from torch import Tensor

from codecplus.training.codebooks import perplexity
from codecplus.training.data import FileSource, TableSource
from codecplus.training.loop import Trainer

_COUNTED = ("skipped", "revived")  # names of numbers that are summed up, not averaged


class Window:
    """Collects the reports of steps, and computes the numbers for the log."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.accelerator = trainer.accelerator
        recipe = trainer.recipe
        config = trainer.model.config
        # Seconds of audio in a step, of all processes.
        self.step_seconds = recipe.batch * recipe.crop_samples(config) / config.sampling_rate
        self.started = time.monotonic()
        self.first_step = trainer.step_number
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, report: dict[str, Tensor | float]) -> None:
        """Take in the report of a step."""
        for name, value in report.items():
            value = torch.as_tensor(value, dtype=torch.float32, device=self.accelerator.device)
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def close(self) -> dict[str, float]:
        """Return the numbers by name, and begin a new window.

        They are means over processes. A loss is averaged over the steps that had it, because a
        phase may begin within a window.
        """
        numbers = self._means()
        self.sums = {}
        self.counts = {}
        numbers |= self._speed()
        numbers |= self._learning_rates()
        numbers |= self._codebook_use()
        return numbers

    def _means(self) -> dict[str, float]:
        names = sorted(self.sums)
        means = []
        for name in names:
            count = 1 if name in _COUNTED else self.counts[name]
            means.append(self.sums[name] / count)
        reduced = cast(Tensor, self.accelerator.reduce(torch.stack(means), "mean"))
        return {f"train/{name}": value for name, value in zip(names, reduced.tolist(), strict=True)}

    def _speed(self) -> dict[str, float]:
        step = self.trainer.step_number
        elapsed = time.monotonic() - self.started
        heard = (step - self.first_step) * self.step_seconds
        return {
            "speed/audio_seconds_per_second": heard / elapsed,
            "train/audio_hours": step * self.step_seconds / 3600,
        }

    def seconds_left(self) -> float:
        """Return how long the rest takes at the speed so far."""
        step = self.trainer.step_number
        elapsed = time.monotonic() - self.started
        rest = self.trainer.recipe.schedule.steps - step
        return rest * elapsed / max(1, step - self.first_step)

    def _learning_rates(self) -> dict[str, float]:
        """Return the last learning rate of each part that is trained."""
        trainer = self.trainer
        resting = {*trainer.resting}
        if trainer.frozen:
            resting |= {"encoder", "quantizer"}
        rates: dict[str, float] = {}
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                part = group["part"]
                module = part
                if part == "projections":
                    module = "quantizer"
                if module not in resting:
                    rates[f"learning_rate/{part}"] = group["lr"]
        if trainer.adversary is not None and trainer.adversarial:
            rates["learning_rate/discriminator"] = trainer.adversary.optimizer.param_groups[0]["lr"]
        return rates

    def _codebook_use(self) -> dict[str, float]:
        """Return the share of entries that were chosen and their perplexity; reset the counts."""
        chosen = self.trainer.chosen
        if not bool(chosen.any()):
            return {}
        used = (chosen > 0).float().mean(dim=1)
        effective = perplexity(chosen)
        numbers = {
            "codebooks/used": float(used.mean()),
            "codebooks/perplexity": float(effective.mean()),
        }
        for index in range(len(chosen)):
            numbers[f"codebook {index + 1:02d}/used"] = float(used[index])
            numbers[f"codebook {index + 1:02d}/perplexity"] = float(effective[index])
        chosen.zero_()
        return numbers

    def shown(self, numbers: dict[str, float]) -> dict[str, str]:
        """Return a few of the numbers as short texts by name, for a progress bar."""
        texts: dict[str, str] = {}
        for name in self.trainer.losses:
            if f"train/{name}" in numbers:
                texts[name] = f"{numbers[f'train/{name}']:.3f}"
        for name, key in (("perplexity", "codebooks/perplexity"), ("skipped", "train/skipped")):
            if numbers.get(key):
                texts[name] = f"{numbers[key]:.0f}"
        return texts

    def line(self, numbers: dict[str, float]) -> str:
        """Return a line for a log file: the step, a few of the numbers, and the time left."""
        step = self.trainer.step_number
        texts = [f"{name} {text}" for name, text in self.shown(numbers).items()]
        speed = numbers["speed/audio_seconds_per_second"]
        return ", ".join(
            [
                f"step {step} of {self.trainer.recipe.schedule.steps}",
                *texts,
                f"{speed:.1f} s of audio per second",
                f"{duration(self.seconds_left())} left",
            ]
        )


def banner(trainer: Trainer, output: Any, clips: int = 0) -> str:
    """Return lines about the recordings, model, device, precision and phases of a run.

    `clips` is the number of recordings to validate with.
    """
    recipe = trainer.recipe
    parameters = 0
    trained = 0
    for parameter in trainer.model.parameters():
        parameters += parameter.numel()
        if parameter.requires_grad:
            trained += parameter.numel()
    dtype = str(trainer.dtype).removeprefix("torch.")
    seconds = recipe.crop_samples(trainer.model.config) / trainer.model.config.sampling_rate
    start = ""
    if trainer.step_number:
        start = f", resumed at step {trainer.step_number}"
    return "\n".join(
        [
            f"training {output}: {recipe.schedule.steps} steps{start}",
            f"  recordings: {_recordings(trainer.batches)} to train on; {clips} to validate with",
            f"  model: {parameters / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of them trained",
            f"  computing: {dtype} on {trainer.device}, processes: {trainer.processes.count}, "
            f"{recipe.batch} crops of {seconds:.2f} s a step",
            f"  phases: {'; '.join(_phases(trainer))}",
        ]
    )


def duration(seconds: float) -> str:
    """Return a time in words.

    >>> duration(42), duration(300), duration(9000)
    ('42 s', '5 min', '2 h 30 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def _recordings(batches: Any) -> str:
    """Return the number of recordings in words, as far as it is known."""
    source = getattr(batches.crops, "source", None)
    if isinstance(source, FileSource):
        seconds = sum(file.seconds for file in source.files)
        return f"{len(source.files)} files, {duration(seconds)},"
    if isinstance(source, TableSource):
        return f"{len(source.recordings)} rows"
    return "a stream of rows"


def _phases(trainer: Trainer) -> list[str]:
    """Return the phases of a run with the step at which each begins, in their order."""
    schedule = trainer.recipe.schedule
    begins = {"warm-up": 0}
    if not trainer.fine_tune:
        begins["quantizer"] = schedule.quantize_at
    if trainer.adversary is not None:
        begins["discriminators"] = schedule.adversary_at
    if schedule.decay_at is not None:
        begins["decay"] = schedule.decay_at
    if schedule.freeze_at is not None and "decoder" not in trainer.resting:
        begins["decoder alone"] = schedule.freeze_at
    order = sorted(begins.items(), key=lambda phase: phase[1])
    return [f"{name} from step {step}" for name, step in order]
