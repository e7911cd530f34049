"""Codes to bytes and back: the container and its codings. Knows numpy and a range coder, nothing of
the model.
"""

from codecplus.bitstream.blocks import can_code
from codecplus.bitstream.container import Reader, Writer, pack, unpack
from codecplus.bitstream.header import Header, StreamInfo
from codecplus.bitstream.predictors import EntropyModel
from codecplus.bitstream.recovery import Damage

__all__ = [
    "Damage",
    "EntropyModel",
    "Header",
    "Reader",
    "StreamInfo",
    "Writer",
    "can_code",
    "pack",
    "unpack",
]
