"""What a network offers to a stream: pure steps, state in and state out. Knows no network."""

from collections.abc import Sequence
from typing import Any, Protocol

from codecplus.errors import InputError


class Steps(Protocol):
    """What both halves of a network offer a stream; a state has the attribute `batch` and the
    method `rows(rows)`.
    """

    hop_length: int
    n_codebooks: int
    step_length: int
    """Samples or frames to take in one step at most, so that memory is bounded."""

    def start(self, batch: int = 1) -> Any:
        """The state of `batch` rows that have heard nothing."""
        ...

    def reset_rows(self, state: Any, rows: Sequence[int]) -> Any:
        """The state in which these rows begin anew and the others go on."""
        ...


class EncoderSteps(Steps, Protocol):
    """An encoder in steps, such as `StreamingEncoder`."""

    def step(
        self, state: Any, samples: Any, n_quantizers: int | None = None, last: bool = False
    ) -> tuple[Any, Any]:
        """Samples (B, n) to the codes (B, K, t), int16, that are ready, and the next state; with
        `last`, all left.
        """
        ...


class DecoderSteps(Steps, Protocol):
    """A decoder in steps, such as `StreamingDecoder`."""

    codebook_size: int

    def step(self, state: Any, codes: Any, last: bool = False) -> tuple[Any, Any]:
        """Codes (B, K, t) to the samples (B, n) of the frames that are ready, and the next state;
        or all left.
        """
        ...


def check_frame_end(received: int, unit: int) -> None:
    """Raise InputError unless so many samples are whole frames of `unit`: rows can be reset at the
    end of one alone.
    """
    if received % unit:
        raise InputError(
            f"expected to reset rows at the end of a frame, got {received % unit} samples of the next; "
            f"push whole frames of {unit} samples where rows come and go"
        )
