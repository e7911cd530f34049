"""Tensors of the several processes that share a run. It knows nothing of models or losses."""

from typing import Any, cast

import torch
from torch import Tensor


class Processes:
    """Sums, means and gathered tensors over the processes of an accelerator."""

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator
        self.count: int = accelerator.num_processes
        self.index: int = accelerator.process_index

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over processes, without a gradient."""
        return cast(Tensor, self.accelerator.reduce(x, "sum"))

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over processes, with its gradient."""
        if self.count == 1:
            return x
        return cast(Tensor, _SumOverProcesses.apply(x)) / self.count

    def gather(self, x: Tensor) -> Tensor:
        """Return the items of all processes, one behind the other, without a gradient."""
        return cast(Tensor, self.accelerator.gather(x))


class _SumOverProcesses(torch.autograd.Function):
    """The sum over processes. Its gradient is the sum of theirs, of which DDP takes the mean."""

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
