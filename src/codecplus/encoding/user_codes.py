"""Codes that users hand over: told from other things, and checked against a model.

Letters: C channels, K codebooks, T frames.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from codecplus.bitstream import StreamInfo
from codecplus.bitstream.codes import check_codes, info_for
from codecplus.encoding.stream_info import check_model, make_stream_info
from codecplus.errors import InputError
from codecplus.inference.network import Geometry


def is_code_batch(codes: Any) -> bool:
    """Return whether a list holds the codes of several clips, rather than the numbers of one."""
    if not isinstance(codes, (list, tuple)) or not codes:
        return False
    return all(getattr(item, "ndim", 0) >= 2 for item in codes)


def as_codes(codes: Any) -> Any:
    """Return codes as `Codes` or another array.

    Raises InputError for things that are often mistaken for codes, and names the right call.
    """
    if codes is None:
        raise InputError("expected codes, got None")
    if isinstance(codes, (str, bytes, bytearray, memoryview, os.PathLike)):
        raise InputError(
            f"expected codes, got {type(codes).__name__}; decompress decodes a file, "
            "read_codes reads its codes"
        )
    if hasattr(codes, "audio_codes"):
        raise InputError(
            f"expected codes, got the {type(codes).__name__} of a model; give its audio_codes"
        )
    if isinstance(codes, Mapping):
        raise InputError(
            f"expected codes, got a dict of {', '.join(map(str, codes))}; give one of its columns"
        )
    if hasattr(codes, "detach"):
        from codecplus.inference.tensors import tensor_to_codes

        codes = tensor_to_codes(codes)
    try:
        array = np.asarray(codes)
    except ValueError as error:  # a ragged list
        raise InputError(
            "expected the codes of one clip, or a list of arrays, got lists of different lengths"
        ) from error
    if array.dtype.kind == "U":
        raise InputError("expected codes, got a list of text; decompress decodes files")
    if array.dtype.kind == "f" and array.size:
        raise InputError(
            f"expected integer codes, got {array.dtype} of shape {array.shape}; audio goes to "
            "encode, latents to codec.model.decode"
        )
    return codes


def codes_and_info(
    codes: Any, config: Geometry, fingerprint: bytes, sample_rate: int
) -> tuple[np.ndarray, StreamInfo]:
    """Return codes as integers (C, K, T) with their info; both are checked against a model.

    Args:
        codes: from `as_codes`.
        config, fingerprint: of the model.
        sample_rate: of the signal, Hz, where codes do not know it.

    Raises InputError and ModelMismatchError as `Codec.decode` does.
    """
    array = check_codes(codes, config.n_codebooks, config.codebook_size)
    channels, codebooks, _ = array.shape
    info = getattr(codes, "info", None)
    if info is None:
        info = make_stream_info(config, fingerprint, sample_rate, channels, n_quantizers=codebooks)
    check_model(config, fingerprint, info)
    return array, info_for(array, info)
