"""Distances between waveforms in dB, and how levels and delays differ. It knows arrays alone.

Ratios are computed in float64 and limited to ±100 dB, so that a perfect copy has a number. SI-SDR
with both signals centred follows Le Roux et al., "SDR, half-baked or well done?" (ICASSP 2019).
"""

from functools import partial

import numpy as np

from codecplus.eval.metrics.base import OutputUnscorable, metric

LIMIT_DB = 100
MAX_LAG_SECONDS = 0.05
FULL_SCALE = 1 - 2**-15

_ratio = partial(metric, unit="dB", lowest=-LIMIT_DB, highest=LIMIT_DB)
_description = partial(metric, higher_is_better=None)


@_ratio(
    title="SI-SDR",
    higher_is_better=True,
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


@_ratio(
    title="SI-SDR, aligned",
    higher_is_better=True,
    source="SI-SDR after the codec's own lag within 50 ms, the median over its clips",
    uses_lag=True,
    version=2,
)
def si_sdr_aligned(
    reference: np.ndarray, estimate: np.ndarray, sample_rate: int, lag_ms: float | None = None
) -> float:
    """SI-SDR of (S,) against (S,) after a shift by whole samples, within ±50 ms.

    Several codecs keep a few samples of delay that nobody hears and that plain SI-SDR punishes
    hard. A run takes one lag per codec and sample rate, the median over its clips: a lag that is
    sought anew in every clip locks onto the pitch of tonal music. Without `lag_ms` it is that of
    these two signals.
    """
    if lag_ms is None:
        lag_ms = lag(reference, estimate, sample_rate)
    shift = round(lag_ms * sample_rate / 1000)
    if shift >= 0:
        return si_sdr(reference[: len(reference) - shift], estimate[shift:])
    return si_sdr(reference[-shift:], estimate[:shift])


@_ratio(
    title="SNR",
    higher_is_better=True,
    source="power of the reference over power of the difference",
)
def snr(reference: np.ndarray, estimate: np.ndarray, sample_rate: int = 0) -> float:
    """Signal-to-noise ratio in dB of (S,) against (S,).

    >>> snr(np.array([1.0, -1.0]), np.array([0.9, -0.9]))
    20.0
    """
    noise = reference.astype(np.float64) - estimate
    return _ratio_db(np.sum(np.square(reference, dtype=np.float64)), np.sum(noise**2))


@_description(
    title="Lag",
    unit="ms",
    lowest=-50,
    highest=50,
    source="peak of the whitened cross-correlation within 50 ms",
    version=2,
)
def lag(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """Delay of the estimate in milliseconds, within ±50 ms; negative when it is early."""
    return 1000 * best_lag(reference, estimate, int(MAX_LAG_SECONDS * sample_rate)) / sample_rate


@_ratio(
    title="Gain",
    higher_is_better=None,
    source="power of the output over that of the reference",
)
def gain(reference: np.ndarray, estimate: np.ndarray, sample_rate: int = 0) -> float:
    """How much louder the estimate (S,) is than the reference (S,), in dB.

    >>> round(gain(np.array([1.0, -1.0]), np.array([0.5, -0.5])), 2)
    -6.02
    """
    x = _centred(reference)
    y = _centred(estimate)
    return _ratio_db(float(y @ y), float(x @ x))


@_description(
    title="Polarity",
    unit="",
    lowest=-1,
    highest=1,
    source="sign of the cross-correlation where it is strongest, within 50 ms",
)
def polarity(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """1 where the estimate (S,) has the sign of the reference (S,), −1 where it is inverted.

    >>> wave = np.sin(np.arange(200.0) ** 1.2)
    >>> polarity(wave, -wave, 8000)
    -1.0
    """
    correlation = _correlation(reference, estimate, int(MAX_LAG_SECONDS * sample_rate))
    return float(np.sign(correlation[np.argmax(np.abs(correlation))])) or 1.0


@_description(
    title="Clipping",
    unit="%",
    lowest=0,
    highest=100,
    source="samples at full scale where the reference is not",
)
def clipping(reference: np.ndarray, estimate: np.ndarray, sample_rate: int = 0) -> float:
    """Share of samples of (S,) at or beyond full scale where the reference is below it, in %."""
    clipped = (np.abs(estimate) >= FULL_SCALE) & (np.abs(reference) < FULL_SCALE)
    return float(100 * np.mean(clipped))


def best_lag(reference: np.ndarray, estimate: np.ndarray, limit: int) -> int:
    """Return the whole samples by which the estimate (S,) is late, from −limit to limit.

    The spectra are whitened first (Knapp and Carter 1976), or a correlation of tonal music is about
    as strong one period later. Of equal fits the smallest is returned.

    >>> best_lag(np.array([0, 1.0, 0, -1, 0, 0]), np.array([0, 0, 0, 1.0, 0, -1]), limit=4)
    2
    """
    limit = min(limit, len(reference) - 2)
    strength = np.abs(_correlation(reference, estimate, limit, whiten=True))
    lags = _lags(limit)
    return int(lags[np.argmax(strength > (1 - 1e-9) * strength.max())])


def _lags(limit: int) -> np.ndarray:
    """0, −1, 1, −2, …, limit."""
    return np.array(sorted(range(-limit, limit + 1), key=abs))


def _correlation(
    reference: np.ndarray, estimate: np.ndarray, limit: int, whiten: bool = False
) -> np.ndarray:
    """Cross-correlation at the lags of `_lags`."""
    limit = min(limit, len(reference) - 2)
    size = 1 << (len(reference) + limit - 1).bit_length()
    x = np.fft.rfft(_centred(reference), size)
    y = np.fft.rfft(_centred(estimate), size)
    spectrum = y * np.conj(x)
    if whiten:
        # Bins 60 dB below the loudest hold dither, whose phases would drown the others'.
        magnitude = np.abs(spectrum)
        audible = magnitude > 1e-6 * magnitude.max()
        spectrum = np.where(audible, spectrum / np.maximum(magnitude, 1e-300), 0)
    return np.fft.irfft(spectrum, size)[_lags(limit)]  # negative lags wrap round to the end


def _centred(signal: np.ndarray) -> np.ndarray:
    return signal.astype(np.float64) - signal.mean(dtype=np.float64)


def _ratio_db(signal: float, noise: float) -> float:
    if noise == 0:
        return float(LIMIT_DB)
    if signal == 0:
        return float(-LIMIT_DB)
    return float(np.clip(round(10 * np.log10(signal / noise), 12), -LIMIT_DB, LIMIT_DB))
