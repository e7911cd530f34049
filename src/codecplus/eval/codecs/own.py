"""Checkpoints of this package as adapters: the file that `compress` writes is decoded again."""

import gc
import io
import re
from functools import lru_cache
from typing import Any

import numpy as np

from codecplus._version import __version__
from codecplus.bitstream import Reader, unpack
from codecplus.bitstream.blocks import MISSING
from codecplus.bitstream.header import (
    counts_from_bytes,
    counts_to_bytes,
    info_from_bytes,
    info_to_bytes,
)
from codecplus.bitstream.packing import pack_codes, unpack_codes
from codecplus.errors import InputError
from codecplus.eval.codecs.base import Original, Payload, hub_page, row_name
from codecplus.eval.codecs.complexity import Complexity, complexity_of
from codecplus.inference.concealment import fade_lost_spans
from codecplus.inference.onnx_model import find_export
from codecplus.system.devices import resolve_device

_EFFORT, _ABR = "effort=", "abr"  # behind a checkpoint's name and ":", options of `compress`
_OPTIONS = re.compile(rf"(?::(?:{_EFFORT}[^:]*|{_ABR}))*$")


class OwnCodec:
    """A codecplus checkpoint at the rate nearest to a target.

    Args:
        source: a checkpoint as `load_codec` takes it; `NAME:effort=N` compresses with that effort,
            `NAME:abr` to files that have the target on average.
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
        source, self._options = _split_options(named)
        if kbps is None and self._is_variable:
            raise InputError(f"{named!r} needs a bit rate to have on average, got none")
        self.source = source
        exported = find_export(source) is not None
        if exported:  # a GPU needs another onnxruntime, so it is used only when it is asked for
            self.device = device or "cpu"
        else:
            self.device = str(resolve_device(device))
        self.revision = revision
        codec = _load(source, self.device, revision)
        rates = [float(rate) for rate in codec.bitrates]
        self.nominal_kbps = _nearest(rates, kbps)
        if kbps is not None and self._is_variable:
            self.nominal_kbps = min(float(kbps), max(rates))
        self.name = row_name(named, round(self.nominal_kbps, 2))
        self.latency = codec.latency
        self.homepage = hub_page(source)
        self._config = {
            "source": source,
            "model": codec.fingerprint.hex(),
            "codecplus": __version__,
            "kbps": self.nominal_kbps,
            "sample_rate": codec.sample_rate,
            "version": 1,
            **self._options,
        }
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
            **self._options,
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

    def packets(self, data: bytes) -> list[bytes]:
        """Split a file into its header and a packet for each frame of all channels."""
        codec = _load(self.source, self.device, self.revision)
        header, codes = unpack(data, codec.entropy_models)  # (C, K, T)
        first = info_to_bytes(header) + counts_to_bytes(header)
        frames = np.moveaxis(codes, -1, 0)
        return [first, *(self._pack_frame(frame, header.bits_per_code) for frame in frames)]

    def decode_packets(self, packets: list[bytes | None], original: Original) -> np.ndarray:
        """Decode to (C, S); for a lost packet the frame before it is repeated and faded out."""
        from codecplus.codec import Codes

        codec = _load(self.source, self.device, self.revision)
        first, *frames = packets
        assert first is not None, "the first packet is never lost"
        info, _ = info_from_bytes(first)
        header, _ = counts_from_bytes(info, first)
        shape = header.channels, header.num_codebooks
        codes = np.zeros((*shape, header.num_frames), np.int16)
        last = codes[..., 0].copy()
        for index, packet in enumerate(frames):
            if packet is not None:
                last = self._unpack_frame(packet, shape, header.bits_per_code)
            codes[..., index] = last
        audio = codec.decode(Codes(codes, header, header.num_samples))
        lost = [(index, index + 1) for index, packet in enumerate(frames) if packet is None]
        samples_per_frame = header.hop_length * header.original_sample_rate / header.sample_rate
        audio = np.atleast_2d(audio).astype(np.float32)
        return next(iter(fade_lost_spans([audio], _joined(lost), 0, samples_per_frame)))

    def _pack_frame(self, frame: np.ndarray, bits: int) -> bytes:
        """Codes (C, K) of a frame; with an average rate the number of codebooks goes first."""
        there = frame != MISSING
        counts = bytes(there.sum(axis=1).tolist()) if self._is_variable else b""
        return counts + pack_codes(frame[there], bits)

    def _unpack_frame(self, packet: bytes, shape: tuple[int, int], bits: int) -> np.ndarray:
        """The inverse of `_pack_frame`: int16 (C, K), `MISSING` for codebooks left out."""
        channels, num_codebooks = shape
        counts = np.full(channels, num_codebooks)
        if self._is_variable:
            counts, packet = np.frombuffer(packet[:channels], np.uint8), packet[channels:]
        frame = np.full(shape, MISSING, np.int16)
        there = np.arange(num_codebooks) < counts[:, None]
        frame[there] = unpack_codes(packet, there.sum(), bits)
        return frame

    @property
    def _is_variable(self) -> bool:
        return "rate_control" in self._options

    def complexity(self) -> Complexity | None:
        """Parameters, and operations for a second of one channel; None for an exported network."""
        codec = _load(self.source, self.device, self.revision)
        if not hasattr(codec.model, "parameters"):
            return None
        import torch

        rate = codec.model_sample_rate
        samples = max(4, round(rate / 2 / codec.hop_length)) * codec.hop_length
        model = codec.model
        parameter = next(model.parameters())
        audio = torch.zeros(1, 1, samples, device=parameter.device, dtype=parameter.dtype)

        def both_ways() -> None:
            # Without gradients the layers write into buffers, by operations that nobody counts.
            with torch.enable_grad():
                model.decode(audio_codes=model.encode(audio).audio_codes)

        return complexity_of(model, both_ways, samples / rate)


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join spans that touch.

    >>> _joined([(1, 2), (2, 3), (5, 6)])
    [(1, 3), (5, 6)]
    """
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return joined


def _split_options(name: str) -> tuple[str, dict[str, Any]]:
    """Split a checkpoint's name from the options of `compress` behind it.

    >>> _split_options("dac:abr:effort=2")
    ('dac', {'rate_control': 'abr', 'effort': 2})
    """
    start = _OPTIONS.search(name).start()  # type: ignore[union-attr]  # it matches nothing, too
    options: dict[str, Any] = {}
    for option in name[start:].split(":")[1:]:
        if option == _ABR:
            options["rate_control"] = "abr"
            continue
        effort = option.removeprefix(_EFFORT)
        if effort not in ("0", "1", "2", "3"):
            raise InputError(f"expected an effort from 0 to 3 in {name!r}, got {effort!r}")
        if effort != "0":
            options["effort"] = int(effort)
    return name[:start], options


def _nearest(rates: list[float], kbps: float | None) -> float:
    if kbps is None:
        return max(rates)
    return min(rates, key=lambda rate: abs(rate - kbps))


@lru_cache(maxsize=1)  # one model at a time: the next one's memory is needed
def _load(source: str, device: str, revision: str | None) -> Any:
    from codecplus.codec import load_codec

    gc.collect()
    return load_codec(source, device=device, revision=revision)
