"""How many codebooks each frame is written with: by what can be heard, or to meet a file size.

Letters: C channels, K codebooks, T frames, S samples, M mel bands.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import tee

import numpy as np
import torch
from torch import Tensor

from codecplus.audio.mel import mel_spectrogram
from codecplus.inference.chunked import chunk_frames, decode_blocks
from codecplus.inference.windows import windows
from codecplus.modeling_dac import DacNetwork

_MEL_BANDS = 64
_MEL_SECONDS = 0.046  # of the analysis window
_FLOOR = 1e-3  # of the loudest band of a window, or of full scale: nobody hears what lies below
_LEVELS = 6  # numbers of codebooks that a frame may have, beside 1

Encoder = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]
"""Codes (C, K, T) in pieces, of audio (C, n) in blocks."""


def codebook_levels(num_codebooks: int) -> list[int]:
    """The numbers of codebooks that a frame of a variable-rate file may have."""
    return sorted({max(1, round(num_codebooks * i / _LEVELS)) for i in range(_LEVELS + 1)})


def audible_errors(
    model: DacNetwork, blocks: Iterable[np.ndarray], encode: Encoder
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Encode audio, and measure what each frame would lose with fewer codebooks.

    Args:
        model: decodes the codes.
        blocks: audio (C, n) at the model's rate.
        encode: gives the codes of such audio.

    Yields:
        Codes, int16 (C, K, T), and errors, float32 (levels, C, T): for each of `codebook_levels`
        the mean difference in dB between the mel spectra of original and decoded audio. Bands that
        nobody hears count as equal.
    """
    hop_length = model.config.hop_length
    n_fft = 1 << round(math.log2(_MEL_SECONDS * model.config.sampling_rate))
    past, future = model.decoder_reach
    mel_context = -(-n_fft // (2 * hop_length))
    context = (past + mel_context, future + mel_context)
    frames = chunk_frames(model)

    for_encoder, for_comparison = tee(blocks)
    code_windows = windows(encode(for_encoder), 1, *context, frames)
    audio_windows = windows(for_comparison, hop_length, *context, frames)
    for (codes, start, stop), (audio, _, _) in zip(code_windows, audio_windows, strict=True):
        errors = _level_errors(model, codes.astype(np.int64), audio, n_fft)
        yield codes[..., start:stop].astype(np.int16), errors[..., start:stop]


def _level_errors(
    model: DacNetwork, codes: np.ndarray, audio: np.ndarray, n_fft: int
) -> np.ndarray:  # (C, K, T), (C, S) -> (levels, C, T)
    original = _frame_mels(model, audio, n_fft)
    floor = torch.clamp(_FLOOR * original.amax(dim=(1, 2), keepdim=True), min=_FLOOR)
    errors = []
    for level in codebook_levels(codes.shape[1]):
        decoded = np.concatenate(list(decode_blocks(model, [codes[:, :level]])), axis=-1)
        ratio = torch.log10(_frame_mels(model, decoded, n_fft) + floor) - torch.log10(
            original + floor
        )
        errors.append((20 * ratio).abs().mean(dim=1).numpy())
    return np.stack(errors)


def _frame_mels(model: DacNetwork, audio: np.ndarray, n_fft: int) -> Tensor:
    """Mel spectra at the middle of each frame: (C, S) -> (C, M, T)."""
    hop_length = model.config.hop_length
    padded = np.pad(audio, ((0, 0), (0, hop_length)))[:, hop_length // 2 :]
    spectrum = mel_spectrogram(
        torch.from_numpy(padded.copy()),
        model.config.sampling_rate,
        n_mels=_MEL_BANDS,
        n_fft=n_fft,
        hop_length=hop_length,
    )
    return spectrum[..., : audio.shape[-1] // hop_length]


def leave_out(codes: np.ndarray, errors: np.ndarray, tolerance: float) -> np.ndarray:
    """Leave out the codebooks that a frame can do without.

    Args:
        codes: (C, K, T).
        errors: (levels, C, T), from `audible_errors`.
        tolerance: dB that a frame and its neighbours may be further off than with all codebooks.

    Returns:
        Codes, int16 (C, K, T), with -1 for codebooks left out.
    """
    levels = np.array(codebook_levels(codes.shape[1]))
    excess = np.pad(errors - errors[-1:], ((0, 0), (0, 0), (1, 1)), mode="edge")
    excess = np.maximum(np.maximum(excess[..., :-2], excess[..., 1:-1]), excess[..., 2:])
    is_enough = excess <= tolerance
    is_enough[-1] = True
    counts = levels[np.argmax(is_enough, axis=0)]  # (C, T)
    numbers = np.arange(codes.shape[1])[:, None]
    return np.where(numbers < counts[:, None], codes, -1).astype(np.int16)


def quality_tolerance(quality: float) -> float:
    """The tolerance in dB of a quality from 0 to 10; 10 allows none."""
    return 0.4 * (10 - quality) ** 1.25


def tolerance_for_size(size_at: Callable[[float], int], target: float) -> float:
    """Find the tolerance whose file comes nearest to a size.

    Args:
        size_at: gives the bytes of the file at a tolerance in dB.
        target: bytes.
    """
    # Tolerances are sinh of the values searched: fine steps around 0, where they matter.
    low = -5.0
    high = 5.0
    sizes = {low: size_at(math.sinh(low)), high: size_at(math.sinh(high))}
    for _ in range(14):
        nearest = _nearest(sizes, target)
        if abs(sizes[nearest] - target) <= 0.005 * target:
            break
        if not sizes[high] < target < sizes[low]:
            break
        middle = (low + high) / 2
        sizes[middle] = size_at(math.sinh(middle))
        if sizes[middle] > target:
            low = middle
        else:
            high = middle
    return math.sinh(_nearest(sizes, target))


def _nearest(sizes: dict[float, int], target: float) -> float:
    return min(sizes, key=lambda value: abs(sizes[value] - target))
