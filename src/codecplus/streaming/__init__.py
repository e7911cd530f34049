"""Live streams: stateful encoding and decoding, state in, state out; packets and their concealment.

The modules that know a network in torch (`layers`, `stateful`) are imported when they are used:
streams and packets serve other runtimes too.
"""

from typing import TYPE_CHECKING

from codecplus._lazy import lazy_names

if TYPE_CHECKING:
    from codecplus.streaming.packets import (
        ConcealingDecoder,
        PacketFormat,
        PacketGapError,
        PacketReader,
        PacketWriter,
        Received,
    )
    from codecplus.streaming.stateful import StreamingDecoder, StreamingEncoder, StreamState
    from codecplus.streaming.stream import DecoderStream, EncoderStream

__getattr__ = lazy_names(
    __name__,
    {
        "ConcealingDecoder": "packets",
        "DecoderStream": "stream",
        "EncoderStream": "stream",
        "PacketFormat": "packets",
        "PacketGapError": "packets",
        "PacketReader": "packets",
        "PacketWriter": "packets",
        "Received": "packets",
        "StreamState": "stateful",
        "StreamingDecoder": "stateful",
        "StreamingEncoder": "stateful",
    },
)

__all__ = [
    "ConcealingDecoder",
    "DecoderStream",
    "EncoderStream",
    "PacketFormat",
    "PacketGapError",
    "PacketReader",
    "PacketWriter",
    "Received",
    "StreamState",
    "StreamingDecoder",
    "StreamingEncoder",
]
