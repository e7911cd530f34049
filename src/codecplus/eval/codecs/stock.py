"""Codecs as transformers ships them: DAC, EnCodec, Mimi and X-Codec, by Hub id or folder.

The models only make codes. Here the codes become bytes at the width that the codebook needs, so
that their bits are real.
"""

import gc
import hashlib
import math
import struct
from functools import lru_cache
from typing import Any

import numpy as np

from codecplus.bitstream.packing import pack_codes, packed_size, unpack_codes
from codecplus.errors import CheckpointError, FileFormatError, InputError
from codecplus.eval.audio import fit, resample
from codecplus.eval.codecs.base import Original, Payload, row_name
from codecplus.system.devices import resolve_device

MODEL_TYPES = ("dac", "encodec", "mimi", "xcodec")
# Groups of channels, chunks, K, frames of a chunk, frames missing in the last chunk.
_HEAD = struct.Struct("<HHHII")


class StockCodec:
    """A transformers codec at the rate nearest to a target.

    Args:
        source: Hub id or folder.
        kbps: the target in kbit/s per channel; None: all codebooks.
        device: where it runs; None: on CUDA if there is any.
    """

    def __init__(self, source: str, kbps: float | None = None, device: str | None = None) -> None:
        self.source = source
        self.device = str(resolve_device(device))
        model = load_model(source, self.device)
        self._rates = _rates(model)  # kbit/s -> the argument that asks for it
        if kbps is None:
            self.nominal_kbps = max(self._rates)
        else:
            self.nominal_kbps = min(self._rates, key=lambda rate: abs(rate - kbps))
        self.name = row_name(f"stock:{source}", self.nominal_kbps)
        self._config = {
            "source": source,
            "model_type": model.config.model_type,
            "revision": getattr(model.config, "_commit_hash", None),
            "weights": weights_hash(model),
            "kbps": self.nominal_kbps,
            "version": 1,
        }

    def config(self) -> dict[str, Any]:
        """Model, revision, a hash of its weights, and the rate."""
        return dict(self._config)

    def encode(self, audio: np.ndarray, sample_rate: int) -> Payload:
        """Encode (C, S), zero-padded to whole frames: some of these models would cut a rest off."""
        import torch

        model = load_model(self.source, self.device)
        width = _channels(model)
        hop = _hop(model)
        audio = resample(audio, sample_rate, _sample_rate(model))
        frames = max(2, math.ceil(audio.shape[-1] / hop))
        audio = fit(audio, frames * hop)
        groups = [fit_channels(audio[i : i + width], width) for i in range(0, len(audio), width)]
        with torch.inference_mode():
            inputs = torch.from_numpy(np.stack(groups)).to(self.device)  # (G, width, S)
            codes, scales, missing = _encode(model, inputs, self._rates[self.nominal_kbps])
        return _pack(codes, scales, missing, _codebook_size(model))

    def codes(self, data: bytes) -> tuple[np.ndarray, int]:
        """Return the codes of all channels, (K, frames), and the size of a codebook."""
        size = _codebook_size(load_model(self.source, self.device))
        codes, _, missing = _unpack(data, size)
        flat = _joined(codes, missing)  # (G, K, T)
        return np.concatenate(list(flat), axis=-1).astype(np.int32), size

    def decode(self, data: bytes, original: Original) -> np.ndarray:
        """Decode to (C, S) of the original."""
        import torch

        model = load_model(self.source, self.device)
        # (chunks, G, K, T), (chunks, G) or None
        codes, scales, missing = _unpack(data, _codebook_size(model))
        with torch.inference_mode():
            tensor = torch.from_numpy(codes).to(self.device)
            audio = _decode(model, tensor, scales, missing).float().cpu().numpy()  # (G, width, S)
        audio = audio.reshape(-1, audio.shape[-1])[: original.channels]
        wanted = math.ceil(original.samples * _sample_rate(model) / original.sample_rate)
        if audio.shape[-1] <= wanted - _hop(model):
            raise InputError(f"{self.name} decoded {audio.shape[-1]} samples of {wanted}")
        return resample(
            fit(audio, wanted), _sample_rate(model), original.sample_rate, original.samples
        )


def fit_channels(audio: np.ndarray, width: int) -> np.ndarray:
    """Repeat the last channel of (C, S) until there are `width`: a stereo model gets mono twice."""
    return audio[np.minimum(np.arange(width), len(audio) - 1)]


@lru_cache(maxsize=1)  # one model at a time: the next one's memory is needed
def load_model(source: str, device: str) -> Any:
    """Load the stock model of an id or folder, in evaluation mode.

    Raises:
        InputError: for a model of another type.
        CheckpointError: if it cannot be loaded.
    """
    import transformers

    gc.collect()
    classes = {
        "dac": transformers.DacModel,
        "encodec": transformers.EncodecModel,
        "mimi": transformers.MimiModel,
        "xcodec": transformers.XcodecModel,
    }
    try:
        kind = transformers.AutoConfig.from_pretrained(source).model_type
        if kind not in classes:
            raise InputError(
                f"{source} holds a {kind!r} model; expected one of {', '.join(classes)}"
            )
        return classes[kind].from_pretrained(source).to(device).eval()
    except (OSError, KeyError) as error:
        raise CheckpointError(
            f"cannot load the stock model {source!r}: {str(error).splitlines()[0]}"
        ) from error


def weights_hash(model: Any) -> str:
    """Return a short hash of all parameters and buffers of a torch module."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _sample_rate(model: Any) -> int:
    return getattr(model.config, "sampling_rate", None) or model.config.sample_rate


def _channels(model: Any) -> int:
    return getattr(model.config, "audio_channels", None) or 1


def _codebook_size(model: Any) -> int:
    return model.config.codebook_size


def _hop(model: Any) -> int:
    config = model.config
    if config.model_type == "dac":  # the field hop_length of the 16 and 24 kHz releases is stale
        return math.prod(config.downsampling_ratios)
    if config.model_type == "mimi":
        return round(config.sampling_rate / config.frame_rate)
    return config.hop_length


def _rates(model: Any) -> dict[float, Any]:
    """Each rate in kbit/s with the argument of `encode` that asks for it."""
    config = model.config
    if config.model_type in ("encodec", "xcodec"):
        return {float(rate): rate for rate in config.target_bandwidths}
    if config.model_type == "dac":
        codebooks = config.n_codebooks
    else:
        codebooks = config.num_quantizers
    one = _code_bits(config.codebook_size) * _sample_rate(model) / _hop(model) / 1000
    return {round(count * one, 6): count for count in range(1, codebooks + 1)}


def _code_bits(codebook_size: int) -> int:
    return max(1, (codebook_size - 1).bit_length())


def _encode(model: Any, inputs: Any, setting: Any) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Codes (chunks, G, K, T), scales (chunks, G) or None, and the frames that fill the rest."""
    kind = model.config.model_type
    if kind == "encodec":
        result = model.encode(inputs, bandwidth=setting)
        scales = None
        if result.audio_scales is not None and result.audio_scales[0] is not None:
            chunks = [scale.reshape(-1).cpu().numpy() for scale in result.audio_scales]
            scales = np.stack(chunks).astype(np.float32)
        return result.audio_codes.cpu().numpy(), scales, int(result.last_frame_pad_length or 0)
    if kind == "dac":
        codes = model.encode(inputs, n_quantizers=setting).audio_codes
    elif kind == "mimi":
        codes = model.encode(inputs, num_quantizers=setting).audio_codes
    else:
        codes = model.encode(inputs, bandwidth=setting).audio_codes
    return codes.cpu().numpy()[None], None, 0


def _decode(model: Any, codes: Any, scales: np.ndarray | None, missing: int) -> Any:
    """Codes (chunks, G, K, T) to audio (G, channels, S)."""
    import torch

    kind = model.config.model_type
    if kind == "encodec":
        factors: list[Any] = [None] * len(codes)
        if scales is not None:
            factors = list(torch.from_numpy(scales).to(codes.device)[..., None])
        return model.decode(codes, factors, last_frame_pad_length=missing).audio_values
    if kind == "dac":
        audio = model.decode(audio_codes=codes[0]).audio_values
    else:
        audio = model.decode(codes[0]).audio_values
    if audio.ndim == 2:
        audio = audio[:, None]
    return audio


def _joined(codes: np.ndarray, missing: int) -> np.ndarray:
    """Codes (chunks, G, K, T) as one stretch without the frames that fill up: (G, K, frames)."""
    chunks, groups, codebooks, frames = codes.shape
    flat = np.moveaxis(codes, 0, 2).reshape(groups, codebooks, chunks * frames)
    return flat[..., : chunks * frames - missing]


def _pack(
    codes: np.ndarray, scales: np.ndarray | None, missing: int, codebook_size: int
) -> Payload:
    chunks, groups, codebooks, frames = codes.shape
    width = _code_bits(codebook_size)
    flat = _joined(codes, missing)
    factors = b""
    if scales is not None:
        factors = scales.tobytes()
    head = _HEAD.pack(groups, chunks, codebooks, frames, missing) + bytes([len(factors) > 0])
    data = head + factors + pack_codes(flat.reshape(-1), width)
    return Payload(data, flat.size * width + 8 * len(factors))


def _unpack(data: bytes, codebook_size: int) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Codes (chunks, G, K, T), scales (chunks, G) or None, and `missing`, as `_pack` had them."""
    try:
        groups, chunks, codebooks, frames, missing = _HEAD.unpack_from(data)
        position = _HEAD.size + 1
        scales = None
        if data[_HEAD.size]:
            flat_scales = np.frombuffer(data, np.float32, chunks * groups, position)
            scales = flat_scales.reshape(chunks, groups).copy()
            position += scales.nbytes
        count = groups * codebooks * (chunks * frames - missing)
        width = _code_bits(codebook_size)
        if len(data) - position != packed_size(count, width):
            raise ValueError("the length does not fit the head")
        flat = unpack_codes(data[position:], count, width).reshape(groups, codebooks, -1)
    except (struct.error, ValueError, IndexError) as error:
        raise FileFormatError(f"not the codes of a stock codec: {error}") from error
    padded = np.pad(flat, ((0, 0), (0, 0), (0, missing)))
    codes = padded.reshape(groups, codebooks, chunks, frames)
    return np.moveaxis(codes, 2, 0).astype(np.int64), scales, missing
