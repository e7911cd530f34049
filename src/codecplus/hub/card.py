"""The model card of a checkpoint, from its configuration, measured results, a learning curve and
facts written by hand.

No figure without its run: results count only if they were measured with the very weights of the
checkpoint, and the card says with which run, on what, and how to repeat it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from codecplus.checkpoints import embedded_names, fingerprint, load_model
from codecplus.errors import FileFormatError, InputError, MissingExtraError
from codecplus.eval.report.markdown import cell, domains, number, table
from codecplus.eval.report.model_repository import eval_result_entries, eval_results, file_name
from codecplus.eval.report.plots import draw_panel, panels_of
from codecplus.eval.results import Results, load_results
from codecplus.hub.upload import card_path, in_repository, render_card
from codecplus.system.paths import atomic_path

_FACTS = (
    "licence",
    "tags",
    "summary",
    "training",
    "data",
    "domains",
    "measured_on",
    "limits",
    "base_model",
)
_METRICS = (
    "pesq_wb",
    "stoi",
    "visqol_speech",
    "visqol_audio",
    "si_sdr",
    "stft_distance",
    "mel_distance",
)
_DPI = 80  # pictures stay below 100 KB


def write_card(
    source: str | Path,
    results: Iterable[str | Path] = (),
    *,
    curve: str | Path | None = None,
    step: int | None = None,
    dataset_id: str | None = None,
    card: str | Path | None = None,
) -> Path:
    """Write the card of a checkpoint with its pictures and `.eval_results`; return its path.

    Args: source: an embedded name, whose card lies in `model_cards/` of the repository, or a
        checkpoint's folder, where
            it becomes README.md. Facts are read from `NAME.yaml` beside the one, `card.yaml` beside
            the other.
        results: results folders of `codecplus eval`, each of which becomes a section.
        curve: a learning curve: `training/log.jsonl` of `codecplus train`; or JSON lines with
            `step`, `audio` (seconds heard), and per number of codebooks `kN` the scores, such as
            `{"k12": {"speech/stoi": 0.8}}`.
        step: the step of the curve that the weights are from; its last by default.
        dataset_id: the data set on the Hub that local data is a copy of; without one there are no
        `.eval_results`.
        card: where to write instead.

    Raises:
        InputError: for results of other weights, or a checkpoint that has no card.
        FileFormatError: for a curve or facts that cannot be read.
        MissingExtraError: without matplotlib.
    """
    embedded = str(source) in embedded_names()
    if embedded and card is None and not in_repository():
        raise InputError(
            f"the card of {source} is made in a checkout of the repository, installed with pip install -e"
        )
    name = Path(source).resolve().name
    model, path = load_model(source), Path(card) if card else card_path(source)
    facts = _read_facts(card_path(source).with_name(f"{name}.yaml" if embedded else "card.yaml"))
    mark = fingerprint(model).hex()
    runs = [load_results(folder) for folder in results]
    own = [_own_rows(run, mark, str(source)) for run in runs]
    sections, entries = [], []
    written: set[Path] = set()
    for run, rows in zip(runs, own, strict=True):
        wanted = [d for d in domains(run) if d in facts.get("domains", [d]) and d != "all"]
        if not wanted:
            raise InputError(
                f"{run.path} has none of the domains {', '.join(facts['domains'])} that the facts name"
            )
        picture = f"assets/{name}-{file_name(run.summary['task']['name'])}.png"
        written.add(_save(_draw_results(run, rows, wanted, name), path.parent / picture))
        sections.append(_section(run, rows, wanted, name, mark, picture))
        entries += [entry for row in rows for entry in eval_results(run, row, wanted)]
        written |= _write_eval_results(run, rows, path.parent, name, dataset_id)
    training = None
    if curve is not None:
        points = _read_curve(curve)
        training = _describe_curve(points, _chosen(points, step), f"assets/{name}-training.png")
        written.add(
            _save(_draw_curve(points, _chosen(points, step)), path.parent / training["picture"])
        )
    parts = {"facts": facts, "evaluation": sections, "training": training, "eval_results": entries}
    text = render_card(model, name, embedded=embedded, **parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    for pattern in ("assets/{}-*.png", ".eval_results/{}-*.yaml"):  # what an older card left behind
        for file in path.parent.glob(pattern.format(name)):
            if file not in written:
                file.unlink()
    return path


def _read_facts(path: Path) -> dict[str, Any]:
    """Facts written by hand; none if there is no such file."""
    if not path.is_file():
        return {}
    try:
        facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise FileFormatError(f"{path} is no YAML: {error}") from error
    if not isinstance(facts, dict):
        raise FileFormatError(
            f"expected {path} to hold fields and their values, got {type(facts).__name__}"
        )
    for key in facts:
        if key not in _FACTS:
            hint = difflib.get_close_matches(str(key), _FACTS, n=1) or _FACTS
            raise FileFormatError(
                f"{path} has an unknown field {key!r}; did you mean {' or '.join(hint)}?"
            )
    return facts


# ---- results


def _own_rows(run: Results, mark: str, source: str) -> list[str]:
    """Names of the codecs in a run that are these weights, from the highest rate to the lowest."""
    codecs = run.summary["codecs"]
    own = [name for name, codec in codecs.items() if codec["config"].get("model") == mark]
    if not own:
        others = sorted(
            {codec["config"]["model"] for codec in codecs.values() if "model" in codec["config"]}
        )
        raise InputError(
            f"{run.path} holds no results of {source}, whose weights are {mark}; it has those of "
            f"{', '.join(others) or 'no checkpoint'}; run codecplus eval --model {source} with these weights"
        )
    return sorted(own, key=lambda name: -_rate(codecs[name]))


def _rate(codec: dict[str, Any]) -> float:
    return codec["domains"]["all"]["payload_kbps_per_channel"] or 0.0


def _section(
    run: Results, own: list[str], wanted: list[str], name: str, mark: str, picture: str
) -> dict[str, str]:
    task, codecs = run.summary["task"], run.summary["codecs"]
    clips = {
        (row.source, row.clip): row.seconds
        for row in run.rows
        if row.codec == own[0] and row.domain in wanted
    }
    summary = (
        f"{len({source for source, _ in clips})} recordings, {sum(clips.values()) / 60:.1f} minutes. Means over "
        "recordings with 95 % bootstrap intervals; rates are measured, all bits of the payload over all seconds, per "
        "channel."
    )
    others = _others(run)
    tables = []
    for domain in wanted:
        shown = [n for n in (*own, *others) if domain in codecs[n]["domains"]]
        metrics = [
            m
            for m in _metrics(run, domain)
            if any(m in codecs[n]["domains"][domain]["metrics"] for n in own)
        ]
        rows = []
        for codec in shown:
            part = codecs[codec]["domains"][domain]
            effort = codecs[codec]["config"].get("effort")
            mine = f"**{name}**, effort {effort}" if effort else f"**{name}**"
            label = mine if codec in own else codec.split("@")[0]
            cells = [cell(part["metrics"].get(metric)) for metric in metrics]
            rows.append([label, number(part["payload_kbps_per_channel"]), *cells])
        header = [
            "codec",
            "kbit/s",
            *(_titled(run.summary["metrics"][metric]) for metric in metrics),
        ]
        tables.append(
            (f"### {domain.capitalize()}\n\n" if len(wanted) > 1 else "") + table(header, rows)
        )
    data = (
        f"data set `{task['dataset']}` at `{task.get('revision')}`"
        if task.get("dataset")
        else f"`{task['name']}`"
    )
    command = (
        f"codecplus eval --model {name} --codec opus --bitrate-per-channel ... --data FOLDER "
        "-o results/"
    )
    stated = (
        f"The run: {run.provenance['date'][:10]}, codecplus {run.provenance['versions']['codecplus']}, weights "
        f"`{mark[:16]}`, {data}, whose audio has the hash `{run.clip_set}`. Repeat it with `{command}`."
    )
    return {"summary": summary, "picture": picture, "tables": "\n\n".join(tables), "run": stated}


def _others(run: Results) -> list[str]:
    """Codecs to compare with, by name and falling rate; other checkpoints of ours have cards of
    their own.
    """
    codecs = run.summary["codecs"]
    found = [
        name
        for name, codec in codecs.items()
        if not codec["anchor"] and "model" not in codec["config"]
    ]
    return sorted(found, key=lambda name: (name.split("@")[0], -_rate(codecs[name])))


def _metrics(run: Results, domain: str) -> list[str]:
    known = run.summary["metrics"]
    return [
        m for m in _METRICS if m in known and (domain in known[m]["domains"] or domain == "unknown")
    ]


def _titled(metric: dict[str, Any]) -> str:
    arrow = {True: " ↑", False: " ↓", None: ""}[metric["higher_is_better"]]
    return metric["title"] + (f" ({metric['unit']})" if metric["unit"] else "") + arrow


def _write_eval_results(
    run: Results, own: list[str], folder: Path, name: str, dataset_id: str | None
) -> set[Path]:
    path = folder / ".eval_results" / f"{name}-{file_name(run.summary['task']['name'])}.yaml"
    dataset_id = dataset_id or run.summary["task"].get("dataset")
    if not dataset_id:
        return set()
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [entry for row in own for entry in eval_result_entries(run, row, dataset_id)]
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
    return {path}


# ---- the learning curve


@dataclass(frozen=True)
class _Point:
    """A step of a run, the audio heard until then if it is known, and scores: metric -> label ->
    value.
    """

    step: int
    hours: float | None
    scores: dict[str, dict[str, float]]


def _read_curve(path: str | Path) -> list[_Point]:
    """The points of a curve in their order; of a step that was run again, the later one."""
    points: dict[int, _Point] = {}
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                fields = json.loads(line)
                scores = _curve_scores(fields)
                if scores:
                    hours = float(fields["audio"]) / 3600 if "audio" in fields else None
                    points[int(fields["step"])] = _Point(int(fields["step"]), hours, scores)
    except OSError as error:
        raise InputError(f"cannot open the curve {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(
            f"expected {path} to hold JSON lines with step and scores: {error}"
        ) from error
    if not points:
        raise FileFormatError(
            f"{path} is no learning curve: no line has scores of held-out recordings"
        )
    return [points[step] for step in sorted(points)]


def _curve_scores(fields: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Metric -> label of the line -> value."""
    scores: dict[str, dict[str, float]] = {}
    for key, value in fields.items():
        if key[:1] == "k" and key[1:].isdigit():
            for metric, number_ in value.items():
                if number_ is not None:
                    label = f"{key[1:]} codebooks" if key != "k0" else "no quantiser"
                    scores.setdefault(metric, {})[label] = float(number_)
        elif key.startswith("validation/"):
            scores.setdefault(key.removeprefix("validation/"), {})["all codebooks"] = float(value)
    return scores


def _chosen(points: list[_Point], step: int | None) -> _Point:
    found = (
        points[-1]
        if step is None
        else next((point for point in points if point.step == step), None)
    )
    if found is None:
        raise InputError(
            f"the curve has no step {step}; its steps are {', '.join(str(p.step) for p in points)}"
        )
    return found


def _describe_curve(points: list[_Point], chosen: _Point, picture: str) -> dict[str, str]:
    heard = "" if chosen.hours is None else f", {chosen.hours:.1f} hours of audio in crops"
    later = "" if points[-1] is chosen else f" The run went on to step {points[-1].step:,}."
    return {
        "picture": picture,
        "summary": f"{chosen.step:,} steps{heard}.{later}",
        "caption": "Scores on held-out recordings of the kind it was trained on.",
    }


def _draw_curve(points: list[_Point], chosen: _Point) -> Any:
    metrics = dict.fromkeys(metric for point in points for metric in point.scores)
    order = list(_CURVES)
    shown = sorted(
        metrics, key=lambda metric: order.index(metric) if metric in order else len(order)
    )[:3]
    by_hours = all(point.hours is not None for point in points)
    figure = _figure_class()(figsize=(4.2 * len(shown), 3.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        lines: dict[str, list[tuple[float, float]]] = {}
        for point in points:
            for label, value in point.scores.get(metric, {}).items():
                lines.setdefault(label, []).append((point.hours if by_hours else point.step, value))  # pyright: ignore
        for label, line in sorted(lines.items(), key=lambda item: -_leading_number(item[0])):
            axes.plot(*zip(*line, strict=True), marker=".", label=label)
        if chosen is not points[-1]:
            axes.axvline(chosen.hours if by_hours else chosen.step, linestyle=":", color="gray")
        axes.set_title(_CURVES.get(metric, metric), fontsize=10)
        axes.set_xlabel("hours of audio" if by_hours else "steps")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


_CURVES = {
    "speech/pesq": "PESQ-wb of speech, higher is better",
    "speech/stoi": "STOI of speech, higher is better",
    "speech/mel": "mel loss of speech, lower is better",
    "speech/sisdr": "SI-SDR of speech, dB, higher is better",
    "pesq_wb": "PESQ-wb, higher is better",
    "stoi": "STOI, higher is better",
    "mel": "mel loss, lower is better",
    "snr": "SNR, dB, higher is better",
}


def _leading_number(label: str) -> int:
    first = label.split()[0]
    return int(first) if first.isdigit() else 0


# ---- pictures


def _draw_results(run: Results, own: list[str], wanted: list[str], name: str) -> Any:
    """Rate against quality: up to three metrics of a single domain, else one or two of each."""
    if len(wanted) == 1:
        metrics = _metrics(run, wanted[0])
        panels = [(wanted[0], metric) for metric in dict.fromkeys([*metrics[:2], *metrics[-1:]])]
    else:
        panels = [
            ("speech", metric) for metric in _metrics(run, "speech")[:1] if "speech" in wanted
        ]
        panels += [
            (domain, _metrics(run, domain)[-1]) for domain in wanted if _metrics(run, domain)
        ]
        panels = list(dict.fromkeys(panels))
    if not panels:
        raise InputError(
            f"{run.path} has none of the metrics that a card shows: {', '.join(_METRICS)}"
        )
    figure = _figure_class()(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    names = {
        row.split("@")[0]: name if row in own else row.split("@")[0]
        for row in (*own, *_others(run))
    }
    for axes, (domain, metric) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        families = panels_of(run, metric).get(domain, {})
        shown = {names[family]: points for family, points in families.items() if family in names}
        described = run.summary["metrics"][metric]
        better = "higher" if described["higher_is_better"] else "lower"
        draw_panel(axes, shown, described, title=f"{domain}, {better} is better")
        axes.grid(alpha=0.3)
    return figure


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "a card's pictures need matplotlib: pip install 'codecplus[eval]'"
        ) from error
    return Figure


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png", metadata={"Software": None})
    return path
