"""Loudness is that of pyloudnorm, for arrays and for streams."""

import math

import numpy as np
import pyloudnorm
import pytest
from audio_signals import noise, piece_sizes, pieces
from hypothesis import given, settings
from hypothesis import strategies as st

from codecplus.audio.loudness import LoudnessMeter, integrated_loudness
from codecplus.errors import InputError


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([8000, 11025, 16000, 44100, 48000]),
    st.integers(1, 5),
    st.floats(0.5, 3.0),
    piece_sizes,
    st.integers(0, 99),
)
def test_loudness_is_that_of_pyloudnorm_for_every_chunking(rate, channels, seconds, sizes, seed):
    audio = noise(channels, int(seconds * rate) + 1, seed=seed)
    audio[:, audio.shape[1] // 2 :] *= 1e-3  # so that the gate has work
    meter = LoudnessMeter(rate, channels)
    for block in pieces(audio, sizes):
        meter.push(block)
    expected = pyloudnorm.Meter(rate).integrated_loudness(audio.T.astype(np.float64))
    assert meter.loudness() == pytest.approx(expected, abs=1e-6)
    assert meter.loudness() == meter.loudness()
    assert integrated_loudness(audio, rate) == pytest.approx(expected, abs=1e-6)
    assert integrated_loudness(pieces(audio, [1000]), rate) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n", [1, 1000, 17639, 17641, 22049])
def test_short_signals_are_filled_up_to_half_a_second(n):
    audio = noise(n, gain=0.5)
    padded = np.pad(audio, (0, 22050 - n)).astype(np.float64)
    expected = pyloudnorm.Meter(44100).integrated_loudness(padded)
    assert integrated_loudness(audio, 44100) == pytest.approx(expected, abs=1e-6)


def test_a_full_scale_tone_of_997_hz_has_minus_3_lufs():  # ITU-R BS.1770-4, annex 1
    tone = np.sin(2 * np.pi * 997 * np.arange(48000 * 2) / 48000)
    assert integrated_loudness(tone, 48000) == pytest.approx(-3.01, abs=0.05)


def test_asking_for_the_loudness_so_far_changes_nothing():
    audio, meter = noise(1, 44100), LoudnessMeter(44100)
    for block in pieces(audio, [5000]):
        meter.push(block)
        meter.loudness()
    assert meter.loudness() == pytest.approx(integrated_loudness(audio, 44100), abs=1e-9)


def test_silence_has_no_loudness():
    assert integrated_loudness(np.zeros(44100), 44100) == -math.inf
    assert integrated_loudness(noise(44100, gain=1e-5), 44100) == -math.inf
    assert LoudnessMeter(44100, 2).loudness() == -math.inf


def test_the_low_frequency_channel_does_not_count():
    audio = noise(6, 44100)
    expected = pyloudnorm.Meter(44100).integrated_loudness(
        audio[[0, 1, 2, 4, 5]].T.astype(np.float64)
    )
    assert integrated_loudness(audio, 44100) == pytest.approx(expected, abs=1e-6)


def test_loudness_says_what_it_expects():
    with pytest.raises(InputError, match="expected channels as an integer from 1 to 6, got 7"):
        integrated_loudness(noise(7, 1000), 44100)
    with pytest.raises(InputError, match="at least 1 sample, got no blocks"):
        integrated_loudness(iter([]), 44100)
    with pytest.raises(
        InputError, match=r"expected a block of shape \(1, samples\), got \(2, 10\)"
    ):
        LoudnessMeter(44100).push(noise(2, 10))
