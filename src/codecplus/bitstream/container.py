"""Codes in a .dacp file: written as a stream, read block by block. Knows blocks and checksums,
nothing of the model.
"""

import io
from array import array
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import BinaryIO

import numpy as np

from codecplus.bitstream.blocks import MISSING, decode_block, encode_block
from codecplus.bitstream.header import (
    MAX_COUNTS_SIZE,
    MAX_HEADER_SIZE,
    RECOVERY_ADVICE,
    Header,
    StreamInfo,
    bound_blocks,
    complete,
    counts_from_bytes,
    counts_to_bytes,
    info_from_bytes,
    info_to_bytes,
    samples_held,
)
from codecplus.bitstream.packing import pack_codes, unpack_codes
from codecplus.bitstream.predictors import EntropyModel
from codecplus.bitstream.recovery import Damage, SectionSearch
from codecplus.bitstream.sections import CHECKSUM_SIZE, SIZE_SIZE, SectionLayout, size_field
from codecplus.errors import FileFormatError, InputError, ModelMismatchError


class Writer:
    """Writes one stream to `file` (binary, buffered), front to back without seeking; holds one
    block in memory. Nothing is written before the first block is full or the stream is closed.

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
        _check_entropy_model(entropy, info)
        self.info = info
        self._entropy = entropy
        self._file = file
        self._bounded_info = bound_blocks(info)
        shape = (self._bounded_info.frames_per_block, info.channels, info.num_codebooks)
        self._pending = np.empty(shape, np.int16)  # (T, C, K): in the order of packed codes
        self._num_pending = 0
        self._num_blocks = 0
        self._closed = False
        self._layout: SectionLayout | None = None  # None until the first section is written

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
            if self._num_pending == len(self._pending):  # a short block, and more than it holds
                self.info = self._bounded_info
            self._write_full_block()
            room = len(self._pending) - self._num_pending
            fitting = frames[:room]
            frames = frames[room:]
            self._pending[self._num_pending : self._num_pending + len(fitting)] = fitting
            self._num_pending += len(fitting)
            self._write_full_block()

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

    def _write_full_block(self) -> None:
        """Write what is pending if it is a full block of the stream as it is known by now."""
        if self._num_pending < self.info.frames_per_block:
            return
        self._write_section(b"")
        self._num_blocks += 1
        self._num_pending = 0

    def _write_section(self, counts: bytes) -> None:
        if self._layout is None:  # only now it is known whether blocks need a length of their own
            head = info_to_bytes(self.info)
            self._layout = SectionLayout(self.info, head)
            self._file.write(head)
        body = self._pending_block() + counts
        self._file.write(body + self._layout.checksum(self._num_blocks, body))

    def _pending_block(self) -> bytes:
        codes = self._pending[: self._num_pending]  # (T, C, K)
        if self.info.entropy_model is None:
            return pack_codes(codes.reshape(-1), self.info.bits_per_code)
        block = b""
        if len(codes):
            block = encode_block(np.moveaxis(codes, 0, -1), self.info.codebook_size, self._entropy)
        return len(block).to_bytes(SIZE_SIZE, "big") + block

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

    Args:
        file: open for reading.
        entropy_models: entropy models by their identity, of which a file may need one.
        recover: read on where the file is damaged: `damage` tells the frames that are gone, and
            their codes are -1. The whole file is read on opening.
    """

    header: Header
    damage: Damage
    """What recovery could not read."""

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
        self._info, head_size = info_from_bytes(head)
        self._layout = SectionLayout(self._info, head[:head_size])
        self.damage = Damage(seconds_per_frame=self._info.hop_length / self._info.sample_rate)
        # Where sections start, by their number, unless that can be computed.
        self._starts: array | dict[int, int] | None = None
        if recover:
            self._recover(head[:head_size])
        else:
            self._open()

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the codes of frames `start` up to, not including, `stop` (default: the end).

        Returns int16 (channels, codebooks, stop - start), -1 for codebooks that a frame has not,
        and reads only the blocks these frames lie in. Raises InputError if not 0 <= start <= stop
        <= frames, FileFormatError if one of the blocks is damaged, and ModelMismatchError if they
        need an entropy model that is not there.
        """
        stop = self._checked_stop(start, stop)
        codes = np.empty((self.header.channels, self.header.num_codebooks, stop - start), np.int16)
        position = 0
        for block in self._pieces(start, stop):
            codes[..., position : position + block.shape[-1]] = block
            position += block.shape[-1]
        return codes

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yield the codes of these frames, one block after the other: int16 (channels, codebooks,
        frames of the block).

        Takes the arguments of `read` and raises its errors, on reaching the block in question.
        """
        for block in self._pieces(start, self._checked_stop(start, stop)):
            yield np.ascontiguousarray(block)

    def _checked_stop(self, start: int, stop: int | None) -> int:
        num_frames = self.header.num_frames
        stop = num_frames if stop is None else stop
        if not 0 <= start <= stop <= num_frames:
            raise InputError(
                f"expected 0 <= start <= stop <= {num_frames} frames, got start={start}, "
                f"stop={stop}"
            )
        return stop

    def _pieces(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield what lies from `start` to `stop` of each block, not copied."""
        length = self.header.frames_per_block
        while start < stop:
            index = start // length
            first = index * length  # frame of the block
            end = min(stop, first + length)
            yield self._block(index)[..., start - first : end - first]
            start = end

    # ---- opening

    def _open(self) -> None:
        """Read the counts, and check that the sections fill the file before anything is allocated
        on its word.
        """
        self._set_header(*self._counts())
        if self._layout.packed:
            end = self._layout.packed_start(self._num_full) + self._packed_size(self._last_length)
        else:
            self._starts, end = self._sections()
        end += self._counts_size + CHECKSUM_SIZE
        if self._size != end:
            raise FileFormatError(
                f"expected {end} bytes from the length at the end of the file, got {self._size}; "
                f"it is cut short, damaged or followed by something else: {RECOVERY_ADVICE}"
            )
        self._body(self._num_full)

    def _counts(self) -> tuple[Header, int]:
        """Return the whole header, of which the end of the file has the counts, and their size."""
        size = max(0, self._size - self._layout.head_size)
        size = min(size, MAX_COUNTS_SIZE + CHECKSUM_SIZE)
        end = self._read_at(self._size - size, size)
        return counts_from_bytes(self._info, end[:-CHECKSUM_SIZE])

    def _set_header(self, header: Header, counts_size: int) -> None:
        self.header = header
        self._counts_size = counts_size
        self._num_full, self._last_length = divmod(header.num_frames, header.frames_per_block)

    def _sections(self) -> tuple[array, int]:
        """Return where the entropy-coded sections start, and where the last one's codes end."""
        starts = array("Q")
        position = self._layout.head_size
        for _ in range(self._num_full + 1):
            if starts:
                position += CHECKSUM_SIZE
            starts.append(position)
            position += size_field(self._read_at(position, SIZE_SIZE))
            if position > self._size:
                return starts, self._size + 1
        return starts, position

    def _recover(self, head: bytes) -> None:
        """Find every whole section, wherever it is, and the spans of frames between them."""
        found = SectionSearch(self._layout, head, self._size, self._read_at).run()
        starts = found.starts
        if not starts and found.last_start is None:
            raise FileFormatError(
                "expected at least one whole block or the end of the file, got neither; "
                "fetch it again"
            )
        if found.counts is not None:
            header = complete(self._info, found.counts.num_samples, found.counts.num_frames)
            self._set_header(header, found.counts.size)
        else:  # the blocks that are there tell how long the stream is at least
            num_frames = (max(starts) + 1) * self._info.frames_per_block
            header = complete(self._info, samples_held(self._info, num_frames), num_frames)
            self._set_header(header, 0)
        if found.last_start is not None:
            starts[self._num_full] = found.last_start
        self._starts = starts
        extra_bytes = self._size - found.end if found.last_start is not None else 0
        self.damage = Damage(
            lost=tuple(self._spans_without(starts)),
            seconds_per_frame=header.hop_length / header.sample_rate,
            end_missing=found.counts is None,
            extra_bytes=extra_bytes,
        )

    def _spans_without(self, starts: dict[int, int]) -> list[tuple[int, int]]:
        """Return the spans of frames of blocks that have no start, neighbours as one span."""
        length = self._info.frames_per_block
        spans: list[tuple[int, int]] = []
        next_index = 0
        stop = self._num_full + (self._last_length > 0)
        for index in (*sorted(starts), stop):
            if index > next_index:
                end = min(index * length, self.header.num_frames)
                spans.append((next_index * length, end))
            next_index = index + 1
        return spans

    # ---- single sections

    def _block(self, index: int) -> np.ndarray:
        """Return the codes (C, K, T) of a block, `MISSING` if it is lost."""
        header = self.header
        length = header.frames_per_block if index < self._num_full else self._last_length
        shape = (header.channels, header.num_codebooks, length)
        if isinstance(self._starts, dict) and index not in self._starts:
            return np.full(shape, MISSING, np.int16)
        body = self._body(index)
        if header.entropy_model is not None:
            entropy = self._entropy_model(header.entropy_model)
            return decode_block(body[SIZE_SIZE:], shape, header.codebook_size, entropy)
        codes = unpack_codes(body, length * header.codes_per_frame, header.bits_per_code)
        codes = codes.reshape(length, header.channels, header.num_codebooks)
        return np.moveaxis(codes, 0, -1)

    def _entropy_model(self, identity: bytes) -> EntropyModel | None:
        """Return the entropy model of that identity, none if the stream does without one."""
        if not identity:
            return None
        header = self.header
        entropy = self._entropy_models.get(identity)
        if entropy is None or not entropy.fits(header.num_codebooks, header.codebook_size):
            known = ", ".join(sorted(model.hex() for model in self._entropy_models)) or "none"
            raise ModelMismatchError(
                f"expected the entropy model {identity.hex()}, which the file was written with, "
                f"got {known}; it belongs beside the weights of the model that made the file"
            )
        return entropy

    def _body(self, index: int) -> bytes:
        """Return the body of a section without its counts, its checksum checked."""
        if self._starts is None:
            start = self._layout.packed_start(index)
        else:
            start = self._starts[index]
        last = index == self._num_full
        if self._layout.packed:
            size = self._packed_size(self._last_length if last else self._info.frames_per_block)
        else:
            size = size_field(self._read_at(start, SIZE_SIZE))
        counts_size = self._counts_size if last else 0
        data = self._read_at(start, size + counts_size + CHECKSUM_SIZE)
        body = data[:-CHECKSUM_SIZE]
        stored = data[-CHECKSUM_SIZE:]
        computed = self._layout.checksum(index, body)
        if computed != stored:
            raise FileFormatError(
                f"expected block {index} or the header to match checksum {stored.hex()}, "
                f"got {computed.hex()}; the file is damaged: {RECOVERY_ADVICE}"
            )
        return body[:size]

    def _packed_size(self, frames: int) -> int:
        return self._info.codes_size(frames)

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
    """Return a whole .dacp file of codes (channels, codebooks, frames).

    Takes the arguments of `Writer` and its methods, and raises their errors.
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

    `entropy_models` are entropy models by their identity. Raises FileFormatError if the file is
    damaged anywhere, ModelMismatchError if it needs an entropy model that is not there.
    """
    reader = Reader(io.BytesIO(data), entropy_models)
    return reader.header, reader.read()


def _check_entropy_model(entropy: EntropyModel | None, info: StreamInfo) -> None:
    named = (info.entropy_model or b"").hex()
    got = entropy.identity.hex() if entropy is not None else ""
    if named != got:
        raise InputError(
            f"expected the entropy model that the stream names ({named or 'none'}), "
            f"got {got or 'none'}"
        )
    if entropy is not None and not entropy.fits(info.num_codebooks, info.codebook_size):
        raise InputError(
            f"expected an entropy model of at least {info.num_codebooks} codebooks of "
            f"{info.codebook_size}, got one of {entropy.num_codebooks} of {entropy.codebook_size}"
        )


def _checked(codes: np.ndarray, info: StreamInfo) -> np.ndarray:
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu":
        raise InputError(f"expected integer codes, got {codes.dtype}")
    if codes.ndim != 3 or codes.shape[:2] != (info.channels, info.num_codebooks):
        raise InputError(
            f"expected codes of shape ({info.channels}, {info.num_codebooks}, frames), got "
            f"{codes.shape}; "
            "the stream says (channels, num_codebooks, frames)"
        )
    if not codes.size:
        return codes
    lowest = MISSING if info.entropy_model is not None else 0
    if not (codes.min() >= lowest and codes.max() < info.codebook_size):
        raise InputError(
            f"expected codes from 0 to {info.codebook_size - 1}, got {codes.min()} to "
            f"{codes.max()}; "
            "codebook_size must be that of the model"
        )
    there = codes >= 0
    if not there[:, 0].all() or (there[:, 1:] & ~there[:, :-1]).any():
        raise InputError(
            "expected -1 only for the finest codebooks of a frame, and never for its first one"
        )
    return codes
