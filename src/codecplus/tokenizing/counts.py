"""Counts of tokenised rows. They can be added up over rows, shards and nodes."""

import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

DURATION_BOUNDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0, 3600.0)  # seconds
_MAX_REASONS = 50
_BAR_LENGTH = 30  # characters of the longest bar of a histogram


@dataclass
class Statistics:
    """Counts of a set of rows.

    Attributes:
        codes: counts of each entry of each codebook, (K, N).
        rows: number of rows, including those that failed.
        seconds, frames: sums over all clips.
        durations: histogram of durations, with `DURATION_BOUNDS` as edges.
        failures: number of failed rows by reason.
    """

    codes: np.ndarray
    rows: int = 0
    seconds: float = 0.0
    frames: int = 0
    durations: np.ndarray = field(
        default_factory=lambda: np.zeros(len(DURATION_BOUNDS) + 1, np.int64)
    )
    failures: Counter = field(default_factory=Counter)

    @classmethod
    def empty(cls, codebooks: int, codebook_size: int) -> "Statistics":
        """Return the counts of no rows."""
        return cls(np.zeros((codebooks, codebook_size), np.int64))

    def add(self, codes: np.ndarray, seconds: float) -> None:
        """Count one clip with its codes (C, K, T)."""
        self.rows += 1
        self.seconds += seconds
        self.frames += codes.shape[-1]
        self.durations[np.searchsorted(DURATION_BOUNDS, seconds, side="right")] += 1
        size = self.codes.shape[1]
        for k in range(codes.shape[1]):
            self.codes[k] += np.bincount(codes[:, k].ravel(), minlength=size)

    def fail(self, reason: str) -> None:
        """Count a row that failed. Reasons that differ only in numbers count as one."""
        self.rows += 1
        reason = re.sub(r"\b\d+(\.\d+)?\b", "N", reason)
        if reason not in self.failures and len(self.failures) >= _MAX_REASONS:
            reason = "other reasons"
        self.failures[reason] += 1

    def merge(self, other: "Statistics") -> None:
        """Add the counts of other rows."""
        self.codes += other.codes
        self.durations += other.durations
        self.failures += other.failures
        self.rows += other.rows
        self.frames += other.frames
        self.seconds += other.seconds

    def as_counts(self) -> dict[str, Any]:
        """Return all counts as plain data for `from_counts`."""
        return {
            "rows": self.rows,
            "seconds": self.seconds,
            "frames": self.frames,
            "durations": self.durations.tolist(),
            "failures": dict(sorted(self.failures.items())),
            "codes": self.codes.tolist(),
        }

    @classmethod
    def from_counts(cls, counts: dict[str, Any]) -> "Statistics":
        """Return the statistics of counts that `as_counts` returned."""
        return cls(
            np.array(counts["codes"], np.int64),
            counts["rows"],
            counts["seconds"],
            counts["frames"],
            np.array(counts["durations"], np.int64),
            Counter(counts["failures"]),
        )

    def summary(self) -> dict[str, Any]:
        """Return use and entropy of each codebook, a histogram of durations, and the failures."""
        failed = sum(self.failures.values())
        codebooks = []
        for counts in self.codes:
            used = float((counts > 0).mean())
            codebooks.append({"used": round(used, 6), "entropy_bits": round(entropy(counts), 6)})
        return {
            "rows": self.rows,
            "clips": self.rows - failed,
            "failed": failed,
            "hours": round(self.seconds / 3600, 6),
            "frames": self.frames,
            "codes": int(self.codes.sum()),
            "codebooks": codebooks,
            "durations": dict(zip(_duration_labels(), self.durations.tolist(), strict=True)),
            "failures": dict(self.failures.most_common()),
        }


def _duration_labels() -> list[str]:
    labels = []
    for low, high in pairwise((0.0, *DURATION_BOUNDS)):
        labels.append(f"{low:g}-{high:g} s")
    labels.append(f"{DURATION_BOUNDS[-1]:g} s-")
    return labels


def entropy(counts: np.ndarray) -> float:
    """Return the entropy of a histogram in bits per symbol, 0 for an empty one.

    >>> entropy(np.array([5, 5, 0, 0]))
    1.0
    """
    p = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(p * np.log2(p)).sum()) + 0.0


def describe(summary: dict[str, Any]) -> str:
    """Return a summary as lines for a terminal."""
    lines = [
        f"{summary['clips']} clips, {summary['hours']:.2f} hours, {summary['codes']} codes "
        f"in {summary['frames']} frames; {summary['failed']} failed",
    ]
    for reason, count in summary["failures"].items():
        lines.append(f"  {count:8}  {reason}")
    numbers = []
    used = []
    entropies = []
    for number, codebook in enumerate(summary["codebooks"]):
        numbers.append(f"{number:5}")
        used.append(f"{100 * codebook['used']:5.1f}")
        entropies.append(f"{codebook['entropy_bits']:5.2f}")
    lines.append("codebook    " + " ".join(numbers))
    lines.append("  used (%)  " + " ".join(used))
    lines.append("  entropy   " + " ".join(entropies))
    largest = max(summary["durations"].values(), default=0)
    if largest:
        lines.append("durations")
    for label, count in summary["durations"].items():
        if count:
            bar = "#" * max(1, round(_BAR_LENGTH * count / largest))
            lines.append(f"  {label:>12}  {count:8}  {bar}")
    return "\n".join(lines)
