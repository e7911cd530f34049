"""Stores ratings in a SQLite file that only grows, and in a dataset on the Hub where one is set."""

import json
import os
import sqlite3
import threading
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from codecplus.eval.listening import Rating, load_ratings

from .settings import RATINGS_DATASET

_TABLE = """
CREATE TABLE IF NOT EXISTS ratings (
    id INTEGER PRIMARY KEY, time TEXT NOT NULL, test TEXT NOT NULL,
    method TEXT NOT NULL, rater TEXT NOT NULL, item TEXT NOT NULL, condition TEXT NOT NULL,
    score REAL NOT NULL
);
CREATE TRIGGER IF NOT EXISTS ratings_stay BEFORE UPDATE ON ratings BEGIN
    SELECT RAISE(ABORT, 'ratings are only added');
END;
CREATE TRIGGER IF NOT EXISTS ratings_remain BEFORE DELETE ON ratings BEGIN
    SELECT RAISE(ABORT, 'ratings are only added');
END;
"""


class RatingStore:
    """Ratings of one test. Of a listener it knows a random name only.

    Args:
        folder: of `ratings.sqlite`, made if it is not there.
        test: a name that changes when items or conditions do, so that tests are never mixed.
        hub: a scheduler of commits to a dataset; ratings are also written into its folder, under
            its lock.
    """

    def __init__(self, folder: Path, test: str, hub: Any = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.test, self.hub = folder / "ratings.sqlite", test, hub
        self._lock = threading.Lock()
        # Each process writes a file of its own, so that replicas never collide.
        self._file = f"{test}-{uuid.uuid4().hex}.jsonl"
        self._earlier = _download() if hub is not None else []
        with self._connect() as database:
            database.executescript(_TABLE)

    def add(self, ratings: Iterable[Rating]) -> None:
        """Add ratings, all or none."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        rows = [{"time": now, "test": self.test, **asdict(rating)} for rating in ratings]
        with self._lock, self._connect() as database:
            database.executemany(
                "INSERT INTO ratings (time, test, method, rater, item, condition, score) "
                "VALUES (:time, :test, :method, :rater, :item, :condition, :score)",
                rows,
            )
        if self.hub is not None:
            with (
                self.hub.lock,
                (Path(self.hub.folder_path) / self._file).open("a", encoding="utf-8") as file,
            ):
                file.writelines(json.dumps(row) + "\n" for row in rows)

    def all(self) -> list[Rating]:
        """The ratings of this test so far, oldest first; those of earlier lives of the Space among
        them.
        """
        with self._connect() as database:
            rows = database.execute(
                "SELECT method, rater, item, condition, score FROM ratings WHERE test = ? ORDER "
                "BY id",
                (self.test,),
            ).fetchall()
        return [*self._earlier_of_this_test(), *(Rating(*row) for row in rows)]

    def _earlier_of_this_test(self) -> list[Rating]:
        return [
            rating
            for path in self._earlier
            if path.name.startswith(self.test)
            for rating in load_ratings(path)
        ]

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=30)


class VoteStore:
    """Blind votes between two codecs, a line of JSON each. The file is only added to.

    Args:
        folder: where `votes.jsonl` is
        hub: a scheduler of commits to a dataset; votes are also written into its folder
    """

    def __init__(self, folder: Path, hub: Any = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "votes.jsonl"
        self.hub = hub
        self._lock = threading.Lock()
        self._file = f"votes-{uuid.uuid4().hex}.jsonl"

    def add(self, codecs: tuple[str, str], preferred: str | None) -> None:
        """Store one vote; None prefers neither."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        line = json.dumps({"time": now, "codecs": sorted(codecs), "preferred": preferred}) + "\n"
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(line)
        if self.hub is not None:
            path = Path(self.hub.folder_path) / self._file
            with self.hub.lock, path.open("a", encoding="utf-8") as file:
                file.write(line)

    def tally(self, codecs: tuple[str, str]) -> Counter[str | None]:
        """Count the votes between two codecs, by the one preferred; None is neither."""
        counts: Counter[str | None] = Counter()
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                vote = json.loads(line)
                if vote["codecs"] == sorted(codecs):
                    counts[vote["preferred"]] += 1
        return counts


def hub_scheduler(folder: Path) -> Any:
    """A scheduler that commits new ratings every five minutes, on a Space that names a dataset;
    None elsewhere.
    """
    if not (RATINGS_DATASET and os.environ.get("SPACE_ID") and os.environ.get("HF_TOKEN")):
        return None
    from huggingface_hub import CommitScheduler

    waiting = folder / "to-commit"
    waiting.mkdir(parents=True, exist_ok=True)
    return CommitScheduler(
        repo_id=RATINGS_DATASET,
        repo_type="dataset",
        folder_path=waiting,
        path_in_repo="data",
        every=5,
        private=True,
    )


def _download() -> list[Path]:
    """Ratings that were committed before this process began."""
    from huggingface_hub import snapshot_download

    try:
        local = snapshot_download(
            str(RATINGS_DATASET), repo_type="dataset", allow_patterns="data/*.jsonl"
        )
    except Exception as error:  # a Space without its past still takes ratings
        print(f"earlier ratings could not be read: {error}")
        return []
    return sorted(Path(local).glob("data/*.jsonl"))
