"""From raw audio to padded model input with its mask."""

import numpy as np
import torch
from transformers.models.dac.feature_extraction_dac import (
    DacFeatureExtractor as StockDacFeatureExtractor,
)


class DacFeatureExtractor(StockDacFeatureExtractor):
    r"""transformers' feature extractor for DAC.

    It also takes tensors, and refuses audio that the model cannot take.

    Args:
        feature_size (`int`, defaults to 1): channels; DAC is mono, so give channels as batch items.
        sampling_rate (`int`, defaults to 16000): samples per second that the model expects.
        padding_value (`float`, defaults to 0.0): what shorter items are padded with.
        hop_length (`int`, defaults to 512): lengths are padded to a multiple of it.
    """

    def __call__(self, raw_audio, *args, **kwargs):
        """Pad one clip or a list of clips to a batch.

        Args:
            raw_audio: one clip of shape `(samples,)`, or a list of them; arrays, tensors or lists
                of floats.
            args, kwargs: those of transformers: `padding`, `truncation`, `max_length`,
                `return_tensors`, `sampling_rate`.

        Returns:
            `BatchFeature` with `input_values` of shape `(batch_size, 1, samples)` and
            `padding_mask` of shape `(batch_size, samples)`, which can be given to the model as they
            are: `model(**features)`.

        Raises:
            `ValueError`: for audio that is empty, not mono, or of another sampling rate.
        """
        if isinstance(raw_audio, torch.Tensor):
            raw_audio = raw_audio.detach().float().cpu().numpy()
        elif isinstance(raw_audio, (list, tuple)):
            raw_audio = [
                x.detach().float().cpu().numpy() if isinstance(x, torch.Tensor) else x
                for x in raw_audio
            ]
        if isinstance(raw_audio, (list, tuple)) and np.ndim(raw_audio[:1]) > 1:
            clips = raw_audio
        else:
            clips = [raw_audio]
        if not clips or any(np.shape(clip)[-1:] == (0,) for clip in clips):
            raise ValueError("expected audio of at least one sample, got an empty clip")
        return super().__call__(raw_audio, *args, **kwargs)  # pyright: ignore[reportArgumentType]


__all__ = ["DacFeatureExtractor"]
