"""Codes in a .dacp file: written as a stream, read block by block. Knows blocks and checksums,
nothing of the model.
"""

import io
import zlib
from array import array
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import BinaryIO

import numpy as np

from codecplus.bitstream.blocks import MISSING, decode_block, encode_block, least_size
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
from codecplus.bitstream.predictors import EntropyModel
from codecplus.errors import FileFormatError, InputError, ModelMismatchError

_CRC_SIZE = 4
_SIZE_SIZE = 3  # bytes that say how long an entropy-coded block is
_MAX_SKIPPED = 16  # blocks in a row that recovery can find missing between two good ones
_MAX_LOST = 4  # blocks that a damaged file may claim beyond those that its bytes could hold
_MAX_SUMMED = 512  # bytes that recovery sums up at most, per byte of the file: a file made to be slow is given up


class Writer:
    """Writes one stream to `file` (binary, buffered), front to back without seeking; holds one
    block in memory.

    Leaving a `with` block closes the stream; an exception leaves it unfinished, and readers refuse
    it. The file itself stays open: it is the caller's.

    Args:
        file: open for writing.
        info: what is known of the stream; `info.entropy_model` says how codes are coded.
        entropy: the entropy model of that identity, if there is one.

    Raises InputError if the entropy model is not the one that `info` names, or cannot predict such
    codes.

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

    def __init__(self, file: BinaryIO, info: StreamInfo, entropy: EntropyModel | None = None):
        self.info = info
        self._entropy = entropy
        if (info.entropy_model or None) != (entropy.identity if entropy else None):
            raise InputError(
                f"expected the entropy model that the stream names ({(info.entropy_model or b'').hex() or 'none'}), "
                f"got {entropy.identity.hex() if entropy else 'none'}"
            )
        if entropy and not entropy.fits(info.num_codebooks, info.codebook_size):
            raise InputError(
                f"expected an entropy model of at least {info.num_codebooks} codebooks of {info.codebook_size}, "
                f"got one of {entropy.num_codebooks} of {entropy.codebook_size}"
            )
        self._file = file
        self._seed = zlib.crc32(info_to_bytes(info))
        self._pending = np.empty(
            (info.frames_per_block, info.channels, info.num_codebooks), np.int16
        )
        self._num_pending = 0
        self._num_blocks = 0
        self._closed = False
        file.write(info_to_bytes(info))

    def write(self, codes: np.ndarray) -> None:
        """Append codes, integers (channels, codebooks, frames) with any number of frames, none
        included.

        In an entropy-coded stream a frame may have fewer codebooks; -1 stands for the finer ones
        that it lacks.

        Raises InputError, before anything of them is written, if the shape, the type or a value is
        wrong.
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

        num_samples: exact length of the original audio in samples per channel at the original rate;
        by default all that the frames hold. Raises InputError if the stream is closed already or
        the frames hold fewer samples.
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
        codes = self._pending[: self._num_pending]  # (T, C, K)
        if self.info.entropy_model is None:
            block = pack_codes(codes.reshape(-1), self.info.bits_per_code)
        elif len(codes):
            block = encode_block(np.moveaxis(codes, 0, -1), self.info.codebook_size, self._entropy)
        else:
            block = b""
        size = b"" if self.info.entropy_model is None else len(block).to_bytes(_SIZE_SIZE, "big")
        body = size + block + counts
        self._file.write(body + _crc(self._seed, self._num_blocks, body))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ):
        if kind is None and not self._closed:
            self.close()


class Reader:
    """Reads the stream that fills `file`, a seekable binary file; holds one block in memory.

    Opening reads the header and the end of the file and checks both, and the sizes of all blocks.
    Any damage is a FileFormatError, at the latest when the block that has it is read; an unseekable
    file is an InputError.

    Args: file: open for reading. entropy_models: entropy models by their identity, of which a file
        may need one. recover: read on where the file is damaged: `lost` tells the frames that are
        gone, and their codes are -1. The
            whole file is read on opening.
    """

    header: Header
    lost: list[tuple[int, int]]
    """Spans of frames, the first and the one behind the last, that recovery could not read."""

    def __init__(
        self,
        file: BinaryIO,
        entropy_models: Mapping[bytes, EntropyModel] | None = None,
        *,
        recover: bool = False,
    ):
        if not file.seekable():
            raise InputError(
                "expected a file that can seek, got a pipe; read it into io.BytesIO first"
            )
        self._file = file
        self._entropy_models = entropy_models or {}
        self._size = file.seek(0, io.SEEK_END)
        head = self._read_at(0, min(self._size, MAX_HEADER_SIZE))
        self._info, self._head_size = info_from_bytes(head)
        self._seed = zlib.crc32(head[: self._head_size])
        self.lost = []
        self._blocks: array | dict[int, int] | None = (
            None  # where sections start, unless that can be computed
        )
        if recover:
            self._survey()
        else:
            self._open()

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the codes of frames `start` up to, not including, `stop` (default: the end).

        Returns int16 (channels, codebooks, stop - start), -1 for codebooks that a frame has not,
        and reads only the blocks these frames lie in. Raises InputError if not 0 <= start <= stop
        <= frames, FileFormatError if one of the blocks is damaged, and ModelMismatchError if they
        need an entropy model that is not there.
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
            codes[:, :, low - start : high - start] = self._block(index)[
                :, :, low - first : high - first
            ]
        return codes

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yield the codes of these frames, one block after the other: int16 (channels, codebooks,
        frames of the block).

        Arguments and errors as of `read`, on reaching the block in question.
        """
        stop = self.header.num_frames if stop is None else stop
        if not 0 <= start <= stop <= self.header.num_frames:
            self.read(start, stop)  # which says what is wrong
        length, first = self.header.frames_per_block, start
        while first < stop:
            last = min(stop, first // length * length + length)
            yield np.ascontiguousarray(self.read(first, last))
            first = last

    # ---- where sections are

    def _open(self) -> None:
        """Read the counts, and check that the sections fill the file before anything is allocated
        on its word.
        """
        self._set_header(self._counts())
        if self._info.entropy_model is None:
            end = self._section_start(self._num_full) + self._packed_size(self._last_length)
        else:
            self._blocks, end = self._walk()
        end += self._counts_size + _CRC_SIZE
        if self._size != end:
            raise FileFormatError(
                f"expected {end} bytes from the length at the end of the file, got {self._size}; "
                "it is cut short, damaged or followed by something else: fetch it again"
            )
        self._body(self._num_full)

    def _counts(self) -> tuple[Header, int]:
        end_size = min(max(0, self._size - self._head_size), MAX_COUNTS_SIZE + _CRC_SIZE)
        end = self._read_at(self._size - end_size, end_size)
        return counts_from_bytes(self._info, end[:-_CRC_SIZE])

    def _set_header(self, counts: tuple[Header, int]) -> None:
        self.header, self._counts_size = counts
        self._num_full, self._last_length = divmod(
            self.header.num_frames, self._info.frames_per_block
        )

    def _walk(self) -> tuple[array, int]:
        """Where the entropy-coded sections start, and where the codes of the last one end."""
        starts, position = array("Q"), self._head_size
        for _ in range(self._num_full + 1):
            if starts:
                position += _CRC_SIZE
            starts.append(position)
            position += _SIZE_SIZE + int.from_bytes(self._read_at(position, _SIZE_SIZE), "big")
            if position > self._size:
                break
        return starts, position if len(starts) == self._num_full + 1 else self._size + 1

    def _survey(self) -> None:
        """Find every section that is whole, wherever it is, and the spans of frames between them."""
        try:
            counts = self._counts()
            wanted = counts[0].num_frames // self._info.frames_per_block
        except FileFormatError:
            counts, wanted = None, 0
        found, last = self._whole_sections(None if counts is None else (wanted, counts[1]))
        length = self._info.frames_per_block
        if last is not None and counts is not None:
            found[wanted] = last
            self._set_header(counts)
        elif found:  # the end is gone: what was found tells how much there is
            frames = (max(found) + 1) * length
            self._set_header((complete(self._info, samples_held(self._info, frames), frames), 0))
        else:
            raise FileFormatError(
                "expected at least one whole block or the end of the file, got neither"
            )
        self._blocks = found
        for index in range(self._num_full + (self._last_length > 0)):
            if index not in found:
                span = (index * length, min((index + 1) * length, self.header.num_frames))
                if self.lost and self.lost[-1][1] == span[0]:
                    span = (self.lost.pop()[0], span[1])
                self.lost.append(span)

    def _whole_sections(self, end: tuple[int, int] | None) -> tuple[dict[int, int], int | None]:
        """Starts of the full blocks whose checksum is right, by number, and of the last section if
        it is whole.

        `end` is the number and the size of the counts that the last section should have.
        """
        data_end, position, index = self._size, self._head_size, 0
        found: dict[int, int] = {}
        least, largest = self._block_bounds()
        left = _MAX_SUMMED * data_end
        window = b""
        window_start = 0
        while position < data_end and left > 0:
            # What a file says of blocks that are gone is believed as far as its size allows, or it
            # could ask for any.
            most = (position - self._head_size) // (least + _CRC_SIZE) + _MAX_LOST
            if (
                not window_start
                <= position
                <= position + largest + 64
                <= window_start + len(window)
            ):
                window_start, size = position, min(1 << 20, data_end - position)
                size = max(size, min(largest + 64, data_end - position))
                window = self._read_at(position, size)
            at = position - window_start
            if self._info.entropy_model is None:
                size = self._packed_size(self._info.frames_per_block)
            else:
                size = _SIZE_SIZE + int.from_bytes(window[at : at + _SIZE_SIZE], "big")
            if end is not None:
                rest = data_end - position - end[1] - _CRC_SIZE
                whole = rest == size if self._info.entropy_model is not None else 0 <= rest < size
                if whole and index <= end[0] <= most:
                    body = window[at : at + rest + end[1]]
                    left -= len(body)
                    if (
                        _crc(self._seed, end[0], body)
                        == window[at + len(body) : at + len(body) + _CRC_SIZE]
                    ):
                        return found, position
            body, crc = window[at : at + size], window[at + size : at + size + _CRC_SIZE]
            number = None
            if least <= size <= largest and len(crc) == _CRC_SIZE:
                numbers = range(index, min(index + _MAX_SKIPPED, most + 1))
                left -= len(numbers) * size
                number = next((i for i in numbers if _crc(self._seed, i, body) == crc), None)
            if number is not None:
                found[number] = position
                index = number + 1
                position += size + _CRC_SIZE
            elif self._info.entropy_model is None:
                index += 1
                position += size + _CRC_SIZE
            else:
                position += (
                    1  # the size may be what is damaged: look for the next block byte by byte
                )
        return found, None

    # ---- single sections

    def _block(self, index: int) -> np.ndarray:
        header, length = self.header, self._length(index)
        shape = (header.channels, header.num_codebooks, length)
        if isinstance(self._blocks, dict) and index not in self._blocks:
            return np.full(shape, MISSING, np.int16)
        body = self._body(index)
        if header.entropy_model is not None:
            return decode_block(
                body[_SIZE_SIZE:], shape, header.codebook_size, self._entropy_model()
            )
        codes = unpack_codes(body, length * header.codes_per_frame, header.bits_per_code)
        return np.moveaxis(
            codes.reshape(length, header.channels, header.num_codebooks), 0, -1
        )  # (C, K, t)

    def _entropy_model(self) -> EntropyModel | None:
        identity = self.header.entropy_model
        if not identity:
            return None
        entropy = self._entropy_models.get(identity)
        if entropy is None or not entropy.fits(
            self.header.num_codebooks, self.header.codebook_size
        ):
            have = ", ".join(sorted(known.hex() for known in self._entropy_models)) or "none"
            raise ModelMismatchError(
                f"expected the entropy model {identity.hex()}, which the file was written with, got {have}; "
                "it belongs beside the weights of the model that made the file"
            )
        return entropy

    def _body(self, index: int) -> bytes:
        """The body of a section without its counts, checked."""
        counts = self._counts_size if index == self._num_full else 0
        start = self._section_start(index)
        if self._info.entropy_model is None:
            size = self._packed_size(self._length(index))
        else:
            size = _SIZE_SIZE + int.from_bytes(self._read_at(start, _SIZE_SIZE), "big")
        data = self._read_at(start, size + counts + _CRC_SIZE)
        body, crc = data[:-_CRC_SIZE], data[-_CRC_SIZE:]
        if _crc(self._seed, index, body) != crc:
            raise FileFormatError(
                f"expected block {index} or the header to match checksum {crc.hex()}, "
                f"got {_crc(self._seed, index, body).hex()}; the file is damaged: fetch it again"
            )
        return body[:size]

    def _length(self, index: int) -> int:
        return self.header.frames_per_block if index < self._num_full else self._last_length

    def _block_bounds(self) -> tuple[int, int]:
        """The fewest and the most bytes of a full block, its size field included."""
        packed = self._packed_size(self._info.frames_per_block)
        if self._info.entropy_model is None:
            return packed, packed
        codes = self._info.frames_per_block * self._info.codes_per_frame
        return _SIZE_SIZE + least_size(codes), packed + 64 + self._info.channels

    def _packed_size(self, frames: int) -> int:
        return self._info.codes_size(frames)

    def _section_start(self, index: int) -> int:
        if self._blocks is not None:
            return self._blocks[index]
        return self._head_size + index * (
            self._packed_size(self._info.frames_per_block) + _CRC_SIZE
        )

    def _read_at(self, position: int, size: int) -> bytes:
        self._file.seek(position)
        data = self._file.read(size)
        if len(data) != size:
            raise FileFormatError(
                f"expected {size} bytes at position {position}, got {len(data)}; fetch it again"
            )
        return data


def pack(
    codes: np.ndarray,
    info: StreamInfo,
    *,
    num_samples: int | None = None,
    entropy: EntropyModel | None = None,
) -> bytes:
    """Return a whole .dacp file of codes (channels, codebooks, frames); arguments and errors as of
    `Writer`.
    """
    file = io.BytesIO()
    writer = Writer(file, info, entropy)
    writer.write(codes)
    writer.close(num_samples=num_samples)
    return file.getvalue()


def unpack(
    data: bytes, entropy_models: Mapping[bytes, EntropyModel] | None = None
) -> tuple[Header, np.ndarray]:
    """Return the header and all codes, int16 (channels, codebooks, frames), of a whole .dacp file.

    `entropy_models` as of `Reader`. Raises FileFormatError if it is damaged anywhere.
    """
    reader = Reader(io.BytesIO(data), entropy_models)
    return reader.header, reader.read()


def _crc(seed: int, index: int, body: bytes) -> bytes:
    # The header and the block's place are part of the sum: no block of another file or another
    # place passes.
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
    if not codes.size:
        return codes
    lowest = MISSING if info.entropy_model is not None else 0
    if not (codes.min() >= lowest and codes.max() < info.codebook_size):
        raise InputError(
            f"expected codes from 0 to {info.codebook_size - 1}, got {codes.min()} to {codes.max()}; "
            "codebook_size must be that of the model"
        )
    there = codes >= 0
    if not there[:, 0].all() or (there[:, 1:] & ~there[:, :-1]).any():
        raise InputError(
            "expected -1 only for the finest codebooks of a frame, and never for its first one"
        )
    return codes
