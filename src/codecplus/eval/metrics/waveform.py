"""Distances between waveforms in dB, and the delay between them. It knows arrays, no spectra.

Ratios are computed in float64 and limited to ±100 dB, so that a perfect copy has a number. SI-SDR
with both signals centred follows Le Roux et al., "SDR, half-baked or well done?" (ICASSP 2019).
"""

import numpy as np

from codecplus.eval.metrics.base import OutputUnscorable, metric

LIMIT_DB = 100.0
MAX_LAG_SECONDS = 0.05


@metric(
    title="SI-SDR",
    unit="dB",
    higher_is_better=True,
    lowest=-100,
    highest=100,
    source="Le Roux et al. 2019, centred signals",
)
def si_sdr(reference: np.ndarray, estimate: np.ndarray, sample_rate: int = 0) -> float:
    """Scale-invariant signal-to-distortion ratio in dB of (S,) against (S,), both centred.

    >>> round(si_sdr(np.array([1.0, -1.0, 1.0, -1.0]), np.array([2.1, -1.9, 1.9, -2.1])), 4)
    26.0206
    """
    x = _centred(reference)
    y = _centred(estimate)
    power = float(x @ x)
    if power == 0 or not y.any():
        raise OutputUnscorable("SI-SDR needs two signals that are not constant")
    target = (x @ y / power) * x
    noise = y - target
    return _ratio_db(float(target @ target), float(noise @ noise))


@metric(
    title="SI-SDR, aligned",
    unit="dB",
    higher_is_better=True,
    lowest=-100,
    highest=100,
    source="SI-SDR after the best whole-sample lag within 50 ms",
)
def si_sdr_aligned(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """SI-SDR after the whole-sample shift of the estimate that fits best, within ±50 ms.

    Several codecs keep a few samples of delay that nobody hears and that plain SI-SDR punishes
    hard.
    """
    shift = best_lag(reference, estimate, int(MAX_LAG_SECONDS * sample_rate))
    if shift >= 0:
        return si_sdr(reference[: len(reference) - shift], estimate[shift:])
    return si_sdr(reference[-shift:], estimate[:shift])


@metric(
    title="SNR",
    unit="dB",
    higher_is_better=True,
    lowest=-100,
    highest=100,
    source="power of the reference over power of the difference",
)
def snr(reference: np.ndarray, estimate: np.ndarray, sample_rate: int = 0) -> float:
    """Signal-to-noise ratio in dB of (S,) against (S,).

    >>> snr(np.array([1.0, -1.0]), np.array([0.9, -0.9]))
    20.0
    """
    noise = reference.astype(np.float64) - estimate
    return _ratio_db(np.sum(np.square(reference, dtype=np.float64)), np.sum(noise**2))


@metric(
    title="Lag",
    unit="ms",
    higher_is_better=None,
    lowest=-50,
    highest=50,
    source="peak of the cross-correlation within 50 ms",
)
def lag(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """Delay of the estimate in milliseconds, by correlation within ±50 ms; negative when early."""
    return 1000 * best_lag(reference, estimate, int(MAX_LAG_SECONDS * sample_rate)) / sample_rate


def best_lag(reference: np.ndarray, estimate: np.ndarray, limit: int) -> int:
    """Whole samples by which the estimate (S,) is late, from −limit to limit.

    Of equal fits the smallest is returned.

    >>> best_lag(np.array([0, 1.0, 0, -1, 0, 0]), np.array([0, 0, 0, 1.0, 0, -1]), limit=4)
    2
    """
    limit = min(limit, len(reference) - 2)
    size = 1 << (len(reference) + limit - 1).bit_length()
    spectrum = np.fft.rfft(_centred(estimate), size) * np.conj(
        np.fft.rfft(_centred(reference), size)
    )
    correlation = np.abs(np.fft.irfft(spectrum, size))
    lags = np.array(sorted(range(-limit, limit + 1), key=abs))
    strength = correlation[lags]  # negative lags wrap round to the end
    return int(lags[np.argmax(strength > (1 - 1e-12) * strength.max())])


def _centred(signal: np.ndarray) -> np.ndarray:
    return signal.astype(np.float64) - signal.mean(dtype=np.float64)


def _ratio_db(signal: float, noise: float) -> float:
    if noise == 0:
        return LIMIT_DB
    if signal == 0:
        return -LIMIT_DB
    return float(np.clip(round(10 * np.log10(signal / noise), 12), -LIMIT_DB, LIMIT_DB))
