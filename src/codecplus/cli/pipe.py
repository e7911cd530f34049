"""`codecplus encode -` and `decode -`: audio in at one end of a pipe and out at the other, frame by
frame.

What travels between the two is a row of packets (`streaming.packets`), each behind its length as a
big-endian u16. The header of the stream names the model and the rate: 8 bytes of fingerprint, then
the sample rate as a big-endian u32.
"""

import struct
import warnings
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from codecplus.audio.resampling import Resampler
from codecplus.codec import Codec
from codecplus.errors import FileFormatError, InputError
from codecplus.streaming import ConcealingDecoder, PacketFormat, PacketReader, PacketWriter

_CHUNK = 1 << 14  # bytes asked of a pipe at once; what is there comes sooner
_HEADER_EVERY = 50  # frames after which the header is repeated, so that a listener can join
_UNKNOWN_SIZE = 0xFFFFFFFF  # what a WAV header says whose writer cannot go back
_MAX_CHUNK = 1 << 20  # bytes of a WAV chunk that is skipped


class PcmFormat(NamedTuple):
    """Interleaved samples as they come down a pipe."""

    sample_rate: int
    channels: int
    dtype: str = "<i2"


def encode_pipe(
    codec: Codec,
    source: BinaryIO,
    sink: BinaryIO,
    *,
    raw: PcmFormat | None = None,
    bitrate: float | None = None,
) -> None:
    """Encode audio from a pipe as it comes, WAV or, with `raw`, samples without a header; write
    packets.

    Raises InputError for audio that cannot be used, FileFormatError for a WAV that is none.
    """
    form = raw or read_wav_header(source)
    channels = form.channels
    n_quantizers = None if bitrate is None else codec.n_quantizers_for(bitrate, channels)
    stream = codec.encoder_stream(n_quantizers=n_quantizers, batch=channels)
    header = codec.fingerprint[:8] + struct.pack(">I", form.sample_rate)
    codebooks, size = stream.n_quantizers, codec.model.config.codebook_size
    writer = PacketWriter(
        PacketFormat(num_codebooks=codebooks, codebook_size=size, channels=channels, header=header)
    )
    resampler = Resampler(form.sample_rate, codec.model_sample_rate, channels)

    def send(codes: np.ndarray) -> None:
        for frame in range(codes.shape[-1]):
            packet = writer.pack(
                codes[..., frame : frame + 1], with_header=writer.frames % _HEADER_EVERY == 0
            )
            sink.write(len(packet).to_bytes(2, "big") + packet)
        sink.flush()

    for samples in read_samples(source, form):
        send(stream.push(resampler.push(samples)))
    send(stream.push(resampler.flush()))
    send(stream.flush())
    end = writer.end()
    sink.write(len(end).to_bytes(2, "big") + end)
    sink.flush()


def decode_pipe(
    find_codec: Callable[[bytes], Codec], source: BinaryIO, sink: BinaryIO, *, raw: bool = False
) -> None:
    """Decode packets from a pipe as they come; write 16-bit WAV or, with `raw`, samples without a
    header.

    `find_codec` gives the codec of a fingerprint. A damaged packet is a lost one: its frames are
    concealed. Samples beyond full scale are clipped, and a warning at the end says how many.

    Raises FileFormatError for a stream that holds no packet.
    """
    reader, player, resampler, clipped, lost = PacketReader(), None, None, 0, 0

    def play(samples: np.ndarray, last: bool = False) -> None:
        nonlocal clipped
        assert resampler is not None  # made with the player, before anything is played
        audio = resampler.push(samples) if samples.size else np.zeros((len(samples), 0), np.float32)
        if last:
            audio = np.concatenate([audio, resampler.flush()], axis=-1)
        clipped += int((np.abs(audio) > 1).sum())
        sink.write((audio.clip(-1, 32767 / 32768).T * 32768).round().astype("<i2").tobytes())
        sink.flush()

    for packet in read_packets(source):
        try:
            received = reader.read(packet)
        except FileFormatError:
            continue  # the next good packet says how many frames are missing
        if received is None:
            continue
        if player is None:
            form = reader.format
            if form is None or len(form.header) != 12:
                raise FileFormatError(
                    "expected a stream of codecplus encode -, got packets of another application"
                )
            codec, rate = find_codec(form.header[:8]), struct.unpack(">I", form.header[8:])[0]
            player = ConcealingDecoder(
                codec.decoder_stream(batch=form.channels).network, batch=form.channels
            )
            resampler = Resampler(codec.model_sample_rate, rate, form.channels)
            if not raw:
                sink.write(wav_header(rate, form.channels))
        lost += received.lost
        play(player.push(received.codes, lost=received.lost))
        if reader.ended:
            break
    if player is None:
        raise FileFormatError(
            "expected a stream of codecplus encode -, got none; was it encoded with -o - ?"
        )
    play(player.flush(), last=True)
    if lost:
        warnings.warn(f"{lost} frames were lost and concealed", stacklevel=2)
    if clipped:
        warnings.warn(f"{clipped} samples were beyond full scale and clipped", stacklevel=2)


def read_packets(source: BinaryIO) -> Iterator[bytes]:
    """The packets of a pipe; one that is cut off at the end is dropped."""
    while len(length := _exactly(source, 2)) == 2:
        size = int.from_bytes(length, "big")
        if len(packet := _exactly(source, size)) < size:
            return
        yield packet


def read_samples(source: BinaryIO, form: PcmFormat) -> Iterator[np.ndarray]:
    """Samples as they come, float32 (channels, n) within ±1, until the pipe is closed."""
    dtype = np.dtype(form.dtype)
    width, rest = dtype.itemsize * form.channels, b""
    read = getattr(source, "read1", source.read)
    while data := read(_CHUNK):
        data = rest + data
        whole = len(data) // width * width
        rest = data[whole:]
        if whole:
            samples = np.frombuffer(data[:whole], dtype).reshape(-1, form.channels).T
            if dtype.kind == "i":
                samples = samples.astype(np.float32) / np.float32(2.0 ** (8 * dtype.itemsize - 1))
            yield np.ascontiguousarray(samples, np.float32)


def read_wav_header(source: BinaryIO) -> PcmFormat:
    """Read a WAV up to its samples, whatever its header says of their number.

    Raises FileFormatError if it is no WAV of 16- or 32-bit integers or 32-bit floats.
    """
    start = _exactly(source, 12)
    if start[:4] != b"RIFF" or start[8:] != b"WAVE":
        raise FileFormatError(
            "expected WAV on standard input; name raw 16-bit samples with --raw RATE"
        )
    form = None
    while len(head := _exactly(source, 8)) == 8:
        name, size = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            if form is None:
                break
            return form
        if size > _MAX_CHUNK:
            break
        body = _exactly(source, size + size % 2)
        if name == b"fmt " and size >= 16:
            form = _wav_format(body)
    raise FileFormatError(
        "expected a whole WAV header on standard input, got one without format or samples"
    )


def _wav_format(body: bytes) -> PcmFormat:
    tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
    if tag == 0xFFFE and len(body) >= 26:  # extensible: the format proper stands further down
        tag = int.from_bytes(body[24:26], "little")
    dtype = {(1, 16): "<i2", (1, 32): "<i4", (3, 32): "<f4"}.get((tag, bits))
    if dtype is None or not 1 <= channels <= 64 or not 4000 <= rate <= 1_000_000:
        raise FileFormatError(
            f"expected a WAV of 16- or 32-bit integers or 32-bit floats on standard input, got format {tag} with "
            f"{bits} bits, {channels} channels, {rate} Hz"
        )
    return PcmFormat(rate, channels, dtype)


def wav_header(sample_rate: int, channels: int) -> bytes:
    """The header of a 16-bit WAV of unknown length."""
    width = 2 * channels
    form = struct.pack("<HHIIHH", 1, channels, sample_rate, sample_rate * width, width, 16)
    size = struct.pack("<I", _UNKNOWN_SIZE)
    return b"RIFF" + size + b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form + b"data" + size


def parse_raw(text: str) -> PcmFormat:
    """`RATE` or `RATE:CHANNELS`; raises InputError for anything else."""
    rate, _, channels = text.partition(":")
    try:
        form = PcmFormat(int(rate), int(channels or 1))
    except ValueError:
        form = PcmFormat(0, 0)
    if not 4000 <= form.sample_rate <= 1_000_000 or not 1 <= form.channels <= 64:
        raise InputError(
            f"expected --raw RATE or RATE:CHANNELS, such as 16000 or 48000:2, got {text!r}"
        )
    return form


def _exactly(source: BinaryIO, size: int) -> bytes:
    """So many bytes, or fewer where the pipe ends; asked for in pieces, since the size is a
    stranger's word.
    """
    pieces = []
    while size and (piece := source.read(min(size, _CHUNK))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
