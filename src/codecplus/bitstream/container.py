"""Codes in a .dacp file: written as a stream, read block by block. Knows blocks and checksums, nothing of the model."""

import io
import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO

import numpy as np

from codecplus.bitstream.header import (
    MAX_COUNTS_SIZE,
    MAX_HEADER_SIZE,
    Header,
    StreamInfo,
    complete,
    counts_from_bytes,
    counts_to_bytes,
    info_from_bytes,
    info_to_bytes,
    samples_held,
)
from codecplus.bitstream.packing import pack_codes, unpack_codes
from codecplus.errors import FileFormatError, InputError

_CRC_SIZE = 4


class Writer:
    """Writes one stream to `file` (binary, buffered), front to back without seeking; holds one block in memory.

    Leaving a `with` block closes the stream; an exception leaves it unfinished, and readers refuse it. The file itself
    stays open: it is the caller's.

    >>> import io
    >>> import numpy as np
    >>> info = StreamInfo(
    ...     fingerprint=bytes(16), sample_rate=16000, original_sample_rate=16000,
    ...     channels=1, num_codebooks=2, codebook_size=1024, hop_length=320,
    ... )
    >>> file = io.BytesIO()
    >>> with Writer(file, info) as writer:
    ...     writer.write(np.zeros((1, 2, 50), dtype=np.int16))
    ...     header = writer.close(num_samples=15990)
    >>> header.num_frames, len(file.getvalue())
    (50, 157)
    """

    def __init__(self, file: BinaryIO, info: StreamInfo):
        self.info = info
        self._file = file
        self._seed = zlib.crc32(info_to_bytes(info))
        self._pending = np.empty((info.frames_per_block, info.channels, info.num_codebooks), np.uint16)
        self._num_pending = 0
        self._num_blocks = 0
        self._closed = False
        file.write(info_to_bytes(info))

    def write(self, codes: np.ndarray) -> None:
        """Append codes, integers (channels, codebooks, frames) with any number of frames, none included.

        Raises InputError, before anything of them is written, if the shape, the type or a value is wrong.
        """
        if self._closed:
            raise InputError("expected an open stream, got one that is closed; make a new Writer")
        frames = np.moveaxis(_checked(codes, self.info), -1, 0)  # (T, C, K)
        while len(frames):
            room = self.info.frames_per_block - self._num_pending
            taken, frames = frames[:room], frames[room:]
            self._pending[self._num_pending : self._num_pending + len(taken)] = taken
            self._num_pending += len(taken)
            if self._num_pending == self.info.frames_per_block:
                self._write_section(b"")
                self._num_blocks += 1
                self._num_pending = 0

    def close(self, *, num_samples: int | None = None) -> Header:
        """Finish the stream and return its header.

        num_samples: exact length of the original audio in samples per channel at the original rate; by default all
        that the frames hold.
        Raises InputError if the stream is closed already or the frames hold fewer samples.
        """
        if self._closed:
            raise InputError("expected an open stream, got one that is closed; close it once")
        num_frames = self._num_blocks * self.info.frames_per_block + self._num_pending
        if num_samples is None:
            num_samples = samples_held(self.info, num_frames)
        header = complete(self.info, num_samples, num_frames)
        self._write_section(counts_to_bytes(header))
        self._closed = True
        return header

    def _write_section(self, counts: bytes) -> None:
        codes = self._pending[: self._num_pending].reshape(-1)
        body = pack_codes(codes, self.info.bits_per_code) + counts
        self._file.write(body + _crc(self._seed, self._num_blocks, body))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if kind is None and not self._closed:
            self.close()


class Reader:
    """Reads the stream that fills `file`, a seekable binary file; holds one block in memory.

    Opening reads the header and the end of the file and checks both. Any damage is a FileFormatError, at the latest
    when the block that has it is read; an unseekable file is an InputError.
    """

    header: Header

    def __init__(self, file: BinaryIO):
        if not file.seekable():
            raise InputError("expected a file that can seek, got a pipe; read it into io.BytesIO first")
        self._file = file
        size = file.seek(0, io.SEEK_END)
        head = self._read_at(0, min(size, MAX_HEADER_SIZE))
        info, self._head_size = info_from_bytes(head)
        self._seed = zlib.crc32(head[: self._head_size])
        end_size = min(max(0, size - self._head_size), MAX_COUNTS_SIZE + _CRC_SIZE)
        end = self._read_at(size - end_size, end_size)
        self.header, self._counts_size = counts_from_bytes(info, end[:-_CRC_SIZE])
        self._num_full, self._last_length = divmod(self.header.num_frames, info.frames_per_block)
        expected = self._section_start(self._num_full) + self._body_size(self._num_full) + _CRC_SIZE
        if size != expected:  # before anything is allocated on the word of the file
            raise FileFormatError(
                f"expected {expected} bytes from the length at the end of the file, got {size}; "
                "it is cut short, damaged or followed by something else: fetch it again"
            )
        self._body(self._num_full)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the codes of frames `start` up to, not including, `stop` (default: the end).

        Returns int16 (channels, codebooks, stop - start) and reads only the blocks these frames lie in.
        Raises InputError if not 0 <= start <= stop <= frames, and FileFormatError if one of the blocks is damaged.
        """
        stop = self.header.num_frames if stop is None else stop
        if not 0 <= start <= stop <= self.header.num_frames:
            raise InputError(
                f"expected 0 <= start <= stop <= {self.header.num_frames} frames, got start={start}, stop={stop}"
            )
        codes = np.empty((self.header.channels, self.header.num_codebooks, stop - start), np.int16)
        length = self.header.frames_per_block
        for index in range(start // length, -(-stop // length) if stop > start else 0):
            first = index * length
            low, high = max(start, first), min(stop, first + length)
            codes[:, :, low - start : high - start] = self._block(index)[:, :, low - first : high - first]
        return codes

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the codes of one block after the other, int16 (channels, codebooks, frames of the block).

        Raises FileFormatError on reaching a damaged block.
        """
        for index in range(self._num_full + (self._last_length > 0)):
            yield np.ascontiguousarray(self._block(index))

    def _block(self, index: int) -> np.ndarray:
        header, length = self.header, self._length(index)
        codes = unpack_codes(self._body(index), length * header.codes_per_frame, header.bits_per_code)
        return np.moveaxis(codes.reshape(length, header.channels, header.num_codebooks), 0, -1)  # (C, K, t)

    def _body(self, index: int) -> bytes:
        size = self._body_size(index)
        data = self._read_at(self._section_start(index), size + _CRC_SIZE)
        if _crc(self._seed, index, data[:size]) != data[size:]:
            raise FileFormatError(
                f"expected block {index} or the header to match checksum {data[size:].hex()}, "
                f"got {_crc(self._seed, index, data[:size]).hex()}; the file is damaged: fetch it again"
            )
        return data[:size]

    def _length(self, index: int) -> int:
        return self.header.frames_per_block if index < self._num_full else self._last_length

    def _body_size(self, index: int) -> int:
        return self.header.codes_size(self._length(index)) + (self._counts_size if index == self._num_full else 0)

    def _section_start(self, index: int) -> int:
        return self._head_size + index * (self.header.codes_size(self.header.frames_per_block) + _CRC_SIZE)

    def _read_at(self, position: int, size: int) -> bytes:
        self._file.seek(position)
        data = self._file.read(size)
        if len(data) != size:
            raise FileFormatError(f"expected {size} bytes at position {position}, got {len(data)}; fetch it again")
        return data


def pack(codes: np.ndarray, info: StreamInfo, *, num_samples: int | None = None) -> bytes:
    """Return a whole .dacp file of codes (channels, codebooks, frames); arguments and errors as of `Writer`."""
    file = io.BytesIO()
    writer = Writer(file, info)
    writer.write(codes)
    writer.close(num_samples=num_samples)
    return file.getvalue()


def unpack(data: bytes) -> tuple[Header, np.ndarray]:
    """Return the header and all codes, int16 (channels, codebooks, frames), of a whole .dacp file.

    Raises FileFormatError if it is damaged anywhere.
    """
    reader = Reader(io.BytesIO(data))
    return reader.header, reader.read()


def _crc(seed: int, index: int, body: bytes) -> bytes:
    # The header and the block's place are part of the sum: no block of another file or another place passes.
    return zlib.crc32(body, zlib.crc32(index.to_bytes(8, "big"), seed)).to_bytes(_CRC_SIZE, "big")


def _checked(codes: np.ndarray, info: StreamInfo) -> np.ndarray:
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu":
        raise InputError(f"expected integer codes, got {codes.dtype}")
    if codes.ndim != 3 or codes.shape[:2] != (info.channels, info.num_codebooks):
        raise InputError(
            f"expected codes of shape ({info.channels}, {info.num_codebooks}, frames), got {codes.shape}; "
            "the stream says (channels, num_codebooks, frames)"
        )
    if codes.size and not (codes.min() >= 0 and codes.max() < info.codebook_size):
        raise InputError(
            f"expected codes from 0 to {info.codebook_size - 1}, got {codes.min()} to {codes.max()}; "
            "codebook_size must be that of the model"
        )
    return codes
