"""From raw audio to padded model input with its mask."""

import copy
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedConfig
from transformers.models.dac.feature_extraction_dac import (
    DacFeatureExtractor as StockDacFeatureExtractor,
)

from .checkpoints_dac import embedded_folder

# Full scale is 1. codecplus warns of peaks beyond the same level, see its `audio.levels`.
MAX_PEAK = 16.0


class DacFeatureExtractor(StockDacFeatureExtractor):
    r"""transformers' feature extractor for DAC.

    It also takes tensors, and refuses audio that the model cannot take.

    Args:
        feature_size (`int`, defaults to 1): channels; DAC is mono, so give channels as batch items.
        sampling_rate (`int`, defaults to 16000): samples per second that the model expects.
        padding_value (`float`, defaults to 0.0): what shorter items are padded with.
        hop_length (`int`, defaults to 512): lengths are padded to a multiple of it.
    """

    def __call__(self, raw_audio=None, *args, audio=None, **kwargs):
        """Pad one clip or a list of clips to a batch.

        Args:
            raw_audio: one clip of shape `(samples,)` or `(1, samples)`, or a list of them; arrays,
                tensors or lists of floats.
            audio: the same, as later extractors of transformers call it.
            args, kwargs: those of transformers: `padding`, `truncation`, `max_length`,
                `return_tensors`, `sampling_rate`.

        Returns:
            `BatchFeature` with `input_values` of shape `(batch_size, 1, samples)` and
            `padding_mask` of shape `(batch_size, samples)`, which can be given to the model as they
            are: `model(**features)`.

        Raises:
            `ValueError`: for audio that is empty, not mono, not finite, of an integer type, or of
                another sampling rate; and for what is no audio.

        Warns (`UserWarning`) of a peak far beyond full scale.
        """
        if (raw_audio is None) == (audio is None):
            raise ValueError("expected audio as raw_audio or as audio, got neither or both")
        sound = audio if raw_audio is None else raw_audio
        if _is_batch(sound):
            assert sound is not None
            raw_audio = clips = [_as_clip(clip) for clip in sound]
        else:
            raw_audio = _as_clip(sound)
            clips = [raw_audio]
        if not clips:
            raise ValueError("expected audio of at least one sample, got an empty clip")
        peak = max(float(np.abs(clip).max()) for clip in clips)
        if peak > MAX_PEAK:
            warnings.warn(
                f"expected audio within ±1, got a peak of {peak:g}; if these are 16-bit samples, "
                "divide them by 32768",
                stacklevel=2,
            )
        return super().__call__(raw_audio, *args, **kwargs)  # pyright: ignore[reportArgumentType]

    @classmethod
    def get_feature_extractor_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Return the fields of an extractor as transformers does, also for embedded names.

        A model's folder without an extractor has that which follows from its configuration.
        """
        folder = Path(
            embedded_folder(pretrained_model_name_or_path) or pretrained_model_name_or_path
        )
        files = ("preprocessor_config.json", "processor_config.json")
        if (folder / "config.json").is_file() and not any((folder / f).is_file() for f in files):
            config, _ = PreTrainedConfig.get_config_dict(folder)
            if config.get("model_type") in ("dac", "causal_dac"):
                fields = {
                    "sampling_rate": config["sampling_rate"],
                    "hop_length": math.prod(config["downsampling_ratios"]),
                }
                return fields, kwargs
        return super().get_feature_extractor_dict(pretrained_model_name_or_path, **kwargs)

    def save_pretrained(self, save_directory, push_to_hub=False, **kwargs):
        """Save as transformers does; beside a causal model as a `CausalDacFeatureExtractor`."""
        extractor = self
        if type(self) is DacFeatureExtractor and _holds_causal_model(save_directory):
            extractor = copy.copy(self)
            object.__setattr__(extractor, "__class__", CausalDacFeatureExtractor)
        return super(DacFeatureExtractor, extractor).save_pretrained(
            save_directory, push_to_hub=push_to_hub, **kwargs
        )

    def to_dict(self):
        """Return the fields that are saved.

        `processor_class` has `AutoProcessor` load this extractor, where it would look through the
        folder's code for a processor otherwise, and ask whether to run it.
        """
        fields = super().to_dict()
        auto_map = fields.get("auto_map")
        if auto_map:
            auto_map["AutoProcessor"] = auto_map["AutoFeatureExtractor"]
            fields["processor_class"] = type(self).__name__
        return fields


class CausalDacFeatureExtractor(DacFeatureExtractor):
    """The [`DacFeatureExtractor`] of a [`CausalDacModel`].

    It does the same. By the name of the other, the Auto classes would load transformers' own.
    """


def _holds_causal_model(folder) -> bool:
    """Return whether a folder has the configuration of a causal model."""
    if not (Path(folder) / "config.json").is_file():
        return False
    return PreTrainedConfig.get_config_dict(folder)[0].get("model_type") == "causal_dac"


def _is_batch(raw_audio) -> bool:
    """Return whether audio is a list of clips, not one clip."""
    if not isinstance(raw_audio, (list, tuple)):
        return False
    return not raw_audio or np.ndim(raw_audio[0]) > 0


def _as_clip(clip) -> np.ndarray:
    """Return one clip as floats (samples,); raise `ValueError` for what the model cannot take."""
    array = _as_array(clip)
    if array.ndim == 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 1:
        raise ValueError(
            "expected mono audio, (samples,) or (1, samples), as one clip or in a list, got shape "
            f"{array.shape}; give channels as clips of a list, and rates as sampling_rate"
        )
    if not array.size:
        raise ValueError("expected audio of at least one sample, got an empty clip")
    if not np.isfinite(array).all():
        raise ValueError("expected finite audio, got samples that are NaN or infinite")
    return array


def _as_array(clip) -> np.ndarray:
    """Return a clip as an array of floats; raise `ValueError` for what is none."""
    if isinstance(clip, torch.Tensor):
        clip = clip.detach().cpu()
        if clip.dtype == torch.bfloat16:  # which NumPy does not know
            clip = clip.float()
        clip = clip.numpy()
    numbers = isinstance(clip, np.ndarray)
    try:
        array = np.asarray(clip)
    except ValueError:  # lists of different lengths
        array = np.empty(0, object)
    if array.dtype.kind in "iu" and not numbers:  # numbers of Python
        array = array.astype(np.float32)
    if array.dtype.kind in "biu" or array.dtype.kind == "c":
        raise ValueError(
            f"expected floating-point audio between -1 and 1, got {array.dtype}; "
            "divide 16-bit samples by 32768"
        )
    if array.dtype.kind != "f":
        kind = type(clip).__name__
        if isinstance(clip, (list, tuple)):
            kind = f"a list of {type(clip[0]).__name__}"
        raise ValueError(
            f"expected audio as an array, a tensor or a list of numbers, got {kind}; "
            "of a row of a data set give the array, of a file its samples"
        )
    return array


DacFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
CausalDacFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")

__all__ = ["CausalDacFeatureExtractor", "DacFeatureExtractor"]
