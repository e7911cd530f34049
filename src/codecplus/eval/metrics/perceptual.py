"""Metrics of speech that model listeners: PESQ and STOI, each computed by its own library.

PESQ's C code writes past its buffers on long speech, so `worker` runs these, which may die.
"""

import warnings
from functools import partial

import numpy as np

from codecplus.eval.metrics.base import OutputUnscorable, ReferenceUnscorable, metric

_pesq_metric = partial(
    metric,
    unit="MOS-LQO",
    higher_is_better=True,
    lowest=1.0,
    highest=4.65,
    min_seconds=0.25,
    max_seconds=30,
    domains=("speech",),
    library="pesq",
    modules=("pesq",),
    source="ITU-T P.862, by the pesq package",
)
_stoi_metric = partial(
    metric,
    unit="",
    higher_is_better=True,
    lowest=-1,
    highest=1,
    min_sample_rate=8_000,
    min_seconds=0.4,
    max_seconds=30,
    domains=("speech",),
    library="pystoi",
    modules=("pystoi",),
)


@_pesq_metric(title="PESQ wide band", sample_rate=16_000, min_sample_rate=16_000)
def pesq_wb(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """PESQ, wide band (ITU-T P.862.2), of (S,) against (S,) at 16 kHz."""
    return _pesq(reference, estimate, sample_rate, "wb")


@_pesq_metric(title="PESQ narrow band", sample_rate=8_000, min_sample_rate=8_000)
def pesq_nb(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """PESQ, narrow band (ITU-T P.862 mapped by P.862.1), of (S,) against (S,) at 8 kHz."""
    return _pesq(reference, estimate, sample_rate, "nb")


def _pesq(reference: np.ndarray, estimate: np.ndarray, sample_rate: int, mode: str) -> float:
    from pesq import BufferTooShortError, NoUtterancesError, pesq

    try:
        return float(pesq(sample_rate, reference, estimate, mode))
    except (NoUtterancesError, BufferTooShortError) as error:
        # PESQ looks for utterances in both signals: the reference against itself tells whose
        # fault it is.
        _refuse_reference(reference, sample_rate, mode)
        raise OutputUnscorable(f"PESQ refuses the output: {_text(error)}") from error


def _refuse_reference(reference: np.ndarray, sample_rate: int, mode: str) -> None:
    from pesq import PesqError, pesq

    try:
        pesq(sample_rate, reference, reference, mode)
    except PesqError as error:
        raise ReferenceUnscorable(f"PESQ refuses the reference: {_text(error)}") from error


def _text(error: Exception) -> str:
    message = error.args[0] if error.args else type(error).__name__
    return message.decode() if isinstance(message, bytes) else str(message)


@_stoi_metric(title="STOI", source="Taal et al. 2011, by the pystoi package")
def stoi(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """Short-time objective intelligibility (Taal et al. 2011) of (S,) against (S,)."""
    return _stoi(reference, estimate, sample_rate, extended=False)


@_stoi_metric(title="ESTOI", source="Jensen and Taal 2016, by the pystoi package")
def estoi(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """Extended STOI (Jensen and Taal 2016) of (S,) against (S,)."""
    return _stoi(reference, estimate, sample_rate, extended=True)


def _stoi(
    reference: np.ndarray, estimate: np.ndarray, sample_rate: int, *, extended: bool
) -> float:
    from pystoi import stoi as compute

    with warnings.catch_warnings():
        # The library answers 1e-5 when under 0.4 s of the reference is not silent; that is no
        # score.
        warnings.filterwarnings("error", message="Not enough STFT frames")
        try:
            # ESTOI adds random numbers of 1e-16 from the global generator; a fixed state makes it
            # repeatable.
            state = np.random.get_state()  # noqa: NPY002
            np.random.seed(0)  # noqa: NPY002
            return float(compute(reference, estimate, sample_rate, extended=extended))
        except RuntimeWarning as warning:
            raise ReferenceUnscorable(
                "the reference has under 0.4 s of speech that STOI can use"
            ) from warning
        finally:
            np.random.set_state(state)  # noqa: NPY002
