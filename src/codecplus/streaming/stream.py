"""Live encoding and decoding: any number of samples in, the frames that are ready out, and back.

`EncoderStream` and `DecoderStream` keep the state of one stream; a network, in torch
(`stateful.py`) or not, takes the steps. They know arrays alone.

Put together, the pieces equal the results of `DacModel.encode` and `DacModel.decode` for the whole.
Nothing is computed twice, and nothing is held back longer than the network's look-ahead: frame t is
out with sample `t * hop_length + encoder_reach[1]`, its audio with frame `t + decoder_reach[1]`.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codecplus.audio.levels import check_level
from codecplus.errors import InputError
from codecplus.streaming.steps import DecoderSteps, EncoderSteps, Steps

if TYPE_CHECKING:
    from codecplus.modeling_dac import DacNetwork


# By the kinds of NumPy's types that a push may have.
_NUMBERS = {"f": "floats", "iu": "integers"}
_TYPES = {"f": np.float32, "iu": np.int64}


class _Stream:
    """One network, one state."""

    def __init__(self, network: Steps, batch: int | None):
        if batch is not None and batch < 1:
            raise InputError(f"expected a batch of at least 1 row, or None for mono, got {batch}")
        self.network = network
        self.batch = batch
        self.state = network.start(batch or 1)

    def reset(self, rows: int | Sequence[int] | None = None) -> None:
        """Begin anew, in all rows or only in these.

        A row keeps the clock of its batch: it can begin anew only where a frame ends (InputError
        within one). Frames that it still had to return are zeros; a causal net has none left at the
        end of a frame.
        """
        if rows is None:
            self.state = self.network.start(self.batch or 1)
        else:
            self.state = self.network.reset_rows(self.state, self._rows(rows))

    def _rows(self, rows: int | Sequence[int]) -> list[int]:
        if isinstance(rows, (int, np.integer)):
            chosen = [rows]
        else:
            chosen = list(rows)
        if not all(0 <= row < self.state.batch for row in chosen):
            raise InputError(f"expected rows from 0 to {self.state.batch - 1}, got {rows}")
        return [int(row) for row in chosen]

    def _ending(self, rows: int | Sequence[int] | None) -> Any:
        """Return the state of the rows that end here; they begin anew in the stream."""
        state = self.state
        self.reset(rows)
        if rows is None:
            return state
        return state.rows(self._rows(rows))

    def _unbatched(self, x: np.ndarray) -> np.ndarray:
        if self.batch is None:
            return x[0]
        return x


class EncoderStream(_Stream):
    """A live encoder: samples in, codes out.

    Args:
        model: a model; or a `StreamingEncoder` of it, which many streams can share, from many
            threads.
        n_quantizers: codebooks K to use, all of them by default.
        batch: rows B that step together, each a stream of its own; None for one without a batch
            axis.

    Raises:
        InputError: for an impossible number of codebooks or rows.
    """

    network: EncoderSteps

    def __init__(
        self,
        model: "DacNetwork | EncoderSteps",
        n_quantizers: int | None = None,
        batch: int | None = None,
    ):
        network = _streaming_encoder(model)
        super().__init__(network, batch)
        if n_quantizers is None:
            n_quantizers = network.n_codebooks
        self.n_quantizers = n_quantizers
        self._warned = False
        if not 1 <= self.n_quantizers <= network.n_codebooks:
            raise InputError(
                f"this model has 1 to {network.n_codebooks} codebooks, "
                f"got n_quantizers={n_quantizers}"
            )

    def push(self, samples: Any) -> np.ndarray:
        """Take samples (S,), or (B, S) of a batch, S of any size; give the codes (K, t) or (B, K,
        t), int16, now ready.

        Samples are floats at the model's rate, within ±1; a stream warns once of a peak far beyond.
        Raises InputError for another shape or type, and for NaN.
        """
        audio = _array(samples, self.batch, ("samples",), "f")
        self._warned = self._warned or check_level(audio)
        pieces = []
        for piece in _pieces(audio, self.network.step_length):
            codes, self.state = self.network.step(self.state, piece, self.n_quantizers)
            pieces.append(np.asarray(codes))
        return self._unbatched(np.concatenate(pieces, axis=-1))

    def flush(self, rows: int | Sequence[int] | None = None) -> np.ndarray:
        """End the stream: give the codes left, the last frame filled up with zeros. The next push
        begins anew.

        With `rows`, only these rows end, and their codes come, (len(rows), K, t). The others go on;
        see `reset`.
        """
        state = self._ending(rows)
        nothing = np.zeros((state.batch, 0), np.float32)
        codes = np.asarray(self.network.step(state, nothing, self.n_quantizers, last=True)[0])
        if rows is not None:
            return codes
        return self._unbatched(codes)


class DecoderStream(_Stream):
    """A live decoder: codes in, samples out, whole frames of them.

    Args:
        model: a model; or a `StreamingDecoder` of it, which many streams can share, from many
            threads.
        batch: rows B that step together, each a stream of its own; None for one without a batch
            axis.

    Raises:
        InputError: for an impossible number of rows.
    """

    network: DecoderSteps

    def __init__(self, model: "DacNetwork | DecoderSteps", batch: int | None = None):
        super().__init__(_streaming_decoder(model), batch)

    def push(self, codes: Any) -> np.ndarray:
        """Take codes (K, t), or (B, K, t) of a batch, t of any size; give the samples (S,) or (B,
        S), float32, ready.

        The number of codebooks K may change from push to push. Raises InputError for another shape
        or type, and for codes that the codebooks do not have.
        """
        network = self.network
        frames = _array(codes, self.batch, ("codebooks", "frames"), "iu")
        if not 1 <= frames.shape[1] <= network.n_codebooks:
            raise InputError(
                f"expected codes of 1 to {network.n_codebooks} codebooks, got {frames.shape[1]}"
            )
        if frames.size and not 0 <= int(frames.min()) <= int(frames.max()) < network.codebook_size:
            raise InputError(
                f"expected codes from 0 to {network.codebook_size - 1}, "
                f"got {int(frames.min())} to {int(frames.max())}"
            )
        pieces = []
        for piece in _pieces(frames, network.step_length):
            audio, self.state = network.step(self.state, piece)
            pieces.append(np.asarray(audio))
        return self._unbatched(np.concatenate(pieces, axis=-1))

    def flush(self, rows: int | Sequence[int] | None = None) -> np.ndarray:
        """End the stream: give the samples left. The next push begins anew.

        With `rows`, only these rows end, and their samples come, (len(rows), S). The others go on;
        see `reset`.
        """
        state = self._ending(rows)
        nothing = np.zeros((state.batch, 1, 0), np.int64)
        audio = np.asarray(self.network.step(state, nothing, last=True)[0])
        if rows is not None:
            return audio
        return self._unbatched(audio)


def _streaming_encoder(model: Any) -> EncoderSteps:
    if hasattr(model, "step"):
        return model
    from codecplus.streaming.stateful import StreamingEncoder

    return StreamingEncoder(model)


def _streaming_decoder(model: Any) -> DecoderSteps:
    if hasattr(model, "step"):
        return model
    from codecplus.streaming.stateful import StreamingDecoder

    return StreamingDecoder(model)


def _array(x: Any, batch: int | None, axes: tuple[str, ...], kinds: str) -> np.ndarray:
    """Return samples or codes as an array with a batch axis, after checking shape and type."""
    if hasattr(x, "detach"):  # a tensor
        x = x.detach().cpu()
        if x.is_floating_point():
            x = x.float()  # numpy knows no bfloat16
    try:
        array = np.asarray(x)
    except ValueError as error:  # such as an array with its rate
        raise InputError(
            f"expected an array alone, got {type(x).__name__}; a stream has the model's rate"
        ) from error
    expected: tuple[int | str, ...] = axes
    if batch is not None:
        expected = (batch, *axes)
    is_shaped = array.ndim == len(expected) and batch in (None, array.shape[0])
    if array.dtype.kind not in kinds or not is_shaped:
        names = ", ".join(map(str, expected))
        if len(expected) == 1:
            names += ","
        raise InputError(
            f"expected {_NUMBERS[kinds]} of shape ({names}), "
            f"got {array.dtype} of shape {array.shape}"
        )
    if kinds == "f" and not np.isfinite(array).all():
        raise InputError(
            "expected finite samples, got NaN or infinite ones; clean them before they are pushed"
        )
    array = array.astype(_TYPES[kinds])  # a copy: the caller may reuse its buffer
    if batch is None:
        return array[None]
    return array


def _pieces(x: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Return pieces of x (..., n) of at most `length` steps; one empty piece if n is 0."""
    return (x[..., i : i + length] for i in range(0, max(1, x.shape[-1]), length))
