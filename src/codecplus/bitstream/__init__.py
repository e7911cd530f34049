"""Codes to bytes and back: the container and its coding. Knows numpy, nothing of the model."""

from codecplus.bitstream.container import Reader, Writer, pack, unpack
from codecplus.bitstream.header import Header, StreamInfo

__all__ = ["Header", "Reader", "StreamInfo", "Writer", "pack", "unpack"]
