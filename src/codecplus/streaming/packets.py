"""Codes on a line that loses packets: framed, numbered, checked; and a decoder that plays on.

    packet = magic (1 byte, da), version and flags (1), number (4), frames (1), [header], codes,
    crc32 (4) header = channels (1), codebooks (1), bits per code (1), size n (1), n bytes of the
    application's

Integers are big-endian. `number` is that of the packet's first frame, modulo 2^32, so a receiver
knows from any packet how many frames it missed. No frames mean the end of the stream. Codes are
packed as in a .dacp file: for each frame, channel and codebook its bits, the most significant
first, and zero bits to fill the last byte. The CRC-32 covers the header, whether the packet carries
it or not, and then all of the packet before it: packets of other streams fail.
"""

import zlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from codecplus.bitstream.packing import pack_codes, packed_size, unpack_codes
from codecplus.errors import FileFormatError, InputError
from codecplus.streaming.steps import DecoderSteps
from codecplus.streaming.stream import DecoderStream

if TYPE_CHECKING:
    from codecplus.modeling_dac import DacNetwork

_MAGIC = 0xDA
_VERSION = 1
_WITH_HEADER = 1  # the one flag
_FIXED_SIZE = 7  # bytes before the header
_CRC_SIZE = 4
_NUMBERS = 1 << 32
MAX_PACKET_FRAMES = 255

# Frames over which a repeated frame fades to silence: 80 ms at 50 frames per second, about a
# phoneme.
_FADE = 4
# Frames that may be concealed before any was received, 5 s at 50 frames per second. Beyond it, no
# more frames are concealed than were received: a few packets could ask for hours.
_FREE_FRAMES = 250


class PacketGapError(FileFormatError):
    """A good packet that is further ahead than a reader's `max_gap`."""


@dataclass(frozen=True, kw_only=True)
class PacketFormat:
    """The facts that a receiver must know of a stream before its first packet.

    Raises InputError for values that no packet can carry.
    """

    num_codebooks: int
    """Codebooks used, 1 to 255."""
    codebook_size: int
    """Entries of a codebook, a power of two from 2 to 32768."""
    channels: int = 1
    """Channels, 1 to 255."""
    header: bytes = b""
    """A message of the application to the receiver, 0 to 255 bytes: which model, which rate."""

    def __post_init__(self) -> None:
        counts = (self.channels, self.num_codebooks)
        if not all(1 <= count <= 255 for count in counts) or len(self.header) > 255:
            raise InputError(
                "expected 1 to 255 channels and codebooks and a header of at most 255 bytes, "
                f"got {counts} and {len(self.header)} bytes"
            )
        if not 2 <= self.codebook_size <= 1 << 15 or self.codebook_size & (self.codebook_size - 1):
            raise InputError(
                "expected a codebook_size that is a power of two up to 32768, "
                f"got {self.codebook_size}"
            )

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return self.codebook_size.bit_length() - 1

    def codes_size(self, frames: int) -> int:
        """Return the number of bytes that the codes of some frames take."""
        return packed_size(frames * self.channels * self.num_codebooks, self.bits)

    def to_bytes(self) -> bytes:
        """Return the header as it stands in a packet."""
        return bytes([self.channels, self.num_codebooks, self.bits, len(self.header)]) + self.header


@dataclass(frozen=True)
class Received:
    """The codes of one packet, and the frames that were missing before it."""

    codes: np.ndarray
    """int16 (C, K, t); t is 0 at the end of the stream."""
    lost: int
    """Frames that are missing between the last packet and this one."""


class PacketWriter:
    """Packs the codes of one stream, frame after frame; the first packet carries the header.

    >>> import numpy as np
    >>> writer = PacketWriter(PacketFormat(num_codebooks=12, codebook_size=1024))
    >>> packets = [writer.pack(np.zeros((1, 12, 1), np.int16)) for _ in range(3)]
    >>> [len(packet) for packet in packets]  # 15 bytes of codes each
    [30, 26, 26]
    """

    def __init__(self, format: PacketFormat):
        self.format = format
        self.frames = 0
        """Frames packed so far."""

    def pack(self, codes: np.ndarray, with_header: bool = False) -> bytes:
        """Pack codes, integers (C, K, t) with t from 1 to 255; `with_header` lets receivers join
        here.

        Raises InputError, before the frames are counted, for another shape or codes that do not
        fit.
        """
        form = self.format
        codes = np.asarray(codes)
        frames = codes.shape[-1] if codes.ndim else 0
        has_shape = codes.shape == (form.channels, form.num_codebooks, frames)
        if not has_shape or not 1 <= frames <= MAX_PACKET_FRAMES:
            raise InputError(
                f"expected codes of shape ({form.channels}, {form.num_codebooks}, "
                f"1 to {MAX_PACKET_FRAMES}), got {codes.shape}"
            )
        if codes.dtype.kind not in "iu" or codes.min() < 0 or codes.max() >= form.codebook_size:
            raise InputError(
                f"expected integer codes from 0 to {form.codebook_size - 1}, got others"
            )
        body = pack_codes(np.moveaxis(codes, -1, 0).reshape(-1), form.bits)
        packet = self._packet(frames, body, with_header)
        self.frames += frames
        return packet

    def end(self) -> bytes:
        """Return the packet that ends the stream; a receiver then knows of losses before it."""
        return self._packet(0, b"", with_header=False)

    def _packet(self, frames: int, body: bytes, with_header: bool) -> bytes:
        header = self.format.to_bytes()
        flags = 0
        carried = b""
        if with_header or self.frames == 0:
            flags = _WITH_HEADER
            carried = header
        number = (self.frames % _NUMBERS).to_bytes(4, "big")
        packet = bytes([_MAGIC, _VERSION << 4 | flags]) + number + bytes([frames]) + carried + body
        return packet + _crc(header, packet)


class PacketReader:
    """Reads the packets of one stream as they come in: some lost, some twice, some late.

    It joins the stream at the first packet with a header. Packets may come in any order; one that
    is behind the place already reached is dropped.

    Args:
        max_gap: frames that may be missing between two packets, so that no packet can ask for hours
            of concealment.
    """

    def __init__(self, max_gap: int = 3000):
        self.max_gap = max_gap
        self.format: PacketFormat | None = None
        """The format that the header gave, once there was one."""
        self.ended = False
        """Whether the end of the stream has come."""
        self.lost = 0
        """Frames found missing so far."""
        self.late = 0
        """Packets dropped because they came twice or too late."""
        self._next: int | None = None  # number of the frame that should come next

    def read(self, packet: bytes) -> Received | None:
        """Return the codes of a packet; None if there is no header yet, or it is late.

        Raises FileFormatError, and forgets the packet, if it is damaged or of another stream, and
        its child PacketGapError if it is further ahead than `max_gap`; see `rejoin`.
        """
        parsed = self._parse(bytes(packet))
        if parsed is None:
            return None
        form, number, frames, body = parsed
        ahead = self._frames_ahead(number)
        if ahead > self.max_gap:
            raise PacketGapError(
                f"expected a packet at most {self.max_gap} frames ahead, "
                f"got one {ahead} frames ahead; "
                "rejoin() goes on from the next packet, and its clock"
            )
        self.format = form
        if ahead < 0 and ahead + frames <= 0:
            self.late += 1
            return None
        codes = unpack_codes(body, frames * form.channels * form.num_codebooks, form.bits)
        codes = codes.reshape(frames, form.channels, form.num_codebooks)
        codes = np.moveaxis(codes, 0, -1)  # (C, K, t)
        lost = max(0, ahead)
        already_known = max(0, -ahead)
        self.ended = not frames
        self.lost += lost
        self._next = (number + frames) % _NUMBERS
        return Received(np.ascontiguousarray(codes[..., already_known:]), lost)

    def _frames_ahead(self, number: int) -> int:
        """Return how many frames this one is ahead of the next one expected; negative if late."""
        if self._next is None:
            return 0
        half = _NUMBERS // 2
        return (number - self._next + half) % _NUMBERS - half

    def skip(self, frames: int = 1) -> None:
        """Give up the next frames, because they are due and have not come; their packets will be
        late.
        """
        if self._next is not None:
            self._next = (self._next + frames) % _NUMBERS
            self.lost += frames

    def rejoin(self) -> None:
        """Go on from the next packet, however far ahead or behind it is."""
        self._next = None

    def _parse(self, packet: bytes) -> tuple[PacketFormat, int, int, bytes] | None:
        """Format, number of the first frame, frames and codes of a packet; None while its format is
        unknown.
        """
        is_long_enough = len(packet) >= _FIXED_SIZE + _CRC_SIZE
        if not is_long_enough or packet[0] != _MAGIC or packet[1] >> 4 != _VERSION:
            raise FileFormatError(
                f"expected a packet of version {_VERSION}, got {packet[:2].hex(' ') or 'nothing'}"
            )
        if packet[1] & 15 & ~_WITH_HEADER:
            raise FileFormatError(f"expected flags of at most {_WITH_HEADER}, got {packet[1] & 15}")
        number = int.from_bytes(packet[2:6], "big")
        frames = packet[6]
        start = _FIXED_SIZE
        form = self.format
        if packet[1] & _WITH_HEADER:
            form, start = _format_from_bytes(packet)
        if form is None:
            return None
        size = start + form.codes_size(frames) + _CRC_SIZE
        if size != len(packet) or _crc(form.to_bytes(), packet[:-_CRC_SIZE]) != packet[-_CRC_SIZE:]:
            raise FileFormatError(
                f"expected a packet of {size} bytes with a good checksum, got {len(packet)}; "
                "it is damaged, or of another stream"
            )
        if self.format not in (None, form):
            raise FileFormatError(
                "expected packets of one stream, got the header of another; "
                "read it with a new reader"
            )
        return form, number, frames, packet[start:-_CRC_SIZE]


class ConcealingDecoder:
    """A `DecoderStream` that plays on: it repeats the last frame for lost ones and fades it out.

    The frame after a gap is faded in. As many samples come out as for a stream without losses, and
    from `decoder_reach[0]` frames after a gap they are the same.

    A stream conceals at most as many frames as it was given, and 250 more. Lost frames beyond that
    are left out: playback is earlier from there on, and `skipped` counts these frames.

    Args:
        model: a model, or a `StreamingDecoder` of it, as for `DecoderStream`.
        batch: rows, channels for instance, that share their losses; None for one without a batch
            axis.
    """

    def __init__(self, model: "DacNetwork | DecoderSteps", batch: int | None = None):
        self.stream = DecoderStream(model, batch)
        self.hop_length = self.stream.network.hop_length
        self._last: np.ndarray | None = None  # codes of the last frame (..., K, 1)
        self._gain = 1.0  # where the fade stands after the last frame pushed
        # Gains, first and last, of the frames still in the decoder.
        self._fades: deque[tuple[float, float]] = deque()
        self.skipped = 0
        """Lost frames that were left out instead of concealed."""
        self._concealable = _FREE_FRAMES

    def push(self, codes: Any, lost: int = 0) -> np.ndarray:
        """Take codes (K, t) or (B, K, t) behind `lost` frames that never came; give the samples
        (S,) or (B, S) ready.

        Raises InputError as `DecoderStream.push` does.
        """
        codes = np.asarray(codes)
        pieces = [self.conceal(lost)] if lost else []
        if codes.ndim and codes.shape[-1]:
            fades = [(self._gain, 1.0)] + [(1.0, 1.0)] * (codes.shape[-1] - 1)
            self._concealable += codes.shape[-1]
            pieces.append(self._decode(codes, fades))
            self._last = codes[..., -1:].copy()
        return np.concatenate([*pieces, self._silence(0)], axis=-1)

    def conceal(self, frames: int = 1) -> np.ndarray:
        """Play on for some frames without codes; call it when a frame is due and has not come."""
        concealed = min(frames, self._concealable)
        self.skipped += frames - concealed
        self._concealable -= concealed
        frames = concealed
        pieces = [self._silence(0)]
        for done in range(frames):
            # Once nothing can be heard of the frames in the decoder, silence is as good and free.
            if self._last is None or (self._gain == 0 and not any(map(any, self._fades))):
                self._gain = 0.0
                pieces.append(self._silence(frames - done))
                break
            faded = max(0.0, self._gain - 1 / _FADE)
            pieces.append(self._decode(self._last, [(self._gain, faded)]))
        return np.concatenate(pieces, axis=-1)

    def flush(self) -> np.ndarray:
        """End the stream: give the samples left. The next push begins anew."""
        samples = self._faded(self.stream.flush())
        self._last = None
        self._gain = 1.0
        self._concealable = _FREE_FRAMES
        return samples

    def _decode(self, codes: np.ndarray, fades: list[tuple[float, float]]) -> np.ndarray:
        samples = self.stream.push(codes)
        self._fades += fades
        self._gain = fades[-1][1]
        return self._faded(samples)

    def _faded(self, samples: np.ndarray) -> np.ndarray:
        """Return samples (..., S) of the frames that left the decoder, under their gains."""
        for start in range(0, samples.shape[-1], self.hop_length):
            first, last = self._fades.popleft()
            if (first, last) != (1.0, 1.0):
                samples[..., start : start + self.hop_length] *= np.linspace(
                    first, last, self.hop_length, dtype=np.float32
                )
        return samples

    def _silence(self, frames: int) -> np.ndarray:
        shape = (frames * self.hop_length,)
        if self.stream.batch is not None:
            shape = (self.stream.batch, *shape)
        return np.zeros(shape, np.float32)


def _format_from_bytes(packet: bytes) -> tuple[PacketFormat, int]:
    """Return the header of a packet that has one, and where the codes begin."""
    start = _FIXED_SIZE + 4
    if len(packet) < start:
        raise FileFormatError("expected a whole header in the packet, got a part; it is damaged")
    channels, codebooks, bits, size = packet[_FIXED_SIZE:start]
    header = packet[start : start + size]
    try:
        form = PacketFormat(
            num_codebooks=codebooks, codebook_size=1 << bits, channels=channels, header=header
        )
    except InputError as error:
        raise FileFormatError(f"the packet's header is damaged: {error}") from error
    return form, start + size


def _crc(header: bytes, packet: bytes) -> bytes:
    return zlib.crc32(packet, zlib.crc32(header)).to_bytes(_CRC_SIZE, "big")
