"""The command line as a whole: its verbs, and what an error becomes.

Each verb is a thin layer over functions that Python users call too. An error is one line on stderr
and exit status 2.
"""

import argparse
import os
import sys
import warnings

from codecplus._version import __version__
from codecplus.cli import completion, evaluate, export, files, hub, tokenize, train
from codecplus.cli.options import Parser
from codecplus.cli.signals import Stopped, stop_signals
from codecplus.cli.streams import (
    describe_error,
    discard_output,
    discard_output_that_fails,
    flush_output,
    one_line,
    safe_streams,
)
from codecplus.errors import CodecPlusError

GROUPS = (files, evaluate, train, tokenize, export, hub, completion)


def main(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit status.

    The status is 0, 2 after an error, 130 after Ctrl-C, 143 after SIGTERM, and 141 when the reader
    of standard output is gone. A command line that cannot be parsed raises SystemExit with status
    2. An error that is not meant to happen is one line too; the environment variable
    CODECPLUS_TRACEBACK shows where it came from.
    """
    _let_threads_sleep()
    with safe_streams(), stop_signals(), warnings.catch_warnings():
        warnings.showwarning = _print_warning
        try:
            return _run(arguments)
        except BrokenPipeError:
            discard_output()
            return 141
        except Stopped as stop:
            return _stopped(stop.name, 128 + stop.number)
        except KeyboardInterrupt:
            return _stopped("interrupted", 130)
        except Exception as error:
            if os.environ.get("CODECPLUS_TRACEBACK"):
                raise
            discard_output_that_fails()
            message = describe_error(error)
            if not isinstance(error, CodecPlusError | OSError | MemoryError):
                message += " (unexpected: CODECPLUS_TRACEBACK=1 shows where)"
            print(f"codecplus: {message}", file=sys.stderr)
            return 2


def _run(arguments: list[str] | None) -> int:
    try:
        args = build_parser().parse_args(arguments)
        status = args.run(args) or 0
    except SystemExit:  # --help, which may fail to be printed
        flush_output()
        raise
    flush_output()  # a closed pipe or a full disk shows here, where it is handled
    return status


def _let_threads_sleep() -> None:
    """Have the threads of torch sleep while they wait for each other, unless the user chose.

    They would spin, which takes the cores from other processes, and from their own work where those
    use all cores. OpenMP reads the environment when torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _stopped(how: str, status: int) -> int:
    discard_output_that_fails()
    print(f"codecplus: {how}; nothing half-written was left behind", file=sys.stderr)
    return status


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
    print(f"codecplus: {one_line(str(message))}", file=sys.stderr)


__all__ = ["build_parser", "main"]
