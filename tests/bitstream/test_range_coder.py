"""The range coder in Python writes the bytes of constriction's, and reads what it reads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codecplus.bitstream import StreamInfo, pack, range_coder, ranges, unpack
from codecplus.errors import FileFormatError

pytest.importorskip("constriction", reason="there is nothing to compare with")


def rows_of_symbols(seed: int, rows: int, symbols: int, spread: float):
    """Symbols (N,) and weights (N, n), which are the likely ones for even seeds."""
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.uniform(0, spread, (rows, symbols))).astype(np.int64)
    if seed % 2:
        return rng.integers(0, symbols, rows), weights
    return weights.argmax(-1), weights


def both(monkeypatch, name: str, *arguments):
    """An encoder or decoder of constriction, and one in Python."""
    library = getattr(ranges, name)(*arguments)
    with monkeypatch.context() as patch:
        patch.setattr(ranges, "_stream", None)
        return library, getattr(ranges, name)(*arguments)


SIZES = {
    "seed": st.integers(0, 1000),
    "rows": st.integers(1, 80),
    "symbols": st.integers(2, 64),
    "spread": st.floats(0, 12),
}


@settings(max_examples=50, deadline=None)
@given(**SIZES)
def test_both_write_the_same_bytes_and_read_them(seed, rows, symbols, spread):
    pieces = [rows_of_symbols(seed + 2 * i, rows, symbols, spread) for i in range(3)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        encoders = both(monkeypatch, "Encoder")
        for encoder in encoders:
            for values, weights in pieces:
                encoder.encode(values, weights)
        data, same = (encoder.to_bytes() for encoder in encoders)
        assert data == same
        for decoder in both(monkeypatch, "Decoder", data):
            for values, weights in pieces:
                assert decoder.decode(weights).tolist() == values.tolist()


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=60), **SIZES)
def test_both_read_the_same_from_any_bytes(data, seed, rows, symbols, spread):
    _, weights = rows_of_symbols(seed, rows, symbols, spread)
    found = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        for decoder in both(monkeypatch, "Decoder", data):
            try:
                found.append(decoder.decode(weights).tolist())
            except FileFormatError as error:
                found.append(str(error))
    assert found[0] == found[1]


def test_nothing_is_no_bytes(monkeypatch):
    assert [encoder.to_bytes() for encoder in both(monkeypatch, "Encoder")] == [b"", b""]


def test_a_carry_runs_through_words_that_are_full():
    words = [5, 2**32 - 1, 2**32 - 1]
    range_coder._carry(words)
    assert words == [6, 0, 0]


def test_files_are_the_same_bytes_without_constriction(monkeypatch):
    info = StreamInfo(
        fingerprint=bytes(range(16)),
        sample_rate=16000,
        original_sample_rate=16000,
        channels=2,
        num_codebooks=4,
        codebook_size=256,
        hop_length=320,
        entropy_model=b"",
    )
    codes = np.random.default_rng(0).integers(0, 9, (2, 4, 300))
    data = pack(codes, info, num_samples=300 * 320)
    monkeypatch.setattr(ranges, "_stream", None)
    assert pack(codes, info, num_samples=300 * 320) == data
    assert np.array_equal(unpack(data)[1], codes)
