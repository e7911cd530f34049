"""The verbs `eval` and `leaderboard` of the command line. Light to import: the work is imported
when it is done.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_verbs(verbs: Any) -> None:
    """Add the two verbs to an argparse subparsers object; each sets `run`, a function of the parsed
    arguments.
    """
    _add_eval(verbs)
    _add_leaderboard(verbs)


def _add_eval(verbs: Any) -> None:
    verb = verbs.add_parser(
        "eval",
        help="score codecs on a data set, or compare two results",
        description="Encode, decode and score; a run that was stopped goes on where it was.",
    )
    names = "opus, opus-vbr, mp3, aac, a checkpoint's name, Hub id or folder (:effort=N behind it), or stock:ID"
    verb.add_argument("--codec", action="extend", nargs="+", default=[], metavar="NAME", help=names)
    verb.add_argument(
        "--bitrate", nargs="+", type=float, default=[], metavar="KBPS", help="kbit/s per channel"
    )
    verb.add_argument(
        "--data",
        metavar="DATA",
        help="a folder, a parquet file, a task's JSON file, or a preset's name",
    )
    verb.add_argument("--out", metavar="FOLDER", help="folder of the results")
    verb.add_argument(
        "--metric", nargs="+", metavar="NAME", help="metrics, or all; default: all but ViSQOL"
    )
    verb.add_argument("--limit", type=int, metavar="N", help="recordings at most")
    verb.add_argument(
        "--segment-seconds", type=float, metavar="S", help="cut recordings longer than this"
    )
    verb.add_argument(
        "--segments-per-file", type=int, metavar="N", help="segments kept of a cut recording"
    )
    verb.add_argument("--device", help="where neural codecs run (default: CUDA if there is any)")
    verb.add_argument(
        "--workers", type=int, metavar="N", help="processes that score (default: one per core)"
    )
    verb.add_argument(
        "--dataset-id", metavar="ID", help="the Hub data set that local data is a copy of"
    )
    verb.add_argument("--quiet", action="store_true", help="no progress bars")
    verb.add_argument(
        "--listening",
        metavar="RATINGS",
        help="MOS and MUSHRA of people's ratings; into OUT, if given",
    )
    verb.add_argument(
        "--webmushra",
        metavar="FOLDER",
        help="write a listening test for webMUSHRA instead of scoring",
    )
    verb.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="compare two results: FOLDER or FOLDER:CODEC"
    )
    verb.set_defaults(run=_run_eval)


def _add_leaderboard(verbs: Any) -> None:
    verb = verbs.add_parser("leaderboard", help="merge results into a sortable page",
                            description="Merge results folders into a leaderboard.")  # fmt: skip
    verb.add_argument("results", nargs="+", help="results folders, or folders that hold some")
    verb.add_argument("--html", metavar="FILE", help="a page that needs no server and no network")
    verb.add_argument("--json", metavar="FILE", help="the same as data")
    verb.add_argument(
        "--rank-by", metavar="METRIC", help="default: pesq_wb for speech, else mel_distance"
    )
    verb.set_defaults(run=_run_leaderboard)


def _run_eval(args: argparse.Namespace) -> None:
    from codecplus.errors import InputError

    if args.compare:
        from codecplus.eval.comparison import compare, comparison_table

        print(comparison_table(compare(*args.compare, metrics=args.metric)))
        return
    if args.listening:
        from codecplus.eval.listening import (
            analyse,
            listening_report,
            load_ratings,
            write_listening,
        )

        results = analyse(load_ratings(args.listening))
        print(listening_report(results))
        if args.out:
            print(write_listening(results, args.out))
        return
    needed = ("codec", "data") if args.webmushra else ("codec", "data", "out")
    missing = [f"--{name}" for name in needed if not getattr(args, name)]
    if missing:
        raise InputError(
            f"eval needs {' and '.join(missing)}, or --compare A B, or --listening RATINGS"
        )
    if args.webmushra:
        _export_webmushra(args)
        return
    from transformers.utils import logging

    from codecplus.eval.config import EvaluationConfig
    from codecplus.eval.results import load_results
    from codecplus.eval.runner import run_evaluation

    logging.disable_progress_bar()  # one for each load of a model, between the bars of the stages
    config = EvaluationConfig(
        codecs=args.codec, bitrates=args.bitrate, data=args.data, out=args.out, metrics=args.metric, limit=args.limit,
        segment_seconds=args.segment_seconds, segments_per_file=args.segments_per_file, device=args.device,
        workers=args.workers, progress=not args.quiet,
    )  # fmt: skip
    out = run_evaluation(config)
    if _is_first_process():
        if args.dataset_id:
            from codecplus.eval.report import write_hub_files

            write_hub_files(load_results(out), args.dataset_id)
        print(out / "report.md")


def _export_webmushra(args: argparse.Namespace) -> None:
    from codecplus.eval.codecs import resolve_codecs
    from codecplus.eval.stimuli import export_webmushra
    from codecplus.eval.tasks import load_task

    task = load_task(args.data, limit=args.limit)
    print(
        export_webmushra(
            task.name, task, resolve_codecs(args.codec, args.bitrate, args.device), args.webmushra
        )
    )


def _run_leaderboard(args: argparse.Namespace) -> None:
    from codecplus.eval.report.leaderboard import band_name, build_leaderboard
    from codecplus.eval.report.markdown import number, table

    board = build_leaderboard(args.results, html=args.html, json=args.json, rank_by=args.rank_by)
    for part in board["boards"]:
        rows = []
        for entry in part["entries"]:
            place = entry["rank"] or ("failed" if entry["failures"] else "–")
            mean = entry["metrics"].get(part["primary"], {}).get("mean")
            band = "–" if entry["band"] is None else band_name(entry["band"])
            rate = number(entry["payload_kbps_per_channel"])
            rows.append(
                [band, str(place), entry["codec"], rate, str(entry["failures"]), number(mean)]
            )
        print(f"\n{part['task']}: {part['kind']}\n")
        print(
            table(
                ["band", "rank", "codec", "kbit/s per channel", "failures", part["primary"]], rows
            )
        )
    if board["boards"] and not (args.html or args.json):
        print("\n" + board["boards"][0]["rule"], file=sys.stderr)


def _is_first_process() -> bool:
    import os

    return int(os.environ.get("RANK", "0")) == 0
