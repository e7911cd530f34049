"""A network in torch, made ready for live steps: state in, state out.

It knows the model and its layers, and nothing of pushes and packets. A `StreamingEncoder` or
`StreamingDecoder` holds weights and nothing else, so any number of streams and threads may share
one; all that a stream has heard is in its `StreamState`, a value that can be copied and pickled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from codecplus.acceleration.plain import check_plain
from codecplus.acceleration.steps import SearchStep, takes_step
from codecplus.modeling_dac import DacNetwork
from codecplus.modeling_dac.layers_dac import CodebookSearch
from codecplus.streaming.gains import StreamingGainsDecoder, StreamingGainsEncoder
from codecplus.streaming.layers import (
    Layer,
    LayerState,
    Lookup,
    Stateful,
    network_layers,
    start,
    step,
    zero_before,
)
from codecplus.streaming.steps import check_frame_end

# Elements of the widest activation of a step. Longer inputs are taken in several steps, so that
# memory is bounded.
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
        """Return the state of these rows alone, as if they were a stream of their own."""
        starts = None
        if self.starts is not None:
            starts = tuple(self.starts[row] for row in rows)
        return replace(self, layers=tuple(layer.rows(rows) for layer in self.layers), starts=starts)

    def after(self, frames: int) -> "StreamState":
        """Return the state after `frames` more frames came out."""
        frames_out = self.frames + frames
        starts = None
        if self.starts is not None:
            starts = _starts_ahead(self.starts, frames_out)
        return replace(self, frames=frames_out, starts=starts)


class _StatefulNetwork:
    """The parts that encoder and decoder share: layers, and rows that begin anew."""

    convolutions: Sequence[Layer]
    layers: Sequence[Stateful]  # all that have a state: the convolutions, and those of band gains
    hop_length: int
    unit: int  # inputs per frame

    def start(self, batch: int = 1) -> StreamState:
        """Return the state of `batch` rows that have heard nothing."""
        with torch.inference_mode():
            return StreamState(start(self.layers, batch))

    def reset_rows(self, state: StreamState, rows: Sequence[int]) -> StreamState:
        """Return the state in which these rows begin anew and the others go on.

        Frames that these rows still had to return are zeros, so that all rows stay in step; a
        causal net has none left. Raises InputError within a frame.
        """
        check_frame_end(state.received, self.unit)
        starts = list(state.starts or [0] * state.batch)
        for row in rows:
            starts[row] = state.received // self.unit
        with torch.inference_mode():
            layers = tuple(layer.zeroed(rows) for layer in state.layers)
        return replace(state, layers=layers, starts=_starts_ahead(starts, state.frames))

    def _run(
        self, state: StreamState, x: Tensor, last: bool
    ) -> tuple[Tensor | None, StreamState, Tensor | None]:
        """Take inputs (B, n, C) through all layers.

        Returns the outputs (B, m, C') or None, the next state, and the rows' starts (B,) if rows
        were reset.
        """
        starts = None if state.starts is None else torch.tensor(state.starts, device=x.device)
        received = state.received + x.shape[1]
        count = len(self.convolutions)
        y, layers = step(self.convolutions, x, state.layers[:count], last, starts)
        return y, replace(state, layers=layers, received=received), starts


class StreamingEncoder(_StatefulNetwork):
    """The encoder of a model, made ready for short steps: a copy of its weights, no state.

    Make a new one if the model's weights, dtype or device change.
    """

    def __init__(self, model: DacNetwork):
        config = model.config
        self.hop_length = self.unit = config.hop_length
        self.n_codebooks: int = config.n_codebooks
        self.dtype = model.dtype
        self.device = model.device
        self.step_length = _step_frames(model) * config.hop_length
        with torch.inference_mode():
            self.convolutions = network_layers(model.encoder, config.hop_length)
            self.gains = None
            if model.decoder.gains is not None:
                like = model.encoder.snake1.alpha
                self.gains = StreamingGainsEncoder(model.decoder, model.decoder.gains, like)
            self.layers = [*self.convolutions, *(self.gains.layers if self.gains else ())]
            self.search = CodebookSearch(check_plain(model.quantizer), config.n_codebooks)
            self.fused: SearchStep | None = None
            if model.encoder.snake1.allow_kernels and takes_step(self.search.into, None):
                self.fused = SearchStep(self.search)

    @torch.inference_mode()
    def step(
        self, state: StreamState, samples: Any, n_quantizers: int | None = None, last: bool = False
    ) -> tuple[Tensor, StreamState]:
        """Take samples (B, n), a tensor or array, at the model's rate.

        With `last`, the samples are padded with zeros to whole frames and all frames left come out;
        the stream is over then, and its state of no use.

        Returns the codes (B, K, t) that are ready, int16, and the next state.
        """
        n_quantizers = n_quantizers or self.n_codebooks
        samples = torch.as_tensor(samples)
        if last:
            missing = -(state.received + samples.shape[1]) % self.hop_length
            samples = F.pad(samples, (0, missing))
        nothing = torch.zeros(samples.shape[0], n_quantizers, 0, dtype=torch.int16)
        if last and not state.received + samples.shape[1]:
            return nothing, state
        x = samples.to(self.device)[..., None]
        latents, state, starts = self._run(state, x, last)
        if latents is None or not latents.shape[1]:
            return nothing, state
        if self.fused is not None:
            codes = self.fused(latents.float(), n_quantizers)
        else:
            _, _, codes = self.search(latents.float(), n_quantizers)
        if starts is not None:
            codes = zero_before(codes.transpose(1, 2), state.frames, starts).transpose(1, 2)
        return codes.to("cpu", torch.int16), state.after(codes.shape[-1])

    def _run(
        self, state: StreamState, x: Tensor, last: bool
    ) -> tuple[Tensor | None, StreamState, Tensor | None]:
        latents, after, starts = super()._run(state, x.to(self.dtype), last)
        if self.gains is None:
            return latents, after, starts
        layers = state.layers[len(self.convolutions) :]
        latents, layers = self.gains.step(x, latents, layers, last, starts)
        layers = (*after.layers[: len(self.convolutions)], *layers)
        return latents, replace(after, layers=layers), starts


class StreamingDecoder(_StatefulNetwork):
    """The decoder of a model, made ready for short steps: a copy of its weights, no state.

    Make a new one if the model's weights, dtype or device change.
    """

    unit = 1

    def __init__(self, model: DacNetwork):
        config = model.config
        self.hop_length = config.hop_length
        self.n_codebooks: int = config.n_codebooks
        self.codebook_size: int = config.codebook_size
        self.device = model.device
        self.step_length = _step_frames(model)
        with torch.inference_mode():
            whole = model.decoder.gains is None
            self.convolutions = network_layers(model.decoder, 1, whole_frames=whole)
            self.gains = None
            if model.decoder.gains is not None:
                self.gains = StreamingGainsDecoder(model.decoder, model.decoder.gains)
            self.layers = [*self.convolutions, *(self.gains.layers if self.gains else ())]
            self.lookup = Lookup(check_plain(model.quantizer), model.decoding_dtype)

    @torch.inference_mode()
    def step(
        self, state: StreamState, codes: Any, last: bool = False
    ) -> tuple[Tensor, StreamState]:
        """Take codes (B, K, t) from 0 to N - 1, a tensor or array.

        With `last`, all samples left come out; the stream is over then, and its state of no use.

        Returns the samples (B, n), float32, of all frames that are ready, and the next state.
        """
        if last and not state.received + codes.shape[-1]:
            return torch.zeros(codes.shape[0], 0), state
        x = self.lookup(torch.as_tensor(codes).to(self.device, torch.int64))
        audio, state, _ = self._run(state, x, last)
        if audio is None or not audio.shape[1]:
            return torch.zeros(codes.shape[0], 0), state
        return audio[..., 0].float().cpu(), state.after(audio.shape[1] // self.hop_length)

    def _run(
        self, state: StreamState, x: Tensor, last: bool
    ) -> tuple[Tensor | None, StreamState, Tensor | None]:
        if self.gains is None:
            return super()._run(state, x, last)
        latents, channels = self.gains.split(x)
        audio, after, starts = super()._run(state, latents, last)
        layers = state.layers[len(self.convolutions) :]
        audio, layers = self.gains.step(channels, audio, layers, last, starts)
        layers = (*after.layers[: len(self.convolutions)], *layers)
        return audio, replace(after, layers=layers), starts


def _step_frames(model: DacNetwork) -> int:
    """Return the frames to take in one step at most."""
    return max(1, _STEP_ELEMENTS // model.config.activations_per_frame)


def _starts_ahead(starts: Sequence[int], frames: int) -> tuple[int, ...] | None:
    """Return the starts of rows, or None where all of them lie behind the frames given out."""
    return tuple(starts) if max(starts) > frames else None
