"""Metrics: pure functions over numpy arrays that declare what they need, and the one table that
lists them.

from codecplus.eval.metrics import score
scores = score(reference, estimate, sample_rate=16000, metrics=["pesq_wb", "stoi", "mel_distance"])
scores["pesq_wb"].value, scores["pesq_wb"].status, scores["pesq_wb"].reason
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from math import inf

import numpy as np

from codecplus.errors import InputError, MissingExtraError
from codecplus.eval.metrics import perceptual, spectral, waveform
from codecplus.eval.metrics.base import STATUSES, Metric, Score, Status
from codecplus.eval.metrics.compute import Recording, compute_score, output_problem

__all__ = [
    "METRICS", "STATUSES", "Metric", "Recording", "Score", "Status", "compute_score", "default_metrics",
    "metric_by_name", "metrics_by_name", "output_problem", "score",
]  # fmt: skip

_P862 = "ITU-T P.862, by the pesq package"
_DAC = "Kumar et al. 2023, evaluation of the DAC paper"

_ALL = (
    Metric(
        name="pesq_wb", title="PESQ wide band", unit="MOS-LQO", function=perceptual.pesq_wb, higher_is_better=True,
        lowest=1.0, highest=4.65, sample_rate=16_000, min_sample_rate=16_000, min_seconds=0.25, max_seconds=30,
        domains=("speech",), library="pesq", modules=("pesq",), source=_P862,
    ),
    Metric(
        name="pesq_nb", title="PESQ narrow band", unit="MOS-LQO", function=perceptual.pesq_nb, higher_is_better=True,
        lowest=1.0, highest=4.65, sample_rate=8_000, min_sample_rate=8_000, min_seconds=0.25, max_seconds=30,
        domains=("speech",), library="pesq", modules=("pesq",), source=_P862,
    ),
    Metric(
        name="stoi", title="STOI", unit="", function=perceptual.stoi, higher_is_better=True, lowest=-1, highest=1,
        min_sample_rate=8_000, min_seconds=0.4, max_seconds=30, domains=("speech",), library="pystoi",
        modules=("pystoi",), source="Taal et al. 2011, by the pystoi package",
    ),
    Metric(
        name="estoi", title="ESTOI", unit="", function=perceptual.estoi, higher_is_better=True, lowest=-1, highest=1,
        min_sample_rate=8_000, min_seconds=0.4, max_seconds=30, domains=("speech",), library="pystoi",
        modules=("pystoi",), source="Jensen and Taal 2016, by the pystoi package",
    ),
    Metric(
        name="si_sdr", title="SI-SDR", unit="dB", function=waveform.si_sdr, higher_is_better=True, lowest=-100,
        highest=100, source="Le Roux et al. 2019, centred signals",
    ),
    Metric(
        name="si_sdr_aligned", title="SI-SDR, aligned", unit="dB", function=waveform.si_sdr_aligned,
        higher_is_better=True, lowest=-100, highest=100, source="SI-SDR after the best whole-sample lag within 50 ms",
    ),
    Metric(
        name="snr", title="SNR", unit="dB", function=waveform.snr, higher_is_better=True, lowest=-100, highest=100,
        source="power of the reference over power of the difference",
    ),
    Metric(
        name="lag", title="Lag", unit="ms", function=waveform.lag, higher_is_better=None, lowest=-50, highest=50,
        source="peak of the cross-correlation within 50 ms",
    ),
    Metric(
        name="mel_distance", title="Mel distance", unit="", function=spectral.mel_distance, higher_is_better=False,
        lowest=0, highest=inf, sample_rate=spectral.PAPER_RATE, source=_DAC,
    ),
    Metric(
        name="stft_distance", title="STFT distance", unit="", function=spectral.stft_distance, higher_is_better=False,
        lowest=0, highest=inf, sample_rate=spectral.PAPER_RATE, source=_DAC,
    ),
    Metric(
        name="log_spectral_distance", title="Log-spectral distance", unit="dB", higher_is_better=False,
        function=spectral.log_spectral_distance, lowest=0, highest=inf,
        source="window 2048, hop 512 at the native rate, floor 80 dB below the loudest bin of the reference",
    ),
    Metric(
        name="bandwidth", title="Bandwidth", unit="Hz", function=spectral.bandwidth, higher_is_better=True, lowest=0,
        highest=inf, source="highest 100 Hz band kept within 10 dB of the reference",
    ),
    Metric(
        name="visqol_speech", title="ViSQOL speech", unit="MOS-LQO", function=perceptual.visqol_speech,
        higher_is_better=True, lowest=1, highest=5, sample_rate=16_000, min_sample_rate=16_000, min_seconds=1.0,
        max_seconds=30, domains=("speech",), library="visqol-python", modules=("visqol", "ai_edge_litert"),
        extra="visqol", timeout=600, version=2, source="ViSQOL v3 with its lattice model, by visqol-python",
    ),
    Metric(
        name="visqol_audio", title="ViSQOL audio", unit="MOS-LQO", function=perceptual.visqol_audio,
        higher_is_better=True, lowest=1, highest=5, sample_rate=48_000, min_seconds=1.0, max_seconds=30,
        library="visqol-python", modules=("visqol",), extra="visqol", timeout=600,
        source="ViSQOL v3 by visqol-python",
    ),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def metric_by_name(name: str) -> Metric:
    """The metric of that name; InputError for an unknown one, MissingExtraError when its library is
    absent.
    """
    if name not in METRICS:
        hint = difflib.get_close_matches(name, METRICS, n=1) or sorted(METRICS)
        raise InputError(f"unknown metric {name!r}; did you mean {' or '.join(hint)}?")
    metric = METRICS[name]
    if not metric.available:
        raise MissingExtraError(
            f"the metric {name!r} needs {metric.library}: pip install 'codecplus[{metric.extra}]'"
        )
    return metric


def default_metrics() -> list[str]:
    """Every metric that is installed, without ViSQOL, which takes about as long as the audio lasts."""
    return [m.name for m in _ALL if m.available and not m.name.startswith("visqol")]


def metrics_by_name(names: Iterable[str] | None = None) -> list[Metric]:
    """The metrics named, in the order of the table; None: the default ones; `all`: every one
    installed.
    """
    wanted = default_metrics() if names is None else list(names)
    if "all" in wanted:
        wanted = [m.name for m in _ALL if m.available]
    chosen = {name: metric_by_name(name) for name in wanted}
    return [metric for name, metric in METRICS.items() if name in chosen]


def score(
    reference: np.ndarray,
    estimate: np.ndarray,
    sample_rate: int,
    metrics: Iterable[str] | None = None,
) -> dict[str, Score]:
    """Score an estimate against its reference, both (S,) or (C, S) at the same rate, channels
    averaged.

    Libraries that may crash run in a process that may die: a crash or a hang becomes a Score with a
    reason.
    """
    from codecplus.eval.metrics.worker import shared_scorer

    pair = [np.atleast_2d(np.asarray(signal, dtype=np.float32)) for signal in (reference, estimate)]
    if sample_rate <= 0 or pair[0].ndim != 2 or pair[1].ndim != 2:
        raise InputError(
            f"expected two arrays (samples,) or (channels, samples) at a positive rate, got "
            f"{np.shape(reference)} and {np.shape(estimate)} at {sample_rate} Hz"
        )
    names = [metric.name for metric in metrics_by_name(metrics)]
    return dict(
        shared_scorer().score(pair[0], {"estimate": (pair[1], names)}, sample_rate)["estimate"]
    )
