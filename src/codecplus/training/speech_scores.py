"""PESQ and STOI in a process of their own, because PESQ may crash.

It knows pairs of signals, nothing of codecs. Run as a module, this is that process; it is light to
import, because the process needs no torch.
"""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from codecplus.system.workers import Message, Worker, WorkerDied, WorkerTimeout, serve

RATE = 16_000
_SECONDS = 300.0  # of processor time for one pair, imports included
_PAIRS_PER_PROCESS = 40  # in one process, PESQ crashes sooner or later

Pair = tuple[np.ndarray, np.ndarray]  # reference and estimate (S,), at 16 kHz


class SpeechScorer:
    """Scores pairs of signals at 16 kHz. A pair has no score where a metric gives none."""

    def __init__(self) -> None:
        self._worker = Worker("codecplus.training.speech_scores")
        self._scored = 0

    def __call__(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """Return `pesq_wb` and `stoi` of each pair of a reference and an estimate (S,).

        A pair on which the process dies has neither.
        """
        return [self._score(pair) for pair in pairs]

    def _score(self, pair: Pair) -> dict[str, float]:
        try:
            self._worker.send(pair)
            scores, _ = self._worker.receive(_SECONDS)
        except (WorkerDied, WorkerTimeout):
            return {}
        self._scored += 1
        if self._scored % _PAIRS_PER_PROCESS == 0:
            self.close()
        return scores

    def close(self) -> None:
        """End the process; another pair starts it again."""
        self._worker.close()


# ---- inside the worker


def _answers(pair: Pair) -> Iterator[Message]:
    """Yield the one message of a pair: its scores by name."""
    reference, estimate = pair
    scores: dict[str, float] = {}
    for name, metric in (("pesq_wb", _pesq), ("stoi", _stoi)):
        try:
            value = metric(reference, estimate)
        except Exception:  # not installed, or no score for this pair, such as silence
            continue
        if np.isfinite(value):
            scores[name] = value
    yield scores, None


def _pesq(reference: np.ndarray, estimate: np.ndarray) -> float:
    from pesq import pesq

    return float(pesq(RATE, reference, estimate, "wb"))


def _stoi(reference: np.ndarray, estimate: np.ndarray) -> float:
    from pystoi import stoi

    with warnings.catch_warnings():
        # Too few frames give 1e-5, which is no score.
        warnings.filterwarnings("error", message="Not enough STFT frames")
        return float(stoi(reference, estimate, RATE))


if __name__ == "__main__":
    serve(_answers)
