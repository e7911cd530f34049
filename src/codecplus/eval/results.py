"""The results of a run: typed rows on disk, and what follows from them. Knows files, no audio.

rows.jsonl       a line per codec and clip, `Row`; the same bytes whenever the scores are
summary.json     means, intervals, counts and bit rates, computed from the rows
costs.json       what was measured with a clock: speed and memory
provenance.json  command, versions, hardware, settings, and what was left out and why
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from codecplus.errors import FileFormatError, InputError
from codecplus.eval.metrics.base import STATUSES, Score, Status, Weighted, find_metric, mean_of
from codecplus.eval.statistics import Estimate, estimate
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
        scores = {name: score.as_dict() for name, score in self.scores.items()}
        return json.dumps({"schema": SCHEMA, **asdict(self), "scores": scores}, sort_keys=True)

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
    for name in parts[0].get("metrics", {}):
        find_metric(name)  # one that belongs to a model is known from its name
    return Results(folder, rows, *parts)


def write_json(path: Path, value: Any) -> None:
    """Write plain data, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows.jsonl, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(row.to_json() + "\n" for row in rows)


def summarize(
    rows: list[Row], metrics: Iterable[str], counted_here: Collection[str] = ()
) -> dict[str, Any]:
    """Per codec: bit rates and failures, and per domain and metric an estimate and the count of
    each status. `counted_here` names the codecs whose payload this package counts.
    """
    codecs: dict[str, list[Row]] = {}
    for row in rows:
        codecs.setdefault(row.codec, []).append(row)
    names = list(metrics)
    summary = {}
    for name, group in codecs.items():
        summary[name] = _summarize_codec(group, names, name in counted_here)
    return summary


def _summarize_codec(rows: list[Row], metrics: list[str], counted_here: bool) -> dict[str, Any]:
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(row.domain, []).append(row)
    shared = _metrics_of_all(by_kind, metrics)
    domains = {"all": _summarize_domain(rows, shared, counted_here)}
    for kind, group in by_kind.items():
        domains[kind] = _summarize_domain(group, metrics, counted_here)
    return {
        "clips": len(rows),
        "failures": sum(row.status != "ok" for row in rows),
        "payload_counted_here": counted_here,
        "domains": domains,
    }


def _metrics_of_all(by_kind: dict[str, list[Row]], metrics: list[str]) -> list[str]:
    """The metrics that every kind has: a mean of one kind beside the rates of all would mislead."""
    shared = []
    for metric in metrics:
        if all(any(metric in row.scores for row in rows) for rows in by_kind.values()):
            shared.append(metric)
    return shared


def _summarize_domain(rows: list[Row], metrics: list[str], counted_here: bool) -> dict[str, Any]:
    return {
        **bit_rates(rows, counted_here),
        "clips": len(rows),
        "metrics": _summarize_metrics(rows, metrics),
    }


# How far a file may exceed the payload that a codec states itself, before the file is what counts:
# a header of 64 bytes and a fiftieth, but never more than half of the payload.
_CONTAINER_BITS = 512
_CONTAINER_SHARE = 1 / 50
_CONTAINER_LIMIT = 1 / 2


def bit_rates(rows: Iterable[Row], counted_here: bool = False) -> dict[str, Any]:
    """Return rates in kbit/s, all bits over all seconds of the clips that were coded.

    `rate_kbps` is the one that ranks. It is the payload's where this package counts it, or where a
    file is hardly more than its payload; otherwise the whole file's, since a codec may state any
    payload. `rate_from` says which: `payload`, `file`, or `declared` for audio that was decoded
    elsewhere.

    Args:
        rows: of one codec.
        counted_here: whether the payload was counted by an adapter of this package.
    """
    coded = [row for row in rows if row.status == "ok"]
    seconds = sum(row.seconds for row in coded)
    channel_seconds = sum(row.seconds * row.channels for row in coded)
    payload = _total(row.payload_bits for row in coded)
    file = _total(row.file_bits for row in coded)
    if file is None:
        counted, origin = payload, "declared"
    elif counted_here or all(_is_container(row) for row in coded):
        counted, origin = payload, "payload"
    else:
        counted, origin = file, "file"
    return {
        "payload_kbps": _kbps(payload, seconds),
        "payload_kbps_per_channel": _kbps(payload, channel_seconds),
        "file_kbps": _kbps(file, seconds),
        "rate_kbps": _kbps(counted, seconds),
        "rate_kbps_per_channel": _kbps(counted, channel_seconds),
        "rate_from": origin if coded else None,
    }


def _is_container(row: Row) -> bool:
    """Whether a clip's file is larger than its payload by no more than a container."""
    assert row.payload_bits is not None, "what was coded has bits"
    assert row.file_bits is not None, "checked by the caller"
    allowed = _CONTAINER_BITS + _CONTAINER_SHARE * row.payload_bits
    return row.file_bits - row.payload_bits <= min(allowed, _CONTAINER_LIMIT * row.payload_bits)


def _total(bits: Iterable[int | None]) -> int | None:
    """The sum; None where nothing was coded, or where bits are not known."""
    known = list(bits)
    if not known or None in known:
        return None
    return sum(cast(list[int], known))


def _kbps(bits: int | None, seconds: float) -> float | None:
    if bits is None or not seconds:
        return None
    return bits / seconds / 1000


def _summarize_metrics(rows: list[Row], metrics: list[str]) -> dict[str, Any]:
    table = {}
    for metric in metrics:
        scores = [row.scores[metric] for row in rows if metric in row.scores]
        if not scores:
            continue
        value = metric_estimate(rows, metric)
        counts = Counter(score.status for score in scores)
        table[metric] = {
            **(asdict(value) if value else {}),
            "counts": {status: counts[status] for status in STATUSES if counts[status]},
        }
    return table


def speakers_by_file(rows: Iterable[Row]) -> dict[str, str | None]:
    """Return the speaker of each recording, or None where nobody knows."""
    return {row.source: row.speaker for row in rows}


def metric_by_file(
    rows: Iterable[Row], metric: str, keep: Callable[[Row], bool] = lambda row: True
) -> dict[str, float]:
    """The metric of each file, over the clips that have it."""
    values: dict[str, list[float]] = {}
    for row in rows:
        score = row.scores.get(metric)
        if score is None or score.value is None or not keep(row):
            continue
        value = score.value
        if score.weight is not None:
            value = Weighted(value, score.weight)
        values.setdefault(row.source, []).append(value)
    return {source: mean_of(group) for source, group in values.items()}


def weights_of(values: Mapping[str, float]) -> dict[str, float] | None:
    """Return the weights of what `metric_by_file` returned; None where all weigh the same."""
    weights = {}
    for source, value in values.items():
        if not isinstance(value, Weighted):
            return None
        weights[source] = value.weight
    return weights or None


def metric_estimate(rows: Iterable[Row], metric: str) -> Estimate | None:
    """Mean and interval of a metric over recordings."""
    rows = list(rows)
    values = metric_by_file(rows, metric)
    return estimate(values, speakers_by_file(rows), weights_of(values))


def drop_equal(rows: dict[str, list[Row]]) -> dict[str, list[str]]:
    """Drop codecs whose rates and scores are those of another rate of the same codec.

    An encoder that cannot go lower gives the same files for two targets. Returns the names that
    were dropped, by the name that stays.
    """
    first: dict[str, str] = {}
    dropped: dict[str, list[str]] = {}
    for codec in list(rows):
        results = [
            (row.clip, row.payload_bits, row.file_bits, row.scores)
            for row in rows[codec]
            if row.status == "ok"
        ]
        key = repr((codec.rpartition("@")[0], results))
        if not results or "@" not in codec or key not in first:
            first[key] = codec
            continue
        dropped.setdefault(first[key], []).append(codec)
        del rows[codec]
    return dropped


# What a listener notices and the scores may not: beyond these a codec gets a warning.
_GAIN_DB = 1.5
_INVERTED = -0.5  # mean polarity: three clips of four have the other sign
_CLIPPED_PERCENT = 0.1


def signal_warnings(rows: Iterable[Row]) -> list[str]:
    """Return what is wrong with a codec's level or sign, in words; empty if nothing is."""
    rows = list(rows)
    warnings = []
    gain = metric_estimate(rows, "gain")
    if gain is not None and abs(gain.median) >= _GAIN_DB:
        warnings.append(f"plays at {gain.median:+.1f} dB")
    polarity = metric_estimate(rows, "polarity")
    if polarity is not None and polarity.mean <= _INVERTED:
        warnings.append("inverts the signal")
    clipping = metric_estimate(rows, "clipping")
    if clipping is not None and clipping.mean >= _CLIPPED_PERCENT:
        warnings.append(f"clips {clipping.mean:.2g} % of the samples")
    return warnings
