"""Tensors of the several processes that share a run, and the end of these processes.

It knows nothing of losses.
"""

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor


@contextmanager
def ended_group(accelerator: Any) -> Iterator[None]:
    """End the group of processes after the block, also after an error.

    Models that share gradients must be dropped before the group. Otherwise the group's last owner
    is such a model, and its destructor, which holds Python's lock, waits for threads of the group
    that wait for this lock: the process never ends. The block must keep no such model.
    """
    failed = True
    try:
        yield
        failed = False
    except BaseException as error:
        if accelerator.num_processes > 1:
            traceback.clear_frames(error.__traceback__)  # whose variables may be such models
        raise
    finally:
        if accelerator.num_processes > 1:
            if not failed:  # a process that failed does not let the others wait
                accelerator.wait_for_everyone()
            accelerator.free_memory()
            gc.collect()  # they are parts of reference cycles
            accelerator.state.destroy_process_group()


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
