"""Whole files in chunks equal whole files at once, however they are cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import KINDS, tiny_model

from codecplus.inference.chunked import decode_blocks, encode_blocks

MODELS = {(g, c): tiny_model(c, **fields) for (g, c), fields in KINDS.items()}


@settings(max_examples=40, deadline=None)
@given(
    key=st.sampled_from(sorted(MODELS)),
    length=st.floats(0.01, 60),
    block=st.floats(0.1, 70),
    frames=st.integers(4, 70),
    channels=st.integers(1, 2),
)
def test_any_chunking_gives_the_codes_and_audio_of_one_pass(key, length, block, frames, channels):
    model = MODELS[key]
    hop = model.config.hop_length
    samples, block = max(1, int(length * hop)), max(1, int(block * hop))
    audio = np.random.default_rng(samples).standard_normal((channels, samples), np.float32) * 0.3
    with torch.no_grad():
        whole = model(torch.from_numpy(audio)[:, None])
        decoded = model.decode(audio_codes=whole.audio_codes).audio_values.numpy()
    pieces = (audio[:, i : i + block] for i in range(0, samples, block))
    codes = np.concatenate(list(encode_blocks(model, pieces, frames=frames)), axis=-1)
    assert codes.dtype == np.int16
    assert np.array_equal(codes, whole.audio_codes.numpy())
    step = max(1, block // hop)
    pieces = (codes[..., i : i + step] for i in range(0, codes.shape[-1], step))
    again = np.concatenate(list(decode_blocks(model, pieces, frames=frames)), axis=-1)
    np.testing.assert_allclose(again, decoded, atol=1e-5)


def test_no_audio_gives_no_codes():
    assert list(encode_blocks(MODELS["16khz", False], [])) == []


@pytest.mark.parametrize("codebooks", [1, 3])
def test_chunks_of_the_first_codebooks_equal_one_pass(codebooks):
    model = MODELS["odd", True]
    audio = np.random.default_rng(0).standard_normal((1, 500), np.float32)
    few = np.concatenate(list(encode_blocks(model, [audio], codebooks)), axis=-1)
    all_of_them = np.concatenate(list(encode_blocks(model, [audio])), axis=-1)
    assert np.array_equal(few, all_of_them[:, :codebooks])
