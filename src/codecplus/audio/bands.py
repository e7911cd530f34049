"""The power of a signal in bands of frequency, against that of another. Knows arrays alone."""

from itertools import pairwise

import numpy as np

_SILENCE = 1e-10  # power of a band that counts as none: 100 dB below full scale
_WINDOW_SECONDS = 0.046
_BLOCK_FRAMES = 4096  # transformed at once, so that memory stays bounded


def band_edges(sample_rate: int) -> np.ndarray:
    """Return the edges in Hz of the bands in which codecs of this rate are compared.

    Up to 16 kHz these are bands of 1 kHz; above, octaves from 125 Hz, the first one from 0 and the
    last one to half the rate.

    >>> band_edges(16000)
    array([   0., 1000., 2000., 3000., 4000., 5000., 6000., 7000., 8000.])
    >>> band_edges(44100)[-4:]
    array([ 4000.,  8000., 16000., 22050.])
    """
    highest = sample_rate / 2
    if sample_rate <= 16_000:
        inner = np.arange(0.0, highest, 1000.0)
    else:
        octaves = 125.0 * 2.0 ** np.arange(16)
        inner = np.concatenate([[0.0], octaves[octaves < highest]])
    return np.append(inner, highest)


def band_power(signal: np.ndarray, sample_rate: int, edges: np.ndarray) -> np.ndarray:
    """Return the mean power of a signal (S,) in each band between two edges in Hz: (bands,).

    It is the mean over frames of 46 ms under a Hann window, which overlap by half, so that a loud
    band does not leak into a faint one. A sine of amplitude 1 has the power 0.5. A signal shorter
    than a frame is padded with zeros.
    """
    size = 1 << round(np.log2(_WINDOW_SECONDS * sample_rate))
    window = np.hanning(size + 1)[:-1]
    samples = np.asarray(signal, dtype=np.float64)
    samples = np.pad(samples, (0, max(0, size - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[:: size // 2]
    spectrum = np.zeros(size // 2 + 1)
    for start in range(0, len(frames), _BLOCK_FRAMES):
        block = np.fft.rfft(frames[start : start + _BLOCK_FRAMES] * window)
        spectrum += np.square(np.abs(block)).sum(axis=0)
    spectrum[1:-1] *= 2  # the bins of negative frequency
    power = spectrum / len(frames) / size / np.square(window).sum()
    frequencies = np.arange(size // 2 + 1) * sample_rate / size
    bands = np.searchsorted(edges, frequencies, side="right") - 1
    bands = np.clip(bands, 0, len(edges) - 2)  # half the rate itself is in the last one
    return np.bincount(bands, power, minlength=len(edges) - 1)


def band_levels(
    estimate: np.ndarray, reference: np.ndarray, sample_rate: int, edges: np.ndarray | None = None
) -> np.ndarray:
    """Return the power of each band of an estimate (S,), in dB above that of its reference (S,).

    0 is right, below 0 the band is too quiet, which sounds dull. Bands in which the reference is
    silent are NaN. Over recordings take `np.nanmedian`.

    Args:
        estimate: the decoded signal, of about the length of the reference.
        reference: the original.
        sample_rate: of both, in Hz.
        edges: of the bands in Hz; by default `band_edges(sample_rate)`.
    """
    if edges is None:
        edges = band_edges(sample_rate)
    power = band_power(estimate, sample_rate, edges)
    expected = band_power(reference, sample_rate, edges)
    levels = 10 * np.log10(np.maximum(power, _SILENCE) / np.maximum(expected, _SILENCE))
    return np.where(expected > _SILENCE, levels, np.nan)


def band_names(edges: np.ndarray) -> list[str]:
    """Return a name in kHz for each band between two edges in Hz.

    >>> band_names(np.array([0.0, 125.0, 1000.0, 22050.0]))
    ['0-0.125 kHz', '0.125-1 kHz', '1-22.05 kHz']
    """
    kilohertz = [f"{edge / 1000:.4g}" for edge in edges]
    return [f"{low}-{high} kHz" for low, high in pairwise(kilohertz)]
