"""How language models lay out codes (…, K, T) as tokens, and back. Pure functions on numpy arrays
and torch tensors.

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
    """Shift codebook k right by `delays[k]` frames, by default k: (…, K, T) -> (…, K, T +
    max(delays)).

    The delay pattern of MusicGen (Copet et al. 2023): all codebooks of a step are predicted at
    once, and each has seen the coarser ones of its own frame. `fill` stands where there is no code.

    >>> delay(np.array([[1, 2, 3], [4, 5, 6]]), fill=0)
    array([[1, 2, 3, 0],
           [0, 4, 5, 6]])
    """
    codes = _array(codes, 2)
    shifts = _delays(delays, codes.shape[-2])
    frames = codes.shape[-1]
    _check_fits(fill, codes)
    shape = (*codes.shape[:-1], frames + max(shifts))
    out = (
        codes.new_full(shape, fill)
        if hasattr(codes, "new_full")
        else np.full(shape, fill, codes.dtype)
    )
    for k, shift in enumerate(shifts):
        out[..., k, shift : shift + frames] = codes[..., k, :]
    return out


def undelay(delayed: Any, delays: Sequence[int] | None = None) -> Any:
    """The inverse of `delay`: (…, K, T + max(delays)) -> (…, K, T).

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
    rows = [delayed[..., k, shift : shift + frames] for k, shift in enumerate(shifts)]
    return _stack(rows, delayed)


def flatten(codes: Any) -> Any:
    """Frame by frame, coarse to fine: (…, K, T) -> (…, T * K).

    >>> flatten(np.array([[1, 2, 3], [4, 5, 6]]))
    array([1, 4, 2, 5, 3, 6])
    """
    codes = _array(codes, 2)
    return codes.swapaxes(-1, -2).reshape(*codes.shape[:-2], -1)


def unflatten(tokens: Any, num_codebooks: int) -> Any:
    """The inverse of `flatten`: (…, T * K) -> (…, K, T). Raises InputError for a last frame that is
    not whole.

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
    """Give every codebook ids of its own: code c of codebook k becomes first + k * codebook_size +
    c.

    (…, K, T) -> (…, K, T), 64-bit integers. `first` leaves room below for text or special tokens.
    The vocabulary has first + K * codebook_size ids.

    >>> offset(np.array([[1, 2, 3], [4, 5, 6]]), 8, first=100)
    array([[101, 102, 103],
           [112, 113, 114]])
    """
    codes = _wide(_array(codes, 2))
    _check_range(codes, 0, codebook_size, "codes")
    return codes + _starts(codes, codebook_size, first)


def unoffset(tokens: Any, codebook_size: int, first: int = 0) -> Any:
    """The inverse of `offset`. Raises InputError for an id that is not of the codebook in whose
    place it stands.

    >>> unoffset(np.array([[101, 102, 103], [112, 113, 114]]), 8, first=100)
    array([[1, 2, 3],
           [4, 5, 6]])
    """
    tokens = _wide(_array(tokens, 2))
    codes = tokens - _starts(tokens, codebook_size, first)
    _check_range(codes, 0, codebook_size, "ids of each codebook, less its offset,")
    return codes


def wrap(tokens: Any, *, bos: int | None = None, eos: int | None = None) -> Any:
    """Put special tokens around a sequence: (…, N) -> (…, 1 + N + 1), or less where one is not
    given.

    >>> wrap(np.array([7, 8]), bos=1, eos=2)
    array([1, 7, 8, 2])
    """
    tokens = _array(tokens, 1)
    edge = tokens[..., :1] * 0 if tokens.shape[-1] else _empty_edge(tokens)
    for special in (bos, eos):
        if special is not None:
            _check_fits(special, tokens)
    parts = [edge + bos] if bos is not None else []
    parts += [tokens] + ([edge + eos] if eos is not None else [])
    return _concatenate(parts, tokens)


def unwrap(tokens: Any, *, bos: int | None = None, eos: int | None = None) -> Any:
    """The inverse of `wrap` for one sequence (N,): what lies between `bos` and the first `eos`, no
    padding behind it.

    A sequence without `eos`, as of a model that was stopped, is taken to its end.

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
        ends = (tokens == eos).nonzero()
        ends = ends[0] if isinstance(ends, tuple) else ends[:, 0]
        if len(ends):
            tokens = tokens[: int(ends[0])]
    return tokens


def _array(x: Any, axes: int) -> Any:
    """A torch tensor as it is, anything else as a plain numpy array, of at least so many axes."""
    x = x if hasattr(x, "new_full") else np.asarray(x)
    if not hasattr(x, "new_full") and x.dtype.kind not in "iu":
        raise InputError(f"expected integers, got {x.dtype} values")
    if x.ndim < axes:
        shape = "(…, codebooks, frames)" if axes == 2 else "(…, tokens)"
        raise InputError(f"expected shape {shape}, got {tuple(x.shape)}")
    return x


def _wide(x: Any) -> Any:
    return x.long() if hasattr(x, "new_full") else x.astype(np.int64)


def _starts(x: Any, codebook_size: int, first: int) -> Any:
    starts = [[first + k * codebook_size] for k in range(x.shape[-2])]
    return x.new_tensor(starts) if hasattr(x, "new_tensor") else np.array(starts)


def _check_range(x: Any, low: int, high: int, what: str) -> None:
    if 0 not in x.shape and (int(x.min()) < low or int(x.max()) >= high):
        raise InputError(
            f"expected {what} from {low} to {high - 1}, got {int(x.min())} to {int(x.max())}"
        )


def _check_fits(value: int, x: Any) -> None:
    if not hasattr(x, "new_full") and not np.iinfo(x.dtype).min <= value <= np.iinfo(x.dtype).max:
        raise InputError(
            f"{value} does not fit into {x.dtype}; convert the codes first, codes.astype(np.int64)"
        )


def _delays(delays: Sequence[int] | None, codebooks: int) -> list[int]:
    shifts = list(range(codebooks)) if delays is None else [int(shift) for shift in delays]
    if len(shifts) != codebooks or not shifts or min(shifts) < 0:
        raise InputError(
            f"expected {codebooks} delays of 0 or more, one per codebook, got {shifts}"
        )
    return shifts


def _empty_edge(tokens: Any) -> Any:
    shape = (*tokens.shape[:-1], 1)
    return (
        tokens.new_full(shape, 0) if hasattr(tokens, "new_full") else np.zeros(shape, tokens.dtype)
    )


def _stack(rows: list, like: Any) -> Any:
    if hasattr(like, "new_full"):
        import torch

        return torch.stack(rows, dim=-2)
    return np.stack(rows, axis=-2)


def _concatenate(parts: list, like: Any) -> Any:
    if hasattr(like, "new_full"):
        import torch

        return torch.cat(parts, dim=-1)
    return np.concatenate(parts, axis=-1)
