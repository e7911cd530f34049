"""The trainer: it takes a codec, batches and a recipe, and improves the weights step by step.

A recipe may have phases: without the quantizer; with it, once its codebooks are placed; against
discriminators; with encoder and codebooks frozen. Every step seeds its own random numbers, so that
a resumed run continues as if it had never stopped. Several processes compute the same as one
process with all their crops in one batch, except for quantizer dropout and searched codes, which
each process draws for itself.
"""

import copy
import math
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from codecplus import losses
from codecplus.errors import InputError, TrainingError
from codecplus.modeling_dac import DacModel
from codecplus.training import codebooks
from codecplus.training.adversary import AdversarialTraining
from codecplus.training.autoencoder import Autoencoder
from codecplus.training.data import Batch, Batches
from codecplus.training.levels import Levels
from codecplus.training.optimizer import build_optimizers
from codecplus.training.processes import Processes
from codecplus.training.recipe import ADVERSARIAL, Recipe

MAX_SKIPS = 10  # steps in a row whose gradient is not finite
# Codebooks are placed by the latents of all batches, but the gradients of every eighth only:
# gradients take longer, and fewer are enough.
_SENSITIVITY_EVERY = 8


class _BatchResult(NamedTuple):
    """The numbers of one batch: for reports, codebooks and running means."""

    report: dict[str, Tensor]
    coded: tuple[Tensor, Tensor] | None  # projected latents (B, K * d, T), codes (B, K, T)
    squared_norms: Tensor | None  # of balanced losses' gradients at the output


class Trainer:
    """Trains a codec in place, one `step()` at a time.

    `state_dict()` continues a run exactly where it stood.

    Args:
        model: the codec; it gets weight norm here if the recipe says so.
        batches: batches of this process, each of `recipe.batch / (processes * accumulate)` crops.
        recipe: the settings of the training.
        accelerator: of the device and the processes; by default a new one on the CPU.
        dtype: precision of the codec's and the discriminators' computations; weights stay in fp32.
        accumulate: batches per step.
        fine_tune: whether the codec is trained already. Then its codebooks are kept, unless the
            recipe wants new ones, and the learning rate is the recipe's for fine-tuning.
        steered: whether its codebooks steer their search, so that its quantizer stays frozen. By
            default the weights tell, unless they are yet to be loaded.
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
        self.accelerator = accelerator or _cpu_accelerator()
        self.processes = Processes(self.accelerator)
        self.device = self.accelerator.device
        self.model = model.to(self.device).train()
        self.batches = batches
        self.recipe = recipe
        self.dtype = dtype
        self.accumulate = accumulate
        self.fine_tune = fine_tune
        self.steered = self._keeps_steering(steered)
        self.resting = set(recipe.resting)
        if self.steered:  # projections and entries belong together: the latents adapt to them
            self.resting.add("quantizer")
        self.codebooks_rest = "quantizer" in self.resting
        if recipe.objective.adversarial and recipe.adversary.first and accumulate > 1:
            raise InputError(
                "discriminators that change before the codec need the whole batch at once: leave "
                "accumulate at 1, or set adversary.first=false"
            )
        self._prepare_model()
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizers = self._new_optimizers()
        self.moving = self._new_moving_codebooks()
        # The codec of this process alone, and the same with gradients shared by all processes.
        self.local_coding = Autoencoder(self.model, dtype, recipe.codebooks.searched)
        self.coding = self.accelerator.prepare(self.local_coding)
        self.losses = self._new_losses()
        self.levels = Levels(self.model.config) if recipe.objective.levelled else None
        self.adversary: AdversarialTraining | None = None
        if recipe.objective.adversarial:
            self.adversary = AdversarialTraining(recipe, self.accelerator, dtype)
        self._discriminator_norm = 0.0  # of their step in this one, where they are changed first
        self.progress = _new_progress(fine_tune)
        # How often each entry was chosen since the last line of the log, which sets it to zero.
        config = self.model.config
        self.chosen = torch.zeros(config.n_codebooks, config.codebook_size, device=self.device)

    # ---- parts

    def _keeps_steering(self, steered: bool | None) -> bool:
        """Return whether the codebooks steer their search, and stay in this run."""
        settings = self.recipe.codebooks
        if steered is None:
            first = cast(Any, self.model.quantizer.quantizers[0])
            steered = self.fine_tune and codebooks.is_steered(first)
        return bool(steered) and (settings.kept or settings.rate_weight is not None)

    def _prepare_model(self) -> None:
        """Set dropout and weight norm as the recipe says; freeze the parts that rest."""
        by_gradient = self.recipe.codebooks.learning == "gradient"
        quantizer = self.model.quantizer
        quantizer.quantizer_dropout = self.recipe.quantizer_dropout
        for quantize in quantizer.quantizers:
            cast(Any, quantize).codebook.requires_grad_(by_gradient)
        if self.recipe.weight_norm:
            self.model.apply_weight_norm()
        for part in self.resting:
            self._part(part).requires_grad_(False)

    def _part(self, name: str) -> nn.Module:
        """Return a part of the codec, or a module within one. Raises InputError for another."""
        try:
            return self.model.get_submodule(name)
        except AttributeError as error:
            raise InputError(
                f"resting names {name}, which this codec does not have; its decoder, for example, "
                f"has {', '.join(f'decoder.{child}' for child, _ in self.model.decoder.steps())}"
            ) from error

    def _new_optimizers(self) -> list[torch.optim.Optimizer]:
        recipe = self.recipe
        by_gradient = recipe.codebooks.learning == "gradient"
        return build_optimizers(
            self.model,
            muon=recipe.optimizer == "muon",
            lr=recipe.lr,
            train_codebooks=by_gradient and not self.codebooks_rest,
            weight_decay=recipe.weight_decay,
        )

    def _new_moving_codebooks(self) -> codebooks.MovingCodebooks:
        settings = self.recipe.codebooks
        return codebooks.MovingCodebooks(
            self.model.quantizer,
            settings.decay,
            follow=settings.learning == "means",
            revive_below=settings.revive_below,
        )

    def _new_losses(self) -> dict[str, losses.Loss]:
        objective = self.recipe.objective
        by_name = losses.losses_by_name(
            objective.reconstruction,
            self.model.config.sampling_rate,
            objective.mel_bands,
            objective.stft_windows,
        )
        for loss in by_name.values():
            if isinstance(loss, nn.Module):
                loss.to(self.device)
        return by_name

    # ---- phases

    @property
    def step_number(self) -> int:
        """The number of steps done."""
        return self.progress["step"]

    @property
    def quantized(self) -> bool:
        """Whether latents are quantized at this step."""
        return self.fine_tune or self.step_number >= self.recipe.schedule.quantize_at

    @property
    def has_codebooks(self) -> bool:
        """Whether the codebooks have been placed or trained. At the step where quantization begins
        they are random still.
        """
        return self.fine_tune or self.step_number > self.recipe.schedule.quantize_at

    @property
    def frozen(self) -> bool:
        """Whether encoder and codebooks are frozen at this step.

        They never are where the decoder rests, or nothing would learn.
        """
        freeze_at = self.recipe.schedule.freeze_at
        if freeze_at is None or "decoder" in self.recipe.resting:
            return False
        return self.step_number >= freeze_at

    @property
    def adversarial(self) -> bool:
        """Whether discriminators take part in this step."""
        return self.adversary is not None and self.step_number >= self.recipe.schedule.adversary_at

    # ---- a step

    def step(self) -> dict[str, Tensor | float]:
        """Do one step on `accumulate` batches, and return the losses of this process.

        A step whose gradient is not finite changes nothing but `progress["skipped"]`, and reports
        no losses. Raises TrainingError when that happens again and again.
        """
        self._begin_phase()
        results = [self._gradients(index) for index in range(self.accumulate)]
        report: dict[str, Tensor | float] = {}
        report |= self._update(results)
        if not report["skipped"]:
            for name in results[0].report:
                report[name] = torch.stack([result.report[name] for result in results]).mean()
            if results[0].coded is not None:
                report["revived"] = self._train_codebooks(results)
        self.progress["step"] += 1
        return report

    def _begin_phase(self) -> None:
        """Place the codebooks, if the recipe does that at this step."""
        schedule = self.recipe.schedule
        settings = self.recipe.codebooks
        if not settings.placed or (self.fine_tune and settings.kept):
            return
        if self.step_number == schedule.freeze_at:
            # The averaged encoder is the one to freeze; its latents need codebooks of their own.
            self.model.encoder.load_state_dict(self.average.encoder.state_dict())
        first = schedule.quantize_at
        if self.fine_tune:
            first = 0
        if self.step_number in (first, *schedule.place_at, schedule.freeze_at):
            self._place_codebooks()

    def _gradients(self, index: int) -> _BatchResult:
        """Add the gradients of batch number `index` of this step."""
        batch = self._next_batch()
        self._seed(index)
        with ExitStack() as stack:
            if index < self.accumulate - 1:  # processes exchange gradients once per step
                stack.enter_context(self.accelerator.no_sync(self.coding))
                if self.adversary is not None:
                    stack.enter_context(self.accelerator.no_sync(self.adversary.parallel))
            return self._backward(batch)

    def _next_batch(self) -> Batch:
        """Return a batch with its audio on the device.

        Its bandwidths stay on the CPU, so that reading them does not wait for the device.
        """
        batch = next(self.batches)
        return batch._replace(audio=batch.audio.to(self.device))

    def _seed(self, index: int) -> None:
        """Seed random numbers by the number of this batch, so that no state has to be saved."""
        number = (self.step_number * self.accumulate + index) * self.processes.count
        torch.manual_seed(self.recipe.seed * 1_000_003 + number + self.processes.index)

    def _backward(self, batch: Batch) -> _BatchResult:
        """Add the gradients of one batch."""
        out = self.coding(batch.audio, self.quantized, self.frozen)
        decoded = out["audio"].detach().requires_grad_()
        estimate, reference = self._limit_to_recordings(decoded, batch)
        output_losses = self._reconstruction_losses(estimate, reference)
        adversarial = None
        report: dict[str, Tensor] = {}
        if self.adversary is not None and self.adversarial:
            if self.recipe.adversary.first:
                report |= self._train_discriminators(self.adversary, estimate.detach(), reference)
                adversarial = self.adversary.codec_losses(estimate, reference)
            else:
                adversarial = self.adversary.losses(estimate, reference)
            output_losses["adversarial"] = adversarial.adversarial
            output_losses["feature_matching"] = adversarial.feature_matching
        output_losses = {name: output_losses[name] for name in self._weighed_losses()}
        gradient, squared_norms = self._output_gradient(output_losses, decoded)
        report |= {name: loss.detach() for name, loss in output_losses.items()}
        objective = (out["audio"] * gradient).sum()
        if not self.frozen:
            objective = objective + self._latent_losses(out, report)
        self.accelerator.backward(objective / self.accumulate)
        if adversarial is not None and not self.recipe.adversary.first:
            report["discriminator"] = adversarial.discriminator.detach()
            report["discriminator_accuracy"] = adversarial.accuracy
            self.accelerator.backward(adversarial.discriminator / self.accumulate)
        coded = None
        if "codes" in out and not self.frozen:
            coded = (out["projected"].detach(), out["codes"])
        return _BatchResult(report, coded, squared_norms)

    def _train_discriminators(
        self, adversary: AdversarialTraining, estimate: Tensor, reference: Tensor
    ) -> dict[str, Tensor]:
        """Do a step of the discriminators, and report it.

        Its gradient's norm is remembered for the step of the codec. If it is not finite, the
        discriminators stay as they are.
        """
        losses = adversary.losses(estimate, reference)
        self.accelerator.backward(losses.discriminator)
        self._discriminator_norm = adversary.clip_gradient()
        if math.isfinite(self._discriminator_norm):
            adversary.step(self.recipe.schedule.factor(self.step_number))
        adversary.optimizer.zero_grad()
        return {
            "discriminator": losses.discriminator.detach(),
            "discriminator_accuracy": losses.accuracy,
        }

    def _limit_to_recordings(self, decoded: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return decoded audio (B, S) and its reference, both up to the recordings' bandwidth."""
        if not self.recipe.objective.limit_bandwidth:
            return decoded, batch.audio
        rate = self.model.config.sampling_rate
        estimate = losses.limit_bandwidth(decoded, batch.bandwidth, rate)
        reference = losses.limit_bandwidth(batch.audio, batch.bandwidth, rate)
        return estimate, reference

    def _reconstruction_losses(self, estimate: Tensor, reference: Tensor) -> dict[str, Tensor]:
        heard = estimate
        if self.levels is not None:
            heard = self.levels(estimate, reference)
        with losses.shared_spectra():
            return {
                name: loss(estimate if losses.is_of_levels(loss) else heard, reference)
                for name, loss in self.losses.items()
            }

    def _output_gradient(
        self, output_losses: dict[str, Tensor], decoded: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of losses at decoded audio (B, S), and the squares of their norms.

        The squares (losses,) are means over processes. They are None unless losses are balanced.
        """
        objective = self.recipe.objective
        values = list(output_losses.values())
        weights = [objective.weights[name] for name in output_losses]
        if not objective.balanced:
            return losses.weighted_gradient(values, weights, decoded), None
        squared_norms: list[Tensor] = []

        def usual_norms(norms: Tensor) -> Tensor:
            squares = self.processes.sum(norms.square()) / self.processes.count**2
            squared_norms.append(squares)
            return self._usual_norms(list(output_losses), squares.sqrt())

        gradient = losses.balanced_gradient(values, weights, decoded, usual_norms)
        return gradient, squared_norms[0]

    def _usual_norms(self, names: list[str], norms: Tensor) -> Tensor:
        """Return the running means of losses' norms.

        The first norm of a loss is its first mean: discriminators join later than other losses.
        """
        known = self.progress["norms"] or {}
        usual = list(norms)
        for index, name in enumerate(names):
            if name in known:
                usual[index] = norms.new_tensor(known[name])
        return torch.stack(usual)

    def _latent_losses(self, out: dict[str, Tensor], report: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of the losses on latents and codebooks, and report them."""
        objective = self.recipe.objective
        latents = out["latents"]
        total = latents.new_zeros(())
        if objective.latent_scale:
            scale = self.processes.mean(latents.square().mean()).log()
            if self.progress["latent_scale"] is None:
                self.progress["latent_scale"] = float(scale.detach())
            drift = (scale - self.progress["latent_scale"]).square()
            total = total + objective.latent_scale * drift
        if "codes" not in out:
            return total
        if objective.unread:
            quantized = self.model.quantizer.look_up(out["codes"])[0].detach()
            size = self.processes.mean(latents.detach().square().mean())
            total = total + objective.unread * (latents - quantized).square().mean() / size
        if self.recipe.codebooks.learning == "means":
            commitment = codebooks.relative_commitment(
                self.model.quantizer,
                out["projected"],
                out["codes"],
                mean=self.processes.mean,
                steered=self.steered,
            )
        else:
            commitment = out["commitment"]
            total = total + objective.codebook * out["codebook"]
            report["codebook"] = out["codebook"].detach()
        report["commitment"] = commitment.detach()
        return total + objective.commitment * commitment

    # ---- the optimizers' step

    def _update(self, results: list[_BatchResult]) -> dict[str, float]:
        """Do the optimizers' step if gradients are finite; clear the gradients in any case."""
        limit = self._gradient_limit()
        trained = [p for p in self.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(trained, limit))
        report = {"learning_rate": self.recipe.lr * self._rate_factor(), "skipped": 0.0}
        adversary_norm = 0.0
        if self.adversary is not None and self.adversarial:
            if self.recipe.adversary.first:
                adversary_norm = self._discriminator_norm
            else:
                adversary_norm = self.adversary.clip_gradient()
        for part, part_norm in (("codec", norm), ("discriminator", adversary_norm)):
            if not math.isfinite(part_norm):
                self._skip(part)
                return {**report, "skipped": 1.0}
        report["gradient_norm"] = norm
        if self.adversarial:
            report["discriminator_gradient_norm"] = adversary_norm
        self.progress["skipped_in_a_row"] = 0
        self._remember_gradient_norm(min(norm, limit))
        squares = [result.squared_norms for result in results if result.squared_norms is not None]
        if squares:
            norms = torch.stack(squares).sum(dim=0).sqrt() / self.accumulate
            report |= self._remember_loss_norms(norms.tolist())
        self._step_optimizers()
        self._clear_gradients()
        self._update_average()
        return report

    def _gradient_limit(self) -> float:
        """Return the norm that the gradient is limited to."""
        if self.recipe.clip is not None:
            return self.recipe.clip
        usual = self.progress["gradient_norm"]
        if usual is None:  # no norm has been seen yet
            return math.inf
        return 3 * usual

    def _remember_gradient_norm(self, norm: float) -> None:
        usual = self.progress["gradient_norm"]
        if usual is None:
            self.progress["gradient_norm"] = norm
        else:
            self.progress["gradient_norm"] = 0.98 * usual + 0.02 * norm

    def _remember_loss_norms(self, norms: list[float]) -> dict[str, float]:
        """Update the running means of the norms of balanced losses' gradients.

        Returns the share that each loss had of this step's gradient at the output.
        """
        usual = dict(self.progress["norms"] or {})
        contributions: dict[str, float] = {}
        for name, norm in zip(self._weighed_losses(), norms, strict=True):
            before = usual.get(name, norm)
            weight = self.recipe.objective.weights[name]
            contributions[f"share/{name}"] = weight * norm / max(before, 1e-12)
            if name in usual:
                usual[name] = 0.97 * before + 0.03 * norm
            else:
                usual[name] = norm
        self.progress["norms"] = usual
        total = max(sum(contributions.values()), 1e-12)
        return {name: value / total for name, value in contributions.items()}

    def _weighed_losses(self) -> list[str]:
        """Return the names of the weighed losses at the output, those of this step's phase."""
        names = [*self.losses]
        if self.adversarial:
            names += ADVERSARIAL
        return [name for name in names if self.recipe.objective.weights.get(name)]

    def _step_optimizers(self) -> None:
        recipe = self.recipe
        rate = recipe.lr * self._rate_factor()
        shares = {"encoder": 1.0, "decoder": 1.0, "projections": recipe.projection_lr}
        if self.quantized:
            shares["encoder"] = recipe.quantized_encoder_lr
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * shares[group["part"]]
            optimizer.step()
        if self.adversary is not None and self.adversarial and not recipe.adversary.first:
            self.adversary.step(recipe.schedule.factor(self.step_number))

    def _rate_factor(self) -> float:
        factor = self.recipe.schedule.factor(self.step_number)
        if self.fine_tune:
            return self.recipe.fine_tuning_lr * factor
        return factor

    def _skip(self, culprit: str) -> None:
        """Skip this step. Raises TrainingError if the ones before it were skipped too."""
        self._clear_gradients()
        self.progress["skipped"] += 1
        self.progress["skipped_in_a_row"] += 1
        if self.progress["skipped_in_a_row"] >= MAX_SKIPS:
            raise TrainingError(
                f"the gradient of the {culprit} was not finite for {MAX_SKIPS} steps in a row, the "
                f"last at step {self.step_number}; resume from the last saved state with a smaller "
                "learning rate"
            )

    def _clear_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        if self.adversary is not None:
            self.adversary.optimizer.zero_grad()

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the averaged weights towards the current ones."""
        decay = self.recipe.average_decay
        if not self.fine_tune:  # the first weights are random, and must leave the average soon
            decay = min(decay, (1 + self.step_number) / (10 + self.step_number))
        parameters = zip(self.average.parameters(), self.model.parameters(), strict=True)
        for average, current in parameters:
            average.lerp_(current, 1 - decay)

    # ---- codebooks

    def _train_codebooks(self, results: list[_BatchResult]) -> float:
        """Move the codebooks by the latents and codes of all processes.

        Returns how many entries were moved to random latents.
        """
        all_latents: list[Tensor] = []
        all_codes: list[Tensor] = []
        for result in results:
            assert result.coded is not None, "all batches of a step are of one phase"
            latents, codes = result.coded
            all_latents.append(self.processes.gather(latents))
            all_codes.append(self.processes.gather(codes))
        projected = torch.cat(all_latents)
        codes = torch.cat(all_codes)
        self.chosen += codebooks.code_counts(codes, self.chosen.shape[1])
        if self.codebooks_rest:
            return 0.0
        return float(self.moving.update(projected, codes, self._generator(1)))

    def _generator(self, purpose: int) -> torch.Generator:
        """Return a generator for one purpose of this step, the same in all processes."""
        number = self.recipe.seed * 1_000_003 + self.step_number
        return torch.Generator().manual_seed(number * 4 + purpose)

    @torch.no_grad()
    def _place_codebooks(self) -> None:
        """Place projections and codebooks by the encoder's current latents."""
        settings = self.recipe.codebooks
        vectors, products = self._sample_latents()
        metric = None
        if settings.placement_floor is not None:
            gradients = torch.stack(products).sum(dim=0)
            metric = codebooks.sensitivity(gradients, settings.placement_floor).cpu()
        rate_weight = None
        if self.steered or self.step_number == self.recipe.schedule.freeze_at:
            # Only codebooks that stay as they are can steer their search.
            rate_weight = settings.rate_weight
        codebooks.initialize(
            self.model.quantizer,
            vectors.cpu(),
            generator=self._generator(2),
            metric=metric,
            rate_weight=rate_weight,
        )
        self.moving = self._new_moving_codebooks()
        self.average.quantizer.load_state_dict(self.model.quantizer.state_dict())
        self.progress["latent_scale"] = float(vectors.square().mean().log())

    def _sample_latents(self) -> tuple[Tensor, list[Tensor]]:
        """Return latents (N, D) of all processes, and products gᵀ g (D, D) of their gradients.

        There are no products if all directions cost the same by the recipe.
        """
        settings = self.recipe.codebooks
        max_batches = max(10, self.recipe.schedule.steps // 4)  # a short trial needs few
        latents: list[Tensor] = []
        products: list[Tensor] = []
        count = 0
        while count < settings.placement_vectors and len(latents) < max_batches:
            batch = self._next_batch()
            own_latents = self.local_coding.encode(batch.audio).float()
            if settings.placement_floor is not None and len(latents) % _SENSITIVITY_EVERY == 0:
                gradients = self._latent_gradient(own_latents, batch).transpose(1, 2).flatten(0, 1)
                products.append(self.processes.sum(gradients.t() @ gradients))
            latents.append(self.processes.gather(own_latents).transpose(1, 2).flatten(0, 1))
            count += len(latents[-1])
        return torch.cat(latents), products

    def _latent_gradient(self, latents: Tensor, batch: Batch) -> Tensor:
        """Return the gradient (B, D, T) of the reconstruction losses at the decoder's input."""
        if self.has_codebooks:
            latents = self.model.quantizer.eval()(latents)[0]
            self.model.quantizer.train()
        with torch.enable_grad():
            latents = latents.detach().requires_grad_()
            audio = self.local_coding.decode(latents, batch.audio.shape[-1])
            decoded = audio.detach().requires_grad_()
            estimate, reference = self._limit_to_recordings(decoded, batch)
            output_losses = self._reconstruction_losses(estimate, reference)
            gradient, _ = self._output_gradient(output_losses, decoded)
            return torch.autograd.grad((audio * gradient).sum(), latents)[0].float()

    # ---- end and state

    def close(self) -> None:
        """End the workers, and drop models that the processes share. No step follows."""
        self.batches.close()
        self.coding = self.local_coding
        if self.adversary is not None:
            self.adversary.parallel = self.adversary.discriminator

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this process.

        From it a trainer continues that has the same recordings and the same recipe.
        """
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "moving": self.moving.state_dict(),
            "batches": self.batches.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": self.progress,
            "chosen": self.chosen,
            "fine_tune": self.fine_tune,
            "steered": self.steered,
        }
        if self.adversary is not None:
            state["discriminator"] = self.adversary.discriminator.state_dict()
            state["judge_optimizer"] = self.adversary.optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict()` returned."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.moving.load_state_dict(state["moving"])
        self.batches.load_state_dict(state["batches"])
        _load_all(self.optimizers, state["optimizers"])
        if self.adversary is not None:
            self.adversary.discriminator.load_state_dict(state["discriminator"])
            self.adversary.optimizer.load_state_dict(state["judge_optimizer"])
        self.progress = copy.deepcopy(state["progress"])
        self.fine_tune = state["fine_tune"]
        self.chosen.copy_(state["chosen"])


def _cpu_accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def _new_progress(fine_tune: bool) -> dict[str, Any]:
    """Return the numbers that a run remembers from step to step."""
    latent_scale = 0.0
    if fine_tune:  # measured at the first step
        latent_scale = None
    return {
        "step": 0,
        "norms": None,  # running means of the norms of balanced losses' gradients, by name
        "gradient_norm": None,  # its running mean
        "latent_scale": latent_scale,  # logarithm of the latents' mean square
        "skipped": 0,
        "skipped_in_a_row": 0,
        "best": None,  # the lowest mel loss in validation so far
    }


def _load_all(optimizers: Iterable[torch.optim.Optimizer], states: Iterable[dict]) -> None:
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)
