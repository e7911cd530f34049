"""Listening tests: stimuli, sessions and the order of trials. It knows nothing of pages."""

import hashlib
import io
import json
import random
import re
import secrets
import shutil
import threading
import time
import wave
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.errors import FileFormatError, InputError
from codecplus.eval.codecs import resolve_codecs
from codecplus.eval.listening import REFERENCE, SCALES, ListeningResult, Rating, analyse
from codecplus.eval.stimuli import Stimulus, conditions_hash, prepare_item

from .coding import read_clip
from .ratings import RatingStore, hub_scheduler
from .shelf import Shelf

LEAST_SECONDS = 1.0  # of listening to each stimulus of a trial, or all of a shorter one
LOW_ANCHOR = "lowpass-3500"  # a telephone's sound
CATEGORIES = (1, 2, 3, 4, 5)  # of ACR, ITU-T P.800: bad, poor, fair, good, excellent
_MAX_SESSIONS = 2000
_SESSION_SECONDS = 3 * 3600
_KEY = re.compile(r"[0-9a-f]{32}")
_shuffle = random.SystemRandom().sample
_SALT = secrets.token_bytes(16)  # or whoever reads this file could take the noise off again


@dataclass(frozen=True)
class Definition:
    """A listening test: items by name, and codecs with their rates in kbit/s per channel."""

    name: str
    items: dict[str, Path]
    conditions: list[tuple[str, float]]

    @classmethod
    def read(cls, path: Path) -> "Definition":
        """Read a test's JSON file; raises FileFormatError if it describes no test."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            items = {name: (path.parent / file).resolve() for name, file in fields["items"].items()}
            conditions = [(entry["codec"], float(entry["kbps"])) for entry in fields["conditions"]]
            return cls(str(fields["name"]), items, conditions)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(f"{path.name} describes no listening test: {error!r}") from error


@dataclass
class _Trial:
    """One page of a test: an item, and the stimulus behind each letter."""

    item: str
    stimuli: dict[str, Stimulus]
    begun: float | None = None  # when the listener first got it
    addresses: dict[str, set[str]] = field(default_factory=dict)  # letter -> URLs given out


@dataclass
class _Session:
    """One listener in one test."""

    method: str
    rater: str
    trials: list[_Trial]
    touched: float
    position: int = 0
    ratings: list[Rating] = field(default_factory=list)


class ListeningTest:
    """A MUSHRA and an ACR test of the same stimuli, for any number of listeners at a time.

    A listener has a secret key. Ratings carry a hash of it, so that nobody can rate in the name
    of a rater whose ratings are published.

    Args:
        definition: what is tested
        shelf: where the stimuli are served
        ratings: folder of the ratings
        clock: returns seconds; tests pass their own
    """

    def __init__(
        self,
        definition: Definition,
        shelf: Shelf,
        ratings: Path,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.definition = definition
        self.shelf = shelf
        self.codecs = []
        for name, kbps in definition.conditions:
            # The first three are the anchors, which every item has.
            self.codecs += resolve_codecs([name], [kbps])[3:]
        self.store = RatingStore(ratings, conditions_hash(self.codecs), hub_scheduler(ratings))
        self._clock = clock
        self._items: dict[str, list[Stimulus]] | None = None
        self._seconds: dict[str, float] = {}  # of each item
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._lock = threading.Lock()
        self._preparing = threading.Lock()

    def prepare(self) -> dict[str, list[Stimulus]]:
        """Code every item by every condition, once; later calls return the same stimuli."""
        with self._preparing:
            if self._items is None:
                items = {}
                for name, path in self.definition.items.items():
                    clip = read_clip(path)
                    folder = self.shelf.new("item").parent
                    items[name] = prepare_item(clip.audio, clip.sample_rate, self.codecs, folder)
                    self._seconds[name] = clip.seconds
                self._items = items
            return self._items

    def training(self, method: str) -> dict[str, Any]:
        """Return what a listener hears before the first trial: the range of what is to be rated.

        These are all stimuli of one item, in a random order and without names; nothing of it is
        rated (ITU-R BS.1534-3, section 5.1; ITU-T P.800, annex B.4.3). The volume is set with the
        reference.

        Raises InputError for an unknown method.
        """
        _check_method(method)
        stimuli = next(iter(self.prepare().values()))
        (reference,) = [one for one in stimuli if one.condition == REFERENCE]
        sounds = []
        for number, stimulus in enumerate(_shuffle(stimuli, len(stimuli)), start=1):
            sounds.append({"id": str(number), "url": self._salted_url(stimulus.path)})
        return {
            "stage": "training",
            "method": method,
            "reference": self._salted_url(reference.path),
            "stimuli": sounds,
        }

    def start(self, method: str, key: str | None = None) -> dict[str, Any]:
        """Begin a session, or go on with the listener's open one, and return its present trial.

        `key` is the secret that an earlier answer gave to the listener; without a valid one the
        listener is new. Raises InputError for an unknown method.
        """
        _check_method(method)
        if not (isinstance(key, str) and _KEY.fullmatch(key)):
            key = secrets.token_hex(16)
        rater = rater_of(key)
        items = self.prepare()
        with self._lock:
            name = self._open_session(method, rater)
            if name is None:
                name = secrets.token_urlsafe(24)
                session = _Session(method, rater, _trials(method, items), self._clock())
                self._sessions[name] = session
                self._forget()
            return {**self._page(name), "key": key}

    def submit(self, session: str, index: int, scores: Any) -> dict[str, Any]:
        """Store the scores of trial `index`, by letter, and return the next trial, or the end.

        A trial that is rated already is not rated again: the answer is the present trial, so that a
        request whose answer was lost can be repeated.

        Raises InputError for a session that is over, a trial that was not reached, scores that are
        not one of the scale for each letter, and a trial that was answered before it was heard.
        """
        with self._lock:
            listener = self._sessions.get(session)
            if listener is None:
                raise InputError("This session is over; begin again.")
            if isinstance(index, bool) or not isinstance(index, int):
                raise InputError(f"Expected the index of the trial, got {index!r}.")
            if not 0 <= index <= listener.position or index >= len(listener.trials):
                raise InputError(
                    f"Expected scores of trial {listener.position}, got some of trial {index}."
                )
            if index == listener.position:
                trial = listener.trials[index]
                ratings = _ratings(listener, trial, scores)
                self._require_listening(listener, trial)
                self.store.add(ratings)
                listener.ratings += ratings
                listener.position += 1
                listener.touched = self._clock()
            return self._page(session)

    def results(self) -> dict[str, Any]:
        """Return what all listeners said so far, by method, as plain data.

        `excluded` of a method names the listeners that the screening left out, and says why.
        """
        return {name: result.as_dict() for name, result in self.analysis().items()}

    def analysis(self) -> dict[str, ListeningResult]:
        """Return what `results` returns, as objects."""
        return analyse_visitors(self.store.all())

    def _open_session(self, method: str, rater: str) -> str | None:
        for name, session in self._sessions.items():
            is_open = session.position < len(session.trials)
            if is_open and session.rater == rater and session.method == method:
                return name
        return None

    def _page(self, name: str) -> dict[str, Any]:
        """The present trial of a session, or its end."""
        session = self._sessions[name]
        if session.position == len(session.trials):
            return _end(session)
        trial = session.trials[session.position]
        if trial.begun is None:
            trial.begun = self._clock()
        stimuli = []
        for letter, stimulus in trial.stimuli.items():
            url = self._salted_url(stimulus.path)
            trial.addresses.setdefault(letter, set()).add(url)
            stimuli.append({"id": letter, "url": url})
        reference = None
        if session.method == "mushra":
            files = {s.condition: s.path for s in (self._items or {})[trial.item]}
            reference = self._salted_url(files[REFERENCE])
        seconds = self._seconds[trial.item]
        return {
            "stage": "trial",
            "session": name,
            "method": session.method,
            "rater": session.rater,
            "index": session.position,
            "total": len(session.trials),
            "reference": reference,
            "stimuli": stimuli,
            "least_seconds": min(LEAST_SECONDS, seconds),  # of each stimulus
            "full_seconds": seconds,  # one of them is heard to its end
        }

    def _salted_url(self, path: Path) -> str:
        return self.shelf.put(path, again=True, transform=salted)

    def _require_listening(self, session: _Session, trial: _Trial) -> None:
        """Refuse scores of what nobody can have heard: files not fetched, or too little time."""
        for letter, urls in trial.addresses.items():
            if not any(self.shelf.was_served(url) for url in urls):
                raise InputError(f"Listen to {letter} before you rate it.")
        seconds = self._seconds[trial.item]
        # One stimulus is heard to its end, and a part of each other one.
        least = seconds + (len(trial.stimuli) - 1) * min(LEAST_SECONDS, seconds)
        # A tenth less, for a browser's clock is not this one.
        if self._clock() - (trial.begun or 0.0) < 0.9 * least:
            raise InputError(f"Listen first: this trial takes at least {least:.1f} s.")

    def _forget(self) -> None:
        """Drop sessions that are old, and beyond the limit first those that rated nothing."""
        limit = self._clock() - _SESSION_SECONDS
        for name, session in list(self._sessions.items()):
            if session.touched < limit:
                del self._sessions[name]
        excess = len(self._sessions) - _MAX_SESSIONS
        by_worth = sorted(
            self._sessions,
            key=lambda name: (self._sessions[name].position > 0, self._sessions[name].touched),
        )
        for name in by_worth[: max(0, excess)]:
            del self._sessions[name]


def _check_method(method: str) -> None:
    if method not in SCALES:
        raise InputError(f"There is no method {method!r}; there are {', '.join(SCALES)}.")


def analyse_visitors(ratings: Iterable[Rating]) -> dict[str, ListeningResult]:
    """Screen and analyse the ratings of people whom nobody has seen, by method.

    Before the screening of `analyse`, whoever rates the original no better than its 3.5 kHz
    low-pass, as a mean over all items with both, is left out: a program that presses a button, or a
    person who does not listen. Such questions with a known answer are asked for by ITU-T P.808. The
    rule is this demo's, whose items all have sound above 3.5 kHz.
    """
    ratings = list(ratings)
    careless = _careless(ratings)
    counted = [rating for rating in ratings if rating.rater not in careless.get(rating.method, {})]
    results = analyse(counted)
    for method, excluded in careless.items():
        found = results.get(method, ListeningResult(method, {}, [], {}))
        results[method] = replace(found, excluded={**excluded, **found.excluded})
    return results


def _careless(ratings: list[Rating]) -> dict[str, dict[str, str]]:
    """Return who does not tell original and low anchor apart: method -> rater -> the reason."""
    scores: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for rating in ratings:
        own = scores.setdefault((rating.method, rating.rater), {})
        own[rating.item, rating.condition] = rating.score  # the later rating counts
    careless: dict[str, dict[str, str]] = {}
    for (method, rater), own in scores.items():
        better_by = [
            score - own[item, LOW_ANCHOR]
            for (item, condition), score in own.items()
            if condition == REFERENCE and (item, LOW_ANCHOR) in own
        ]
        if better_by and float(np.mean(better_by)) <= 0:
            items = f"{len(better_by)} items" if len(better_by) > 1 else "one item"
            reason = f"rated the original no better than its 3.5 kHz low-pass in {items}"
            careless.setdefault(method, {})[rater] = reason
    return careless


def rater_of(key: str) -> str:
    """Return the public name of a listener: a hash, from which the secret key cannot be found."""
    return hashlib.sha256(f"codecplus rater {key}".encode()).hexdigest()[:16]


def salted(data: bytes, token: str) -> bytes:
    """Change the last bit of some samples of a 16-bit WAV file, differently for every token.

    Two copies of one stimulus then differ in their bytes, so that a hidden reference cannot be
    found by comparing files. The change of one step is far below what can be heard.
    """
    seed = int.from_bytes(hashlib.sha256(_SALT + token.encode()).digest()[:8], "big")
    with wave.open(io.BytesIO(data)) as reader:
        parameters = reader.getparams()
        samples = np.frombuffer(reader.readframes(parameters.nframes), "<i2").astype(np.int32)
    noise = np.random.default_rng(seed).integers(-1, 2, samples.shape)
    changed = (samples + noise).clip(-32768, 32767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams(parameters)
        writer.writeframes(changed.tobytes())
    return file.getvalue()


def _trials(method: str, items: dict[str, list[Stimulus]]) -> list[_Trial]:
    """Every item in a random order: for MUSHRA all stimuli on one page, for ACR one a page."""
    trials = []
    for item in _shuffle(list(items), len(items)):
        stimuli = _shuffle(items[item], len(items[item]))
        if method == "mushra":
            letters = [chr(ord("A") + i) for i in range(len(stimuli))]
            trials.append(_Trial(item, dict(zip(letters, stimuli, strict=True))))
        else:
            trials += [_Trial(item, {"A": stimulus}) for stimulus in stimuli]
    if method == "acr":  # one item should not come twice in a row, as far as chance allows
        trials = _shuffle(trials, len(trials))
    return trials


def _end(session: _Session) -> dict[str, Any]:
    """The last page: the listener's mean of each condition, best first."""
    scores: dict[str, list[float]] = {}
    for rating in session.ratings:
        name = "reference" if rating.condition == REFERENCE else rating.condition
        scores.setdefault(name, []).append(rating.score)
    means = [[name, float(np.mean(values))] for name, values in scores.items()]
    return {
        "stage": "done",
        "method": session.method,
        "rater": session.rater,
        "index": session.position,
        "total": len(session.trials),
        "given": sorted(means, key=lambda pair: -pair[1]),
    }


def _ratings(session: _Session, trial: _Trial, scores: Any) -> list[Rating]:
    if not isinstance(scores, dict) or set(scores) != set(trial.stimuli):
        raise InputError(f"Expected a score for each of {', '.join(trial.stimuli)}.")
    low, high = SCALES[session.method]
    ratings = []
    for letter, score in scores.items():
        is_number = isinstance(score, int | float) and not isinstance(score, bool)
        if session.method == "acr":
            if not is_number or score not in CATEGORIES:
                raise InputError(
                    f"Expected a score of 1, 2, 3, 4 or 5 for {letter}, got {score!r}."
                )
        elif not is_number or not low <= score <= high:
            raise InputError(
                f"Expected a score from {low:g} to {high:g} for {letter}, got {score!r}."
            )
        condition = trial.stimuli[letter].condition
        rating = Rating(session.method, session.rater, trial.item, condition, float(score))
        ratings.append(rating)
    return ratings


def copy_ratings(store: RatingStore, target: Path) -> Path:
    """Copy the ratings so far, for `codecplus listening`."""
    shutil.copyfile(store.path, target)
    return target
