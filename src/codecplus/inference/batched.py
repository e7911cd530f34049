"""Many clips in padded batches.

Each clip gets the codes that it gets alone, but for ties that the order of a float sum decides.
Letters: C channels, S samples, K codebooks, T frames, B rows of a batch.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from codecplus.inference.chunked import encode_blocks
from codecplus.modeling_dac import DacNetwork

_MAX_PADDING = 0.2  # of a row: shorter clips go into the next batch


def encode_clips(
    model: DacNetwork, clips: Sequence[np.ndarray], n_quantizers: int, batch_seconds: float
) -> list[np.ndarray]:
    """Encode clips, float32 (C, S) at the model's rate, to int16 (C, K, T) each.

    Rows of similar length are padded into batches of up to `batch_seconds` of audio; what is longer
    goes alone, in chunks. With 0 every clip goes alone and gives the bits that it gives anywhere.
    The batches depend on the clips and their order only, never on timing.
    """
    hop = model.config.hop_length
    limit = int(batch_seconds * model.config.sampling_rate) // hop  # frames of a batch
    frames = [-(-clip.shape[-1] // hop) for clip in clips]
    rows = [len(clip) for clip in clips]
    all_codes: dict[int, np.ndarray] = {}
    short = []
    for i, clip in enumerate(clips):
        if frames[i] * rows[i] > limit:
            pieces = encode_blocks(model, [clip], n_quantizers)
            all_codes[i] = np.concatenate(list(pieces), axis=-1)
        else:
            short.append(i)
    short.sort(key=lambda i: -frames[i])
    for batch in _batches(short, frames, rows, limit):
        codes = _encode_padded(model, [clips[i] for i in batch], frames[batch[0]], n_quantizers)
        first = 0
        for i in batch:
            all_codes[i] = codes[first : first + rows[i], :, : frames[i]].copy()
            first += rows[i]
    return [all_codes[i] for i in range(len(clips))]


def _batches(
    order: list[int], frames: list[int], rows: list[int], limit: int
) -> Iterator[list[int]]:
    """Yield clips that go into one batch.

    Args:
        order: indices of clips, the longest first.
        frames, rows: of every clip.
        limit: frames of a batch, in all rows together.
    """
    batch: list[int] = []
    rows_so_far = 0
    for i in order:
        if batch:
            longest = frames[batch[0]]
            is_full = (rows_so_far + rows[i]) * longest > limit
            mostly_padding = frames[i] < (1 - _MAX_PADDING) * longest
            if is_full or mostly_padding:
                yield batch
                batch = []
                rows_so_far = 0
        batch.append(i)
        rows_so_far += rows[i]
    if batch:
        yield batch


def _encode_padded(
    model: DacNetwork, clips: list[np.ndarray], frames: int, n_quantizers: int
) -> np.ndarray:
    """Encode all rows of clips (C, S), padded to `frames`, to codes (B, K, T)."""
    hop = model.config.hop_length
    rows = [row for clip in clips for row in clip]
    audio = np.zeros((len(rows), 1, frames * hop), np.float32)
    for i, row in enumerate(rows):
        audio[i, 0, : len(row)] = row
    whole_frames = [-(-len(row) // hop) * hop for row in rows]
    lengths = None
    if min(whole_frames) < audio.shape[-1]:
        lengths = torch.tensor(whole_frames, device=model.device)
    with torch.inference_mode():
        latents = model.analyze(torch.from_numpy(audio).to(model.device), lengths)
        codes = model.quantizer(latents, n_quantizers)[1]
    return codes.to(torch.int16).cpu().numpy()
