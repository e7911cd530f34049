"""Whole files in exact chunks: the results of one pass over everything, with memory for a few seconds.

A chunk is coded with so many frames of context on both sides that no frame kept can tell the difference:

    audio    ....|context|  chunk  |context|....
    codes                |  kept   |

Context is the reach of the network's convolutions, cut off where the file begins and ends, so that the zeros a
convolution sees there are those it would see in one pass.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from ..modeling_dac import DacModel

# Elements of the widest activation of a chunk. Larger ones gain nothing on a CPU and cost memory.
_CHUNK_ELEMENTS = 1 << 23
_MIN_CHUNK_FRAMES = 32
# Every dilation divides it: a window of a multiple of so many frames is folded at every layer without padding.
_FOLD = 9


def chunk_frames(model: DacModel, rows: int = 1) -> int:
    """Frames per chunk for `rows` channels at once, so that activations stay below some hundred megabytes."""
    config = model.config
    widest = max(config.encoder_hidden_size, config.decoder_hidden_size >> len(config.downsampling_ratios))
    return max(_MIN_CHUNK_FRAMES, _CHUNK_ELEMENTS // (rows * widest * config.hop_length))


def encode_blocks(
    model: DacModel, blocks: Iterable[np.ndarray], n_quantizers: int | None = None, frames: int | None = None
) -> Iterator[np.ndarray]:
    """Codes, int16 (C, K, T) in pieces of any length, of audio that comes in float32 blocks (C, S) of any length.

    Put together they are the codes of the whole. C channels are coded alike, each on its own. `frames` sets the frames
    per chunk. The audio is at the model's rate; it is padded with zeros to whole frames at its end.
    """
    hop = model.config.hop_length
    past, future = model.encoder_reach
    before, behind = -(-past // hop), -(-(future + 1 - hop) // hop)
    for window, start, stop in _windows(blocks, hop, before, behind, frames or chunk_frames(model)):
        audio = torch.from_numpy(window)[:, None].to(model.device, model.dtype)
        with torch.inference_mode():
            latents = model.encoder(audio)[..., start:stop]
            codes = model.quantizer(latents, n_quantizers)[1]
        yield codes.to(torch.int16).cpu().numpy()


def decode_blocks(model: DacModel, blocks: Iterable[np.ndarray], frames: int | None = None) -> Iterator[np.ndarray]:
    """Audio, float32 (C, S) in pieces, of codes that come in integer blocks (C, K, T); the inverse of `encode_blocks`.

    Put together it is the audio of the whole, `hop_length` samples per frame.
    """
    hop = model.config.hop_length
    before, behind = model.decoder_reach
    for window, start, stop in _windows(blocks, 1, before, behind, frames or chunk_frames(model)):
        codes = torch.from_numpy(window.astype(np.int64)).to(model.device)
        with torch.inference_mode():
            audio = model.decode(audio_codes=codes, return_dict=False)[0][..., start * hop : stop * hop]
        yield audio.float().cpu().numpy()


def _windows(
    blocks: Iterable[np.ndarray], unit: int, before: int, behind: int, frames: int
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Cut a signal that comes in blocks (..., n) into overlapping windows of whole frames, `unit` steps each.

    Yields a window with up to `before` and `behind` frames of context, and the first and last frame in it to keep.
    """
    frames = max(1, frames - (before + frames + behind) % _FOLD)
    pending: list[np.ndarray] = []  # blocks not joined yet: joining each as it comes would copy all again and again
    buffer, context = None, 0  # the signal from `context` frames before the next chunk on
    for block in blocks:
        pending.append(block)
        length = sum(piece.shape[-1] for piece in pending) + (0 if buffer is None else buffer.shape[-1])
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
            buffer = np.concatenate([buffer, np.zeros((*buffer.shape[:-1], missing), buffer.dtype)], axis=-1)
        total = buffer.shape[-1] // unit
        while context < total:
            kept = min(frames, total - context)
            yield buffer[..., : (context + kept + behind) * unit], context, context + kept
            drop = max(0, context + kept - before)
            buffer, total = buffer[..., drop * unit :], total - drop
            context += kept - drop
