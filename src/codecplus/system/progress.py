"""Progress on stderr while something takes long."""

from collections.abc import Iterable
from typing import Any


def progress_bar(items: Iterable[Any] | None = None, *, shown: bool = True, **options: Any) -> Any:
    """Return a `tqdm` bar, which is shown only where stderr is a terminal.

    Args:
        items: to iterate over; None for a bar that is updated by hand.
        shown: whether to show it at all.
        options: those of `tqdm`, such as `total`, `desc` and `unit`.
    """
    from tqdm import tqdm

    disable = None  # tqdm looks for a terminal
    if not shown:
        disable = True
    return tqdm(items, disable=disable, **options)
