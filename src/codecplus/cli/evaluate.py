"""The verbs `eval`, `compare`, `listening`, `webmushra` and `leaderboard`.

Light to import: scores, codecs and reports are imported when a verb runs.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from codecplus.cli.loading import quiet_transformers
from codecplus.cli.options import add_output, add_shared, add_verb
from codecplus.errors import InputError

_EFFORT = "A checkpoint's name may end in :effort=N, 0 to 3, to encode with that effort."


def add_verbs(verbs: Any) -> None:
    """Add the verbs to an argparse subparsers object."""
    _add_eval(verbs)
    _add_compare(verbs)
    _add_leaderboard(verbs)
    _add_listening(verbs)
    _add_webmushra(verbs)


def _add_eval(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "eval",
        evaluate,
        help="score codecs on a data set",
        description="Encode, decode and score recordings with each codec at each rate. A run that "
        f"was stopped goes on where it was. {_EFFORT}",
        examples=(
            "codecplus eval --model dac-16khz-live --codec opus --bitrate-per-channel 3 6 "
            "--data recordings/ -o results/",
            "codecplus eval --model my-codec --data vctk --metric stoi mel_distance -o results/",
        ),
    )
    _add_codecs(verb)
    _add_task(verb)
    add_output(verb, "folder of the results", required=True)
    add_shared(verb, "metric", note="or all; default: all but ViSQOL")
    verb.add_argument(
        "--segment-seconds",
        type=float,
        metavar="S",
        help="cut recordings that are longer than this",
    )
    verb.add_argument(
        "--segments-per-file",
        type=int,
        metavar="N",
        help="segments to keep of a recording that is cut",
    )
    add_shared(verb, "workers", note="to score; default: one per core")
    add_shared(verb, "dataset-id", "json", "quiet")


def _add_compare(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "compare",
        compare,
        help="compare two results of codecplus eval",
        description="Say which of two codecs is better in each metric, by paired bootstrap. "
        "A result is FOLDER, or FOLDER:CODEC for one codec in it.",
        examples=(
            "codecplus compare results/:opus@6 results/:dac-16khz-live@6",
            "codecplus compare before/ after/ --metric pesq_wb stoi --json",
        ),
    )
    verb.add_argument("first", metavar="A", help="a result, FOLDER or FOLDER:CODEC")
    verb.add_argument("second", metavar="B", help="the result to compare it with")
    add_shared(verb, "metric", note="default: all that both results have")
    add_shared(verb, "json")


def _add_leaderboard(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "leaderboard",
        leaderboard,
        help="merge results into a table or a sortable page",
        examples=(
            "codecplus leaderboard results/ -o board.html",
            "codecplus leaderboard results/ --json > leaderboard.json",
        ),
    )
    verb.add_argument("results", nargs="+", help="results folders, or folders that hold some")
    add_output(verb, "HTML page to write; it needs no server and no network")
    verb.add_argument(
        "--rank-by",
        metavar="METRIC",
        help="metric that ranks (default: pesq_wb for speech, else mel_distance)",
    )
    add_shared(verb, "json")


def _add_listening(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "listening",
        listening,
        help="turn the ratings of a listening test into MOS or MUSHRA scores",
        description="Screen the listeners of a test and compute MOS or MUSHRA scores with "
        "intervals.",
        examples=(
            "codecplus listening ratings.sqlite",
            "codecplus listening webMUSHRA/results/recordings/mushra.csv -o results/",
        ),
    )
    verb.add_argument(
        "ratings", help="a .sqlite, .jsonl or .csv file of ratings, or a folder of them"
    )
    add_output(verb, "results folder that gets the scores, for codecplus leaderboard")
    add_shared(verb, "json")


def _add_webmushra(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "webmushra",
        webmushra,
        help="prepare a listening test for webMUSHRA",
        description="Write the configuration and the sounds of a listening test for webMUSHRA. "
        f"{_EFFORT}",
        examples=(
            "codecplus webmushra --model dac-16khz-live --codec opus --bitrate-per-channel 6 12 "
            "--data recordings/ -o webMUSHRA/configs",
            "codecplus webmushra --codec opus mp3 --bitrate-per-channel 16 --data recordings/ "
            "--limit 6 -o test/",
        ),
    )
    _add_codecs(verb)
    _add_task(verb)
    add_output(verb, "folder of the test", required=True)


def _add_codecs(verb: argparse.ArgumentParser) -> None:
    """Add the options that say which codecs take part, at which rates, and where they run."""
    add_shared(
        verb, "model", action="extend", nargs="+", type=_checkpoint, dest="codecs", default=[]
    )
    add_shared(verb, "revision")
    add_shared(verb, "codec", type=_foreign_codec, default=[])
    add_shared(verb, "bitrate-per-channel", "device")


def _add_task(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="a folder, a parquet file, the JSON file of a task, or the name of a preset",
    )
    add_shared(verb, "limit")


def _checkpoint(name: str) -> str:
    """Return the name of a checkpoint; refuse the name of a codec that is none."""
    if _is_foreign(name):
        raise argparse.ArgumentTypeError(f"{name} is no checkpoint; name it with --codec")
    return name


def _foreign_codec(name: str) -> str:
    """Return the name of a codec that is no checkpoint; refuse any other name."""
    if _is_foreign(name):
        return name
    raise argparse.ArgumentTypeError(
        f"there is no codec {name!r}; choose from {', '.join(_foreign_codecs())} and stock:ID, "
        "and name checkpoints with --model"
    )


def _is_foreign(name: str) -> bool:
    from codecplus.eval.codecs import STOCK

    return name in _foreign_codecs() or name.startswith(STOCK)


def _foreign_codecs() -> list[str]:
    """Return the names of the codecs that are no checkpoints, registered ones included."""
    from importlib.metadata import entry_points

    from codecplus.eval.codecs import CODECS, ENTRY_POINTS

    return [*CODECS, *(point.name for point in entry_points(group=ENTRY_POINTS))]


def _check_codecs(args: argparse.Namespace) -> None:
    if not args.codecs:
        raise InputError("expected at least one --model or --codec")


# ---- what the verbs do


def evaluate(args: argparse.Namespace) -> None:
    """Score codecs; print the path of the report, or the summary as JSON."""
    _check_codecs(args)
    from codecplus.eval.config import EvaluationConfig
    from codecplus.eval.results import load_results
    from codecplus.eval.runner import run_evaluation

    quiet_transformers()  # its bars would stand between those of the stages
    config = EvaluationConfig(
        codecs=args.codecs,
        revision=args.revision,
        bitrates=args.bitrate_per_channel,
        data=args.data,
        out=args.output,
        metrics=args.metric,
        limit=args.limit,
        segment_seconds=args.segment_seconds,
        segments_per_file=args.segments_per_file,
        device=args.device,
        workers=args.workers,
        progress=not args.quiet,
    )
    folder = run_evaluation(config)
    if os.environ.get("RANK", "0") != "0":  # one of several processes: the first one reports
        return
    if args.dataset_id:
        from codecplus.eval.report import write_hub_files

        write_hub_files(load_results(folder), args.dataset_id)
    if args.json:
        _print_json(load_results(folder).summary)
    else:
        print(folder / "report.md")


def compare(args: argparse.Namespace) -> None:
    """Compare two results; print a table or JSON."""
    from codecplus.eval.comparison import compare as compare_results
    from codecplus.eval.comparison import comparison_table

    comparisons = compare_results(args.first, args.second, metrics=args.metric)
    if args.json:
        _print_json([comparison.as_dict() for comparison in comparisons])
    else:
        print(comparison_table(comparisons))


def listening(args: argparse.Namespace) -> None:
    """Analyse ratings; print the scores, and write them into a results folder if one is named."""
    from codecplus.eval.listening import (
        analyse,
        listening_report,
        load_ratings,
        write_listening,
    )

    results = analyse(load_ratings(args.ratings))
    if args.json:
        _print_json({method: result.as_dict() for method, result in results.items()})
    else:
        print(listening_report(results))
    if args.output is not None:
        path = write_listening(results, args.output)
        print(path, file=sys.stderr if args.json else sys.stdout)


def webmushra(args: argparse.Namespace) -> None:
    """Write a listening test for webMUSHRA and print its path."""
    _check_codecs(args)
    from codecplus.eval.codecs import resolve_codecs
    from codecplus.eval.stimuli import export_webmushra
    from codecplus.eval.tasks import load_task

    quiet_transformers()
    task = load_task(args.data, limit=args.limit)
    codecs = resolve_codecs(
        args.codecs, args.bitrate_per_channel, args.device, revision=args.revision
    )
    print(export_webmushra(task.name, task, codecs, args.output))


def leaderboard(args: argparse.Namespace) -> None:
    """Merge results; print a table for each kind of audio, or JSON, and write a page."""
    from codecplus.eval.report.leaderboard import build_leaderboard

    merged = build_leaderboard(args.results, html=args.output, rank_by=args.rank_by)
    if args.json:
        _print_json(merged)
        return
    for board in merged["boards"]:
        print(f"\n{board['task']}: {board['kind']}\n")
        print(_board_table(board))
    if merged["boards"] and args.output is None:
        print("\n" + merged["boards"][0]["rule"], file=sys.stderr)


def _board_table(board: dict[str, Any]) -> str:
    from codecplus.eval.report.leaderboard import band_name
    from codecplus.eval.report.markdown import number, table

    metric = board["primary"]
    lines = []
    for entry in board["entries"]:
        band = "–" if entry["band"] is None else band_name(entry["band"])
        if entry["rank"]:
            rank = str(entry["rank"])
        elif entry["failures"]:
            rank = "failed"
        else:
            rank = "–"
        rate = number(entry["payload_kbps_per_channel"])
        mean = number(entry["metrics"].get(metric, {}).get("mean"))
        lines.append([band, rank, entry["codec"], rate, str(entry["failures"]), mean])
    header = ["band", "rank", "codec", "kbit/s per channel", "failures", metric]
    return table(header, lines)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False, default=_plain))


def _plain(value: Any) -> Any:
    """Return a path or a NumPy scalar as a type that JSON has."""
    if isinstance(value, Path):
        return str(value)
    return value.item()
