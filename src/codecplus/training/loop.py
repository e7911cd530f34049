"""The reconstruction trainer: a recipe, a codec and recordings in; weights that compress speech out.

Three phases, each where the one before has settled: without quantizer; with it, the encoder slowed down so that the
codebooks can follow; with encoder and codebooks at rest. At the end the learning rate falls to zero. The weights to
keep are the moving average of those trained.
"""

import copy
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codecplus.configuration import load_preset
from codecplus.modeling_dac import CausalDacModel, DacModel

from . import codebooks, losses
from .data import RandomCrops, find_recordings
from .optimizer import Muon, split_parameters
from .recipe import Recipe


def train(
    recipe: Recipe,
    folder: str | os.PathLike,
    output: str | os.PathLike,
    *,
    model: DacModel | None = None,
    save_every: int = 500,
) -> DacModel:
    """Train `model`, a new one by default, on the recordings below `folder`; write it to `output` and return it.

    The state of the run is kept in `output` too: called again, an interrupted run goes on from there, and a finished
    one returns at once.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    model = new_model(recipe) if model is None else model
    config = model.config
    samples = recipe.frames * config.hop_length
    crops = RandomCrops(find_recordings(Path(folder)), config.sampling_rate, samples, recipe.batch, seed=recipe.seed)
    trainer = Trainer(model, crops, recipe)
    if (output / "state.pt").exists():
        trainer.resume(output / "state.pt")
    while trainer.progress["step"] < recipe.schedule.steps:
        trainer.step()
        if trainer.progress["step"] % save_every == 0 or trainer.progress["step"] == recipe.schedule.steps:
            trainer.save(output / "state.pt")
    trainer.average.save_pretrained(output)
    return trainer.average


def new_model(recipe: Recipe) -> DacModel:
    """The architecture that the recipe names, with weights to start from."""
    config = load_preset(recipe.preset)
    torch.manual_seed(recipe.seed)
    model = (CausalDacModel if config.causal else DacModel)(config)
    initialize_weights(model)
    return model


@torch.no_grad()
def initialize_weights(model: DacModel) -> None:
    """Convolutions that keep the level of a signal, residual branches that begin small, and a quiet last layer.

    A loud last layer begins in the flat part of tanh and does not come out of it.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.ConvTranspose1d):
            nn.init.normal_(module.weight, std=(2 * module.in_channels) ** -0.5)  # an output step sees two inputs
        elif isinstance(module, nn.Conv1d):
            gain = 0.03 if name == "decoder.conv2" else 0.1 if "res_unit" in name and name.endswith("conv2") else 1.0
            nn.init.normal_(module.weight, std=gain * module.weight[0].numel() ** -0.5)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Trainer:
    """Trains a codec in place, one `step()` at a time; `state_dict()` continues a run exactly where it stood."""

    def __init__(self, model: DacModel, crops: RandomCrops, recipe: Recipe):
        self.model, self.crops, self.recipe = model, crops, recipe
        model.quantizer.quantizer_dropout = recipe.quantizer_dropout
        matrices, others, projections = split_parameters(model)
        self.encoder_matrices = {id(p) for p in model.encoder.parameters()}
        fast = [p for p in matrices if id(p) not in self.encoder_matrices]
        slow = [p for p in matrices if id(p) in self.encoder_matrices]
        self.muon = Muon([{"params": fast}, {"params": slow}], lr=recipe.lr)
        groups = [{"params": others}, {"params": projections}]
        self.adam = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.8, 0.99), weight_decay=0.0)
        self.mel = losses.MelLoss(
            model.config.sampling_rate, {int(window): bands for window, bands in recipe.objective.mel_bands.items()}
        )
        self.stft = losses.STFTLoss(recipe.objective.stft_windows)
        self.moving = codebooks.MovingCodebooks(model.quantizer, recipe.codebook_decay)
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.progress: dict[str, Any] = {"step": 0, "norms": None, "gradient_norm": None, "latent_scale": 0.0}

    @property
    def quantized(self) -> bool:
        """Whether latents are quantized at this step."""
        return self.progress["step"] >= self.recipe.schedule.quantize_at

    @property
    def frozen(self) -> bool:
        """Whether encoder and codebooks rest at this step."""
        return self.progress["step"] >= self.recipe.schedule.freeze_at

    def step(self) -> dict[str, float]:
        """One batch; returns its losses. Raises `FloatingPointError` where they are not finite."""
        schedule, step = self.recipe.schedule, self.progress["step"]
        if step == schedule.quantize_at:
            self._place_codebooks()
        reference = next(self.crops)
        estimate, latents, projected, codes = self._forward(reference)
        gradient, found = self._output_gradient(estimate, reference)
        objective, report = (estimate * gradient).sum(), dict(found)
        if not self.frozen:
            objective = objective + self._latent_losses(latents, projected, codes)
        objective.backward()
        report["gradient_norm"] = self._clip()
        self._update(schedule.factor(step))
        if projected is not None and codes is not None and not self.frozen:
            report["revived"] = self.moving.update(projected, codes)
        self._average(step)
        self.progress["step"] += 1
        return report

    def _forward(self, reference: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Decoded waveform (B, S), latents (B, D, T), and while there is a quantizer what it saw and chose."""
        audio = reference.unsqueeze(1).to(getattr(torch, self.recipe.dtype))
        projected = codes = None
        with torch.set_grad_enabled(not self.frozen):
            latents = decoded = self.model.encoder(audio)
            if self.quantized:
                decoded, codes, projected, _, _ = self.model.quantizer.train()(latents.float())
        return self.model.decoder(decoded.to(audio.dtype)).squeeze(1).float(), latents, projected, codes

    def _output_gradient(self, estimate: Tensor, reference: Tensor) -> tuple[Tensor, dict[str, float]]:
        objective, leaf = self.recipe.objective, estimate.detach().requires_grad_()
        parts = {
            "mel": self.mel(leaf, reference),
            "stft": self.stft(leaf, reference),
            "waveform": losses.waveform_loss(leaf, reference),
        }
        weights = [getattr(objective, name) for name in parts]
        norms = self.progress["norms"]
        gradient, found = losses.balanced_gradient(list(parts.values()), weights, leaf, norms)
        if not all(map(math.isfinite, found)):
            raise FloatingPointError(f"gradients at the output are not finite at step {self.progress['step']}: {found}")
        kept = found if norms is None else [0.97 * old + 0.03 * new for old, new in zip(norms, found, strict=True)]
        self.progress["norms"] = kept
        return gradient, {name: float(loss.detach()) for name, loss in parts.items()}

    def _latent_losses(self, latents: Tensor, projected: Tensor | None, codes: Tensor | None) -> Tensor:
        scale = latents.float().square().mean().log()
        total = self.recipe.objective.latent_scale * (scale - self.progress["latent_scale"]).square()
        if projected is not None and codes is not None:
            commitment = codebooks.relative_commitment(self.model.quantizer, projected, codes)
            total = total + self.recipe.objective.commitment * commitment
        return total

    def _clip(self) -> float:
        """Limit the gradient to three times its running norm; returns the norm it had."""
        usual = self.progress["gradient_norm"]
        limit = math.inf if usual is None else 3 * usual
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient is not finite at step {self.progress['step']}")
        kept = min(norm, limit)
        self.progress["gradient_norm"] = kept if usual is None else 0.98 * usual + 0.02 * kept
        return norm

    def _update(self, factor: float) -> None:
        recipe = self.recipe
        slow = recipe.quantized_encoder_lr if self.quantized else 1.0
        shares = (self.muon, (1.0, slow)), (self.adam, (1.0, recipe.projection_lr))
        for optimizer, parts in shares:
            for group, share in zip(optimizer.param_groups, parts, strict=True):
                group["lr"] = recipe.lr * factor * share
            optimizer.step()
            optimizer.zero_grad()

    @torch.no_grad()
    def _average(self, step: int) -> None:
        keep = min(self.recipe.average_decay, (1 + step) / (10 + step))
        for average, current in zip(self.average.parameters(), self.model.parameters(), strict=True):
            average.lerp_(current, 1 - keep)

    @torch.no_grad()
    def _place_codebooks(self) -> None:
        model, recipe = self.model, self.recipe
        dtype = getattr(torch, recipe.dtype)
        batches = math.ceil(recipe.placement_vectors / (recipe.batch * recipe.frames))
        latents = [model.encoder(next(self.crops).unsqueeze(1).to(dtype)).float() for _ in range(batches)]
        latents = torch.cat([z.transpose(1, 2).flatten(0, 1) for z in latents])
        codebooks.initialize(model.quantizer, latents)
        self.moving = codebooks.MovingCodebooks(model.quantizer, recipe.codebook_decay)
        self.average.quantizer.load_state_dict(model.quantizer.state_dict())
        self.progress["latent_scale"] = float(latents.square().mean().log())

    def state_dict(self) -> dict[str, Any]:
        """Everything a run needs to continue, on the same recordings and with the same recipe."""
        parts = ("model", "average", "muon", "adam", "moving", "crops")
        state = {name: getattr(self, name).state_dict() for name in parts}
        return state | {"progress": self.progress, "random": torch.get_rng_state(), "recipe": asdict(self.recipe)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict()` gave."""
        for name in ("model", "average", "muon", "adam", "moving", "crops"):
            getattr(self, name).load_state_dict(state[name])
        self.progress = copy.deepcopy(state["progress"])
        torch.set_rng_state(state["random"])

    def save(self, path: str | os.PathLike) -> None:
        """Write the state, whole or not at all."""
        partial = f"{os.fspath(path)}.partial"
        torch.save(self.state_dict(), partial)
        os.replace(partial, path)

    def resume(self, path: str | os.PathLike) -> None:
        """Continue from a file that `save` wrote."""
        self.load_state_dict(torch.load(path, weights_only=True))
