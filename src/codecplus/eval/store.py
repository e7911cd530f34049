"""What a run has computed so far, on disk. Every write is whole or absent, so a run may be killed
at any point.

    cache/ clips/FINGERPRINT.jsonl       the clips of a task and its problems; the last line says
      that all are there audio/CODEC/CLIP.npy          decoded audio (C, S) float32; that of the
      codec `identity` is the reference codes/CODEC/CLIP.npy          codes (K, T), of codecs that
      have them encoded/CODEC.RANK.jsonl      bits, times and failures, a line per clip
      scores/CODEC.jsonl            a line per clip and metric version lock
      held by the run that writes here

CODEC and CLIP are hashes of everything that matters, so a changed codec, clip or metric is computed
anew and an unchanged one never again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.errors import InputError
from codecplus.system.paths import atomic_path


class Journal:
    """A file of JSON lines that is only ever appended to; a line torn by a kill is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: Any = None

    def append(self, line: dict[str, Any]) -> None:
        """Add a line and hand it to the operating system."""
        with self._lock:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                _drop_torn_line(self.path)
                self._file = self.path.open("a", encoding="utf-8")
            self._file.write(json.dumps(line, sort_keys=True) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file; a later append opens it again."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal; none when there is no file."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)


def _drop_torn_line(path: Path) -> None:
    if path.exists():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with path.open("r+b") as file:
                file.truncate(whole)


class Store:
    """The cache of one output folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def sole_use(self) -> Iterator[None]:
        """Keep other runs out of the cache; InputError while one is in it.

        The system lifts the lock when the process ends, however it ends. Where files cannot be
        locked there is none.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"another run is writing to {self.root.parent}; wait until it is done, or write to another folder"
                ) from error
            except OSError:  # a file system without locks
                pass
            yield

    def clips_path(self, fingerprint: str) -> Path:
        """Clips and problems of a task."""
        return self.root / "clips" / f"{fingerprint}.jsonl"

    def audio_path(self, codec: str, clip: str) -> Path:
        """Decoded audio of a clip."""
        return self.root / "audio" / codec / f"{clip}.npy"

    def codes_path(self, codec: str, clip: str) -> Path:
        """Codes of a clip."""
        return self.root / "codes" / codec / f"{clip}.npy"

    def encoded_journal(self, codec: str, rank: int) -> Journal:
        """Where one process notes what it has encoded."""
        return Journal(self.root / "encoded" / f"{codec}.{rank}.jsonl")

    def scores_journal(self, codec: str) -> Journal:
        """Where scores are noted."""
        return Journal(self.root / "scores" / f"{codec}.jsonl")

    def encoded(self, codec: str) -> dict[str, dict[str, Any]]:
        """What is known of each clip that was encoded, by any process."""
        records: dict[str, dict[str, Any]] = {}
        for path in sorted((self.root / "encoded").glob(f"{codec}.*.jsonl")):
            for line in read_journal(path):
                if "clip" in line:
                    records.setdefault(line["clip"], line)
        return records

    def peak_memory(self, codec: str) -> int | None:
        """The most bytes any process held while it ran the codec, where the system could tell."""
        lines = [
            line
            for path in (self.root / "encoded").glob(f"{codec}.*.jsonl")
            for line in read_journal(path)
        ]
        return max((line["peak_memory"] for line in lines if line.get("peak_memory")), default=None)

    def scores(self, codec: str) -> dict[tuple[str, str], dict[str, Any]]:
        """Scores by clip hash and metric identity."""
        lines = read_journal(self.root / "scores" / f"{codec}.jsonl")
        return {(line["clip"], line["metric"]): line for line in lines}

    def save(self, path: Path, array: np.ndarray) -> None:
        """Write an array, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array)
