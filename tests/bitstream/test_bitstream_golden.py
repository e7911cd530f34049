"""The bytes of files stay the same from release to release: they are compared with stored ones.

Written anew, when the format itself changes, by `python tests/bitstream/test_bitstream_golden.py`.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from codecplus.bitstream import EntropyModel, StreamInfo, pack, unpack

GOLDEN = Path(__file__).with_name("golden_files.json")
PACKED = StreamInfo(
    fingerprint=bytes(range(16)),
    sample_rate=16000,
    original_sample_rate=16000,
    channels=1,
    num_codebooks=3,
    codebook_size=16,
    hop_length=320,
)
SHORT = {"fingerprint": bytes(range(8)), "entropy_model": b""}
STREAMS = {
    "packed": (PACKED, {}),
    "packed, every field": (
        PACKED,
        {
            "fingerprint": bytes(range(8)),
            "channels": 2,
            "codebook_size": 1024,
            "original_sample_rate": 44099,
            "gain": 0.5,
            "block_length": 5,
        },
    ),
    "packed, one bit": (PACKED, {"codebook_size": 2, "num_codebooks": 1}),
    "counts": (PACKED, SHORT),
    "counts, two channels in blocks": (PACKED, SHORT | {"channels": 2, "block_length": 6}),
    "network": (PACKED, SHORT | {"entropy_model": None, "block_length": 9}),
}
FRAMES = 17


def numbers(count: int, modulus: int, seed: int) -> np.ndarray:
    """Numbers that every version of numpy draws alike: a linear congruential generator."""
    state = seed
    drawn = []
    for _ in range(count):
        state = (1103515245 * state + 12345) % 2**31
        drawn.append((state >> 12) % modulus)
    return np.array(drawn, np.int64)


def network() -> EntropyModel:
    """An entropy model of three codebooks of 16 entries with made-up weights."""
    codebooks, entries, lags, width, hidden, lows = 3, 16, 2, 2, 4, 4
    highs = entries // lows

    def weights(seed: int, *shape: int) -> np.ndarray:
        return (numbers(int(np.prod(shape)), 255, seed) - 127).reshape(shape).astype(np.int8)

    first = weights(1, codebooks, lags, codebooks, width, hidden)
    for k in range(codebooks):
        first[k, 0, k:] = 0  # a code is not predicted from itself or from finer ones
        first[k, 1, k + 1 :] = 0
    arrays = {
        "ranks": np.tile(np.arange(entries, dtype=np.int16), (codebooks, 1)),
        "codes": weights(2, codebooks, entries + 1, width),
        "hidden": first.reshape(codebooks, -1, hidden),
        "hidden_bias": np.zeros((codebooks, hidden), np.int32),
        "hidden_shift": np.full(codebooks, 8, np.uint8),
        "high": weights(3, codebooks, hidden, highs),
        "high_bias": np.zeros((codebooks, highs), np.int32),
        "high_shift": np.full(codebooks, 8, np.uint8),
        "low": weights(4, codebooks, highs, hidden, lows),
        "low_bias": np.zeros((codebooks, highs, lows), np.int32),
        "low_shift": np.full(codebooks, 8, np.uint8),
    }
    return EntropyModel(arrays, bytes(16))


def written(name: str) -> tuple[bytes, np.ndarray, EntropyModel | None]:
    """The file of a stream of that name, its codes, and the entropy model it needs."""
    base, changes = STREAMS[name]
    info = dataclasses.replace(base, **changes)
    entropy = None
    if name == "network":
        entropy = network()
        info = dataclasses.replace(info, entropy_model=entropy.identity)
    shape = (info.channels, info.num_codebooks, FRAMES)
    codes = numbers(int(np.prod(shape)), info.codebook_size, 7).reshape(shape)
    if info.entropy_model is not None:
        lengths = numbers(FRAMES, info.num_codebooks, 8) + 1
        codes = np.where(np.arange(info.num_codebooks)[:, None] < lengths, codes, -1)
        codes[..., 6:12] = codes[..., :1]  # repetitions, which `Counts` predicts
        codes[1:] = codes[0]  # a channel that repeats the first
    return pack(codes, info, num_samples=5000, entropy=entropy), codes, entropy


@pytest.mark.parametrize("name", STREAMS)
def test_a_file_has_the_bytes_it_always_had(name):
    golden = bytes.fromhex(json.loads(GOLDEN.read_text())[name])
    data, codes, entropy = written(name)
    assert data == golden
    header, read = unpack(golden, {entropy.identity: entropy} if entropy else None)
    np.testing.assert_array_equal(read, codes)
    assert (header.num_samples, header.num_frames) == (5000, FRAMES)


if __name__ == "__main__":
    files = {name: written(name)[0].hex() for name in STREAMS}
    GOLDEN.write_text(json.dumps(files, indent=1) + "\n")
