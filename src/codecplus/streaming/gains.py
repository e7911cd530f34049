"""Band gains as steps of a stream: what `DacBandGains` computes, state in, state out.

Both nets are causal and the filter has no delay, so every frame is done with its last sample.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from codecplus.modeling_dac.coders_dac import DacDecoder
from codecplus.modeling_dac.gains_dac import (
    DacBandGains,
    GainGeometry,
    band_powers,
    bounded,
    decoder_features,
    encoder_features,
    filtered,
)
from codecplus.streaming.layers import (
    Layer,
    LayerState,
    convolutions,
    copy_from,
    network_layers,
    step,
)


def _wide(weight: Tensor) -> Tensor:
    """Return a tensor in the dtype and on the device in which the gains of a weight compute."""
    return weight.detach().new_zeros(0, dtype=torch.promote_types(weight.dtype, torch.float32))


class _Windows:
    """Windows of `length` inputs, one per `stride`, which ends with it: (B, n, C) to (B, m, ·)."""

    def __init__(self, length: int, stride: int, channels: int, like: Tensor):
        self.length = length
        self.stride = stride
        self.none = like.new_zeros(0, 0, channels)

    def start(self, batch: int) -> LayerState:
        """Return zeros before the first input."""
        past = self.length - self.stride
        return LayerState(0, self.none.new_zeros(batch, past, self.none.shape[2]))

    def step(
        self, x: Tensor, state: LayerState, last: bool = False, starts: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        """Return the windows (B, m, C, length) that are whole, and the next state."""
        inputs = torch.cat([state.tail, x.to(self.none.dtype)], dim=1)
        windows = (inputs.shape[1] - self.length) // self.stride + 1
        position = state.position + x.shape[1]
        tail = LayerState(position, copy_from(inputs, windows * self.stride))
        if windows < 1:
            return inputs.new_zeros(len(inputs), 0, inputs.shape[2], self.length), tail
        return inputs.unfold(1, self.length, self.stride), tail


class _Powers:
    """The power of bands of every frame: samples (B, n, 1) to dB (B, m, F)."""

    def __init__(self, fixed: GainGeometry, like: Tensor):
        self.fixed = fixed
        self.windows = _Windows((fixed.past + 1) * fixed.hop, fixed.hop, 1, like)
        self.start = self.windows.start

    def step(
        self, x: Tensor, state: LayerState, last: bool = False, starts: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        """See `Layer`."""
        windows, state = self.windows.step(x, state)
        return band_powers(windows[:, :, 0], self.fixed), state


class StreamingGainsEncoder:
    """Latent channels of gains: the decoder's convolutions, both powers, and the net."""

    def __init__(self, decoder: DacDecoder, gains: DacBandGains):
        like = _wide(gains.encoder.conv1.weight)
        self.dtype = decoder.snake1.alpha.dtype
        kernels = decoder.snake1.allow_kernels
        self.waveform = network_layers(decoder, 1)
        self.powers = _Powers(gains.geometry, like)
        self.net = convolutions(gains.encoder.layers(), 1, kernels)
        self.layers: list[Layer] = [self.powers, *self.waveform, self.powers, *self.net]

    def hear(self, audio: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """Take samples (B, n, 1); return the powers (B, m, F) of frames that are whole."""
        return self.powers.step(audio, state)

    def step(
        self, latents: Tensor, wanted: Tensor, states: Sequence[LayerState]
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Return the channels (B, m, K) of latents (B, m, D) and powers (B, m, F) of the audio."""
        count = len(self.waveform)
        decoded, waveform = step(self.waveform, latents.to(self.dtype), states[:count], False, None)
        assert decoded is not None
        given, powers = self.powers.step(decoded, states[count])
        features = encoder_features(wanted.mT, given.mT).mT
        channels, net = step(self.net, features, states[count + 1 :], False, None)
        assert channels is not None
        return channels, (*waveform, powers, *net)


class StreamingGainsDecoder:
    """The filter of decoded samples that latent channels ask for."""

    def __init__(self, gains: DacBandGains, kernels: bool):
        like = _wide(gains.decoder.conv1.weight)
        self.fixed = gains.geometry
        self.size = gains.size
        self.powers = _Powers(self.fixed, like)
        self.net = convolutions(gains.decoder.layers(), 1, kernels)
        self.samples = _Windows(self.fixed.row, self.fixed.block, 1, like)
        self.gains = _Windows(2, 1, self.fixed.bands, like)  # that of the frame before, and its own
        self.layers: list[Layer] = [self.powers, *self.net, self.gains, self.samples]

    def step(
        self, channels: Tensor, audio: Tensor, states: Sequence[LayerState]
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Return the samples (B, n, 1) of whole frames, filtered as channels (B, m, K) ask."""
        given, powers = self.powers.step(audio, states[0])
        features = decoder_features(channels.mT, given.mT).mT
        raw, net = step(self.net, features, states[1:-2], False, None)
        assert raw is not None
        pairs, gains = self.gains.step(bounded(raw), states[-2])  # (B, m, F, 2)
        rows, samples = self.samples.step(audio, states[-1])  # (B, ·, 1, row)
        before, now = pairs.unbind(dim=-1)
        filtered_audio = filtered(rows[:, :, 0], before, now, self.fixed)
        return filtered_audio[..., None], (powers, *net, gains, samples)
