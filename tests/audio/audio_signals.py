"""Signals for the tests of audio."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

RATES = [8000, 11025, 16000, 22050, 24000, 44100, 48000, 96000]
few_examples = settings(max_examples=25, deadline=None)
piece_sizes = st.lists(st.integers(0, 5000), min_size=1, max_size=6).filter(any)


def noise(*shape, seed=0, gain=0.1):
    return (gain * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def pieces(audio, sizes):
    """Cut (C, S) at repeated sizes, zeros included."""
    start, i = 0, 0
    while start < audio.shape[1]:
        yield audio[:, start : start + sizes[i % len(sizes)]]
        start += sizes[i % len(sizes)]
        i += 1
