"""Listening tests: stimuli, sessions and the order of trials. It knows nothing of pages."""

import json
import random
import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.errors import FileFormatError, InputError
from codecplus.eval.codecs import resolve_codecs
from codecplus.eval.listening import REFERENCE, SCALES, Rating, analyse
from codecplus.eval.stimuli import Stimulus, conditions_hash, prepare_item

from .coding import read_clip
from .ratings import RatingStore, hub_scheduler
from .shelf import Shelf

_MAX_SESSIONS = 2000
_SESSION_SECONDS = 3 * 3600
_RATER = re.compile(r"[0-9a-f]{16}")
_shuffle = random.SystemRandom().sample


@dataclass(frozen=True)
class Definition:
    """What is tested: items by name, and codecs with their rates in kbit/s per channel."""

    name: str
    items: dict[str, Path]
    conditions: list[tuple[str, float]]

    @classmethod
    def read(cls, path: Path) -> "Definition":
        """Read a test's JSON file; FileFormatError where it is none."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            items = {name: (path.parent / file).resolve() for name, file in fields["items"].items()}
            conditions = [(entry["codec"], float(entry["kbps"])) for entry in fields["conditions"]]
            return cls(str(fields["name"]), items, conditions)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(f"{path.name} describes no listening test: {error!r}") from error


@dataclass
class _Session:
    """One listener on the way through one test."""

    method: str
    rater: str
    trials: list[tuple[str, dict[str, Stimulus]]]  # item, and what hides behind each letter
    position: int = 0
    given: list[Rating] = field(default_factory=list)
    touched: float = field(default_factory=time.monotonic)


class ListeningTest:
    """A MUSHRA and an ACR test of the same stimuli, for any number of listeners at a time."""

    def __init__(self, definition: Definition, shelf: Shelf, ratings: Path):
        self.definition, self.shelf = definition, shelf
        self.codecs = [
            codec
            for name, kbps in definition.conditions
            for codec in resolve_codecs([name], [kbps])[3:]
        ]  # the first three are the anchors, which every item has
        self.store = RatingStore(ratings, conditions_hash(self.codecs), hub_scheduler(ratings))
        self._items: dict[str, list[Stimulus]] | None = None
        self._urls: dict[Path, str] = {}
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._lock, self._preparing = threading.Lock(), threading.Lock()

    def prepare(self) -> dict[str, list[Stimulus]]:
        """Code every item by every condition, once; later calls give the same."""
        with self._preparing:
            if self._items is None:
                items = {}
                for name, path in self.definition.items.items():
                    clip, folder = read_clip(path), self.shelf.new("item").parent
                    items[name] = prepare_item(clip.audio, clip.sample_rate, self.codecs, folder)
                    self._urls |= {s.path: self.shelf.put(s.path, keep=True) for s in items[name]}
                self._items = items
            return self._items

    def start(self, method: str, rater: str | None = None) -> dict[str, Any]:
        """Begin a session, of a listener who was here before or of a new one, and give the first
        trial.
        """
        if method not in SCALES:
            raise InputError(f"There is no method {method!r}; there are {', '.join(SCALES)}.")
        if not (isinstance(rater, str) and _RATER.fullmatch(rater)):
            rater = secrets.token_hex(8)
        items, trials = self.prepare(), []
        for item in _shuffle(list(items), len(items)):
            stimuli = _shuffle(items[item], len(items[item]))
            letters = [chr(ord("A") + i) for i in range(len(stimuli))]
            if method == "mushra":
                trials.append((item, dict(zip(letters, stimuli, strict=True))))
            else:
                trials += [(item, {"A": stimulus}) for stimulus in stimuli]
        if (
            method == "acr"
        ):  # the same words should not come twice in a row, as far as chance allows
            trials = _shuffle(trials, len(trials))
        name = secrets.token_urlsafe(12)
        with self._lock:
            self._sessions[name] = _Session(method, rater, trials)
            self._forget()
        return self._trial(name)

    def submit(self, session: str, scores: Any) -> dict[str, Any]:
        """Take the scores of the present trial, by letter, and give the next one, or the end.

        Raises InputError for a session that is gone, and unless every letter has a score of the
        scale.
        """
        with self._lock:
            found = self._sessions.get(session)
            if found is None:
                raise InputError("This session is over; begin again.")
            item, stimuli = found.trials[found.position]
            ratings = _ratings(found, item, stimuli, scores)
            self.store.add(ratings)
            found.given += ratings
            found.position += 1
            found.touched = time.monotonic()
            if found.position < len(found.trials):
                return self._trial(session)
            del self._sessions[session]
        given: dict[str, list[float]] = {}
        for rating in found.given:
            given.setdefault(
                "reference" if rating.condition == REFERENCE else rating.condition, []
            ).append(rating.score)
        means = sorted(
            ((name, float(np.mean(scores))) for name, scores in given.items()),
            key=lambda pair: -pair[1],
        )
        return {
            "stage": "done",
            "method": found.method,
            "rater": found.rater,
            "given": [list(pair) for pair in means],
        }

    def results(self) -> dict[str, Any]:
        """What all listeners said so far, screened, as plain data by method."""
        return {name: result.as_dict() for name, result in analyse(self.store.all()).items()}

    def _trial(self, name: str) -> dict[str, Any]:
        session = self._sessions[name]
        item, stimuli = session.trials[session.position]
        reference = next(s for s in (self._items or {})[item] if s.condition == REFERENCE)
        return {
            "stage": "trial",
            "session": name,
            "method": session.method,
            "rater": session.rater,
            "index": session.position,
            "total": len(session.trials),
            # A copy under another name, or the equal URL would give the hidden reference away.
            "reference": self._alias(reference.path) if session.method == "mushra" else None,
            "stimuli": [
                {"id": letter, "url": self._alias(s.path)} for letter, s in stimuli.items()
            ],
        }

    def _alias(self, path: Path) -> str:
        return self.shelf.put(path, again=True)

    def _forget(self) -> None:
        limit = time.monotonic() - _SESSION_SECONDS
        for name in [name for name, session in self._sessions.items() if session.touched < limit]:
            del self._sessions[name]
        while len(self._sessions) > _MAX_SESSIONS:
            self._sessions.popitem(last=False)


def _ratings(
    session: _Session, item: str, stimuli: dict[str, Stimulus], scores: Any
) -> list[Rating]:
    if not isinstance(scores, dict) or set(scores) != set(stimuli):
        raise InputError(f"Expected a score for each of {', '.join(stimuli)}.")
    low, high = SCALES[session.method]
    for letter, score in scores.items():
        if (
            isinstance(score, bool)
            or not isinstance(score, int | float)
            or not low <= score <= high
        ):
            raise InputError(
                f"Expected a score from {low:g} to {high:g} for {letter}, got {score!r}."
            )
    return [
        Rating(session.method, session.rater, item, stimuli[letter].condition, float(score))
        for letter, score in scores.items()
    ]


def copy_ratings(store: RatingStore, target: Path) -> Path:
    """A copy of the ratings so far, for `codecplus eval --listening`."""
    shutil.copyfile(store.path, target)
    return target
