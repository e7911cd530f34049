"""Encoder and decoder: chains of the layers of `layers_dac`, whose letters they use."""

import torch.nn.functional as F
from torch import Tensor, nn

from .gains_dac import DacBandGains
from .layers_dac import (
    DacChain,
    DacConv1d,
    DacConvTranspose1d,
    DacOutputConv1d,
    DacResidualUnit,
    Snake1d,
)


class DacEncoderBlock(DacChain):
    """Three residual units and a strided convolution: (B, C, T) -> (B, 2C, T / stride)."""

    def __init__(self, channels: int, stride: int, *, causal: bool = False, unit=DacResidualUnit):
        super().__init__()
        self.res_unit1 = unit(channels, dilation=1, causal=causal)
        self.res_unit2 = unit(channels, dilation=3, causal=causal)
        self.res_unit3 = unit(channels, dilation=9, causal=causal)
        self.snake1 = Snake1d(channels)
        self.conv1 = DacConv1d(channels, 2 * channels, 2 * stride, stride=stride, causal=causal)

    def steps(self) -> list[tuple[str, nn.Module]]:
        return [
            ("res_unit1", self.res_unit1),
            ("res_unit2", self.res_unit2),
            ("res_unit3", self.res_unit3),
            ("snake1", self.snake1),
            ("conv1", self.conv1),
        ]


class DacDecoderBlock(DacChain):
    """A transposed convolution and three residual units: (B, C, T) -> (B, C / 2, stride * T)."""

    def __init__(self, channels: int, stride: int, *, causal: bool = False, unit=DacResidualUnit):
        super().__init__()
        self.snake1 = Snake1d(channels)
        self.conv_t1 = DacConvTranspose1d(
            channels, channels // 2, 2 * stride, stride, causal=causal
        )
        self.res_unit1 = unit(channels // 2, dilation=1, causal=causal)
        self.res_unit2 = unit(channels // 2, dilation=3, causal=causal)
        self.res_unit3 = unit(channels // 2, dilation=9, causal=causal)

    def steps(self) -> list[tuple[str, nn.Module]]:
        return [
            ("snake1", self.snake1),
            ("conv_t1", self.conv_t1),
            ("res_unit1", self.res_unit1),
            ("res_unit2", self.res_unit2),
            ("res_unit3", self.res_unit3),
        ]


class DacEncoder(DacChain):
    """Audio (B, 1, S) to latents (B, D, S / hop_length), those of band gains without a say.

    A causal net leaves these out. `lengths` counts samples, multiples of the hop. `unit` is the
    class of the residual units.
    """

    def __init__(self, config, unit=DacResidualUnit):
        super().__init__()
        channels = config.encoder_hidden_size
        self.conv1 = DacConv1d(1, channels, 7, causal=config.causal)
        self.block = nn.ModuleList()
        for stride in config.downsampling_ratios:
            self.block.append(DacEncoderBlock(channels, stride, causal=config.causal, unit=unit))
            channels *= 2
        self.snake1 = Snake1d(channels)
        self.conv2 = DacConv1d(channels, config.convolved_size, 3, causal=config.causal)

    def steps(self) -> list[tuple[str, nn.Module]]:
        blocks = [(f"block.{i}", block) for i, block in enumerate(self.block)]
        return [
            ("conv1", self.conv1),
            *blocks,
            ("snake1", self.snake1),
            ("conv2", self.conv2),
        ]


class DacDecoder(DacChain):
    """Latents (B, D, T) to audio (B, 1, S), S = hop_length * T less what odd strides lose.

    The audio is in fp32 where the latents are in fp16 or bf16. `lengths` counts frames. `unit` is
    the class of the residual units. `gains`, None in most models, filter what `waveform` gives.
    """

    gains: DacBandGains | None

    def __init__(self, config, unit=DacResidualUnit):
        super().__init__()
        channels = config.decoder_hidden_size
        self.unheard = config.convolved_size - config.waveform_size  # channels without a say
        self.conv1 = DacConv1d(config.convolved_size, channels, 7, causal=config.causal)
        self.block = nn.ModuleList()
        for stride in config.upsampling_ratios:
            self.block.append(DacDecoderBlock(channels, stride, causal=config.causal, unit=unit))
            channels //= 2
        self.snake1 = Snake1d(channels)
        self.conv2 = DacOutputConv1d(channels, 1, 7, causal=config.causal)
        self.tanh = nn.Tanh()
        self.gains = DacBandGains(config) if config.gain_size else None

    def steps(self) -> list[tuple[str, nn.Module]]:
        blocks = [(f"block.{i}", block) for i, block in enumerate(self.block)]
        return [
            ("conv1", self.conv1),
            *blocks,
            ("snake1", self.snake1),
            ("conv2", self.conv2),
            ("tanh", self.tanh),
        ]

    def waveform(self, latents: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return what the convolutions alone make of latents (B, D, T) without those of gains."""
        if self.unheard:
            latents = F.pad(latents, (0, 0, 0, self.unheard))
        return super().forward(latents, lengths)

    def waveform_range(self, first: int, last: int) -> tuple[int, int]:
        """Return the first and the last frame that samples of `waveform` depend on."""
        return super().input_range(first, last)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if self.gains is None:
            return self.waveform(x, lengths)
        latents, channels = x.split([x.shape[1] - self.gains.size, self.gains.size], dim=1)
        return self.gains(channels, self.waveform(latents, lengths), lengths)

    def input_range(self, first: int, last: int) -> tuple[int, int]:
        """Return the first and the last frame that the samples `first` to `last` depend on."""
        if self.gains is None:
            return self.waveform_range(first, last)
        samples, frames = self.gains.input_ranges(first, last)
        earliest, latest = self.waveform_range(*samples)
        return min(earliest, frames[0]), max(latest, frames[1])


__all__ = ["DacDecoder", "DacEncoder"]
