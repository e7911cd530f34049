"""Clips: the pieces of recordings that are scored. Knows segments, no codec and no metric."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from codecplus.errors import CodecPlusError, InputError
from codecplus.recordings import Recording


@dataclass(frozen=True)
class SegmentPolicy:
    """How long recordings are cut into clips.

    A recording longer than `seconds` is cut into pieces of that length, of which `per_file` are
    scored, evenly spread. A rest shorter than half a piece is left out. So hours of audio weigh as
    one file and need bounded memory.
    """

    seconds: float = 30.0
    per_file: int = 4

    def __post_init__(self) -> None:
        if not self.seconds >= 1 or self.per_file < 1:
            raise InputError(
                "expected segments of at least 1 s and at least 1 per file, got "
                f"{self.seconds:g} s and {self.per_file}"
            )

    def pieces(self, seconds: float) -> list[int] | None:
        """Return the numbers of the pieces of a recording that are scored.

        None says that a recording of that length is one clip.

        >>> SegmentPolicy(30, 4).pieces(7200)
        [0, 80, 159, 239]
        """
        if seconds <= self.seconds:
            return None
        count = int(seconds / self.seconds + 0.5)
        chosen = np.linspace(0, count - 1, min(count, self.per_file))
        return sorted({round(number) for number in chosen})


@dataclass(frozen=True)
class Clip:
    """One piece of audio (C, S) float32 at its own rate, and what is known about it."""

    source: str  # the file or row it comes from
    start: float  # seconds into it
    audio: np.ndarray = field(repr=False)
    sample_rate: int
    kind: str | None = None  # speech, music, sound; None if unknown
    speaker: str | None = None
    loss: float | None = None  # packets that a codec loses on its way, in percent

    @property
    def id(self) -> str:
        """The name of the clip within its task."""
        return self.source if self.start == 0 else f"{self.source}@{self.start:g}s"

    @property
    def hash(self) -> str:
        """A short hash of the samples, their rate and the loss: part of the cache key."""
        digest = hashlib.sha256(f"{self.audio.shape} {self.sample_rate} ".encode())
        if self.loss is not None:
            digest.update(f"loss {self.loss:g} ".encode())
        digest.update(np.ascontiguousarray(self.audio, dtype="<f4").tobytes())
        return digest.hexdigest()[:20]


@dataclass(frozen=True)
class Problem:
    """A recording that gave no clip, or fewer than it holds, and why."""

    source: str
    reason: str
    fatal: bool = True  # False: its clips are scored all the same


def read_clips(
    recording: Recording,
    policy: SegmentPolicy,
    *,
    source: str | None = None,
    kind: str | None = None,
    speaker: str | None = None,
) -> Iterator[Clip | Problem]:
    """Yield the clips of one recording, or the one Problem that excludes it.

    Damage anywhere in a recording excludes all of it.

    Args:
        recording: the recording to cut.
        policy: how it is cut.
        source: its name in the results; by default its own.
        kind, speaker: what is known about it; by default what the recording says.
    """
    source = source or recording.name
    kind = kind or recording.kind
    speaker = speaker or recording.speaker
    clips: list[Clip] = []
    try:
        with recording.open() as audio:
            rate = audio.sample_rate
            seconds = audio.num_samples / rate
            pieces = policy.pieces(seconds)
            size = audio.num_samples
            if pieces is not None:
                size = round(policy.seconds * rate)
            for index, block in enumerate(audio.blocks(size)):
                if pieces is None or index in pieces:
                    clips.append(Clip(source, index * size / rate, block, rate, kind, speaker))
    except (CodecPlusError, OSError) as error:
        yield Problem(source, str(error).replace(str(recording.cell), "the file"))
        return
    if pieces is not None:
        scored = "1 segment" if len(clips) == 1 else f"{len(clips)} segments"
        verb = "is" if len(clips) == 1 else "are"
        reason = f"lasts {seconds:.0f} s: {scored} of {policy.seconds:g} s {verb} scored"
        yield Problem(source, reason, fatal=False)
    yield from clips
