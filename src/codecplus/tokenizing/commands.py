"""The command line of tokenising."""

import argparse


def add_verbs(verbs: "argparse._SubParsersAction") -> None:
    """Nothing yet."""
