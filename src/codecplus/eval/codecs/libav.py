"""Opus, MP3 and AAC by the encoders of FFmpeg, through PyAV. The bits of their packets are counted.

Rates are per channel. Up to two channels are one stream, with joint stereo; of more, each is a mono
stream of its own, since an unknown array of microphones is no 5.1 film. The decoders of these
containers remove the encoder's delay.
"""

import io
import struct
from fractions import Fraction
from typing import Any

import numpy as np

from codecplus.errors import InputError, MissingExtraError
from codecplus.eval.audio import fit, resample
from codecplus.eval.codecs.base import Original, Payload, codec_adapter, row_name

_MPEG_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_LAYOUTS = {1: "mono", 2: "stereo"}
_OPUS_RATE = 48_000  # of every decoder of Opus


class LibavCodec:
    """One encoder at one target rate in kbit/s per channel.

    Subclasses name the encoder and its settings.
    """

    family: str
    encoder: str
    container: str
    sample_format: str
    default_kbps: float
    frame_padding = 0.1  # seconds by which the filled-up last frame may exceed the input

    def __init__(self, kbps: float | None = None) -> None:
        _av()  # refuses early
        if kbps is None:
            kbps = self.default_kbps
        self.nominal_kbps = self.nearest_kbps(float(kbps))
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
        if len(audio) <= 2:
            groups = [audio]
        else:
            groups = [channel[None] for channel in audio]
        files = []
        bits = 0
        for group in groups:
            rate = self.encoder_rate(sample_rate, len(group))
            file, packets = self._encode_stream(resample(group, sample_rate, rate), rate)
            files.append(file)
            bits += 8 * packets
        if len(files) == 1:
            data = files[0]
        else:
            data = b"".join(struct.pack("<I", len(file)) + file for file in files)
        return Payload(data, bits)

    def decode(self, data: bytes, original: Original) -> np.ndarray:
        """Decode to (C, S) at the original's rate and length."""
        if original.channels <= 2:
            files = [data]
        else:
            files = _split(data)
        return np.concatenate([self._decode_stream(file, original) for file in files])

    def _encode_stream(self, audio: np.ndarray, rate: int) -> tuple[bytes, int]:
        av = _av()
        file = io.BytesIO()
        packets = 0
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
        if planar:
            samples = audio
        else:
            samples = audio.T.reshape(1, -1)
        frame = _av().AudioFrame.from_ndarray(
            np.ascontiguousarray(samples, np.float32),
            format=self.sample_format,
            layout=_LAYOUTS[len(audio)],
        )
        frame.sample_rate = rate
        frame.time_base = Fraction(1, rate)
        frame.pts = 0  # without it the container's edit list forgets the priming of AAC
        return frame

    def _decode_stream(self, data: bytes, original: Original) -> np.ndarray:
        blocks = []
        rate = original.sample_rate
        with _av().open(io.BytesIO(data)) as container:
            for frame in container.decode(audio=0):
                rate = frame.sample_rate
                block = frame.to_ndarray()
                if not frame.format.is_planar:
                    block = block.reshape(-1, len(frame.layout.channels)).T
                blocks.append(block)
        if not blocks:
            raise InputError(f"{self.name} decoded no audio at all")
        decoded = np.concatenate(blocks, axis=1).astype(np.float32)
        audio = resample(decoded, rate, original.sample_rate)
        excess = (audio.shape[-1] - original.samples) / original.sample_rate  # seconds
        if not -0.001 <= excess <= self.frame_padding:
            raise InputError(f"{self.name} decoded {audio.shape[-1]} samples of {original.samples}")
        return fit(audio, original.samples)


@codec_adapter("opus")
class Opus(LibavCodec):
    """libopus at a hard constant bit rate, frames of 20 ms."""

    family = "opus"
    encoder = "libopus"
    container = "ogg"
    sample_format = "flt"
    default_kbps = 24.0
    homepage = "https://opus-codec.org"
    # A frame and 6.5 ms of look-ahead (RFC 6716, section 2.1.3, and libopus' default).
    latency = 0.0265

    def packets(self, data: bytes) -> list[bytes]:
        """Return the header of Ogg Opus, then a packet for each stream and frame of 20 ms."""
        av = _av()
        files = [data] if data.startswith(b"OggS") else _split(data)
        header = b""
        packets = []
        for file in files:
            with av.open(io.BytesIO(file)) as container:
                stream = container.streams.audio[0]
                header = bytes(stream.codec_context.extradata or b"")  # all streams have the same
                packets += [bytes(packet) for packet in container.demux(stream) if packet.size]
        return [header, *packets]

    def decode_packets(self, packets: list[bytes | None], original: Original) -> np.ndarray:
        """Decode to (C, S); libopus conceals what is lost.

        `decode` uses FFmpeg's own decoder, which conceals nothing; the two differ by a fraction of
        a sample in delay.
        """
        header, *rest = packets
        assert header is not None, "the first packet is never lost"
        streams = 1 if original.channels <= 2 else original.channels
        size = len(rest) // streams
        parts = [rest[start : start + size] for start in range(0, len(rest), size)]
        audio = np.concatenate([_decode_opus(header, part) for part in parts])
        return fit(resample(audio, _OPUS_RATE, original.sample_rate), original.samples)

    def nearest_kbps(self, kbps: float) -> float:
        """The library takes 0.5 to 256 kbit/s per channel."""
        return min(max(kbps, 0.5), 256.0)

    def encoder_rate(self, sample_rate: int, channels: int) -> int:
        """Return the lowest of the library's five rates that loses nothing.

        So no bits go to empty bands.
        """
        lossless = (rate for rate in (8_000, 12_000, 16_000, 24_000) if rate >= sample_rate)
        return next(lossless, 48_000)

    def options(self) -> dict[str, str]:
        """Hard CBR."""
        return {"vbr": "off", "application": "audio", "frame_duration": "20"}


@codec_adapter("opus-vbr")
class OpusVbr(Opus):
    """libopus as most people run it: it spends more bits where the audio needs them.

    The target rate is only aimed at.
    """

    family = "opus-vbr"

    def options(self) -> dict[str, str]:
        """Unconstrained VBR."""
        return {**super().options(), "vbr": "on"}


@codec_adapter("mp3")
class Mp3(LibavCodec):
    """LAME at a constant bit rate, at the sample rate where MPEG allows that bit rate."""

    family = "mp3"
    encoder = "libmp3lame"
    container = "mp3"
    sample_format = "fltp"
    default_kbps = 64.0
    # MPEG's rates whose double exists too: two channels share one stream of twice the rate.
    RATES = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160)

    def nearest_kbps(self, kbps: float) -> float:
        """The nearest rate of MPEG audio; the lowest is 8 kbit/s."""
        return float(min(self.RATES, key=lambda rate: (abs(rate - kbps), rate)))

    def encoder_rate(self, sample_rate: int, channels: int) -> int:
        """Return the lowest legal rate that loses nothing.

        MPEG ties low and high bit rates to low and high sample rates.
        """
        if self.nominal_kbps <= 16:
            highest = 16_000
        elif self.nominal_kbps < 40:
            highest = 24_000
        else:
            highest = 48_000
        if self.nominal_kbps > 80:
            lowest = 32_000
        elif self.nominal_kbps > 32:
            lowest = 16_000
        else:
            lowest = 8_000
        legal = [rate for rate in _MPEG_RATES if lowest <= rate <= highest]
        return next((rate for rate in legal if rate >= sample_rate), legal[-1])

    @property
    def latency(self) -> float:
        """One frame and the 1105 samples of encoder and decoder, at the lowest rate it may have."""
        return (1152 + 1105) / self.encoder_rate(48_000, 1)


@codec_adapter("aac")
class Aac(LibavCodec):
    """FFmpeg's own AAC-LC encoder.

    It has no hard CBR: it aims at the average, and the bits that it spends are counted.
    """

    family = "aac"
    encoder = "aac"
    container = "ipod"
    sample_format = "fltp"
    default_kbps = 64.0

    def nearest_kbps(self, kbps: float) -> float:
        """The encoder takes any rate of 1 to 288 kbit/s per channel."""
        return min(max(kbps, 1.0), 288.0)

    def encoder_rate(self, sample_rate: int, channels: int) -> int:
        """Return a low sample rate for a low bit rate, so that no bits go to empty bands."""
        if self.nominal_kbps <= 12:
            highest = 16_000
        elif self.nominal_kbps <= 24:
            highest = 24_000
        else:
            highest = 48_000
        legal = [rate for rate in _MPEG_RATES if rate <= highest]
        return next((rate for rate in legal if rate >= sample_rate), legal[-1])

    @property
    def latency(self) -> float:
        """One frame and 1024 samples of priming."""
        return 2048 / self.encoder_rate(48_000, 1)


def _decode_opus(header: bytes, packets: list[bytes | None]) -> np.ndarray:
    """Decode one stream to (C, S) at 48 kHz.

    A lost packet is replaced by the first byte of the one before it: that is a packet with a frame
    of no bytes, which a decoder treats as lost (RFC 6716, section 3.2.1).
    """
    av = _av()
    channels = header[9]  # of `OpusHead`, RFC 7845, section 5.1
    arrived = [packet for packet in packets if packet is not None]
    if not arrived:
        return np.zeros((channels, _OPUS_RATE // 50 * len(packets)), np.float32)
    decoder = av.CodecContext.create("libopus", "r")
    decoder.extradata = header
    decoder.layout = _LAYOUTS[channels]
    decoder.sample_rate = _OPUS_RATE
    decoder.options = {"request_sample_fmt": "flt"}
    kind = arrived[0][0]
    frames = []
    for packet in packets:
        if packet is None:
            packet = bytes([kind & 0xFC])  # the last two bits: one frame
        kind = packet[0]
        frames += decoder.decode(av.Packet(packet))
    frames += decoder.decode(None)
    blocks = [frame.to_ndarray().reshape(-1, channels) for frame in frames]
    return np.concatenate(blocks).T.astype(np.float32)


def _split(data: bytes) -> list[bytes]:
    files = []
    position = 0
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
            "Opus, MP3 and AAC need the package av: pip install 'codecplus[eval]'"
        ) from error
    av.logging.set_level(av.logging.ERROR)
    return av
