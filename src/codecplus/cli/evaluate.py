"""The verbs `eval`, `compare`, `listening`, `webmushra` and `leaderboard`.

Light to import: scores, codecs and reports are imported when a verb runs.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from codecplus.cli.model_options import quiet_datasets, quiet_transformers
from codecplus.cli.options import add_output, add_shared, add_verb
from codecplus.errors import InputError

_OPTIONS = (
    "A checkpoint's name may end in :effort=N, 0 to 3, to encode with that effort, and in :abr, to "
    "have the rate on average."
)


def add_verbs(verbs: Any) -> None:
    """Add the verbs to an argparse subparsers object."""
    _add_eval(verbs)
    _add_compare(verbs)
    _add_leaderboard(verbs)
    _add_listening(verbs)
    _add_webmushra(verbs)
    _add_submit(verbs)


def _add_eval(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "eval",
        evaluate,
        help="score codecs on a data set",
        description="Encode, decode and score recordings with each codec at each rate. A run that "
        f"was stopped continues. {_OPTIONS}",
        examples=(
            "codecplus eval --model dac-16khz-live --codec opus --bitrate-per-channel 3 6 "
            "--data recordings/ -o results/",
            "codecplus eval --model my-codec --data vctk --metric stoi mel_distance -o results/",
        ),
    )
    _add_codecs(verb)
    verb.add_argument(
        "--decoded",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=FOLDER",
        help="audio that was decoded elsewhere, matched by file name; NAME=FOLDER,kbps=6 declares "
        "a rate",
    )
    _add_task(verb, required=False)
    verb.add_argument(
        "--kind", nargs="+", metavar="KIND", help="only recordings of these kinds, such as speech"
    )
    verb.add_argument(
        "--condition",
        nargs="+",
        metavar="NAME=VALUE",
        help="change every recording: noise=10 (dB), level=-30 (dBFS), loss=5 (%% of packets)",
    )
    add_output(verb, "folder of the results", required=True)
    add_shared(
        verb, "metric", type=_metric, note="all uses all, list prints them; default: the quick ones"
    )
    verb.add_argument(
        "--time-limit",
        type=float,
        metavar="S",
        help="seconds that a codec may take to encode or decode a clip (default: 120, and 60 more "
        "for each second of audio)",
    )
    verb.add_argument(
        "--retry-failed",
        action="store_true",
        help="repeat clips that failed before, such as those of a codec that ran out of memory",
    )
    verb.add_argument(
        "--rerun",
        metavar="FILE",
        help="repeat the run of this provenance.json; other options replace its settings",
    )
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
    add_shared(verb, "workers", note="for scoring; default: one per core")
    add_shared(verb, "dataset-id", "json", "quiet")


def _add_compare(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "compare",
        compare,
        help="compare two results of codecplus eval",
        description="Say which of two codecs is better in each metric, by paired tests. "
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
            "codecplus leaderboard hf://datasets/ada/codec-results --push-to ada/codec-leaderboard",
        ),
    )
    verb.add_argument(
        "results",
        nargs="+",
        help="results folders, folders that hold some, or hf://datasets/OWNER/NAME for what "
        "codecplus submit pushed there",
    )
    add_output(verb, "HTML page to write; it needs no server and no network")
    verb.add_argument(
        "--rank-by",
        metavar="METRIC",
        help="metric that ranks (default: pesq_wb for speech, else mel_distance)",
    )
    verb.add_argument(
        "--push-to",
        metavar="OWNER/NAME",
        help="push the page as a static Space on the Hub, from results that hold together",
    )
    add_shared(verb, "private")
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
        f"{_OPTIONS}",
        examples=(
            "codecplus webmushra --model dac-16khz-live --codec opus --bitrate-per-channel 6 12 "
            "--data recordings/ -o webMUSHRA/configs",
            "codecplus webmushra --codec opus mp3 --bitrate-per-channel 16 --data recordings/ "
            "--limit 6 -o test/",
        ),
    )
    _add_codecs(verb)
    _add_task(verb, nargs=None)
    add_output(verb, "folder of the test", required=True)


def _add_submit(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "submit",
        submit,
        help="check results and push them to a dataset repository on the Hub",
        description="Check that results hold together, and push rows, summary, costs, provenance "
        "and report to a dataset repository, from which a leaderboard can be built. Audio stays "
        "here.",
        examples=(
            "codecplus submit results/ --repo ada/codec-results",
            "codecplus submit results/ more-results/ --repo ada/codec-results --private",
        ),
    )
    verb.add_argument("results", nargs="+", help="results folders, or folders that hold some")
    verb.add_argument(
        "--repo", required=True, metavar="OWNER/NAME", help="dataset repository on the Hub"
    )
    add_shared(verb, "private")


def _add_codecs(verb: argparse.ArgumentParser) -> None:
    """Add the options that say which codecs take part, at which rates, and where they run."""
    add_shared(
        verb, "model", action="extend", nargs="+", type=_checkpoint, dest="codecs", default=[]
    )
    add_shared(verb, "revision")
    add_shared(verb, "codec", type=_foreign_codec, default=[])
    add_shared(verb, "bitrate-per-channel", "device")


def _add_task(verb: argparse.ArgumentParser, **settings: Any) -> None:
    add_shared(
        verb, "data", note="or the .json file of a task, or a preset such as vctk", **settings
    )
    add_shared(verb, "limit")


def _checkpoint(name: str) -> str:
    """Return the name of a checkpoint; refuse the name of another codec."""
    from codecplus.eval.codecs import is_foreign

    if is_foreign(name):
        raise argparse.ArgumentTypeError(f"{name} is no checkpoint; name it with --codec")
    return name


def _foreign_codec(name: str) -> str:
    """Return the name of a codec that is no checkpoint; refuse any other name."""
    from codecplus.errors import suggest
    from codecplus.eval.codecs import ALIASES, codec_names, is_foreign

    if name == "list":
        _list_and_exit(codec_names())
    if is_foreign(name):
        return ALIASES.get(name, name)
    hint = suggest(name, [*codec_names(), *ALIASES])
    raise argparse.ArgumentTypeError(
        f"there is no codec {name!r}{hint}; --codec list lists all of them, and checkpoints are "
        "named with --model"
    )


def _metric(name: str) -> str:
    """Return the name of a metric; print all of them for `list`."""
    if name != "list":
        return name
    from codecplus.eval.metrics import FAMILIES, METRICS, SET_METRICS, load_registered

    load_registered()
    lines = {f"{family}:ID": help_text for family, (_, help_text) in FAMILIES.items()}
    lines["fad:ID"] = "FAD with the last hidden states of the audio model ID of transformers"
    for entry in SET_METRICS.values():
        notes = [", ".join(entry.domains), "on request, over all recordings of a kind"]
        if not entry.available:
            notes.append(entry.how_to_install)
        lines[entry.name] = f"{entry.title}; {'; '.join(notes)}"
    for entry in METRICS.values():
        unit = f" ({entry.unit})" if entry.unit else ""
        notes = [", ".join(entry.domains)]
        if not entry.by_default:
            notes.append("on request")
        if not entry.available:
            notes.append(entry.how_to_install)
        lines[entry.name] = f"{entry.title}{unit}; {'; '.join(notes)}"
    _list_and_exit(lines)
    raise AssertionError("it has exited")


def _list_and_exit(lines: dict[str, str]) -> None:
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name:{width}}  {text}")
    sys.exit(0)


def _check_codecs(args: argparse.Namespace) -> None:
    if not args.codecs and not getattr(args, "decoded", None):
        more = ", or a --decoded" if hasattr(args, "decoded") else ""
        raise InputError(f"expected at least one --model or --codec{more}")


# ---- what the verbs do


def evaluate(args: argparse.Namespace) -> None:
    """Score codecs; print a table and the path of the report, or the summary as JSON."""
    from codecplus.eval.config import EvaluationConfig
    from codecplus.eval.results import load_results
    from codecplus.eval.runner import load_rerun, run_evaluation, run_tasks

    quiet_datasets(args.quiet)
    quiet_transformers()  # its bars would stand between those of the stages
    settings = _evaluation_settings(args)
    data = args.data or []
    if args.rerun is not None:
        changes = {name: value for name, value in settings.items() if value not in (None, [])}
        if data:
            changes["data"] = data[0]
        config = load_rerun(args.rerun, args.output, **changes)
        data = data or [config.data]
    else:
        _check_codecs(args)
        if not data:
            raise InputError("expected --data: a folder, a table, a task's file or a preset")
        config = EvaluationConfig(**settings, data=data[0], out=args.output)
    if len(data) == 1:
        folders = [run_evaluation(config)]
    else:
        folders = run_tasks(config, data)
    if os.environ.get("RANK", "0") != "0":  # one of several processes: the first one reports
        return
    if args.dataset_id:
        from codecplus.eval.report import write_hub_files

        for folder in folders:
            write_hub_files(load_results(folder), args.dataset_id)
    _print_results([load_results(folder) for folder in folders], args.json)


def _evaluation_settings(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "codecs": args.codecs,
        "decoded": args.decoded,
        "revision": args.revision,
        "bitrates": args.bitrate_per_channel,
        "kinds": args.kind or [],
        "conditions": args.condition or [],
        "metrics": args.metric,
        "limit": args.limit,
        "segment_seconds": args.segment_seconds,
        "segments_per_file": args.segments_per_file,
        "device": args.device,
        "workers": args.workers,
        "time_limit": args.time_limit,
        "retry_failed": args.retry_failed,
        "progress": not args.quiet,
    }


def _print_results(runs: list[Any], as_json: bool) -> None:
    """Print the summary of one run, or of several by their tasks' names."""
    from codecplus.eval.report.terminal import average_over_tasks, terminal_report

    if as_json:
        summaries = {run.path.name: run.summary for run in runs}
        _print_json(runs[0].summary if len(runs) == 1 else summaries)
        return
    for run in runs:
        print(terminal_report(run))
    if len(runs) > 1:
        print(average_over_tasks(runs))
    print()
    for run in runs:
        print(run.path / "report.md")


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

    quiet_datasets(quiet=False)
    quiet_transformers()
    task = load_task(args.data, limit=args.limit)
    codecs = resolve_codecs(
        args.codecs, args.bitrate_per_channel, args.device, revision=args.revision
    )
    print(export_webmushra(task.name, task, codecs, args.output))


def leaderboard(args: argparse.Namespace) -> None:
    """Merge results; print a table for each kind of audio, or JSON, and write a page."""
    from codecplus.eval.report.leaderboard import build_leaderboard

    folders, links = _local_results(args.results)
    merged = build_leaderboard(folders, html=args.output, rank_by=args.rank_by, links=links)
    if args.push_to:
        print(_push_leaderboard(args, folders, links))
    elif args.json:
        _print_json(merged)
    else:
        _print_boards(merged, args.output is None)


def _print_boards(merged: dict[str, Any], with_rule: bool) -> None:
    for board in merged["boards"]:
        print(f"\n{board['task']}: {board['kind']}\n")
        print(_board_table(board))
    if merged["boards"] and with_rule:
        print("\n" + merged["boards"][0]["rule"], file=sys.stderr)


_DATASETS = "hf://datasets/"


def _local_results(names: list[str]) -> tuple[list[Path], dict[Path, str]]:
    """Download what is on the Hub; return all results folders, and the addresses of those.

    Of downloaded results, those that do not hold together are named on stderr and left out.
    """
    from codecplus.eval.report.leaderboard import results_folders

    folders = []
    links = {}
    for name in names:
        if not name.startswith(_DATASETS):
            folders += results_folders([name])
            continue
        from codecplus.eval.report.leaderboard_space import sound_submissions
        from codecplus.eval.report.submission import FILES
        from codecplus.hub.download import pull_dataset_files

        repo = name.removeprefix(_DATASETS)
        root = pull_dataset_files(repo, FILES)
        good, refused = sound_submissions([root])
        for folder, reason in refused.items():
            print(f"left out: {folder.relative_to(root)}: {reason}", file=sys.stderr)
        for folder in good:
            place = folder.relative_to(root).as_posix()
            links[folder] = f"https://huggingface.co/datasets/{repo}/tree/main/{place}"
        folders += good
    return folders, links


def _push_leaderboard(args: argparse.Namespace, folders: list[Path], links: dict[Path, str]) -> str:
    import tempfile

    from codecplus.eval.report.leaderboard_space import write_space
    from codecplus.hub.upload import push_static_space

    datasets = [n.removeprefix(_DATASETS) for n in args.results if n.startswith(_DATASETS)]
    with tempfile.TemporaryDirectory() as folder:
        write_space(folders, folder, datasets=datasets, links=links, rank_by=args.rank_by)
        message = f"Leaderboard of {len(folders)} results"
        return push_static_space(folder, args.push_to, message, private=args.private)


def submit(args: argparse.Namespace) -> None:
    """Check results and push them; print the address of the commit."""
    import tempfile

    from codecplus.eval.report.leaderboard import results_folders
    from codecplus.eval.report.submission import write_submission
    from codecplus.eval.results import load_results
    from codecplus.hub.upload import push_dataset_files

    runs = [load_results(folder) for folder in results_folders(args.results)]
    with tempfile.TemporaryDirectory() as folder:
        for run in runs:
            write_submission(run, folder)
        codecs = sorted({codec for run in runs for codec in run.codecs})
        message = f"Results of {', '.join(codecs)}"[:120]
        print(push_dataset_files(folder, args.repo, message, private=args.private))


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
        rate = number(entry["rate_kbps_per_channel"])
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
