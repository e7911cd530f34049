"""The leaderboard as a folder for a static Space: a page, its data, and the card of the Space."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from codecplus.errors import CodecPlusError, InputError
from codecplus.eval.report.leaderboard import build_leaderboard, results_folders
from codecplus.eval.report.submission import check_results
from codecplus.eval.results import load_results
from codecplus.system.paths import atomic_path

_CARD = """\
---
title: Audio codecs
emoji: 📊
colorFrom: blue
colorTo: green
sdk: static
app_file: index.html
short_description: Audio codecs on the same recordings, ranked by paired tests
{datasets}tags:
  - audio
  - codec
  - leaderboard
---

Built by `codecplus leaderboard` from results that `codecplus submit` pushed{sources}. To take part,
evaluate your codec on the same recordings and submit the results; the page is built again from all
of them. `leaderboard.json` holds the same for programs.
"""


def sound_submissions(paths: Iterable[str | Path]) -> tuple[list[Path], dict[Path, str]]:
    """Return the results folders among and inside the paths that hold together.

    The others come with the reason why each was left out: somebody else wrote them, and one bad
    submission must not take the page away.

    Raises:
        InputError: if there are no results at all.
    """
    good = []
    refused = {}
    for folder in results_folders(paths):
        try:
            check_results(load_results(folder))
            json.dumps(build_leaderboard([folder]), allow_nan=False)
            good.append(folder)
        except CodecPlusError as error:
            refused[folder] = str(error)
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
            refused[folder] = f"its files are damaged ({type(error).__name__}: {error})"
    return good, refused


def write_space(
    paths: Iterable[str | Path],
    folder: str | Path,
    *,
    datasets: Iterable[str] = (),
    links: Mapping[Path, str] | None = None,
    rank_by: str | None = None,
) -> list[Path]:
    """Write the files of a static Space.

    Args:
        paths: results folders that hold together, see `sound_submissions`.
        folder: where the files go; it is made if it does not exist.
        datasets: the repositories that the results come from.
        links: addresses of results folders.
        rank_by: as for `build_leaderboard`.

    Returns:
        The files.

    Raises:
        InputError: without results.
    """
    paths = list(paths)
    if not paths:
        raise InputError("there are no results that hold together, so there is no leaderboard")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    data = folder / "leaderboard.json"
    build_leaderboard(paths, html=page, json=data, rank_by=rank_by, clips=0, links=links)
    card = folder / "README.md"
    with atomic_path(card) as temporary:
        temporary.write_text(_card(list(datasets)), encoding="utf-8")
    return [page, data, card]


def _card(datasets: list[str]) -> str:
    listed = ""
    sources = ""
    if datasets:
        listed = "datasets:\n" + "".join(f"  - {name}\n" for name in datasets)
        sources = " to " + ", ".join(f"[{name}](/datasets/{name})" for name in datasets)
    return _CARD.format(datasets=listed, sources=sources)
