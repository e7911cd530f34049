"""Decoding without padding, in the precision of the model."""

import copy

import numpy as np
import torch
from tiny import tiny_model

from codecplus.inference.unpadded import decode_unpadded


def test_a_model_in_bf16_decodes_without_padding():
    model = tiny_model(downsampling_ratios=[2, 2])
    codes = np.random.default_rng(0).integers(0, 64, (1, 4, 300))
    expected = decode_unpadded(model, codes, 150)
    audio = decode_unpadded(copy.deepcopy(model).bfloat16(), codes, 150)
    assert audio.dtype == np.float32
    assert np.abs(audio - expected).mean() < 0.05 * np.abs(expected).mean()
    # Its samples are not rounded to bf16.
    assert (audio != torch.from_numpy(audio).bfloat16().float().numpy()).mean() > 0.8
