"""The verbs `tokenize` and `detokenize` of the command line. Light to import: the work is imported
when it is done.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any


def add_verbs(verbs: Any) -> None:
    """Add the two verbs to an argparse subparsers object; each sets `run`, a function of the parsed
    arguments.
    """
    verb = verbs.add_parser(
        "tokenize",
        help="audio datasets to datasets of codes",
        description="Write codes of every recording to parquet shards; a run that was stopped goes on where it was.",
    )
    verb.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="a folder, a file that datasets reads, or a Hub id",
    )
    verb.add_argument("--out", required=True, metavar="OUT", help="a folder, or a Hub id")
    _add_data_options(verb)
    verb.add_argument("--audio-column", metavar="NAME", help="default: the one that holds audio")
    verb.add_argument(
        "--columns",
        nargs="*",
        metavar="NAME",
        help="other columns to keep (default: all but the audio)",
    )
    _add_model_options(verb, default="dac")
    verb.add_argument(
        "--model-revision", metavar="REV", help="branch, tag or commit of a model on the Hub"
    )
    verb.add_argument(
        "--bitrate",
        type=float,
        metavar="KBPS",
        help="for all channels together (default: all codebooks)",
    )
    verb.add_argument(
        "--codebooks", type=int, metavar="K", help="how many codebooks, instead of a bitrate"
    )
    verb.add_argument(
        "--channels",
        type=int,
        default=1,
        metavar="C",
        help="1 averages them (default: %(default)s)",
    )
    verb.add_argument(
        "--num-proc",
        type=int,
        metavar="N",
        help="processes that decode and resample; 0: in this one",
    )
    verb.add_argument(
        "--batch-seconds",
        type=float,
        metavar="S",
        help="audio per padded batch; 0: clips one by one",
    )
    verb.add_argument(
        "--shard", metavar="I/N", help="do the I-th of N shares, I from 0, for job arrays"
    )
    verb.add_argument(
        "--shard-rows",
        type=int,
        default=1000,
        metavar="N",
        help="rows per file (default: %(default)s)",
    )
    verb.add_argument(
        "--private", action="store_true", help="make a new dataset on the Hub private"
    )
    verb.add_argument("--quiet", action="store_true", help="no progress bar")
    verb.set_defaults(run=_run_tokenize)

    verb = verbs.add_parser(
        "detokenize",
        help="datasets of codes to audio files",
        description="Decode rows of codes to a folder of audio files; files that are there already are kept.",
    )
    verb.add_argument(
        "--data", required=True, metavar="DATA", help="a folder that tokenize wrote, or a Hub id"
    )
    verb.add_argument("--out", required=True, metavar="FOLDER", help="folder of the audio files")
    _add_data_options(verb)
    _add_model_options(verb, default=None)
    verb.add_argument(
        "--format",
        default="wav",
        metavar="SUFFIX",
        help="wav, flac, ogg or mp3 (default: %(default)s)",
    )
    verb.add_argument("--limit", type=int, metavar="N", help="rows at most")
    verb.add_argument("-f", "--force", action="store_true", help="overwrite existing files")
    verb.add_argument("--quiet", action="store_true", help="no progress bar")
    verb.set_defaults(run=_run_detokenize)


def _add_data_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--config", metavar="NAME", help="configuration of a dataset on the Hub")
    verb.add_argument(
        "--split", default="train", metavar="SPLIT", help="of a dataset (default: %(default)s)"
    )
    verb.add_argument(
        "--revision", metavar="REV", help="branch, tag or commit of a dataset on the Hub"
    )
    verb.add_argument(
        "--streaming", action="store_true", help="read a dataset without downloading it first"
    )


def _add_model_options(verb: argparse.ArgumentParser, default: str | None) -> None:
    note = f"default: {default}" if default else "default: the one that made the codes"
    verb.add_argument(
        "--model", default=default, help=f"embedded name, folder, .pth or Hub id ({note})"
    )
    verb.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    verb.add_argument("--dtype", help="what to compute in: float32 (default), bfloat16 or float16")


def _run_tokenize(args: argparse.Namespace) -> None:
    from codecplus.recordings import open_recordings
    from codecplus.tokenizing.runner import Coding, shard_of_launcher, tokenize
    from codecplus.tokenizing.statistics import describe

    index, count = _parse_shard(args.shard)
    rank, size = shard_of_launcher()
    coding = Coding(
        bitrate=args.bitrate, n_quantizers=args.codebooks, channels=args.channels, batch_seconds=args.batch_seconds,
        shard_rows=args.shard_rows,
    )  # fmt: skip
    source = open_recordings(
        args.data, config=args.config, split=args.split, revision=args.revision, streaming=args.streaming,
        audio_column=args.audio_column, columns=args.columns,
    )  # fmt: skip
    codec = _load(args.model, args, args.model_revision)
    summary = tokenize(
        source, codec, args.out, coding=coding, shard=(index * size + rank, count * size), workers=args.num_proc,
        model_name=args.model, private=args.private, progress=not args.quiet,
    )  # fmt: skip
    if summary is None:
        print("this share is done; others are not", file=sys.stderr)
        return
    print(describe(summary))
    print(args.out)


def _run_detokenize(args: argparse.Namespace) -> int:
    from codecplus.tokenizing.decoding import detokenize

    def load(name: str) -> Any:
        return _load(name, args)

    result = detokenize(
        args.data, args.out, codec=_load(args.model, args) if args.model else load, split=args.split,
        revision=args.revision, streaming=args.streaming, suffix=args.format, limit=args.limit, overwrite=args.force,
        progress=not args.quiet,
    )  # fmt: skip
    for number, reason in result["failures"].items():
        print(f"codecplus: row {number}: {reason}", file=sys.stderr)
    print(
        f"{result['written']} written, {result['kept']} kept, {result['failed']} failed: {args.out}"
    )
    return 0


def _parse_shard(text: str | None) -> tuple[int, int]:
    from codecplus.errors import InputError

    try:
        index, count = (int(part) for part in (text or "0/1").split("/"))
    except ValueError as error:
        raise InputError(f"expected --shard I/N such as 0/8, got {text!r}") from error
    if not 0 <= index < count:
        raise InputError(f"expected --shard I/N with I from 0 to N - 1, got {text}")
    return index, count


def _load(name: str, args: argparse.Namespace, revision: str | None = None) -> Any:
    from transformers.utils import logging

    from codecplus.codec import load_codec

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return load_codec(name, device=_device(args.device), dtype=args.dtype, revision=revision)


def _device(asked: str | None) -> str:
    """Where to compute: of several processes on a node, each has an accelerator of its own."""
    import torch

    device = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device
