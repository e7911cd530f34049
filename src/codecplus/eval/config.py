"""One evaluation, complete enough to repeat it. Knows settings and nothing of how they are carried
out.
"""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from codecplus.errors import FileFormatError, InputError
from codecplus.eval.codecs import is_foreign


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Which codecs at which rates, on which data, by which metrics, and where the results go."""

    codecs: tuple[str, ...]
    """Names as `codecplus.eval.codecs` explains them; the anchors are always added."""
    decoded: tuple[str, ...] = ()
    """Audio that was decoded elsewhere, as NAME=FOLDER or NAME=FOLDER,kbps=6."""
    data: str
    """A folder, a parquet file, a task's JSON file, or the name of a preset."""
    out: str | Path
    """Folder of the results; a run that was stopped goes on from what it holds."""
    kinds: tuple[str, ...] = ()
    """Only recordings of these kinds are read; none: all."""
    conditions: tuple[str, ...] = ()
    """What is done to every clip: `noise=10` (dB), `level=-30` (dBFS), `loss=5` (% of packets)."""
    bitrates: tuple[float, ...] = ()
    """Targets in kbit/s per channel; none: each codec's own default."""
    revision: str | None = None
    """Branch, tag or commit of the checkpoints on the Hub; None: the default branch."""
    metrics: tuple[str, ...] | None = None
    """Names, or `all`; None: every one installed but ViSQOL."""
    limit: int | None = None
    """Recordings at most."""
    segment_seconds: float | None = None
    """Recordings longer than this are cut; None: the task's own policy."""
    segments_per_file: int | None = None
    """Segments kept of a recording that is cut; None: the task's own policy."""
    device: str | None = None
    """Where neural codecs run; None: on CUDA if there is any.

    Each process of `accelerate launch` then has a device of its own.
    """
    workers: int | None = None
    """Processes that score; None: one per core."""
    time_limit: float | None = None
    """Seconds in which a codec must encode or decode a clip.

    None: 120, and a minute for each second of audio.
    """
    retry_failed: bool = False
    """Try again what failed in an earlier run, such as a codec that ran out of memory."""
    progress: bool = True
    """Show progress bars on stderr."""

    def __post_init__(self) -> None:
        for name in ("codecs", "metrics", "decoded", "kinds", "conditions"):
            if isinstance(getattr(self, name), str):
                raise InputError(
                    f"expected a list of {name}, got the string {getattr(self, name)!r}; put it in "
                    "a list"
                )
        object.__setattr__(self, "codecs", tuple(self.codecs))
        object.__setattr__(self, "decoded", tuple(self.decoded))
        object.__setattr__(self, "kinds", tuple(self.kinds))
        object.__setattr__(self, "conditions", tuple(self.conditions))
        object.__setattr__(self, "bitrates", tuple(float(rate) for rate in self.bitrates))
        if self.metrics is not None:
            object.__setattr__(self, "metrics", tuple(self.metrics))
        if self.workers is not None and self.workers < 1:
            raise InputError(f"expected at least 1 worker, got {self.workers}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise InputError(f"expected a time limit above 0 s, got {self.time_limit:g}")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], **changes: Any) -> "EvaluationConfig":
        """Return the configuration that `as_dict` gave, with some settings changed.

        Raises:
            FileFormatError: for settings that this version does not know.
        """
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise FileFormatError(
                f"expected settings of an evaluation, got {unknown[0]!r}; repeat the run with the "
                "version of codecplus that made it"
            )
        return cls(**{**settings, **changes})

    def command(self) -> str:
        """The command line of the same run; of folders elsewhere it has the name alone."""
        words = ["codecplus", "eval"]
        models = [name for name in self.codecs if not is_foreign(name)]
        options: dict[str, Any] = {
            "--model": [shown_path(name) for name in models],
            "--codec": [shown_path(name) for name in self.codecs if name not in models],
            "--revision": self.revision,
            "--bitrate-per-channel": [f"{rate:g}" for rate in self.bitrates],
            "--decoded": [shown_path(text) for text in self.decoded],
            "--data": shown_path(self.data),
            "--kind": self.kinds,
            "--condition": self.conditions,
            "--metric": self.metrics,
            "--limit": self.limit,
            "--segment-seconds": self.segment_seconds,
            "--segments-per-file": self.segments_per_file,
            "--device": self.device,
            "--time-limit": self.time_limit,
        }
        for flag, value in options.items():
            if value is None or value in ((), []):
                continue
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [flag, *map(str, values)]
        return shlex.join([*words, "-o", "results/"])

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain data."""
        return {**asdict(self), "out": str(self.out)}


def shown_path(text: str) -> str:
    """Return a text without the place of an absolute path in it, which is nobody else's business.

    >>> shown_path("recordings/"), shown_path("/home/ada/speech"), shown_path("x=/tmp/y,kbps=6")
    ('recordings/', 'speech', 'x=y,kbps=6')
    """
    prefix, colon, place = text.partition(":/")
    if colon and "=" not in prefix and not place.startswith("/"):
        return f"{prefix}:{Path(place).name}"
    name, equals, path = text.rpartition("=/")
    if equals:
        head, kbps, rate = path.rpartition(",kbps=")
        return f"{name}={Path(head or rate).name}{kbps + rate if head else ''}"
    if ",kbps=" in text:
        head, _, rate = text.rpartition(",kbps=")
        return f"{shown_path(head)},kbps={rate}"
    if Path(text).is_absolute():
        return Path(text).name
    return text
