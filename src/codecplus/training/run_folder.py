"""The folder of a run: its checkpoint, and in `training/` the state to resume it.

Each file is written whole or not at all. It knows nothing of recordings or losses.
"""

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from codecplus.errors import CheckpointError, InputError, OutputExistsError, first_line
from codecplus.modeling_dac import (
    CausalDacConfig,
    CausalDacModel,
    DacConfig,
    DacFeatureExtractor,
    DacModel,
)
from codecplus.system.paths import PARTIAL_FOLDER, atomic_files, atomic_path
from codecplus.training.adversary import AdversarialTraining
from codecplus.training.loop import Trainer
from codecplus.training.recipe import Recipe


class RunFolder:
    """The files of a run, below the folder of its checkpoint."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.training = self.path / "training"
        self.state = self.training / "state.pt"
        self.recipe = self.training / "recipe.json"
        self.discriminators = self.training / "discriminators.safetensors"
        self.log = self.training / "log.jsonl"

    @classmethod
    def of_checkpoint(cls, checkpoint: str | os.PathLike) -> "RunFolder":
        """Return the folder of the run that a checkpoint belongs to.

        `checkpoint` is the folder itself, or names a checkpoint that the run kept: `OUT@best`,
        `OUT@step-5000`.
        """
        folder, at, _ = os.fspath(checkpoint).rpartition("@")
        if at and not Path(checkpoint).exists() and cls(folder).training.is_dir():
            return cls(folder)
        return cls(checkpoint)

    def milestone(self, name: str) -> Path:
        """Return the folder of a checkpoint that is kept beside the last one."""
        return self.training / name

    def keep(self, name: str, model: DacModel) -> None:
        """Write a checkpoint that stays beside the last one."""
        write_checkpoint(model, self.milestone(name))

    def create(self, recipe: Recipe) -> None:
        """Make the folders, remove what a killed run left half-written, and write the recipe."""
        self.training.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, *self.training.glob("*/")):
            for left in folder.glob(f"{PARTIAL_FOLDER}*"):
                shutil.rmtree(left, ignore_errors=True)
        with atomic_path(self.recipe) as partial:
            partial.write_text(json.dumps(recipe.as_dict(), indent=2) + "\n", encoding="utf-8")

    def refuse_to_overwrite(self) -> None:
        """Raise OutputExistsError if the folder holds a run or a checkpoint."""
        if self.state.exists():
            content = "a run"
        elif (self.path / "config.json").exists():
            content = "a checkpoint"
        else:
            return
        raise OutputExistsError(
            f"{self.path} holds {content} already; resume it, or choose another folder"
        )

    def read_state(self) -> dict[str, Any]:
        """Return the state of the run.

        Raises InputError if there is none, CheckpointError if it cannot be read.
        """
        if not self.state.exists():
            raise InputError(
                f"there is no run to resume in {self.path}: it holds no training/state.pt"
            )
        try:
            return torch.load(self.state, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"cannot read the state of the run at {self.state}: {type(error).__name__}"
            ) from error

    def write_state(self, trainer: Trainer, batches: list[dict[str, Any]]) -> None:
        """Write the state, the discriminators, and once there are codebooks the checkpoint.

        `batches` holds the state of each process's batches.
        """
        state = {
            "trainer": trainer.state_dict(),
            "batches": batches,
            "recipe": trainer.recipe.as_dict(),
            "config": trainer.model.config.to_json_string(use_diff=False),
        }
        if not self.state.exists():  # a run that is killed before the checkpoint is whole goes on
            with atomic_path(self.state) as partial:
                torch.save(state, partial)
        # The state is renamed last, so that the other files are at least as new as its step.
        with atomic_path(self.state) as partial:
            torch.save(state, partial)
            if trainer.adversary is not None:
                self._write_discriminators(trainer.adversary)
            if trainer.has_codebooks or trainer.step_number == trainer.recipe.schedule.steps:
                write_checkpoint(trainer.average, self.path)

    def _write_discriminators(self, adversary: AdversarialTraining) -> None:
        weights = adversary.discriminator.state_dict()
        weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        with atomic_path(self.discriminators) as partial:
            save_file(weights, partial, metadata={"format": "pt"})


def checkpoint_to_load(name: str | os.PathLike) -> str | os.PathLike:
    """Return the folder of a checkpoint that a run kept, such as `OUT@best`.

    Other names are returned unchanged. Raises InputError if the run kept no checkpoint of that
    name.
    """
    run = RunFolder.of_checkpoint(name)
    if run.path == Path(name):
        return name
    milestone = os.fspath(name).rpartition("@")[2]
    if not (run.milestone(milestone) / "config.json").exists():
        names = [path.parent.name for path in sorted(run.training.glob("*/config.json"))]
        raise InputError(
            f"the run in {run.path} kept no checkpoint {milestone!r}; it has "
            f"{' and '.join(names) or 'none but its last one'}"
        )
    return run.milestone(milestone)


def write_checkpoint(model: DacModel, folder: Path) -> None:
    """Write a codec and its feature extractor to a folder, as `save_pretrained` does."""
    config = model.config
    extractor = DacFeatureExtractor(
        sampling_rate=config.sampling_rate, hop_length=config.hop_length
    )
    with atomic_files(folder) as partial:
        model.save_pretrained(partial)
        extractor.save_pretrained(partial)


def resumed_recipe(state: dict[str, Any], recipe: Recipe | None) -> Recipe:
    """Return the recipe of a saved run. Raises InputError if `recipe` is another one."""
    saved = Recipe.from_dict(state["recipe"])
    if recipe is None or recipe == saved:
        return saved
    old = _flat(saved.as_dict())
    new = _flat(recipe.as_dict())
    name = next(key for key in sorted({*old, *new}) if old.get(key) != new.get(key))
    raise InputError(
        f"the run to resume has {name} = {old.get(name)}, not {new.get(name)}; leave its settings "
        "as they were, or start another run from its checkpoint"
    )


def resumed_model(state: dict[str, Any]) -> DacModel:
    """Return a model of the architecture of a saved run, with random weights."""
    fields = json.loads(state["config"])
    if fields["model_type"] == CausalDacConfig.model_type:
        return CausalDacModel(CausalDacConfig.from_dict(fields))
    return DacModel(DacConfig.from_dict(fields))


def load_state(trainer: Trainer, state: dict[str, Any]) -> None:
    """Let a trainer continue from a saved state.

    Raises InputError for another number of processes, CheckpointError if the state does not fit.
    """
    batches = state["batches"]
    processes = trainer.processes
    if len(batches) != processes.count:
        raise InputError(
            f"the run to resume had {len(batches)} processes, this one has {processes.count}; "
            "launch as many"
        )
    try:
        trainer.load_state_dict({**state["trainer"], "batches": batches[processes.index]})
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the saved state does not fit its recipe: {first_line(error)}"
        ) from error


def load_discriminators(trainer: Trainer, path: Path) -> None:
    """Load the discriminators of a checkpoint, if there are some of the same sizes."""
    if trainer.adversary is None or not path.is_file():
        return
    try:
        trainer.adversary.discriminator.load_state_dict(load_file(path))
    except Exception:
        warnings.warn(
            f"the discriminators at {path} have other sizes; new ones are trained", stacklevel=3
        )


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by names like `objective.weights.mel`."""
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
