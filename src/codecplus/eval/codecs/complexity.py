"""What a network costs whoever runs it: parameters, and operations for each second of audio."""

from collections.abc import Callable
from typing import Any

Complexity = dict[str, float]


def complexity_of(model: Any, work: Callable[[], Any], seconds: float) -> Complexity:
    """Count what a torch module does.

    Args:
        model: the module.
        work: encodes and decodes some audio with it.
        seconds: of that audio, of one channel.

    Returns:
        `parameters`, and `operations_per_second`: multiplications and additions, each one
        operation, of convolutions, matrix products and attention for a second of audio.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():  # it sees nothing in inference mode
        work()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "parameters": parameters,
        "operations_per_second": counter.get_total_flops() / seconds,
    }
