"""Whole files in exact chunks: the results of one pass over everything, with memory for a few
seconds.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from codecplus.inference.windows import frame_context, windows
from codecplus.modeling_dac import DacModel

# Elements of the widest activation of a chunk. Larger ones gain nothing on a CPU and cost memory.
_CHUNK_ELEMENTS = 1 << 23
_MIN_CHUNK_FRAMES = 32


def chunk_frames(model: DacModel, rows: int = 1) -> int:
    """Frames per chunk for `rows` channels at once, so that activations stay below some hundred
    megabytes.
    """
    return max(_MIN_CHUNK_FRAMES, _CHUNK_ELEMENTS // (rows * model.config.activations_per_frame))


def encode_blocks(
    model: DacModel,
    blocks: Iterable[np.ndarray],
    n_quantizers: int | None = None,
    frames: int | None = None,
) -> Iterator[np.ndarray]:
    """Codes, int16 (C, K, T) in pieces of any length, of audio that comes in float32 blocks (C, S)
    of any length.

    Put together they are the codes of the whole. C channels are coded alike, each on its own.
    `frames` sets the frames per chunk. The audio is at the model's rate; it is padded with zeros to
    whole frames at its end.
    """
    hop = model.config.hop_length
    before, behind = frame_context(model.encoder_reach, hop)
    for window, start, stop in windows(blocks, hop, before, behind, frames or chunk_frames(model)):
        audio = torch.from_numpy(window)[:, None].to(model.device, model.dtype)
        with torch.inference_mode():
            latents = model.encoder(audio)[..., start:stop]
            codes = model.quantizer(latents, n_quantizers)[1]
        yield codes.to(torch.int16).cpu().numpy()


def decode_blocks(
    model: DacModel, blocks: Iterable[np.ndarray], frames: int | None = None
) -> Iterator[np.ndarray]:
    """Audio, float32 (C, S) in pieces, of codes that come in integer blocks (C, K, T); the inverse
    of `encode_blocks`.

    Put together it is the audio of the whole, `hop_length` samples per frame. -1 is a codebook left
    out.
    """
    hop = model.config.hop_length
    before, behind = model.decoder_reach
    for window, start, stop in windows(blocks, 1, before, behind, frames or chunk_frames(model)):
        codes = torch.from_numpy(window.astype(np.int64)).to(model.device)
        with torch.inference_mode():
            if (window < 0).any():
                audio = model.decode(_summed(model, codes), return_dict=False)[0]
            else:
                audio = model.decode(audio_codes=codes, return_dict=False)[0]
            audio = audio[..., start * hop : stop * hop]
        yield audio.float().cpu().numpy()


def _summed(model: DacModel, codes: Tensor) -> Tensor:
    """Quantized latents (C, D, T) of codes (C, K, T), each frame of those of its codebooks that are
    not -1.
    """
    lengths = (codes >= 0).sum(dim=1)  # (C, T)
    total = None
    for length in lengths.unique().tolist():
        part = model.quantizer.look_up(codes[:, : max(1, length)].clamp(min=0))[0]
        total = part if total is None else torch.where((lengths == length)[:, None], part, total)
    assert total is not None
    return total
