"""Checkpoints of this package, through its public door: the file that `compress` writes is what is
decoded.
"""

from __future__ import annotations

import gc
from functools import lru_cache
from typing import Any

import numpy as np

from codecplus._version import __version__
from codecplus.errors import InputError
from codecplus.eval.codecs.base import Original, Payload, row_name
from codecplus.eval.codecs.stock import pick_device
from codecplus.inference.onnx_model import find_export

EFFORT = ":effort="  # behind a checkpoint's name: how hard its encoder is to search, as `compress` has it


class OwnCodec:
    """A codecplus checkpoint at the rate nearest to a target in kbit/s per channel; None: all its
    codebooks.

    `NAME:effort=N` compresses with that effort.
    """

    def __init__(
        self,
        source: str,
        kbps: float | None = None,
        device: str | None = None,
        revision: str | None = None,
    ) -> None:
        named = source
        source, _, effort = source.partition(EFFORT)
        if effort not in ("", "0", "1", "2", "3"):
            raise InputError(f"expected an effort from 0 to 3 in {named!r}, got {effort!r}")
        self.effort = int(effort or 0)
        # An exported model runs where it is asked to, else on the CPU: a GPU is a matter of which
        # onnxruntime is there.
        exported = find_export(source) is not None
        self.source, self.device = source, device or "cpu" if exported else pick_device(device)
        self.revision = revision
        codec = _load(source, self.device, revision)
        rates = [float(rate) for rate in codec.bitrates]
        self.nominal_kbps = (
            max(rates) if kbps is None else min(rates, key=lambda rate: abs(rate - kbps))
        )
        self.name = row_name(named, round(self.nominal_kbps, 2))
        self.latency = codec.latency
        self._config = {
            "source": source,
            "model": codec.fingerprint.hex(),
            "codecplus": __version__,
            "kbps": self.nominal_kbps,
            "sample_rate": codec.sample_rate,
            "version": 1,
            **({"effort": self.effort} if self.effort else {}),
            **({"precision": getattr(codec.config, "precision", None)} if exported else {}),
        }

    def config(self) -> dict[str, Any]:
        """Checkpoint, its fingerprint, the version of this package, and the rate."""
        return dict(self._config)

    def encode(self, audio: np.ndarray, sample_rate: int) -> Payload:
        """Compress (C, S) to the bytes of a file."""
        codec = _load(self.source, self.device, self.revision)
        data = codec.compress(
            audio,
            sample_rate=sample_rate,
            bitrate=self.nominal_kbps * len(audio),
            effort=self.effort,
        )
        bits, codebook_size, codes = _inside(data, codec.entropy_models)
        return Payload(data, bits, codes, codebook_size)

    def decode(self, data: bytes, original: Original) -> np.ndarray:
        """Decompress to (C, S)."""
        audio = np.atleast_2d(_load(self.source, self.device, self.revision).decompress(data))
        return audio.astype(np.float32)


@lru_cache(maxsize=1)  # one model at a time: the next one's memory is needed
def _load(source: str, device: str, revision: str | None) -> Any:
    from codecplus.codec import load_codec

    gc.collect()
    return load_codec(source, device=device, revision=revision)


def _inside(data: bytes, entropy_models: Any) -> tuple[int, int, np.ndarray]:
    """The bits of a file that are codes, the size of a codebook, and the codes of all channels, (K,
    C · T).
    """
    from codecplus.bitstream import unpack

    header, codes = unpack(data, entropy_models)  # (C, K, T)
    bits = min(codes.size * header.bits_per_code, 8 * len(data))  # an entropy coder may need fewer
    return bits, header.codebook_size, np.concatenate(list(codes), axis=-1)
