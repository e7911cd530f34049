"""Band gains as steps of a stream: what `DacBandGains` computes, state in, state out.

In a causal model every frame is done with its last sample. In another one windows and nets look
ahead, and what came out earlier waits for them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
    LayerState,
    Stateful,
    convolutions,
    copy_from,
    network_layers,
    step,
    zero_before,
)


def _wide(weight: Tensor) -> Tensor:
    """Return a tensor in the dtype and on the device in which the gains of a weight compute."""
    return weight.detach().new_zeros(0, dtype=torch.promote_types(weight.dtype, torch.float32))


class _Windows:
    """Windows of `length` inputs, one per `stride`: (B, n, C) to (B, m, C, length).

    Each ends with its stride, or `ahead` inputs later.
    """

    def __init__(self, length: int, stride: int, channels: int, like: Tensor, ahead: int = 0):
        self.length = length
        self.stride = stride
        self.ahead = ahead
        self.none = like.new_zeros(0, 0, channels)

    def start(self, batch: int) -> LayerState:
        """Return zeros before the first input."""
        past = self.length - self.stride - self.ahead
        return LayerState(0, self.none.new_zeros(batch, past, self.none.shape[2]))

    def step(
        self, x: Tensor, state: LayerState, last: bool = False, starts: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        """See `Layer`."""
        inputs = torch.cat([state.tail, x.to(self.none.dtype)], dim=1)
        if last and self.ahead:
            inputs = F.pad(inputs, (0, 0, 0, self.ahead))
        windows = max(0, (inputs.shape[1] - self.length) // self.stride + 1)
        position = state.position + x.shape[1]
        tail = LayerState(position, copy_from(inputs, windows * self.stride))
        if windows < 1:
            return inputs.new_zeros(len(inputs), 0, inputs.shape[2], self.length), tail
        return inputs.unfold(1, self.length, self.stride), tail


class _Powers:
    """The power of bands of every frame: samples (B, n, 1) to dB (B, m, F)."""

    def __init__(self, fixed: GainGeometry, like: Tensor):
        self.fixed = fixed
        length = (fixed.past + 1) * fixed.hop
        self.windows = _Windows(length, fixed.hop, 1, like, fixed.ahead)
        self.start = self.windows.start

    def step(
        self, x: Tensor, state: LayerState, last: bool = False, starts: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        """See `Layer`."""
        windows, state = self.windows.step(x, state, last)
        return band_powers(windows[:, :, 0], self.fixed), state


class _Waiting:
    """What came out (B, n, C), until that is there which belongs to it; in causal nets at once."""

    def __init__(self, channels: int, like: Tensor):
        self.none = like.detach().new_zeros(0, 0, channels)

    def start(self, batch: int) -> LayerState:
        """Return the state in which nothing waits."""
        return LayerState(0, self.none.new_zeros(batch, 0, self.none.shape[2]))

    def take(self, x: Tensor, state: LayerState, count: int) -> tuple[Tensor, LayerState]:
        """Return the first `count` of all that waits and of x, and the state with the others."""
        position = state.position + x.shape[1]
        if state.tail.shape[1] or count < x.shape[1]:
            x = torch.cat([state.tail, x.to(self.none.dtype)], dim=1)
            return x[:, :count], LayerState(position, copy_from(x, count))
        return x, state._replace(position=position)


class StreamingGainsEncoder:
    """Latent channels of gains: the decoder's convolutions, both powers, and the net."""

    def __init__(self, decoder: DacDecoder, gains: DacBandGains, like: Tensor):
        """Take the gains of a decoder, and a tensor like the latents of the encoder."""
        wide = _wide(gains.encoder.conv1.weight)
        self.dtype = decoder.snake1.alpha.dtype
        kernels = decoder.snake1.allow_kernels
        self.waveform = network_layers(decoder, 1, whole_frames=False)
        self.unheard = decoder.unheard
        self.powers = _Powers(gains.geometry, wide)
        self.net = convolutions(gains.encoder.layers(), 1, kernels)
        self.wanted = _Waiting(gains.bands, wide)
        self.latents = _Waiting(decoder.conv1.in_channels - decoder.unheard, like)
        self.layers: list[Stateful] = [
            self.powers,
            self.wanted,
            self.latents,
            self.powers,
            *self.waveform,
            *self.net,
        ]

    def step(
        self,
        audio: Tensor,
        latents: Tensor | None,
        states: Sequence[LayerState],
        last: bool,
        starts: Tensor | None,
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Return the latents (B, m, D) of frames that are ready, with the channels of gains.

        `audio` (B, n, 1) are the samples that came, `latents` (B, ·, D) what the encoder made of
        them.
        """
        heard, wanted_before, latents_before, decoded_before, *networks = states
        waveform, net = tuple(networks[: len(self.waveform)]), tuple(networks[len(self.waveform) :])
        if latents is None:
            latents = self.latents.none.new_zeros(len(audio), 0, self.latents.none.shape[2])
        latents = latents[..., : self.latents.none.shape[2]]
        decoded = None
        if latents.shape[1] or last:
            inputs = F.pad(latents, (0, self.unheard)).to(self.dtype)
            decoded, waveform = step(self.waveform, inputs, waveform, last, starts)
        if decoded is None:
            decoded = audio[:, :0]
        wanted, heard = self.powers.step(audio, heard, last)
        given, decoded_after = self.powers.step(decoded, decoded_before, last)
        wanted, wanted_after = self.wanted.take(wanted, wanted_before, given.shape[1])
        channels = None
        if given.shape[1] or last:
            features = encoder_features(wanted.mT, given.mT).mT
            channels, net = step(self.net, features, net, last, starts)
        count = 0 if channels is None else channels.shape[1]
        latents, latents_after = self.latents.take(latents, latents_before, count)
        if channels is not None:
            latents = torch.cat([latents, channels.to(latents.dtype)], dim=-1)
        return latents, (heard, wanted_after, latents_after, decoded_after, *waveform, *net)


class StreamingGainsDecoder:
    """The filter of decoded samples that latent channels ask for."""

    def __init__(self, decoder: DacDecoder, gains: DacBandGains):
        wide = _wide(gains.decoder.conv1.weight)
        self.fixed = gains.geometry
        self.size = gains.size
        self.unheard = decoder.unheard
        self.powers = _Powers(self.fixed, wide)
        self.net = convolutions(gains.decoder.layers(), 1, decoder.snake1.allow_kernels)
        self.channels = _Waiting(gains.size, decoder.snake1.alpha)
        self.audio = _Waiting(1, wide)
        self.samples = _Windows(self.fixed.row, self.fixed.block, 1, wide)
        self.gains = _Windows(2, 1, self.fixed.bands, wide)  # that of the frame before, and its own
        self.layers: list[Stateful] = [
            self.powers,
            self.channels,
            self.audio,
            self.gains,
            self.samples,
            *self.net,
        ]

    def split(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the convolutions decode of latents (B, n, D), and the channels of gains."""
        waveform, channels = latents.split([latents.shape[-1] - self.size, self.size], dim=-1)
        return F.pad(waveform, (0, self.unheard)), channels

    def step(
        self,
        channels: Tensor,
        audio: Tensor | None,
        states: Sequence[LayerState],
        last: bool,
        starts: Tensor | None,
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Return the samples (B, n, 1) of frames that are ready, filtered as channels ask.

        `channels` (B, m, K) are those that came, `audio` (B, ·, 1) what the decoder made of them.
        """
        heard, channels_before, audio_before, gains, samples, *net = states
        if audio is None:
            audio = self.audio.none.new_zeros(len(channels), 0, 1)
        given, heard = self.powers.step(audio, heard, last)
        channels, channels_after = self.channels.take(channels, channels_before, given.shape[1])
        raw = None
        if given.shape[1] or last:
            features = decoder_features(channels.mT, given.mT).mT
            raw, net = step(self.net, features, net, last, starts)
        count = 0 if raw is None else raw.shape[1]
        audio, audio_after = self.audio.take(audio, audio_before, count * self.fixed.hop)
        if raw is not None and count:
            decibels = zero_before(bounded(raw), gains.position, starts)
            pairs, gains = self.gains.step(decibels, gains)  # (B, m, F, 2)
            rows, samples = self.samples.step(audio, samples)  # (B, ·, 1, row)
            before, now = pairs.unbind(dim=-1)
            audio = filtered(rows[:, :, 0], before, now, self.fixed)[..., None]
        return audio, (heard, channels_after, audio_after, gains, samples, *net)
