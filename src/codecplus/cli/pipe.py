"""Live pipes, `codecplus encode -` and `decode -`: audio in and out, frame by frame.

It knows WAV headers, samples and packets on a pipe; files are the business of files.py.

Between the two ends travels a sequence of packets (`streaming.packets`), each behind its length as
a big-endian u16. The header of the stream names the model and the rate: 8 bytes of fingerprint,
then the sample rate as a big-endian u32.
"""

import struct
import warnings
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from codecplus.audio.resampling import Resampler
from codecplus.codec import Codec
from codecplus.decompression import check_length
from codecplus.encoding.stream_info import highest_rate
from codecplus.errors import FileFormatError, InputError
from codecplus.streaming import (
    ConcealingDecoder,
    PacketFormat,
    PacketGapError,
    PacketReader,
    PacketWriter,
)

_CHUNK = 1 << 14  # bytes asked of a pipe at once; a pipe gives fewer as soon as it has any
_HEADER_EVERY = 50  # frames after which the header is repeated, so that a listener can join
_HEADER = struct.Struct(">8sI")  # fingerprint, sample rate
_UNKNOWN_SIZE = 0xFFFFFFFF  # in a WAV header whose writer cannot go back and fill it in
_MAX_CHUNK = 1 << 20  # bytes of a WAV chunk that is skipped
_MIN_RATE = 4000  # Hz
_MAX_RATE = 1_000_000  # Hz
_MAX_CHANNELS = 64
_DTYPES = {(1, 16): "<i2", (1, 32): "<i4", (3, 32): "<f4"}  # by format tag and bits of a WAV


class PcmFormat(NamedTuple):
    """Interleaved samples as they come down a pipe."""

    sample_rate: int
    channels: int
    dtype: str = "<i2"


class Sink(Protocol):
    """Where bytes go."""

    def write(self, data: bytes, /) -> Any:
        """Take all of these bytes."""

    def flush(self) -> Any:
        """Send on what is held back."""


def encode_pipe(
    codec: Codec,
    source: BinaryIO,
    sink: Sink,
    *,
    raw: PcmFormat | None = None,
    bitrate: float | None = None,
) -> None:
    """Encode audio from a pipe as it comes, and write packets.

    Args:
        codec: the codec; a causal one answers without delay.
        source: WAV, or samples without a header if `raw` is given.
        sink: where the packets go.
        raw: the format of samples without a header.
        bitrate: kbit/s of all channels together; None for all codebooks.

    Raises:
        InputError: for audio that cannot be used.
        FileFormatError: for a source that is no WAV.
    """
    pcm = raw or read_wav_header(source)
    n_quantizers = None
    if bitrate is not None:
        n_quantizers = codec.n_quantizers_for(bitrate, pcm.channels)
    stream = codec.encoder_stream(n_quantizers=n_quantizers, batch=pcm.channels)
    packet_format = PacketFormat(
        num_codebooks=stream.n_quantizers,
        codebook_size=codec.codebook_size,
        channels=pcm.channels,
        header=_HEADER.pack(codec.fingerprint[:8], pcm.sample_rate),
    )
    writer = PacketWriter(packet_format)
    resampler = Resampler(pcm.sample_rate, codec.model_sample_rate, pcm.channels)

    def send(codes: np.ndarray) -> None:  # (C, K, T)
        for frame in range(codes.shape[-1]):
            with_header = writer.frames % _HEADER_EVERY == 0
            packet = writer.pack(codes[..., frame : frame + 1], with_header=with_header)
            _write_packet(sink, packet)
        sink.flush()

    for samples in read_samples(source, pcm):
        send(stream.push(resampler.push(samples)))
    send(stream.push(resampler.flush()))
    send(stream.flush())
    _write_packet(sink, writer.end())
    sink.flush()


def _write_packet(sink: Sink, packet: bytes) -> None:
    sink.write(len(packet).to_bytes(2, "big") + packet)


def decode_pipe(
    find_codec: Callable[[bytes], Codec],
    source: BinaryIO,
    sink: Sink,
    *,
    raw: bool = False,
    max_seconds: float | None = None,
) -> None:
    """Decode packets from a pipe as they come, and write 16-bit samples.

    A damaged packet counts as lost: its frames are concealed. A gap beyond what a reader believes
    is left out. Samples beyond full scale are clipped. Warnings at the end say how many frames were
    lost, how many gaps left out, how many samples clipped, and whether the end is missing.

    Args:
        find_codec: gives the codec of the first 8 bytes of a fingerprint.
        source: the packets.
        sink: where the samples go.
        raw: leave out the WAV header.
        max_seconds: of audio to write at most; None for a stream without end.

    Raises:
        FileFormatError: for a stream that holds no packet.
        InputError: for a stream of more than `max_seconds`; what came before it is written.
    """
    check_length(0.0, max_seconds)
    reader = PacketReader()
    player = None
    long_gaps = 0
    for packet in read_packets(source):
        try:
            received = reader.read(packet)
        except PacketGapError:
            long_gaps += 1
            reader.rejoin()
            received = reader.read(packet)
        except FileFormatError:
            continue  # the next good packet says how many frames are missing
        if received is None:
            continue
        if player is None:
            player = _open_player(find_codec, reader.format, sink, raw)
        if max_seconds is not None and player.seconds > max_seconds:
            raise InputError(
                f"expected a stream of at most {max_seconds:g} s, got more; "
                "if that is right, raise --max-seconds or leave it out"
            )
        player.play(received.codes, received.lost)
        if reader.ended:
            break
    if player is None:
        raise FileFormatError(
            "expected a stream of codecplus encode -, got none; was it encoded with -o - ?"
        )
    player.finish()
    if player.lost:
        skipped = f", {player.skipped} of them left out" if player.skipped else ""
        warnings.warn(f"{player.lost} frames were lost and concealed{skipped}", stacklevel=2)
    if long_gaps:
        gaps = "1 gap" if long_gaps == 1 else f"{long_gaps} gaps"
        warnings.warn(
            f"{gaps} of more than {reader.max_gap} frames left out: "
            "what follows is earlier than it was sent",
            stacklevel=2,
        )
    if not reader.ended:
        warnings.warn(
            "the stream broke off before its end; the recording may have been longer", stacklevel=2
        )
    if player.clipped:
        warnings.warn(f"{player.clipped} samples were beyond full scale and clipped", stacklevel=2)


def _open_player(
    find_codec: Callable[[bytes], Codec],
    packet_format: PacketFormat | None,
    sink: Sink,
    raw: bool,
) -> "_Player":
    if packet_format is None or len(packet_format.header) != _HEADER.size:
        raise FileFormatError(
            "expected a stream of codecplus encode -, got packets of another application"
        )
    fingerprint, sample_rate = _HEADER.unpack(packet_format.header)
    codec = find_codec(fingerprint)
    highest = highest_rate(codec.model_sample_rate)
    if not _is_usable(sample_rate, packet_format.channels) or sample_rate > highest:
        raise FileFormatError(
            f"expected a stream of {_MIN_RATE} to {highest} Hz and 1 to {_MAX_CHANNELS} channels, "
            f"got {sample_rate} Hz and {packet_format.channels} channels"
        )
    player = _Player(codec, sample_rate, packet_format.channels, sink)
    if not raw:
        sink.write(wav_header(sample_rate, packet_format.channels))
    return player


class _Player:
    """Codes to 16-bit samples on a pipe, at the rate of the original signal.

    It counts frames that were lost and samples that were clipped.
    """

    def __init__(self, codec: Codec, sample_rate: int, channels: int, sink: Sink):
        network = codec.decoder_stream(batch=channels).network
        self._decoder = ConcealingDecoder(network, batch=channels)
        self._resampler = Resampler(codec.model_sample_rate, sample_rate, channels)
        self._sink = sink
        self._samples_per_second = sample_rate
        self._samples = 0
        self.clipped = 0
        self.lost = 0

    @property
    def skipped(self) -> int:
        """Lost frames that were left out instead of concealed."""
        return self._decoder.skipped

    @property
    def seconds(self) -> float:
        """Audio written so far."""
        return self._samples / self._samples_per_second

    def play(self, codes: np.ndarray, lost: int) -> None:
        """Write the samples of codes (C, K, T) that come after `lost` frames."""
        self.lost += lost
        self._write(self._resample(self._decoder.push(codes, lost=lost)))

    def finish(self) -> None:
        """Write the samples that decoder and resampler still hold."""
        decoded = self._resample(self._decoder.flush())
        self._write(np.concatenate([decoded, self._resampler.flush()], axis=-1))

    def _resample(self, samples: np.ndarray) -> np.ndarray:
        if not samples.size:
            return np.zeros((len(samples), 0), np.float32)
        return self._resampler.push(samples)

    def _write(self, samples: np.ndarray) -> None:  # (C, S)
        self._samples += samples.shape[-1]
        self.clipped += int((np.abs(samples) > 1).sum())
        integers = (samples.clip(-1, 32767 / 32768).T * 32768).round().astype("<i2")
        self._sink.write(integers.tobytes())
        self._sink.flush()


def read_packets(source: BinaryIO) -> Iterator[bytes]:
    """Yield the packets of a pipe; one that is cut off at the end is dropped."""
    while len(length := _read_exactly(source, 2)) == 2:
        size = int.from_bytes(length, "big")
        packet = _read_exactly(source, size)
        if len(packet) < size:
            return
        yield packet


def read_samples(source: BinaryIO, pcm: PcmFormat) -> Iterator[np.ndarray]:
    """Yield samples as they come, float32 (channels, n) within ±1, until the pipe is closed."""
    dtype = np.dtype(pcm.dtype)
    width = dtype.itemsize * pcm.channels
    rest = b""  # the beginning of a sample whose end has not come yet
    read = getattr(source, "read1", source.read)
    while data := read(_CHUNK):
        data = rest + data
        whole = len(data) // width * width
        rest = data[whole:]
        if not whole:
            continue
        samples = np.frombuffer(data[:whole], dtype).reshape(-1, pcm.channels).T
        if dtype.kind == "i":
            full_scale = np.float32(2.0 ** (8 * dtype.itemsize - 1))
            samples = samples.astype(np.float32) / full_scale
        yield np.ascontiguousarray(samples, np.float32)


def read_wav_header(source: BinaryIO) -> PcmFormat:
    """Read a WAV up to its samples, and return their format.

    The number of samples in the header is ignored, since a live source does not know it.

    Raises FileFormatError if it is no WAV of 16- or 32-bit integers or 32-bit floats.
    """
    start = _read_exactly(source, 12)
    if start[:4] != b"RIFF" or start[8:] != b"WAVE":
        raise FileFormatError(
            "expected WAV on standard input; name raw 16-bit samples with --raw RATE"
        )
    pcm = None
    while len(head := _read_exactly(source, 8)) == 8:
        name = head[:4]
        size = int.from_bytes(head[4:], "little")
        if name == b"data":
            if pcm is None:
                break
            return pcm
        if size > _MAX_CHUNK:
            break
        body = _read_exactly(source, size + size % 2)  # chunks are padded to whole words
        if name == b"fmt " and size >= 16:
            pcm = _parse_wav_format(body)
    raise FileFormatError(
        "expected a whole WAV header on standard input, got one without format or samples"
    )


def _parse_wav_format(body: bytes) -> PcmFormat:
    tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
    if tag == 0xFFFE and len(body) >= 26:  # extensible: the format proper stands further down
        tag = int.from_bytes(body[24:26], "little")
    dtype = _DTYPES.get((tag, bits))
    if dtype is None or not _is_usable(rate, channels):
        raise FileFormatError(
            "expected a WAV of 16- or 32-bit integers or 32-bit floats on standard input, "
            f"got format {tag} with {bits} bits, {channels} channels, {rate} Hz"
        )
    return PcmFormat(rate, channels, dtype)


def wav_header(sample_rate: int, channels: int) -> bytes:
    """Return the header of a 16-bit WAV of unknown length."""
    width = 2 * channels
    pcm = struct.pack("<HHIIHH", 1, channels, sample_rate, sample_rate * width, width, 16)
    size = struct.pack("<I", _UNKNOWN_SIZE)
    return b"RIFF" + size + b"WAVE" + b"fmt " + struct.pack("<I", len(pcm)) + pcm + b"data" + size


def parse_raw(text: str) -> PcmFormat:
    """Return the format that `RATE` or `RATE:CHANNELS` names; raise InputError for others."""
    rate, _, channels = text.partition(":")
    try:
        pcm = PcmFormat(int(rate), int(channels or 1))
    except ValueError:
        pcm = None
    if pcm is None or not _is_usable(pcm.sample_rate, pcm.channels):
        raise InputError(
            f"expected --raw RATE or RATE:CHANNELS, such as 16000 or 48000:2, got {text!r}"
        )
    return pcm


def _is_usable(sample_rate: int, channels: int) -> bool:
    return _MIN_RATE <= sample_rate <= _MAX_RATE and 1 <= channels <= _MAX_CHANNELS


def _read_exactly(source: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, or fewer where the pipe ends.

    They are asked for in pieces: the size may be wrong, and memory for it is not taken on trust.
    """
    pieces = []
    while size and (piece := source.read(min(size, _CHUNK))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
