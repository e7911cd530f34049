"""Signals that every test of the harness shares."""

import numpy as np
import pytest
from eval_signals import speech_like


@pytest.fixture
def voice() -> np.ndarray:
    return speech_like()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
