"""Opus, MP3 and AAC by the encoders of FFmpeg, through PyAV, with the bits of their packets
counted.

Rates are per channel. Up to two channels are one stream, with joint stereo; of more, each is a mono
stream of its own, since an unknown array of microphones is no 5.1 film. The decoders of these
containers remove the encoder's delay.
"""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from typing import Any

import numpy as np

from codecplus.errors import InputError, MissingExtraError
from codecplus.eval.audio import fit, resample
from codecplus.eval.codecs.base import Original, Payload, row_name

_MPEG_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_LAYOUTS = {1: "mono", 2: "stereo"}


class LibavCodec:
    """One encoder at one target rate in kbit/s per channel. Subclasses say which encoder and how it
    is set.
    """

    family: str
    encoder: str
    container: str
    sample_format: str
    default_kbps: float
    frame_padding = (
        0.1  # seconds by which a decoder may exceed the input: its last frame is filled up
    )

    def __init__(self, kbps: float | None = None) -> None:
        _av()
        self.nominal_kbps = self.nearest_kbps(float(self.default_kbps if kbps is None else kbps))
        self.name = row_name(self.family, self.nominal_kbps)

    def nearest_kbps(self, kbps: float) -> float:
        """The rate the encoder can be set to."""
        return kbps

    def encoder_rate(self, sample_rate: int, channels: int) -> int:
        """The sample rate the encoder is given for audio of that rate."""
        raise NotImplementedError

    def options(self) -> dict[str, str]:
        """Options of the encoder."""
        return {}

    def config(self) -> dict[str, Any]:
        """Encoder, its options and the version of FFmpeg's codec library."""
        av = _av()
        return {
            "encoder": self.encoder,
            "container": self.container,
            "kbps_per_channel": self.nominal_kbps,
            "options": self.options(),
            "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
            "version": 1,
        }

    def encode(self, audio: np.ndarray, sample_rate: int) -> Payload:
        """Encode (C, S): one stream for one or two channels, else one for each."""
        groups = [audio] if len(audio) <= 2 else [channel[None] for channel in audio]
        files, bits = [], 0
        for group in groups:
            rate = self.encoder_rate(sample_rate, len(group))
            file, packets = self._encode_stream(resample(group, sample_rate, rate), rate)
            files.append(file)
            bits += 8 * packets
        data = (
            files[0] if len(files) == 1 else b"".join(struct.pack("<I", len(f)) + f for f in files)
        )
        return Payload(data, bits)

    def decode(self, data: bytes, original: Original) -> np.ndarray:
        """Decode to (C, S) at the original's rate and length."""
        files = [data] if original.channels <= 2 else _split(data)
        return np.concatenate([self._decode_stream(file, original) for file in files])

    def _encode_stream(self, audio: np.ndarray, rate: int) -> tuple[bytes, int]:
        av = _av()
        file, packets = io.BytesIO(), 0
        with av.open(file, "w", format=self.container) as container:
            stream: Any = container.add_stream(self.encoder, rate=rate, options=self.options())
            stream.bit_rate = round(1000 * self.nominal_kbps * len(audio))
            stream.layout = _LAYOUTS[len(audio)]
            stream.format = self.sample_format
            for frame in (self._frame(audio, rate), None):
                for packet in stream.encode(frame):
                    packets += packet.size
                    container.mux(packet)
        return file.getvalue(), packets

    def _frame(self, audio: np.ndarray, rate: int) -> Any:
        planar = self.sample_format.endswith("p")
        samples = audio if planar else audio.T.reshape(1, -1)
        frame = _av().AudioFrame.from_ndarray(
            np.ascontiguousarray(samples, np.float32),
            format=self.sample_format,
            layout=_LAYOUTS[len(audio)],
        )
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = 0  # without it the container's edit list forgets the priming of AAC
        return frame

    def _decode_stream(self, data: bytes, original: Original) -> np.ndarray:
        blocks, rate = [], original.sample_rate
        with _av().open(io.BytesIO(data)) as container:
            for frame in container.decode(audio=0):
                rate = frame.sample_rate
                block = frame.to_ndarray()
                channels = len(frame.layout.channels)
                blocks.append(block if frame.format.is_planar else block.reshape(-1, channels).T)
        if not blocks:
            raise InputError(f"{self.name} decoded no audio at all")
        audio = resample(
            np.concatenate(blocks, axis=1).astype(np.float32), rate, original.sample_rate
        )
        excess = audio.shape[-1] - original.samples
        if not -0.001 * original.sample_rate <= excess <= self.frame_padding * original.sample_rate:
            raise InputError(f"{self.name} decoded {audio.shape[-1]} samples of {original.samples}")
        return fit(audio, original.samples)


class Opus(LibavCodec):
    """libopus at a hard constant bit rate, frames of 20 ms."""

    family, encoder, container, sample_format, default_kbps = "opus", "libopus", "ogg", "flt", 24.0
    latency = (
        0.0265  # a frame and 6.5 ms of look-ahead (RFC 6716, section 2.1.3, and libopus' default)
    )

    def nearest_kbps(self, kbps: float) -> float:
        """The library takes 0.5 to 256 kbit/s per channel."""
        return min(max(kbps, 0.5), 256.0)

    def encoder_rate(self, sample_rate: int, channels: int) -> int:
        """The lowest of the library's five rates that loses nothing, so that no bits go to empty
        bands.
        """
        return next(
            (rate for rate in (8_000, 12_000, 16_000, 24_000) if rate >= sample_rate), 48_000
        )

    def options(self) -> dict[str, str]:
        """Hard CBR."""
        return {"vbr": "off", "application": "audio", "frame_duration": "20"}


class OpusVbr(Opus):
    """libopus as most people run it: more bits where the audio needs them, and a target that is
    only aimed at.
    """

    family = "opus-vbr"

    def options(self) -> dict[str, str]:
        """Unconstrained VBR."""
        return {**super().options(), "vbr": "on"}


class Mp3(LibavCodec):
    """LAME at a constant bit rate, at the sample rate where MPEG allows that bit rate."""

    family, encoder, container, sample_format, default_kbps = (
        "mp3",
        "libmp3lame",
        "mp3",
        "fltp",
        64.0,
    )
    # MPEG's rates whose double exists too, for two channels share one stream of twice the rate.
    RATES = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160)

    def nearest_kbps(self, kbps: float) -> float:
        """The nearest rate of MPEG audio; the lowest is 8 kbit/s."""
        return float(min(self.RATES, key=lambda rate: (abs(rate - kbps), rate)))

    def encoder_rate(self, sample_rate: int, channels: int) -> int:
        """The lowest legal rate that loses nothing; MPEG ties low and high bit rates to low and
        high sample rates.
        """
        highest = (
            16_000 if self.nominal_kbps <= 16 else 24_000 if self.nominal_kbps < 40 else 48_000
        )
        lowest = 32_000 if self.nominal_kbps > 80 else 16_000 if self.nominal_kbps > 32 else 8_000
        legal = [rate for rate in _MPEG_RATES if lowest <= rate <= highest]
        return next((rate for rate in legal if rate >= sample_rate), legal[-1])

    @property
    def latency(self) -> float:
        """One frame and the delay of encoder and decoder, 1105 samples, at the lowest rate it may
        run at.
        """
        return (1152 + 1105) / self.encoder_rate(48_000, 1)


class Aac(LibavCodec):
    """FFmpeg's own AAC-LC encoder. It has no hard CBR: it aims at the average, and what it spends
    is counted.
    """

    family, encoder, container, sample_format, default_kbps = "aac", "aac", "ipod", "fltp", 64.0

    def nearest_kbps(self, kbps: float) -> float:
        """The encoder takes any rate of 1 to 288 kbit/s per channel."""
        return min(max(kbps, 1.0), 288.0)

    def encoder_rate(self, sample_rate: int, channels: int) -> int:
        """A low bit rate is spent on a low sample rate: 6 bits per sample would be wasted on empty
        bands.
        """
        highest = (
            16_000 if self.nominal_kbps <= 12 else 24_000 if self.nominal_kbps <= 24 else 48_000
        )
        legal = [rate for rate in _MPEG_RATES if rate <= highest]
        return next((rate for rate in legal if rate >= sample_rate), legal[-1])

    @property
    def latency(self) -> float:
        """One frame and 1024 samples of priming."""
        return 2048 / self.encoder_rate(48_000, 1)


def _split(data: bytes) -> list[bytes]:
    files, position = [], 0
    while position < len(data):
        (size,) = struct.unpack_from("<I", data, position)
        files.append(data[position + 4 : position + 4 + size])
        position += 4 + size
    return files


def _av() -> Any:
    try:
        import av
        import av.logging
    except ImportError as error:
        raise MissingExtraError(
            "Opus, MP3 and AAC need the package av: pip install codecplus[eval]"
        ) from error
    av.logging.set_level(av.logging.ERROR)
    return av
