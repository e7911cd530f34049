"""Exact chunked and stateful encoding and decoding: files of any length, and live streams, in bounded memory.

What knows a network in torch (`chunked`, `layers`, `network`) is imported when it is used: windows, streams and packets
serve other runtimes too.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .chunked import decode_blocks, encode_blocks
    from .network import StreamingDecoder, StreamingEncoder, StreamState
    from .packets import ConcealingDecoder, PacketFormat, PacketReader, PacketWriter, Received
    from .stream import DecoderStream, EncoderStream

__getattr__ = lazy_names(
    __name__,
    {
        "ConcealingDecoder": "packets",
        "DecoderStream": "stream",
        "EncoderStream": "stream",
        "PacketFormat": "packets",
        "PacketReader": "packets",
        "PacketWriter": "packets",
        "Received": "packets",
        "StreamState": "network",
        "StreamingDecoder": "network",
        "StreamingEncoder": "network",
        "decode_blocks": "chunked",
        "encode_blocks": "chunked",
    },
)

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
