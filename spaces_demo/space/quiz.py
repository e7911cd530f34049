"""Can you hear it? Five blind rounds between a recording and its coded version. It knows nothing
of pages.
"""

import random
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codecplus.errors import InputError
from codecplus.utils import load_audio, save_audio

from .listening import salted
from .ratings import VoteStore
from .settings import CLIPS_FOLDER
from .shelf import Shelf

ROUNDS = (
    ("voice", 0),
    ("orchestra", 1),
    ("voice", 2),
    ("orchestra", 2),
    ("voice", 4),
)
"""The recording of each round, and which of its rates is heard, in the order of `versions`."""

LEAST_SECONDS = 1.0  # of listening to each of the two
_MAX_SESSIONS = 2000
_SESSION_SECONDS = 3600


@dataclass(frozen=True)
class _Pair:
    """What one round compares: two WAV files of one length."""

    recording: str
    version: str  # as visitors read it after the round
    original: Path
    coded: Path


@dataclass
class _Session:
    """One visitor in five rounds."""

    originals: list[str]  # "A" or "B" for each round
    touched: float
    begun: float
    addresses: dict[str, str] = field(default_factory=dict)  # of this round, by letter
    answers: list[str] = field(default_factory=list)


class Quiz:
    """Five rounds for any number of visitors at a time. Votes are kept, without a name.

    Args:
        showcase: recordings and their versions, as showcase.json has them
        shelf: where the sounds are served
        votes: where votes are kept
        clock: returns seconds; tests pass their own
    """

    def __init__(
        self,
        showcase: dict[str, Any],
        shelf: Shelf,
        votes: VoteStore,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.shelf = shelf
        self.votes = votes
        self._showcase = showcase
        self._clock = clock
        self._pairs: list[_Pair] | None = None
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._lock = threading.Lock()

    def start(self) -> dict[str, Any]:
        """Begin, and return the first round."""
        choice = random.SystemRandom()
        originals = [choice.choice("AB") for _ in ROUNDS]
        name = secrets.token_urlsafe(24)
        with self._lock:
            now = self._clock()
            self._forget(now)
            self._sessions[name] = _Session(originals, now, now)
            return self._round(name)

    def vote(self, session: str, index: int, letter: str) -> dict[str, Any]:
        """Say which of the two is the original, and return the next round, or the result.

        A round that was answered already is not answered again. Raises InputError for a session
        that is over, another letter, another round, and an answer before both were heard.
        """
        with self._lock:
            visitor = self._sessions.get(session)
            if visitor is None:
                raise InputError("These rounds are over; begin again.")
            if letter not in ("A", "B"):
                raise InputError(f"Expected A or B, got {letter!r}.")
            position = len(visitor.answers)
            is_index = isinstance(index, int) and not isinstance(index, bool)
            if not is_index or not 0 <= index <= position or index >= len(ROUNDS):
                raise InputError(f"Expected an answer to round {position}, got {index!r}.")
            if index == position:
                self._require_listening(visitor)
                self._keep(visitor, index, letter)
            if len(visitor.answers) == len(ROUNDS):
                return self._result(visitor)
            return self._round(session)

    def _round(self, name: str) -> dict[str, Any]:
        session = self._sessions[name]
        index = len(session.answers)
        pair = self._prepare()[index]
        if not session.addresses:
            files = {"A": pair.coded, "B": pair.coded}
            files[session.originals[index]] = pair.original
            for letter, path in files.items():
                session.addresses[letter] = self.shelf.put(path, again=True, transform=salted)
            session.begun = self._clock()
        return {
            "stage": "round",
            "session": name,
            "index": index,
            "total": len(ROUNDS),
            "recording": pair.recording,
            "sounds": [{"id": letter, "url": session.addresses[letter]} for letter in "AB"],
            "least_seconds": LEAST_SECONDS,
        }

    def _require_listening(self, session: _Session) -> None:
        for letter, url in session.addresses.items():
            if not self.shelf.was_served(url):
                raise InputError(f"Listen to {letter} before you answer.")
        # A tenth less, for a browser's clock is not this one.
        if self._clock() - session.begun < 0.9 * 2 * LEAST_SECONDS:
            raise InputError(f"Listen to both first, {LEAST_SECONDS:g} s each at least.")

    def _keep(self, session: _Session, index: int, letter: str) -> None:
        pair = self._prepare()[index]
        is_right = letter == session.originals[index]
        taken_for_original = "original" if is_right else pair.version
        self.votes.add(("original", pair.version), taken_for_original)
        session.answers.append(letter)
        session.addresses = {}
        session.touched = self._clock()

    def _result(self, session: _Session) -> dict[str, Any]:
        rounds = []
        for pair, original, answer in zip(
            self._prepare(), session.originals, session.answers, strict=True
        ):
            counts = self.votes.tally(("original", pair.version))
            rounds.append(
                {
                    "version": pair.version,
                    "right": answer == original,
                    "others_right": counts["original"],
                    "others": counts.total(),
                }
            )
        return {
            "stage": "result",
            "right": sum(one["right"] for one in rounds),
            "total": len(rounds),
            "rounds": rounds,
        }

    def _prepare(self) -> list[_Pair]:
        """Write what the rounds compare as WAV, once: all copies of a WAV have one size."""
        if self._pairs is None:
            folder = self.shelf.new("quiz").parent
            clips = {clip["name"]: clip for clip in self._showcase["clips"]}
            pairs = []
            for recording, rate in ROUNDS:
                clip = clips[recording]
                original = clip["versions"][0]
                coded = clip["versions"][1 + rate]
                pairs.append(
                    _Pair(
                        clip["title"],
                        f"{clip['title']} at {coded['kbps']:.2f} kbit/s",
                        _as_wav(original["file"], folder),
                        _as_wav(coded["file"], folder),
                    )
                )
            self._pairs = pairs
        return self._pairs

    def _forget(self, now: float) -> None:
        """Drop sessions that are old or too many, oldest first."""
        for name, session in list(self._sessions.items()):
            if session.touched < now - _SESSION_SECONDS or len(self._sessions) >= _MAX_SESSIONS:
                del self._sessions[name]


def _as_wav(file: str, folder: Path) -> Path:
    path = folder / Path(file).with_suffix(".wav")
    if not path.exists():
        audio, rate = load_audio(CLIPS_FOLDER / file)
        save_audio(audio, path, rate)
    return path
