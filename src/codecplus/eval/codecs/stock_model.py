"""What a transformers model can do as a codec: read from its `encode`, `decode` and configuration.

No model type is named here. A model takes part if `encode` returns `audio_codes` or `latents` and
`decode` takes the same back.
"""

import gc
import inspect
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from codecplus.errors import CheckpointError, InputError, MissingExtraError, first_line
from codecplus.eval.audio import fit
from codecplus.eval.codecs.complexity import Complexity, complexity_of

_COUNTS = ("n_quantizers", "num_quantizers")  # what models call the number of codebooks to use
_PROBE_SECONDS = 0.5


@dataclass(frozen=True)
class Encoded:
    """What a model made of groups of channels (G, width, S).

    Attributes:
        values: codes (chunks, G, K, T) as integers, or latents (1, G, A, B) as floats.
        scales: gains (chunks, G) of models that normalize; None without.
        missing: frames that only fill up the last chunk.
    """

    values: np.ndarray
    scales: np.ndarray | None = None
    missing: int = 0


@dataclass(frozen=True)
class StockModel:
    """A transformers model with what the harness asks of it.

    Attributes:
        model: in evaluation mode.
        extractor: makes what `encode` takes besides samples; None where it takes only them.
        sample_rate, output_rate: of what it encodes and of what it decodes, in Hz.
        channels: that are coded together.
        hop: samples at `sample_rate` of one frame.
        codebook_size: entries of a codebook; None for latents, which have none.
    """

    model: Any
    extractor: Any
    sample_rate: int
    output_rate: int
    channels: int
    hop: int
    codebook_size: int | None

    @property
    def code_bits(self) -> int:
        """Bits of one code, or of one latent, which is stored as a float of half precision."""
        if self.codebook_size is None:
            return 16
        return max(1, (self.codebook_size - 1).bit_length())

    def rates(self) -> dict[float, Any]:
        """Return each rate in kbit/s with the argument of `encode` that asks for it."""
        config = self.model.config
        parameters = _parameters(self.model.encode)
        bandwidths = getattr(config, "target_bandwidths", None)
        if "bandwidth" in parameters and bandwidths:
            return {float(rate): {"bandwidth": rate} for rate in bandwidths}
        one = self.code_bits * self.sample_rate / self.hop / 1000
        for name in _COUNTS:
            if name in parameters:
                most = getattr(config, "n_codebooks", None) or config.num_quantizers
                return {round(count * one, 6): {name: count} for count in range(1, most + 1)}
        return {round(self._values_per_frame() * one, 6): {}}

    def probe(self) -> np.ndarray:
        """Return faint noise (1, width, S) of whole frames, about half a second of it."""
        frames = max(4, round(_PROBE_SECONDS * self.sample_rate / self.hop))
        shape = (1, self.channels, frames * self.hop)
        return 1e-3 * np.random.default_rng(0).standard_normal(shape, np.float32)

    def _values_per_frame(self) -> int:
        """Codes or latents of one frame, of a model that has one rate."""
        audio = self.probe()
        rows, columns = self.encode(audio).values.shape[-2:]
        if self.codebook_size is not None:
            return rows
        frames = audio.shape[-1] // self.hop  # either axis may be time
        return columns if abs(rows - frames) < abs(columns - frames) else rows

    def encode(self, audio: np.ndarray, **setting: Any) -> Encoded:
        """Encode groups of channels (G, width, S) at `sample_rate`."""
        import torch

        parameters = _parameters(self.model.encode)
        if "sample" in parameters:  # noise that training adds
            setting = {**setting, "sample": False}
        with torch.no_grad():
            result = self.model.encode(**self._inputs(audio), **setting)
        if self.codebook_size is None:
            return Encoded(result.latents.float().cpu().numpy()[None])
        codes = result.audio_codes.cpu().numpy()
        if codes.ndim == 3:
            codes = codes[None]
        scales = None
        gains = getattr(result, "audio_scales", None)
        if gains is not None and gains[0] is not None:
            scales = np.stack([gain.reshape(-1).cpu().numpy() for gain in gains])
            scales = scales.astype(np.float32)
        return Encoded(codes, scales, int(getattr(result, "last_frame_pad_length", 0) or 0))

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Return the audio (G, width, S) at `output_rate`."""
        import torch

        parameters = _parameters(self.model.decode)
        values = torch.from_numpy(encoded.values).to(self.model.device)
        if self.codebook_size is None:
            arguments: dict[str, Any] = {"latents": values[0].to(self.model.dtype)}
        elif "audio_scales" in parameters:
            factors: list[Any] = [None] * len(values)
            if encoded.scales is not None:
                factors = list(torch.from_numpy(encoded.scales).to(values.device)[..., None])
            arguments = {"audio_codes": values, "audio_scales": factors}
            arguments["last_frame_pad_length"] = encoded.missing
        else:
            arguments = {"audio_codes": values[0]}
        with torch.no_grad():
            audio = self.model.decode(**arguments)
        audio = getattr(audio, "audio_values", getattr(audio, "audio", None))
        if audio is None:
            raise InputError(f"{type(self.model).__name__}.decode returns no audio_values")
        audio = audio.float().cpu().numpy()
        return audio.reshape(encoded.values.shape[1], -1, audio.shape[-1])

    def complexity(self, **setting: Any) -> Complexity:
        """Return parameters and operations per second of one channel, of both directions."""
        audio = self.probe()
        seconds = audio.shape[-1] / self.sample_rate * self.channels
        return complexity_of(
            self.model, lambda: self.decode(self.encode(audio, **setting)), seconds
        )

    def _inputs(self, audio: np.ndarray) -> dict[str, Any]:
        """What `encode` takes of the audio (G, width, S)."""
        import torch

        device = self.model.device
        if self.extractor is None:
            first = next(iter(_parameters(self.model.encode)))
            return {first: torch.from_numpy(audio).to(device)}
        features = self.extractor(
            list(audio[:, 0]), sampling_rate=self.sample_rate, return_tensors="pt"
        )
        parameters = _parameters(self.model.encode)
        return {name: value.to(device) for name, value in features.items() if name in parameters}


@lru_cache(maxsize=1)  # one model at a time: the next one's memory is needed
def load_model(source: str, device: str) -> StockModel:
    """Load the stock model of an id or folder, in evaluation mode.

    Raises:
        InputError: for a model that is no codec.
        CheckpointError: if it cannot be loaded.
        MissingExtraError: if transformers needs another package for it.
    """
    import transformers

    gc.collect()
    try:
        config = transformers.AutoConfig.from_pretrained(source)
        model_class = codec_class(config.model_type)
        if model_class is None:
            raise InputError(
                f"{source} holds a {config.model_type!r} model; expected a codec, whose encode "
                "returns audio_codes or latents and whose decode takes them"
            )
        model = model_class.from_pretrained(source).to(device).eval()
        extractor = _extractor(source, model)
    except ImportError as error:
        raise MissingExtraError(
            f"transformers needs more for the model {source!r}: {first_line(error)}"
        ) from error
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise CheckpointError(
            f"cannot load the stock model {source!r}: {first_line(error)}"
        ) from error
    return _described(model, extractor)


def codec_class(model_type: str) -> Any:
    """Return the class of transformers' own model of that type; None if it is no codec."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    name = MODEL_MAPPING_NAMES.get(model_type)
    if not isinstance(name, str):
        return None
    model_class = getattr(transformers, name)  # raises ImportError only when it is used
    encode = getattr(model_class, "encode", None)
    decode = getattr(model_class, "decode", None)
    if not callable(encode) or not callable(decode):
        return None
    if not {"audio_codes", "latents"} & set(_parameters(decode)):
        return None
    return model_class


def fit_channels(audio: np.ndarray, width: int) -> np.ndarray:
    """Repeat the last channel of (C, S) until there are `width`: a stereo model gets mono twice."""
    return audio[np.minimum(np.arange(width), len(audio) - 1)]


def grouped(audio: np.ndarray, model: StockModel) -> np.ndarray:
    """Return channels (C, S) as groups (G, width, S) of whole frames, filled up with zeros.

    Some models would cut a rest off.
    """
    frames = max(2, math.ceil(audio.shape[-1] / model.hop))
    audio = fit(audio, frames * model.hop)
    width = model.channels
    return np.stack(
        [fit_channels(audio[i : i + width], width) for i in range(0, len(audio), width)]
    )


def _described(model: Any, extractor: Any) -> StockModel:
    config = model.config
    rate = _first(config, "sampling_rate", "sample_rate", "input_sampling_rate")
    if rate is None:
        rate = extractor.sampling_rate
    channels = _first(config, "audio_channels", "channels") or 1
    codebook_size = None
    if "audio_codes" in _parameters(model.decode):
        codebook_size = _first(config, "codebook_size")
        if codebook_size is None:  # a finite scalar quantizer: an entry for each combination
            codebook_size = math.prod(config.quantization_levels)
    return StockModel(
        model,
        extractor if _needs_features(model) else None,
        rate,
        _first(config, "output_sampling_rate") or rate,
        channels,
        _hop(config, rate),
        codebook_size,
    )


def _hop(config: Any, sample_rate: int) -> int:
    """Samples of one frame of what is encoded."""
    ratios = _first(config, "downsampling_ratios")
    if ratios is not None:  # before hop_length, which is stale in DAC's 16 and 24 kHz releases
        return math.prod(ratios)
    hop = _first(config, "frame_size", "hop_length")
    if hop is not None:
        return hop
    return round(sample_rate / config.frame_rate)


def _extractor(source: str, model: Any) -> Any:
    """The feature extractor, where the model cannot be used without one."""
    import transformers

    known = _first(model.config, "sampling_rate", "sample_rate", "input_sampling_rate")
    if known is not None and not _needs_features(model):
        return None
    return transformers.AutoFeatureExtractor.from_pretrained(source)


def _needs_features(model: Any) -> bool:
    """Whether `encode` takes more than samples, such as a spectrogram."""
    required = []
    for parameter in _parameters(model.encode).values():
        named = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if named and parameter.default is parameter.empty:
            required.append(parameter)
    return len(required) > 1


def _parameters(method: Any) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(method).parameters)
    parameters.pop("self", None)
    return parameters


def _first(config: Any, *names: str) -> Any:
    """The first of these fields that the configuration has."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
    return None
