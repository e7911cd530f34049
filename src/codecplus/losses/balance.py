"""Gradients of several losses at one output. It knows scalars and weights, not their meaning."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def weighted_gradient(
    losses: Sequence[Tensor], weights: Sequence[float], estimate: Tensor
) -> Tensor:
    """Return the gradient at `estimate` of the weighted sum of losses."""
    terms = []
    for loss, weight in zip(losses, weights, strict=True):
        terms.append(weight * loss)
    return _gradient(torch.stack(terms).sum(), estimate)


def _same(norms: Tensor) -> Tensor:
    return norms


def balanced_gradient(
    losses: Sequence[Tensor],
    weights: Sequence[float],
    estimate: Tensor,
    usual_norms: Callable[[Tensor], Tensor] = _same,
) -> Tensor:
    """Return a gradient at `estimate` in which each loss has a share in proportion to its weight.

    Each gradient is divided by its norm, and the sum has the scale of the first loss (the balancer
    of Défossez et al. 2022). Backpropagate with `(estimate * gradient).sum().backward()`.

    Args:
        losses: scalars that depend on `estimate`.
        weights: the share of each loss.
        estimate: the decoded audio (B, S).
        usual_norms: maps the norms of this call (losses,) to those to divide by, for example to
            running means.
    """
    gradients = [_gradient(loss, estimate) for loss in losses]
    norms = usual_norms(torch.stack([gradient.norm() for gradient in gradients]))
    factors = torch.tensor(weights, device=norms.device) * norms[0] / norms.clamp(min=1e-12)
    scaled = []
    for factor, gradient in zip(factors, gradients, strict=True):
        scaled.append(factor * gradient)
    return torch.stack(scaled).sum(dim=0)


def _gradient(loss: Tensor, estimate: Tensor) -> Tensor:
    return torch.autograd.grad(loss, estimate, retain_graph=True)[0]
