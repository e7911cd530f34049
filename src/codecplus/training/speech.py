"""PESQ and STOI in a process of their own, because PESQ may crash.

It is light to import: that process needs no torch.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

RATE = 16_000


class SpeechScorer:
    """Scores pairs of signals at 16 kHz; a score that cannot be had is left out."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._scored = 0

    def __call__(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[dict[str, float]]:
        """Return `pesq_wb` and `stoi` of each reference and estimate (S,)."""
        scores: list[dict[str, float]] = []
        while len(scores) < len(pairs):
            if self._pool is None:
                # spawn: a fork of a process with threads may hang
                self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            try:
                for pair in pairs[len(scores) :]:
                    scores.append(self._pool.submit(score, *pair).result(timeout=300))
                    self._scored += 1
                    if self._scored % 40 == 0:  # in one process, PESQ crashes sooner or later
                        self.close()
                        break
            except (BrokenProcessPool, TimeoutError):
                self.close()
                scores.append({})
        return scores

    def close(self) -> None:
        """End the process."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def score(reference: np.ndarray, estimate: np.ndarray) -> dict[str, float]:
    """Return the scores of one pair; must run in a process that may die."""
    import warnings

    scores = {}
    try:
        from pesq import pesq

        scores["pesq_wb"] = float(pesq(RATE, reference, estimate, "wb"))
    except Exception:  # not installed, no speech in it, or its output silent: no score
        pass
    try:
        from pystoi import stoi

        with warnings.catch_warnings():
            # Too few frames give 1e-5, which is no score.
            warnings.filterwarnings("error", message="Not enough STFT frames")
            scores["stoi"] = float(stoi(reference, estimate, RATE))
    except Exception:
        pass
    return {name: value for name, value in scores.items() if np.isfinite(value)}
