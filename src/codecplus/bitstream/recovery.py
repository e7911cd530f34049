"""The search for whole sections in a damaged .dacp file. Knows sizes and checksums, nothing of
codes.

A checksum tells which block it belongs to, so that blocks are found wherever they are: behind bytes
that are lost, added or changed.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from codecplus.bitstream.checksums import Unshift, checksums_of_numbers, prefix_sums, unshift
from codecplus.bitstream.header import MAX_COUNTS_SIZE, EndCounts, frames_for, parse_counts
from codecplus.bitstream.sections import CHECKSUM_SIZE, SIZE_SIZE, SectionLayout, size_field

# A block is believed without another behind it if it is so near to where it is expected. Else a few
# bytes of noise in a long file would pass for one, since all blocks are looked for everywhere.
_NEAR = 16  # blocks that may be missing before it, of sizes that are not known
_NEAR_PACKED = 4  # blocks that it may be away from where its number puts it
# Bytes to sum up at most, per byte of the file and in any: a file made to be slow is given up.
_MAX_SUMMED = 512
_MIN_SUMMED = 1 << 24
_COST_OF_A_TRY = 1 << 14  # what looking at one place costs beside, in bytes summed up
_WINDOW_SIZE = 1 << 20  # bytes to look at in one go, at most
_FIRST_WINDOW = 1 << 14  # and at first: damage is mostly small
_MAX_ENDS = 1 << 17  # bytes behind the last block in which the end is looked for
_MAX_NUMBERS = 1 << 20  # blocks that may be missing in one place
_MAX_NAMED = 20  # lost spans that a message names
_MAX_EXCESS = 2  # frames that a resampler may add to or take from those that the samples fill


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What could not be read of a file. It is false if nothing is missing."""

    lost: tuple[tuple[int, int], ...] = ()
    """Spans of frames, the first and the one behind the last, whose codes are gone."""
    seconds_per_frame: float
    """To turn frames into seconds."""
    end_missing: bool = False
    """Whether the end is gone: the recording may have been longer than what was found."""
    extra_bytes: int = 0
    """Bytes behind the end of the stream, which are not part of it. They cost nothing."""

    def __bool__(self) -> bool:
        return bool(self.lost) or self.end_missing

    @property
    def lost_seconds(self) -> tuple[tuple[float, float], ...]:
        """The lost spans in seconds from the start of the recording."""
        scale = self.seconds_per_frame
        return tuple((first * scale, last * scale) for first, last in self.lost)

    def describe(self) -> str:
        """Return what is wrong in one line; it is empty for a whole file and nothing else."""
        remarks = []
        if self.lost:
            spans = [f"{first:.2f} to {last:.2f} s" for first, last in self.lost_seconds]
            if len(spans) > _MAX_NAMED:
                spans[_MAX_NAMED:] = [f"and {len(spans) - _MAX_NAMED} more spans"]
            remarks.append(f"lost: {', '.join(spans)}")
        if self.end_missing:
            remarks.append("the end is missing: the recording may have been longer")
        if self.extra_bytes:
            remarks.append(f"{self.extra_bytes} bytes behind the end are not part of it")
        return "; ".join(remarks)


@dataclass
class FoundSections:
    """The whole sections of a damaged file."""

    starts: dict[int, int] = field(default_factory=dict)
    """Where full blocks start, by their number."""
    last_start: int | None = None
    """Where the last section starts; None if it is not whole."""
    counts: EndCounts | None = None
    """The counts of the last section, or what the end of the file says though it is not whole."""
    end: int = 0
    """Where the last section ends; without it, the last block found."""


class _Block(NamedTuple):
    index: int
    start: int
    size: int


class SectionSearch:
    """Looks for the sections of a stream by their checksums.

    Args:
        layout: of the stream.
        head: the bytes in front of the first section.
        file_size: bytes of the file.
        read_at: returns so many bytes of the file from a position: (position, size) -> bytes.
    """

    def __init__(
        self,
        layout: SectionLayout,
        head: bytes,
        file_size: int,
        read_at: Callable[[int, int], bytes],
    ):
        self._layout = layout
        self._head = head
        self._file_size = file_size
        self._read_at = read_at
        self._window = b""
        self._window_start = 0
        self._bytes_to_sum = max(_MIN_SUMMED, _MAX_SUMMED * file_size)
        self._least, self._largest = layout.size_bounds()
        self._next_head: int | None = None  # where the head comes again
        self._numbers = range(0)  # of the blocks whose checksums are known
        self._seeds = np.zeros(0, np.uint32)
        self._order = np.zeros(0, np.int64)

    def run(self) -> FoundSections:
        """Return what there is, front to back."""
        found = FoundSections(end=self._layout.head_size)
        next_index = 0  # the least number that the next block can have
        while True:
            block = self._block_in_place(found.end, next_index)
            if block is None and self._find_last(found, next_index, found.end):
                return found
            if block is None:
                block = self._search_block(found.end, next_index)
            if block is None:
                break
            found.starts[block.index] = block.start
            next_index = block.index + 1
            found.end = block.start + block.size + CHECKSUM_SIZE
        if not self._find_last(found, next_index, None):
            found.counts = self._claimed_counts(found.end, next_index)
        return found

    # ---- full blocks

    def _block_at(self, position: int, index: int) -> _Block | None:
        """Return the block of this number if it starts at this position."""
        size = self._size_at(position)
        if self._is_whole_size(position, size) and self._matches(position, size, index):
            return _Block(index, position, size)
        return None

    def _block_in_place(self, position: int, index: int) -> _Block | None:
        """Return the block of this number, or of one soon after, that lies where it should."""
        block = self._block_at(position, index)
        if block is not None or not self._layout.packed:
            return block
        stride = self._layout.full_block_size + CHECKSUM_SIZE
        for missing in range(1, _NEAR):  # bits have changed, and nothing has moved
            block = self._block_at(position + missing * stride, index + missing)
            if block is not None:
                return block
        return None

    def _size_at(self, position: int) -> int:
        """Return the size of a full block at a position, as the file claims it."""
        if self._layout.packed:
            return self._layout.full_block_size
        return size_field(self._bytes(position, position + SIZE_SIZE))

    def _is_whole_size(self, position: int, size: int) -> bool:
        fits = position + size + CHECKSUM_SIZE <= self._file_size
        return fits and self._least <= size <= self._largest

    def _search_block(self, position: int, next_index: int) -> _Block | None:
        """Return the first block behind a position that has this number or a larger one."""
        if self._layout.packed:
            candidates = self._packed_candidates(position, next_index)
        else:
            candidates = self._sized_candidates(position, next_index)
        for block in candidates:
            if block.index > self._largest_index(block.start):
                continue
            if self._is_near(block, position, next_index) or self._has_neighbour(block):
                return block
        return None

    def _is_near(self, block: _Block, position: int, next_index: int) -> bool:
        if not self._layout.packed:
            return block.index < next_index + _NEAR
        distance = block.start - position
        expected = next_index + round(distance / (block.size + CHECKSUM_SIZE))
        return abs(block.index - expected) <= _NEAR_PACKED

    def _has_neighbour(self, block: _Block) -> bool:
        """Return whether the section behind a block is whole, too."""
        end = block.start + block.size + CHECKSUM_SIZE
        if self._block_at(end, block.index + 1) is not None:
            return True
        return self._last_at(end, block.index + 1) is not None

    def _largest_index(self, position: int) -> int:
        """Return the largest number that a block at a position may have.

        As many blocks are believed to be missing as the file could hold, and no more: a small file
        could ask for any length.
        """
        stride = self._least + CHECKSUM_SIZE
        before = (position - self._layout.head_size) // stride
        return before + (self._file_size - self._layout.head_size) // stride

    @cached_property
    def _unshift_block(self) -> Unshift:
        return Unshift(self._layout.full_block_size)

    def _packed_candidates(self, position: int, next_index: int) -> Iterator[_Block]:
        """Yield the places where a packed block has the checksum of any number from this one on."""
        size = self._layout.full_block_size
        stop = self._search_end(position) - size - CHECKSUM_SIZE + 1
        for first, count in self._windows(position + 1, stop, size):
            data = self._read_at(first, count - 1 + size + CHECKSUM_SIZE)
            sums = prefix_sums(data[: count - 1 + size])
            stored = _words(data[size:], count)
            seeds = self._unshift_block(stored ^ sums[size : size + count]) ^ sums[:count]
            for offset, index in self._look_up(seeds, next_index):
                yield _Block(index, first + offset, size)

    def _sized_candidates(self, position: int, next_index: int) -> Iterator[_Block]:
        """Yield the places where an entropy-coded block has the checksum of such a number."""
        stop = self._search_end(position) - self._least - CHECKSUM_SIZE + 1
        for start, size in self._plausible_sizes(position + 1, stop, self._least):
            if not self._is_whole_size(start, size) or not self._may_sum(size):
                continue
            data = self._bytes(start, start + size + CHECKSUM_SIZE)
            rest = zlib.crc32(data[:size]) ^ int.from_bytes(data[size:], "big")
            seed = np.array([unshift(rest, size)], np.uint32)
            for _, index in self._look_up(seed, next_index):
                yield _Block(index, start, size)

    def _look_up(self, seeds: np.ndarray, next_index: int) -> Iterator[tuple[int, int]]:
        """Yield the places in `seeds`, checksums in front of a body, of blocks, and their numbers.

        Numbers are those from `next_index` on that a block of this file can have.
        """
        if next_index not in self._numbers:
            stop = max(self._largest_index(self._file_size), next_index) + 1
            self._numbers = range(next_index, min(stop, next_index + _MAX_NUMBERS))
            known = checksums_of_numbers(next_index, self._numbers.stop, self._layout.head_sum)
            self._order = np.argsort(known)
            self._seeds = known[self._order]
        places = np.minimum(np.searchsorted(self._seeds, seeds), len(self._seeds) - 1)
        for offset in np.flatnonzero(self._seeds[places] == seeds).tolist():
            index = self._numbers.start + int(self._order[places[offset]])
            if index >= next_index:
                yield offset, index

    def _plausible_sizes(self, start: int, stop: int, least: int) -> Iterator[tuple[int, int]]:
        """Yield the places at which a size from `least` on may stand, and that size."""
        for first, count in self._windows(start, stop, SIZE_SIZE):
            data = self._read_at(first, count - 1 + SIZE_SIZE)
            sizes = (_words(data + b"\0", count) >> np.uint32(8)).astype(np.int64) + SIZE_SIZE
            fits = (sizes >= least) & (sizes <= self._largest)
            for offset in np.flatnonzero(fits).tolist():
                yield first + offset, int(sizes[offset])

    def _windows(self, start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield first places and numbers of places, small windows first."""
        step = max(_FIRST_WINDOW, 2 * size)
        while start < stop:
            count = min(step, stop - start)
            yield start, count
            start += count
            step = max(size, min(4 * step, _WINDOW_SIZE))

    def _search_end(self, position: int) -> int:
        """Return where another stream with the same head begins, or the end of the file.

        The blocks of that stream would have the checksums that are looked for.
        """
        if self._next_head is None or self._next_head <= position < self._file_size:
            self._next_head = self._find_head(position + 1)
        return self._next_head

    def _find_head(self, position: int) -> int:
        overlap = len(self._head) - 1
        for start in range(position, self._file_size, _WINDOW_SIZE):
            size = min(_WINDOW_SIZE + overlap, self._file_size - start)
            offset = self._read_at(start, size).find(self._head)
            if offset >= 0:
                return start + offset
        return self._file_size

    # ---- the last section

    def _find_last(self, found: FoundSections, index: int, start: int | None) -> bool:
        """Add the last section and return True if it is whole: at `start`, or else behind it all.

        `index` is the least number that it can have; at `start`, it has it.
        """
        if start is not None:
            last = self._last_at(start, index)
        else:
            last = self._search_last(found.end, index)
        if last is None:
            return False
        found.last_start, found.counts, found.end = last
        return True

    def _last_at(self, start: int, index: int) -> tuple[int, EndCounts, int] | None:
        """Return start, counts and end of the last section if it starts here with this number."""
        if not self._layout.packed:
            return self._sized_last(start, index, index)
        stop = start + self._layout.full_block_size + MAX_COUNTS_SIZE
        for last in self._packed_lasts(start, min(stop, self._file_size - CHECKSUM_SIZE), index):
            if last[0] == start and self._number(last[1]) == index:
                return last
        return None

    def _search_last(self, position: int, index: int) -> tuple[int, EndCounts, int] | None:
        """Return the last section behind a position, whichever number from this one on it has."""
        search_end = self._search_end(position)
        if self._layout.packed:
            ends = search_end - CHECKSUM_SIZE
            near = min(ends, position + min(_MAX_ENDS, 3 * self._largest + MAX_COUNTS_SIZE))
            for first, stop in ((position, near), (max(near, ends - 1), ends)):
                for last in self._packed_lasts(first, stop, index):
                    return last
            return None
        stop = min(search_end, position + _MAX_ENDS) - SIZE_SIZE
        for start, size in self._plausible_sizes(position, stop, SIZE_SIZE):
            if not self._may_sum(size):
                break
            last = self._sized_last(start, index, self._largest_index(start))
            if last is not None:
                return last
        return None

    def _packed_lasts(
        self, start: int, stop: int, index: int
    ) -> Iterator[tuple[int, EndCounts, int]]:
        """Yield packed last sections whose counts end from behind `start` up to `stop`."""
        info = self._layout.info
        for end in range(start + 1, stop + 1):
            counts = parse_counts(info, self._bytes(max(start, end - MAX_COUNTS_SIZE), end))
            if counts is None or not self._is_possible(counts, index, end):
                continue
            body_size = info.codes_size(counts.num_frames % info.frames_per_block) + counts.size
            first = end - body_size
            if first >= start and self._matches(first, body_size, self._number(counts)):
                yield first, counts, end + CHECKSUM_SIZE

    def _sized_last(
        self, start: int, index: int, largest: int
    ) -> tuple[int, EndCounts, int] | None:
        """Return start, counts and end of an entropy-coded last section that starts here."""
        size = self._size_at(start)
        if size > self._largest or start + size + 1 + CHECKSUM_SIZE > self._file_size:
            return None
        tail = self._bytes(start + size, start + size + MAX_COUNTS_SIZE)
        for counts_size in range(1, len(tail) + 1):
            samples_size, excess_size = divmod(tail[counts_size - 1], 16)
            if 1 + samples_size + excess_size != counts_size:
                continue
            counts = parse_counts(self._layout.info, tail[:counts_size])
            end = start + size + counts_size
            if counts is None or not self._is_possible(counts, index, end):
                continue
            number = self._number(counts)
            if number <= largest and self._matches(start, size + counts_size, number):
                return start, counts, end + CHECKSUM_SIZE
        return None

    def _claimed_counts(self, position: int, index: int) -> EndCounts | None:
        """Return what the end of the file says if the last section, though damaged, lies there.

        It must have this number, start at this position and fill the file. Its codes are lost, its
        length is believed: damage mostly hits the codes, which are far longer.
        """
        info = self._layout.info
        end = self._file_size - CHECKSUM_SIZE
        first = max(position, end - MAX_COUNTS_SIZE)
        counts = parse_counts(info, self._bytes(first, end)) if first < end else None
        if counts is None or not self._is_possible(counts, index, end):
            return None
        excess = counts.num_frames - frames_for(info, counts.num_samples)
        if self._number(counts) != index or abs(excess) > _MAX_EXCESS:
            return None
        if self._layout.packed:
            size = info.codes_size(counts.num_frames % info.frames_per_block)
        else:
            size = self._size_at(position)
        return counts if position + size + counts.size == end else None

    def _number(self, counts: EndCounts) -> int:
        """Return the number of the last section of a stream with these counts."""
        return counts.num_frames // self._layout.info.frames_per_block

    def _is_possible(self, counts: EndCounts, index: int, end: int) -> bool:
        if counts.num_samples >= 1 << 63 or not 0 <= counts.num_frames < 1 << 63:
            return False
        if counts.num_frames < frames_for(self._layout.info, counts.num_samples) - 1:
            return False
        return index <= self._number(counts) <= self._largest_index(end)

    # ---- bytes

    def _may_sum(self, size: int) -> bool:
        """Return whether the file may cost so many bytes more."""
        self._bytes_to_sum -= size + _COST_OF_A_TRY
        return self._bytes_to_sum >= 0

    def _matches(self, position: int, size: int, index: int) -> bool:
        if position + size + CHECKSUM_SIZE > self._file_size:
            return False
        data = self._bytes(position, position + size + CHECKSUM_SIZE)
        return self._layout.checksum(index, data[:size]) == data[size:]

    def _bytes(self, position: int, stop: int) -> bytes:
        """Return the bytes of the file from a position up to another, fewer at its end."""
        end = min(stop, self._file_size)
        window_end = self._window_start + len(self._window)
        if position < self._window_start or end > window_end:
            window_size = max(end - position, min(_WINDOW_SIZE, self._file_size - position))
            self._window = self._read_at(position, window_size)
            self._window_start = position
        offset = position - self._window_start
        return self._window[offset : offset + end - position]


def _words(data: bytes, count: int) -> np.ndarray:
    """Return the big-endian 32-bit numbers that start at each of the first bytes: uint32 (N,)."""
    array = np.frombuffer(data, np.uint8, count + 3).astype(np.uint32)
    words = array[:count] << np.uint32(24)
    for byte in range(1, 4):
        words |= array[byte : byte + count] << np.uint32(24 - 8 * byte)
    return words
