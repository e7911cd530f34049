"""Muon, and which parameters of a codec it takes. Knows matrices, nothing of losses."""

from collections import defaultdict
from typing import cast

import torch
from torch import Tensor, nn


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
            alike = defaultdict(list)  # weights of one shape share their matrix products
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.shape].append(weight)
            for weights in alike.values():
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
    """Bring the singular values of matrices (N, rows, columns) near 1, to about 0.7 to 1.2.

    It is the quintic Newton-Schulz iteration of Jordan et al., in bf16, which is enough for a
    direction.
    """
    x = (matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-12)).bfloat16()
    tall = x.shape[1] > x.shape[2]
    for _ in range(steps):
        # Not batched: torch copies the transposed side of a batched product, which takes longer
        # than the product.
        if tall:
            gram = torch.stack([matrix.t() @ matrix for matrix in x])
        else:
            gram = torch.stack([matrix @ matrix.t() for matrix in x])
        gram = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        if tall:
            x = torch.baddbmm(x, x, gram, beta=3.4445)
        else:
            x = torch.baddbmm(x, gram, x, beta=3.4445)
    return x.to(matrices.dtype)


def build_optimizers(
    model: nn.Module, *, muon: bool, lr: float, train_codebooks: bool
) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a codec.

    AdamW with the paper's betas takes everything, or what Muon leaves. Muon takes the convolutions
    that are wide enough to be matrices, but for the encoder's last one: directions of it that no
    codebook reads would get random steps of full size.

    Args:
        model: the codec.
        muon: whether Muon takes part.
        lr: the learning rate.
        train_codebooks: whether codebooks are trained here, together with the projections.

    Each group of parameters has a `part`: encoder, decoder or projections.
    """
    groups: dict[tuple[bool, str], list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if name.endswith("codebook.weight") and not train_codebooks:
            continue
        part = name.split(".")[0]
        inner = part != "quantizer" and name != "encoder.conv2.weight"
        wide = parameter.ndim == 3 and min(parameter.shape[:2]) >= 16
        if part == "quantizer":
            part = "projections"
        groups[muon and inner and wide, part].append(parameter)
    plain = [{"params": v, "part": part} for (matrix, part), v in groups.items() if not matrix]
    matrices = [{"params": v, "part": part} for (matrix, part), v in groups.items() if matrix]
    optimizers: list[torch.optim.Optimizer] = []
    if plain:
        optimizers.append(torch.optim.AdamW(plain, lr=lr, betas=(0.8, 0.99), weight_decay=0.0))
    if matrices:
        optimizers.append(Muon(matrices, lr=lr))
    return optimizers
