"""What people read: a Markdown report, plots, files for model repositories, and the leaderboard."""

from codecplus.errors import MissingExtraError
from codecplus.eval.report.leaderboard import build_leaderboard
from codecplus.eval.report.markdown import markdown_report
from codecplus.eval.report.model_repository import card_section, write_hub_files
from codecplus.eval.report.plots import write_plots
from codecplus.eval.results import Results
from codecplus.system.paths import atomic_path

__all__ = [
    "build_leaderboard",
    "card_section",
    "markdown_report",
    "write_hub_files",
    "write_plots",
    "write_report",
]


def write_report(results: Results) -> None:
    """Write report.md, plots/ and hub/ into the results folder."""
    try:
        plots = write_plots(results)
        note = None
    except MissingExtraError as error:
        plots, note = [], str(error)
    with atomic_path(results.path / "report.md") as temporary:
        temporary.write_text(markdown_report(results, plots, note), encoding="utf-8")
    write_hub_files(results)
