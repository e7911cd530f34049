import numpy as np
import pytest

from codecplus.audio.bands import band_edges, band_levels, band_names, band_power

RATE = 16_000


def noise(seconds=2.0, rate=RATE):
    return 0.1 * np.random.default_rng(0).standard_normal(int(seconds * rate))


def test_the_bands_together_have_the_power_of_the_signal():
    signal = noise()
    power = band_power(signal, RATE, band_edges(RATE))
    assert power.shape == (8,)
    assert power.sum() == pytest.approx(np.square(signal).mean(), rel=0.01)


def test_a_sine_has_its_power_in_its_band_alone():
    sine = np.sin(2 * np.pi * 2500 * np.arange(RATE) / RATE)
    power = band_power(sine, RATE, band_edges(RATE))
    assert power[2] == pytest.approx(0.5, rel=1e-3)
    assert np.delete(power, 2).max() < 1e-6


def test_a_filtered_band_is_too_quiet_by_what_the_filter_took():
    signal = noise()
    spectrum = np.fft.rfft(signal)
    frequencies = np.fft.rfftfreq(len(signal), 1 / RATE)
    spectrum[(frequencies >= 4000) & (frequencies < 5000)] *= 0.5
    levels = band_levels(np.fft.irfft(spectrum), signal, RATE)
    assert levels[4] == pytest.approx(-6, abs=0.3)
    assert np.abs(np.delete(levels, 4)).max() < 0.1


def test_bands_in_which_the_reference_is_silent_have_no_level():
    sine = 0.3 * np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE)
    levels = band_levels(0.5 * sine, sine, RATE)
    assert levels[0] == pytest.approx(-6.02, abs=0.01)
    assert np.isnan(levels[3:]).all()
    assert np.isfinite(band_levels(np.zeros(RATE), noise(1.0), RATE)).all()


@pytest.mark.parametrize("samples", [0, 1, 700])
def test_short_signals_have_a_power(samples):
    assert np.isfinite(band_power(np.ones(samples), RATE, band_edges(RATE))).all()


def test_bands_are_kilohertz_at_16_and_octaves_above():
    assert band_names(band_edges(16_000)) == [f"{k}-{k + 1} kHz" for k in range(8)]
    assert band_names(band_edges(24_000))[-2:] == ["4-8 kHz", "8-12 kHz"]
    assert band_names(band_edges(44_100))[-2:] == ["8-16 kHz", "16-22.05 kHz"]
