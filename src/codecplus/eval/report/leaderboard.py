"""Several runs as one leaderboard, ranked by one stated rule: JSON for programs, a page for people.

It knows results folders, and nothing of how they came to be.
"""

import json as json_module
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.audio.files import save_audio
from codecplus.errors import InputError, suggest
from codecplus.eval.codecs.anchors import is_anchor
from codecplus.eval.listening import ListeningResult, as_metric, describe, read_listening
from codecplus.eval.metrics import METRICS, load_registered
from codecplus.eval.results import (
    ROWS,
    Results,
    Row,
    bit_rates,
    drop_equal,
    load_results,
    metric_by_file,
    metric_estimate,
    signal_warnings,
    speakers_by_file,
    weights_of,
    write_json,
)
from codecplus.eval.statistics import (
    SIGNIFICANCE,
    Difference,
    Estimate,
    estimate,
    holm,
    paired_difference,
)
from codecplus.system.paths import atomic_path

# kbit/s per channel; each edge is twice the last, and none is a usual rate.
BAND_EDGES = (1.75, 3.5, 7.0, 14.0, 28.0, 56.0)
PRIMARY = {"speech": ("pesq_wb", "mel_distance"), None: ("mel_distance", "stft_distance")}
RULE = (
    "Codecs compete on the same clips, per kind of audio and per band of measured rate per "
    "channel: the payload's, or the whole file's where a codec states its payload itself and a "
    "file is more than that and a header. Those that coded every clip are ordered by the mean of "
    "one metric over the clips "
    "that all of them have a score for: {metric}. Going down that order, a codec shares the "
    "current rank unless a paired test against the first codec of that rank shows a difference "
    "(sign-flip test over speakers, or over recordings where speakers are not known; p below 0.05, "
    "corrected by Holm); then it opens the next. Below six recordings or speakers nobody has a "
    "rank. Codecs that failed on any clip have no rank and are listed after all others, those with "
    "more failures later. Anchors are shown and not ranked; rates that were declared and not "
    "measured are marked, and not ranked either."
)
MIN_RANKED_UNITS = 6  # with fewer, even a lead on all of them has p above 0.05


def build_leaderboard(
    paths: Iterable[str | Path],
    html: str | Path | None = None,
    json: str | Path | None = None,
    rank_by: str | None = None,
    clips: int = 3,
    links: Mapping[Path, str] | None = None,
) -> dict[str, Any]:
    """Merge results folders into a leaderboard.

    Runs on the same clips are merged. The newer run of the same codec replaces the older one;
    scores by another version of a metric than the newest run's are left out, and named.

    Args:
        paths: results folders, or folders that hold some.
        html, json: files to write the leaderboard to.
        rank_by: a metric's name; None: PESQ wide band for speech, else the mel distance.
        clips: how many clips of each codec the page plays, from a folder that is written beside it;
            only those whose audio is still in the cache of the results.
        links: addresses of results folders, for readers.

    Returns:
        The leaderboard, as plain data.

    Raises:
        InputError: for a folder without results, or a metric that does not rank.
        FileFormatError: for results that are damaged or of another schema.
    """
    load_registered()
    _check_ranks(rank_by)
    runs_by_clips: dict[str, list[Results]] = {}
    for results in map(load_results, results_folders(paths)):
        runs_by_clips.setdefault(results.clip_set, []).append(results)
    boards = []
    for runs in runs_by_clips.values():
        boards += _boards(_merge(runs, links or {}), rank_by)
    leaderboard = {"schema": 1, "bands": list(BAND_EDGES), "boards": boards}
    if json is not None:
        Path(json).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(json), leaderboard)
    if html is not None:
        page = dict(leaderboard)
        if clips:
            page["boards"] = _with_clips(boards, runs_by_clips, Path(html), clips)
        _write_page(Path(html), page)
    return leaderboard


def _check_ranks(metric: str | None) -> None:
    ranking = [name for name, entry in METRICS.items() if entry.higher_is_better is not None]
    if metric is not None and metric not in ranking:
        raise InputError(
            f"cannot rank by {metric!r}{suggest(metric, ranking)}; expected one of "
            f"{', '.join(ranking)}"
        )


def results_folders(paths: Iterable[str | Path]) -> list[Path]:
    """Return the results folders among and inside the paths; InputError for one without any."""
    folders: list[Path] = []
    for path in map(Path, paths):
        inside = []
        if path.is_dir():
            inside = sorted(rows.parent for rows in path.rglob(ROWS))
        if not inside:
            raise InputError(f"there are no results in {path}; run `codecplus eval` first")
        folders += [folder for folder in inside if folder not in folders]
    if not folders:
        raise InputError("expected at least one results folder")
    return folders


# ---- merging runs


@dataclass(frozen=True)
class _MergedRuns:
    """Runs on the same clips as one run: the newest of each codec and of each metric's versions."""

    task: dict[str, Any]
    clip_set: str
    metrics: dict[str, dict[str, Any]]  # their descriptions, by name
    rows: dict[str, list[Row]]  # by codec
    details: dict[str, dict[str, Any]]  # by codec: cost, latency, date
    outdated: dict[str, list[str]]  # by codec: metrics whose scores are left out
    listening: dict[str, ListeningResult]  # by method
    folders: dict[str, Path] = field(default_factory=dict)  # by codec: its results
    set_metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name
    runs: list[dict[str, Any]] = field(default_factory=list)  # date, command and commit of each


def _merge(runs: list[Results], links: Mapping[Path, str]) -> _MergedRuns:
    runs = sorted(runs, key=lambda results: results.provenance["date"])
    newest = runs[-1]
    names = {row.clip_hash: row for row in newest.rows}
    merged = _MergedRuns(newest.summary["task"], newest.clip_set, {}, {}, {}, {}, {})
    for results in runs:
        merged.metrics.update(results.summary["metrics"])
        merged.set_metrics.update(results.summary.get("set_metrics", {}))
        merged.listening.update(read_listening(results.path))
    for results in runs:
        known = {key: results.provenance.get(key) for key in ("date", "command", "commit")}
        known["link"] = links.get(results.path)
        merged.runs.append(known)
        outdated = _outdated_metrics(results, merged.metrics)
        for codec in results.codecs:
            rows = [row for row in results.rows if row.codec == codec]
            merged.rows[codec] = [_without(_renamed(row, names), outdated) for row in rows]
            merged.outdated[codec] = outdated
            merged.folders[codec] = results.path
            summary = results.summary["codecs"][codec]
            merged.details[codec] = {
                **results.costs[codec],
                "latency_seconds": summary["latency_seconds"],
                "payload_counted_here": summary.get("payload_counted_here", False),
                "tokens": summary.get("tokens"),
                "complexity": summary.get("complexity"),
                "sets": summary.get("sets", {}),
                "link": summary.get("homepage"),
                "date": results.provenance["date"],
            }
    return merged


def _renamed(row: Row, names: dict[str, Row]) -> Row:
    """Call a clip what the newest run calls it: a table has other names than a folder."""
    known = names[row.clip_hash]
    return replace(row, clip=known.clip, source=known.source, speaker=known.speaker)


def _outdated_metrics(results: Results, newest: dict[str, dict[str, Any]]) -> list[str]:
    described = results.summary["metrics"]
    return [name for name in described if described[name]["identity"] != newest[name]["identity"]]


def _without(row: Row, metrics: list[str]) -> Row:
    scores = {name: score for name, score in row.scores.items() if name not in metrics}
    return replace(row, scores=scores)


# ---- boards


def _boards(runs: _MergedRuns, rank_by: str | None) -> list[dict[str, Any]]:
    """A board for each kind of audio."""
    kinds = {row.domain for rows in runs.rows.values() for row in rows}
    return [_board(runs, kind, rank_by) for kind in sorted(kinds)]


def _board(runs: _MergedRuns, kind: str, rank_by: str | None) -> dict[str, Any]:
    rows: dict[str, list[Row]] = {}
    for codec, all_rows in runs.rows.items():
        rows[codec] = [row for row in all_rows if row.domain == kind]
    every_row = [row for codec_rows in rows.values() for row in codec_rows]
    primary = rank_by or primary_metric(kind, every_row, list(runs.metrics))
    also = drop_equal(rows)
    rates = {}
    for codec, codec_rows in rows.items():
        rates[codec] = bit_rates(codec_rows, runs.details[codec]["payload_counted_here"])
    bands = _competitors(rows, rates)
    entries = _entries(rows, rates, bands, runs.details, primary)
    for entry in entries:
        entry["also"] = also.get(entry["codec"], [])
        entry["metrics"].update(_listening_scores(runs, entry["codec"]))
        entry["metrics"].update(_set_scores(runs, entry["codec"], kind))
    listening = {name: describe(result) for name, result in runs.listening.items()}
    first_codec = next(iter(rows))
    return {
        "task": runs.task["name"],
        "kind": kind,
        "clip_set": runs.clip_set,
        "primary": primary,
        "rule": RULE.format(metric=METRICS[primary].title),
        "clips": len(rows[first_codec]),
        "metrics": {**listening, **runs.metrics, **runs.set_metrics},
        "outdated": {codec: metrics for codec, metrics in runs.outdated.items() if metrics},
        "licence": runs.task.get("licence"),
        "link": _task_link(runs.task),
        "runs": runs.runs,
        "entries": entries,
        "pairs": [pair for band in bands.values() for pair in _pairs(band, primary)],
    }


def _listening_scores(runs: _MergedRuns, codec: str) -> dict[str, dict[str, Any]]:
    scores = {}
    for method, result in runs.listening.items():
        if codec in result.conditions:
            scores[method] = as_metric(result.conditions[codec])
    return scores


def _set_scores(runs: _MergedRuns, codec: str, kind: str) -> dict[str, dict[str, Any]]:
    """Metrics of all recordings of a kind together: values without an interval."""
    scores = {}
    for metric, entry in runs.details[codec]["sets"].get(kind, {}).items():
        if entry["value"] is not None:
            scores[metric] = {"mean": entry["value"], "low": None, "high": None}
    return scores


def primary_metric(kind: str, rows: Iterable[Row], available: Sequence[str] = ()) -> str:
    """Return the first metric for that kind of audio that has a score.

    Args:
        kind: of audio.
        rows: of that kind.
        available: metrics to fall back to, where none of the usual ones was computed. Those that
            are not installed here are not chosen.
    """
    scored: set[str] = set()
    for row in rows:
        scored.update(name for name, score in row.scores.items() if score.status == "ok")
    candidates = PRIMARY.get(kind, PRIMARY[None])
    known = [METRICS[name] for name in available if name in METRICS]
    ranking = [metric.name for metric in known if metric.higher_is_better is not None]
    for metric in (*candidates, *ranking):
        if metric in scored:
            return metric
    return candidates[-1]


def _task_link(task: dict[str, Any]) -> str | None:
    """Where the data of a task are, if that is known."""
    if task.get("homepage"):
        return task["homepage"]
    if task.get("dataset"):
        return f"https://huggingface.co/datasets/{task['dataset']}"
    return None


def _entries(
    rows: dict[str, list[Row]],
    rates: dict[str, dict[str, Any]],
    bands: dict[int, dict[str, list[Row]]],
    details: dict[str, dict[str, Any]],
    primary: str,
) -> list[dict[str, Any]]:
    """What a board says of each codec, best first."""
    standings: dict[str, Standing] = {}
    for competitors in bands.values():
        standings.update(rank(competitors, primary))
    entries = []
    for codec, codec_rows in rows.items():
        standing = standings.get(codec, Standing())
        entries.append(
            {
                "codec": codec,
                "anchor": is_anchor(codec),
                "rank": standing.rank,
                "band": _band(codec, rates[codec]),
                **rates[codec],
                "failures": failures(codec_rows, primary),
                "warnings": signal_warnings(codec_rows),
                "ranked_by": asdict(standing.estimate) if standing.estimate else None,
                "leader": standing.leader,
                "behind": asdict(standing.behind) if standing.behind else None,
                "metrics": _estimates(codec_rows),
                **details[codec],
            }
        )
    return sorted(entries, key=lambda entry: _position(entry, primary))


def _estimates(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """Means and intervals of every metric that has a score."""
    estimates = {}
    for metric in dict.fromkeys(name for row in rows for name in row.scores):
        value = metric_estimate(rows, metric)
        if value is not None:
            estimates[metric] = asdict(value)
    return estimates


def _position(entry: dict[str, Any], primary: str) -> tuple:
    """Sorting key: low bands first, then low ranks, better means, fewer failures; anchors last."""
    band = entry["band"]
    if band is None:
        band = len(BAND_EDGES) + 1
    rank = entry["rank"] or len(METRICS) ** 2
    if entry["ranked_by"] is None:
        return entry["anchor"], band, True, entry["failures"], 0, 0.0
    mean = _ascending(primary) * entry["ranked_by"]["mean"]
    return entry["anchor"], band, False, 0, rank, mean


# ---- ranks


@dataclass(frozen=True)
class Standing:
    """Where a codec stands in its band.

    Attributes:
        rank: from 1; None below six recordings, after a failure, or without a measured rate.
        estimate: the mean by which it was ordered.
        leader: the codec that is first at this rank, or was first above when this one opened it.
        behind: the difference to that leader.
    """

    rank: int | None = None
    estimate: Estimate | None = None
    leader: str | None = None
    behind: Difference | None = None


def _competitors(
    rows: dict[str, list[Row]], rates: dict[str, dict[str, Any]]
) -> dict[int, dict[str, list[Row]]]:
    """The codecs of each band whose rate was measured, with their rows."""
    bands: dict[int, dict[str, list[Row]]] = {}
    for codec, codec_rows in rows.items():
        band = _band(codec, rates[codec])
        if band is not None and rates[codec]["rate_from"] != "declared":
            bands.setdefault(band, {})[codec] = codec_rows
    return bands


def _pairs(rows: dict[str, list[Row]], metric: str) -> list[dict[str, Any]]:
    """How every two codecs of a band that failed on no clip differ; p corrected for all of them."""
    values, speakers = _values_on_common_clips(rows, metric)
    pairs = []
    for a, b in combinations(values, 2):
        difference = paired_difference(values[a], values[b], speakers, weights_of(values[a]))
        if difference is not None and difference.p is not None:
            pairs.append({"a": a, "b": b, **asdict(difference)})
    for pair, p in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
        pair["p_corrected"] = p
    return pairs


def rank(rows: dict[str, list[Row]], metric: str) -> dict[str, Standing]:
    """Rank codecs by RULE.

    Args:
        rows: the rows of each codec.
        metric: its name.

    Returns:
        The standing of each codec that failed on no clip.
    """
    values, speakers = _values_on_common_clips(rows, metric)
    estimates: dict[str, Estimate] = {}
    for codec, by_source in values.items():
        value = estimate(by_source, speakers, weights_of(by_source))
        if value is not None:
            estimates[codec] = value
    sign = _ascending(metric)
    order = sorted(estimates, key=lambda codec: (sign * estimates[codec].mean, codec))
    standings: dict[str, Standing] = {}
    start = 0
    while start < len(order):
        leader = order[start]
        if _units(estimates[leader]) < MIN_RANKED_UNITS:
            return {codec: Standing(estimate=estimates[codec]) for codec in order}
        known = standings.get(leader, Standing(leader=leader))  # has the leader above it, if any
        standings[leader] = replace(known, rank=start + 1, estimate=estimates[leader])
        weights = weights_of(values[leader])
        followers = order[start + 1 :]
        differences = [
            paired_difference(values[leader], values[codec], speakers, weights)
            for codec in followers
        ]
        tied = _count_tied(differences)
        for codec, difference in zip(followers[: tied + 1], differences, strict=False):
            standings[codec] = Standing(start + 1, estimates[codec], leader, difference)
        start += tied + 1
    return standings


def _count_tied(differences: Sequence[Difference | None]) -> int:
    """Return how many codecs follow a leader before the first that is shown to differ from it.

    Args:
        differences: to the leader, in the order of the codecs; p is corrected for all of them.
    """
    p_values = []
    for difference in differences:
        if difference is None or difference.p is None:
            p_values.append(1.0)
        else:
            p_values.append(difference.p)
    for count, p in enumerate(holm(p_values)):
        if p <= SIGNIFICANCE:
            return count
    return len(differences)


def _values_on_common_clips(
    rows: dict[str, list[Row]], metric: str
) -> tuple[dict[str, dict[str, float]], dict[str, str | None]]:
    """By codec and recording, the metric on the clips that every codec has; and the speakers."""
    scored: dict[str, set[str]] = {}  # codec -> clips
    for codec, codec_rows in rows.items():
        clips = {row.clip for row in codec_rows if _has_score(row, metric)}
        if clips and not failures(codec_rows, metric):  # a run without the metric unranks no other
            scored[codec] = clips
    if not scored:
        return {}, {}
    common = set.intersection(*scored.values())
    values = {}
    for codec in scored:
        values[codec] = metric_by_file(rows[codec], metric, lambda row: row.clip in common)
    return values, speakers_by_file(rows[next(iter(scored))])


def _units(value: Estimate) -> int:
    return value.files if value.speakers is None else value.speakers


def failures(rows: list[Row], metric: str) -> int:
    """Count the clips that the reference allows to be scored and the codec does not."""
    count = 0
    for row in rows:
        status = row.status
        if metric in row.scores:
            status = row.scores[metric].status
        count += status == "codec_failure"
    return count


def _has_score(row: Row, metric: str) -> bool:
    return metric in row.scores and row.scores[metric].status == "ok"


def _ascending(metric: str) -> int:
    """The sign with which smaller values of a metric are the better ones."""
    if METRICS[metric].higher_is_better:
        return -1
    return 1


# ---- bands of rates


def _band(codec: str, rates: dict[str, Any]) -> int | None:
    """The band of a rate; None for anchors and for codecs that coded nothing."""
    rate = rates["rate_kbps_per_channel"]
    if rate is None or is_anchor(codec):
        return None
    return sum(rate > edge for edge in BAND_EDGES)


def band_name(band: int) -> str:
    """Name a band of rates, in kbit/s per channel.

    >>> band_name(0), band_name(2), band_name(6)
    ('up to 1.75', '3.5 to 7', 'over 56')
    """
    if band == 0:
        return f"up to {BAND_EDGES[0]:g}"
    if band == len(BAND_EDGES):
        return f"over {BAND_EDGES[-1]:g}"
    return f"{BAND_EDGES[band - 1]:g} to {BAND_EDGES[band]:g}"


_CLIP_SECONDS = 8


def _with_clips(
    boards: list[dict[str, Any]], runs: dict[str, list[Results]], page: Path, count: int
) -> list[dict[str, Any]]:
    """Return the boards with paths of audio for each codec, which is written beside the page."""
    folder = page.with_name(f"{page.stem}-clips")
    listed = []
    for board in boards:
        rows: dict[str, tuple[Path, list[Row]]] = {}
        for results in runs[board["clip_set"]]:
            for codec in results.codecs:
                own = [
                    row
                    for row in results.rows
                    if (row.codec, row.domain, row.status) == (codec, board["kind"], "ok")
                ]
                rows[codec] = results.path, own
        entries = []
        for entry in board["entries"]:
            path, own = rows[entry["codec"]]
            names = [_write_clip(path, row, folder) for row in own[:count]]
            entries.append({**entry, "clips": [name for name in names if name is not None]})
        listed.append({**board, "entries": entries})
    return listed


def _write_clip(results: Path, row: Row, folder: Path) -> str | None:
    """Write a clip's first seconds; return its path from the page, None if the audio is gone."""
    source = results / "cache" / "audio" / row.codec_hash / f"{row.clip_hash}.npy"
    if not source.is_file():
        return None
    target = folder / f"{row.codec_hash}-{row.clip_hash}.flac"
    if not target.is_file():
        audio = np.load(source, allow_pickle=False)[:, : _CLIP_SECONDS * row.sample_rate]
        folder.mkdir(parents=True, exist_ok=True)
        save_audio(np.clip(audio, -1, 1), target, row.sample_rate)
    return f"{folder.name}/{target.name}"


def _write_page(path: Path, leaderboard: dict[str, Any]) -> None:
    page = (files("codecplus.eval.report") / "leaderboard.html").read_text(encoding="utf-8")
    data = json_module.dumps(leaderboard, allow_nan=False)
    data = data.replace("<", "\\u003c")  # no name can close the script
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(page.replace("/*LEADERBOARD*/null", data), encoding="utf-8")
