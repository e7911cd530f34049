"""A network in torch, made ready for live steps: state in, state out.

A `StreamingEncoder` or `StreamingDecoder` holds weights and nothing else, so any number of streams
and threads may share one; what a stream has heard is its `StreamState`, a value that can be copied
and pickled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from codecplus.modeling_dac import DacModel
from codecplus.streaming.layers import (
    Layer,
    LayerState,
    Lookup,
    Search,
    decoder_layers,
    encoder_layers,
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

        What these rows still had to give comes out as zeros, so that all rows keep one clock; a
        causal net owes nothing. Raises InputError within a frame.
        """
        check_frame_end(state.received, self.unit)
        starts = list(state.starts or [0] * state.batch)
        for row in rows:
            starts[row] = state.received // self.unit
        with torch.inference_mode():
            layers = tuple(layer.zeroed(rows) for layer in state.layers)
        return replace(state, layers=layers, starts=_unreached(starts, state.frames))

    def _run(
        self, state: StreamState, x: Tensor, last: bool
    ) -> tuple[Tensor | None, StreamState, Tensor | None]:
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
        self, state: StreamState, samples: Any, n_quantizers: int | None = None, last: bool = False
    ) -> tuple[Tensor, StreamState]:
        """Take samples (B, n), a tensor or array; give the codes (B, K, t) that are ready, int16,
        and the next state.

        With `last`, the samples are padded with zeros to whole frames and all frames left come out;
        the stream is over then, and its state of no use.
        """
        n_quantizers, samples = n_quantizers or self.n_codebooks, torch.as_tensor(samples)
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
    def step(
        self, state: StreamState, codes: Any, last: bool = False
    ) -> tuple[Tensor, StreamState]:
        """Take codes (B, K, t) from 0 to N - 1; give the samples (B, n) of all frames that are
        ready, and the state.

        With `last`, all samples left come out; the stream is over then, and its state of no use.
        """
        if last and not state.received + codes.shape[-1]:
            return torch.zeros(codes.shape[0], 0), state
        x = self.lookup(torch.as_tensor(codes).to(self.device, torch.int64))
        audio, state, _ = self._run(state, x, last)
        if audio is None or not audio.shape[1]:
            return torch.zeros(codes.shape[0], 0), state
        return audio[..., 0].float().cpu(), _emit(state, audio.shape[1] // self.hop_length)


def _step_frames(model: DacModel) -> int:
    config = model.config
    widest = max(
        config.encoder_hidden_size, config.decoder_hidden_size >> len(config.downsampling_ratios)
    )
    return max(1, _STEP_ELEMENTS // (widest * config.hop_length))


def _emit(state: StreamState, frames: int) -> StreamState:
    out = state.frames + frames
    return replace(
        state, frames=out, starts=None if state.starts is None else _unreached(state.starts, out)
    )


def _unreached(starts: Sequence[int], frames: int) -> tuple[int, ...] | None:
    return tuple(starts) if max(starts) > frames else None
