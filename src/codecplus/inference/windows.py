"""A signal of any length cut into overlapping windows, so that a network gives for each what it
gives for the whole.

A chunk is coded with so many frames of context on both sides that no frame kept can tell the
difference:

    audio    ....|context|  chunk  |context|....
    codes                |  kept   |

Context is the reach of the network's convolutions, cut off where the file begins and ends, so that
the zeros a convolution sees there are those it would see in one pass.
"""

from collections.abc import Iterable, Iterator

import numpy as np

# Every dilation divides it: a window of a multiple of so many frames is folded at every layer
# without padding.
_FOLD = 9


def frame_context(reach: tuple[int, int], hop_length: int) -> tuple[int, int]:
    """Whole frames of context before and behind a chunk, of an encoder that reaches so many samples
    each way.
    """
    past, future = reach
    return -(-past // hop_length), -(-(future + 1 - hop_length) // hop_length)


def windows(
    blocks: Iterable[np.ndarray], unit: int, before: int, behind: int, frames: int
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Cut a signal that comes in blocks (..., n) into overlapping windows of whole frames, `unit`
    steps each.

    Yields a window with up to `before` and `behind` frames of context, and the first and last frame
    in it to keep.
    """
    frames = max(1, frames - (before + frames + behind) % _FOLD)
    pending: list[
        np.ndarray
    ] = []  # blocks not joined yet: joining each as it comes would copy all again and again
    buffer, context = None, 0  # the signal from `context` frames before the next chunk on
    for block in blocks:
        pending.append(block)
        length = sum(piece.shape[-1] for piece in pending) + (
            0 if buffer is None else buffer.shape[-1]
        )
        if length < (context + frames + behind) * unit:
            continue
        buffer = np.concatenate(pending if buffer is None else [buffer, *pending], axis=-1)
        pending = []
        while buffer.shape[-1] >= (context + frames + behind) * unit:
            yield buffer[..., : (context + frames + behind) * unit], context, context + frames
            drop = max(0, context + frames - before)
            buffer = buffer[..., drop * unit :]
            context += frames - drop
    if pending or buffer is not None:
        buffer = np.concatenate(pending if buffer is None else [buffer, *pending], axis=-1)
        missing = -buffer.shape[-1] % unit
        if missing:
            buffer = np.concatenate(
                [buffer, np.zeros((*buffer.shape[:-1], missing), buffer.dtype)], axis=-1
            )
        total = buffer.shape[-1] // unit
        while context < total:
            kept = min(frames, total - context)
            yield buffer[..., : (context + kept + behind) * unit], context, context + kept
            drop = max(0, context + kept - before)
            buffer, total = buffer[..., drop * unit :], total - drop
            context += kept - drop
