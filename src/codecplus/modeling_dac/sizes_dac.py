"""Sizes of a DAC, and what follows from them. It knows numbers, nothing of tensors."""

import math
from dataclasses import dataclass

_GAIN_WINDOW = 1.6  # hops, at least


def gain_window(hop: int) -> int:
    """Return the length of the window in which the power of bands is measured: a power of two."""
    return 1 << max(3, math.ceil(math.log2(_GAIN_WINDOW * hop)))


def narrowest_gain_band(hop: int, bands: int, linear: float) -> float:
    """Return the width of the narrowest band in bins of the window's spectrum.

    Widths are equal up to the frequency `linear`, a share of the sampling rate, and grow above.
    """
    linear = min(linear, 0.5)
    return gain_window(hop) * linear * (1 + math.log(0.5 / linear)) / bands


class DacSizes:
    """Figures that follow from the sizes of a DAC."""

    sampling_rate: int
    hop_length: int
    codebook_size: int
    encoder_hidden_size: int
    decoder_hidden_size: int
    downsampling_ratios: list[int] | tuple[int, ...]
    hidden_size: int | None
    causal: bool
    gain_linear_hz: float | None
    gain_size: int
    """Latent channels of band gains, the last ones; none in most models."""

    @property
    def waveform_size(self) -> int:
        """Latent channels that the convolutions encode and decode: all but those of band gains."""
        assert self.hidden_size is not None
        return self.hidden_size - self.gain_size

    @property
    def convolved_size(self) -> int:
        """Latent channels that the convolutions have weights for.

        In a plain DAC these are all, for transformers' own class expects it; those for channels of
        band gains have no say.
        """
        assert self.hidden_size is not None
        return self.waveform_size if self.causal else self.hidden_size

    @property
    def frame_rate(self) -> float:
        """Frames per second, exactly: 44100 / 512 is 86.1328125, not 87."""
        return self.sampling_rate / self.hop_length

    @property
    def bits_per_codebook(self) -> int:
        """Bits of one code, packed."""
        return self.codebook_size.bit_length() - 1

    @property
    def activations_per_frame(self) -> int:
        """Elements of the widest activation, per frame of one item: a measure of memory."""
        narrowest = self.decoder_hidden_size >> len(self.downsampling_ratios)
        return max(self.encoder_hidden_size, narrowest) * self.hop_length


@dataclass(frozen=True, kw_only=True)
class PlainDacConfig(DacSizes):
    """The configuration of a `PlainDac`, with the fields of `DacConfig`, which are not checked."""

    model_type: str
    encoder_hidden_size: int
    downsampling_ratios: list[int]
    decoder_hidden_size: int
    n_codebooks: int
    codebook_size: int
    codebook_dim: int
    sampling_rate: int
    hidden_size: int
    quantizer_dropout: float = 0.0
    gain_size: int = 0
    gain_bands: int = 32
    gain_hidden_size: int = 128
    gain_linear_hz: float | None = None

    @property
    def causal(self) -> bool:
        """Whether no output depends on later input."""
        return self.model_type == "causal_dac"

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.downsampling_ratios)

    @property
    def upsampling_ratios(self) -> list[int]:
        """Strides of the decoder."""
        return self.downsampling_ratios[::-1]


__all__ = ["DacSizes", "PlainDacConfig", "gain_window", "narrowest_gain_band"]
