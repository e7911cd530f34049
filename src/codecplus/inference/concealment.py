"""Concealment where codes of a file are lost: the sound before, faded out, then silence.

Letters: C channels, K codebooks, T frames, n samples of a block.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from codecplus.inference.network import Network

_FADE_OUT = 4  # frames
_FADE_IN = 1
_SILENCE = 1 << 16  # samples of a block of silence

Span = tuple[int, int]


def decode_around_losses(
    network: Network,
    read_codes: Callable[[int, int], Iterable[np.ndarray]],
    lost: Sequence[Span],
    first_frame: int,
    stop_frame: int,
    channels: int,
    num_codebooks: int,
) -> Iterator[np.ndarray]:
    """Decode frames of a damaged stream, `hop_length` samples for each, lost or not.

    A lost span repeats the frame before it for as long as that can be heard. The rest of it is
    silence, which costs the network nothing.

    Args:
        network: decodes codes.
        read_codes: gives the codes (C, K, T) from a frame up to another in blocks, of frames that
            are not lost.
        lost: first frame and the frame behind the last one, of every lost span, in order.
        first_frame, stop_frame: the frames to decode.
        channels, num_codebooks: of the stream.

    Yields audio (C, n) at the model's rate; `fade_lost_spans` fades it.
    """
    last_frame = np.zeros((channels, num_codebooks, 1), np.int16)

    def codes_between(start: int, stop: int) -> Iterator[np.ndarray]:
        nonlocal last_frame
        for lost_start, lost_stop in [*_overlapping(lost, start, stop), (stop, stop)]:
            for block in read_codes(start, lost_start) if start < lost_start else ():
                last_frame = block[..., -1:]
                yield block
            start = max(start, lost_stop)
            if lost_start < lost_stop:
                yield np.repeat(last_frame, lost_stop - lost_start, axis=-1)

    hop = network.config.hop_length
    silent = _silent_spans(lost, first_frame, stop_frame, network.decoder_context)
    position = first_frame
    for start, stop in [*silent, (stop_frame, stop_frame)]:
        if position < start:
            yield from network.decode_blocks(codes_between(position, start))
        yield from _silence(channels, (stop - start) * hop)
        position = stop


def _silent_spans(lost: Sequence[Span], first: int, stop: int, context: int) -> Iterator[Span]:
    """Yield the frames that cannot be heard, and that no audible frame depends on."""
    for lost_start, lost_stop in _overlapping(lost, first, stop):
        start = lost_start + _FADE_OUT + context
        end = lost_stop if lost_stop == stop else lost_stop - context
        if start < end:
            yield start, end


def _overlapping(spans: Sequence[Span], start: int, stop: int) -> list[Span]:
    """Return the parts of spans, which are in order, between two frames."""
    first = max(0, bisect_right(spans, (start, start)) - 1)
    overlapping = []
    for span_start, span_stop in spans[first:]:
        if span_start >= stop:
            break
        if span_stop > start:
            overlapping.append((max(span_start, start), min(span_stop, stop)))
    return overlapping


def _silence(channels: int, num_samples: int) -> Iterator[np.ndarray]:
    for start in range(0, num_samples, _SILENCE):
        yield np.zeros((channels, min(_SILENCE, num_samples - start)), np.float32)


def fade_lost_spans(
    blocks: Iterable[np.ndarray],
    spans: Sequence[Span],
    first_frame: int,
    samples_per_frame: float,
) -> Iterator[np.ndarray]:
    """Fade audio out within 4 frames of a lost span, and in again within the frame behind it.

    Args:
        blocks: audio (C, n).
        spans: first frame and the frame behind the last one, of every lost span, in order.
        first_frame: the frame at which the audio begins.
        samples_per_frame: of the audio; it need not be whole.
    """
    position = 0
    for block in blocks:
        samples = position + np.arange(block.shape[-1])
        position += block.shape[-1]
        frames = samples / samples_per_frame + first_frame
        for start, stop in _audible_near(spans, frames):
            block = block * _span_gain(frames, start, stop).astype(np.float32)
        yield block


def _audible_near(spans: Sequence[Span], frames: np.ndarray) -> Sequence[Span]:
    """Return the spans that overlap a block of these frames (n,), or fade in within it."""
    if not len(frames):
        return ()
    first = max(0, bisect_right(spans, (frames[0], frames[0])) - 1)
    return spans[first : bisect_right(spans, (frames[-1] + 1, 0))]


def _span_gain(frames: np.ndarray, start: int, stop: int) -> np.ndarray:
    if stop - start > _FADE_OUT:
        corners = [start, start + _FADE_OUT, stop, stop + _FADE_IN]
        return np.interp(frames, corners, [1, 0, 0, 1])
    is_inside = (frames >= start) & (frames < stop)
    return np.where(is_inside, 1 - (frames - start) / _FADE_OUT, 1)
