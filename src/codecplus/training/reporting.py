"""The numbers of a run between two lines of its log. It knows reports, not how they are shown."""

import time
from typing import cast

import torch
from torch import Tensor

from codecplus.training.codebooks import perplexity
from codecplus.training.loop import Trainer

_COUNTED = ("skipped", "revived")  # are summed up, not averaged


class Window:
    """Collects the reports of steps, and makes numbers to log of them."""

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
        """Return the numbers by name, means over processes, and begin anew.

        A loss is averaged over the steps that had it: phases begin within a window.
        """
        numbers = self._means()
        self.sums = {}
        self.counts = {}
        numbers |= self._speed()
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
        return {
            "speed/audio_seconds_per_second": (step - self.first_step)
            * self.step_seconds
            / elapsed,
            "train/audio_hours": step * self.step_seconds / 3600,
        }

    def _codebook_use(self) -> dict[str, float]:
        """Return the share of entries that were chosen, and their perplexity; empty the counts."""
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
        """Return a few of the numbers as short texts, for a line."""
        texts: dict[str, str] = {}
        for name in self.trainer.losses:
            if f"train/{name}" in numbers:
                texts[name] = f"{numbers[f'train/{name}']:.3f}"
        for name, key in (("perplexity", "codebooks/perplexity"), ("skipped", "train/skipped")):
            if numbers.get(key):
                texts[name] = f"{numbers[key]:.0f}"
        return texts
