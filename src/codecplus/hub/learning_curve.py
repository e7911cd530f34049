"""Learning curves in cards: their files, a summary and a picture.

It knows scores by step, nothing of how they were measured.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codecplus.errors import FileFormatError, InputError
from codecplus.hub.pictures import new_figure

_MAX_PANELS = 3
_TITLES = {  # in the order in which panels are chosen
    "speech/pesq": "PESQ-wb of speech, higher is better",
    "speech/stoi": "STOI of speech, higher is better",
    "speech/mel": "mel loss of speech, lower is better",
    "speech/sisdr": "SI-SDR of speech, dB, higher is better",
    "pesq_wb": "PESQ-wb, higher is better",
    "stoi": "STOI, higher is better",
    "mel": "mel loss, lower is better",
    "snr": "SNR, dB, higher is better",
}


@dataclass(frozen=True)
class CurvePoint:
    """The scores of one step of a training run."""

    step: int
    hours: float | None
    """Hours of audio in all crops until then, if the curve has them."""
    scores: dict[str, dict[str, float]]
    """Metric -> label of the line -> value."""


def read_curve(path: str | Path) -> list[CurvePoint]:
    """Read the points of a curve in their order. Of a step that was run twice the later one counts.

    Raises InputError for a file that cannot be opened, FileFormatError for one without scores.
    """
    points: dict[int, CurvePoint] = {}
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                point = _point(json.loads(line))
                if point is not None:
                    points[point.step] = point
    except OSError as error:
        raise InputError(f"cannot open the curve {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(
            f"expected {path} to hold JSON lines with step and scores: {error}"
        ) from error
    if not points:
        raise FileFormatError(
            f"{path} is no learning curve: no line has scores of held-out recordings"
        )
    return [points[step] for step in sorted(points)]


def _point(fields: dict[str, Any]) -> CurvePoint | None:
    """Return the scores of one line of a curve, None if it has none."""
    scores: dict[str, dict[str, float]] = {}
    for key, value in fields.items():
        if key[:1] == "k" and key[1:].isdigit():
            label = f"{key[1:]} codebooks"
            if key == "k0":
                label = "no quantiser"
            for metric, score in value.items():
                if score is not None:
                    scores.setdefault(metric, {})[label] = float(score)
        elif key.startswith("validation/"):
            metric = key.removeprefix("validation/")
            scores.setdefault(metric, {})["all codebooks"] = float(value)
    if not scores:
        return None
    hours = None
    if "audio" in fields:
        hours = float(fields["audio"]) / 3600
    return CurvePoint(int(fields["step"]), hours, scores)


def point_at(points: list[CurvePoint], step: int | None) -> CurvePoint:
    """Return the point of a step, the last one if None; raise InputError if it is missing."""
    if step is None:
        return points[-1]
    for point in points:
        if point.step == step:
            return point
    steps = ", ".join(str(point.step) for point in points)
    raise InputError(f"the curve has no step {step}; its steps are {steps}")


def describe_curve(points: list[CurvePoint], chosen: CurvePoint, picture: str) -> dict[str, str]:
    """Return the section of a card on a run whose weights are those of the chosen point."""
    summary = f"{chosen.step:,} steps"
    if chosen.hours is not None:
        summary += f", {chosen.hours:.1f} hours of audio in crops"
    summary += "."
    if points[-1] is not chosen:
        summary += f" The run went on to step {points[-1].step:,}."
    return {
        "picture": picture,
        "summary": summary,
        "caption": "Scores on held-out recordings of the kind it was trained on.",
    }


def draw_curve(points: list[CurvePoint], chosen: CurvePoint) -> Any:
    """Return a figure of up to three metrics over hours of audio, or over steps."""
    metrics = _shown_metrics(points)
    by_hours = all(point.hours is not None for point in points)
    x_label = "steps"
    if by_hours:
        x_label = "hours of audio"
    figure = new_figure(len(metrics), 3.2)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        lines = _lines(points, metric, by_hours)
        for label in sorted(lines, key=_leading_number, reverse=True):
            axes.plot(*zip(*lines[label], strict=True), marker=".", label=label)
        if chosen is not points[-1]:
            axes.axvline(_abscissa(chosen, by_hours), linestyle=":", color="gray")
        axes.set_title(_TITLES.get(metric, metric), fontsize=10)
        axes.set_xlabel(x_label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def _shown_metrics(points: list[CurvePoint]) -> list[str]:
    metrics: list[str] = []  # in the order in which they occur
    for point in points:
        for metric in point.scores:
            if metric not in metrics:
                metrics.append(metric)
    known = [metric for metric in _TITLES if metric in metrics]
    others = [metric for metric in metrics if metric not in _TITLES]
    return (known + others)[:_MAX_PANELS]


def _lines(
    points: list[CurvePoint], metric: str, by_hours: bool
) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        for label, value in point.scores.get(metric, {}).items():
            lines.setdefault(label, []).append((_abscissa(point, by_hours), value))
    return lines


def _abscissa(point: CurvePoint, by_hours: bool) -> float:
    if by_hours and point.hours is not None:
        return point.hours
    return point.step


def _leading_number(label: str) -> int:
    first = label.split()[0]
    if first.isdigit():
        return int(first)
    return 0
