"""Codecs as transformers ships them, by Hub id or folder.

The models only make codes or latents. Here these become bytes at the width that they need, so that
their bits are real.
"""

import hashlib
import math
import struct
from typing import Any

import numpy as np

from codecplus.bitstream.packing import pack_codes, packed_size, unpack_codes
from codecplus.errors import FileFormatError, InputError
from codecplus.eval.audio import fit, resample
from codecplus.eval.codecs.base import Original, Payload, hub_page, row_name
from codecplus.eval.codecs.complexity import Complexity
from codecplus.eval.codecs.stock_model import Encoded, StockModel, grouped, load_model
from codecplus.system.devices import resolve_device

# Groups of channels, chunks, K, frames of a chunk, frames missing in the last chunk.
_HEAD = struct.Struct("<HHHII")
_LATENTS = struct.Struct("<HII")  # groups of channels, and two sizes


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
        rates = model.rates()
        if kbps is None:
            self.nominal_kbps = max(rates)
        else:
            self.nominal_kbps = min(rates, key=lambda rate: abs(rate - kbps))
        self._setting = rates[self.nominal_kbps]  # the argument of `encode` that asks for it
        self.name = row_name(f"stock:{source}", self.nominal_kbps)
        self.homepage = hub_page(source)
        self._config = {
            "source": source,
            "model_type": model.model.config.model_type,
            "revision": getattr(model.model.config, "_commit_hash", None),
            "weights": weights_hash(model.model),
            "kbps": self.nominal_kbps,
            "version": 1,
        }

    def config(self) -> dict[str, Any]:
        """Model, revision, a hash of its weights, and the rate."""
        return dict(self._config)

    def encode(self, audio: np.ndarray, sample_rate: int) -> Payload:
        """Encode (C, S)."""
        model = load_model(self.source, self.device)
        audio = resample(audio, sample_rate, model.sample_rate)
        encoded = model.encode(grouped(audio, model), **self._setting)
        if model.codebook_size is None:
            return _pack_latents(encoded.values[0])
        return _pack(encoded, model.code_bits)

    def codes(self, data: bytes) -> tuple[np.ndarray, int] | None:
        """Return the codes of all channels, (K, frames), and the size of a codebook.

        None for latents.
        """
        model = load_model(self.source, self.device)
        if model.codebook_size is None:
            return None
        flat = _joined(_unpack(data, model.code_bits))  # (G, K, T)
        return np.concatenate(list(flat), axis=-1).astype(np.int32), model.codebook_size

    def decode(self, data: bytes, original: Original) -> np.ndarray:
        """Decode to (C, S) of the original."""
        model = load_model(self.source, self.device)
        if model.codebook_size is None:
            encoded = Encoded(_unpack_latents(data)[None])
        else:
            encoded = _unpack(data, model.code_bits)
        audio = model.decode(encoded)  # (G, width, S)
        audio = audio.reshape(-1, audio.shape[-1])[: original.channels]
        wanted = math.ceil(original.samples * model.output_rate / original.sample_rate)
        if audio.shape[-1] <= wanted - _output_hop(model):
            raise InputError(f"{self.name} decoded {audio.shape[-1]} samples of {wanted}")
        audio = fit(audio, wanted)
        return resample(audio, model.output_rate, original.sample_rate, original.samples)

    def complexity(self) -> Complexity:
        """Parameters, and operations for a second of one channel."""
        return load_model(self.source, self.device).complexity(**self._setting)


def weights_hash(model: Any) -> str:
    """Return a short hash of all parameters and buffers of a torch module."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _output_hop(model: StockModel) -> float:
    return model.hop * model.output_rate / model.sample_rate


def _joined(encoded: Encoded) -> np.ndarray:
    """Codes as one stretch without the frames that fill up: (G, K, frames)."""
    chunks, groups, codebooks, frames = encoded.values.shape
    flat = np.moveaxis(encoded.values, 0, 2).reshape(groups, codebooks, chunks * frames)
    return flat[..., : chunks * frames - encoded.missing]


def _pack(encoded: Encoded, width: int) -> Payload:
    chunks, groups, codebooks, frames = encoded.values.shape
    flat = _joined(encoded)
    factors = b""
    if encoded.scales is not None:
        factors = encoded.scales.tobytes()
    head = _HEAD.pack(groups, chunks, codebooks, frames, encoded.missing)
    head += bytes([len(factors) > 0])
    data = head + factors + pack_codes(flat.reshape(-1), width)
    return Payload(data, flat.size * width + 8 * len(factors))


def _unpack(data: bytes, width: int) -> Encoded:
    """Return what `_pack` had."""
    try:
        groups, chunks, codebooks, frames, missing = _HEAD.unpack_from(data)
        position = _HEAD.size + 1
        scales = None
        if data[_HEAD.size]:
            flat_scales = np.frombuffer(data, np.float32, chunks * groups, position)
            scales = flat_scales.reshape(chunks, groups).copy()
            position += scales.nbytes
        count = groups * codebooks * (chunks * frames - missing)
        if len(data) - position != packed_size(count, width):
            raise ValueError("the length does not fit the head")
        flat = unpack_codes(data[position:], count, width).reshape(groups, codebooks, -1)
    except (struct.error, ValueError, IndexError) as error:
        raise FileFormatError(f"not the codes of a stock codec: {error}") from error
    padded = np.pad(flat, ((0, 0), (0, 0), (0, missing)))
    codes = padded.reshape(groups, codebooks, chunks, frames)
    return Encoded(np.moveaxis(codes, 2, 0).astype(np.int64), scales, missing)


def _pack_latents(latents: np.ndarray) -> Payload:
    """Latents (G, A, B) as floats of half precision."""
    values = latents.astype("<f2").tobytes()
    return Payload(_LATENTS.pack(*latents.shape) + values, 8 * len(values))


def _unpack_latents(data: bytes) -> np.ndarray:
    """Return latents (G, A, B) as float32."""
    try:
        shape = _LATENTS.unpack_from(data)
        values = np.frombuffer(data, "<f2", offset=_LATENTS.size).reshape(shape)
    except (struct.error, ValueError) as error:
        raise FileFormatError(f"not the latents of a stock codec: {error}") from error
    return values.astype(np.float32)
