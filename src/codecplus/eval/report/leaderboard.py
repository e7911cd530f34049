"""Several runs as one leaderboard: JSON for programs and a page for people, ranked by one stated
rule.
"""

from __future__ import annotations

import json as json_module
from collections.abc import Iterable
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from codecplus.errors import InputError
from codecplus.eval.codecs.anchors import is_anchor
from codecplus.eval.listening import as_metric, describe, read_listening
from codecplus.eval.metrics import METRICS
from codecplus.eval.results import (
    ROWS,
    Results,
    Row,
    bit_rates,
    load_results,
    metric_by_file,
    write_json,
)
from codecplus.eval.statistics import Estimate, estimate
from codecplus.system.paths import atomic_path

BAND_EDGES = (
    1.75,
    3.5,
    7.0,
    14.0,
    28.0,
    56.0,
)  # kbit/s per channel; each twice the last, none at a usual rate
PRIMARY = {"speech": ("pesq_wb", "mel_distance"), None: ("mel_distance", "stft_distance")}
RULE = (
    "Codecs compete on the same clips, per kind of audio and per band of measured payload rate per channel. Those "
    "that coded every clip are ordered by the mean of one metric over the clips that all of them have a score for: "
    "{metric}. Going down that order a codec shares the current rank when its 95 % interval overlaps with that of the "
    "first codec of that rank, else it opens the next. Codecs that failed on any clip have no rank and are listed "
    "after all others, those with more failures later. Anchors are shown and not ranked."
)


def build_leaderboard(
    paths: Iterable[str | Path],
    html: str | Path | None = None,
    json: str | Path | None = None,
    rank_by: str | None = None,
) -> dict[str, Any]:
    """Merge results folders into a leaderboard and return it; `html` and `json` are files to write
    it to.

    paths: results folders, or folders that hold some. Runs on the same clips are merged, the newer
    run of the same codec replaces the older; scores by another version of a metric than the newest
    run's are left out, and named.
    rank_by: a metric's name; None: PESQ wide band for speech, else the mel distance.
    """
    if rank_by is not None and (
        rank_by not in METRICS or METRICS[rank_by].higher_is_better is None
    ):
        ranking = ", ".join(
            name for name, metric in METRICS.items() if metric.higher_is_better is not None
        )
        raise InputError(f"cannot rank by {rank_by!r}; expected one of {ranking}")
    groups: dict[str, list[Results]] = {}
    for results in map(load_results, _find(paths)):
        groups.setdefault(results.clip_set, []).append(results)
    boards = []
    for group in groups.values():
        boards += _boards(sorted(group, key=lambda results: results.provenance["date"]), rank_by)
    leaderboard = {"schema": 1, "bands": list(BAND_EDGES), "boards": boards}
    if json is not None:
        Path(json).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(json), leaderboard)
    if html is not None:
        _write_page(Path(html), leaderboard)
    return leaderboard


def _find(paths: Iterable[str | Path]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(rows.parent for rows in path.rglob(ROWS)) if path.is_dir() else []
        if not inside:
            raise InputError(f"there are no results in {path}; run `codecplus eval` first")
        found += [folder for folder in inside if folder not in found]
    if not found:
        raise InputError("expected at least one results folder")
    return found


def _boards(group: list[Results], rank_by: str | None) -> list[dict[str, Any]]:
    """A board per kind of audio, from runs on the same clips, oldest first."""
    rows: dict[str, list[Row]] = {}
    details: dict[str, dict[str, Any]] = {}
    metrics = {
        name: metric for results in group for name, metric in results.summary["metrics"].items()
    }
    outdated: dict[str, list[str]] = {}  # codec -> metrics
    for results in group:
        described = results.summary["metrics"]
        old = [
            name for name in described if described[name]["identity"] != metrics[name]["identity"]
        ]
        for name in results.codecs:
            rows[name] = [_without(row, old) for row in results.rows if row.codec == name]
            outdated[name] = old
            latency = results.summary["codecs"][name]["latency_seconds"]
            details[name] = {
                **results.costs[name], "latency_seconds": latency, "date": results.provenance["date"],
            }  # fmt: skip
    people = {
        name: found for results in group for name, found in read_listening(results.path).items()
    }
    kinds = sorted({row.domain for group_rows in rows.values() for row in group_rows})
    boards = []
    for kind in kinds:
        of_kind = {
            name: [row for row in codec_rows if row.domain == kind]
            for name, codec_rows in rows.items()
        }
        primary = _primary(kind, of_kind, rank_by)
        entries = _entries(of_kind, details, primary)
        for entry in entries:
            heard = {name: found.conditions.get(entry["codec"]) for name, found in people.items()}
            entry["metrics"] |= {name: as_metric(score) for name, score in heard.items() if score}
        task = group[-1].summary["task"]
        boards.append({
            "task": task["name"], "kind": kind, "clip_set": group[-1].clip_set, "primary": primary,
            "rule": RULE.format(metric=METRICS[primary].title), "clips": len(next(iter(of_kind.values()))),
            "metrics": {name: describe(found) for name, found in people.items()} | metrics,
            "outdated": {name: old for name, old in outdated.items() if old},
            "licence": task.get("licence"), "entries": entries,
        })  # fmt: skip
    return boards


def _without(row: Row, metrics: list[str]) -> Row:
    return replace(
        row, scores={name: found for name, found in row.scores.items() if name not in metrics}
    )


def _primary(kind: str, rows: dict[str, list[Row]], rank_by: str | None) -> str:
    if rank_by is not None:
        return rank_by
    candidates = PRIMARY.get(kind, PRIMARY[None])
    for metric in candidates:
        if any(metric_by_file(codec_rows, metric) for codec_rows in rows.values()):
            return metric
    return candidates[-1]


def _entries(
    rows: dict[str, list[Row]], details: dict[str, dict], primary: str
) -> list[dict[str, Any]]:
    bands: dict[int | None, list[str]] = {}
    rates = {name: bit_rates(codec_rows) for name, codec_rows in rows.items()}
    for name in rows:
        if not is_anchor(name):
            bands.setdefault(_band(name, rates[name]), []).append(name)
    places: dict[str, tuple[int, Estimate]] = {}
    for names in bands.values():
        places.update(rank({name: rows[name] for name in names}, primary))
    entries = []
    for name, codec_rows in rows.items():
        place, ranked_by = places.get(name, (None, None))
        estimates = {
            metric: estimate(metric_by_file(codec_rows, metric).values()) for metric in METRICS
        }
        entries.append({
            "codec": name,
            "anchor": is_anchor(name),
            "rank": place,
            "band": _band(name, rates[name]),
            **rates[name],
            "failures": failures(codec_rows, primary),
            "ranked_by": asdict(ranked_by) if ranked_by else None,
            "metrics": {metric: asdict(found) for metric, found in estimates.items() if found},
            **details[name],
        })  # fmt: skip
    return sorted(entries, key=lambda entry: _position(entry, primary))


def _position(entry: dict[str, Any], primary: str) -> tuple:
    """Bands from low to high, within them ranks, the better mean first, and then failures; anchors
    last.
    """
    band = len(BAND_EDGES) + 1 if entry["band"] is None else entry["band"]
    if entry["rank"] is None:
        return entry["anchor"], band, True, entry["failures"], 0.0
    sign = -1 if METRICS[primary].higher_is_better else 1
    return entry["anchor"], band, False, entry["rank"], sign * entry["ranked_by"]["mean"]


def band_name(band: int) -> str:
    """A band of rates, in kbit/s per channel.

    >>> band_name(0), band_name(2), band_name(6)
    ('up to 1.75', '3.5 to 7', 'over 56')
    """
    if band == 0:
        return f"up to {BAND_EDGES[0]:g}"
    return (
        f"over {BAND_EDGES[-1]:g}"
        if band == len(BAND_EDGES)
        else f"{BAND_EDGES[band - 1]:g} to {BAND_EDGES[band]:g}"
    )


def failures(rows: list[Row], metric: str) -> int:
    """Clips that the reference allows to be scored and that have no score through the codec's
    fault.
    """
    statuses = [row.scores[metric].status if metric in row.scores else row.status for row in rows]
    return statuses.count("codec_failure")


def rank(rows: dict[str, list[Row]], metric: str) -> dict[str, tuple[int, Estimate]]:
    """Rank codecs by RULE: name -> (rank from 1, the estimate it was ranked by); those that failed
    are not in it.
    """
    scored = {name: {row.clip for row in group if metric in row.scores and row.scores[metric].status == "ok"}
              for name, group in rows.items() if not failures(group, metric)}  # fmt: skip
    fit = {
        name: clips for name, clips in scored.items() if clips
    }  # a run without the metric unranks nobody else
    common = set.intersection(*fit.values()) if fit else set()
    found = {name: estimate(metric_by_file(rows[name], metric, lambda row: row.clip in common).values())
             for name in fit}  # fmt: skip
    ranked = {name: value for name, value in found.items() if value is not None}
    sign = -1 if METRICS[metric].higher_is_better else 1
    places: dict[str, tuple[int, Estimate]] = {}
    leader, place = None, 0
    for position, name in enumerate(
        sorted(ranked, key=lambda name: (sign * ranked[name].mean, name)), start=1
    ):
        if leader is None or not ranked[name].overlaps(leader):
            leader, place = ranked[name], position
        places[name] = (place, ranked[name])
    return places


def _band(name: str, rates: dict[str, float | None]) -> int | None:
    """Which band a measured rate falls into; none for anchors and for codecs that coded nothing."""
    rate = rates["payload_kbps_per_channel"]
    return None if rate is None or is_anchor(name) else sum(rate > edge for edge in BAND_EDGES)


def _write_page(path: Path, leaderboard: dict[str, Any]) -> None:
    page = (files("codecplus.eval.report") / "leaderboard.html").read_text(encoding="utf-8")
    data = json_module.dumps(leaderboard, allow_nan=False).replace(
        "<", "\\u003c"
    )  # no name can close the script
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(page.replace("/*LEADERBOARD*/null", data), encoding="utf-8")
