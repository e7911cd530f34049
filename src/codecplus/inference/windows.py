"""Signals of any length in overlapping windows. A network gives the same for them as for the whole.

A chunk is coded with enough context on both sides that its frames come out as in one pass:

    audio    ....|context|  chunk  |context|....
    codes                |  kept   |

Context is the reach of the network's convolutions. It is cut off where the file begins and ends, so
that a convolution sees the same zeros there as in one pass.
"""

from collections.abc import Iterable, Iterator

import numpy as np

# Every dilation divides it: a window of a multiple of this many frames is folded at every layer
# without padding.
_FOLD = 9


def frame_context(reach: tuple[int, int], hop_length: int) -> tuple[int, int]:
    """Return the frames of context before and behind a chunk that an encoder needs.

    Args:
        reach: samples before and behind the first sample of a frame that the frame depends on.
        hop_length: samples per frame.
    """
    past, future = reach
    before = -(-past // hop_length)
    behind = -(-(future + 1 - hop_length) // hop_length)
    return before, behind


def windows(
    blocks: Iterable[np.ndarray], unit: int, before: int, behind: int, frames: int
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Cut a signal into overlapping windows of whole frames; its end is filled up with zeros.

    Args:
        blocks: the signal in pieces (..., n) of any length.
        unit: steps of the last axis per frame.
        before, behind: frames of context.
        frames: to keep of a window, at most.

    Yields:
        A window with up to `before` and `behind` frames of context; the first frame in it to keep,
        and the frame behind the last one.
    """
    frames = max(1, frames - (before + frames + behind) % _FOLD)
    joined = None  # the signal from `context` frames before the next chunk on
    pending: list[np.ndarray] = []  # blocks behind it; joining each at once would copy all of it
    context = 0
    for block in blocks:
        pending.append(block)
        length = sum(piece.shape[-1] for piece in pending)
        if joined is not None:
            length += joined.shape[-1]
        if length < (context + frames + behind) * unit:
            continue
        joined = _join(joined, pending)
        pending = []
        while joined.shape[-1] >= (context + frames + behind) * unit:
            yield joined[..., : (context + frames + behind) * unit], context, context + frames
            drop = max(0, context + frames - before)
            joined = joined[..., drop * unit :]
            context += frames - drop
    if pending or joined is not None:
        joined = _fill(_join(joined, pending), unit)
        total = joined.shape[-1] // unit
        while context < total:
            count = min(frames, total - context)
            yield joined[..., : (context + count + behind) * unit], context, context + count
            drop = max(0, context + count - before)
            joined = joined[..., drop * unit :]
            total -= drop
            context += count - drop


def _join(first: np.ndarray | None, others: list[np.ndarray]) -> np.ndarray:
    if first is not None:
        others = [first, *others]
    return np.concatenate(others, axis=-1)


def _fill(signal: np.ndarray, unit: int) -> np.ndarray:
    """Append zeros (..., n) up to a whole frame."""
    missing = -signal.shape[-1] % unit
    if not missing:
        return signal
    zeros = np.zeros((*signal.shape[:-1], missing), signal.dtype)
    return np.concatenate([signal, zeros], axis=-1)
