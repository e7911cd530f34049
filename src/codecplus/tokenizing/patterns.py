"""Layouts of codes (…, K, T) as tokens for language models, and their inverses.

Pure functions on numpy arrays and torch tensors.

>>> codes = np.array([[1, 2, 3], [4, 5, 6]])                 # 2 codebooks of 8 codes, 3 frames
>>> tokens = wrap(flatten(offset(codes, 8, first=2)), bos=0, eos=1)
>>> tokens.tolist()
[0, 3, 14, 4, 15, 5, 16, 1]
>>> unoffset(unflatten(unwrap(tokens, bos=0, eos=1), 2), 8, first=2).tolist()
[[1, 2, 3], [4, 5, 6]]
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from codecplus.errors import InputError


def delay(codes: Any, fill: int, delays: Sequence[int] | None = None) -> Any:
    """Shift each codebook right: (…, K, T) -> (…, K, T + max(delays)).

    This is the delay pattern of MusicGen (Copet et al. 2023): a model predicts all codebooks of a
    step at once, and each of them after the coarser ones of its own frame.

    Args:
        codes: the codes.
        fill: the value where there is no code.
        delays: frames by which each codebook is shifted; by default codebook k by k frames.

    Raises:
        InputError: for delays or codes of a wrong shape, and a value that the type cannot hold.

    >>> delay(np.array([[1, 2, 3], [4, 5, 6]]), fill=0)
    array([[1, 2, 3, 0],
           [0, 4, 5, 6]])
    """
    codes = _array(codes, 2)
    shifts = _delays(delays, codes.shape[-2])
    frames = codes.shape[-1]
    _check_fits(fill, codes)
    shape = (*codes.shape[:-1], frames + max(shifts))
    out = _filled(shape, fill, codes)
    for k, shift in enumerate(shifts):
        out[..., k, shift : shift + frames] = codes[..., k, :]
    return out


def undelay(delayed: Any, delays: Sequence[int] | None = None) -> Any:
    """Undo `delay`: (…, K, T + max(delays)) -> (…, K, T).

    Raises InputError for fewer steps than the largest delay.

    >>> undelay(np.array([[1, 2, 3, 0], [0, 4, 5, 6]]))
    array([[1, 2, 3],
           [4, 5, 6]])
    """
    delayed = _array(delayed, 2)
    shifts = _delays(delays, delayed.shape[-2])
    frames = delayed.shape[-1] - max(shifts)
    if frames < 0:
        raise InputError(
            f"expected at least {max(shifts)} steps for these delays, got {delayed.shape[-1]}"
        )
    codebooks = []
    for k, shift in enumerate(shifts):
        codebooks.append(delayed[..., k : k + 1, shift : shift + frames])
    return _concatenate(codebooks, axis=-2)


def flatten(codes: Any) -> Any:
    """Interleave codebooks frame by frame, coarse to fine: (…, K, T) -> (…, T * K).

    >>> flatten(np.array([[1, 2, 3], [4, 5, 6]]))
    array([1, 4, 2, 5, 3, 6])
    """
    codes = _array(codes, 2)
    return codes.swapaxes(-1, -2).reshape(*codes.shape[:-2], -1)


def unflatten(tokens: Any, num_codebooks: int) -> Any:
    """Undo `flatten`: (…, T * K) -> (…, K, T).

    Raises InputError for an incomplete last frame.

    >>> unflatten(np.array([1, 4, 2, 5, 3, 6]), 2)
    array([[1, 2, 3],
           [4, 5, 6]])
    """
    tokens = _array(tokens, 1)
    if num_codebooks < 1 or tokens.shape[-1] % num_codebooks:
        raise InputError(
            f"expected whole frames of {num_codebooks} codes, got {tokens.shape[-1]} tokens; "
            "cut off the last frame"
        )
    return tokens.reshape(*tokens.shape[:-1], -1, num_codebooks).swapaxes(-1, -2)


def offset(codes: Any, codebook_size: int, first: int = 0) -> Any:
    """Give every codebook ids of its own: (…, K, T) -> (…, K, T), 64-bit integers.

    Code c of codebook k becomes first + k * codebook_size + c. Ids below `first` are left for text
    or special tokens. The vocabulary has first + K * codebook_size ids. Raises InputError for codes
    outside of the codebook.

    >>> offset(np.array([[1, 2, 3], [4, 5, 6]]), 8, first=100)
    array([[101, 102, 103],
           [112, 113, 114]])
    """
    codes = _as_64_bits(_array(codes, 2))
    _check_range(codes, 0, codebook_size, "codes")
    return codes + _first_ids(codes, codebook_size, first)


def unoffset(tokens: Any, codebook_size: int, first: int = 0) -> Any:
    """Undo `offset`: (…, K, T) -> (…, K, T), 64-bit integers.

    Raises InputError for an id that belongs to another codebook than its row.

    >>> unoffset(np.array([[101, 102, 103], [112, 113, 114]]), 8, first=100)
    array([[1, 2, 3],
           [4, 5, 6]])
    """
    tokens = _as_64_bits(_array(tokens, 2))
    codes = tokens - _first_ids(tokens, codebook_size, first)
    _check_range(codes, 0, codebook_size, "ids of each codebook, less its offset,")
    return codes


def wrap(tokens: Any, *, bos: int | None = None, eos: int | None = None) -> Any:
    """Put special tokens around a sequence: (…, N) -> (…, 1 + N + 1).

    A token that is None is left out. Raises InputError for one that the type cannot hold.

    >>> wrap(np.array([7, 8]), bos=1, eos=2)
    array([1, 7, 8, 2])
    """
    tokens = _array(tokens, 1)
    shape = (*tokens.shape[:-1], 1)
    sequence = [tokens]
    if bos is not None:
        _check_fits(bos, tokens)
        sequence.insert(0, _filled(shape, bos, tokens))
    if eos is not None:
        _check_fits(eos, tokens)
        sequence.append(_filled(shape, eos, tokens))
    return _concatenate(sequence, axis=-1)


def unwrap(tokens: Any, *, bos: int | None = None, eos: int | None = None) -> Any:
    """Undo `wrap` for one sequence (N,): return the tokens between `bos` and the first `eos`.

    Without an `eos`, as when generation was stopped, the sequence is taken to its end. Raises
    InputError for several sequences, and for one that does not start with `bos`.

    >>> unwrap(np.array([1, 7, 8, 2, 0, 0]), bos=1, eos=2)
    array([7, 8])
    """
    tokens = _array(tokens, 1)
    if tokens.ndim != 1:
        raise InputError(
            f"expected one sequence (N,), got {tuple(tokens.shape)}; sequences of a batch end apart"
        )
    if bos is not None:
        if not tokens.shape[0] or int(tokens[0]) != bos:
            raise InputError(
                f"expected a sequence that starts with {bos}, got {tokens[:4].tolist()} …"
            )
        tokens = tokens[1:]
    if eos is not None:
        is_end = tokens == eos
        if is_end.any():
            tokens = tokens[: int((is_end * 1).argmax())]  # the first maximum
    return tokens


def _array(x: Any, axes: int) -> Any:
    """Return a torch tensor as it is, anything else as a numpy array of integers.

    Raises InputError for other values, and for fewer than `axes` axes.
    """
    if not _is_tensor(x):
        x = np.asarray(x)
        if x.dtype.kind not in "iu":
            raise InputError(f"expected integers, got {x.dtype} values")
    if x.ndim < axes:
        shape = "(…, tokens)"
        if axes == 2:
            shape = "(…, codebooks, frames)"
        raise InputError(f"expected shape {shape}, got {tuple(x.shape)}")
    return x


def _is_tensor(x: Any) -> bool:
    return hasattr(x, "new_full")


def _as_64_bits(x: Any) -> Any:
    if _is_tensor(x):
        return x.long()
    return x.astype(np.int64)


def _first_ids(x: Any, codebook_size: int, first: int) -> Any:
    """Return the first id of each codebook of x (…, K, T), as (K, 1)."""
    ids = [[first + k * codebook_size] for k in range(x.shape[-2])]
    if _is_tensor(x):
        return x.new_tensor(ids)
    return np.array(ids)


def _check_range(x: Any, low: int, high: int, what: str) -> None:
    if 0 not in x.shape and (int(x.min()) < low or int(x.max()) >= high):
        raise InputError(
            f"expected {what} from {low} to {high - 1}, got {int(x.min())} to {int(x.max())}"
        )


def _check_fits(value: int, x: Any) -> None:
    if _is_tensor(x):
        return
    limits = np.iinfo(x.dtype)
    if not limits.min <= value <= limits.max:
        raise InputError(
            f"{value} does not fit into {x.dtype}; convert the codes first, codes.astype(np.int64)"
        )


def _delays(delays: Sequence[int] | None, codebooks: int) -> list[int]:
    if delays is None:
        shifts = list(range(codebooks))
    else:
        shifts = [int(shift) for shift in delays]
    if len(shifts) != codebooks or not shifts or min(shifts) < 0:
        raise InputError(
            f"expected {codebooks} delays of 0 or more, one per codebook, got {shifts}"
        )
    return shifts


def _filled(shape: tuple[int, ...], value: int, like: Any) -> Any:
    """Return an array or tensor of one value, of the kind and type of `like`."""
    if _is_tensor(like):
        return like.new_full(shape, value)
    return np.full(shape, value, like.dtype)


def _concatenate(arrays: list, axis: int) -> Any:
    if _is_tensor(arrays[0]):
        import torch

        return torch.cat(arrays, dim=axis)
    return np.concatenate(arrays, axis=axis)
