"""Machines at work on one dataset of the Hub, one after the other, in a fresh process: its client
reads the environment when it is imported. Prints for each the status, and what the command line
printed.
"""

import contextlib
import io
import json
import sys

from huggingface_hub import constants

from codecplus.cli import main


def run(home: str, *arguments: str) -> list:
    constants.HF_HOME = home
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["tokenize", *arguments, "--output", "hf://datasets/ada/codes"])
    return [status, out.getvalue() + err.getvalue()]


if __name__ == "__main__":
    print(json.dumps([run(*job) for job in json.loads(sys.argv[1])]))
