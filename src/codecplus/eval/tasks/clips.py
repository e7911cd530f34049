"""Clips: what is cut out of a recording and scored. Knows files and segments, no codec and no
metric.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from codecplus.audio.files import AudioFileReader
from codecplus.errors import CodecPlusError, InputError


@dataclass(frozen=True)
class SegmentPolicy:
    """Recordings longer than `seconds` are cut into pieces of that length, of which `per_file` are
    kept, evenly spread.

    A rest shorter than half a piece is left out. So hours of audio weigh as one file and need
    bounded memory.
    """

    seconds: float = 30.0
    per_file: int = 4

    def __post_init__(self) -> None:
        if not self.seconds >= 1 or self.per_file < 1:
            raise InputError(
                f"expected segments of at least 1 s and at least 1 per file, got {self.seconds:g} s and {self.per_file}"
            )

    def kept(self, seconds: float) -> list[int] | None:
        """Which pieces of a recording of that length are kept; None: it is one clip, whole.

        >>> SegmentPolicy(30, 4).kept(7200)
        [0, 80, 159, 239]
        """
        if seconds <= self.seconds:
            return None
        pieces = int(seconds / self.seconds + 0.5)
        count = min(pieces, self.per_file)
        return sorted({round(i) for i in np.linspace(0, pieces - 1, count)})


@dataclass(frozen=True)
class Clip:
    """One piece of audio (C, S) float32 at its native rate, with what is known of it."""

    source: str  # the file or row it comes from
    start: float  # seconds into it
    audio: np.ndarray = field(repr=False)
    sample_rate: int
    kind: str | None = None  # speech, music, sound, or unknown
    speaker: str | None = None

    @property
    def id(self) -> str:
        """Names the clip within its task."""
        return self.source if self.start == 0 else f"{self.source}@{self.start:g}s"

    @property
    def hash(self) -> str:
        """A short hash of the samples and their rate: part of the cache key."""
        digest = hashlib.sha256(f"{self.audio.shape} {self.sample_rate} ".encode())
        digest.update(np.ascontiguousarray(self.audio, dtype="<f4").tobytes())
        return digest.hexdigest()[:20]


@dataclass(frozen=True)
class Problem:
    """A recording that gave no clip, or fewer than it holds, and why."""

    source: str
    reason: str
    fatal: bool = True  # False: its clips are scored all the same


def read_clips(
    source: str,
    file: Path | bytes,
    policy: SegmentPolicy,
    kind: str | None = None,
    speaker: str | None = None,
) -> Iterator[Clip | Problem]:
    """The clips of one recording, or the one Problem that keeps it out; damage anywhere keeps all
    of it out.
    """
    clips: list[Clip] = []
    try:
        with AudioFileReader(io.BytesIO(file) if isinstance(file, bytes) else file) as reader:
            seconds = reader.num_samples / reader.sample_rate
            kept = policy.kept(seconds)
            size = (
                reader.num_samples if kept is None else round(policy.seconds * reader.sample_rate)
            )
            for index, block in enumerate(reader.blocks(size)):
                if kept is None or index in kept:
                    start = index * size / reader.sample_rate
                    clips.append(Clip(source, start, block, reader.sample_rate, kind, speaker))
    except (CodecPlusError, OSError) as error:
        yield Problem(source, _without_path(str(error), file))
        return
    if kept is not None:
        count = "1 segment" if len(clips) == 1 else f"{len(clips)} segments"
        verb = "is" if len(clips) == 1 else "are"
        yield Problem(
            source,
            f"lasts {seconds:.0f} s: {count} of {policy.seconds:g} s {verb} scored",
            fatal=False,
        )
    yield from clips


def _without_path(message: str, file: Path | bytes) -> str:
    return (
        message.replace(str(file), "the file")
        if isinstance(file, Path)
        else message.replace("BytesIO", "the file")
    )
