"""Sample rates change without a shift, and a stream as the whole signal does."""

import math

import numpy as np
import pytest
import soxr
from audio_signals import RATES, few_examples, noise, piece_sizes, pieces
from hypothesis import given
from hypothesis import strategies as st

from codecplus.audio.resampling import Resampler, resample, resampled_length
from codecplus.errors import InputError


@few_examples
@given(st.integers(1, 20000), st.sampled_from(RATES), st.sampled_from(RATES))
def test_resampling_there_and_back_never_shortens(n, from_rate, to_rate):
    there = resampled_length(n, from_rate, to_rate)
    assert there == math.ceil(n * to_rate / from_rate) >= 1
    back = resampled_length(there, to_rate, from_rate)
    assert n <= back < n + from_rate / to_rate + 1


@few_examples
@given(
    st.integers(1, 12000),
    st.sampled_from([*RATES, 44101]),
    st.sampled_from(RATES),
    st.integers(1, 2),
    piece_sizes,
)
def test_a_stream_is_resampled_as_one_shot_is(n, from_rate, to_rate, channels, sizes):
    audio = noise(channels, n)
    resampler = Resampler(from_rate, to_rate, channels)
    stream = np.concatenate(
        [*(resampler.push(block) for block in pieces(audio, sizes)), resampler.flush()], axis=1
    )
    once = resample(audio, from_rate, to_rate)
    assert stream.dtype == once.dtype == np.float32
    assert stream.shape == once.shape == (channels, resampled_length(n, from_rate, to_rate))
    np.testing.assert_allclose(stream, once, rtol=0, atol=1e-6)


@pytest.mark.parametrize("from_rate", [8000, 44100, 96000])
@pytest.mark.parametrize("to_rate", [16000, 22050, 44100, 48000])
def test_resampling_shifts_nothing(from_rate, to_rate):
    def tone(rate):
        return np.sin(2 * np.pi * 440 * np.arange(rate) / rate)

    middle = slice(to_rate // 4, 3 * to_rate // 4)
    np.testing.assert_allclose(
        resample(tone(from_rate), from_rate, to_rate)[middle], tone(to_rate)[middle], atol=1e-6
    )


def test_resampling_is_soxr_at_its_best():
    audio = noise(30000)
    expected = soxr.resample(audio, 44100, 16000, quality="VHQ")
    np.testing.assert_allclose(resample(audio, 44100, 16000)[: len(expected)], expected, atol=1e-6)


def test_equal_rates_change_nothing():
    audio = noise(2, 100)
    np.testing.assert_array_equal(resample(audio, 44100, 44100), audio)
    assert resample(audio, 44100, 44100) is not audio


def test_resampler_says_what_it_expects():
    with pytest.raises(
        InputError, match="expected from_rate as an integer from 4000 to 1000000, got -1"
    ):
        Resampler(-1, 44100)
    with pytest.raises(InputError, match="expected to_rate"):
        resample(noise(10), 44100, 3)
    with pytest.raises(
        InputError, match=r"expected a block of shape \(2, samples\), got \(1, 10\)"
    ):
        Resampler(8000, 44100, 2).push(noise(1, 10))
    for to_rate in (8000, 44100):
        resampler = Resampler(8000, to_rate)
        assert resampler.flush().shape == (1, 0)
        with pytest.raises(InputError, match="this Resampler is flushed; make a new one"):
            resampler.push(noise(10))
        assert resampler.flush().shape == (1, 0)
