"""Scores of a codec on a few clips, while it trains. Knows models and arrays; figures to publish
are `eval`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from codecplus.audio.resampling import resample
from codecplus.losses import MultiScaleMelLoss
from codecplus.modeling_dac import DacModel
from codecplus.training.sources import ValidationClip
from codecplus.training.speech import RATE, SpeechScorer


class Validation(NamedTuple):
    """Means over clips, by name, and the decoded clips."""

    scores: dict[str, float]
    decoded: list[np.ndarray]


class Validator:
    """Codes clips with all codebooks and scores what comes back.

    `mel` is the paper's mel loss, `snr` is in dB; `pesq_wb` and `stoi` are there where their
    libraries are, for clips that they can score.
    """

    def __init__(self, clips: Sequence[ValidationClip], sample_rate: int):
        self.clips, self.sample_rate = list(clips), sample_rate
        self.mel, self.speech = MultiScaleMelLoss(sample_rate), SpeechScorer()

    @torch.no_grad()
    def __call__(self, model: DacModel, *, quantize: bool = True) -> Validation:
        """Score a model; without `quantize`, its encoder and decoder alone."""
        device = next(model.parameters()).device
        mel, decoded = self.mel.to(device), []
        rows: dict[str, list[float]] = {}
        for clip in self.clips:
            audio = torch.from_numpy(clip.audio).to(device)
            estimate = self._code(model, audio, quantize)
            decoded.append(estimate.cpu().numpy())
            rows.setdefault("mel", []).append(float(mel(estimate[None], audio[None])))
            error = (estimate - audio).square().sum().clamp(min=1e-12)
            rows.setdefault("snr", []).append(
                float(10 * torch.log10(audio.square().sum().clamp(min=1e-12) / error))
            )
        pairs = [
            (self._for_speech(c.audio), self._for_speech(x))
            for c, x in zip(self.clips, decoded, strict=True)
        ]
        for row in self.speech(pairs):
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
        return Validation({name: float(np.mean(values)) for name, values in rows.items()}, decoded)

    def _for_speech(self, audio: np.ndarray) -> np.ndarray:
        return resample(np.nan_to_num(audio), self.sample_rate, RATE)

    @staticmethod
    def _code(model: DacModel, audio: torch.Tensor, quantize: bool) -> torch.Tensor:
        samples, hop = len(audio), model.config.hop_length
        padded = torch.nn.functional.pad(audio, (0, -samples % hop))
        latents = model.encoder(padded[None, None])
        decoded = model.decoder(model.quantizer(latents)[0] if quantize else latents)[0, 0]
        return torch.nn.functional.pad(decoded, (0, max(0, samples - len(decoded))))[
            :samples
        ].float()
