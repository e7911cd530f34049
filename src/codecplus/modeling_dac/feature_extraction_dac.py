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
            raw_audio: one clip of shape `(samples,)` or `(1, samples)`, or a list of them; arrays,
                tensors or lists of floats.
            args, kwargs: those of transformers: `padding`, `truncation`, `max_length`,
                `return_tensors`, `sampling_rate`.

        Returns:
            `BatchFeature` with `input_values` of shape `(batch_size, 1, samples)` and
            `padding_mask` of shape `(batch_size, samples)`, which can be given to the model as they
            are: `model(**features)`.

        Raises:
            `ValueError`: for audio that is empty, not mono, not finite, of an integer type, or of
                another sampling rate.
        """
        if _is_batch(raw_audio):
            raw_audio = clips = [_as_mono(clip) for clip in raw_audio]
        else:
            raw_audio = _as_mono(raw_audio)
            clips = [raw_audio]
        if not clips or any(np.shape(clip)[-1:] == (0,) for clip in clips):
            raise ValueError("expected audio of at least one sample, got an empty clip")
        for clip in clips:
            if not np.isfinite(np.asarray(clip, dtype=np.float32)).all():
                raise ValueError("expected finite audio, got samples that are NaN or infinite")
        return super().__call__(raw_audio, *args, **kwargs)  # pyright: ignore[reportArgumentType]


def _is_batch(raw_audio) -> bool:
    """Return whether audio is a list of clips, not one clip."""
    if not isinstance(raw_audio, (list, tuple)):
        return False
    return not raw_audio or np.ndim(raw_audio[0]) > 0


def _as_mono(clip):
    """Return one clip, a tensor as an array, with a single channel's axis taken away."""
    if isinstance(clip, torch.Tensor):
        clip = clip.detach().cpu()
        clip = clip.float().numpy() if clip.is_floating_point() else clip.numpy()
    if not isinstance(clip, np.ndarray):
        return clip
    if not np.issubdtype(clip.dtype, np.floating):
        raise ValueError(
            f"expected floating-point audio between -1 and 1, got {clip.dtype}; "
            "divide 16-bit samples by 32768"
        )
    return clip[0] if clip.ndim == 2 and clip.shape[0] == 1 else clip


__all__ = ["DacFeatureExtractor"]
