"""Encoding and decoding in training, with the tensors that losses need. It knows no losses."""

import torch
from torch import Tensor, nn

from codecplus.modeling_dac import DacModel
from codecplus.training import codebooks


class Autoencoder(nn.Module):
    """Encoder, quantizer and decoder of a codec in one call, as data parallel training needs them.

    Args:
        model: the codec.
        dtype: precision of encoder and decoder; the quantizer computes in fp32.
        searched: share of the items that are coded by beam search while encoder and codebooks are
            frozen.
    """

    def __init__(self, model: DacModel, dtype: torch.dtype, searched: float = 0.0):
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.searched = searched

    def forward(self, audio: Tensor, quantize: bool, freeze: bool) -> dict[str, Tensor]:
        """Code audio (B, S).

        Args:
            audio: crops (B, S); zeros follow up to whole frames.
            quantize: whether latents are quantized before they are decoded.
            freeze: whether encoder and codebooks are frozen, and get no gradient.

        Returns `audio` (B, S) and `latents` (B, D, T). Where latents are quantized also `codes`
        (B, K, T), `projected` latents (B, K * d, T), and the `commitment` and `codebook` losses.
        """
        out: dict[str, Tensor] = {}
        with torch.set_grad_enabled(not freeze and torch.is_grad_enabled()):
            latents = self.encode(audio)
            decoded = latents
            out["latents"] = latents.float()
            if quantize:
                quantizer = self.model.quantizer
                decoded, codes, projected, commitment, codebook = quantizer(out["latents"])
                out["codes"] = codes
                out["projected"] = projected
                out["commitment"] = commitment
                out["codebook"] = codebook
                if freeze and self.searched:
                    found = codebooks.search_some(quantizer, out["latents"], decoded, self.searched)
                    # Channels of gains are decibels: the search cannot weigh their errors.
                    waveform = self.model.config.waveform_size
                    decoded = torch.cat([found[:, :waveform], decoded[:, waveform:]], dim=1)
        out["audio"] = self.decode(decoded, audio.shape[-1])
        return out

    def encode(self, audio: Tensor) -> Tensor:
        """Return the latents (B, D, T) of audio (B, S), which zeros fill up to whole frames."""
        missing = -audio.shape[-1] % self.model.config.hop_length
        if missing:
            audio = nn.functional.pad(audio, (0, missing))
        return self.model.analyze(audio.unsqueeze(1), dtype=self.dtype)

    def decode(self, latents: Tensor, samples: int) -> Tensor:
        """Return the audio (B, S) of latents (B, D, T).

        Nets with odd strides give fewer samples, and zeros follow; further samples are cut off.
        """
        audio = self.model.decoder(latents.to(self.dtype)).squeeze(1).float()
        return nn.functional.pad(audio, (0, samples - audio.shape[-1]))
