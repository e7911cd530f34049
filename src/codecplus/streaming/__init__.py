"""Exact chunked and stateful encoding and decoding: files of any length, and live streams, in bounded memory."""

from .chunked import decode_blocks, encode_blocks
from .packets import ConcealingDecoder, PacketFormat, PacketReader, PacketWriter, Received
from .stream import DecoderStream, EncoderStream, StreamingDecoder, StreamingEncoder, StreamState

__all__ = [
    "ConcealingDecoder",
    "DecoderStream",
    "EncoderStream",
    "PacketFormat",
    "PacketReader",
    "PacketWriter",
    "Received",
    "StreamState",
    "StreamingDecoder",
    "StreamingEncoder",
    "decode_blocks",
    "encode_blocks",
]
