"""Exact chunked encoding and decoding of files of any length, in bounded memory."""

from .chunked import decode_blocks, encode_blocks

__all__ = ["decode_blocks", "encode_blocks"]
