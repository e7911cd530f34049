"""Results that are handed on to others: what must be true of them, and the files that go along."""

import shutil
from pathlib import Path

from codecplus.errors import FileFormatError
from codecplus.eval.codecs.base import hash_of
from codecplus.eval.results import COSTS, PROVENANCE, ROWS, SUMMARY, Results, Row, summarize

FILES = (ROWS, SUMMARY, COSTS, PROVENANCE, "report.md")


def check_results(results: Results) -> None:
    """Check that results hold together: nobody can recompute them from their scores alone.

    Every codec has the same clips, the summary follows from the rows, and the hash of each codec is
    that of its settings.

    Raises:
        FileFormatError: with the first thing that does not fit.
    """
    by_codec: dict[str, list[Row]] = {}
    for row in results.rows:
        by_codec.setdefault(row.codec, []).append(row)
    if set(by_codec) != set(results.summary["codecs"]):
        raise FileFormatError(f"{results.path / SUMMARY} has other codecs than {ROWS}")
    first = [row.clip_hash for row in by_codec[results.codecs[0]]]
    summaries = results.summary["codecs"]
    counted_here = [name for name, entry in summaries.items() if entry["payload_counted_here"]]
    recomputed = summarize(results.rows, results.summary["metrics"], counted_here)
    for codec, rows in by_codec.items():
        summary = results.summary["codecs"][codec]
        if [row.clip_hash for row in rows] != first:
            raise FileFormatError(f"{codec} has other clips than {results.codecs[0]}")
        for key, value in recomputed[codec].items():
            if summary.get(key) != value:
                raise FileFormatError(
                    f"the {key} of {codec} in {results.path / SUMMARY} do not follow from {ROWS}; "
                    "run codecplus eval again"
                )
        hashes = {row.codec_hash for row in rows}
        if hashes != {hash_of(codec, summary["config"])} or hashes != {summary["hash"]}:
            raise FileFormatError(f"the hash of {codec} is not that of its settings")
    if not results.provenance.get("command"):
        raise FileFormatError(
            f"{results.path / PROVENANCE} names no command; run codecplus eval again, with this "
            "version"
        )


def submission_name(results: Results) -> str:
    """Return the folder of a submission: its set of clips, and its date and content."""
    date = results.provenance["date"][:10]
    content = hash_of("rows", {"rows": (results.path / ROWS).read_text(encoding="utf-8")})
    return f"{results.clip_set}/{date}-{content}"


def write_submission(results: Results, folder: str | Path) -> Path:
    """Copy what others need into a folder, below its name; return where it lies.

    Audio and caches stay: the recordings may belong to somebody.
    """
    check_results(results)
    target = Path(folder) / submission_name(results)
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        source = results.path / name
        if source.is_file():
            shutil.copyfile(source, target / name)
    return target
