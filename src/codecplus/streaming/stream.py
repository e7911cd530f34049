"""Live encoding and decoding: any number of samples in, the frames that are ready out, and back.

State in, state out. A `StreamingEncoder` or `StreamingDecoder` holds weights and nothing else, so any number of streams
and threads may share one; what a stream has heard is its `StreamState`, a value that can be copied and pickled.
`EncoderStream` and `DecoderStream` keep one such state.

Put together, the pieces are what `DacModel.encode` and `DacModel.decode` give for the whole. Nothing is computed
twice, and nothing is held back longer than the network's look-ahead: frame t is out with sample
`t * hop_length + encoder_reach[1]`, its audio with frame `t + decoder_reach[1]`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..modeling_dac import DacModel
from .layers import Layer, LayerState, Lookup, Search, decoder_layers, encoder_layers, start, step, zero_before

# Elements of the widest activation of a step. Longer inputs are taken in several steps, so that memory is bounded.
_STEP_ELEMENTS = 1 << 19


@dataclass(frozen=True)
class StreamState:
    """All that a stream of B rows remembers. It never changes: a step gives the next one."""

    layers: tuple[LayerState, ...]
    received: int = 0
    """Samples that came into an encoder, frames that came into a decoder."""
    frames: int = 0
    """Frames that came out."""
    starts: tuple[int, ...] | None = None
    """The frame each row was last reset at, while frames before it are still to come out."""

    @property
    def batch(self) -> int:
        """Rows B."""
        return self.layers[0].tail.shape[0]

    def rows(self, rows: Sequence[int]) -> "StreamState":
        """The state of these rows alone, as if they were a stream of their own."""
        starts = None if self.starts is None else tuple(self.starts[row] for row in rows)
        return replace(self, layers=tuple(layer.rows(rows) for layer in self.layers), starts=starts)


class _Network:
    """What encoder and decoder share: layers, and rows that begin anew."""

    layers: Sequence[Layer]
    hop_length: int
    unit: int  # inputs per frame

    def start(self, batch: int = 1) -> StreamState:
        """The state of `batch` rows that have heard nothing."""
        with torch.inference_mode():
            return StreamState(start(self.layers, batch))

    def reset_rows(self, state: StreamState, rows: Sequence[int]) -> StreamState:
        """The state in which these rows begin anew and the others go on.

        What these rows still had to give comes out as zeros, so that all rows keep one clock; a causal net owes
        nothing. Raises InputError within a frame.
        """
        if state.received % self.unit:
            raise InputError(
                f"expected to reset rows at the end of a frame, got {state.received % self.unit} samples of the next; "
                f"push whole frames of {self.unit} samples where rows come and go"
            )
        starts = list(state.starts or [0] * state.batch)
        for row in rows:
            starts[row] = state.received // self.unit
        with torch.inference_mode():
            layers = tuple(layer.zeroed(rows) for layer in state.layers)
        return replace(state, layers=layers, starts=_unreached(starts, state.frames))

    def _run(self, state: StreamState, x: Tensor, last: bool) -> tuple[Tensor | None, StreamState, Tensor | None]:
        """Inputs (B, n, C) through all layers; also gives the rows' starts (B,), if there are any."""
        starts = None if state.starts is None else torch.tensor(state.starts, device=x.device)
        received = state.received + x.shape[1]
        y, layers = step(self.layers, x, state.layers, last, starts)
        return y, replace(state, layers=layers, received=received), starts


class StreamingEncoder(_Network):
    """The encoder of a model, made ready for short steps: a copy of its weights, no state.

    Make a new one if the model's weights, dtype or device change.
    """

    def __init__(self, model: DacModel):
        config = model.config
        self.hop_length = self.unit = config.hop_length
        self.n_codebooks: int = config.n_codebooks
        self.dtype, self.device = model.dtype, model.device
        self.step_length = _step_frames(model) * config.hop_length
        with torch.inference_mode():
            self.layers = encoder_layers(model.encoder, config.hop_length)
            self.search = Search(model.quantizer)

    @torch.inference_mode()
    def step(
        self, state: StreamState, samples: Tensor, n_quantizers: int | None = None, last: bool = False
    ) -> tuple[Tensor, StreamState]:
        """Take samples (B, n); give the codes (B, K, t) that are ready, int16, and the next state.

        With `last`, the samples are padded with zeros to whole frames and all frames left come out; the stream is over
        then, and its state of no use.
        """
        n_quantizers = n_quantizers or self.n_codebooks
        if last:
            missing = -(state.received + samples.shape[1]) % self.hop_length
            samples = torch.nn.functional.pad(samples, (0, missing))
        nothing = torch.zeros(samples.shape[0], n_quantizers, 0, dtype=torch.int16)
        if last and not state.received + samples.shape[1]:
            return nothing, state
        x = samples.to(self.device, self.dtype)[..., None]
        latents, state, starts = self._run(state, x, last)
        if latents is None or not latents.shape[1]:
            return nothing, state
        codes = self.search(latents, n_quantizers)
        if starts is not None:
            codes = zero_before(codes.transpose(1, 2), state.frames, starts).transpose(1, 2)
        return codes.to("cpu", torch.int16), _emit(state, codes.shape[-1])


class StreamingDecoder(_Network):
    """The decoder of a model, made ready for short steps: a copy of its weights, no state.

    Make a new one if the model's weights, dtype or device change.
    """

    unit = 1

    def __init__(self, model: DacModel):
        config = model.config
        self.hop_length = config.hop_length
        self.n_codebooks: int = config.n_codebooks
        self.codebook_size: int = config.codebook_size
        self.device = model.device
        self.step_length = _step_frames(model)
        with torch.inference_mode():
            self.layers = decoder_layers(model.decoder, config.hop_length)
            self.lookup = Lookup(model.quantizer)

    @torch.inference_mode()
    def step(self, state: StreamState, codes: Tensor, last: bool = False) -> tuple[Tensor, StreamState]:
        """Take codes (B, K, t) from 0 to N - 1; give the samples (B, n) of all frames that are ready, and the state.

        With `last`, all samples left come out; the stream is over then, and its state of no use.
        """
        if last and not state.received + codes.shape[-1]:
            return torch.zeros(codes.shape[0], 0), state
        x = self.lookup(codes.to(self.device, torch.int64))
        audio, state, _ = self._run(state, x, last)
        if audio is None or not audio.shape[1]:
            return torch.zeros(codes.shape[0], 0), state
        return audio[..., 0].float().cpu(), _emit(state, audio.shape[1] // self.hop_length)


Network = TypeVar("Network", StreamingEncoder, StreamingDecoder)


class _Stream(Generic[Network]):
    """One network, one state."""

    def __init__(self, network: Network, batch: int | None):
        if batch is not None and batch < 1:
            raise InputError(f"expected a batch of at least 1 row, or None for mono, got {batch}")
        self.network = network
        self.batch = batch
        self.state = network.start(batch or 1)

    def reset(self, rows: int | Sequence[int] | None = None) -> None:
        """Begin anew, in all rows or only in these.

        A row keeps the clock of its batch: it can begin anew only where a frame ends (InputError within one), and what
        it still had to give comes out as zeros. A causal net owes nothing at the end of a frame.
        """
        if rows is None:
            self.state = self.network.start(self.batch or 1)
        else:
            self.state = self.network.reset_rows(self.state, self._rows(rows))

    def _rows(self, rows: int | Sequence[int]) -> list[int]:
        chosen = [rows] if isinstance(rows, (int, np.integer)) else list(rows)
        if not all(0 <= row < self.state.batch for row in chosen):
            raise InputError(f"expected rows from 0 to {self.state.batch - 1}, got {rows}")
        return [int(row) for row in chosen]

    def _ending(self, rows: int | Sequence[int] | None) -> StreamState:
        """The state of the rows that end here; they begin anew in the stream."""
        state = self.state
        self.reset(rows)
        return state if rows is None else state.rows(self._rows(rows))

    def _unbatched(self, x: np.ndarray) -> np.ndarray:
        return x[0] if self.batch is None else x


class EncoderStream(_Stream[StreamingEncoder]):
    """A live encoder: samples in, codes out.

    Args:
        model: a model; or a `StreamingEncoder` of it, which many streams can share, from many threads.
        n_quantizers: codebooks K to use, all of them by default.
        batch: rows B that step together, each a stream of its own; None for one without a batch axis.

    Raises:
        InputError: for an impossible number of codebooks or rows.
    """

    def __init__(self, model: DacModel | StreamingEncoder, n_quantizers: int | None = None, batch: int | None = None):
        network = model if isinstance(model, StreamingEncoder) else StreamingEncoder(model)
        super().__init__(network, batch)
        self.n_quantizers = network.n_codebooks if n_quantizers is None else n_quantizers
        if not 1 <= self.n_quantizers <= network.n_codebooks:
            raise InputError(f"this model has 1 to {network.n_codebooks} codebooks, got n_quantizers={n_quantizers}")

    def push(self, samples: Any) -> np.ndarray:
        """Take samples (S,), or (B, S) of a batch, S of any size; give the codes (K, t) or (B, K, t), int16, now ready.

        Samples are floats at the model's rate, within ±1. Raises InputError for another shape or type, and for NaN.
        """
        audio = _tensor(samples, self.batch, ("samples",), "f")
        pieces = []
        for piece in _pieces(audio, self.network.step_length):
            codes, self.state = self.network.step(self.state, piece, self.n_quantizers)
            pieces.append(codes)
        return self._unbatched(torch.cat(pieces, dim=-1).numpy())

    def flush(self, rows: int | Sequence[int] | None = None) -> np.ndarray:
        """End the stream: give the codes left, the last frame filled up with zeros. The next push begins anew.

        With `rows`, only these rows end, and their codes come, (len(rows), K, t). The others go on; see `reset`.
        """
        state = self._ending(rows)
        codes, _ = self.network.step(state, torch.zeros(state.batch, 0), self.n_quantizers, last=True)
        return codes.numpy() if rows is not None else self._unbatched(codes.numpy())


class DecoderStream(_Stream[StreamingDecoder]):
    """A live decoder: codes in, samples out, whole frames of them.

    Args:
        model: a model; or a `StreamingDecoder` of it, which many streams can share, from many threads.
        batch: rows B that step together, each a stream of its own; None for one without a batch axis.

    Raises:
        InputError: for an impossible number of rows.
    """

    def __init__(self, model: DacModel | StreamingDecoder, batch: int | None = None):
        super().__init__(model if isinstance(model, StreamingDecoder) else StreamingDecoder(model), batch)

    def push(self, codes: Any) -> np.ndarray:
        """Take codes (K, t), or (B, K, t) of a batch, t of any size; give the samples (S,) or (B, S), float32, ready.

        The number of codebooks K may change from push to push. Raises InputError for another shape or type, and for
        codes that the codebooks do not have.
        """
        network = self.network
        frames = _tensor(codes, self.batch, ("codebooks", "frames"), "iu")
        if not 1 <= frames.shape[1] <= network.n_codebooks:
            raise InputError(f"expected codes of 1 to {network.n_codebooks} codebooks, got {frames.shape[1]}")
        if frames.numel() and not 0 <= int(frames.min()) <= int(frames.max()) < network.codebook_size:
            raise InputError(
                f"expected codes from 0 to {network.codebook_size - 1}, got {int(frames.min())} to {int(frames.max())}"
            )
        pieces = []
        for piece in _pieces(frames, network.step_length):
            audio, self.state = network.step(self.state, piece)
            pieces.append(audio)
        return self._unbatched(torch.cat(pieces, dim=-1).numpy())

    def flush(self, rows: int | Sequence[int] | None = None) -> np.ndarray:
        """End the stream: give the samples left. The next push begins anew.

        With `rows`, only these rows end, and their samples come, (len(rows), S). The others go on; see `reset`.
        """
        state = self._ending(rows)
        nothing = torch.zeros(state.batch, 1, 0, dtype=torch.int64)
        audio, _ = self.network.step(state, nothing, last=True)
        return audio.numpy() if rows is not None else self._unbatched(audio.numpy())


def _tensor(x: Any, batch: int | None, axes: tuple[str, ...], kinds: str) -> Tensor:
    """A push as a tensor with a batch axis, checked for shape and the kind of its numbers."""
    array = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    expected = axes if batch is None else (batch, *axes)
    if array.dtype.kind not in kinds or array.ndim != len(expected) or (batch and array.shape[0] != batch):
        names = ", ".join(map(str, expected)) + "," * (len(expected) == 1)
        numbers = "floats" if kinds == "f" else "integers"
        raise InputError(f"expected {numbers} of shape ({names}), got {array.dtype} of shape {array.shape}")
    if kinds == "f" and not np.isfinite(array).all():
        raise InputError("expected finite samples, got NaN or infinite ones; clean them before they are pushed")
    array = array.astype(np.float32 if kinds == "f" else np.int64)  # a copy: the caller may reuse its buffer
    return torch.from_numpy(array if batch else array[None])


def _pieces(x: Tensor, length: int) -> Iterator[Tensor]:
    """x (..., n) in pieces of at most `length` steps; one, of none, if n is 0."""
    return (x[..., i : i + length] for i in range(0, max(1, x.shape[-1]), length))


def _step_frames(model: DacModel) -> int:
    config = model.config
    widest = max(config.encoder_hidden_size, config.decoder_hidden_size >> len(config.downsampling_ratios))
    return max(1, _STEP_ELEMENTS // (widest * config.hop_length))


def _emit(state: StreamState, frames: int) -> StreamState:
    out = state.frames + frames
    return replace(state, frames=out, starts=None if state.starts is None else _unreached(state.starts, out))


def _unreached(starts: Sequence[int], frames: int) -> tuple[int, ...] | None:
    return tuple(starts) if max(starts) > frames else None
