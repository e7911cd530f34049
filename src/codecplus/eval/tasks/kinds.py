"""A task without the recordings of other kinds."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from codecplus.errors import InputError
from codecplus.eval.tasks.clips import Clip, Problem


@dataclass(frozen=True)
class KindTask:
    """The recordings of a task that are of certain kinds.

    Attributes:
        task: all recordings.
        kinds: `speech`, `music`, `sound`, or whatever the data call them.
        limit: recordings at most, of these kinds.
    """

    task: Any
    kinds: tuple[str, ...]
    limit: int | None = None

    @property
    def name(self) -> str:
        """The name of the task in reports."""
        return self.task.name

    def describe(self) -> dict:
        """Return the task as plain data."""
        return {**self.task.describe(), "kinds": list(self.kinds), "limit": self.limit}

    def fingerprint(self) -> str:
        """Return a hash that changes with the task, the kinds and the limit."""
        text = repr((self.task.fingerprint(), self.kinds, self.limit))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __iter__(self) -> Iterator[Clip | Problem]:
        sources: set[str] = set()
        others: set[str] = set()
        for item in self.task:
            if isinstance(item, Clip):
                if item.kind not in self.kinds:
                    others.add(item.kind or "unknown")
                    continue
                if item.source not in sources and len(sources) == self.limit:
                    return
                sources.add(item.source)
            yield item
        if not sources:
            raise InputError(
                f"{self.name} has no recording of the kind {' or '.join(self.kinds)}; its kinds "
                f"are {', '.join(sorted(others)) or 'not known'}"
            )
