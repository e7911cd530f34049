"""The register of reconstruction losses, by the names that recipes give them. It defines none."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
Definition = TypeVar("Definition", bound=Callable[..., Any])

# The order of registration is the order in which a trainer computes losses: the first one with a
# weight gives a balanced gradient its scale.
LOSSES: dict[str, Callable[..., Any]] = {}


def loss(name: str) -> Callable[[Definition], Definition]:
    """Register a loss under the name by which a recipe weighs it.

    Decorates a function of estimate and reference (B, S) that returns a scalar, or a class whose
    instances are such functions. The constructor of a class gets those of the recipe's
    `sample_rate`, `mel_bands` and `stft_windows` that it names. Raises ValueError if the name is
    taken.
    """

    def register(definition: Definition) -> Definition:
        if name in LOSSES:
            raise ValueError(f"the loss {name!r} is registered already, by {LOSSES[name]}")
        LOSSES[name] = definition
        return definition

    return register


def is_of_levels(loss: Loss) -> bool:
    """Return whether a loss compares levels alone: its class says `of_levels = True`.

    Such a loss hears nothing in audio whose levels were set to those of the reference.
    """
    return getattr(loss, "of_levels", False)


def losses_by_name(
    names: Iterable[str],
    sample_rate: int,
    mel_bands: Mapping[int, int],
    stft_windows: Sequence[int],
) -> dict[str, Loss]:
    """Return the losses of these names, each a function of estimate and reference (B, S).

    Args:
        names: keys of `LOSSES`.
        sample_rate: of the signals, in Hz.
        mel_bands: maps windows, in samples, to numbers of mel bands.
        stft_windows: windows of the losses on spectra, in samples.
    """
    settings = {
        "sample_rate": sample_rate,
        "mel_bands": mel_bands,
        "stft_windows": stft_windows,
    }
    losses: dict[str, Loss] = {}
    for name in names:
        definition = LOSSES[name]
        if isinstance(definition, type):
            accepted = inspect.signature(definition).parameters
            losses[name] = definition(**{k: v for k, v in settings.items() if k in accepted})
        else:
            losses[name] = definition
    return losses
