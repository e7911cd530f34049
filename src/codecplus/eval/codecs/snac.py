"""SNAC, whose codebooks have several frame rates, by its own package."""

import math
from functools import lru_cache
from typing import Any

import numpy as np

from codecplus.bitstream.packing import pack_codes, packed_size, unpack_codes
from codecplus.errors import CheckpointError, FileFormatError, MissingExtraError
from codecplus.eval.audio import fit, resample
from codecplus.eval.codecs.base import Original, Payload, hub_page, row_name
from codecplus.eval.codecs.complexity import Complexity, complexity_of
from codecplus.eval.codecs.stock import weights_hash
from codecplus.system.devices import resolve_device


class SnacCodec:
    """SNAC at its only rate; each channel is coded on its own.

    Args:
        source: Hub id or folder.
        kbps: ignored but for the name: a checkpoint has one rate.
        device: where it runs; None: on CUDA if there is any.
    """

    def __init__(self, source: str, kbps: float | None = None, device: str | None = None) -> None:
        self.source = source
        self.device = str(resolve_device(device))
        model = load_snac(source, self.device)
        frames = model.sampling_rate / model.hop_length
        per_frame = sum(1 / stride for stride in model.vq_strides)
        self.nominal_kbps = round(frames * per_frame * _width(model) / 1000, 3)
        self.name = row_name(f"snac:{source}", self.nominal_kbps)
        self.homepage = hub_page(source)
        self._config = {"source": source, "weights": weights_hash(model), "version": 1}

    def config(self) -> dict[str, Any]:
        """The checkpoint and a hash of its weights."""
        return dict(self._config)

    def encode(self, audio: np.ndarray, sample_rate: int) -> Payload:
        """Encode (C, S), zero-padded to whole frames of the slowest codebook."""
        import torch

        model = load_snac(self.source, self.device)
        audio = resample(audio, sample_rate, model.sampling_rate)
        audio = fit(audio, self._frames(audio.shape[-1], model) * model.hop_length)
        with torch.inference_mode():
            books = model.encode(torch.from_numpy(audio)[:, None].to(self.device))
        flat = np.concatenate([book.cpu().numpy().reshape(-1) for book in books])
        data = pack_codes(flat.astype(np.int32), _width(model))
        return Payload(data, flat.size * _width(model))

    def codes(self, data: bytes) -> tuple[list[np.ndarray], int]:
        """Return the codes of each codebook, of all channels, and the size of a codebook."""
        model = load_snac(self.source, self.device)
        total = 8 * len(data) // _width(model)
        slowest = max(model.vq_strides)
        per_block = sum(slowest // stride for stride in model.vq_strides)
        blocks = total // per_block
        sizes = [blocks * (slowest // stride) for stride in model.vq_strides]
        count = sum(sizes)
        if packed_size(count, _width(model)) != len(data):
            raise FileFormatError("not the codes of SNAC: the length does not fit")
        flat = unpack_codes(data, count, _width(model))
        return np.split(flat, np.cumsum(sizes)[:-1]), model.codebook_size

    def decode(self, data: bytes, original: Original) -> np.ndarray:
        """Decode to (C, S) of the original."""
        import torch

        model = load_snac(self.source, self.device)
        books, _ = self.codes(data)
        tensors = []
        for book in books:
            shaped = book.reshape(original.channels, -1).astype(np.int64)
            tensors.append(torch.from_numpy(shaped).to(self.device))
        with torch.inference_mode():
            audio = model.decode(tensors)[:, 0].float().cpu().numpy()
        return resample(audio, model.sampling_rate, original.sample_rate, original.samples)

    def complexity(self) -> Complexity:
        """Parameters, and operations for a second of audio."""
        import torch

        model = load_snac(self.source, self.device)
        frames = self._frames(model.sampling_rate // 2, model)
        audio = torch.zeros(1, 1, frames * model.hop_length, device=self.device)
        seconds = audio.shape[-1] / model.sampling_rate
        return complexity_of(model, lambda: model.decode(model.encode(audio)), seconds)

    def _frames(self, samples: int, model: Any) -> int:
        """Frames of the fastest codebook, filled up for the slowest one and for the attention."""
        multiple = math.lcm(max(model.vq_strides), model.attn_window_size or 1)
        frames = math.ceil(samples / model.hop_length)
        return max(1, math.ceil(frames / multiple)) * multiple


@lru_cache(maxsize=1)  # one model at a time: the next one's memory is needed
def load_snac(source: str, device: str) -> Any:
    """Load SNAC from an id or folder, in evaluation mode.

    Raises:
        MissingExtraError: without the package.
        CheckpointError: if it cannot be loaded.
    """
    try:
        from snac import SNAC  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    except ImportError as error:
        raise MissingExtraError("SNAC needs its package: pip install snac") from error
    try:
        return SNAC.from_pretrained(source).to(device).eval()
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"cannot load SNAC from {source!r}: {reason}") from error


def _width(model: Any) -> int:
    return max(1, (model.codebook_size - 1).bit_length())
