"""Mel filters have the shape of Slaney, spectrograms are the plain definition."""

import math
import warnings

import numpy as np
import pytest
import torch

from codecplus.audio.mel import mel_filterbank, mel_spectrogram
from codecplus.errors import InputError


@pytest.mark.parametrize(
    ("rate", "n_fft", "n_mels"), [(44100, 2048, 80), (16000, 512, 40), (24000, 1024, 128)]
)
def test_mel_filters_have_slaneys_shape(rate, n_fft, n_mels):
    filters = mel_filterbank(rate, n_fft, n_mels)
    assert filters.shape == (n_mels, n_fft // 2 + 1)
    assert filters.dtype == np.float32
    # corners by Slaney's Auditory Toolbox: 15 mels per 1000 Hz, then 27 per factor of 6.4
    mels = np.linspace(0, 15 + 27 * math.log(rate / 2000) / math.log(6.4), n_mels + 2)
    corners = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    frequencies = np.arange(n_fft // 2 + 1) * rate / n_fft
    for row, (low, centre, high) in zip(
        filters, zip(corners, corners[1:], corners[2:], strict=False), strict=True
    ):
        expected = np.interp(frequencies, [low, centre, high], [0, 2 / (high - low), 0])
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_more_mel_bands_than_bins_leave_some_empty_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = mel_filterbank(44100, 256, 128)
    assert (filters.sum(axis=1) == 0).any()


def test_mel_filters_say_what_they_expect():
    with pytest.raises(InputError, match="expected an even n_fft, got 511"):
        mel_filterbank(16000, 511, 40)
    with pytest.raises(InputError, match="expected n_mels as an integer from 1 to 65536, got 0"):
        mel_filterbank(16000, 512, 0)
    with pytest.raises(
        InputError, match=r"0 <= fmin < fmax <= sample_rate / 2 \(= 8000\), got 0.0 and 9000"
    ):
        mel_filterbank(16000, 512, 40, fmax=9000)


@pytest.mark.parametrize("win_length", [None, 100])
@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("n", [1, 2, 3, 64, 127, 128, 129, 1000])
def test_mel_spectrogram_is_the_plain_definition(n, win_length, power):
    audio = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    width = win_length or 256
    window = np.zeros(256)
    start = (256 - width) // 2
    window[start : start + width] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(width) / width)
    mirrored = np.pad(audio.numpy(), 128, mode="reflect")
    frames = np.stack(
        [mirrored[64 * t : 64 * t + 256] * window for t in range(1 + n // 64)], axis=1
    )
    expected = (
        mel_filterbank(16000, 256, 20).astype(np.float64)
        @ np.abs(np.fft.rfft(frames, axis=0)) ** power
    )
    mel = mel_spectrogram(
        audio, 16000, n_mels=20, n_fft=256, hop_length=64, win_length=win_length, power=power
    )
    assert mel.shape == (20, 1 + n // 64)
    np.testing.assert_allclose(mel, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(500,), (3, 500), (2, 3, 500), (2, 1, 1)])
def test_mel_spectrogram_keeps_leading_dimensions_and_gradients(shape):
    audio = torch.randn(shape, requires_grad=True)
    mel = mel_spectrogram(audio, 16000, n_mels=8, n_fft=128, hop_length=32)
    assert mel.shape == (*shape[:-1], 8, 1 + shape[-1] // 32)
    mel.sum().backward()
    assert audio.grad is not None
    assert torch.isfinite(audio.grad).all()
    flat = audio.detach().reshape(-1, shape[-1])[-1]
    last = mel_spectrogram(flat, 16000, n_mels=8, n_fft=128, hop_length=32)
    torch.testing.assert_close(mel.detach().reshape(-1, *mel.shape[-2:])[-1], last)


def test_mel_spectrogram_of_silence_has_gradients():
    audio = torch.zeros(1000, requires_grad=True)
    mel_spectrogram(audio, 16000).sum().backward()
    assert torch.isfinite(audio.grad).all()


def test_mel_spectrogram_is_computed_in_float32_under_autocast_and_for_half():
    audio = torch.randn(4000).bfloat16()
    expected = mel_spectrogram(audio.float(), 16000)
    torch.testing.assert_close(mel_spectrogram(audio, 16000), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(mel_spectrogram(audio.float(), 16000), expected)


def test_mel_spectrogram_trains_after_inference_mode():
    settings = {
        "n_mels": 7,
        "n_fft": 64,
        "hop_length": 16,
    }  # used by no other test: the filters are cached
    with torch.inference_mode():
        mel_spectrogram(torch.randn(100), 16000, **settings)
    audio = torch.randn(100, requires_grad=True)
    mel_spectrogram(audio, 16000, **settings).sum().backward()
    assert audio.grad is not None


@pytest.mark.parametrize(
    ("audio", "settings", "message"),
    [
        (np.zeros(10), {}, "expected audio as a torch tensor of floats, got ndarray"),
        (
            torch.zeros(10, dtype=torch.int16),
            {},
            "expected audio as a torch tensor of floats, got torch.int16",
        ),
        (torch.zeros(2, 0), {}, r"at least 1 sample, got \(2, 0\)"),
        (torch.zeros(()), {}, r"\(\.\.\., samples\) with at least 1 sample, got \(\)"),
        (
            torch.zeros(10),
            {"win_length": 4096},
            "expected win_length as an integer from 1 to 2048, got 4096",
        ),
        (torch.zeros(10), {"hop_length": 0}, "expected hop_length as an integer from 1 to"),
        (torch.zeros(10), {"n_fft": 2047}, "expected an even n_fft, got 2047"),
    ],
)
def test_mel_spectrogram_says_what_it_expects(audio, settings, message):
    with pytest.raises(InputError, match=message):
        mel_spectrogram(audio, 16000, **settings)
