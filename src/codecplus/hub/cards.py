"""Writes the model card of a checkpoint.

A card is made from the configuration, measured results, a learning curve and facts that were
written by hand.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from codecplus.checkpoints import embedded_names, fingerprint, load_model
from codecplus.checkpoints.untrusted import MAX_CONFIG_SIZE, check_file
from codecplus.errors import FileFormatError, InputError, closest
from codecplus.hub.installation import in_repository
from codecplus.hub.learning_curve import describe_curve, draw_curve, point_at, read_curve
from codecplus.hub.measurements import Measurements
from codecplus.hub.pictures import save_figure
from codecplus.hub.staging import check_inside
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
        source: an embedded name, or a checkpoint's folder. The card of an embedded one is
            `model_cards/NAME.md` of the repository, with facts in `NAME.yaml`; that of a folder is
            its README.md, with facts in `card.yaml`.
        results: results folders of `codecplus eval`, each of which becomes a section.
        curve: a learning curve: `training/log.jsonl` of `codecplus train`, or JSON lines with
            `step`, `audio` (seconds in all crops), and for each number of codebooks `kN` the
            scores, such as `{"k12": {"speech/stoi": 0.8}}`.
        step: the step of the weights in the curve; by default its last one.
        dataset_id: the data set on the Hub of which local data is a copy; without one no
            `.eval_results` are written.
        card: the path to write to, instead of the usual one.

    Raises:
        InputError: for results of other weights, or a checkpoint that has no card.
        FileFormatError: for a curve or facts that cannot be read.
        MissingExtraError: without matplotlib.
    """
    is_embedded = str(source) in embedded_names()
    if is_embedded and card is None and not in_repository():
        raise InputError(
            f"the card of {source} is made in a checkout of the repository, "
            "installed with pip install -e"
        )
    name = Path(source).resolve().name
    model = load_model(source)
    path = card_path(source)
    facts_name = "card.yaml"
    if is_embedded:
        facts_name = f"{name}.yaml"
    if card is None:
        _refuse_links_out(path)
    facts = _read_facts(path.with_name(facts_name))
    if card is not None:
        path = Path(card)
    weights = fingerprint(model).hex()
    # All runs are checked before anything is written.
    runs = [
        Measurements(folder, str(source), name, weights, facts.get("domains")) for folder in results
    ]
    page = _Page(path.parent, name)
    for run in runs:
        page.add_results(run, dataset_id)
    if curve is not None:
        page.add_curve(curve, step)
    text = render_card(
        model,
        name,
        embedded=is_embedded,
        facts=facts,
        evaluation=page.sections,
        training=page.training,
        eval_results=page.entries,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    page.remove_others()
    return path


class _Page:
    """The measured part of a checkpoint's card: sections, and the files beside it.

    Attributes:
        sections: on results, one for each run.
        training: the section on training, if there is a curve.
        entries: results as metadata of the card.
    """

    def __init__(self, folder: Path, name: str):
        self.sections: list[dict[str, str]] = []
        self.training: dict[str, str] | None = None
        self.entries: list[Any] = []
        self._folder = folder
        self._name = name
        self._written: set[Path] = set()

    def add_results(self, run: Measurements, dataset_id: str | None) -> None:
        """Write the picture and results of a run, and describe it."""
        picture = self._save(run.draw(), run.task_file_name)
        self._written |= run.write_eval_results(self._folder, dataset_id)
        self.sections.append(run.section(picture))
        self.entries += run.metadata()

    def add_curve(self, curve: str | Path, step: int | None) -> None:
        """Draw and describe a learning curve up to a step."""
        points = read_curve(curve)
        chosen = point_at(points, step)
        picture = self._save(draw_curve(points, chosen), "training")
        self.training = describe_curve(points, chosen, picture)

    def _save(self, figure: Any, topic: str) -> str:
        """Save a picture; return its path, relative to the card."""
        picture = f"assets/{self._name}-{topic}.png"
        save_figure(figure, self._folder / picture)
        self._written.add(self._folder / picture)
        return picture

    def remove_others(self) -> None:
        """Remove pictures and results that an older card left behind."""
        for pattern in (f"assets/{self._name}-*.png", f".eval_results/{self._name}-*.yaml"):
            for file in self._folder.glob(pattern):
                if file not in self._written:
                    file.unlink()


def _refuse_links_out(card: Path) -> None:
    """Raise InputError if a card, its pictures or its results would be written out of its folder.

    The folder may be a stranger's, with links to files that nobody named.
    """
    parts = [card]
    for name in ("assets", ".eval_results"):
        folder = card.parent / name
        parts.append(folder)
        if folder.is_dir():
            parts += folder.iterdir()
    for part in parts:
        check_inside(part, card.parent)


def _read_facts(path: Path) -> dict[str, Any]:
    """Return facts written by hand; none if there is no such file."""
    if not path.is_file():
        return {}
    check_file(path, MAX_CONFIG_SIZE)
    try:
        facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FileFormatError(f"expected YAML in {path}: {reason}") from error
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
