"""Scores of a codec on a few clips, while it trains. It knows models and arrays.

Figures to publish are those of `eval`.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from codecplus.audio.bands import band_edges, band_levels, band_names
from codecplus.audio.resampling import resample
from codecplus.losses import MultiScaleMelLoss
from codecplus.modeling_dac import DacModel
from codecplus.training.sampling import ValidationClip
from codecplus.training.speech_scores import RATE, SpeechScorer


class Validation(NamedTuple):
    """Scores over clips, by name, and the decoded clips."""

    scores: dict[str, float]
    decoded: list[np.ndarray]


class Validator:
    """Codes clips with all codebooks and scores the result.

    `mel` is the paper's mel loss, `snr` is in dB. `pesq_wb` and `stoi` need their libraries, and
    clips that these can score. All four are means over clips. `band/0-1 kHz` and so on are the
    power of each band in dB relative to the original, as medians over clips.
    """

    def __init__(self, clips: Sequence[ValidationClip], sample_rate: int):
        self.clips = list(clips)
        self.sample_rate = sample_rate
        self.mel = MultiScaleMelLoss(sample_rate)
        self.speech = SpeechScorer()

    @torch.no_grad()
    def __call__(self, model: DacModel, *, quantize: bool = True) -> Validation:
        """Score a model; without `quantize`, its encoder and decoder alone."""
        device = next(model.parameters()).device
        self.mel.to(device)
        decoded = []
        scores: dict[str, list[float]] = defaultdict(list)
        for clip in self.clips:
            audio = torch.from_numpy(clip.audio).to(device)
            estimate = _coded(model, audio, quantize)
            decoded.append(estimate.cpu().numpy())
            scores["mel"].append(float(self.mel(estimate[None], audio[None])))
            scores["snr"].append(_signal_to_noise(estimate, audio))
        for clip_scores in self._speech_scores(decoded):
            for name, value in clip_scores.items():
                scores[name].append(value)
        means = {name: float(np.mean(values)) for name, values in scores.items()}
        return Validation({**means, **self._band_scores(decoded)}, decoded)

    def _speech_scores(self, decoded: list[np.ndarray]) -> list[dict[str, float]]:
        pairs = []
        for clip, estimate in zip(self.clips, decoded, strict=True):
            reference = resample(clip.audio, self.sample_rate, RATE)
            pairs.append((reference, resample(np.nan_to_num(estimate), self.sample_rate, RATE)))
        return self.speech(pairs)

    def _band_scores(self, decoded: list[np.ndarray]) -> dict[str, float]:
        """Return the median level of each band, without bands in which all clips are silent."""
        edges = band_edges(self.sample_rate)
        levels = []
        for clip, estimate in zip(self.clips, decoded, strict=True):
            levels.append(band_levels(np.nan_to_num(estimate), clip.audio, self.sample_rate, edges))
        scores = {}
        for name, band in zip(band_names(edges), np.transpose(levels), strict=True):
            known = band[np.isfinite(band)]
            if len(known):
                scores[f"band/{name}"] = float(np.median(known))
        return scores


def _coded(model: DacModel, audio: Tensor, quantize: bool) -> Tensor:
    """Encode and decode audio (S,); return audio of the same length."""
    samples = len(audio)
    padded = torch.nn.functional.pad(audio, (0, -samples % model.config.hop_length))
    latents = model.analyze(padded[None, None])
    if quantize:
        latents = model.quantizer(latents)[0]
    decoded = model.decoder(latents)[0, 0]
    missing = max(0, samples - len(decoded))
    return torch.nn.functional.pad(decoded, (0, missing))[:samples].float()


def _signal_to_noise(estimate: Tensor, audio: Tensor) -> float:
    """Return the ratio of the signal's energy to that of the error, in dB."""
    signal = audio.square().sum().clamp(min=1e-12)
    error = (estimate - audio).square().sum().clamp(min=1e-12)
    return float(10 * torch.log10(signal / error))
