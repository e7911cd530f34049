"""Compares the size that the header of an audio file states with the file. Decodes nothing.

libsndfile reads a file that was cut short as if it were whole: it counts the samples that are
there. A file of unknown length was not cut short: a program that writes to a pipe cannot go back,
and leaves 0, all ones, or the largest size it knows in the header.
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from codecplus.audio.formats import HEADER_BYTES, container_of
from codecplus.errors import FileFormatError

_MOST_CHUNKS = 10_000
_ID3V1_BYTES = 128
_TAIL_BYTES = 1 << 17  # two Ogg pages are shorter
_RIFF_TAIL = bytes.fromhex("2e91cf11a5d628db04c10000")  # of W64's name of RIFF
_VOC_MAGIC = b"Creative Voice File\x1a"
# MATLAB 4 begins with a matrix of one number, the rate.
_MAT4_LITTLE = struct.pack("<4I", 0, 1, 1, 0)
_MAT4_BIG = struct.pack(">4I", 1000, 1, 1, 0)
_MAT4_BYTES = (8, 4, 4, 2, 2, 1)  # of a number, by the tens of its type
_W64_DATA = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")


class Samples(NamedTuple):
    """The part of a file that holds the samples, by its header.

    Attributes:
        start: the first byte.
        size: in bytes; None if the header leaves it open, and they reach to the end.
        repair: bytes, by position, of a header that states the size.
    """

    start: int
    size: int | None
    repair: dict[int, bytes]


def check_size(file: BinaryIO, name: str) -> dict[int, bytes]:
    """Compare the size that a header says with the file's.

    Args:
        file: open for reading; its position is left at 0.
        name: of the file, for messages.

    Returns:
        Bytes by position that must stand in the header instead, so that a library that cannot read
        an open length reads all there is; mostly none.

    Raises:
        FileFormatError: for a file that is shorter than it says.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        samples = _find_samples(file, size)
    except (struct.error, ValueError, IndexError, ArithmeticError):
        return {}  # a damaged header: its reader says so
    finally:
        file.seek(0)
    if samples is None:
        return {}
    if samples.size is None:
        return samples.repair
    there = max(0, size - samples.start)
    if samples.size > there:
        raise FileFormatError(
            f"{name} is truncated: its header says {samples.size} bytes of audio, {there} are "
            "there; fetch it again, or keep what is there with ffmpeg -i FILE whole.wav"
        )
    return {}


def _find_samples(file: BinaryIO, size: int) -> Samples | None:
    start = file.read(HEADER_BYTES)
    if start == _VOC_MAGIC[:HEADER_BYTES]:
        return _voc(file, size)
    if start[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and start[8:12] == b"WAVE":
        return _riff(file, size, ">" if start[:4] == b"RIFX" else "<")
    if start[:4] == b"riff" and start[4:16] == _RIFF_TAIL:
        return _w64(file, size)
    if start[:4] == b"FORM":
        return _iff(file, size)
    if start[:4] in (b".snd", b"dns."):
        return _au(start, size, ">" if start[:4] == b".snd" else "<")
    if start[:4] == b"caff":
        return _caf(file, size)
    if start[:7] == b"NIST_1A":
        return _nist(file)
    if start[:4] == b"OggS":
        return _ogg(file, size)
    if start[:4] == b"2BIT":
        return _avr(file)
    if start[:2] == b"\1\4":
        return _mpc2k(file)
    if start == b"ALawSoundFile**\0":
        return _wve(file)
    if start[:16] in (_MAT4_LITTLE, _MAT4_BIG):
        return _mat4(file, size, "<" if start[:16] == _MAT4_LITTLE else ">")
    if start[:2] == b"\xf0\x7e":
        return _sds(file)
    if start[:3] == b"ID3" or start[:1] == b"\xff":
        return _mp3(file, size)
    container = container_of(start)
    if container == "mp4":
        return _mp4(file, size)
    if container == "matroska":
        return _matroska(file, size)
    return None


# ---- RIFF and its kin: chunks of a name, a size, and as many bytes


def _chunks(
    file: BinaryIO, position: int, size: int, head: struct.Struct, even: int
) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, the start and the size of each chunk of a file of `size` bytes."""
    for _ in range(_MOST_CHUNKS):
        file.seek(position)
        header = file.read(head.size)
        if len(header) < head.size:
            return
        name, length = head.unpack(header)
        yield name, position + head.size, length
        position += head.size + length + (-length) % even
        if length < 0 or position > size:
            return


def _is_open(length: int) -> bool:
    """Return whether 32 bits say no length: SoX writes 2³¹ − 4096, arecord 2³¹, others near 2³²."""
    return 2**31 - 4096 <= length <= 2**31 + 64 or length >= 2**32 - 4096


def _riff(file: BinaryIO, size: int, order: str) -> Samples | None:
    head = struct.Struct(order + "4sI")
    long_size = None  # position of the 64-bit sizes of RF64
    for name, start, length in _chunks(file, 12, size, head, 2):
        if name == b"ds64":
            long_size = start
        if name != b"data":
            continue
        there = size - start
        if long_size is not None and length == 2**32 - 1:
            file.seek(long_size + 8)
            length = struct.unpack("<q", file.read(8))[0]
            if length > 0:
                return Samples(start, length, {})
            return Samples(start, None, {long_size: struct.pack("<QQ", size - 8, there)})
        if _is_open(length):
            return Samples(start, None, {})
        if length == 0 and there > 0 and not _ends_well(file, start, size, head, 2):
            sizes = {4: size - 8, start - 4: there}
            return Samples(
                start, None, {at: struct.pack(order + "I", value) for at, value in sizes.items()}
            )
        return Samples(start, length, {})
    return None


def _ends_well(file: BinaryIO, position: int, size: int, head: struct.Struct, even: int) -> bool:
    """Return whether chunks follow from here that end where the file ends: no samples are among
    them.
    """
    end = position
    for name, start, length in _chunks(file, position, size, head, even):
        if not name.isascii():
            return False
        end = start + length
    return size - 1 <= end <= size


def _w64(file: BinaryIO, size: int) -> Samples | None:
    head = struct.Struct("<16sq")  # the size counts the 24 bytes of name and size
    position = 40
    for _ in range(_MOST_CHUNKS):
        file.seek(position)
        name, length = head.unpack(file.read(head.size))
        if name == _W64_DATA:
            start = position + head.size
            if length <= head.size or length == 2**63 - 1:
                return Samples(start, None, {})
            return Samples(start, length - head.size, {})
        position += max(head.size, length + (-length) % 8)
        if position > size:
            return None
    return None


def _iff(file: BinaryIO, size: int) -> Samples | None:
    """AIFF, AIFC and 8SVX."""
    head = struct.Struct(">4sI")
    common = None
    frame_bytes = 0
    for name, start, length in _chunks(file, 12, size, head, 2):
        if name == b"COMM":
            common = start
            file.seek(start)
            channels, _, bits = struct.unpack(">hIh", file.read(8))
            frame_bytes = channels * ((bits + 7) // 8)
        if name not in (b"SSND", b"BODY"):
            continue
        there = size - start
        if _is_open(length) or 0 <= length - 0x7F000000 <= 64:  # the latter is SoX's
            return Samples(start, None, {})
        if length not in (0, 8) or there <= 8:
            return Samples(start, length, {})
        repair = {4: struct.pack(">I", size - 8), start - 4: struct.pack(">I", there)}
        if common is not None and frame_bytes > 0:
            repair[common + 2] = struct.pack(">I", (there - 8) // frame_bytes)
        return Samples(start, None, repair)
    return None


def _au(start: bytes, size: int, order: str) -> Samples:
    first, length = struct.unpack(order + "II", start[4:12])
    if length == 0 and size > first:
        return Samples(first, None, {8: b"\xff\xff\xff\xff"})
    if _is_open(length):
        return Samples(first, None, {})
    return Samples(first, length, {})


def _caf(file: BinaryIO, size: int) -> Samples | None:
    head = struct.Struct(">4sq")
    for name, start, length in _chunks(file, 8, size, head, 1):
        if name == b"data":
            if length < 0:
                return Samples(start, None, {start - 8: struct.pack(">q", size - start)})
            return Samples(start, length, {})
    return None


# ---- others


def _nist(file: BinaryIO) -> Samples | None:
    """SPHERE: lines of names and values, in a header whose size is the second line."""
    file.seek(0)
    lines = file.read(1024).decode("ascii", "replace").splitlines()
    fields = {}
    for line in lines[2:]:
        parts = line.split()
        if len(parts) == 3 and parts[1].startswith("-") and parts[2].isdigit():
            fields[parts[0]] = int(parts[2])  # libsndfile writes sample_n_bytes of µ-law as a text
    known = ("sample_count", "sample_n_bytes", "channel_count")
    if not lines[1].strip().isdigit() or not all(name in fields for name in known):
        return None
    if any("shorten" in line for line in lines):
        return None  # the samples are compressed
    length = 1
    for name in known:
        length *= fields[name]
    return Samples(int(lines[1]), length, {})


def _avr(file: BinaryIO) -> Samples:
    """Audio Visual Research: a header of 128 bytes, and the samples behind it."""
    file.seek(12)
    stereo, bits = struct.unpack(">HH", file.read(4))
    file.seek(26)
    length = struct.unpack(">I", file.read(4))[0]
    return Samples(128, length * (1 + (stereo & 1)) * ((bits + 7) // 8), {})


def _mpc2k(file: BinaryIO) -> Samples:
    """Akai MPC 2000: a header of 42 bytes, and 16-bit samples behind it."""
    header = file.read(42 - HEADER_BYTES)
    stereo, length = header[21 - HEADER_BYTES], struct.unpack("<I", header[14:18])[0]
    return Samples(42, 2 * length * (1 + (stereo & 1)), {})


def _wve(file: BinaryIO) -> Samples:
    """Psion: a header of 32 bytes, and samples of one byte behind it."""
    file.seek(18)
    return Samples(32, struct.unpack(">I", file.read(4))[0], {})


def _mat4(file: BinaryIO, size: int, order: str) -> Samples | None:
    """MATLAB 4: matrices of a type, a size, a name and their numbers. Returns the last."""
    head = struct.Struct(order + "5I")
    position = 0
    last = None
    for _ in range(_MOST_CHUNKS):
        file.seek(position)
        header = file.read(head.size)
        if len(header) < head.size:
            break
        kind, rows, columns, imaginary, name_size = head.unpack(header)
        length = rows * columns * _MAT4_BYTES[kind // 10 % 10] * (1 + (imaginary & 1))
        last = Samples(position + head.size + name_size, length, {})
        position = last.start + length
        if position > size:
            break
    return last


def _sds(file: BinaryIO) -> Samples:
    """MIDI sample dump: a header of 21 bytes, and packets of 127 with 120 bytes of samples."""
    file.seek(6)
    bits = file.read(1)[0]
    file.seek(10)
    low, middle, high = file.read(3)
    length = low | middle << 7 | high << 14
    samples_per_packet = 120 // ((bits + 6) // 7)
    return Samples(21, 127 * -(-length // samples_per_packet), {})


def _mp3(file: BinaryIO, size: int) -> Samples | None:
    """An MP3 whose first frame is an index that says its size: `Xing`, or `Info` of LAME."""
    start = mp3_start(file)
    file.seek(start)
    frame = file.read(64)
    if frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return None
    is_mono = frame[3] >> 6 == 3
    if frame[1] & 8:  # MPEG 1
        index = 21 if is_mono else 36
    else:
        index = 13 if is_mono else 21
    flags = struct.unpack(">I", frame[index + 4 : index + 8])[0]
    if frame[index : index + 4] not in (b"Xing", b"Info") or not flags & 2:
        return None
    place = index + 8 + 4 * (flags & 1)  # behind the number of frames
    length = struct.unpack(">I", frame[place : place + 4])[0]
    if start + length - size <= _ID3V1_BYTES:  # a tag that is gone may have been counted
        return None
    return Samples(start, length, {})


def mp3_start(file: BinaryIO) -> int:
    """Return where the first frame of an MP3 is: behind its tag, if it has one."""
    file.seek(0)
    head = file.read(10)
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    size = 0
    for byte in head[6:]:  # 7 bits a byte
        size = size << 7 | byte & 0x7F
    return 10 + size


def _voc(file: BinaryIO, size: int) -> Samples | None:
    """Creative Voice: blocks of a kind, a size of three bytes, and as many bytes; the last has no
    size. A program that writes to a pipe leaves a size of 0 for its sound.
    """
    file.seek(len(_VOC_MAGIC))
    position = struct.unpack("<H", file.read(2))[0]
    last = None
    for _ in range(_MOST_CHUNKS):
        file.seek(position)
        head = file.read(4)
        if len(head) < 4 or head[0] == 0:
            break
        length = int.from_bytes(head[1:], "little")
        if length == 0 and head[0] in (1, 9):
            return None
        last = Samples(position + 4, length, {})
        position += 4 + length
        if position > size:
            break
    return last


def _ogg(file: BinaryIO, size: int) -> Samples | None:
    """Return the last page of an Ogg file: its header says how long it is."""
    offset = max(0, size - _TAIL_BYTES)
    file.seek(offset)
    tail = file.read(_TAIL_BYTES)
    page = tail.rfind(b"OggS")
    if page < 0:
        return None
    header = tail[page:]
    if len(header) < 27 or len(header) < 27 + header[26]:
        return Samples(offset + page, 27 + 255, {})  # the header of the page is cut
    first = 27 + header[26]
    length = sum(header[27:first])
    rest = header[first + length :]
    if rest and b"OggS".startswith(rest):
        return Samples(offset + page + first, length + 27, {})
    return Samples(offset + page + first, length, {})


def _mp4(file: BinaryIO, size: int) -> Samples | None:
    """Return the last of the boxes that an MP4 file is made of."""
    position = 0
    last = None
    for _ in range(_MOST_CHUNKS):
        file.seek(position)
        header = file.read(16)
        if len(header) < 8:
            break
        if not header[4:8].isascii() or b"\0" in header[4:8]:  # no box, but something behind them
            break
        start = position + 8
        length = struct.unpack(">I", header[:4])[0] - 8
        if length == -7:  # 1 stands for a size of 64 bits
            start = position + 16
            length = struct.unpack(">Q", header[8:16])[0] - 16
        if length < 0:  # 0 stands for all the rest
            return None
        last = Samples(start, length, {})
        position = start + length
        if position > size:
            break
    return last


def _matroska(file: BinaryIO, size: int) -> Samples | None:
    """Return the segment of a Matroska or WebM file, which holds everything but its first bytes."""
    file.seek(4)
    length = _ebml_size(file)
    if length is None or length > size:
        return None
    file.seek(length, os.SEEK_CUR)
    if file.read(4) != b"\x18\x53\x80\x67":
        return None
    length = _ebml_size(file)
    return Samples(file.tell(), length, {})


def _ebml_size(file: BinaryIO) -> int | None:
    """Read a number of EBML: its first bit that is set says how many bytes it has."""
    first = file.read(1)[0]
    count = 8 - first.bit_length()
    data = bytes([first & ((0x80 >> count) - 1)]) + file.read(count)
    value = int.from_bytes(data, "big")
    if value == (1 << (7 * (count + 1))) - 1:  # all ones: unknown, as live recordings have it
        return None
    return value
