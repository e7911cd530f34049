"""Many clips in padded batches: the codes of each clip alone, but for ties that the order of a
float sum decides.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from codecplus.inference.chunked import encode_blocks
from codecplus.modeling_dac import DacModel

_MAX_PADDING = 0.2  # of a row: shorter clips go into the next batch


def encode_clips(
    model: DacModel, clips: Sequence[np.ndarray], n_quantizers: int, batch_seconds: float
) -> list[np.ndarray]:
    """Codes, int16 (C, K, T) each, of clips, float32 (C, S) each, at the model's rate.

    Rows of similar length are padded into batches of up to `batch_seconds` of audio; what is longer
    goes alone, in chunks. With 0 every clip goes alone and gives the bits that it gives anywhere.
    The batches depend on the clips and their order only, never on timing.
    """
    hop, rate = model.config.hop_length, model.config.sampling_rate
    limit = int(batch_seconds * rate) // hop  # frames of a batch
    frames = [-(-clip.shape[-1] // hop) for clip in clips]
    done: list[np.ndarray | None] = [None] * len(clips)
    for i, clip in enumerate(clips):
        if frames[i] * len(clip) > limit:
            done[i] = np.concatenate(list(encode_blocks(model, [clip], n_quantizers)), axis=-1)
    short = sorted((i for i in range(len(clips)) if done[i] is None), key=lambda i: -frames[i])
    for batch in _batches(short, frames, [len(clip) for clip in clips], limit):
        codes = _encode_padded(model, [clips[i] for i in batch], frames[batch[0]], n_quantizers)
        row = 0
        for i in batch:
            done[i] = codes[row : row + len(clips[i]), :, : frames[i]].copy()
            row += len(clips[i])
    return [codes for codes in done if codes is not None]


def _batches(
    order: list[int], frames: list[int], rows: list[int], limit: int
) -> Iterator[list[int]]:
    """Indices in descending order of length, cut where a batch is full or its rows would be mostly
    padding.
    """
    batch: list[int] = []
    for i in order:
        longest = frames[batch[0]] if batch else 0
        full = (sum(rows[j] for j in batch) + rows[i]) * longest > limit
        if batch and (full or frames[i] < (1 - _MAX_PADDING) * longest):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _encode_padded(
    model: DacModel, clips: list[np.ndarray], frames: int, n_quantizers: int
) -> np.ndarray:
    """Codes (B, K, T) of all rows of clips (C, S), padded to so many frames."""
    hop = model.config.hop_length
    rows = [row for clip in clips for row in clip]
    audio = np.zeros((len(rows), 1, frames * hop), np.float32)
    for i, row in enumerate(rows):
        audio[i, 0, : len(row)] = row
    lengths = torch.tensor([-(-len(row) // hop) * hop for row in rows], device=model.device)
    with torch.inference_mode():
        latents = model.encoder(
            torch.from_numpy(audio).to(model.device, model.dtype),
            None if bool((lengths == audio.shape[-1]).all()) else lengths,
        )
        codes = model.quantizer(latents, n_quantizers)[1]
    return codes.to(torch.int16).cpu().numpy()
