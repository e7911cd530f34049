"""Leaderboard: what `codecplus leaderboard --json` wrote, sortable and drawn, with what listeners
said here.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from codecplus.errors import FileFormatError, InputError
from codecplus.eval.listening import ListeningResult, as_metric, describe

from .coding import title
from .listening import ListeningTest
from .parts import in_a_sentence
from .settings import CHECKPOINTS, LEADERBOARD, MAX_UPLOAD

_HOW = (
    "There is no leaderboard here yet. Make one, and open it with the button below or put it "
    "beside `app.py`:\n\n"
    "```\ncodecplus eval --model dac-16khz-live --codec opus --bitrate-per-channel 3 6 "
    "--data recordings/ -o results/\n"
    "codecplus leaderboard results/ --json > leaderboard.json\n```"
)

_RATES = "Rates count the bits of the codec (its payload), without the file around them."


def read_board(path: str | Path) -> dict[str, Any]:
    """Read the JSON of `codecplus leaderboard`; one sentence if it is none."""
    path = Path(path)
    if path.stat().st_size > MAX_UPLOAD:
        raise InputError(f"Expected a leaderboard of at most {MAX_UPLOAD >> 20} MB.")
    try:
        board = json.loads(path.read_text(encoding="utf-8"))
        if board["schema"] != 1:
            raise FileFormatError(
                "Expected a leaderboard of schema 1; write it with this version of codecplus."
            )
        for part in board["boards"]:
            _ = [
                (part[key], part["kind"])
                for key in ("task", "metrics", "entries", "primary", "rule")
            ]
            for entry in part["entries"]:
                _ = (
                    float(entry["payload_kbps"] or 0),
                    entry["codec"],
                    entry["rank"],
                    dict(entry["metrics"]),
                )
        return board
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(
            "This is no leaderboard; expected the JSON that `codecplus leaderboard --json` writes."
        ) from error


def with_listeners(board: dict[str, Any], test: ListeningTest) -> dict[str, Any]:
    """Append the results of the listening test here, as boards of their own.

    Its recordings are not those of the other boards, so its means do not belong in them.
    """
    found = test.analysis()
    return {**board, "boards": [*board["boards"], *map(_listening_board, found.values())]}


def _listening_board(result: ListeningResult) -> dict[str, Any]:
    """Write the results of one method as a board. Its rates are those asked for, in names."""
    about = describe(result)
    entries = []
    for condition, score in result.conditions.items():
        kbps = condition.rpartition("@")[2]
        entries.append(
            {
                "codec": condition,
                "anchor": "@" not in condition,
                "rank": None,
                "payload_kbps": float(kbps) if "@" in condition else None,
                "metrics": {result.method: as_metric(score)},
            }
        )
    items = max((score.items for score in result.conditions.values()), default=0)
    return {
        "task": "listening test here",
        "kind": about["title"],
        "primary": result.method,
        "rule": f"What visitors of this page said: {about['source']}. Rates are per channel.",
        "clips": items,
        "metrics": {result.method: about},
        "entries": entries,
    }


def read_own_board(test: ListeningTest) -> dict[str, Any]:
    """Read the leaderboard of this Space, with the listening test here; empty without one."""
    if not LEADERBOARD.is_file():
        return with_listeners({"schema": 1, "boards": []}, test)
    return with_listeners(read_board(LEADERBOARD), test)


def board_name(part: dict[str, Any]) -> str:
    """Name a board by its task and the kind of its recordings."""
    return f"{part['task']}: {part['kind']}"


def summary(board: dict[str, Any], name: str = "", metric: str = "") -> dict[str, Any]:
    """Shrink a leaderboard to one board and one metric, for scripts and agents.

    Raises InputError for a board or a metric that is not there.
    """
    parts = {board_name(part): part for part in board["boards"]}
    if not parts:
        return {"boards": []}
    name = name or next(iter(parts))
    if name not in parts:
        raise InputError(f"There is no board {name!r}; there are {', '.join(parts)}.")
    part = parts[name]
    known = titles(part)
    metric = metric or (part["primary"] if part["primary"] in known else next(iter(known), ""))
    if metric not in known:
        raise InputError(f"There is no metric {metric!r}; there are {', '.join(known)}.")
    rows = []
    for entry in part["entries"]:
        score = entry["metrics"].get(metric, {})
        row = {
            "codec": entry["codec"],
            "rank": entry["rank"],
            "kbps": entry["payload_kbps"],
            **{key: score.get(key) for key in ("mean", "low", "high")},
        }
        rows.append({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()})
    return {
        "boards": list(parts),
        "board": name,
        "metrics": known,
        "metric": metric,
        "higher_is_better": part["metrics"][metric].get("higher_is_better"),
        "rows": rows,
    }


def titles(part: dict[str, Any]) -> dict[str, str]:
    """Metrics of which a board has values, with their titles."""
    present = {name for entry in part["entries"] for name in entry["metrics"]}
    return {name: about["title"] for name, about in part["metrics"].items() if name in present}


def cells(part: dict[str, Any], bands: Sequence[float] = ()) -> dict[str, Any]:
    """One board as the table takes it: columns, and rows of values with their intervals, in groups
    of about one rate.

    The metric that ranks and the rate come first: a phone shows these two beside the codec.
    `bands` are the bounds of the groups in kbit/s per channel.
    """
    failed = any(entry.get("failures") for entry in part["entries"])
    ranking = [name for name in titles(part) if name == part["primary"]]
    others = [name for name in titles(part) if name != part["primary"]]
    columns = [{"title": "codec", "better": ""}]
    columns += [_metric_column(part, name) for name in ranking]
    columns += [{"title": "kbit/s", "better": ""}, {"title": "rank", "better": ""}]
    if failed:
        columns.append({"title": "failures", "better": ""})
    columns += [_metric_column(part, name) for name in others]
    columns.append({"title": "latency, ms", "better": "↓"})
    rows = []
    for entry in part["entries"]:
        row = [{"value": entry["codec"]}]
        row += [_metric_cell(entry, name) for name in ranking]
        row += [{"value": entry["payload_kbps"]}, {"value": entry["rank"]}]
        if failed:
            row.append({"value": entry.get("failures")})
        row += [_metric_cell(entry, name) for name in others]
        latency = entry.get("latency_seconds")
        row.append({"value": None if latency is None else 1000 * latency})
        rows.append(
            {
                "anchor": bool(entry.get("anchor")),
                "ours": is_ours(entry["codec"]),
                "group": _group(entry, bands),
                "cells": row,
            }
        )
    return {"columns": columns, "rows": rows}


def is_ours(codec: str) -> bool:
    """Return whether a row is of a checkpoint that this demo offers; others are for context."""
    return codec.partition("@")[0] in [title(name) for name in CHECKPOINTS]


def _metric_column(part: dict[str, Any], name: str) -> dict[str, Any]:
    arrows = {True: "↑", False: "↓", None: ""}
    about = part["metrics"][name]
    title = about["title"]
    if about.get("unit") in ("dB", "Hz", "ms"):
        title = f"{title}, {about['unit']}"
    better = arrows[about.get("higher_is_better")]
    return {"title": title, "better": better, "about": about.get("source")}


def _metric_cell(entry: dict[str, Any], name: str) -> dict[str, Any]:
    score = entry["metrics"].get(name, {})
    return {"value": score.get("mean"), "low": score.get("low"), "high": score.get("high")}


def _group(entry: dict[str, Any], bands: Sequence[float]) -> str:
    band = entry.get("band")
    if entry.get("anchor"):
        return "Anchors, not ranked"
    if not isinstance(band, int) or not 0 <= band <= len(bands) or not bands:
        return ""
    if band == 0:
        return f"Below {bands[0]:g} kbit/s per channel"
    if band == len(bands):
        return f"From {bands[-1]:g} kbit/s per channel"
    return f"{bands[band - 1]:g} to {bands[band]:g} kbit/s per channel"


def curve(part: dict[str, Any], metric: str) -> dict[str, Any]:
    """Rate and distortion of the codecs of a board, anchors left out, as the plot takes it."""
    points = [
        {
            "codec": entry["codec"].split("@")[0],
            "ours": is_ours(entry["codec"]),
            "kbps": entry.get("payload_kbps_per_channel") or entry["payload_kbps"],
            **{key: entry["metrics"][metric].get(key) for key in ("mean", "low", "high")},
        }
        for entry in part["entries"]
        if not entry.get("anchor") and metric in entry["metrics"] and entry["payload_kbps"]
    ]
    about = part["metrics"][metric]
    better = {True: "higher", False: "lower"}.get(about.get("higher_is_better"), "")
    return {"title": about["title"], "better": better, "points": points}


def build(test: ListeningTest, tab: gr.Tab) -> None:
    """Put the tab together. The board is loaded when the tab is opened."""
    empty = gr.Markdown(_HOW, visible=False)
    gr.Markdown(
        "Every codec codes the same recordings; a measure says how near the result is to the "
        "original. Further to the left is smaller. `dac-16khz-live@2` was asked for 2 kbit/s.",
        elem_classes="cp-note",
    )
    with gr.Row():
        # One below the other on a phone, whose width cuts their names off otherwise.
        which = gr.Dropdown([], label="Data", elem_id="board", min_width=300)
        metric = gr.Dropdown([], label="Plot", elem_id="metric", min_width=300)
    plot = gr.HTML(
        value={},
        html_template='<div class="cp-root cp-plot"></div>',
        js_on_load="window.codecplus.plot(element, props, watch);",
        apply_default_css=False,
        elem_id="plot",
    )
    board_table = gr.HTML(
        value={},
        html_template='<div class="cp-root"></div>',
        js_on_load="window.codecplus.table(element, props, watch);",
        apply_default_css=False,
        elem_id="table",
    )
    rule = gr.Markdown("", elem_classes="cp-note", elem_id="rule")
    with gr.Row():
        refresh = gr.Button("Refresh", size="sm", elem_id="refresh")
        own = gr.UploadButton(
            "Open your own leaderboard.json", file_types=[".json"], size="sm", elem_id="own-board"
        )
    opened = gr.State(None)

    def load(path: str | None) -> dict[str, Any] | None:
        if path:
            return read_board(path)
        return read_board(LEADERBOARD) if LEADERBOARD.is_file() else None

    @in_a_sentence
    def show(opened: str | None, which: str | None, metric: str | None) -> tuple:
        board = load(opened)
        if board is None or not board["boards"]:
            nothing = gr.Dropdown(choices=[], value=None, visible=False)
            return gr.Markdown(visible=True), nothing, nothing, {}, {}, ""
        board = with_listeners(board, test)
        names = [board_name(part) for part in board["boards"]]
        part = board["boards"][names.index(which) if which in names else 0]
        known = titles(part)
        if metric in known:
            chosen = metric
        elif part["primary"] in known:
            chosen = part["primary"]
        else:
            chosen = next(iter(known), None)
        return (
            gr.Markdown(visible=False),
            gr.Dropdown(choices=names, value=which if which in names else names[0], visible=True),
            gr.Dropdown(
                choices=[(title, name) for name, title in known.items()], value=chosen, visible=True
            ),
            curve(part, chosen) if chosen else {},
            cells(part, board.get("bands") or ()),
            f"{part.get('clips', 0)} clips. {part['rule']} {_RATES}",
        )

    @in_a_sentence
    def open_own(path: str) -> str:
        read_board(path)
        return path

    outputs: list[Any] = [empty, which, metric, plot, board_table, rule]
    inputs: list[Any] = [opened, which, metric]
    quiet: dict[str, Any] = {
        "api_visibility": "private",
        "concurrency_limit": 8,
        "show_progress": "hidden",
    }
    gr.on([refresh.click, which.input, metric.input], show, inputs, outputs, **quiet)
    own.upload(open_own, own, opened, api_visibility="private").then(show, inputs, outputs, **quiet)
    # Not when the page is loaded: a large answer would hold up the first tap on a slow line.
    tab.select(show, inputs, outputs, **quiet)
