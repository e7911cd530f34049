"""The command line of training."""

import argparse


def add_verbs(verbs: "argparse._SubParsersAction") -> None:
    """Nothing yet."""
