"""Integer codes as users hold them: an array that remembers which signal it stands for."""

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
        self.info = getattr(source, "info", None)
        self.num_samples = None
        if source is not None and self.shape == source.shape:
            self.num_samples = getattr(source, "num_samples", None)

    def __array_wrap__(self, array, context=None, return_scalar=False):
        """Results of arithmetic and comparison are plain arrays: they are no codes any more."""
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain

    def __getitem__(self, index):
        view = super().__getitem__(index)
        if not isinstance(view, Codes) or self.ndim < 2 or self.info is None:
            return view
        codebooks, frames = self.shape[-2:]
        # The same index into the numbers of codebooks and frames tells which of them were taken.
        codebook_numbers = np.broadcast_to(np.arange(codebooks)[:, None], self.shape)[index]
        frame_numbers = np.broadcast_to(np.arange(frames), self.shape)[index]
        view.num_samples = None
        if view.ndim < 2 or 0 in view.shape:
            view.info = None
            return view
        first_codebooks = np.arange(view.shape[-2])[:, None]
        if not (codebook_numbers == first_codebooks).all():
            view.info = None
        elif view.shape[-1] == frames and (frame_numbers == np.arange(frames)).all():
            view.num_samples = self.num_samples
        return view

    def __reduce__(self):
        return Codes, (np.asarray(self), self.info, self.num_samples)


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
