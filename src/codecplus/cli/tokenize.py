"""The verbs `tokenize` and `detokenize`: data sets of audio to data sets of codes, and back.

Light to import: datasets and torch are imported when a verb runs.
"""

import argparse
import sys
from typing import Any

from codecplus.cli.model_options import open_codec, quiet_datasets, quiet_transformers
from codecplus.cli.options import (
    add_codec_options,
    add_data_options,
    add_output,
    add_shared,
    add_verb,
)
from codecplus.cli.streams import say
from codecplus.errors import InputError


def add_verbs(verbs: Any) -> None:
    """Add the verbs to an argparse subparsers object."""
    _add_tokenize(verbs)
    _add_detokenize(verbs)


def _add_tokenize(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "tokenize",
        tokenize,
        help="turn a data set of audio into one of codes",
        description="Write the codes of every recording to parquet shards. A run that was stopped "
        "continues.",
        examples=(
            "codecplus tokenize --data recordings/ --model dac-16khz-live -o codes/",
            "codecplus tokenize --data ada/speech --streaming --model descript/dac_44khz "
            "--bitrate 4 -o ada/speech-codes",
        ),
    )
    add_shared(verb, "data")
    add_output(verb, "folder, or id of a data set on the Hub", required=True, type=str)
    add_data_options(verb)
    add_shared(verb, "audio-column", note="default: the one that holds audio")
    verb.add_argument(
        "--columns",
        nargs="*",
        metavar="NAME",
        help="other columns to keep (default: all but the audio)",
    )
    add_codec_options(verb, default="dac", note="default: %(default)s")
    add_shared(verb, "bitrate")
    verb.add_argument(
        "--codebooks", type=int, metavar="K", help="number of codebooks, instead of a bitrate"
    )
    verb.add_argument(
        "--channels",
        type=int,
        default=1,
        metavar="C",
        help="channels of the codes; 1 averages those of a recording (default: %(default)s)",
    )
    add_shared(verb, "workers", note="for decoding and resampling; 0: none")
    verb.add_argument(
        "--batch-seconds",
        type=float,
        metavar="S",
        help="seconds of audio in a padded batch; 0 encodes clips one by one",
    )
    verb.add_argument("--shard", metavar="I/N", help="do share I of N, I from 0; for job arrays")
    verb.add_argument(
        "--shard-rows",
        type=int,
        default=1000,
        metavar="N",
        help="rows per file (default: %(default)s)",
    )
    add_shared(verb, "private", "quiet")


def _add_detokenize(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "detokenize",
        detokenize,
        help="turn a data set of codes into audio files",
        description="Decode rows of codes to a folder of audio files. Files that exist are kept.",
        examples=(
            "codecplus detokenize --data codes/ -o listen/ --limit 20",
            "codecplus detokenize --data ada/speech-codes --streaming --format flac -o listen/",
        ),
    )
    verb.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="a folder that tokenize wrote, or its id on the Hub",
    )
    add_output(verb, "folder of the audio files", required=True)
    add_shared(verb, "split", "data-revision", "streaming")
    add_codec_options(verb, note="default: the one that made the codes")
    verb.add_argument(
        "--format",
        default="wav",
        metavar="SUFFIX",
        help="format of the audio files: wav, flac, ogg or mp3 (default: %(default)s)",
    )
    add_shared(verb, "limit")
    add_shared(verb, "max-seconds", note="default: a day for each row")
    add_shared(verb, "force", "quiet")


# ---- what the verbs do


def tokenize(args: argparse.Namespace) -> None:
    """Write a data set of codes; print its statistics and where it is."""
    from codecplus.recordings import open_recordings
    from codecplus.tokenizing.counts import describe
    from codecplus.tokenizing.job import Coding, shard_of_launcher
    from codecplus.tokenizing.job import tokenize as tokenize_source

    index, count = _parse_shard(args.shard)
    rank, size = shard_of_launcher()
    quiet_datasets(args.quiet)
    quiet_transformers()
    source = open_recordings(
        args.data,
        config=args.config,
        split=args.split,
        revision=args.data_revision,
        streaming=args.streaming,
        audio_column=args.audio_column,
        columns=args.columns,
    )
    coding = Coding(
        bitrate=args.bitrate,
        n_quantizers=args.codebooks,
        channels=args.channels,
        batch_seconds=args.batch_seconds,
        shard_rows=args.shard_rows,
    )
    summary = tokenize_source(
        source,
        open_codec(args.model, args),
        args.output,
        coding=coding,
        shard=(index * size + rank, count * size),
        workers=args.workers,
        model_name=args.model,
        private=args.private,
        progress=not args.quiet,
    )
    if summary is None:
        print("this share is done; others are not", file=sys.stderr)
        return
    print(describe(summary))
    print(args.output)


def detokenize(args: argparse.Namespace) -> int:
    """Decode a data set of codes; print how many files were written, and the rows that failed.

    The status is 2 if a row that has codes was refused.
    """
    from codecplus.decompression import MAX_SECONDS
    from codecplus.tokenizing.decoding import detokenize as detokenize_rows

    def load(name: str) -> Any:
        return open_codec(name, args)

    quiet_datasets(args.quiet)
    quiet_transformers()
    result = detokenize_rows(
        args.data,
        args.output,
        codec=load(args.model) if args.model else load,
        split=args.split,
        revision=args.data_revision,
        streaming=args.streaming,
        suffix=args.format,
        limit=args.limit,
        max_seconds=MAX_SECONDS if args.max_seconds is None else args.max_seconds,
        overwrite=args.force,
        progress=not args.quiet,
    )
    for number, reason in result["failures"].items():
        say(f"codecplus: row {number}: {reason}", sys.stderr)
    print(
        f"{result['written']} written, {result['kept']} kept, "
        f"{result['failed']} failed: {args.output}"
    )
    return 2 if result["refused"] else 0


def _parse_shard(text: str | None) -> tuple[int, int]:
    """Return the number of a share and how many there are; raise InputError for anything else."""
    if text is None:
        return 0, 1
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError as error:
        raise InputError(f"expected --shard I/N such as 0/8, got {text!r}") from error
    if not 0 <= index < count:
        raise InputError(f"expected --shard I/N with I from 0 to N - 1, got {text}")
    return index, count
