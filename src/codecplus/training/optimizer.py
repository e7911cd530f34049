"""Muon, and the optimizers of a codec. They know parameters, nothing of losses."""

from collections import defaultdict
from typing import cast

import torch
from torch import Tensor, nn

from codecplus.kernels import processor_flags
from codecplus.system.devices import multiplies_bf16


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is made orthogonal (Jordan et al. 2024).

    Steps have the size of Adam's (Liu et al. 2025). Weights must have two dimensions or more; the
    first one counts as rows, the others together as columns.
    """

    def __init__(
        self, params, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.05
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """Change every parameter that has a gradient; `closure` is not supported."""
        if closure is not None:
            raise ValueError("Muon does not take a closure")
        for group in self.param_groups:
            by_shape = defaultdict(list)  # weights of one shape share their matrix products
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for weights in by_shape.values():
                self._step(weights, group)

    def _step(self, weights: list[Tensor], group: dict) -> None:
        directions = []
        for weight in weights:
            state = self.state[weight]
            gradient = cast(Tensor, weight.grad)
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            directions.append(gradient.lerp(state["momentum"], group["momentum"]).flatten(1))
        updates = orthogonalized(torch.stack(directions))
        scale = 0.2 * max(updates.shape[1:]) ** 0.5
        for weight, update in zip(weights, updates, strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(update.view_as(weight), alpha=-group["lr"] * scale)


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return matrices (N, rows, columns) with singular values near 1, about 0.7 to 1.2.

    It is the quintic Newton-Schulz iteration of Jordan et al. The precision of bf16 is enough for a
    direction. Where the hardware does not multiply bf16 it takes fp32: a step of the 16 kHz codec
    then takes 1 s instead of 29 s on a core with AVX2.
    """
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-12)
    if multiplies_bf16(x.device, processor_flags()):
        x = x.bfloat16()
    tall = x.shape[1] > x.shape[2]
    for _ in range(steps):
        gram = _gram_matrices(x, tall)
        gram = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        if tall:
            x = torch.baddbmm(x, x, gram, beta=3.4445)
        else:
            x = torch.baddbmm(x, gram, x, beta=3.4445)
    return x.to(matrices.dtype)


def _gram_matrices(x: Tensor, tall: bool) -> Tensor:
    """Return xᵀ x of tall matrices, x xᵀ of others.

    One by one, because torch copies the transposed side of a batched product, which takes longer
    than the product.
    """
    products = []
    for matrix in x:
        if tall:
            products.append(matrix.t() @ matrix)
        else:
            products.append(matrix @ matrix.t())
    return torch.stack(products)


def build_optimizers(
    model: nn.Module,
    *,
    muon: bool,
    lr: float,
    train_codebooks: bool,
    weight_decay: float = 0.0,
) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a codec.

    AdamW with the paper's betas takes all parameters that Muon does not take. Muon takes the
    convolutions that are wide enough to be matrices, but not those that give latents: there it
    would move directions that no codebook reads by random steps of full size. Nor does it take the
    one that gives gains, in decibels.

    Args:
        model: the codec.
        muon: whether to use Muon.
        lr: the learning rate.
        train_codebooks: whether the optimizers train codebooks, together with the projections.
        weight_decay: of AdamW; Muon has its own.

    Returns:
        The optimizers; each of their groups of parameters has a `part`: encoder, decoder or
        projections.
    """
    for_adamw: dict[str, list[Tensor]] = defaultdict(list)  # by part
    for_muon: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if name.endswith("codebook.weight") and not train_codebooks:
            continue
        part = name.split(".")[0]
        inner = part != "quantizer" and name not in _OUTPUTS
        wide = parameter.ndim == 3 and min(parameter.shape[:2]) >= 16
        if part == "quantizer":
            part = "projections"
        if muon and inner and wide:
            for_muon[part].append(parameter)
        else:
            for_adamw[part].append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if for_adamw:
        adamw = torch.optim.AdamW(
            _groups(for_adamw), lr=lr, betas=(0.8, 0.99), weight_decay=weight_decay
        )
        optimizers.append(adamw)
    if for_muon:
        optimizers.append(Muon(_groups(for_muon), lr=lr))
    return optimizers


_OUTPUTS = {
    "encoder.conv2.weight",
    "decoder.gains.encoder.conv3.weight",
    "decoder.gains.decoder.conv3.weight",
}


def _groups(by_part: dict[str, list[Tensor]]) -> list[dict]:
    """Return parameters by part as groups for an optimizer."""
    return [{"params": parameters, "part": part} for part, parameters in by_part.items()]
