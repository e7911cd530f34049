"""Verbs and the options they share: an option has one name and one help text in all verbs.

It knows argparse and nothing of what the verbs do, so that `codecplus --help` stays quick.
"""

import argparse
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

_WIDTH = 79  # columns of a help page

SHARED: dict[str, dict[str, Any]] = {
    "model": {
        "metavar": "MODEL",
        "help": "checkpoint: embedded name, folder, .safetensors, .pth, ONNX export or Hub id",
    },
    "revision": {
        "metavar": "REVISION",
        "help": "branch, tag or commit of a checkpoint on the Hub",
    },
    "device": {
        "metavar": "DEVICE",
        "help": "where to compute: cpu, cuda, cuda:N or mps (default: the fastest here)",
    },
    "dtype": {
        "metavar": "DTYPE",
        "help": "precision to compute in: float32, bfloat16 or float16",
    },
    "compile": {
        "action": "store_true",
        "help": "compile the network for a GPU; the kernels for CPUs run without this option",
    },
    "bitrate": {
        "type": float,
        "metavar": "KBPS",
        "help": "kbit/s of the whole signal, all channels together (default: all codebooks)",
    },
    "bitrate-per-channel": {
        "type": float,
        "nargs": "+",
        "default": [],
        "metavar": "KBPS",
        "help": "rates to run each codec at, in kbit/s of one channel (default: the codec's own)",
    },
    "loudness": {
        "type": float,
        "metavar": "LUFS",
        "help": "encode the signal at this loudness; decoding restores its own",
    },
    "codec": {
        "action": "extend",
        "nargs": "+",
        "dest": "codecs",
        "metavar": "NAME",
        "help": "codecs other than checkpoints, such as opus, mp3, aac, or stock:ID for a model "
        "of transformers; list prints all names",
    },
    "metric": {
        "nargs": "+",
        "metavar": "NAME",
        "help": "metrics to use",
    },
    "data": {
        "required": True,
        "nargs": "+",
        "metavar": "DATA",
        "help": "recordings: audio files, folders of them, tables such as .parquet, or the id of a "
        "data set on the Hub",
    },
    "limit": {
        "type": int,
        "metavar": "N",
        "help": "use the first N recordings only",
    },
    "workers": {
        "type": int,
        "metavar": "N",
        "help": "number of workers: processes or threads",
    },
    "split": {
        "default": "train",
        "metavar": "SPLIT",
        "help": "split of a dataset (default: %(default)s)",
    },
    "config": {
        "metavar": "NAME",
        "help": "configuration of a dataset on the Hub",
    },
    "data-revision": {
        "metavar": "REVISION",
        "help": "branch, tag or commit of a dataset on the Hub",
    },
    "streaming": {
        "action": "store_true",
        "help": "read a dataset without downloading it first",
    },
    "audio-column": {
        "metavar": "NAME",
        "help": "column of a dataset that holds audio",
    },
    "dataset-id": {
        "metavar": "ID",
        "help": "dataset on the Hub that the local data are a copy of",
    },
    "private": {
        "action": "store_true",
        "help": "make a new repository on the Hub private",
    },
    "max-seconds": {
        "type": float,
        "metavar": "SECONDS",
        "help": "refuse codes of more audio than this",
    },
    "recover": {
        "action": "store_true",
        "help": "read damaged files, too, conceal what is lost, and report where it was",
    },
    "json": {
        "action": "store_true",
        "help": "print JSON on standard output instead of text",
    },
    "force": {
        "action": "store_true",
        "help": "overwrite existing files",
    },
    "skip-existing": {
        "action": "store_true",
        "help": "continue a job that was stopped: leave out files whose outputs exist and are not "
        "older",
    },
    "keep-suffix": {
        "action": "store_true",
        "help": "append the new suffix to the old one, as in take.mp3.dacp, so that take.mp3 and "
        "take.wav can go to one folder",
    },
    "quiet": {
        "action": "store_true",
        "help": "print results and errors only, no progress",
    },
}
_SHORT = {"output": "-o", "force": "-f", "quiet": "-q"}


def named_path(text: str) -> Path:
    """Return the path of a name. An empty name, as of a shell variable that is not set, is refused.

    For Python it is the working folder, all of which would be read.
    """
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a file or folder, got an empty one")
    return Path(text)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line on stderr."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        self.exit(2, f"codecplus: {message}; see {self.prog} --help\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print a message; unlike argparse, raise OSError where it cannot be printed."""
        if message:
            (file or sys.stderr).write(message)


def add_verb(
    verbs: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    *,
    help: str,
    description: str | None = None,
    examples: tuple[str, str],
) -> argparse.ArgumentParser:
    """Add a verb to an argparse subparsers object and return its parser.

    Args:
        run: what the verb does with the parsed arguments; it returns an exit status, None for 0.
        help: one line for the list of verbs.
        description: the first paragraph of the verb's own help page; `help` by default.
        examples: two command lines that end the help page.
    """
    if description is None:
        description = help[0].upper() + help[1:] + "."
    verb = verbs.add_parser(
        name,
        help=help,
        description=textwrap.fill(description, _WIDTH),
        epilog="\n".join(["examples:", *(f"  {line}" for line in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # An abbreviation that is understood today would mean something else with the next option.
        allow_abbrev=False,
    )
    verb.set_defaults(run=run, examples=examples)
    return verb


def add_shared(verb: Any, *names: str, **settings: Any) -> None:
    """Add options of `SHARED` to a verb or to one of its groups.

    `settings` replace those of the table for all the options named. A setting `note` is put behind
    the help text in brackets: what the default is in this verb.
    """
    note = settings.pop("note", None)
    for name in names:
        chosen = {**SHARED[name], **settings}
        if note is not None:
            chosen["help"] += f" ({note})"
        verb.add_argument(*flags(name), **chosen)


def add_output(verb: Any, help: str, **settings: Any) -> None:
    """Add `-o/--output`, a path by default; each verb says what it writes there."""
    settings = {"type": named_path, "metavar": "OUT", **settings}
    verb.add_argument(*flags("output"), help=help, **settings)


def add_codec_options(verb: Any, **model: Any) -> None:
    """Add the options that say which codec is loaded and where it computes.

    `model` are the settings of `--model` in this verb, see `add_shared`.
    """
    add_shared(verb, "model", **model)
    add_shared(verb, "revision", "device")
    add_shared(verb, "dtype", note="auto: decode in bfloat16 where it is faster; default: float32")


def add_data_options(verb: Any) -> None:
    """Add the options that say which part of a dataset is read."""
    add_shared(verb, "split", "config", "data-revision", "streaming")


def flags(name: str) -> list[str]:
    """Return the flags of an option: the short one, if there is any, and the long one."""
    short = [_SHORT[name]] if name in _SHORT else []
    return [*short, f"--{name}"]


def print_progress(line: str) -> None:
    """Print a line of progress on stderr."""
    print(line, file=sys.stderr)
