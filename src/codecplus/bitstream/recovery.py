"""The search for whole sections in a damaged .dacp file. Knows sizes and checksums, nothing of
codes.
"""

from collections.abc import Callable

from codecplus.bitstream.sections import CHECKSUM_SIZE, SIZE_SIZE, SectionLayout, size_field

_MAX_SKIPPED = 16  # blocks in a row that can be found missing between two good ones
_MAX_LOST = 4  # blocks that a damaged file may claim beyond those that its bytes could hold
# Bytes to sum up at most, per byte of the file: a file made to be slow is given up.
_MAX_SUMMED = 512
_WINDOW_SIZE = 1 << 20  # bytes to read at a time


class SectionSearch:
    """Looks for the sections of a stream by their checksums.

    Args:
        layout: of the stream.
        file_size: bytes of the file.
        read_at: returns so many bytes of the file from a position: (position, size) -> bytes.
    """

    def __init__(self, layout: SectionLayout, file_size: int, read_at: Callable[[int, int], bytes]):
        self._layout = layout
        self._file_size = file_size
        self._read_at = read_at
        self._window = b""
        self._window_start = 0
        self._bytes_to_sum = _MAX_SUMMED * file_size
        self._least, self._largest = layout.size_bounds()

    def run(self, last_index: int | None, counts_size: int) -> tuple[dict[int, int], int | None]:
        """Return where full blocks start, by their number, and where the last section does.

        `last_index` is the number that the last section should have, if the end of the file says,
        and `counts_size` the size of the counts there. The start of the last section is None if it
        is not whole.
        """
        starts: dict[int, int] = {}
        position = self._layout.head_size
        next_index = 0  # the least number that a block at this position can have
        while position < self._file_size and self._bytes_to_sum > 0:
            size = self._size_at(position)
            largest_index = self._largest_index(position)
            if last_index is not None and next_index <= last_index <= largest_index:
                rest = self._file_size - position - counts_size - CHECKSUM_SIZE
                if self._is_last(position, size, rest, last_index, counts_size):
                    return starts, position
            index = self._index_at(position, size, next_index, largest_index)
            if index is not None:
                starts[index] = position
                next_index = index + 1
                position += size + CHECKSUM_SIZE
            elif self._layout.packed:
                next_index += 1
                position += size + CHECKSUM_SIZE
            else:
                position += 1  # the size may be damaged: look for the next block byte by byte
        return starts, None

    def _size_at(self, position: int) -> int:
        """Return the size of a full block at a position, as the file claims it."""
        if self._layout.packed:
            return self._layout.full_block_size
        return size_field(self._bytes(position, SIZE_SIZE))

    def _largest_index(self, position: int) -> int:
        """Return the largest number that a block at a position may have.

        A claim that blocks are missing is believed as far as the size of the file allows, or a
        small file could ask for any length.
        """
        possible = (position - self._layout.head_size) // (self._least + CHECKSUM_SIZE)
        return possible + _MAX_LOST

    def _is_last(self, position: int, size: int, rest: int, index: int, counts_size: int) -> bool:
        """Return whether the section at a position, with a block of `rest` bytes, is the last."""
        if self._layout.packed:
            fits = 0 <= rest < size
        else:
            fits = rest == size <= self._largest
        if not fits:
            return False
        body_size = rest + counts_size
        self._bytes_to_sum -= body_size
        return self._matches(position, body_size, index)

    def _index_at(
        self, position: int, size: int, next_index: int, largest_index: int
    ) -> int | None:
        """Return the number of the full block at a position, None if there is none."""
        whole = position + size + CHECKSUM_SIZE <= self._file_size
        if not whole or not self._least <= size <= self._largest:
            return None
        candidates = range(next_index, min(next_index + _MAX_SKIPPED, largest_index + 1))
        self._bytes_to_sum -= len(candidates) * size
        for index in candidates:
            if self._matches(position, size, index):
                return index
        return None

    def _matches(self, position: int, size: int, index: int) -> bool:
        data = self._bytes(position, size + CHECKSUM_SIZE)
        return self._layout.checksum(index, data[:size]) == data[size:]

    def _bytes(self, position: int, size: int) -> bytes:
        """Return so many bytes of the file, fewer at its end."""
        end = min(position + size, self._file_size)
        window_end = self._window_start + len(self._window)
        if position < self._window_start or end > window_end:
            window_size = max(end - position, min(_WINDOW_SIZE, self._file_size - position))
            self._window = self._read_at(position, window_size)
            self._window_start = position
        offset = position - self._window_start
        return self._window[offset : offset + end - position]
