"""Recipes: the settings of training runs. They know numbers and names, nothing of tensors."""

import dataclasses
import json
import os
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from codecplus import configuration
from codecplus.configuration import CausalDacConfig, DacConfig, load_preset
from codecplus.errors import InputError, closest
from codecplus.losses import LOSSES, PAPER_MEL_BANDS, PAPER_STFT_WINDOWS

RECIPES = Path(configuration.__file__).parent / "training"
ADVERSARIAL = ("adversarial", "feature_matching")
PARTS = ("encoder", "quantizer", "decoder")
Settings = TypeVar("Settings")

_CHOICES = {  # of settings that are words
    "optimizer": ("adamw", "muon"),
    "drawing": ("duration", "files"),
    "precision": ("auto", "bf16", "no"),
    "initialization": ("level", "pytorch"),
}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps at which phases begin, and the learning rate over all steps."""

    steps: int
    warmup: int = 100
    quantize_at: int = 0  # from here on latents are quantized
    adversary_at: int = 0  # from here on the discriminators train, and the codec against them
    # Placed codebooks are placed anew at these steps, for latents as they are then.
    place_at: list[int] = field(default_factory=list)
    # Encoder and codebooks rest from here on, unless the decoder always does.
    freeze_at: int | None = None
    # From here on the learning rate falls in a straight line, to zero at the last step.
    decay_at: int | None = None
    # Steps whose checkpoints are kept as milestones.
    keep_at: list[int] = field(default_factory=list)
    gamma: float = 1.0  # multiplies the learning rate at every step besides

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"expected at least 1 step, got {self.steps}")

    def factor(self, step: int) -> float:
        """Return the share of the learning rate at a step counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        decay_at = self.decay_at
        if decay_at is None:
            decay_at = self.steps
        fall = min(1.0, (self.steps - step) / max(1, self.steps - decay_at))
        return rise * self.gamma**step * fall

    def scaled(self, steps: int) -> "Schedule":
        """Return the same schedule for another number of steps.

        The warm-up keeps its length, up to a tenth of the steps.
        """
        share = steps / self.steps

        def scale(step: int | None) -> int | None:
            if step is None:
                return None
            return round(step * share)

        return Schedule(
            steps=steps,
            warmup=min(self.warmup, max(1, steps // 10)),
            quantize_at=round(self.quantize_at * share),
            adversary_at=round(self.adversary_at * share),
            place_at=[round(step * share) for step in self.place_at],
            freeze_at=scale(self.freeze_at),
            decay_at=scale(self.decay_at),
            keep_at=[round(step * share) for step in self.keep_at],
            gamma=self.gamma ** (1 / share),
        )


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The losses and their weights."""

    weights: dict[str, float] = field(
        default_factory=lambda: {"mel": 15.0, "feature_matching": 2.0, "adversarial": 1.0}
    )
    # Weights are shares of the gradient at the output, instead of factors of the losses.
    balanced: bool = False
    mel_bands: dict[int, int] = field(default_factory=lambda: dict(PAPER_MEL_BANDS))  # by window
    stft_windows: list[int] = field(default_factory=lambda: list(PAPER_STFT_WINDOWS))
    # Whether losses ignore frequencies above the bandwidth of a recording.
    limit_bandwidth: bool = True
    # Whether losses get decoded audio whose bands have the powers of the original, as from band
    # gains that lack nothing; those on levels themselves, and discriminators, get it as it is.
    levelled: bool = False
    codebook: float = 1.0
    commitment: float = 0.25
    # Keeps the size of the latents at its value when codebooks are placed.
    latent_scale: float = 0.0
    # Shrinks the part of the latents that no codebook reads, which drifts under Muon.
    unread: float = 0.0

    def __post_init__(self) -> None:
        known = [*LOSSES, *ADVERSARIAL]
        for name in self.weights:
            if name not in known:
                hint = closest(name, known)
                raise InputError(f"there is no loss {name!r}; did you mean {', '.join(hint)}?")
        if not self.reconstruction:
            raise InputError(
                "the objective weighs no reconstruction loss; give one of "
                f"{', '.join(LOSSES)} a weight"
            )

    @property
    def reconstruction(self) -> list[str]:
        """The reconstruction losses that have a weight, in the order of `LOSSES`."""
        return [name for name in LOSSES if self.weights.get(name)]

    @property
    def adversarial(self) -> bool:
        """Whether discriminators are needed."""
        return any(self.weights.get(name) for name in ADVERSARIAL)


@dataclass(frozen=True, kw_only=True)
class Codebooks:
    """How codebooks are placed and trained."""

    # "gradient"; or "means": entries become the moving means of their latents.
    learning: str = "gradient"
    # Whether k-means places codebooks on encoder output, when quantization begins and when the
    # encoder is frozen.
    placed: bool = False
    # In fine-tuning, whether codebooks of the checkpoint are kept; if not, they are placed anew.
    kept: bool = True
    # Placement weighs directions by the cost of errors, and adds this share of the average cost to
    # all; None: all directions cost the same.
    placement_floor: float | None = None
    # Latents for a placement: over a hundred for an entry. Entries that are placed by fewer suit
    # these latents and not others. Short runs take a quarter as many batches as they have steps.
    placement_vectors: int = 160_000
    # λ of the cheapest entry, at the last placement; None: search the nearest direction.
    rate_weight: float | None = None
    # Share of the items that are coded by beam search once encoder and codebooks are frozen.
    searched: float = 0.0
    decay: float = 0.97  # of the moving means and counts
    # An entry moves to a random latent if its count is below this share of the average.
    revive_below: float = 0.0

    def __post_init__(self) -> None:
        if self.learning not in ("gradient", "means"):
            raise InputError(
                f"expected codebooks that learn by gradient or means, got {self.learning!r}"
            )
        if not self.kept and not self.placed:
            raise InputError(
                "codebooks that are not kept are placed anew: set codebooks.placed too"
            )
        if not 0 <= self.searched <= 1:
            raise InputError(
                f"expected a share of searched items between 0 and 1, got {self.searched}"
            )
        if self.rate_weight is not None and self.rate_weight < 0:
            raise InputError(
                f"expected a rate_weight of 0 or more, or none, got {self.rate_weight}"
            )
        if self.placement_floor is not None and self.placement_floor <= 0:
            raise InputError(
                f"expected a placement_floor above 0, or none, got {self.placement_floor}"
            )


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """The discriminators and how they are trained; by default with the sizes of the paper."""

    periods: list[int] = field(default_factory=lambda: [2, 3, 5, 7, 11])
    fft_sizes: list[int] = field(default_factory=lambda: [2048, 1024, 512])
    bands: list[list[float]] = field(
        default_factory=lambda: [[0.0, 0.1], [0.1, 0.25], [0.25, 0.5], [0.5, 0.75], [0.75, 1.0]]
    )
    period_channels: list[int] = field(default_factory=lambda: [32, 128, 512, 1024, 1024])
    stft_channels: int = 32
    # Magnitudes of spectra are raised to this power before convolutions see them: below 1, quiet
    # bands count beside loud ones.
    stft_power: float = 1.0
    # Whether discriminators are changed before the codec in each step, so that the codec learns
    # from the changed ones; takes one more pass through them.
    first: bool = False
    lr: float = 1e-4
    clip: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.stft_power <= 1:
            raise InputError(
                f"expected adversary.stft_power above 0, up to 1, got {self.stft_power}"
            )


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of crops, and the crops that are drawn again because they are silent."""

    speed_share: float = 0.0  # share of the crops whose speed and pitch are changed
    speed: tuple[float, float] = (0.92, 1.08)
    loudness_share: float = 0.0  # share that is brought to a random loudness
    loudness_lufs: tuple[float, float] = (-34.0, -14.0)
    gain_share: float = 0.0  # share that gets a random gain
    gain_db: tuple[float, float] = (-12.0, 6.0)
    peak: float = 0.95  # the highest peak of amplified crops
    flip_share: float = 0.5  # share whose sign is turned
    rotate_phase: bool = False  # turn the phase of all frequencies by one random angle
    silence_db: float = -54.0  # a crop below this, RMS in dB below full scale, is drawn again
    # A crop below this loudness is drawn again, instead of one below `silence_db`.
    silence_lufs: float | None = None
    attempts: int = 20  # at a crop that is not silent; the last one is taken

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InputError(f"expected at least 1 of augmentation.attempts, got {self.attempts}")
        if not 0.25 <= self.speed[0] <= self.speed[1] <= 4:
            raise InputError(
                f"expected augmentation.speed as a range within 0.25 and 4, got {list(self.speed)}"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run, complete enough to repeat it on other recordings."""

    preset: str  # the architecture: a name, or the path of a config.json
    schedule: Schedule
    objective: Objective = field(default_factory=Objective)
    codebooks: Codebooks = field(default_factory=Codebooks)
    adversary: Adversary = field(default_factory=Adversary)
    augmentation: Augmentation = field(default_factory=Augmentation)
    # How recordings are drawn. duration: in proportion to it. files: each file as often as any
    # other of its class, and each class as often as any other; a class is one of the folders or
    # files that are given as data.
    drawing: str = "duration"
    batch: int = 72  # crops per step, of all processes together
    seconds: float = 0.38  # of a crop
    # Whether crops are rounded to 9 frames, which is faster; if not, zeros follow within the codec.
    whole_frames: bool = True
    precision: str = "auto"  # of the networks: bf16, no (fp32), or auto, which takes the fast one
    initialization: str = "level"  # keeps the level of signals; or pytorch: its defaults
    optimizer: str = "adamw"  # or muon, for the convolutions
    weight_decay: float = 0.0  # of AdamW
    lr: float = 1e-4
    # Share of `lr`: moving means cannot follow an encoder that changes fast.
    quantized_encoder_lr: float = 1.0
    projection_lr: float = 1.0  # share of `lr` for the projections of the quantizer
    fine_tuning_lr: float = 0.5  # share of `lr` where training starts from a checkpoint
    clip: float | None = 1000.0  # of the gradient's norm; none: three times its running mean
    weight_norm: bool = True
    quantizer_dropout: float = 0.5
    # Parts whose weights are frozen: encoder, quantizer, decoder, or modules within one, such as
    # decoder.block.0.
    resting: list[str] = field(default_factory=list)
    average_decay: float = 0.999
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(
                    f"expected {name} {' or '.join(choices)}, got {getattr(self, name)!r}"
                )
        if self.optimizer == "muon" and self.weight_norm:
            raise InputError("muon sets the size of its own steps: use it with weight_norm=false")
        if self.batch < 1 or self.seconds <= 0:
            raise InputError(
                f"expected a batch and seconds above 0, got {self.batch} and {self.seconds}"
            )
        known = all(name.split(".")[0] in PARTS for name in self.resting)
        if not known or {*PARTS} <= {*self.resting}:
            raise InputError(
                f"expected resting parts from {', '.join(PARTS)}, but not all, or modules within "
                f"one, got {self.resting}"
            )
        if {"quantizer", "decoder"} & {*self.resting} and not self.codebooks.kept:
            raise InputError(
                "new codebooks need a quantizer and a decoder that follow: "
                "take both out of resting, or set codebooks.kept"
            )
        if self.codebooks.rate_weight is not None and (
            self.schedule.freeze_at is None or not self.codebooks.placed
        ):
            raise InputError(
                "a rate_weight is for codebooks that are placed when the encoder rests: set "
                "freeze_at too"
            )

    @classmethod
    def load(
        cls, name_or_path: str | os.PathLike, settings: dict[str, Any] | None = None
    ) -> "Recipe":
        """Return the recipe of a preset, or that in a JSON file.

        Presets without a recipe of their own, and architectures in a file, get the paper's.
        `settings` replace single values, by names like `objective.weights.mel`. Raises InputError.

        >>> Recipe.load("dac-16khz-live", {"batch": 4}).batch
        4
        """
        name = os.fspath(name_or_path)
        fields = _find(name)
        for key, value in (settings or {}).items():
            _set(fields, key, value)
        return cls.from_dict(fields)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Recipe":
        """Return a recipe of plain data, as JSON holds it.

        Raises InputError for names and values that do not fit.
        """
        return _build(cls, fields, "the recipe")

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data; the reverse of `from_dict`."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def config(self) -> DacConfig:
        """Return the architecture. Raises InputError if there is none of that name."""
        if not Path(self.preset).is_file():
            return load_preset(self.preset)
        fields = _read(Path(self.preset))
        kind = fields.get("model_type")
        if kind == DacConfig.model_type:
            return DacConfig.from_dict(fields)
        if kind == CausalDacConfig.model_type:
            return CausalDacConfig.from_dict(fields)
        raise InputError(f"{self.preset} holds model_type {kind!r}; expected dac or causal_dac")

    def crop_samples(self, config: DacConfig) -> int:
        """Return the number of samples of a crop for this architecture.

        With `whole_frames` it is a multiple of 9 frames, so that dilated convolutions need no
        padding. Raises InputError if a crop is too short for a window of a loss.
        """
        if self.whole_frames:
            frames = max(1, round(self.seconds * config.frame_rate / 9)) * 9
            samples = frames * config.hop_length
        else:
            samples = int(self.seconds * config.sampling_rate)
        longest = max([*self.objective.mel_bands, *self.objective.stft_windows])
        if samples <= longest // 2:
            raise InputError(
                f"crops of {self.seconds} s are {samples} samples, too short for the window of "
                f"{longest}; raise seconds or leave that window out"
            )
        return samples


def _find(name: str) -> dict[str, Any]:
    """Return the settings of the recipe of this name. Raises InputError if there is none."""
    packaged = RECIPES / f"{name}.json"
    if packaged.exists():
        return _read(packaged)
    names = configuration.preset_names()
    if name in names:
        return {**_read(RECIPES / "paper.json"), "preset": name}
    if Path(name).is_file():
        fields = _read(Path(name))
        if "model_type" in fields:  # an architecture, not a recipe
            return {**_read(RECIPES / "paper.json"), "preset": name}
        return fields
    hint = closest(name, names)
    raise InputError(f"there is no recipe {name!r}; give a JSON file, or {' or '.join(hint)}")


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} as JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"expected a JSON object in {path}, got {type(fields).__name__}")
    return fields


def _set(fields: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        fields = fields.setdefault(parent, {})
        if not isinstance(fields, dict):
            raise InputError(f"there is no setting {key!r}: {parent} is no group of settings")
    fields[last] = value


def _build(cls: type[Settings], fields: dict[str, Any], where: str) -> Settings:
    if not isinstance(fields, dict):
        raise InputError(f"expected {where} as an object of settings, got {fields!r}")
    hints = typing.get_type_hints(cls)
    for name in fields:
        if name not in hints:
            hint = closest(name, hints)
            raise InputError(f"{where} has no setting {name!r}; did you mean {', '.join(hint)}?")
    for setting in dataclasses.fields(typing.cast(Any, cls)):
        missing = dataclasses.MISSING
        required = setting.default is missing and setting.default_factory is missing
        if required and setting.name not in fields:
            raise InputError(f"{where} lacks the setting {setting.name!r}")
    return cls(**{name: _value(hints[name], value, name) for name, value in fields.items()})


def _value(kind: Any, value: Any, name: str) -> Any:
    """Return a value of JSON as the type of its setting. Raises InputError if it does not fit."""
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, name)
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        return _value(next(k for k in kind.__args__ if k is not type(None)), value, name)
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    try:
        if origin is dict:
            key_type, value_type = arguments
            return {key_type(k): value_type(v) for k, v in value.items()}
        if origin is list and not isinstance(value, str):
            return [_value(arguments[0], item, name) for item in value]
        if origin is tuple and len(value) == len(arguments):
            return tuple(convert(item) for convert, item in zip(arguments, value, strict=True))
        if kind is float and not isinstance(value, bool | str):
            return float(value)
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
    except (TypeError, ValueError, AttributeError):
        pass
    raise InputError(f"expected {name} as {getattr(kind, '__name__', kind)}, got {value!r}")
