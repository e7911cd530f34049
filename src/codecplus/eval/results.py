"""The results of a run: typed rows on disk, and what follows from them. Knows files, no audio.

rows.jsonl         one line per codec and clip, `Row`; the same bytes whenever the scores are the
same summary.json       means, intervals, counts and bit rates per codec and domain; computed from
the rows costs.json         what was measured with a clock: speed and memory provenance.json
versions, hardware, settings, and what was left out of the data and why
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from codecplus.errors import FileFormatError, InputError
from codecplus.eval.metrics.base import STATUSES, Score, Status
from codecplus.eval.statistics import Estimate, by_file, estimate
from codecplus.system.paths import atomic_path

SCHEMA = 1
ROWS, SUMMARY, COSTS, PROVENANCE = "rows.jsonl", "summary.json", "costs.json", "provenance.json"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One clip through one codec."""

    codec: str
    codec_hash: str
    clip: str
    clip_hash: str
    source: str
    kind: str | None
    speaker: str | None
    seconds: float
    sample_rate: int
    channels: int
    status: Status  # of encoding and decoding: ok or codec_failure
    reason: str | None
    payload_bits: int | None
    file_bits: int | None
    scores: dict[str, Score]

    @property
    def domain(self) -> str:
        """The kind of audio, or `unknown`."""
        return self.kind or "unknown"

    def to_json(self) -> str:
        """One line of rows.jsonl."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> "Row":
        """Read a line; FileFormatError for another schema or a damaged line."""
        try:
            fields = json.loads(line)
            if fields.pop("schema") != SCHEMA:
                raise FileFormatError(
                    f"expected results of schema {SCHEMA}; evaluate again with this version"
                )
            fields["scores"] = {name: Score(**value) for name, value in fields["scores"].items()}
            return cls(**fields)
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(f"a line of {ROWS} is damaged: {error}") from error


@dataclass(frozen=True)
class Results:
    """A results folder, read."""

    path: Path
    rows: list[Row]
    summary: dict[str, Any]
    costs: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def codecs(self) -> list[str]:
        """Names of the codecs, in their order."""
        return list(self.summary["codecs"])

    @property
    def clip_set(self) -> str:
        """A short hash of the scored samples and their kinds, wherever the files lay."""
        first = self.codecs[0]
        clips = sorted(f"{row.clip_hash} {row.kind}" for row in self.rows if row.codec == first)
        return hashlib.sha256("\n".join(clips).encode()).hexdigest()[:16]


def load_results(path: str | Path) -> Results:
    """Read a results folder; InputError when it is none."""
    folder = Path(path)
    if not (folder / ROWS).is_file():
        raise InputError(
            f"{folder} holds no results: there is no {ROWS} in it; run `codecplus eval` first"
        )
    with (folder / ROWS).open(encoding="utf-8") as file:
        rows = [Row.from_json(line) for line in file]
    parts = []
    for name in (SUMMARY, COSTS, PROVENANCE):
        try:
            parts.append(json.loads((folder / name).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{folder / name} cannot be read: {error}") from error
    return Results(folder, rows, *parts)


def write_json(path: Path, value: Any) -> None:
    """Write plain data, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows.jsonl, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(row.to_json() + "\n" for row in rows)


def summarize(rows: list[Row], metrics: Iterable[str]) -> dict[str, Any]:
    """Per codec: bit rates and failures, and per domain and metric an estimate and the count of
    each status.
    """
    codecs: dict[str, list[Row]] = {}
    for row in rows:
        codecs.setdefault(row.codec, []).append(row)
    names = list(metrics)
    return {name: _summarize_codec(group, names) for name, group in codecs.items()}


def _summarize_codec(rows: list[Row], metrics: list[str]) -> dict[str, Any]:
    domains = {"all": rows}
    for row in rows:
        domains.setdefault(row.domain, []).append(row)
    return {
        "clips": len(rows),
        "failures": sum(row.status != "ok" for row in rows),
        "domains": {
            name: {
                **bit_rates(group),
                "clips": len(group),
                "metrics": _summarize_metrics(group, metrics),
            }
            for name, group in domains.items()
        },
    }


def bit_rates(rows: Iterable[Row]) -> dict[str, float | None]:
    """Measured rates in kbit/s, all bits over all seconds of the clips that were coded."""
    coded = [row for row in rows if row.status == "ok"]
    seconds = sum(row.seconds for row in coded)
    channel_seconds = sum(row.seconds * row.channels for row in coded)
    payload = sum(row.payload_bits or 0 for row in coded)
    return {
        "payload_kbps": payload / seconds / 1000 if coded else None,
        "payload_kbps_per_channel": payload / channel_seconds / 1000 if coded else None,
        "file_kbps": sum(row.file_bits or 0 for row in coded) / seconds / 1000 if coded else None,
    }


def _summarize_metrics(rows: list[Row], metrics: list[str]) -> dict[str, Any]:
    table = {}
    for metric in metrics:
        scores = [row.scores[metric] for row in rows if metric in row.scores]
        if scores:
            found = metric_estimate(rows, metric)
            counts = {
                status: sum(score.status == status for score in scores) for status in STATUSES
            }
            table[metric] = {
                **(asdict(found) if found else {}),
                "counts": {k: n for k, n in counts.items() if n},
            }
    return table


def metric_by_file(
    rows: Iterable[Row], metric: str, keep: Callable[[Row], bool] = lambda row: True
) -> dict[str, float]:
    """The metric of each file, over the clips that have it."""
    return by_file(
        (row.source, cast(float, row.scores[metric].value))
        for row in rows
        if keep(row) and metric in row.scores and row.scores[metric].value is not None
    )


def metric_estimate(rows: Iterable[Row], metric: str) -> Estimate | None:
    """Mean and interval of a metric over files."""
    return estimate(metric_by_file(rows, metric).values())
