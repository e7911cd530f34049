"""Configuration of DAC models. Knows sizes and rates, nothing of tensors."""

import math
from typing import cast

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.models.dac.configuration_dac import DacConfig as StockDacConfig

from .checkpoints_dac import embedded_folder
from .sizes_dac import DacSizes, gain_window, narrowest_gain_band

# The most that file formats, resampler and networks in use know, with room. A configuration may
# come from a stranger, and larger numbers would take all memory before anything else is read.
_MAX_SIZES = {
    "encoder_hidden_size": 1 << 14,
    "decoder_hidden_size": 1 << 16,
    "hidden_size": 1 << 16,
    "n_codebooks": 255,
    "codebook_size": 1 << 15,
    "codebook_dim": 1 << 12,
    "sampling_rate": 1_000_000,
}
_MAX_HOP_LENGTH = (1 << 16) - 1
_MAX_LABELS = 10_000
_MAX_GAIN_HIDDEN_SIZE = 1 << 12
_MIN_GAIN_HOP, _MAX_GAIN_HOP = 4, 1024  # windows are transformed by a matrix
_MAX_RATIOS = 12  # every one doubles the channels of the encoder


@strict
class DacConfig(DacSizes, StockDacConfig):
    r"""Configuration of a [`DacModel`].

    Field names and `model_type` are those of transformers' own `DacConfig`.

    Args:
        encoder_hidden_size (`int`, defaults to 64):
            channels after the first encoder convolution; doubled per block.
        downsampling_ratios (`list[int]`, defaults to `[2, 4, 8, 8]`):
            encoder strides; the decoder uses them reversed.
        decoder_hidden_size (`int`, defaults to 1536):
            channels after the first decoder convolution; halved per block.
        n_codebooks (`int`, defaults to 9): residual codebooks.
        codebook_size (`int`, defaults to 1024): entries per codebook, a power of two.
        codebook_dim (`int`, defaults to 8):
            width of the space in which the nearest entry is searched.
        quantizer_dropout (`float`, defaults to 0.0):
            share of a training batch coded with a random number of codebooks.
        commitment_loss_weight (`float`, defaults to 0.25): weight of the commitment loss in `loss`.
        codebook_loss_weight (`float`, defaults to 1.0): weight of the codebook loss in `loss`.
        sampling_rate (`int`, defaults to 16000): samples per second of the audio.
        hidden_size (`int`, *optional*):
            width D of the latent; `encoder_hidden_size * 2**len(downsampling_ratios)` if not given.
            The released 44 kHz 16 kbit/s model uses 128.
        gain_size (`int`, defaults to 0):
            latent channels, the last of `hidden_size`, that tell the decoder how loud the bands of
            each frame are in the original; 0 for a model without band gains, as all published ones
            are. transformers' own class loads a plain DAC that was saved with gains, and plays it
            without them.
        gain_bands (`int`, defaults to 32): bands from 0 to half the sampling rate.
        gain_hidden_size (`int`, defaults to 128): channels of the two small nets of the gains.
        gain_linear_hz (`float`, *optional*):
            frequency up to which bands have equal widths; above it widths grow with the frequency.
            All are equal if not given.

    `hop_length` and `upsampling_ratios` follow from the ratios and are written to `config.json` for
    other readers, but never read from it: the published 16 and 24 kHz configurations carry a stale
    `hop_length` of 512.

    Raises `ValueError` for sizes that make no DAC.
    """

    model_type = "dac"

    encoder_hidden_size: int = 64
    downsampling_ratios: list[int] | tuple[int, ...] = (2, 4, 8, 8)
    decoder_hidden_size: int = 1536
    n_codebooks: int = 9
    codebook_size: int = 1024
    codebook_dim: int = 8
    quantizer_dropout: float | int = 0.0
    commitment_loss_weight: float = 0.25
    codebook_loss_weight: float = 1.0
    sampling_rate: int = 16000
    hidden_size: int | None = None
    gain_size: int = 0
    gain_bands: int = 32
    gain_hidden_size: int = 128
    gain_linear_hz: float | int | None = None

    # Not a field: no DAC that transformers knows is causal, and a causal net has a model type of
    # its own.
    causal = False

    def __post_init__(self, **kwargs):
        for derived in ("hop_length", "upsampling_ratios", "frame_rate"):
            kwargs.pop(derived, None)
        # transformers makes a dictionary of so many names; a DAC has no use for them.
        num_labels = kwargs.get("num_labels")
        if num_labels is not None and not 0 <= num_labels <= _MAX_LABELS:
            raise ValueError(f"num_labels must be at most {_MAX_LABELS}, got {num_labels}")
        if len(self.downsampling_ratios) > _MAX_RATIOS:
            raise ValueError(
                f"downsampling_ratios must be at most {_MAX_RATIOS}, "
                f"got {len(self.downsampling_ratios)}"
            )
        if self.hidden_size is None:
            self.hidden_size = self.encoder_hidden_size * 2 ** len(self.downsampling_ratios)
        self._check_sizes()
        self.upsampling_ratios = list(self.downsampling_ratios)[::-1]
        self.hop_length = math.prod(self.downsampling_ratios)
        # Not that of StockDacConfig, which would derive hidden_size again.
        PreTrainedConfig.__post_init__(self, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Return the fields of a configuration as transformers does, also for embedded names."""
        folder = embedded_folder(pretrained_model_name_or_path)
        return super().get_config_dict(folder or pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """Return the configuration that a dictionary describes, as transformers does.

        Raises `ValueError` for one of another model type: its weights would be read into a wrong
        network.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            right = {"dac": "DacModel", "causal_dac": "CausalDacModel"}
            hint = f"load it by {right.get(model_type, 'the class of its type')}"
            raise ValueError(
                f"expected a model of type {cls.model_type!r}, "
                f"got one of type {model_type!r}; {hint}"
            )
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def of(cls, config):
        """Return a configuration as one of this class, which transformers' own is made into.

        Raises `ValueError` for one of another model type.
        """
        if isinstance(config, cls) and config.model_type == cls.model_type:
            return config
        converted = cls.from_dict(config.to_dict())
        converted.name_or_path = config.name_or_path
        return converted

    def _check_sizes(self):
        if not self.downsampling_ratios or any(ratio < 1 for ratio in self.downsampling_ratios):
            raise ValueError(
                "downsampling_ratios must be one or more integers of at least 1, "
                f"got {self.downsampling_ratios}"
            )
        for name in (
            "encoder_hidden_size",
            "n_codebooks",
            "codebook_dim",
            "sampling_rate",
            "hidden_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        hop_length = math.prod(self.downsampling_ratios)
        if hop_length > _MAX_HOP_LENGTH:
            raise ValueError(
                f"downsampling_ratios must have a product of at most {_MAX_HOP_LENGTH}, "
                f"got {hop_length}"
            )
        for name, largest in _MAX_SIZES.items():
            if getattr(self, name) > largest:
                raise ValueError(f"{name} must be at most {largest}, got {getattr(self, name)}")
        if self.codebook_size < 2 or self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"codebook_size must be a power of two, got {self.codebook_size}")
        halvings = 2 ** len(self.downsampling_ratios)
        if self.decoder_hidden_size < halvings or self.decoder_hidden_size % halvings:
            raise ValueError(
                f"decoder_hidden_size (={self.decoder_hidden_size}) must be divisible by 2 per "
                f"ratio (={halvings})"
            )
        if not 0 <= self.quantizer_dropout <= 1:
            raise ValueError(
                f"quantizer_dropout must lie between 0 and 1, got {self.quantizer_dropout}"
            )
        self._check_gains()

    def _check_gains(self):
        if not 0 <= self.gain_size < cast(int, self.hidden_size):
            raise ValueError(
                f"gain_size must be at least 0 and below hidden_size (={self.hidden_size}), "
                f"got {self.gain_size}"
            )
        if not self.gain_size:
            return
        hop = math.prod(self.downsampling_ratios)
        if not _MIN_GAIN_HOP <= hop <= _MAX_GAIN_HOP:
            raise ValueError(
                f"band gains need {_MIN_GAIN_HOP} to {_MAX_GAIN_HOP} samples per frame, got {hop}; "
                "choose other downsampling_ratios, or gain_size 0"
            )
        most = gain_window(hop) // 4
        if not 1 <= self.gain_bands <= most:
            raise ValueError(
                f"gain_bands must lie between 1 and {most} at {hop} samples per frame, "
                f"got {self.gain_bands}"
            )
        if self.gain_linear_hz is not None:
            if not 0 < self.gain_linear_hz <= _MAX_SIZES["sampling_rate"]:
                raise ValueError(
                    f"gain_linear_hz must be a frequency above 0 or None, got {self.gain_linear_hz}"
                )
            narrowest = narrowest_gain_band(
                hop, self.gain_bands, self.gain_linear_hz / self.sampling_rate
            )
            if narrowest < 1:
                raise ValueError(
                    f"{self.gain_bands} gain_bands with gain_linear_hz {self.gain_linear_hz} are "
                    f"too narrow to be measured at {hop} samples per frame and "
                    f"{self.sampling_rate} Hz; choose fewer, or a higher frequency"
                )
        odd = [ratio for ratio in self.downsampling_ratios if ratio % 2]
        if odd and not self.causal:
            raise ValueError(
                f"a plain DAC with a stride of {odd[0]} cannot have band gains, as odd strides "
                "lose samples; a causal one can"
            )
        if not 1 <= self.gain_hidden_size <= _MAX_GAIN_HIDDEN_SIZE:
            raise ValueError(
                f"gain_hidden_size must lie between 1 and {_MAX_GAIN_HIDDEN_SIZE}, "
                f"got {self.gain_hidden_size}"
            )


@strict
class CausalDacConfig(DacConfig):
    """Configuration of a [`CausalDacModel`], whose output never depends on later input.

    Its fields are those of [`DacConfig`].

    Raises `ValueError` for sizes that make no DAC.
    """

    model_type = "causal_dac"
    causal = True


DacConfig.register_for_auto_class("AutoConfig")
CausalDacConfig.register_for_auto_class("AutoConfig")

__all__ = ["CausalDacConfig", "DacConfig"]
