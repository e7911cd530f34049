"""What a run has computed so far, on disk. It knows files and journals, no codec and no metric.

    cache/
      clips/FINGERPRINT.jsonl    clips and problems of a task; the last line says that all are there
      audio/CODEC/CLIP.npy       decoded audio (C, S) float32; that of `identity` is the reference
      codes/CODEC/CLIP.npy       codes (K, T), of codecs that have them
      embeddings/METRIC/CODEC/CLIP.npy   embeddings (N, D), for metrics of whole sets
      encoded/CODEC.RANK.jsonl   bits, times and failures, a line per clip
      scores/CODEC.jsonl         a line per clip and metric version
      lock                       held by the run that writes here

CODEC and CLIP are hashes of everything that matters, so a changed codec, clip or metric is computed
anew and an unchanged one never again. Every write is whole or absent: a run may be killed at any
point. A journal is read once; what this process adds to it is remembered.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from codecplus.errors import InputError
from codecplus.system.paths import atomic_path

Line = dict[str, Any]


def read_journal(path: Path) -> Iterator[Line]:
    """Yield the whole lines of a journal; none when there is no file."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)


@dataclass
class EncodedClips:
    """What is known of the clips that a codec has encoded, in whichever process."""

    lines: dict[str, Line] = field(default_factory=dict)  # by clip hash
    peak_memory: int | None = None  # bytes, where the system could tell
    complexity: dict[str, float] | None = None  # of the codec, where it could tell

    def add(self, line: Line) -> None:
        """Take in one line of a journal. A clip that was tried again counts as coded once it is."""
        if "clip" in line:
            known = self.lines.get(line["clip"])
            if known is None or known["status"] != "ok":
                self.lines[line["clip"]] = line
        if line.get("peak_memory"):
            self.peak_memory = max(self.peak_memory or 0, line["peak_memory"])
        if line.get("complexity"):
            self.complexity = line["complexity"]


class Store:
    """The cache of one output folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._encoded: dict[str, EncodedClips] = {}  # by codec hash
        self._scores: dict[str, dict[tuple[str, str], Line]] = {}
        self._files: dict[Path, TextIO] = {}  # journals that are being written
        self._lock = threading.Lock()

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
        with (self.root / "lock").open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"another run is writing to {self.root.parent}; wait until it is done, or "
                    "write to another folder"
                ) from error
            except OSError:  # a file system without locks
                pass
            yield

    def audio_path(self, codec: str, clip: str) -> Path:
        """Return where the decoded audio of a clip lies."""
        return self.root / "audio" / codec / f"{clip}.npy"

    def codes_path(self, codec: str, clip: str) -> Path:
        """Return where the codes of a clip lie."""
        return self.root / "codes" / codec / f"{clip}.npy"

    def embeddings_path(self, metric: str, codec: str, clip: str) -> Path:
        """Return where the embeddings of a clip lie, for a set metric of that identity."""
        name = hashlib.sha256(metric.encode()).hexdigest()[:16]
        return self.root / "embeddings" / name / codec / f"{clip}.npy"

    def save(self, path: Path, array: np.ndarray) -> None:
        """Write an array, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array)

    def clips(self, task: str) -> list[Line]:
        """Return clips and problems of the task with that fingerprint, as far as it was read."""
        return list(read_journal(self._clips_path(task)))

    def add_clip(self, task: str, line: Line) -> None:
        """Note a clip or a problem of a task."""
        self._append(self._clips_path(task), line)

    def forget_clips(self, task: str) -> None:
        """Remove the journal of a task that was not read to its end."""
        self._clips_path(task).unlink(missing_ok=True)

    def encoded(self, codec: str) -> EncodedClips:
        """Return what is known of each clip that was encoded, by any process."""
        if codec not in self._encoded:
            clips = EncodedClips()
            for path in sorted((self.root / "encoded").glob(f"{codec}.*.jsonl")):
                for line in read_journal(path):
                    clips.add(line)
            self._encoded[codec] = clips
        return self._encoded[codec]

    def add_encoded(self, codec: str, rank: int, line: Line) -> None:
        """Note what the process of that rank has encoded, or what that took."""
        self.encoded(codec).add(line)
        self._append(self.root / "encoded" / f"{codec}.{rank}.jsonl", line)

    def forget_encoded(self) -> None:
        """Read the journals of encoding anew when next asked: other processes added to them."""
        self._encoded.clear()

    def scores(self, codec: str) -> dict[tuple[str, str], Line]:
        """Return the scores by clip hash and metric identity."""
        if codec not in self._scores:
            lines = read_journal(self._scores_path(codec))
            self._scores[codec] = {(line["clip"], line["metric"]): line for line in lines}
        return self._scores[codec]

    def add_score(self, codec: str, line: Line) -> None:
        """Note a score; several threads may do so at once."""
        self.scores(codec)[line["clip"], line["metric"]] = line
        self._append(self._scores_path(codec), line)

    def close(self) -> None:
        """Close the journals; a later line opens its journal again."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def _clips_path(self, task: str) -> Path:
        return self.root / "clips" / f"{task}.jsonl"

    def _scores_path(self, codec: str) -> Path:
        return self.root / "scores" / f"{codec}.jsonl"

    def _append(self, path: Path, line: Line) -> None:
        """Add a line to a journal and hand it to the operating system."""
        with self._lock:
            if path not in self._files:
                path.parent.mkdir(parents=True, exist_ok=True)
                _drop_torn_line(path)
                self._files[path] = path.open("a", encoding="utf-8")
            file = self._files[path]
            file.write(json.dumps(line, sort_keys=True) + "\n")
            file.flush()


def _drop_torn_line(path: Path) -> None:
    """Cut off the end of a line that a kill left half written."""
    if not path.exists():
        return
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read(1) in (b"\n", b""):
            return  # the last line is whole; the others are not read again
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
