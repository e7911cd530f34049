"""Results for a model repository: `.eval_results/*.yaml`, the older model-index, and a section of
the model card.

`.eval_results` names a data set on the Hub. Results on local data have none, so for them it is
written only when the caller says which data set it is; the model-index takes any name.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from codecplus.errors import InputError
from codecplus.eval.report.markdown import cell, domains, number, table
from codecplus.eval.results import Results
from codecplus.system.paths import atomic_path


def write_hub_files(results: Results, dataset_id: str | None = None) -> list[Path]:
    """Write hub/CODEC/ with the files for that model's repository, for every codec that is no
    anchor.
    """
    import yaml

    dataset_id = dataset_id or results.summary["task"].get("dataset")
    name, folders = file_name(results.summary["task"]["name"]), []
    for codec, summary in results.summary["codecs"].items():
        if summary["anchor"]:
            continue
        folder = results.path / "hub" / file_name(codec)
        entries = eval_result_entries(results, codec, dataset_id) if dataset_id else []
        if entries:
            _write(
                folder / ".eval_results" / f"{name}.yaml", yaml.safe_dump(entries, sort_keys=False)
            )
        _write(
            folder / "model-index.yaml",
            yaml.safe_dump(model_index(results, codec), sort_keys=False),
        )
        _write(folder / "card_section.md", card_section(results, codec))
        folders.append(folder)
    return folders


def eval_result_entries(results: Results, codec: str, dataset_id: str) -> list[dict[str, Any]]:
    """Return what a file in `.eval_results` holds: an entry per domain and metric with a value."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    task = results.summary["task"]
    revision = task.get("revision") if task.get("dataset") == dataset_id else None
    entries = [
        EvalResultEntry(
            dataset_id=dataset_id,
            dataset_revision=revision,
            task_id=f"{domain}_{metric}",
            value=round(float(entry["mean"]), 4),
            date=results.provenance["date"],
            notes=f"{codec}, {number(rate)} kbit/s measured{_interval(entry)}, codecplus eval",
        )
        for domain, metric, entry, rate in _values(results, codec)
    ]
    return eval_result_entries_to_yaml(entries)


def model_index(results: Results, codec: str) -> list[dict[str, Any]]:
    """The same as the `model-index` of a model card's metadata."""
    from huggingface_hub.repocard_data import eval_results_to_model_index

    entries = eval_results(results, codec)
    return eval_results_to_model_index(codec, entries) if entries else []


def eval_results(results: Results, codec: str, only: Iterable[str] | None = None) -> list[Any]:
    """The `EvalResult`s of a model card's metadata, one per domain and metric; of some domains
    `only`.
    """
    from huggingface_hub import EvalResult

    task = results.summary["task"]
    return [
        EvalResult(
            task_type="audio-to-audio",
            dataset_type=task.get("dataset") or task["name"],
            dataset_name=f"{task['name']} ({domain})",
            # Without it all domains would become one entry, under the name of the first.
            dataset_config=domain,
            dataset_revision=task.get("revision"),
            metric_type=metric,
            metric_name=f"{results.summary['metrics'][metric]['title']} at {number(rate)} kbit/s",
            metric_value=round(float(entry["mean"]), 4),
        )
        for domain, metric, entry, rate in _values(results, codec)
        if only is None or domain in only
    ]


def card_section(results: Results, codec: str) -> str:
    """The evaluation section of the model's card, in Markdown, with the anchors beside it."""
    if codec not in results.summary["codecs"]:
        raise InputError(
            f"there is no codec {codec!r} in the results; there are {', '.join(results.codecs)}"
        )
    family = codec.split("@")[0]
    names = [
        n for n, c in results.summary["codecs"].items() if c["anchor"] or n.split("@")[0] == family
    ]
    parts = [
        f"## Evaluation\n\nOn {results.summary['task']['name']}, "
        f"{results.provenance['data']['files']} recordings; means with 95 % intervals."
    ]
    for domain in domains(results):
        columns = {n: results.summary["codecs"][n]["domains"].get(domain) for n in names}
        metrics = [
            m
            for m in results.summary["metrics"]
            if any(c and m in c["metrics"] for c in columns.values())
        ]
        rows = [
            [
                name,
                number(part["payload_kbps"]),
                *(cell(part["metrics"].get(metric)) for metric in metrics),
            ]
            for name, part in columns.items()
            if part
        ]
        titles = [results.summary["metrics"][metric]["title"] for metric in metrics]
        parts.append(f"### {domain.capitalize()}\n\n" + table(["codec", "kbit/s", *titles], rows))
    return "\n\n".join(parts) + "\n"


def _values(results: Results, codec: str) -> list[tuple[str, str, dict[str, Any], float]]:
    parts = results.summary["codecs"][codec]["domains"]
    return [
        (domain, metric, entry, parts[domain]["payload_kbps"])
        for domain in domains(results)
        if domain in parts
        for metric, entry in parts[domain]["metrics"].items()
        if entry.get("mean") is not None
    ]


def _interval(entry: dict[str, Any]) -> str:
    """Return the interval of a mean as the end of a list; nothing where recordings are too few."""
    if entry.get("low") is None:
        return ""
    return f", 95 % interval {number(entry['low'], 4)} to {number(entry['high'], 4)}"


def file_name(name: str) -> str:
    """A name as the name of a file, without what a file system or a URL would stumble over."""
    return re.sub(r"[^A-Za-z0-9.@_-]+", "-", name).strip("-.") or "results"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
