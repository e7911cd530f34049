"""The sections of a .dacp file: their sizes and checksums. Knows nothing of the codes in them.

A section is one block of codes and the checksum of it. Entropy-coded blocks start with their size.
The last section, whose block may be short or empty, ends with the counts of the stream.
"""

import zlib

from codecplus.bitstream.blocks import least_size
from codecplus.bitstream.header import StreamInfo

CHECKSUM_SIZE = 4
SIZE_SIZE = 3  # bytes that say how long an entropy-coded block is


class SectionLayout:
    """What the head of a stream says of its sections.

    Args:
        info: the stream.
        head: the bytes that say so, which every checksum covers.
    """

    def __init__(self, info: StreamInfo, head: bytes):
        self.info = info
        self.head_size = len(head)
        self.head_sum = zlib.crc32(head)

    @property
    def packed(self) -> bool:
        """Whether codes are packed, so that the size of a block follows from its frames."""
        return self.info.entropy_model is None

    @property
    def full_block_size(self) -> int:
        """Bytes of a full block when packed."""
        return self.info.codes_size(self.info.frames_per_block)

    def size_bounds(self) -> tuple[int, int]:
        """Return the fewest and the most bytes of a full block, its size field included."""
        packed_size = self.full_block_size
        if self.packed:
            return packed_size, packed_size
        num_codes = self.info.frames_per_block * self.info.codes_per_frame
        return SIZE_SIZE + least_size(num_codes), packed_size + 64 + self.info.channels

    def packed_start(self, index: int) -> int:
        """Return where a section starts in a packed stream."""
        return self.head_size + index * (self.full_block_size + CHECKSUM_SIZE)

    def checksum(self, index: int, body: bytes) -> bytes:
        """Return the checksum of a section of that number.

        The head and the number are part of it: no block of another file or another place passes.
        """
        seed = zlib.crc32(index.to_bytes(8, "big"), self.head_sum)
        return zlib.crc32(body, seed).to_bytes(CHECKSUM_SIZE, "big")


def size_field(data: bytes) -> int:
    """Return the size of an entropy-coded block, its size field included, from its first bytes."""
    return SIZE_SIZE + int.from_bytes(data[:SIZE_SIZE], "big")
