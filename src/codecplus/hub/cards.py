"""The model card of a checkpoint, from its configuration, measured results, a learning curve and
facts written by hand.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from codecplus.checkpoints import embedded_names, fingerprint, load_model
from codecplus.errors import FileFormatError, InputError, closest
from codecplus.hub.installation import in_repository
from codecplus.hub.learning_curve import describe_curve, draw_curve, point_at, read_curve
from codecplus.hub.measurements import Measurements
from codecplus.hub.pictures import save_figure
from codecplus.hub.template import card_path, render_card
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

    Args:
        source: an embedded name, whose card lies in `model_cards/` of the repository, or a
            checkpoint's folder, where it becomes README.md. Facts are read from `NAME.yaml` beside
            the one, `card.yaml` beside the other.
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
            f"the card of {source} is made in a checkout of the repository, "
            "installed with pip install -e"
        )
    name = Path(source).resolve().name
    model = load_model(source)
    usual_path = card_path(source)
    path = usual_path if card is None else Path(card)
    facts = _read_facts(usual_path.with_name(f"{name}.yaml" if embedded else "card.yaml"))
    weights = fingerprint(model).hex()
    # All runs are checked before anything is written.
    runs = [
        Measurements(folder, str(source), name, weights, facts.get("domains")) for folder in results
    ]
    sections = []
    entries = []
    written: set[Path] = set()
    for run in runs:
        picture = f"assets/{name}-{run.task_file_name}.png"
        save_figure(run.draw(), path.parent / picture)
        written.add(path.parent / picture)
        written |= run.write_eval_results(path.parent, dataset_id)
        sections.append(run.section(picture))
        entries += run.metadata()
    training = None
    if curve is not None:
        points = read_curve(curve)
        chosen = point_at(points, step)
        picture = f"assets/{name}-training.png"
        save_figure(draw_curve(points, chosen), path.parent / picture)
        written.add(path.parent / picture)
        training = describe_curve(points, chosen, picture)
    text = render_card(
        model,
        name,
        embedded=embedded,
        facts=facts,
        evaluation=sections,
        training=training,
        eval_results=entries,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    _remove_others(path.parent, name, written)
    return path


def _remove_others(folder: Path, name: str, written: set[Path]) -> None:
    """Remove pictures and results that an older card left behind."""
    for pattern in (f"assets/{name}-*.png", f".eval_results/{name}-*.yaml"):
        for file in folder.glob(pattern):
            if file not in written:
                file.unlink()


def _read_facts(path: Path) -> dict[str, Any]:
    """Return facts written by hand; none if there is no such file."""
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
            hint = closest(str(key), _FACTS)
            raise FileFormatError(
                f"{path} has an unknown field {key!r}; did you mean {' or '.join(hint)}?"
            )
    return facts
