"""The steps of a network that a stream calls: state in, state out. It knows no network."""

from collections.abc import Sequence
from typing import Any, Protocol

from codecplus.errors import InputError


class Steps(Protocol):
    """Steps of an encoder or a decoder.

    A state has the attribute `batch` and the method `rows(rows)`.
    """

    hop_length: int
    n_codebooks: int
    step_length: int
    """Samples or frames to take in one step at most, so that memory is bounded."""

    def start(self, batch: int = 1) -> Any:
        """Return the state of `batch` rows that have heard nothing."""
        ...

    def reset_rows(self, state: Any, rows: Sequence[int]) -> Any:
        """Return the state in which these rows begin anew and the others go on."""
        ...


class EncoderSteps(Steps, Protocol):
    """An encoder in steps, such as `StreamingEncoder`."""

    def step(
        self, state: Any, samples: Any, n_quantizers: int | None = None, last: bool = False
    ) -> tuple[Any, Any]:
        """Take samples (B, n); return the codes (B, K, t), int16, that are ready, and the state.

        With `last`, all codes left come.
        """
        ...


class DecoderSteps(Steps, Protocol):
    """A decoder in steps, such as `StreamingDecoder`."""

    codebook_size: int

    def step(self, state: Any, codes: Any, last: bool = False) -> tuple[Any, Any]:
        """Take codes (B, K, t); return the samples (B, n) of the frames ready, and the state.

        With `last`, all samples left come.
        """
        ...


def check_frame_end(received: int, unit: int) -> None:
    """Raise InputError unless `received` samples are whole frames of `unit` samples.

    Rows can be reset at the end of a frame only.
    """
    if received % unit:
        raise InputError(
            "expected to reset rows at the end of a frame, "
            f"got {received % unit} samples of the next; "
            f"push whole frames of {unit} samples where rows come and go"
        )
