"""DAC and its causal sibling as transformers models.

It knows padding, masks, losses and outputs; what the layers compute is in `layers_dac`.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportReturnType=false
# pyright: reportOptionalMemberAccess=false
# torch types every part of a module as "Tensor | Module": what is read off one is an error above.

from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.models.dac.modeling_dac import DacModel as StockDacModel
from transformers.models.dac.modeling_dac import DacPreTrainedModel as StockDacPreTrainedModel
from transformers.utils.generic import ModelOutput

from .checkpoints_dac import CARD_TAGS, embedded_folder, no_bars, replace_empty_card
from .coders_dac import DacDecoder, DacEncoder
from .configuration_dac import CausalDacConfig, DacConfig
from .feature_extraction_dac import DacFeatureExtractor
from .layers_dac import DacResidualUnit as PlainResidualUnit
from .layers_dac import (
    DacResidualVectorQuantizer,
    Snake1d,
    check_tensor,
    plain_weights,
    recording,
    zero_tail,
)
from .network_dac import DacNetwork


@dataclass
class DacOutput(ModelOutput):
    """What [`DacModel.forward`] returns.

    Args:
        loss (`torch.Tensor` of shape `()`):
            weighted sum of commitment and codebook loss, averaged over items.
        audio_values (`torch.Tensor` of shape `(batch_size, input_length)`): reconstructed audio.
        quantized_representation (`torch.Tensor` of shape `(batch_size, hidden_size, frames)`):
            sum of the codebooks.
        audio_codes (`torch.LongTensor` of shape `(batch_size, n_quantizers, frames)`):
            codes, coarse to fine.
        projected_latents
            (`torch.Tensor` of shape `(batch_size, n_quantizers * codebook_dim, frames)`):
            input of each codebook, in the space of its search.
    """

    loss: Tensor | None = None
    audio_values: Tensor | None = None
    quantized_representation: Tensor | None = None
    audio_codes: Tensor | None = None
    projected_latents: Tensor | None = None


@dataclass
class DacEncoderOutput(ModelOutput):
    """What [`DacModel.encode`] returns: the fields of [`DacOutput`] without the audio."""

    loss: Tensor | None = None
    quantized_representation: Tensor | None = None
    audio_codes: Tensor | None = None
    projected_latents: Tensor | None = None


@dataclass
class DacDecoderOutput(ModelOutput):
    """What [`DacModel.decode`] returns.

    Args:
        audio_values (`torch.Tensor` of shape `(batch_size, frames * hop_length)`): decoded audio.
    """

    audio_values: Tensor | None = None


class DacResidualUnit(PlainResidualUnit, GradientCheckpointingLayer):
    """A residual unit that transformers may checkpoint.

    Training then keeps its input alone, and computes the rest again.
    """


class DacPreTrainedModel(DacNetwork, StockDacPreTrainedModel):
    """Initialisation, and how transformers loads, places and saves a DAC."""

    config: DacConfig
    base_model_prefix = "dac"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the keywords of `forward` are none of the Trainer's
    # The quantizer multiplies the weights of its parts directly, so they must lie on one device.
    _no_split_modules: ClassVar[list[str]] = ["DacResidualUnit", "DacResidualVectorQuantizer"]

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Conv1d):
            init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.constant_(module.bias, 0)
        elif isinstance(module, nn.ConvTranspose1d):
            module.reset_parameters()
        elif isinstance(module, Snake1d):
            init.ones_(module.alpha)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=0.02)

    def save_pretrained(self, save_directory, is_main_process=True, state_dict=None, **kwargs):
        """Save as transformers does, weights folded and pruned, so that any DAC class can read it.

        A `state_dict` that is given, as transformers' Trainer does, is folded too.
        """
        if state_dict is None:
            state_dict = self.folded_state_dict()
        else:
            state_dict = self.silenced(plain_weights(state_dict))
        with no_bars():
            super().save_pretrained(
                save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load as transformers does; also the checkpoints of codecplus, by their names.

        Only downloads show progress bars.
        """
        folder = embedded_folder(pretrained_model_name_or_path)
        with no_bars():
            loaded = super().from_pretrained(
                folder or pretrained_model_name_or_path, *args, **kwargs
            )
        if folder is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.name_or_path = pretrained_model_name_or_path
            model.config.name_or_path = pretrained_model_name_or_path
        return loaded

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        # Both ways to the Hub, `push_to_hub` and `save_pretrained`, come by here.
        replace_empty_card(working_dir, repo_id, self)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    @wraps(PreTrainedAudioTokenizerBase.push_to_hub)
    def push_to_hub(self, *args, **kwargs):
        """Push as transformers does; the tags of one push are those of this push alone."""
        # transformers adds them to `model_tags`, where the next push would find them.
        tags = self.model_tags
        self.model_tags = list(tags or [])
        try:
            return super().push_to_hub(*args, **kwargs)
        finally:
            self.model_tags = tags

    def enable_input_require_grads(self):
        """Let gradients flow through a frozen network to its adapters, past checkpoints of units.

        transformers asks for it where adapters are trained with gradient checkpointing.
        """
        self._require_grads_hook = self.encoder.conv1.register_forward_hook(_require_gradients)

    def disable_input_require_grads(self):
        """Undo `enable_input_require_grads`."""
        self._require_grads_hook.remove()


class DacModel(DacPreTrainedModel, StockDacModel):
    """DAC, the Descript Audio Codec (Kumar et al. 2023): audio to codes and back.

    A drop-in for transformers' class of this name: same parameters, same calls. Differences are
    repairs: audio of any length is padded to whole frames, `padding_mask` is honoured by every
    layer, `loss` is a scalar, the decoder gives `hop_length` samples per frame, and an impossible
    `n_quantizers` is refused.
    """

    def __init__(self, config: DacConfig):
        config = self.config_class.of(config)
        # Not that of StockDacModel, which would build its layers too.
        PreTrainedAudioTokenizerBase.__init__(self, config)
        self.add_model_tags(list(CARD_TAGS))  # cards of transformers have them, too
        self.encoder = DacEncoder(config, DacResidualUnit)
        self.decoder = DacDecoder(config, DacResidualUnit)
        self.quantizer = DacResidualVectorQuantizer(config)
        self.bits_per_codebook = config.bits_per_codebook
        self.post_init()

    def encode(
        self,
        input_values: Tensor | None = None,
        n_quantizers: int | None = None,
        return_dict: bool | None = None,
        padding_mask: Tensor | None = None,
        **kwargs,
    ) -> tuple | DacEncoderOutput:
        """Encode audio.

        Args:
            input_values (`torch.Tensor` of shape `(batch_size, 1, samples)`): audio at
                `config.sampling_rate`, at least one sample; padded with zeros to whole frames here.
            n_quantizers (`int`, *optional*): codebooks to use, 1 to `config.n_codebooks`; all by
                default.
            return_dict (`bool`, *optional*): a [`DacEncoderOutput`] (default) or a plain tuple.
            padding_mask (`torch.Tensor` of shape `(batch_size, samples)`, *optional*): 1 for real
                samples and 0 for the padding behind them, as the feature extractor gives it. Every
                item is coded as if it were alone; codes of frames that are all padding are 0.
            kwargs: `audio`, another name of `input_values`, as later extractors call it.

        Returns:
            [`DacEncoderOutput`] or `(loss, quantized_representation, audio_codes,
            projected_latents)`.

        Raises:
            `ValueError`: for integer audio, another shape, a mask that is not right-padded, or an
                impossible `n_quantizers`.
        """
        input_values = audio_of(input_values, kwargs)
        check_audio(input_values)
        hop = self.config.hop_length
        lengths = mask_lengths(padding_mask, input_values)
        frames = None if lengths is None else whole_frames(lengths, hop)
        if lengths is not None:
            input_values = zero_tail(input_values, lengths)
        input_values = F.pad(input_values, (0, -input_values.shape[-1] % hop))

        latents = self.analyze(input_values, None if frames is None else frames * hop)
        quantized, codes, projected, commitment_loss, codebook_loss = self.quantizer(
            latents, n_quantizers, frames
        )
        if frames is not None:
            quantized, codes, projected = (
                zero_tail(x, frames) for x in (quantized, codes, projected)
            )
        loss = (
            self.config.commitment_loss_weight * commitment_loss
            + self.config.codebook_loss_weight * codebook_loss
        )

        outputs = (loss, quantized, codes, projected)
        return DacEncoderOutput(*outputs) if self._wants_dict(return_dict) else outputs

    def decode(
        self,
        quantized_representation: Tensor | None = None,
        audio_codes: Tensor | None = None,
        return_dict: bool | None = None,
        padding_mask: Tensor | None = None,
    ) -> tuple | DacDecoderOutput:
        """Decode codes, or the quantized representation they stand for.

        Args:
            quantized_representation (`(batch_size, hidden_size, frames)`, *optional*): the sum of
                the codebooks.
            audio_codes (integers of shape `(batch_size, n_quantizers, frames)`, *optional*): the
                first `n_quantizers` codebooks, of any integer type; used instead of
                `quantized_representation` where both are given.
            return_dict (`bool`, *optional*): a [`DacDecoderOutput`] (default) or a plain tuple.
            padding_mask (`torch.Tensor` of shape `(batch_size, samples)`, *optional*):
                the mask given to `encode`.

        Returns:
            [`DacDecoderOutput`] or `(audio_values,)`, `hop_length` samples per frame. A net with an
            odd stride computes `hop_length * frames - 8` (at 320 per frame, as released); what it
            lacks at the very end is zero.

        Raises:
            `ValueError`: if neither is given, the shape is another, the quantized representation is
                no tensor of floats, or a code is no integer or names no entry of its codebook.
        """
        if quantized_representation is None and audio_codes is None:
            raise ValueError("expected quantized_representation or audio_codes, got neither")
        if audio_codes is not None:
            quantized_representation = self.quantizer.from_codes(audio_codes)[0]
        assert quantized_representation is not None
        check_latents(quantized_representation, self.config.hidden_size)
        hop = self.config.hop_length
        lengths = mask_lengths(padding_mask, quantized_representation, samples_per_step=hop)
        frames = None if lengths is None else whole_frames(lengths, hop)

        samples = quantized_representation.shape[-1] * hop
        audio = self.decoder(quantized_representation, frames)
        if lengths is not None and frames is not None:
            audio = zero_tail(audio, torch.minimum(lengths, self.decoder.output_length(frames)))
        # The decoder gives fp32; transformers' model gives its own precision, so this one does too.
        audio = audio.to(quantized_representation.dtype)
        audio = F.pad(audio, (0, samples - audio.shape[-1])).squeeze(1)
        return DacDecoderOutput(audio) if self._wants_dict(return_dict) else (audio,)

    def forward(
        self,
        input_values: Tensor | None = None,
        n_quantizers: int | None = None,
        return_dict: bool | None = None,
        padding_mask: Tensor | None = None,
        **kwargs,
    ) -> tuple | DacOutput:
        """Encode and decode: arguments as for [`~DacModel.encode`], audio of the length that came
        in.

        Returns:
            [`DacOutput`] or `(loss, audio_values, quantized_representation, audio_codes,
            projected_latents)`.
        """
        input_values = audio_of(input_values, kwargs)
        loss, quantized, codes, projected = self.encode(
            input_values, n_quantizers, False, padding_mask
        )
        audio = self.decode(quantized, return_dict=False, padding_mask=padding_mask)[0]
        outputs = (loss, audio[..., : input_values.shape[-1]], quantized, codes, projected)
        return DacOutput(*outputs) if self._wants_dict(return_dict) else outputs

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return bool(self.config.return_dict) if return_dict is None else return_dict


class CausalDacModel(DacModel):
    """A DAC whose output never depends on later input, for live use.

    Every convolution is padded on the left alone. Frame t needs the samples up to
    `(t + 1) * hop_length` and gives as many, so that the latency is one frame.
    """

    config: CausalDacConfig

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save as `DacModel` does, and name an extractor that lies there as that of a causal model.

        The other order, first the model, is `DacFeatureExtractor.save_pretrained`'s.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        if (Path(save_directory) / "preprocessor_config.json").is_file():
            DacFeatureExtractor.from_pretrained(save_directory).save_pretrained(save_directory)


def whole_frames(lengths: Tensor, hop: int) -> Tensor:
    """Return how many frames hold so many samples (B,), the last one perhaps in part.

    Not by `-(-lengths // hop)`: torch's tracing exporter to ONNX rounds negative quotients up.
    """
    return (lengths + (hop - 1)) // hop


def _require_gradients(_module, _inputs, output: Tensor) -> None:
    output.requires_grad_(True)


def audio_of(input_values: Tensor | None, keywords: dict) -> Tensor:
    """Return the audio of a call, which came as `input_values` or as the keyword `audio`.

    `audio` is no parameter, as transformers' Trainer would hand over a data set's column of that
    name. Raises `TypeError` for other keywords, and for neither or both.
    """
    keywords = dict(keywords)
    audio = keywords.pop("audio", None)
    if keywords:
        raise TypeError(f"got an unexpected keyword argument {next(iter(keywords))!r}")
    if (input_values is None) == (audio is None):
        raise TypeError("expected audio as input_values or as audio, got neither or both")
    if audio is not None:
        return audio
    return input_values


def check_audio(input_values: Tensor) -> None:
    """Raise `ValueError` unless the audio is a tensor (B, 1, S) of floats, none of them empty."""
    check_tensor(input_values, "audio", "give arrays and lists to the feature extractor first")
    if not input_values.is_floating_point():
        raise ValueError(
            f"expected floating-point audio between -1 and 1, got {input_values.dtype}; "
            "divide 16-bit samples by 32768"
        )
    if input_values.ndim != 3 or input_values.shape[1] != 1 or 0 in input_values.shape:
        raise ValueError(
            f"expected audio of shape (batch_size, 1, samples), got {tuple(input_values.shape)}; "
            "give channels as batch items and mono audio as audio[None, None, :]"
        )


def check_latents(quantized_representation: Tensor, hidden_size: int) -> None:
    """Raise `ValueError` unless a quantized representation is a tensor (B, D, T) of floats."""
    expected = f"expected a quantized_representation of shape (batch_size, {hidden_size}, frames)"
    advice = "codes are decoded by decode(audio_codes=codes)"
    check_tensor(quantized_representation, "quantized_representation", advice)
    shape = tuple(quantized_representation.shape)
    if not quantized_representation.is_floating_point():
        dtype = quantized_representation.dtype
        raise ValueError(f"{expected}, of floats, got {dtype} of shape {shape}; {advice}")
    if len(shape) != 3 or shape[1] != hidden_size or 0 in shape:
        raise ValueError(f"{expected}, got {shape}; {advice}")


def mask_lengths(
    padding_mask: Tensor | None, x: Tensor, samples_per_step: int = 1
) -> Tensor | None:
    """Return the number of real samples per item (B,), or None where nothing is padded.

    While the work is recorded as a graph, values are not looked at, and never None.

    Raises `ValueError` for what is no tensor, a mask of another shape than that of x, or one that
    is not padded on the right.
    """
    if padding_mask is None:
        return None
    check_tensor(padding_mask, "padding_mask", "make one of an array by torch.as_tensor")
    mask = padding_mask.reshape(padding_mask.shape[0], -1).bool()
    samples = x.shape[-1] * samples_per_step
    if mask.shape[0] != x.shape[0] or not samples - samples_per_step < mask.shape[1] <= samples:
        raise ValueError(
            f"expected a padding_mask of shape ({x.shape[0]}, {samples}) for it, "
            f"got {tuple(padding_mask.shape)}"
        )
    lengths = mask.sum(dim=1)
    if recording():
        return lengths  # a graph knows no values, and serves masks of all lengths
    if not torch.equal(mask, torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]):
        raise ValueError(
            "expected every item padded on the right alone: ones, then zeros, in padding_mask"
        )
    if (lengths == 0).any():
        raise ValueError(
            "expected at least one real sample in every item, got an all-zero row in padding_mask"
        )
    return None if (lengths == mask.shape[1]).all() else lengths


# A plain DAC keeps the model type "dac", for which transformers has a class of its own: saving
# writes `auto_map` and the code beside the weights, so that `trust_remote_code=True` gives ours.
DacModel.register_for_auto_class("AutoModel")
CausalDacModel.register_for_auto_class("AutoModel")

__all__ = ["CausalDacModel", "DacModel", "DacPreTrainedModel"]
