"""How many codebooks each frame is written with: by what can be heard, or to meet a rate."""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from codecplus.audio.mel import mel_spectrogram
from codecplus.inference.chunked import chunk_frames, decode_blocks
from codecplus.inference.windows import windows
from codecplus.modeling_dac import DacModel

_BATCH_FRAMES = 128  # searched at once
_MEL_BANDS, _MEL_SECONDS = 64, 0.046  # the analysis of a frame's error
_FLOOR = 1e-3  # what is so far below the loudest band of the last seconds, or below full scale, is not heard
_LEVELS = 6  # numbers of codebooks that a frame may have, beside 1


def codebook_levels(num_codebooks: int) -> list[int]:
    """The numbers of codebooks that a frame of a variable-rate file may have."""
    return sorted({max(1, round(num_codebooks * i / _LEVELS)) for i in range(_LEVELS + 1)})


def audible_errors(
    model: DacModel,
    blocks: Iterable[np.ndarray],
    code_blocks: Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Encode audio (C, S) in blocks by `code_blocks`, and tell how far every frame is off at fewer
    codebooks.

    Yields pieces of codes, int16 (C, K, T), and errors, float32 (levels, C, T): mean difference in
    dB of the mel spectra of original and decoded audio at these `codebook_levels`, where bands that
    nobody hears count as equal.
    """
    config, waiting = model.config, _Pending()
    hop, rate = config.hop_length, config.sampling_rate
    fft = 1 << round(math.log2(_MEL_SECONDS * rate))

    def mel(audio: np.ndarray) -> Tensor:  # (C, S) -> (C, M, T), at the middle of each frame
        padded = np.pad(audio, ((0, 0), (0, hop)))[:, hop // 2 :]
        options = {"n_mels": _MEL_BANDS, "n_fft": fft, "hop_length": hop}
        spectrum = mel_spectrogram(torch.from_numpy(padded.copy()), rate, **options)
        return spectrum[..., : audio.shape[-1] // hop]

    def together() -> Iterator[np.ndarray]:
        """Codes and the samples of their frames, float32 (C, K + hop, T)."""
        for codes in code_blocks(waiting.passing(blocks)):
            channels, _, frames = codes.shape
            samples = (
                waiting.take(frames * hop, channels)
                .reshape(channels, frames, hop)
                .transpose(0, 2, 1)
            )
            yield np.concatenate([codes.astype(np.float32), samples], axis=1)

    past, future = model.decoder_reach
    context = -(-fft // (2 * hop))
    for window, start, stop in windows(
        together(), 1, past + context, future + context, chunk_frames(model)
    ):
        codes = window[:, :-hop].astype(np.int64)
        channels, K, _ = codes.shape
        original = np.ascontiguousarray(window[:, -hop:].transpose(0, 2, 1)).reshape(channels, -1)

        wanted = mel(original)
        floor = torch.clamp(_FLOOR * wanted.amax(dim=(1, 2), keepdim=True), min=_FLOOR)
        errors = []
        for level in codebook_levels(K):
            decoded = np.concatenate(list(decode_blocks(model, [codes[:, :level]])), axis=-1)
            difference = 20 * (torch.log10(mel(decoded) + floor) - torch.log10(wanted + floor))
            errors.append(difference.abs().mean(dim=1)[..., start:stop].numpy())
        yield codes[..., start:stop].astype(np.int16), np.stack(errors)


def truncated(codes: np.ndarray, errors: np.ndarray, tolerance: float) -> np.ndarray:
    """Codes (C, K, T) with -1 for the codebooks that a frame can do without.

    A frame keeps the fewest codebooks with which it and its neighbours are at most `tolerance` dB
    further off than with all; errors (levels, C, T) as of `audible_errors`.
    """
    levels = np.array(codebook_levels(codes.shape[1]))
    worse = np.pad(errors - errors[-1:], ((0, 0), (0, 0), (1, 1)), mode="edge")
    worse = np.maximum(np.maximum(worse[..., :-2], worse[..., 1:-1]), worse[..., 2:])
    enough = worse <= tolerance
    enough[-1] = True
    kept = levels[np.argmax(enough, axis=0)]  # (C, T)
    return np.where(np.arange(codes.shape[1])[:, None] < kept[:, None], codes, -1).astype(np.int16)


def tolerance_of(quality: float) -> float:
    """dB that a frame may be further off than with all codebooks, at a quality from 0 to 10."""
    return 0.4 * (10 - quality) ** 1.25


def meet_target(size_of: Callable[[float], int], target: float) -> float:
    """The tolerance whose file comes nearest to `target` bytes; `size_of` gives the size at a
    tolerance.
    """
    low, high = -5.0, 5.0  # tolerances are sinh of these: fine steps around 0, where they matter
    sizes = {low: size_of(math.sinh(low)), high: size_of(math.sinh(high))}
    for _ in range(14):
        best = min(sizes, key=lambda place: abs(sizes[place] - target))
        if abs(sizes[best] - target) <= 0.005 * target or not sizes[high] < target < sizes[low]:
            break
        middle = (low + high) / 2
        sizes[middle] = size_of(math.sinh(middle))
        low, high = (middle, high) if sizes[middle] > target else (low, middle)
    return math.sinh(min(sizes, key=lambda place: abs(sizes[place] - target)))


class _Pending:
    """Samples that went into an encoder and are waiting for their codes."""

    def __init__(self) -> None:
        self.blocks: list[np.ndarray] = []

    def passing(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same blocks (C, n), remembered."""
        for block in blocks:
            self.blocks.append(block)
            yield block

    def take(self, count: int, channels: int) -> np.ndarray:
        """The next samples (C, count), zeros where the signal has ended."""
        held = np.concatenate(self.blocks or [np.zeros((channels, 0), np.float32)], axis=-1)
        self.blocks = [held[:, count:]]
        return np.pad(held[:, :count], ((0, 0), (0, count - min(count, held.shape[-1]))))
