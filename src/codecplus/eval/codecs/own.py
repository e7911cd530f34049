"""Checkpoints of this package as adapters: the file that `compress` writes is decoded again."""

import gc
import io
from functools import lru_cache
from typing import Any

import numpy as np

from codecplus._version import __version__
from codecplus.bitstream import Reader, unpack
from codecplus.errors import InputError
from codecplus.eval.codecs.base import Original, Payload, row_name
from codecplus.inference.onnx_model import find_export
from codecplus.system.devices import resolve_device

EFFORT = ":effort="  # behind a checkpoint's name: the `effort` of `compress`
_EFFORTS = ("", "0", "1", "2", "3")


class OwnCodec:
    """A codecplus checkpoint at the rate nearest to a target.

    Args:
        source: a checkpoint as `load_codec` takes it; `NAME:effort=N` compresses with that effort.
        kbps: the target in kbit/s per channel; None: all codebooks.
        device: where it runs; None: on CUDA if there is any.
        revision: branch, tag or commit of a checkpoint on the Hub.
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
        if effort not in _EFFORTS:
            raise InputError(f"expected an effort from 0 to 3 in {named!r}, got {effort!r}")
        self.effort = int(effort or 0)
        self.source = source
        exported = find_export(source) is not None
        if exported:  # a GPU needs another onnxruntime, so it is used only when it is asked for
            self.device = device or "cpu"
        else:
            self.device = str(resolve_device(device))
        self.revision = revision
        codec = _load(source, self.device, revision)
        self.nominal_kbps = _nearest([float(rate) for rate in codec.bitrates], kbps)
        self.name = row_name(named, round(self.nominal_kbps, 2))
        self.latency = codec.latency
        self._config = {
            "source": source,
            "model": codec.fingerprint.hex(),
            "codecplus": __version__,
            "kbps": self.nominal_kbps,
            "sample_rate": codec.sample_rate,
            "version": 1,
        }
        if self.effort:
            self._config["effort"] = self.effort
        if exported:
            self._config["precision"] = getattr(codec.config, "precision", None)
        self._decoded: tuple[bytes, tuple[np.ndarray, int]] | None = None

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
        header = Reader(io.BytesIO(data), codec.entropy_models).header
        codes = header.channels * header.num_codebooks * header.num_frames
        # An entropy coder may need fewer bits than the codes have.
        return Payload(data, min(codes * header.bits_per_code, 8 * len(data)))

    def decode(self, data: bytes, original: Original) -> np.ndarray:
        """Decompress to (C, S)."""
        from codecplus.codec import Codes

        codec = _load(self.source, self.device, self.revision)
        header, codes = unpack(data, codec.entropy_models)  # (C, K, T)
        self._decoded = data, (np.concatenate(list(codes), axis=-1), header.codebook_size)
        audio = codec.decode(Codes(codes, header, header.num_samples))
        return np.atleast_2d(audio).astype(np.float32)

    def codes(self, data: bytes) -> tuple[np.ndarray, int]:
        """Return the codes of all channels, (K, C · T), and the size of a codebook.

        They are those that `decode` found in the same bytes, which are not read again.
        """
        if self._decoded is None or self._decoded[0] is not data:
            raise InputError("expected the bytes that were decoded last")
        return self._decoded[1]


def _nearest(rates: list[float], kbps: float | None) -> float:
    if kbps is None:
        return max(rates)
    return min(rates, key=lambda rate: abs(rate - kbps))


@lru_cache(maxsize=1)  # one model at a time: the next one's memory is needed
def _load(source: str, device: str, revision: str | None) -> Any:
    from codecplus.codec import load_codec

    gc.collect()
    return load_codec(source, device=device, revision=revision)
