"""The command line: verbs over functions that Python users call too."""

from codecplus.cli.app import main

__all__ = ["main"]
