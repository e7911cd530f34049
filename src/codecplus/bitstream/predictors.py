"""How likely is each next code? Integer weights from the codes before it, the same on every
machine.

Codes are predicted along diagonals: step s holds codebook k of frame s - k, for every k at once.
A code is predicted from codes of earlier steps: the coarser codebooks of its own frame, and these
and its own codebook in the frames before.

          frame 0  1  2  3
    codebook 0: 0  1  2  3
             1: 1  2  3  4        the step of each code
             2: 2  3  4  5

A code of W bits is two symbols, the high W - W // 2 bits of its rank and then the low W // 2: two
short sums instead of a long one. A network ranks codes such that similar ones share their high
bits; without one, a code is its own rank.

`EntropyModel` is trained for one checkpoint. `Counts` learns from the block alone. A symbol's
probability is its share of the sum of the weights.
"""

import hashlib
import json
import math
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from codecplus.errors import FileFormatError

UNIFORM, COUNTS, NETWORK = 0, 1, 2  # how a block says which one it needs
NETWORK_VERSION = 1
MAX_WEIGHTS = 1 << 19  # C * K * 2**W: what a block's predictor may take in memory

_TOP_BITS = 20  # the likeliest code of a network weighs 2**20
_STEPS_PER_BIT = 32  # logits count in 1/32 bit

# _POWERS[d] is floor(2 ** (20 - d / 32)), by integers alone: a floating-point power may differ by
# machine.
_POWERS = np.empty(_TOP_BITS * _STEPS_PER_BIT + 1, np.int64)
for _step in range(len(_POWERS)):
    _power = 1 << (_TOP_BITS * _STEPS_PER_BIT - _step)
    for _ in range(_STEPS_PER_BIT.bit_length() - 1):
        _power = math.isqrt(_power)
    _POWERS[_step] = _power

# Below it, float32 holds every integer, so that products may be summed up in any order.
_MAX_EXACT = 1 << 24
_METADATA = "codecplus"


class Predictor(Protocol):
    """Predicts the codes of one block, step after step: their high symbols, then their low ones;
    then it learns them.

    C channels of K codebooks are C * K rows, codebooks of one channel together.
    """

    lags: int
    """Frames L that it looks at, the one that is coded included."""

    def high(self, window: np.ndarray) -> np.ndarray:
        """Return weights (C * K, highs) of the high symbols of this step.

        `window` (C, K, L, K) holds the codes before: [c, k, l, j] is codebook j of channel c, l
        frames before the frame that codebook k is at; 2**W where there is none, anything where it
        is not known yet.
        """
        ...

    def low(self, rows: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the weights (N, lows) of the low symbols of these rows (N,), whose high ones are
        `high` (N,).
        """
        ...

    def learn(self, rows: np.ndarray, codes: np.ndarray) -> None:
        """See the codes (N,) of these rows."""
        ...

    def ranks(self, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return the ranks of codes (N,) of these rows."""
        ...

    def codes(self, rows: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Return the codes of these ranks (N,): the inverse of `ranks`."""
        ...


class Uniform:
    """Every code is as likely: what packing would be."""

    lags = 2

    def __init__(self, channels: int, num_codebooks: int, codebook_size: int):
        self._lows = 1 << low_bits(codebook_size)
        self._high = np.ones((channels * num_codebooks, codebook_size // self._lows), np.int64)

    def high(self, window: np.ndarray) -> np.ndarray:
        """Return the weights (C * K, highs) of the high symbols of this step."""
        return self._high

    def low(self, rows: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the weights (N, lows) of the low symbols of these rows."""
        return np.ones((len(rows), self._lows), np.int64)

    def learn(self, rows: np.ndarray, codes: np.ndarray) -> None:
        """Nothing to learn."""

    def ranks(self, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return the codes: a code is its own rank."""
        return codes

    def codes(self, rows: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Return the codes: a code is its own rank."""
        return ranks


class Counts(Uniform):
    """Codes seen before in this block are likelier, the one just before likelier still where codes
    use to repeat.
    """

    seen = 4  # added to the weight of a code that was seen
    repeated = 8  # added to the weight of a repetition

    def __init__(self, channels: int, num_codebooks: int, codebook_size: int):
        super().__init__(channels, num_codebooks, codebook_size)
        rows = channels * num_codebooks
        self._size = codebook_size
        self._counts = np.ones((rows, codebook_size // self._lows, self._lows), np.int64)
        self._highs = np.full(self._counts.shape[:2], self._lows, np.int64)  # their sums
        self._repeats = np.ones((2, rows), np.int64)  # no, yes
        self._last = np.full(rows, codebook_size)
        self._odds = np.zeros(rows, np.int64)

    def high(self, window: np.ndarray) -> np.ndarray:
        """Return the weights (C * K, highs) of the high symbols of this step."""
        books = np.arange(window.shape[1])
        self._last = window[:, books, 1, books].reshape(-1)
        self._odds = self._highs.sum(axis=1) * self._repeats[1] // self._repeats[0]
        rows = np.flatnonzero(self._last < self._size)
        weights = self._highs.copy()
        weights[rows, self._last[rows] // self._lows] += self._odds[rows]
        return weights

    def low(self, rows: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the weights (N, lows) of the low symbols of these rows."""
        weights = self._counts[rows, high]
        last = self._last[rows]
        same = np.flatnonzero((last < self._size) & (last // self._lows == high))
        weights[same, last[same] % self._lows] += self._odds[rows[same]]
        return weights

    def learn(self, rows: np.ndarray, codes: np.ndarray) -> None:
        """Count the codes (N,) of these rows."""
        self._counts[rows, codes // self._lows, codes % self._lows] += self.seen
        self._highs[rows, codes // self._lows] += self.seen
        known = self._last[rows] < self._size
        same = (codes == self._last[rows]).astype(np.int64)
        self._repeats[same[known], rows[known]] += self.repeated


class EntropyModel:
    """A small network of integers, trained for one checkpoint; how it computes is on the page of
    the format.

    Args:
        arrays: by name, as `to_bytes` writes them, for K codebooks of 2**W entries, L lags, vectors
            of d and H hidden values: `ranks` int16 (K, 2**W), `codes` int8 (K, 2**W + 1, d),
            `hidden` int8 (K, L * K * d, H), `hidden_bias` int32 (K, H), `high` int8 (K, H, highs),
            `high_bias` int32 (K, highs), `low` int8 (K, highs, H, lows), `low_bias` int32 (K,
            highs, lows), and `hidden_shift`, `high_shift`, `low_shift` uint8 (K,).
        fingerprint: of the checkpoint whose codes it predicts.

    Raises FileFormatError for arrays that do not fit together or leave the range in which every
    machine agrees.
    """

    def __init__(self, arrays: dict[str, np.ndarray], fingerprint: bytes):
        self.fingerprint = bytes(fingerprint)
        self.arrays = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
        sizes = _check_arrays(self.arrays)
        self.num_codebooks = sizes.num_codebooks
        self.codebook_size = sizes.codebook_size
        self.lags = sizes.lags

    @cached_property
    def identity(self) -> bytes:
        """Four bytes that tell networks apart: the start of a SHA-256 of version, fingerprint,
        names and values.
        """
        digest = hashlib.sha256(bytes([NETWORK_VERSION]) + self.fingerprint)
        for name, array in self.arrays.items():
            digest.update(name.encode() + array.astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.digest()[:4]

    def to_bytes(self) -> bytes:
        """Return the network as a safetensors file."""
        from safetensors.numpy import save

        about = {"version": NETWORK_VERSION, "fingerprint": self.fingerprint.hex()}
        return save(self.arrays, {_METADATA: json.dumps(about)})

    @classmethod
    def from_bytes(cls, data: bytes) -> "EntropyModel":
        """Read what `to_bytes` gave; raises FileFormatError for anything else."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            about = json.loads(header["__metadata__"][_METADATA])
            version = about["version"]
            fingerprint = bytes.fromhex(about["fingerprint"])
            arrays = load(data)
        except (SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise FileFormatError(
                f"expected an entropy model written by codecplus, got something else: {error}"
            ) from error
        if version != NETWORK_VERSION:
            raise FileFormatError(
                f"expected an entropy model of version {NETWORK_VERSION}, got {version}; "
                "a newer codecplus may read it"
            )
        return cls(arrays, fingerprint)

    def fits(self, num_codebooks: int, codebook_size: int) -> bool:
        """Return whether it predicts so many codebooks of that size."""
        return num_codebooks <= self.num_codebooks and codebook_size == self.codebook_size

    def predictor(self, num_codebooks: int) -> "NetworkPredictor":
        """Return a predictor of the first codebooks of one block."""
        if num_codebooks not in self._ready:
            self._ready[num_codebooks] = _Weights(self, num_codebooks)
        return NetworkPredictor(self._ready[num_codebooks])

    @cached_property
    def _ready(self) -> dict[int, "_Weights"]:
        return {}


class _Weights:
    """The weights for the first codebooks, as floats that hold integers: that is how matrices
    multiply fast.
    """

    def __init__(self, network: EntropyModel, num_codebooks: int):
        arrays = network.arrays
        K = num_codebooks
        d = arrays["codes"].shape[2]
        self.lags = network.lags
        self.num_codebooks = K
        self.codebook_size = network.codebook_size
        self.ranks = arrays["ranks"][:K].astype(np.int64)
        self.by_rank = np.argsort(self.ranks, axis=1)
        self.table = arrays["codes"][:K].reshape(-1, d).astype(np.float32)  # (K * (2**W + 1), d)
        self.offsets = np.arange(K) * (network.codebook_size + 1)
        hidden = arrays["hidden"].reshape(
            network.num_codebooks, self.lags, network.num_codebooks, d, -1
        )
        hidden = hidden.transpose(0, 2, 1, 3, 4).astype(np.float32)  # (K, K, L, d, H)
        # Finer codebooks have no weight, so that they are left out: half of the work.
        self.hidden = [hidden[k, : k + 1].reshape((k + 1) * self.lags * d, -1) for k in range(K)]
        self.high, self.low = (arrays[name][:K].astype(np.float32) for name in ("high", "low"))
        self.biases = {
            name: arrays[f"{name}_bias"][:K].astype(np.float32)
            for name in ("hidden", "high", "low")
        }
        self.scales = {
            name: np.float32(2) ** -arrays[f"{name}_shift"][:K].astype(np.float32)
            for name in ("hidden", "high", "low")
        }


class NetworkPredictor:
    """Predicts the codes of one block with a network; see `Predictor` for its methods."""

    def __init__(self, weights: _Weights):
        self._net = weights
        self.lags = weights.lags
        self._hidden = np.zeros(0, np.float32)  # (K, C, H)

    def high(self, window: np.ndarray) -> np.ndarray:
        """Return the weights (C * K, highs) of the high symbols of this step."""
        net = self._net
        channels, num_codebooks = window.shape[:2]
        x = net.table.take(window.swapaxes(2, 3) + net.offsets[:, None], axis=0)  # (C, K, K, L, d)
        x = x.reshape(channels, num_codebooks, -1).swapaxes(0, 1)
        hidden = np.empty((num_codebooks, channels, net.hidden[0].shape[1]), np.float32)
        for k, weights in enumerate(net.hidden):
            np.matmul(x[k, :, : len(weights)], weights, out=hidden[k])
        hidden += net.biases["hidden"][:, None]
        hidden *= net.scales["hidden"][:, None, None]
        self._hidden = np.floor(hidden, out=hidden).clip(0, 255)
        logits = self._hidden @ net.high
        logits += net.biases["high"][:, None]
        weights = _powers(logits, net.scales["high"][:, None, None])  # (K, C, highs)
        return weights.transpose(1, 0, 2).reshape(channels * num_codebooks, -1)

    def low(self, rows: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the weights (N, lows) of the low symbols of these rows."""
        net = self._net
        channel, k = np.divmod(rows, net.num_codebooks)
        logits = (self._hidden[k, channel][:, None] @ net.low[k, high])[:, 0]
        logits += net.biases["low"][k, high]
        return _powers(logits, net.scales["low"][k][:, None])

    def learn(self, rows: np.ndarray, codes: np.ndarray) -> None:
        """Nothing to learn: it was trained."""

    def ranks(self, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return the ranks of codes (N,) of these rows."""
        return self._net.ranks[rows % self._net.num_codebooks, codes]

    def codes(self, rows: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Return the codes (N,) of these ranks."""
        return self._net.by_rank[rows % self._net.num_codebooks, ranks]


def low_bits(codebook_size: int) -> int:
    """Return the bits of the low symbol of a code."""
    return (codebook_size.bit_length() - 1) // 2


def _powers(logits: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return weights of logits (..., n), integers in floats: 2 ** (20 - d / 32), d being what a
    logit lacks to the largest.
    """
    lacks = logits.max(axis=-1, keepdims=True) - logits
    lacks *= scales
    np.minimum(lacks, len(_POWERS) - 1, out=lacks)
    return _POWERS.take(lacks.astype(np.int16))  # rounds down


class _Sizes(NamedTuple):
    """The sizes of an entropy model: K, 2**W, L, d and H of `EntropyModel`."""

    num_codebooks: int
    codebook_size: int
    lags: int
    width: int
    hidden: int


_LAYERS = ("hidden", "high", "low")
_DTYPES = {
    "ranks": "int16",
    "codes": "int8",
    **dict.fromkeys(_LAYERS, "int8"),
    **{f"{name}_bias": "int32" for name in _LAYERS},
    **{f"{name}_shift": "uint8" for name in _LAYERS},
}
_LARGEST_INPUT = {"hidden": 127, "high": 255, "low": 255}  # that the weights are multiplied with


def _check_arrays(arrays: dict[str, np.ndarray]) -> _Sizes:
    """Return the sizes of a network; raise FileFormatError unless shapes, types and sums fit."""
    if {name: str(array.dtype) for name, array in arrays.items()} != _DTYPES:
        raise FileFormatError(f"expected the arrays {_DTYPES} of an entropy model, got others")
    sizes = _sizes_of(arrays)
    if not _is_possible(sizes) or _shapes(sizes) != {n: a.shape for n, a in arrays.items()}:
        raise FileFormatError(
            "expected the arrays of an entropy model to fit together, got shapes that do not"
        )
    every_rank = np.broadcast_to(np.arange(sizes.codebook_size), arrays["ranks"].shape)
    if not np.array_equal(np.sort(arrays["ranks"], axis=1), every_rank):
        raise FileFormatError("expected every rank once in an entropy model, got others")
    if max(arrays[f"{name}_shift"].max() for name in _LAYERS) > 24:
        raise FileFormatError("expected shifts of at most 24 bits in an entropy model, got more")
    if max(_largest_sum(arrays, name) for name in _LAYERS) >= _MAX_EXACT // 2:
        raise FileFormatError(
            "expected sums below 2**23 in an entropy model, got more: machines would differ"
        )
    if arrays["codes"].min() < -127 or _looks_ahead(arrays["hidden"], sizes):
        raise FileFormatError(
            "expected an entropy model that looks at codes known already, got one that does not"
        )
    return sizes


def _sizes_of(arrays: dict[str, np.ndarray]) -> _Sizes:
    """Return the sizes that the arrays seem to have; whether they do is not checked."""
    num_codebooks, entries, width = (*arrays["codes"].shape, 0, 0, 0)[:3]
    hidden = 0
    if arrays["hidden"].ndim:
        hidden = arrays["hidden"].shape[-1]
    lags = arrays["hidden"].size // max(1, num_codebooks * num_codebooks * width * hidden)
    return _Sizes(num_codebooks, entries - 1, lags, width, hidden)


def _is_possible(sizes: _Sizes) -> bool:
    size = sizes.codebook_size
    is_power_of_two = size & (size - 1) == 0
    has_values = min(sizes.num_codebooks, sizes.width, sizes.hidden) >= 1
    return has_values and size >= 4 and is_power_of_two and 2 <= sizes.lags <= 8


def _shapes(sizes: _Sizes) -> dict[str, tuple[int, ...]]:
    """Return the shapes that arrays of these sizes have."""
    K, size, lags, d, H = sizes
    lows = 1 << low_bits(size)
    highs = size // lows
    return {
        "ranks": (K, size), "codes": (K, size + 1, d),
        "hidden": (K, lags * K * d, H), "hidden_bias": (K, H),
        "high": (K, H, highs), "high_bias": (K, highs),
        "low": (K, highs, H, lows), "low_bias": (K, highs, lows),
        "hidden_shift": (K,), "high_shift": (K,), "low_shift": (K,),
    }  # fmt: skip


def _largest_sum(arrays: dict[str, np.ndarray], layer: str) -> int:
    """Return the largest value that a sum of a layer may take."""
    weights = np.abs(arrays[layer].astype(np.int64)).sum(axis=-2)
    biases = np.abs(arrays[f"{layer}_bias"].astype(np.int64))
    return int((_LARGEST_INPUT[layer] * weights + biases).max())


def _looks_ahead(hidden: np.ndarray, sizes: _Sizes) -> bool:
    """Return whether a codebook has weights for codes that are not known when it is decoded.

    Args:
        hidden: the weights (K, L * K * d, H). Of this frame, lag 0, only coarser codebooks are
            known; of earlier frames the finer ones are left out.
        sizes: of the network.
    """
    K, _, lags, d, H = sizes
    weights = hidden.reshape(K, lags, K, d, H)
    return any(weights[k, :, k + 1 :].any() or weights[k, 0, k].any() for k in range(K))
