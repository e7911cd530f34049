"""Whole files in exact chunks: the results of one pass over everything, in memory for some seconds.

Letters: C channels, S samples, K codebooks, T frames, D width of the latents.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from codecplus.inference.windows import frame_context, windows
from codecplus.modeling_dac import DacNetwork

# Elements of the widest activation of a chunk. Larger ones gain nothing on a CPU and cost memory.
_CHUNK_ELEMENTS = 1 << 23
_MIN_CHUNK_FRAMES = 32


def chunk_frames(model: DacNetwork, rows: int = 1) -> int:
    """Return frames per chunk for `rows` channels at once.

    Activations stay below some hundred megabytes.
    """
    elements = rows * model.config.activations_per_frame
    return max(_MIN_CHUNK_FRAMES, _CHUNK_ELEMENTS // elements)


def encode_blocks(
    model: DacNetwork,
    blocks: Iterable[np.ndarray],
    n_quantizers: int | None = None,
    frames: int | None = None,
) -> Iterator[np.ndarray]:
    """Encode audio in blocks of any length to codes, int16 (C, K, T) in pieces of any length.

    Put together, the pieces are the codes of the whole. Channels are coded alike, each on its own.

    Args:
        model: on its device, in its dtype.
        blocks: float32 (C, S) at the model's rate; zeros fill the end up to a whole frame.
        n_quantizers: codebooks to use, all by default.
        frames: of a chunk; by default those of `chunk_frames`.
    """
    hop = model.config.hop_length
    before, behind = frame_context(model.encoder_reach, hop)
    frames = frames or chunk_frames(model)
    for window, start, stop in windows(blocks, hop, before, behind, frames):
        audio = torch.from_numpy(window)[:, None].to(model.device)
        with torch.inference_mode():
            latents = model.analyze(audio)[..., start:stop]
            codes = model.quantizer(latents, n_quantizers)[1]
        yield codes.to(torch.int16).cpu().numpy()


def decode_blocks(
    model: DacNetwork, blocks: Iterable[np.ndarray], frames: int | None = None
) -> Iterator[np.ndarray]:
    """Decode codes in blocks of any length to audio, float32 (C, S) in pieces of any length.

    Put together, the pieces are the audio of the whole, `hop_length` samples per frame.

    Args:
        model: on its device, in its dtype.
        blocks: integers (C, K, T); -1 is a codebook that a frame does without.
        frames: of a chunk; by default those of `chunk_frames`.
    """
    hop = model.config.hop_length
    before, behind = model.decoder_reach
    frames = frames or chunk_frames(model)
    for window, start, stop in windows(blocks, 1, before, behind, frames):
        codes = torch.from_numpy(window.astype(np.int64)).to(model.device)
        with torch.inference_mode():
            if (window < 0).any():
                latents = _summed(model, codes)
            else:
                latents = model.quantizer.from_codes(codes)[0]
            audio = model.synthesize(latents)[..., start * hop : stop * hop]
        yield audio.float().cpu().numpy()


def _summed(model: DacNetwork, codes: Tensor) -> Tensor:
    """Return quantized latents (C, D, T) of codes (C, K, T), by codebooks that are not -1 alone."""
    lengths = (codes >= 0).sum(dim=1)  # (C, T)
    total = None
    for length in lengths.unique().tolist():
        part = model.quantizer.look_up(codes[:, : max(1, length)].clamp(min=0))[0]
        if total is None:
            total = part
        else:
            total = torch.where((lengths == length)[:, None], part, total)
    assert total is not None
    return total
