"""Fixtures that the tests share."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs a network; read when huggingface_hub is imported

import numpy as np
import pytest
import torch
from tiny import KINDS, tiny_model

from codecplus import Codec, DacModel

# Tiny models gain nothing from threads, and lose much to them where other work runs on the same
# cores.
torch.set_num_threads(1)


@pytest.fixture(
    params=KINDS,
    ids=lambda p: f"{p[0]}-{'causal' * p[1]}",
)
def model(request) -> DacModel:
    return tiny_model(request.param[1], **KINDS[request.param])


@pytest.fixture
def codec() -> Codec:
    return Codec(tiny_model(downsampling_ratios=[2, 4, 5, 8], sampling_rate=16000))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
