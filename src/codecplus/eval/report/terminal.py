"""Results as a table for a terminal: what somebody wants to see when a run has ended."""

import shutil
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from codecplus.eval.report.leaderboard import primary_metric
from codecplus.eval.report.markdown import domains, interval, number, sample_size
from codecplus.eval.results import Results, Row, drop_equal, signal_warnings


def terminal_report(results: Results, width: int | None = None) -> str:
    """Return a table for each kind of audio, and what needs attention.

    Args:
        results: of one run.
        width: columns of the terminal; None: those it has.
    """
    width = width or shutil.get_terminal_size().columns
    parts = []
    for domain in domains(results):
        if domain == "all":
            continue
        parts.append(_domain_table(results, domain, width))
    warnings = []
    for codec in results.codecs:
        rows = [row for row in results.rows if row.codec == codec]
        if not results.summary["codecs"][codec]["anchor"]:
            warnings += [f"warning: {codec} {text}" for text in signal_warnings(rows)]
    parts += warnings
    for line in _failures(results):
        parts.append(textwrap.fill(line, width, subsequent_indent="  "))
    return "\n".join(parts)


def _failures(results: Results) -> list[str]:
    """A line for each codec that failed on clips, and for each metric that crashed or hung."""
    reasons: dict[str, Counter[str]] = {}  # by codec or metric
    for row in results.rows:
        if row.status != "ok":
            reasons.setdefault(row.codec, Counter())[str(row.reason)] += 1
            continue
        for metric, score in row.scores.items():
            if score.status in ("metric_error", "timeout"):
                reasons.setdefault(metric, Counter())[str(score.reason)] += 1
    lines = []
    for name, counts in reasons.items():
        ((reason, _),) = counts.most_common(1)
        if len(counts) > 1:
            reason += f"; {len(counts) - 1} more in report.md"
        lines.append(f"failed: {name}, {counts.total()} times: {reason}")
    return lines


def _domain_table(results: Results, domain: str, width: int) -> str:
    rows = [row for row in results.rows if row.domain == domain]
    metric = primary_metric(domain, rows, list(results.summary["metrics"]))
    name = metric if metric in results.summary["metrics"] else "no metric"
    header = ["codec", "kbit/s", name, "95 %", "n", "failed", "encode ×", "decode ×"]
    by_codec: dict[str, list[Row]] = {codec: [] for codec in results.codecs}
    for row in rows:
        by_codec[row.codec].append(row)
    equal = drop_equal(by_codec)
    lines = []
    for codec in by_codec:
        part = results.summary["codecs"][codec]["domains"].get(domain)
        if part:
            lines.append(_line(results, codec, part, metric, domain))
    text = f"\n{results.summary['task']['name']}: {domain}\n" + aligned(header, lines, width)
    for codec, others in equal.items():
        text += f"\n{codec} stands for {', '.join(others)}, too: the same files"
    return text


def _line(
    results: Results, codec: str, part: dict[str, Any], metric: str, domain: str
) -> list[str]:
    entry = part["metrics"].get(metric, {})
    cost = results.costs[codec]
    own = [row for row in results.rows if row.codec == codec and row.domain == domain]
    rate = number(part.get("rate_kbps", part["payload_kbps"]))
    speeds = [number(cost[f"{stage}_real_time_factor"]) for stage in ("encode", "decode")]
    if part.get("rate_from") == "declared":
        rate += " declared"
    if results.summary["codecs"][codec]["anchor"]:
        rate = "–"
        speeds = ["–", "–"]
    n = "–"
    if entry.get("files"):
        n = sample_size(entry["files"], entry.get("speakers"))
    return [
        codec,
        rate,
        number(entry.get("mean")),
        interval(entry.get("low"), entry.get("high")),
        n,
        str(sum(row.status != "ok" for row in own)),
        *speeds,
    ]


def aligned(header: Sequence[str], lines: Sequence[Sequence[str]], width: int) -> str:
    """Return a table whose columns are aligned, no wider than a terminal.

    The first column is cut in its middle where it must be; the last ones are left out where that is
    not enough.

    >>> print(aligned(["codec", "kbit/s"], [["opus@6", "6.01"]], 80))
    codec   kbit/s
    opus@6    6.01
    """
    rows = [list(header), *map(list, lines)]
    widths = [max(_columns(row[index]) for row in rows) for index in range(len(header))]
    least = min(widths[0], 12)
    while len(widths) > 2 and least + sum(2 + size for size in widths[1:]) > width:
        widths.pop()
    widths[0] = max(least, min(widths[0], width - sum(2 + size for size in widths[1:])))
    text = []
    for row in rows:
        first = _shortened(row[0], widths[0])
        cells = [first + " " * (widths[0] - _columns(first))]
        for cell, size in zip(row[1:], widths[1:], strict=False):
            cells.append(" " * (size - _columns(cell)) + cell)
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def _columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _shortened(text: str, size: int) -> str:
    if len(text) <= size:
        return text
    head = (size - 1) // 2
    return f"{text[:head]}…{text[len(text) - (size - 1 - head) :]}"


def average_over_tasks(runs: Sequence[Results], width: int | None = None) -> str:
    """Return a table of codecs with the mean over tasks of each task's mean, as MTEB averages.

    Only metrics and codecs that every task has are in it, and each task weighs the same.
    """
    width = width or shutil.get_terminal_size().columns
    codecs = [name for name in runs[0].codecs if all(name in run.codecs for run in runs)]
    metrics = [name for name in runs[0].summary["metrics"] if _is_shared(name, runs, codecs)]
    lines = []
    for codec in codecs:
        rates = [run.summary["codecs"][codec]["domains"]["all"]["rate_kbps"] for run in runs]
        rate = "–"
        if None not in rates:
            rate = number(fmean(rates))
        cells = [codec, rate]
        for metric in metrics:
            means = [_task_mean(run, codec, metric) for run in runs]
            cells.append(number(fmean(mean for mean in means if mean is not None)))
        lines.append(cells)
    names = ", ".join(run.summary["task"]["name"] for run in runs)
    return f"\nmean over {names}\n" + aligned(["codec", "kbit/s", *metrics], lines, width)


def _is_shared(metric: str, runs: Sequence[Results], codecs: Sequence[str]) -> bool:
    """Return whether a metric ranks, and every run has it for each of these codecs."""
    if runs[0].summary["metrics"][metric]["higher_is_better"] is None:
        return False
    return all(_task_mean(run, codec, metric) is not None for run in runs for codec in codecs)


def _task_mean(run: Results, codec: str, metric: str) -> float | None:
    """Return a mean over all kinds of a task; None where a kind lacks it or nothing was scored."""
    entry = run.summary["codecs"][codec]["domains"]["all"]["metrics"].get(metric, {})
    return entry.get("mean")
