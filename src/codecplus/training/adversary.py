"""The discriminators of a training run: their losses and their optimizer."""

from typing import Any

import torch
from torch import Tensor, nn

from codecplus.training.discriminators import (
    AdversarialLosses,
    Discriminator,
    adversarial_losses,
)
from codecplus.training.recipe import Adversary, Recipe


def new_discriminator(adversary: Adversary, seed: int = 0) -> Discriminator:
    """Return the discriminators that a recipe names, with random weights."""
    torch.manual_seed(seed)
    return Discriminator(
        adversary.periods,
        adversary.fft_sizes,
        bands=[(low, high) for low, high in adversary.bands],
        period_channels=adversary.period_channels,
        stft_channels=adversary.stft_channels,
        stft_power=adversary.stft_power,
    )


class AdversarialTraining:
    """Discriminators that are trained beside a codec.

    Args:
        recipe: its `adversary` has their settings.
        accelerator: of the device and the processes.
        dtype: precision of their computations; weights stay in fp32.
    """

    def __init__(self, recipe: Recipe, accelerator: Any, dtype: torch.dtype):
        self.settings = recipe.adversary
        self.dtype = dtype
        self.device = accelerator.device
        self.discriminator = new_discriminator(recipe.adversary, recipe.seed).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=recipe.adversary.lr, betas=(0.8, 0.99)
        )
        self.parallel = accelerator.prepare(self.discriminator)

    def losses(self, estimate: Tensor, reference: Tensor) -> AdversarialLosses:
        """Return the losses of both sides for decoded audio (B, S) and its reference.

        Both signals go through the discriminators once. The discriminators' loss must be
        backpropagated before the next call.
        """
        return self._losses(self.parallel, estimate, reference)

    def codec_losses(self, estimate: Tensor, reference: Tensor) -> AdversarialLosses:
        """Return the same losses, for the codec alone.

        Processes do not wait for gradients of the discriminators after this call.
        """
        return self._losses(self.discriminator, estimate, reference)

    def _losses(
        self, discriminator: nn.Module, estimate: Tensor, reference: Tensor
    ) -> AdversarialLosses:
        signals = torch.cat([estimate, reference]).unsqueeze(1)
        bf16 = self.dtype == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            features = discriminator(signals)
        fake = []
        real = []
        for layers in features:  # of one discriminator
            halves = [layer.split(len(estimate)) for layer in layers]
            fake.append([half[0] for half in halves])
            real.append([half[1] for half in halves])
        return adversarial_losses(fake, real)

    def clip_gradient(self) -> float:
        """Limit the norm of the gradient, and return the norm before."""
        parameters = self.discriminator.parameters()
        return float(torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip))

    def step(self, factor: float) -> None:
        """Move the weights, with this factor of the learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * factor
        self.optimizer.step()
