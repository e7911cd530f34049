"""Arrays as audio: types, shapes, finite values, blocks.

Letters: C channels, S samples. Arrays are float32, full scale is ±1.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from codecplus.errors import InputError

MAX_CHANNELS = 64
MIN_RATE, MAX_RATE = 4_000, 1_000_000  # Hz; K-weighting has no meaning below 3 kHz
BLOCK_SAMPLES = 1 << 16  # libsndfile's Vorbis encoder keeps a whole write on the stack
_INTEGER_SCALES = {
    "uint8": (128, 2.0**7),
    "int16": (0, 2.0**15),
    "int32": (0, 2.0**31),
}  # zero, full scale


def as_audio(x: Any) -> np.ndarray:
    """Turn arrays, lists and tensors into float32 audio, (samples,) or (channels, samples).

    Floating point is taken as it is; int16, int32 and uint8 are scaled to [-1, 1) as in a WAV file.
    Tensors may be on any device and require grad. The result may share memory with `x`.

    Raises InputError for other types and shapes, no samples, more than 64 channels, and NaN or
    infinite values.
    """
    audio = _as_float32(x)
    if audio.ndim not in (1, 2):
        raise InputError(
            f"expected audio of shape (samples,) or (channels, samples), got {audio.shape}; "
            "pass one item of a batch at a time"
        )
    if audio.size == 0:
        raise InputError(f"expected audio with at least 1 sample, got shape {audio.shape}")
    if audio.ndim == 2 and audio.shape[0] > MAX_CHANNELS:
        raise InputError(
            f"expected (channels, samples) with at most {MAX_CHANNELS} channels, "
            f"got {audio.shape}; if this is (samples, channels), pass its transpose"
        )
    return check_finite(audio)


def _as_float32(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):  # a torch tensor
        x = x.detach().cpu()
        if x.is_floating_point():
            x = x.float()  # numpy knows no bfloat16
        x = x.numpy()
    try:
        array = np.asarray(x)
    except (TypeError, ValueError):  # such as a ragged list
        array = np.empty(0, object)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # becomes infinite, which is refused by name
            return np.asarray(array, dtype=np.float32, order="C")
    if array.dtype.name in _INTEGER_SCALES:
        zero, scale = _INTEGER_SCALES[array.dtype.name]
        return (array.astype(np.float32) - np.float32(zero)) / np.float32(scale)
    got = f"{array.dtype} values"
    if array.dtype.kind in "OUSM":
        got = type(x).__name__
    raise InputError(
        f"expected audio as floats in [-1, 1], or int16, int32, uint8, got {got}; "
        "divide other integers by full scale"
    )


def check_finite(audio: np.ndarray) -> np.ndarray:
    """Return the audio; raise InputError, which names the index of the first, if it holds NaN or
    infinite values.
    """
    finite = np.isfinite(audio)
    if finite.all():
        return audio
    index = np.unravel_index(int(np.argmin(finite)), audio.shape)
    first = tuple(int(i) for i in index)
    raise InputError(
        f"expected finite audio, got {audio.size - int(finite.sum())} NaN or infinite values "
        f"of {audio.size}, the first at index {first[0] if audio.ndim == 1 else first}"
    )


def as_block(x: Any, channels: int) -> np.ndarray:
    """Return one piece of a longer signal as float32 (C, S), S >= 0; for one channel also (S,) is
    taken.

    Raises InputError for other shapes and types, and for NaN or infinite values.
    """
    block = _as_float32(x)
    shape = block.shape
    if block.ndim == 1:
        block = block[None]
    if block.ndim != 2 or block.shape[0] != channels:
        raise InputError(f"expected a block of shape ({channels}, samples), got {shape}")
    return check_finite(block)


def check_count(name: str, value: Any, lowest: int, highest: int) -> int:
    """Return the value as an integer; raise InputError unless it is one from `lowest` to
    `highest`.
    """
    number = isinstance(value, int | float | np.integer | np.floating)
    if not number or isinstance(value, bool) or value % 1 or not lowest <= value <= highest:
        raise InputError(f"expected {name} as an integer from {lowest} to {highest}, got {value!r}")
    return int(value)


def check_rate(value: Any, name: str = "sample_rate") -> int:
    """Return a rate in Hz as an integer; raise InputError unless it lies from 4 kHz to 1 MHz."""
    return check_count(name, value, MIN_RATE, MAX_RATE)


def split_blocks(audio: np.ndarray) -> Iterator[np.ndarray]:
    """Yield audio (C, S) in blocks (C, n) of at most `BLOCK_SAMPLES`."""
    for start in range(0, audio.shape[1], BLOCK_SAMPLES):
        yield audio[:, start : start + BLOCK_SAMPLES]
