"""Counts of tokenised rows, which can be added up over rows, shards and nodes."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DURATION_BOUNDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0, 3600.0)  # seconds
_MAX_REASONS = 50


@dataclass
class Statistics:
    """Counts of a set of rows.

    Attributes:
        codes: how often each entry of each codebook occurs, (K, N).
        rows: with those that failed.
        seconds, frames: of all clips.
        durations: rows between `DURATION_BOUNDS`.
        failures: rows by the reason why they have no codes.
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
        """Count a clip that failed. Numbers in reasons are dropped, so that equal ones add up."""
        self.rows += 1
        reason = re.sub(r"\b\d+(\.\d+)?\b", "N", reason)
        known = reason in self.failures or len(self.failures) < _MAX_REASONS
        self.failures[reason if known else "other reasons"] += 1

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
        """Return the statistics of counts that `as_counts` gave."""
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
        bounds = [0.0, *DURATION_BOUNDS]
        labels = [f"{a:g}-{b:g} s" for a, b in zip(bounds, DURATION_BOUNDS, strict=False)] + [
            f"{bounds[-1]:g} s-"
        ]
        return {
            "rows": self.rows,
            "clips": self.rows - failed,
            "failed": failed,
            "hours": round(self.seconds / 3600, 6),
            "frames": self.frames,
            "codes": int(self.codes.sum()),
            "codebooks": [
                {"used": round(float((c > 0).mean()), 6), "entropy_bits": round(entropy(c), 6)}
                for c in self.codes
            ],
            "durations": dict(zip(labels, self.durations.tolist(), strict=True)),
            "failures": dict(self.failures.most_common()),
        }


def entropy(counts: np.ndarray) -> float:
    """Return the bits per symbol of a histogram, 0 for an empty one.

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
    lines += [f"  {count:8}  {reason}" for reason, count in summary["failures"].items()]
    books = summary["codebooks"]
    lines.append("codebook    " + " ".join(f"{k:5}" for k in range(len(books))))
    lines.append("  used (%)  " + " ".join(f"{100 * book['used']:5.1f}" for book in books))
    lines.append("  entropy   " + " ".join(f"{book['entropy_bits']:5.2f}" for book in books))
    top = max(summary["durations"].values(), default=0)
    if top:
        lines.append("durations")
        for label, count in summary["durations"].items():
            if count:
                lines.append(f"  {label:>12}  {count:8}  {'#' * max(1, round(30 * count / top))}")
    return "\n".join(lines)
