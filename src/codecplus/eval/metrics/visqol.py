"""ViSQOL, by the package visqol-python."""

from functools import cache, partial
from typing import Any

import numpy as np

from codecplus.eval.metrics.base import metric

_visqol_metric = partial(
    metric,
    unit="MOS-LQO",
    higher_is_better=True,
    lowest=1,
    highest=5,
    min_seconds=1.0,
    max_seconds=30,
    library="visqol-python",
    extra="visqol",
    by_default=False,  # it takes about as long as the audio lasts
    timeout=600,
)


@_visqol_metric(
    title="ViSQOL speech",
    sample_rate=16_000,
    min_sample_rate=16_000,
    domains=("speech",),
    modules=("visqol", "ai_edge_litert"),
    version=2,
    source="ViSQOL v3 with its lattice model, by visqol-python",
)
def visqol_speech(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """ViSQOL v3 in speech mode with its lattice model, MOS-LQO of (S,) against (S,) at 16 kHz."""
    return _visqol("speech", reference, estimate, sample_rate)


@_visqol_metric(
    title="ViSQOL audio",
    sample_rate=48_000,
    modules=("visqol",),
    source="ViSQOL v3 by visqol-python",
)
def visqol_audio(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """ViSQOL v3 in audio mode, MOS-LQO of (S,) against (S,) at 48 kHz."""
    return _visqol("audio", reference, estimate, sample_rate)


def _visqol(mode: str, reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    result = _visqol_api(mode).measure_from_arrays(
        reference.astype(np.float64), estimate.astype(np.float64), sample_rate
    )
    return float(result.moslqo)


@cache
def _visqol_api(mode: str) -> Any:
    from visqol import VisqolApi

    api = VisqolApi()
    # Without the lattice model the speech mode falls back to a polynomial, which gives 1 or 2
    # points more.
    api.create(mode=mode, use_lattice_model=mode == "speech")
    return api
