"""What is played where codes of a file are lost: the sound before, faded out.

Letters: C channels, K codebooks, T frames, n samples of a block.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

_FADE_OUT = 4  # frames
_FADE_IN = 1


def repeat_last_frame(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Replace lost blocks of codes (C, K, T), all -1, by the last frame before them.

    Where nothing comes before, they become code 0.
    """
    last = None
    for block in blocks:
        if (block[:, 0] >= 0).all():
            last = block[..., -1:]
            yield block
        elif last is None:
            yield np.zeros_like(block)
        else:
            yield np.repeat(last, block.shape[-1], axis=-1)


def fade_lost_spans(
    blocks: Iterable[np.ndarray],
    spans: Sequence[tuple[int, int]],
    first_frame: int,
    samples_per_frame: float,
) -> Iterator[np.ndarray]:
    """Fade audio out within 4 frames of a lost span, and in again within the frame behind it.

    Args:
        blocks: audio (C, n).
        spans: first frame and the frame behind the last one, of every lost span.
        first_frame: the frame at which the audio begins.
        samples_per_frame: of the audio; it need not be whole.
    """
    position = 0
    for block in blocks:
        samples = position + np.arange(block.shape[-1])
        frames = samples / samples_per_frame + first_frame
        gain = np.ones(len(frames))
        for start, stop in spans:
            gain *= _span_gain(frames, start, stop)
        position += block.shape[-1]
        yield block * gain.astype(np.float32)


def _span_gain(frames: np.ndarray, start: int, stop: int) -> np.ndarray:
    if stop - start > _FADE_OUT:
        corners = [start, start + _FADE_OUT, stop, stop + _FADE_IN]
        return np.interp(frames, corners, [1, 0, 0, 1])
    is_inside = (frames >= start) & (frames < stop)
    return np.where(is_inside, 1 - (frames - start) / _FADE_OUT, 1)
