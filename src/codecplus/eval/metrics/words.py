"""Word and character errors: what a speech recogniser hears in the output, against the reference.

The recogniser is any model that transformers has for it, by Hub id or folder: `wer:ID`, `cer:ID`.
Its own transcript of the reference is the truth, so its mistakes on clean speech do not count.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from codecplus.eval.metrics.base import (
    Metric,
    ReferenceUnscorable,
    Weighted,
    content_mark,
    metric_family,
)

_RATE = 16_000
_REMEMBERED = 32  # transcripts of references, which all codecs are compared with
_NO_WORD = re.compile(r"[^\w\s']+")


@metric_family("wer", "word errors in %, by the recogniser ID of transformers")
def word_errors(name: str, source: str) -> Metric:
    """Return the metric of word errors by a recogniser."""
    return _metric(name, source, "Word error rate", words=True)


@metric_family("cer", "character errors in %, by the recogniser ID of transformers")
def character_errors(name: str, source: str) -> Metric:
    """Return the metric of character errors by a recogniser."""
    return _metric(name, source, "Character error rate", words=False)


def _metric(name: str, source: str, title: str, words: bool) -> Metric:
    return Metric(
        name=name,
        title=title,
        unit="%",
        function=ErrorRate(source, words),
        higher_is_better=False,
        lowest=0,
        highest=float("inf"),
        sample_rate=_RATE,
        min_sample_rate=8000,
        min_seconds=0.3,
        max_seconds=30,
        domains=("speech",),
        library="transformers",
        modules=("transformers",),
        by_default=False,
        timeout=900,
        mark=lambda: content_mark(source),
        source=f"edit distance of transcripts by {source}, over all words of the recordings",
    )


class ErrorRate:
    """Errors in % of the reference's words or characters, weighed by how many there are."""

    def __init__(self, source: str, words: bool) -> None:
        self.source = source
        self.words = words
        self._transcripts: dict[bytes, str] = {}

    def __call__(self, reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> Weighted:
        """Return the errors in % of (S,) against (S,) at 16 kHz."""
        expected = self._parts(self._reference(reference, sample_rate))
        if not expected:
            raise ReferenceUnscorable(f"{self.source} hears no word in the reference")
        found = self._parts(_transcribe(self.source, estimate, sample_rate))
        errors = edit_distance(expected, found)
        return Weighted(100 * errors / len(expected), weight=len(expected))

    def _reference(self, signal: np.ndarray, sample_rate: int) -> str:
        key = signal.tobytes()
        if key not in self._transcripts:
            while len(self._transcripts) >= _REMEMBERED:
                self._transcripts.pop(next(iter(self._transcripts)))
            self._transcripts[key] = _transcribe(self.source, signal, sample_rate)
        return self._transcripts[key]

    def _parts(self, text: str) -> Sequence[str]:
        plain = _NO_WORD.sub(" ", text.casefold()).split()
        return plain if self.words else list(" ".join(plain))


def edit_distance(expected: Sequence[str], found: Sequence[str]) -> int:
    """Return how many insertions, deletions and replacements turn one sequence into another.

    >>> edit_distance("the cat sat".split(), "a cat sat down".split())
    2
    """
    row = list(range(len(found) + 1))
    for index, part in enumerate(expected, start=1):
        diagonal = row[0]
        row[0] = index
        for column, other in enumerate(found, start=1):
            replaced = diagonal + (part != other)
            diagonal = row[column]
            row[column] = min(replaced, row[column] + 1, row[column - 1] + 1)
    return row[-1]


def _transcribe(source: str, signal: np.ndarray, sample_rate: int) -> str:
    return _recogniser(source)({"raw": signal.copy(), "sampling_rate": sample_rate})["text"]


@cache
def _recogniser(source: str) -> Any:
    from transformers import pipeline
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it would stand between the bars of the run
    return pipeline("automatic-speech-recognition", model=source, device="cpu")
