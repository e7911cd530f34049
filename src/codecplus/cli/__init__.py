"""The command line: verbs over functions that Python users call too."""

from codecplus.cli.app import build_parser, main

__all__ = ["build_parser", "main"]
