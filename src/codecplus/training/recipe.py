"""Recipes: training runs as data. They know numbers and names, nothing of tensors."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from codecplus import configuration

RECIPES = Path(configuration.__file__).parent / "training"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps at which things happen."""

    steps: int
    warmup: int = 100
    quantize_at: int  # codebooks are placed, from here on latents are quantized
    freeze_at: int  # encoder and codebooks rest from here on
    decay_at: int  # the learning rate falls in a straight line, to zero at the last step

    def factor(self, step: int) -> float:
        """Share of the learning rate at a step counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup)
        return rise * min(1.0, (self.steps - step) / max(1, self.steps - self.decay_at))


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Losses and their shares of the gradient at the output."""

    mel_bands: dict[str, int]  # {window: bands}
    stft_windows: list[int]
    mel: float = 0.6
    stft: float = 0.3
    waveform: float = 0.1
    commitment: float = 0.03
    latent_scale: float = 0.1  # holds the size of the latents, which nothing else does, where the codebooks began


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run, complete enough to repeat it on other recordings."""

    preset: str
    schedule: Schedule
    objective: Objective
    batch: int = 16
    frames: int = 27  # of a crop; a multiple of 9 folds into the dilated convolutions without padding
    lr: float = 1e-3  # of convolutions (Muon) and of the rest (AdamW)
    quantized_encoder_lr: float = 0.1  # share of `lr`; codebooks lose an encoder that moves faster
    projection_lr: float = 0.1
    codebook_decay: float = 0.97
    quantizer_dropout: float = 0.25
    average_decay: float = 0.997
    placement_vectors: int = 40_000  # latents by which codebooks are placed
    seed: int = 0
    dtype: str = "bfloat16"

    @classmethod
    def load(cls, name_or_path: str | os.PathLike) -> "Recipe":
        """A recipe of the package by its name, or a JSON file.

        >>> Recipe.load("dac-16khz-live").preset
        'dac-16khz-live'
        """
        packaged = RECIPES / f"{name_or_path}.json"
        path = packaged if packaged.exists() else Path(name_or_path)
        if not path.exists():
            names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.json")))
            raise ValueError(f"there is no recipe {os.fspath(name_or_path)!r}; give a JSON file or one of: {names}")
        fields = json.loads(path.read_text())
        fields["schedule"] = Schedule(**fields["schedule"])
        fields["objective"] = Objective(**fields["objective"])
        return cls(**fields)
