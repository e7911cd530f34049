"""The trainer: a codec, batches and a recipe in; better weights out, one step at a time.

A recipe may have phases: without quantizer; with it, from where its codebooks are placed; against
discriminators; with encoder and codebooks at rest. Every step seeds its own random numbers, so that
a run goes on from its state as if it had never stopped. Several processes compute what one would
with all their crops in one batch, but for quantizer dropout and searched codes, which every process
draws for its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn

from codecplus import losses
from codecplus.errors import TrainingError
from codecplus.modeling_dac import CausalDacModel, DacModel
from codecplus.training import codebooks
from codecplus.training.data import Batch, Batches
from codecplus.training.discriminators import Discriminator, adversarial_losses
from codecplus.training.optimizer import build_optimizers
from codecplus.training.recipe import ADVERSARIAL, Adversary, Recipe

MOST_SKIPS = 10  # steps in a row whose gradient is not finite
_SENSITIVITY_EVERY = (
    8  # batches that codebooks are placed by: gradients take longer than latents, and fewer do
)


def new_model(recipe: Recipe) -> DacModel:
    """The architecture that the recipe names, with weights to start from."""
    config = recipe.config()
    torch.manual_seed(recipe.seed)
    model = (CausalDacModel if config.causal else DacModel)(config)
    initialize_weights(model)
    return model


@torch.no_grad()
def initialize_weights(model: DacModel) -> None:
    """Convolutions that keep the level of a signal, residual branches that begin small, and a quiet
    last layer.

    A loud last layer begins in the flat part of tanh and does not come out of it.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.ConvTranspose1d):
            nn.init.normal_(
                module.weight, std=(2 * module.in_channels) ** -0.5
            )  # an output step sees two inputs
        elif isinstance(module, nn.Conv1d):
            gain = (
                0.03
                if name == "decoder.conv2"
                else 0.1
                if "res_unit" in name and name.endswith("conv2")
                else 1.0
            )
            nn.init.normal_(module.weight, std=gain * module.weight[0].numel() ** -0.5)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def new_discriminator(adversary: Adversary, seed: int = 0) -> Discriminator:
    """The discriminators that the recipe names."""
    torch.manual_seed(seed)
    return Discriminator(
        adversary.periods,
        adversary.fft_sizes,
        bands=[(low, high) for low, high in adversary.bands],
        period_channels=adversary.period_channels,
        stft_channels=adversary.stft_channels,
    )


class Coding(nn.Module):
    """A codec's whole way from audio (B, S) to audio, with all that losses ask of it; computes in
    `dtype`.
    """

    def __init__(self, model: DacModel, dtype: torch.dtype, searched: float = 0.0):
        super().__init__()
        self.model, self.dtype, self.searched = model, dtype, searched

    def forward(self, audio: Tensor, quantize: bool, freeze: bool) -> dict[str, Tensor]:
        """Audio (B, S), latents (B, D, T), and of the quantizer projected latents, codes and
        losses.
        """
        out: dict[str, Tensor] = {}
        with torch.set_grad_enabled(not freeze and torch.is_grad_enabled()):
            latents = decoded = self.model.encoder(audio.unsqueeze(1).to(self.dtype))
            out["latents"] = latents.float()
            if quantize:
                found = self.model.quantizer(out["latents"])
                decoded, out["codes"], out["projected"], out["commitment"], out["codebook"] = found
                if freeze and self.searched:
                    decoded = codebooks.search_some(
                        self.model.quantizer, out["latents"], decoded, self.searched
                    )
        out["audio"] = self.decode(decoded, audio.shape[-1])
        return out

    def decode(self, latents: Tensor, samples: int) -> Tensor:
        """Audio (B, S) of latents (B, D, T); nets with odd strides lose the last samples, which are
        zeros here.
        """
        audio = self.model.decoder(latents.to(self.dtype)).squeeze(1).float()
        return nn.functional.pad(audio, (0, samples - audio.shape[-1]))


class Trainer:
    """Trains a codec in place, one `step()` at a time; `state_dict()` continues a run exactly where
    it stood.

    Args: model: the codec; weight norm is applied here if the recipe wants it. batches: crops of
        this process, `recipe.batch / (processes * accumulate)` of them. recipe: what to do.
        accelerator: where to do it; a new one by default. dtype: what the codec and the
        discriminators compute in; weights stay in fp32. accumulate: batches per step. fine_tune:
        the codec is trained already: its codebooks are kept, unless the recipe wants new ones, and
        the
            learning rate is the recipe's for that.
        steered: its codebooks steer their search, so its quantizer rests; by default what the
            weights say. Weights that are still to be loaded say nothing.
    """

    def __init__(
        self,
        model: DacModel,
        batches: Batches,
        recipe: Recipe,
        accelerator: Any = None,
        *,
        dtype: torch.dtype = torch.float32,
        accumulate: int = 1,
        fine_tune: bool = False,
        steered: bool | None = None,
    ):
        from accelerate import Accelerator

        self.accelerator = Accelerator(cpu=True) if accelerator is None else accelerator
        self.device = self.accelerator.device
        self.model, self.batches, self.recipe, self.dtype = (
            model.to(self.device).train(),
            batches,
            recipe,
            dtype,
        )
        self.accumulate, self.fine_tune = accumulate, fine_tune
        objective, books = recipe.objective, recipe.codebooks
        model.quantizer.quantizer_dropout = recipe.quantizer_dropout
        if steered is None:
            steered = fine_tune and codebooks.is_steered(cast(Any, model.quantizer.quantizers[0]))
        self.steered = steered and (books.kept or books.rate_weight is not None)
        for quantize in model.quantizer.quantizers:
            cast(Any, quantize).codebook.requires_grad_(books.learning == "gradient")
        if recipe.weight_norm:
            model.apply_weight_norm()
        # Projections and entries that steer hold together, and the latents are to keep to them.
        resting = {*recipe.resting, "quantizer"} if self.steered else {*recipe.resting}
        for part in resting:
            getattr(model, part).requires_grad_(False)
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.settled = "quantizer" in resting  # codebooks stay as they are
        learned = books.learning == "gradient" and not self.settled
        self.optimizers = build_optimizers(
            model, muon=recipe.optimizer == "muon", lr=recipe.lr, train_codebooks=learned
        )
        self.moving = self._new_moving()
        self.local_coding = Coding(
            model, dtype, books.searched
        )  # of this process, without the others
        self.coding = self.accelerator.prepare(self.local_coding)
        self.losses = losses.losses_by_name(
            objective.reconstruction,
            model.config.sampling_rate,
            objective.mel_bands,
            objective.stft_windows,
        )
        for loss in self.losses.values():
            if isinstance(loss, nn.Module):
                loss.to(self.device)
        self.discriminator = self.judge = self.judge_optimizer = None
        if objective.adversarial:
            self.discriminator = new_discriminator(recipe.adversary, recipe.seed).to(self.device)
            self.judge_optimizer = torch.optim.AdamW(
                self.discriminator.parameters(), lr=recipe.adversary.lr, betas=(0.8, 0.99)
            )
            self.judge = self.accelerator.prepare(self.discriminator)
        self.progress: dict[str, Any] = {
            "step": 0,
            "norms": None,
            "gradient_norm": None,
            "latent_scale": None if fine_tune else 0.0,
            "skipped": 0,
            "skipped_in_a_row": 0,
        }
        # Of each entry, how often it was chosen since somebody looked and emptied it.
        config = model.config
        self.chosen = torch.zeros(config.n_codebooks, config.codebook_size, device=self.device)

    @property
    def step_number(self) -> int:
        """Steps done."""
        return self.progress["step"]

    @property
    def quantized(self) -> bool:
        """Whether latents are quantized at this step."""
        return self.fine_tune or self.step_number >= self.recipe.schedule.quantize_at

    @property
    def frozen(self) -> bool:
        """Whether encoder and codebooks rest at this step; not where the decoder does, or nothing
        would learn.
        """
        freeze_at = self.recipe.schedule.freeze_at
        return (
            freeze_at is not None
            and self.step_number >= freeze_at
            and "decoder" not in self.recipe.resting
        )

    @property
    def adversarial(self) -> bool:
        """Whether discriminators take part in this step."""
        return (
            self.discriminator is not None and self.step_number >= self.recipe.schedule.adversary_at
        )

    def step(self) -> dict[str, Tensor | float]:
        """One step on `accumulate` batches; returns the losses of this process.

        A step whose gradient is not finite changes nothing but `progress["skipped"]`. Raises
        TrainingError when that happens again and again.
        """
        schedule, books = self.recipe.schedule, self.recipe.codebooks
        if books.placed and not (self.fine_tune and books.kept):
            if (
                self.step_number == schedule.freeze_at
            ):  # the encoder rests as its average, which suits other codebooks
                self.model.encoder.load_state_dict(self.average.encoder.state_dict())
            first = 0 if self.fine_tune else schedule.quantize_at
            if self.step_number in (first, *schedule.place_at, schedule.freeze_at):
                self._place_codebooks()
        reports, coded, norms = [], [], []
        for index in range(self.accumulate):
            batch = self._next_batch()
            self._seed(index)
            with ExitStack() as stack:
                if index < self.accumulate - 1:
                    for module in filter(None, (self.coding, self.judge)):
                        stack.enter_context(self.accelerator.no_sync(module))
                found, out, squares = self._backward(batch)
            reports.append(found)
            norms.append(squares)
            if "codes" in out:
                coded.append((out["projected"].detach(), out["codes"]))
        report: dict[str, Tensor | float] = {}
        for name in reports[0]:
            report[name] = torch.stack([part[name] for part in reports]).mean()
        report |= self._update(norms)
        if coded and not self.frozen and not report["skipped"]:
            report["revived"] = self._follow(coded)
        self.progress["step"] += 1
        return report

    def _next_batch(self) -> Batch:
        """A batch whose audio lies on the device; its bandwidths do not, so that looking at them
        waits for nothing.
        """
        batch = next(self.batches)
        return batch._replace(audio=batch.audio.to(self.device))

    def _seed(self, index: int) -> None:
        """Random numbers of this batch alone, so that no state of them need be kept."""
        place = (self.step_number * self.accumulate + index) * self.accelerator.num_processes
        torch.manual_seed(self.recipe.seed * 1_000_003 + place + self.accelerator.process_index)

    def _backward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
        """Gradients of one batch; its losses, what the codec gave, and the squared norms that the
        balance found.
        """
        out = self.coding(batch.audio, self.quantized, self.frozen)
        leaf = out["audio"].detach().requires_grad_()
        heard, reference = self._heard(leaf, batch)
        parts = self._reconstruction(heard, reference)
        judged = None
        if self.adversarial:
            judged = self._judge(heard, reference)
            parts |= {
                "adversarial": judged.adversarial,
                "feature_matching": judged.feature_matching,
            }
        weights = self.recipe.objective.weights
        parts = {name: loss for name, loss in parts.items() if weights.get(name)}
        gradient, squares = self._output_gradient(parts, leaf)
        report = {name: loss.detach() for name, loss in parts.items()}
        objective = (out["audio"] * gradient).sum()
        if not self.frozen:
            objective = objective + self._latent_losses(out, report)
        self.accelerator.backward(objective / self.accumulate)
        if judged is not None:
            report["discriminator"] = judged.discriminator.detach()
            self.accelerator.backward(judged.discriminator / self.accumulate)
        return report, out, squares

    def _heard(self, audio: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Decoded audio (B, S) and its reference, both as far up as the recordings go."""
        limits = batch.bandwidth, self.model.config.sampling_rate
        return losses.limit_bandwidth(audio, *limits), losses.limit_bandwidth(batch.audio, *limits)

    def _reconstruction(self, estimate: Tensor, reference: Tensor) -> dict[str, Tensor]:
        with losses.shared_spectra():
            return {name: loss(estimate, reference) for name, loss in self.losses.items()}

    def _judge(self, estimate: Tensor, reference: Tensor):
        """Both signals go through the discriminators once, for the losses of both sides."""
        assert self.judge is not None
        signals = torch.cat([estimate, reference]).unsqueeze(1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            features = self.judge(signals)
        count = len(estimate)
        fake, real = (
            [[layer[part] for layer in layers] for layers in features]
            for part in (slice(count), slice(count, None))
        )
        return adversarial_losses(fake, real)

    def _output_gradient(
        self, parts: dict[str, Tensor], leaf: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        objective = self.recipe.objective
        values, weights = list(parts.values()), [objective.weights[name] for name in parts]
        if not objective.balanced:
            return losses.weighted_gradient(values, weights, leaf), None
        found: list[Tensor] = []
        # Discriminators join later: the first norms of a loss are those it comes with.
        usual = self.progress["norms"] or {}

        def norms(these: Tensor) -> Tensor:
            squares = self._sum(these.square()) / self.accelerator.num_processes**2
            found.append(squares)
            known = [usual.get(name) for name in parts]
            return torch.stack(
                [
                    s if k is None else s.new_tensor(k)
                    for k, s in zip(known, squares.sqrt(), strict=True)
                ]
            )

        gradient = losses.balanced_gradient(values, weights, leaf, norms)
        return gradient, found[0]

    def _latent_losses(self, out: dict[str, Tensor], report: dict[str, Tensor]) -> Tensor:
        objective, total = self.recipe.objective, out["latents"].new_zeros(())
        if objective.latent_scale:
            scale = self._mean(out["latents"].square().mean()).log()
            if self.progress["latent_scale"] is None:
                self.progress["latent_scale"] = float(scale.detach())
            total = (
                total + objective.latent_scale * (scale - self.progress["latent_scale"]).square()
            )
        if "codes" not in out:
            return total
        if objective.unread:
            read = self.model.quantizer.from_codes(out["codes"])[0].detach()
            size = self._mean(out["latents"].detach().square().mean())
            total = total + objective.unread * (out["latents"] - read).square().mean() / size
        if self.recipe.codebooks.learning == "means":
            options = {"mean": self._mean, "steered": self.steered}
            commitment = codebooks.relative_commitment(
                self.model.quantizer, out["projected"], out["codes"], **options
            )
        else:
            commitment = out["commitment"]
            total = total + objective.codebook * out["codebook"]
            report["codebook"] = out["codebook"].detach()
        report["commitment"] = commitment.detach()
        return total + objective.commitment * commitment

    def _update(self, norms: list[Tensor | None]) -> dict[str, float]:
        """Move the weights along their gradients, if these are finite; forget the gradients."""
        recipe, step = self.recipe, self.step_number
        clip, usual = recipe.clip, self.progress["gradient_norm"]
        limit = clip if clip is not None else math.inf if usual is None else 3 * usual
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        report = {
            "gradient_norm": norm,
            "learning_rate": recipe.lr * self._factor(),
            "skipped": 0.0,
        }
        judge_norm = self._clip_judge()
        if judge_norm is not None:
            report["discriminator_gradient_norm"] = judge_norm
        if not math.isfinite(norm) or not math.isfinite(judge_norm or 0.0):
            self._skip(norm, judge_norm)
            return {
                **report,
                "skipped": 1.0,
                "gradient_norm": limit if math.isfinite(limit) else 0.0,
            }
        self.progress["skipped_in_a_row"] = 0
        kept = min(norm, limit)
        self.progress["gradient_norm"] = kept if usual is None else 0.98 * usual + 0.02 * kept
        self._keep_norms([n for n in norms if n is not None])
        slow = recipe.quantized_encoder_lr if self.quantized else 1.0
        shares = {"encoder": slow, "decoder": 1.0, "projections": recipe.projection_lr}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * self._factor() * shares[group["part"]]
            optimizer.step()
        if judge_norm is not None and self.judge_optimizer is not None:
            for group in self.judge_optimizer.param_groups:
                group["lr"] = recipe.adversary.lr * recipe.schedule.factor(step)
            self.judge_optimizer.step()
        self._forget()
        self._average(step)
        return report

    def _factor(self) -> float:
        tuned = self.recipe.fine_tuning_lr if self.fine_tune else 1.0
        return tuned * self.recipe.schedule.factor(self.step_number)

    def _clip_judge(self) -> float | None:
        if not self.adversarial or self.discriminator is None:
            return None
        norm = torch.nn.utils.clip_grad_norm_(
            self.discriminator.parameters(), self.recipe.adversary.clip
        )
        return float(norm)

    def _skip(self, norm: float, judge_norm: float | None) -> None:
        self._forget()
        self.progress["skipped"] += 1
        self.progress["skipped_in_a_row"] += 1
        if self.progress["skipped_in_a_row"] >= MOST_SKIPS:
            whose = "codec" if not math.isfinite(norm) else "discriminator"
            raise TrainingError(
                f"the gradient of the {whose} was not finite for {MOST_SKIPS} steps in a row, the last at step "
                f"{self.step_number}; resume from the last saved state with a smaller learning rate"
            )

    def _forget(self) -> None:
        for optimizer in (*self.optimizers, *filter(None, [self.judge_optimizer])):
            optimizer.zero_grad()

    def _keep_norms(self, squares: list[Tensor]) -> None:
        if not squares:
            return
        found = (torch.stack(squares).sum(dim=0).sqrt() / self.accumulate).tolist()
        kept, objective = dict(self.progress["norms"] or {}), self.recipe.objective
        names = [*self.losses, *(ADVERSARIAL if self.adversarial else ())]
        names = [name for name in names if objective.weights.get(name)]
        for name, new in zip(names, found, strict=True):
            kept[name] = 0.97 * kept[name] + 0.03 * new if name in kept else new
        self.progress["norms"] = kept

    @torch.no_grad()
    def _average(self, step: int) -> None:
        keep = min(self.recipe.average_decay, (1 + step) / (10 + step))
        if self.fine_tune:
            keep = self.recipe.average_decay
        for average, current in zip(
            self.average.parameters(), self.model.parameters(), strict=True
        ):
            average.lerp_(current, 1 - keep)

    def _follow(self, coded: list[tuple[Tensor, Tensor]]) -> float:
        """Show the codebooks what was coded, in all processes alike."""
        parts = [tuple(self.accelerator.gather(part) for part in pair) for pair in coded]
        projected, codes = (torch.cat([cast(Tensor, pair[i]) for pair in parts]) for i in (0, 1))
        self.chosen += codebooks.code_counts(codes, self.chosen.shape[1])
        if self.settled:
            return 0.0
        return float(self.moving.update(projected, codes, self._generator(1)))

    def _generator(self, purpose: int) -> torch.Generator:
        """Random numbers that are the same in all processes."""
        return torch.Generator().manual_seed(
            (self.recipe.seed * 1_000_003 + self.step_number) * 4 + purpose
        )

    @torch.no_grad()
    def _place_codebooks(self) -> None:
        books, latents, products, found = self.recipe.codebooks, [], [], 0
        most = max(
            10, self.recipe.schedule.steps // 20
        )  # batches: a short trial is not to spend its time here
        while found < books.placement_vectors and len(latents) < most:
            batch = self._next_batch()
            mine = self.model.encoder(batch.audio.unsqueeze(1).to(self.dtype)).float()
            if books.placement_floor is not None and len(latents) % _SENSITIVITY_EVERY == 0:
                gradients = self._latent_gradient(mine, batch).transpose(1, 2).flatten(0, 1)
                products.append(self._sum(gradients.t() @ gradients))
            z = cast(Tensor, self.accelerator.gather(mine))
            latents.append(z.transpose(1, 2).flatten(0, 1))
            found += len(latents[-1])
        vectors, metric = torch.cat(latents), None
        if books.placement_floor is not None:
            metric = codebooks.sensitivity(
                torch.stack(products).sum(dim=0), books.placement_floor
            ).cpu()
        # Codebooks that move could not be steered.
        resting = self.steered or self.step_number == self.recipe.schedule.freeze_at
        codebooks.initialize(
            self.model.quantizer,
            vectors.cpu(),
            generator=self._generator(2),
            metric=metric,
            rate_weight=books.rate_weight if resting else None,
        )
        self.moving = self._new_moving()
        self.average.quantizer.load_state_dict(self.model.quantizer.state_dict())
        self.progress["latent_scale"] = float(vectors.square().mean().log())

    def _latent_gradient(self, latents: Tensor, batch: Batch) -> Tensor:
        """Gradient of the reconstruction losses at what the decoder gets for these latents (B, D,
        T).
        """
        if (
            self.fine_tune or self.step_number > self.recipe.schedule.quantize_at
        ):  # before, there are no codebooks
            latents = self.model.quantizer.eval()(latents)[0]
            self.model.quantizer.train()
        with torch.enable_grad():
            latents = latents.detach().requires_grad_()
            audio = self.local_coding.decode(latents, batch.audio.shape[-1])
            leaf = audio.detach().requires_grad_()
            gradient, _ = self._output_gradient(
                self._reconstruction(*self._heard(leaf, batch)), leaf
            )
            return torch.autograd.grad((audio * gradient).sum(), latents)[0].float()

    def _new_moving(self) -> codebooks.MovingCodebooks:
        books = self.recipe.codebooks
        return codebooks.MovingCodebooks(
            self.model.quantizer,
            books.decay,
            follow=books.learning == "means",
            revive_below=books.revive_below,
        )

    def _sum(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.accelerator.reduce(x, "sum"))

    @property
    def _mean(self) -> Callable[[Tensor], Tensor]:
        """The mean over processes, with its gradient."""
        processes = self.accelerator.num_processes
        return (
            _identity
            if processes == 1
            else lambda x: cast(Tensor, _MeanOverProcesses.apply(x)) / processes
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything a run needs to continue, on the same recordings and with the same recipe; of
        this process.
        """
        state = {
            name: getattr(self, name).state_dict()
            for name in ("model", "average", "moving", "batches")
        }
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        if self.discriminator is not None and self.judge_optimizer is not None:
            state["discriminator"] = self.discriminator.state_dict()
            state["judge_optimizer"] = self.judge_optimizer.state_dict()
        kinds = {"fine_tune": self.fine_tune, "steered": self.steered}
        return state | {"progress": self.progress, "chosen": self.chosen} | kinds

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict()` gave."""
        for name in ("model", "average", "moving", "batches"):
            getattr(self, name).load_state_dict(state[name])
        for optimizer, part in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)
        if self.discriminator is not None and self.judge_optimizer is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.judge_optimizer.load_state_dict(state["judge_optimizer"])
        self.progress, self.fine_tune = copy.deepcopy(state["progress"]), state["fine_tune"]
        self.chosen.copy_(state["chosen"])


class _MeanOverProcesses(torch.autograd.Function):
    """The sum over processes. Its gradient is the mean of theirs, as DDP takes the mean of what
    comes of it.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        torch.distributed.all_reduce(gradient)
        return gradient


def _identity(x: Tensor) -> Tensor:
    return x
