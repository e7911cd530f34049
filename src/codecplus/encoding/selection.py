"""Which codes are written for a signal: how many codebooks, and how hard the encoder looks.

It takes the steps of `rate_control` and `refinement`, which need the model in torch, only where the
options ask for them.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from codecplus.audio.blocks import CountedBlocks
from codecplus.bitstream import EntropyModel, StreamInfo, pack
from codecplus.encoding.compression_options import CompressionOptions
from codecplus.errors import InputError
from codecplus.inference.network import Network

_DEFAULT_QUALITY = 8.0
_ABR_EXCESS = 1.02  # an average rate is met within 2 %,
_ABR_BYTES = 64  # or within these bytes for very short files


def select_codes(
    network: Network,
    samples: Iterable[np.ndarray],
    info: StreamInfo,
    entropy: EntropyModel | None,
    options: CompressionOptions,
    counted: CountedBlocks,
) -> Iterator[np.ndarray]:
    """Encode a signal with as many codebooks for each frame as the rate control wants.

    Args:
        network: encodes; `effort` and rate control need one in torch.
        samples: audio, float32 (C, n) in blocks, at the model's rate.
        info: of the file that the codes are for, with its entropy model.
        entropy: that model, or None.
        options: rate control, quality, bitrate and effort.
        counted: knows the length of the original signal when `samples` are at their end.

    Returns:
        Codes, int16 (C, K, T) in pieces; -1 for codebooks left out.

    Raises:
        InputError: for options that need the model in torch, and a bitrate that cannot be met.
    """

    def encode(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return _search_codes(network, blocks, info.num_codebooks, options.effort, entropy)

    if options.rate_control == "cbr":
        return encode(samples)
    from codecplus.encoding.rate_control import audible_errors, leave_out, quality_tolerance

    pieces = audible_errors(_torch_model(network, "rate_control"), samples, encode)
    if options.rate_control == "vbr":
        quality = _DEFAULT_QUALITY if options.quality is None else options.quality
        tolerance = quality_tolerance(quality)
        return (leave_out(codes, errors, tolerance) for codes, errors in pieces)
    assert options.bitrate is not None
    return _meet_bitrate(pieces, info, entropy, options.bitrate, counted)


def _search_codes(
    network: Network,
    samples: Iterable[np.ndarray],
    num_codebooks: int,
    effort: int,
    entropy: EntropyModel | None,
) -> Iterator[np.ndarray]:
    if effort == 0:
        return network.encode_blocks(samples, num_codebooks)
    from codecplus.encoding import refinement

    model = _torch_model(network, "effort")
    steps = refinement.EFFORTS[effort]
    return refinement.encode_with_effort(model, samples, num_codebooks, steps, entropy)


def _meet_bitrate(
    pieces: Iterable[tuple[np.ndarray, np.ndarray]],
    info: StreamInfo,
    entropy: EntropyModel | None,
    bitrate: float,
    counted: CountedBlocks,
) -> Iterator[np.ndarray]:
    """Yield codes whose file has a bitrate. All of them are held in memory to find them."""
    from codecplus.encoding.rate_control import leave_out, tolerance_for_size

    all_codes, all_errors = (np.concatenate(part, axis=-1) for part in zip(*pieces, strict=True))
    num_samples = counted.num_samples
    target = bitrate * 125 * num_samples / info.original_sample_rate  # bytes

    def size_at(tolerance: float) -> int:
        codes = leave_out(all_codes, all_errors, tolerance)
        return len(pack(codes, info, num_samples=num_samples, entropy=entropy))

    tolerance = tolerance_for_size(size_at, target)
    size = size_at(tolerance)
    if size > max(_ABR_EXCESS * target, target + _ABR_BYTES):
        least = size * bitrate / target
        raise InputError(
            f"this audio takes {least:.2f} kbit/s at least with this model, got bitrate={bitrate}"
        )
    yield leave_out(all_codes, all_errors, tolerance)


def _torch_model(network: Network, option: str) -> Any:
    model = getattr(network, "model", None)
    if model is None:
        raise InputError(
            f"{option} needs the model in torch, got an exported one; load the checkpoint itself"
        )
    return model
