"""Pictures of a card: figures of matplotlib, saved small."""

from pathlib import Path
from typing import Any

from codecplus.errors import MissingExtraError
from codecplus.system.paths import atomic_path

_DPI = 80  # pictures stay below 100 KB


def new_figure(panels: int, height: float) -> Any:
    """Return a figure with room for a number of panels side by side.

    Raises MissingExtraError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "a card's pictures need matplotlib: pip install 'codecplus[eval]'"
        ) from error
    return Figure(figsize=(4.2 * panels, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as a PNG, its folder too; equal figures give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png", metadata={"Software": None})
