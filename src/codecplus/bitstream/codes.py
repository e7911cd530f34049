"""Integer codes as users hold them: an array that remembers which signal it stands for."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from codecplus.bitstream.header import StreamInfo
from codecplus.errors import InputError


class Codes(np.ndarray):
    """Codes of one clip, int16 (codebooks, frames) for mono, else (channels, codebooks, frames).

    Beside the integers it keeps `info` (rates, gain, the model's fingerprint) and `num_samples`,
    the exact length of the signal. Indexing keeps what stays true: the first codebooks of all
    frames keep everything; some of the frames keep `info`, and decode to all samples of these
    frames; codebooks other than the first ones keep nothing, since no decoder plays them alone.
    Codes of one model, rate and gain stay codes where `np.concatenate` joins them along frames,
    channels or clips, or `np.stack` along a new first axis; joined frames decode to all of their
    samples. What is joined otherwise is a plain array.

    -1 stands for a codebook that a frame of a variable-rate signal does without.
    """

    info: StreamInfo | None
    num_samples: int | None

    def __new__(cls, codes: Any, info: StreamInfo | None = None, num_samples: int | None = None):
        """View integer codes (..., K, T) as `Codes`."""
        array = np.asarray(codes, dtype=np.int16).view(cls)
        array.info = info
        array.num_samples = num_samples
        return array

    def __array_finalize__(self, source: Any) -> None:
        self.info = None
        self.num_samples = None
        if source is not None and self.shape == source.shape:
            self.info = getattr(source, "info", None)
            self.num_samples = getattr(source, "num_samples", None)

    def __array_wrap__(self, array, context=None, return_scalar=False):
        """Results of arithmetic and comparison are plain arrays: they are no codes any more."""
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain

    def __array_function__(self, func, types, args, kwargs):
        """Compute as arrays do, and keep what is true of codes that are put together."""
        result = super().__array_function__(func, types, args, kwargs)
        if func is np.concatenate and isinstance(result, np.ndarray):  # np.stack calls it, too
            return _joined(result, *args, **kwargs)
        if func is np.roll and type(result) is Codes:
            return _rolled(result, *args, **kwargs)
        return result

    def __getitem__(self, index):
        return self._part(super().__getitem__(index), lambda numbers: numbers[index])

    # NumPy would let these go with `info` lost, or kept where it is not true any more.

    def reshape(self, *shape, **options):
        """Return the codes in another shape, as arrays do."""
        plain = np.asarray(self).reshape(*shape, **options)
        return self._part(plain, lambda numbers: numbers.reshape(*shape, **options))

    def squeeze(self, axis=None):
        """Return the codes without axes of length 1, as arrays do."""
        return self._part(np.asarray(self).squeeze(axis), lambda numbers: numbers.squeeze(axis))

    def take(self, indices, axis=None, **options):
        """Return a part of the codes, as arrays do."""
        plain = np.asarray(self).take(indices, axis, **options)
        return self._part(plain, lambda numbers: numbers.take(indices, axis))

    def repeat(self, repeats, axis=None):
        """Return the codes with parts repeated, as arrays do."""
        plain = np.asarray(self).repeat(repeats, axis)
        return self._part(plain, lambda numbers: numbers.repeat(repeats, axis))

    def transpose(self, *axes):
        """Return the codes with their axes in another order, as arrays do."""
        plain = np.asarray(self).transpose(*axes)
        return self._part(plain, lambda numbers: numbers.transpose(*axes))

    def swapaxes(self, axis1, axis2):
        """Return the codes with two axes exchanged, as arrays do."""
        plain = np.asarray(self).swapaxes(axis1, axis2)
        return self._part(plain, lambda numbers: numbers.swapaxes(axis1, axis2))

    @property
    def T(self):
        """The codes with their axes in reverse order, as of arrays."""
        return self.transpose()

    @property
    def mT(self):
        """The codes with their last two axes exchanged, as of arrays."""
        return self.swapaxes(-1, -2)

    def _part(self, part: Any, take: Callable[[np.ndarray], np.ndarray]) -> Any:
        """Return a part of these codes with all of `info` and `num_samples` that is true of it.

        `take` takes the same from the numbers of codebooks and frames, which tells which of them
        were taken.
        """
        if not isinstance(part, np.ndarray) or self.ndim < 2 or self.info is None:
            return part
        view = part.view(Codes)
        view.info = None
        view.num_samples = None
        codebooks, frames = self.shape[-2:]
        if holds_codes(take(np.broadcast_to(np.arange(codebooks)[:, None], self.shape))):
            view.info = self.info
            if holds_all_frames(take(np.broadcast_to(np.arange(frames), self.shape)), frames):
                view.num_samples = self.num_samples
        return view

    def __reduce__(self):
        return Codes, (np.asarray(self), self.info, self.num_samples)


def _joined(
    result: np.ndarray, parts: Sequence[Any], axis: int | None = 0, out: Any = None, **_: Any
) -> np.ndarray:
    """Return the result of `np.concatenate` as codes if it is some, else as a plain array."""
    if out is not None or axis is None or result.dtype != np.int16:
        return result
    facts = joined_facts(parts, axis % result.ndim - result.ndim)
    if facts is None:
        return np.asarray(result)
    codes = result.view(Codes)
    codes.info, codes.num_samples = facts
    return codes


def _rolled(result: Any, a: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the result of `np.roll` for codes `a` with what stays true."""
    return a._part(np.asarray(result), lambda numbers: np.roll(numbers, *args, **kwargs))


def joined_facts(parts: Sequence[Any], axis: int) -> tuple[StreamInfo, int | None] | None:
    """Return `info` and `num_samples` of parts (..., K, T) that are joined along an axis.

    The axis counts from the end of the result, -1 for frames. Along frames, channels and clips,
    codes stay codes if all have the same model, rates and gain; else the result is None.
    """
    kind = _kind(parts[0])
    if kind is None or axis == -2 or any(_kind(part) != kind for part in parts):
        return None
    num_samples = parts[0].num_samples
    if axis == -1 or any(part.num_samples != num_samples for part in parts):
        num_samples = None
    return parts[0].info, num_samples


def _kind(codes: Any) -> StreamInfo | None:
    """Return the info of codes without the sizes that are those of the array."""
    info = getattr(codes, "info", None)
    if info is None or codes.ndim < 2:
        return None
    return replace(info, channels=1, num_codebooks=1, block_length=0, entropy_model=None)


def holds_codes(codebook_numbers: np.ndarray) -> bool:
    """Return whether a part of some codes is codes too.

    It is if it has the first codebooks of at least one frame, by the numbers (..., K, T) of the
    codebooks that were taken.
    """
    if codebook_numbers.ndim < 2 or 0 in codebook_numbers.shape:
        return False
    return bool((codebook_numbers == np.arange(codebook_numbers.shape[-2])[:, None]).all())


def holds_all_frames(frame_numbers: np.ndarray, frames: int) -> bool:
    """Return whether the numbers (..., T) are those of all frames, in their order."""
    return frame_numbers.shape[-1] == frames and bool((frame_numbers == np.arange(frames)).all())


def check_codes(codes: Any, num_codebooks: int, codebook_size: int) -> np.ndarray:
    """Return codes as an integer array (channels, codebooks, frames).

    Args:
        codes: integers of any type, (codebooks, frames) or (channels, codebooks, frames); `Codes`
            may leave out finer codebooks of a frame by -1.
        num_codebooks, codebook_size: those that the model has.

    Raises InputError for another shape or type, too many codebooks, or values out of range.
    """
    variable_rate = isinstance(codes, Codes) and codes.info is not None
    if hasattr(codes, "detach"):  # a torch tensor
        codes = codes.detach().cpu()  # pyright: ignore[reportAttributeAccessIssue]
    array = np.asarray(codes)
    if array.ndim not in (2, 3) or array.dtype.kind not in "iu" or 0 in array.shape:
        raise InputError(
            "expected integer codes of shape (codebooks, frames) or (channels, codebooks, "
            f"frames), got {array.dtype} of shape {array.shape}"
        )
    array = array.reshape(-1, *array.shape[-2:])
    if array.shape[1] > num_codebooks:
        raise InputError(f"expected codes of 1 to {num_codebooks} codebooks, got {array.shape[1]}")
    lowest = int(array.min())
    highest = int(array.max())
    if variable_rate and lowest == -1 and _is_cut_short(array):
        lowest = 0
    if lowest < 0 or highest >= codebook_size:
        raise InputError(
            f"expected codes from 0 to {codebook_size - 1}, got {lowest} to {highest}; "
            "take padding out before decoding"
        )
    return array


def _is_cut_short(codes: np.ndarray) -> bool:
    """Return whether -1 stands in the finer codebooks of a frame alone, never in its first."""
    left_out = codes < 0  # (C, K, T)
    return bool(not left_out[:, 0].any() and (left_out[:, 1:] >= left_out[:, :-1]).all())


def info_for(codes: np.ndarray, info: StreamInfo) -> StreamInfo:
    """Return the info of codes (C, K, T) that were cut out of a signal with this info."""
    return replace(info, channels=codes.shape[0], num_codebooks=codes.shape[1])
