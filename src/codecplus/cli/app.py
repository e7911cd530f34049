"""The command line as a whole: its verbs, and what an error becomes.

Each verb is a thin layer over functions that Python users call too. An error is one line on stderr
and exit status 2.
"""

import argparse
import os
import sys
import warnings
from contextlib import suppress

from codecplus._version import __version__
from codecplus.cli import completion, evaluate, export, files, hub, tokenize, train
from codecplus.cli.options import Parser
from codecplus.errors import CodecPlusError

GROUPS = (files, evaluate, train, tokenize, export, hub, completion)


def main(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit status.

    The status is 0, 2 after an error, 130 after Ctrl-C, and 141 when the reader of standard output
    is gone. A command line that cannot be parsed raises SystemExit with status 2.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        try:
            args = build_parser().parse_args(arguments)
            status = args.run(args) or 0
            sys.stdout.flush()  # a closed pipe shows here, where it is handled
            return status
        except BrokenPipeError:
            _discard_stdout()
            return 141
        except (CodecPlusError, OSError) as error:
            print(f"codecplus: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("codecplus: interrupted; nothing half-written was left behind", file=sys.stderr)
            return 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs; without a verb it prints the help."""
    parser = Parser(
        prog="codecplus",
        description="Compress audio with DAC, the Descript Audio Codec.",
        epilog="codecplus VERB --help describes a verb and shows examples.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"codecplus {__version__}")
    parser.set_defaults(run=lambda args: parser.print_help())
    verbs = parser.add_subparsers(metavar="VERB")
    for group in GROUPS:
        group.add_verbs(verbs)
    return parser


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the verbs by name."""
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"codecplus: {message}", file=sys.stderr)


def _discard_stdout() -> None:
    """Send what standard output still holds nowhere: Python would fail on it again at its exit."""
    with suppress(OSError):  # standard output may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


__all__ = ["build_parser", "main"]
