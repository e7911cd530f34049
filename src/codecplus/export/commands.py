"""The command line of export."""

import argparse


def add_verbs(verbs: "argparse._SubParsersAction") -> None:
    """Nothing yet."""
