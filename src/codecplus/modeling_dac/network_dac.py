"""A DAC in torch alone: what inference, live streams and exports need of a model.

It knows layers and weights. Names, folders, outputs and transformers are `modeling_dac`'s.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalMemberAccess=false, reportReturnType=false
# torch types every part of a module as "Tensor | Module": what is read off one is an error above.

import importlib
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .coders_dac import DacDecoder, DacEncoder
from .layers_dac import (
    DacConv1d,
    DacConvTranspose1d,
    DacResidualUnit,
    DacResidualVectorQuantizer,
    Snake1d,
    WeightNorm,
    compiled_snake,
    plain_weights,
    snake_in_one_pass,
)

# What reads or writes channels of band gains in the convolutions of a plain DAC, with the axis.
_UNHEARD = {"encoder.conv2.weight": 0, "encoder.conv2.bias": 0, "decoder.conv1.weight": 1}


class DacNetwork(nn.Module):
    """What every DAC can do with its layers; `DacModel` is one, and so is `PlainDac`."""

    config: Any
    """Sizes and rates: a `DacConfig`, or a `DacSizes`."""
    encoder: DacEncoder
    quantizer: DacResidualVectorQuantizer
    decoder: DacDecoder
    device: torch.device
    dtype: torch.dtype

    def _convolutions(self):
        return [
            module
            for module in self.modules()
            if isinstance(module, (DacConv1d, DacConvTranspose1d))
        ]

    def apply_weight_norm(self):
        """Write every convolution's weight as direction times length, for training.

        This is weight normalization (Salimans & Kingma 2016).
        """
        for conv in self._convolutions():
            if not parametrize.is_parametrized(conv, "weight"):
                parametrize.register_parametrization(conv, "weight", WeightNorm(), unsafe=True)

    def remove_weight_norm(self):
        """Fold direction and length back into plain weights, for inference.

        Plain weights stay as they are.
        """
        for conv in self._convolutions():
            if parametrize.is_parametrized(conv, "weight"):
                conv.fold_weight()

    def lay_out_weights(self):
        """Order weights in memory as the layers read them, for inference.

        Nothing else changes, and no memory is added. Not in the middle of training: fused
        optimizers read weights and their own state in the order of memory.
        """
        for conv in self._convolutions():
            if not parametrize.is_parametrized(conv, "weight"):
                conv.lay_out()
        return self

    def allow_kernels(self, enabled: bool = True):
        """Let compiled kernels stand in for layers, as they do by default, or run every layer.

        They run on a CPU, in eval mode, without gradients, where codecplus has them for the
        processor. Outputs differ by rounding. They hold the weights of the residual units a second
        time, in fp32 1.4 times as large. The environment variable `CODECPLUS_KERNELS=off` switches
        them off for all models.
        """
        for module in self.modules():
            if isinstance(module, (Snake1d, DacResidualUnit)):
                module.allow_kernels = enabled
        return self

    def compile_layers(self):
        """Compile what is not compiled by default, for inference with any batch and length.

        On a CPU with kernels of codecplus, they are built if they are not there yet, and used. On
        another CPU `torch.compile` compiles the snakes. Both need a C++ compiler. On an accelerator
        it compiles encoder and decoder as a whole. That takes seconds to a minute, once. Outputs
        differ by rounding; weights may still be changed or trained.

        Raises:
            `RuntimeError`: if it does not work here; the model is as it was.
        """
        if self.device.type != "cpu":
            for half in (self.encoder, self.decoder):
                half.compile(dynamic=True)
            return self
        if importlib.util.find_spec("codecplus"):
            kernels = importlib.import_module("codecplus.kernels")
            target = kernels.instruction_set()
            if target is not None and (target.bf16 or self.dtype == torch.float32):
                kernels.library()
                return self.allow_kernels()
        try:
            with torch.inference_mode():
                rows = torch.zeros(48, 16, dtype=self.dtype)  # equal sizes would be taken for one
                compiled_snake()(rows, rows[0].float(), rows[0].float())
        except Exception as error:
            raise RuntimeError(
                "torch.compile does not work here, which needs a C++ compiler (g++ or clang, or "
                "CXX set to one); leave compile_layers() out, the model is as right without it"
            ) from error
        for module in self.modules():
            if isinstance(module, Snake1d):
                module.fused = snake_in_one_pass
        return self

    def folded_state_dict(self) -> dict[str, Tensor]:
        """Return the state dict of the model without weight norm and masks of pruning.

        Its tensors lie in the usual order of memory. Weights without a say are zero.
        """
        state = {name: value.detach() for name, value in self.state_dict().items()}
        state = {name: value.contiguous() for name, value in plain_weights(state).items()}
        return self.silenced(state)

    def silenced(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict in which convolutions have zeros for channels of band gains.

        They have no say here. In transformers' own class they would have one: with zeros it plays
        the waveform alone.
        """
        if not self.decoder.unheard:
            return state
        first = self.config.waveform_size
        state = dict(state)
        for name, axis in _UNHEARD.items():
            if name in state:
                heard, unheard = state[name].tensor_split([first], dim=axis)
                state[name] = torch.cat([heard, torch.zeros_like(unheard)], dim=axis)
        return state

    def analyze(
        self, audio: Tensor, lengths: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return the latents (B, D, T) of audio (B, 1, S), whole frames in at least fp32.

        Give no audio that was rounded to fewer bits: quiet bands would be measured as louder.
        `lengths` (B,) counts the samples of each item that are real, whole frames. `dtype` is that
        of the work, by default the encoder's and the decoder's own.
        """
        latents = self.encoder(audio.to(dtype or self.encoding_dtype), lengths)
        gains = self.decoder.gains
        if gains is None:
            return latents
        latents = latents[:, : self.config.waveform_size]
        frames = None if lengths is None else lengths // self.config.hop_length
        decoded = self.decoder.waveform(latents.to(dtype or self.decoding_dtype), frames)
        channels = gains.encode(audio, decoded, frames)
        return torch.cat([latents, channels.to(latents.dtype)], dim=1)

    def synthesize(self, quantized: Tensor) -> Tensor:
        """Return the audio (B, S), at least fp32, of quantized latents (B, D, T).

        A frame has `hop_length` samples.
        What a net with an odd stride lacks at the very end is zero.
        """
        samples = quantized.shape[-1] * self.config.hop_length
        audio = self.decoder(quantized.to(self.decoding_dtype))
        return F.pad(audio, (0, samples - audio.shape[-1])).squeeze(1)

    def gain_codebooks(self) -> list[int]:
        """Return the numbers of the codebooks, from 0 on, that code band gains alone.

        They write nothing into the channels of the waveform.
        """
        if not self.config.gain_size:
            return []
        waveform = self.config.waveform_size
        out = self.quantizer.weights().out.detach()[:waveform].chunk(self.quantizer.n_codebooks, 1)
        return [i for i, projection in enumerate(out) if not bool(projection.any())]

    @property
    def encoding_dtype(self) -> torch.dtype:
        """Type of the encoder's weights."""
        # Not self.dtype, which looks for parameters: the replicas of nn.DataParallel have none.
        return self.encoder.snake1.alpha.dtype

    @property
    def decoding_dtype(self) -> torch.dtype:
        """Type of the decoder's weights; others may have more bits."""
        return self.decoder.snake1.alpha.dtype

    @property
    def encoder_reach(self) -> tuple[int, int]:
        """Samples before and behind the first one of a frame that the frame depends on."""
        first, last = self.encoder.input_range(0, 0)
        gains = self.decoder.gains
        if gains is not None:
            samples = gains.encoder_ranges(0, 0)
            decoded = self.decoder.waveform_range(*samples)
            earliest, latest = self.encoder.input_range(*decoded)
            first, last = min(earliest, samples[0], first), max(latest, samples[1], last)
        return -first, last

    @property
    def decoder_reach(self) -> tuple[int, int]:
        """Frames before and behind a frame that its `hop_length` samples depend on."""
        first, last = self.decoder.input_range(0, self.config.hop_length - 1)
        return -first, last

    @property
    def latency_samples(self) -> int:
        """Samples of look-ahead of encoder and decoder together.

        So many samples, from one sample on, must be in before that sample can come out again.
        """
        return self.encoder_reach[1] + 1 + self.decoder_reach[1] * self.config.hop_length


class PlainDac(DacNetwork):
    """A DAC without transformers, which takes seconds to import; for inference.

    Its state dict has the names of `DacModel`'s. `name` is that of the checkpoint.
    """

    name: str

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.encoder = DacEncoder(config)
        self.decoder = DacDecoder(config)
        self.quantizer = DacResidualVectorQuantizer(config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.conv1.bias.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.encoder.conv1.bias.dtype


__all__ = ["DacNetwork", "PlainDac"]
