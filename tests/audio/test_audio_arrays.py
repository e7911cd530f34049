"""Arrays, lists and tensors become audio, or are refused in a sentence."""

import math

import numpy as np
import pytest
import soundfile
import torch
from audio_signals import noise

from codecplus.audio.arrays import as_audio
from codecplus.errors import InputError


@pytest.mark.parametrize(
    ("given_array", "expected"),
    [
        ([0.5, -0.25], [0.5, -0.25]),
        (np.array([16384, -32768], np.int16), [0.5, -1.0]),
        (np.array([2**30, -(2**31)], np.int32), [0.5, -1.0]),
        (np.array([128, 0, 192], np.uint8), [0.0, -1.0, 0.5]),
        (np.array([0.5, 2.0], np.float64), [0.5, 2.0]),
        (np.array([0.5, 0.25], ">f4"), [0.5, 0.25]),
        (np.array([[0.5, 0.25], [0.0, 1.0]], np.float32).T, [[0.5, 0.0], [0.25, 1.0]]),
        (torch.tensor([0.5, -0.5], requires_grad=True), [0.5, -0.5]),
        (torch.tensor([0.5, -0.5], dtype=torch.bfloat16), [0.5, -0.5]),
        (torch.tensor([16384, -16384], dtype=torch.int16), [0.5, -0.5]),
    ],
)
def test_as_audio_takes_arrays_lists_and_tensors(given_array, expected):
    audio = as_audio(given_array)
    assert audio.dtype == np.float32
    assert audio.flags.c_contiguous
    np.testing.assert_array_equal(audio, np.array(expected, np.float32))


def test_integers_are_scaled_as_soundfile_scales_them(tmp_path):
    for dtype, subtype in (("int16", "PCM_16"), ("int32", "PCM_32")):
        values = (
            np.random.default_rng(0)
            .integers(np.iinfo(dtype).min, np.iinfo(dtype).max, 1000)
            .astype(dtype)
        )
        soundfile.write(tmp_path / "x.wav", values, 8000, subtype=subtype)
        np.testing.assert_array_equal(
            as_audio(values), soundfile.read(tmp_path / "x.wav", dtype="float32")[0]
        )


def test_float_audio_is_not_copied():
    audio = noise(2, 10)
    assert as_audio(audio) is audio


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            np.float32(0.5),
            r"expected audio of shape \(samples,\) or \(channels, samples\), got \(\)",
        ),
        (np.zeros((1, 1, 8)), r"got \(1, 1, 8\); pass one item of a batch at a time"),
        ([], r"at least 1 sample, got shape \(0,\)"),
        (np.zeros((2, 0)), r"at least 1 sample, got shape \(2, 0\)"),
        (
            np.zeros((100, 2)),
            r"at most 64 channels, got \(100, 2\); if this is \(samples, channels\), pass its transpose",
        ),
        (np.zeros(3, np.int64), "got int64 values; divide other integers by full scale"),
        (np.zeros(3, np.int8), "got int8 values"),
        (np.zeros(3, bool), "got bool values"),
        (np.zeros(3, complex), "got complex128 values"),
        (torch.zeros(3, dtype=torch.int64), "got int64 values"),
        ("input.wav", "floats in \\[-1, 1\\], or int16, int32, uint8, got str"),
        (None, "got NoneType"),
        ([[0.1], [0.1, 0.2]], "got list"),
        ([0.1, math.nan, math.inf], "2 NaN or infinite values of 3, the first at index 1"),
        (
            np.array([[0, 0], [0, 1e300]]),
            r"1 NaN or infinite values of 4, the first at index \(1, 1\)",
        ),
    ],
)
def test_as_audio_says_what_was_expected(bad, message):
    with pytest.raises(InputError, match=message):
        as_audio(bad)
