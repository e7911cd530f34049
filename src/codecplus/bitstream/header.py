"""The header and the counts of a .dacp file, as values and as bytes. Knows nothing of the blocks
between them.
"""

import dataclasses
import operator
import struct
from dataclasses import dataclass
from typing import NamedTuple

from codecplus.bitstream.blocks import MAX_BLOCK_CODES, can_code
from codecplus.bitstream.packing import packed_size
from codecplus.errors import FileFormatError, InputError

MAGIC = b"\xdaC+"
VERSION = 1
PACKED, ENTROPY = 0, 1  # codings
MAX_HEADER_SIZE = 44
MAX_COUNTS_SIZE = 17
RECOVERY_ADVICE = "fetch it again, or decode what is left of it with recover=True (--recover)"

_DEFAULT_BLOCK_BITS = 8 * 4096  # a CRC per 4 KiB costs 0.1 %
_MAX_BLOCK_SECONDS = 10  # that a lost block costs at low rates, unless a block length is named
_MAX_BLOCK_SIZE = 1 << 24  # so that a reader's memory is bounded whatever the file

# Optional fields: present only when they hold anything but the usual value.
_SHORT_FINGERPRINT = 1
_CHANNELS = 2
_ORIGINAL_RATE = 4
_GAIN = 8
_BLOCK_LENGTH = 16
_ENTROPY_MODEL = 32
_KNOWN_FLAGS = {PACKED: 31, ENTROPY: 63}
_ENTROPY_MODEL_SIZE = 4

_EXPLICIT_RATE = 0
_RATES = (
    8000,
    11025,
    12000,
    16000,
    22050,
    24000,
    32000,
    44100,
    48000,
    88200,
    96000,
    176400,
    192000,
)  # codes 1, 2, ...

_LIMITS = {
    "sample_rate": (1, 2**24 - 1),
    "original_sample_rate": (1, 2**24 - 1),
    "channels": (1, 255),
    "num_codebooks": (1, 255),
    "codebook_size": (2, 2**15),
    "hop_length": (1, 2**16 - 1),
    "block_length": (0, 2**24 - 1),
}


@dataclass(frozen=True, kw_only=True)
class StreamInfo:
    """The facts of a stream that are known before its first frame.

    Raises InputError if a field is out of range.
    """

    fingerprint: bytes
    """Names the model that made the codes: 16 bytes, or the first 8 of them to save space."""
    sample_rate: int
    """Rate of the model, Hz."""
    original_sample_rate: int
    """Rate of the audio that was encoded, Hz."""
    channels: int
    """Channels, 1 to 255; every channel has codes of its own."""
    num_codebooks: int
    """Codebooks used, 1 to 255."""
    codebook_size: int
    """Entries of a codebook, a power of two from 2 to 32768."""
    hop_length: int
    """Samples per frame at the model's rate, 1 to 65535."""
    gain: float = 1.0
    """Linear gain applied before encoding, rounded to float32; divide the decoded audio by it."""
    block_length: int = 0
    """Frames per block; 0 means as many as fit in 4 KiB when packed, and at least one.

    A writer shortens the blocks of 0 to 10 s, and names their length in the file.
    """
    entropy_model: bytes | None = None
    """None if codes are packed; else the 4 bytes of `EntropyModel.identity`, b"" without a model.
    """

    def __post_init__(self) -> None:
        _check_fingerprint(self.fingerprint)
        object.__setattr__(self, "fingerprint", bytes(self.fingerprint))
        for name, (low, high) in _LIMITS.items():
            object.__setattr__(self, name, _integer(name, getattr(self, name), low, high))
        if self.codebook_size & (self.codebook_size - 1):
            raise InputError(
                f"expected a codebook_size that is a power of two, got {self.codebook_size}"
            )
        object.__setattr__(self, "gain", _float32_gain(self.gain))
        if self.codes_size(self.frames_per_block) > _MAX_BLOCK_SIZE:
            raise InputError(
                f"expected blocks of at most {_MAX_BLOCK_SIZE} bytes, "
                f"got block_length={self.block_length} "
                f"({self.codes_size(self.frames_per_block)} bytes); leave block_length out for 4 "
                "KiB"
            )
        if self.entropy_model is not None:
            self._check_entropy_coding(self.entropy_model)

    def _check_entropy_coding(self, model: bytes) -> None:
        object.__setattr__(self, "entropy_model", bytes(model))
        if len(model) not in (0, _ENTROPY_MODEL_SIZE):
            raise InputError(
                f"expected an entropy_model of {_ENTROPY_MODEL_SIZE} bytes or none, "
                f"got {len(model)}"
            )
        if not can_code(self.channels, self.num_codebooks, self.codebook_size):
            raise InputError(
                "expected a stream small enough to be entropy-coded, "
                f"got {self.channels} channels of {self.num_codebooks} codebooks of "
                f"{self.codebook_size}; pack it"
            )
        if self.frames_per_block * self.codes_per_frame > MAX_BLOCK_CODES:
            raise InputError(
                f"expected entropy-coded blocks of at most {MAX_BLOCK_CODES} codes, "
                f"got block_length={self.block_length}; leave it out"
            )

    @property
    def bits_per_code(self) -> int:
        """Bits of one code: log2 of the codebook size."""
        return self.codebook_size.bit_length() - 1

    @property
    def codes_per_frame(self) -> int:
        """Codes of one frame: channels times codebooks."""
        return self.channels * self.num_codebooks

    @property
    def frames_per_block(self) -> int:
        """Frames of a full block."""
        return self.block_length or max(
            1, _DEFAULT_BLOCK_BITS // (self.codes_per_frame * self.bits_per_code)
        )

    def codes_size(self, frames: int) -> int:
        """Return the bytes that the codes of so many frames of one block take."""
        return packed_size(frames * self.codes_per_frame, self.bits_per_code)


@dataclass(frozen=True, kw_only=True)
class Header(StreamInfo):
    """The facts of a whole file: the stream and how long it is.

    Raises InputError if a field is out of range, or if the samples are more than the frames hold.
    """

    num_samples: int
    """Exact length of the original audio: samples per channel at the original rate."""
    num_frames: int
    """Frames per channel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_samples", "num_frames"):
            object.__setattr__(self, name, _integer(name, getattr(self, name), 0, 2**63 - 1))
        # One frame of grace: a resampler may round the length down. More would let a tiny file ask
        # for any length.
        if self.num_frames < frames_for(self, self.num_samples) - 1:
            raise InputError(
                f"expected num_samples of at most {samples_held(self, self.num_frames + 1)} for "
                f"{self.num_frames} frames, got {self.num_samples}"
            )


def frames_for(info: StreamInfo, num_samples: int) -> int:
    """Return the frames that `num_samples` samples at the original rate fill, the last one perhaps
    in part.
    """
    return -(-num_samples * info.sample_rate // (info.original_sample_rate * info.hop_length))


def samples_held(info: StreamInfo, num_frames: int) -> int:
    """Return the samples at the original rate that `num_frames` frames hold."""
    return num_frames * info.hop_length * info.original_sample_rate // info.sample_rate


def complete(info: StreamInfo, num_samples: int, num_frames: int) -> Header:
    """Add the counts to `info`; raises InputError as `Header` does."""
    fields = {field.name: getattr(info, field.name) for field in dataclasses.fields(StreamInfo)}
    return Header(**fields, num_samples=num_samples, num_frames=num_frames)


def bound_blocks(info: StreamInfo) -> StreamInfo:
    """Return the info with a block length where default blocks would last longer than 10 s."""
    longest = -(-_MAX_BLOCK_SECONDS * info.sample_rate // info.hop_length)  # frames
    if info.block_length or info.frames_per_block <= longest:
        return info
    return dataclasses.replace(info, block_length=longest)


def info_to_bytes(info: StreamInfo) -> bytes:
    """Return the head of the file: 17 to 44 bytes."""
    rate_code, rate = _rate_to_bytes(info.sample_rate)
    original_code, original_rate = _rate_to_bytes(info.original_sample_rate)
    optional = [
        (_SHORT_FINGERPRINT, len(info.fingerprint) == 8, b""),
        (_CHANNELS, info.channels != 1, bytes([info.channels])),
        (
            _ORIGINAL_RATE,
            info.original_sample_rate != info.sample_rate,
            bytes([original_code]) + original_rate,
        ),
        (_GAIN, info.gain != 1.0, struct.pack(">f", info.gain)),
        (_BLOCK_LENGTH, info.block_length != 0, info.block_length.to_bytes(3, "big")),
        (_ENTROPY_MODEL, bool(info.entropy_model), info.entropy_model or b""),
    ]
    flags = sum(flag for flag, present, _ in optional if present)
    coding = PACKED if info.entropy_model is None else ENTROPY
    head = MAGIC + bytes([VERSION << 4 | coding, flags, rate_code << 4 | info.bits_per_code])
    head += struct.pack(">HB", info.hop_length, info.num_codebooks) + info.fingerprint + rate
    return head + b"".join(field for _, present, field in optional if present)


def info_from_bytes(data: bytes) -> tuple[StreamInfo, int]:
    """Parse the head of a file from its first bytes; return it and its size.

    The head's checksum stands at the end of each block, so the answer is a claim until a block has
    been checked. Raises FileFormatError if it is not a head that this version can read.
    """
    if data[:3] != MAGIC:
        raise FileFormatError(
            f"expected a .dacp file, which starts with the bytes {MAGIC.hex(' ')}, "
            f"got {data[:3].hex(' ') or 'nothing'}; make one with codecplus encode"
        )
    fields = _Fields(data, position=3)
    version, coding = divmod(fields.integer(1), 16)
    if version != VERSION or coding not in _KNOWN_FLAGS:
        raise FileFormatError(
            f"expected version {VERSION} of the format with coding {PACKED} or {ENTROPY}, "
            f"got version {version} with coding {coding}; a newer codecplus may read it"
        )
    flags = fields.integer(1)
    known = _KNOWN_FLAGS[coding]
    if flags & ~known:
        raise FileFormatError(
            f"expected flags of at most {known}, got {flags}; a newer codecplus may read it"
        )
    rate_code, bits = divmod(fields.integer(1), 16)
    hop_length, num_codebooks = fields.integer(2), fields.integer(1)
    fingerprint = fields.take(8 if flags & _SHORT_FINGERPRINT else 16)
    sample_rate = fields.rate(rate_code)
    values = {
        "channels": fields.integer(1) if flags & _CHANNELS else 1,
        "original_sample_rate": fields.rate(fields.integer(1))
        if flags & _ORIGINAL_RATE
        else sample_rate,
        "gain": struct.unpack(">f", fields.take(4))[0] if flags & _GAIN else 1.0,
        "block_length": fields.integer(3) if flags & _BLOCK_LENGTH else 0,
        "entropy_model": fields.take(_ENTROPY_MODEL_SIZE) if flags & _ENTROPY_MODEL else b"",
    }
    if coding == PACKED:
        values["entropy_model"] = None
    try:
        info = StreamInfo(
            fingerprint=fingerprint,
            sample_rate=sample_rate,
            num_codebooks=num_codebooks,
            codebook_size=1 << bits,
            hop_length=hop_length,
            **values,
        )
    except InputError as error:
        raise FileFormatError(
            f"the file's header is damaged: {error}; fetch the file again"
        ) from error
    return info, fields.position


def counts_to_bytes(header: Header) -> bytes:
    """Return the counts that stand before the last checksum: 1 to 17 bytes, read from the end."""
    excess = header.num_frames - frames_for(header, header.num_samples)
    samples_size = (header.num_samples.bit_length() + 7) // 8
    excess_size = (excess.bit_length() // 8 + 1) if excess else 0  # two's complement
    sizes = bytes([samples_size << 4 | excess_size])
    return (
        header.num_samples.to_bytes(samples_size, "big")
        + excess.to_bytes(excess_size, "big", signed=True)
        + sizes
    )


def counts_from_bytes(info: StreamInfo, data: bytes) -> tuple[Header, int]:
    """Parse the counts that end `data`; return the whole header and the size of the counts.

    Raises FileFormatError if they cannot be the counts of this stream.
    """
    counts = parse_counts(info, data)
    if counts is None:
        raise FileFormatError(
            "the end of the file is damaged: it does not give the length of the audio; "
            f"{RECOVERY_ADVICE}"
        )
    try:
        return complete(info, counts.num_samples, counts.num_frames), counts.size
    except InputError as error:
        raise FileFormatError(
            "the end of the file is damaged: the length of the audio that it gives is impossible; "
            f"{RECOVERY_ADVICE}"
        ) from error


class EndCounts(NamedTuple):
    """What stands before the last checksum, unchecked."""

    num_samples: int
    num_frames: int
    size: int
    """Bytes."""


def parse_counts(info: StreamInfo, data: bytes) -> EndCounts | None:
    """Return the counts that end `data`; None if there cannot be any."""
    if not data:
        return None
    samples_size, excess_size = divmod(data[-1], 16)
    size = 1 + samples_size + excess_size
    if max(samples_size, excess_size) > 8 or size > len(data):
        return None
    num_samples = int.from_bytes(data[-size : samples_size - size], "big")
    excess = int.from_bytes(data[-1 - excess_size : -1], "big", signed=True)
    return EndCounts(num_samples, frames_for(info, num_samples) + excess, size)


class _Fields:
    """The fields of a head, taken one after the other."""

    def __init__(self, data: bytes, position: int):
        self.data = data
        self.position = position

    def take(self, size: int) -> bytes:
        field = self.data[self.position : self.position + size]
        if len(field) < size:
            raise FileFormatError(
                f"expected a whole header, got {len(self.data)} bytes; fetch the file again"
            )
        self.position += size
        return field

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def rate(self, code: int) -> int:
        if code > len(_RATES):
            raise FileFormatError(
                f"expected a sample rate code of at most {len(_RATES)}, got {code}; fetch it again"
            )
        return self.integer(3) if code == _EXPLICIT_RATE else _RATES[code - 1]


def _rate_to_bytes(rate: int) -> tuple[int, bytes]:
    if rate in _RATES:
        return _RATES.index(rate) + 1, b""
    return _EXPLICIT_RATE, rate.to_bytes(3, "big")


def _check_fingerprint(value: object) -> None:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise InputError(f"expected a fingerprint of 16 or 8 bytes, got {type(value).__name__}")
    if len(value) not in (8, 16):
        raise InputError(f"expected a fingerprint of 16 or 8 bytes, got {len(value)}")


def _integer(name: str, value: object, low: int, high: int) -> int:
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise InputError(f"expected an integer {name}, got {type(value).__name__}") from None
    if not low <= number <= high:
        raise InputError(f"expected {name} from {low} to {high}, got {number}")
    return number


def _float32_gain(value: float) -> float:
    try:
        gain = struct.unpack("<f", struct.pack("<f", value))[0]
    except (struct.error, OverflowError):
        gain = 0.0
    if not 0.0 < gain < float("inf"):
        raise InputError(f"expected a gain that is a positive, finite float32, got {value!r}")
    return gain
