"""Jobs over many files: which file becomes which, and running all of them.

It knows paths, and nothing of codecs.
"""

import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from codecplus.errors import CodecPlusError, InputError
from codecplus.recordings.files import NamedFile, find_files
from codecplus.system.paths import check_output

CODED_SUFFIXES = frozenset({".dacp", ".dac"})


class Job(NamedTuple):
    """A file to read, and the file to write."""

    source: Path
    target: Path


def find(inputs: Iterable[Path], suffixes: Collection[str]) -> list[NamedFile]:
    """Return the files named and those in folders named; say on stderr what was left out.

    Raises InputError for a path that does not exist and for a folder without such a file.
    """
    found = find_files(inputs, suffixes)
    if found.left_out:
        kinds = ", ".join(
            f"{count} {suffix or 'without a suffix'}" for suffix, count in found.left_out.items()
        )
        print(f"codecplus: other files left out: {kinds}", file=sys.stderr)
    return found.files


def plan(
    inputs: list[Path], output: Path | None, suffixes: Collection[str], suffix: str
) -> list[Job]:
    """Return a job for each input file.

    Args:
        inputs: files and folders.
        output: a file for one input file, else a folder, which gets the shape of the folders
            named; None writes beside each input.
        suffixes: of the files that are taken from folders.
        suffix: of the files to write.

    Raises:
        InputError: if two files would become the same one, or a file would replace its input.
    """
    sources = find(inputs, suffixes)
    if output is not None and output.suffix and not output.is_dir():  # the name of a file
        if len(sources) > 1 or inputs[0].is_dir():
            raise InputError(f"expected a folder for {len(sources)} files, got -o {output}")
        jobs = [Job(sources[0].path, output)]
    elif output is None:
        jobs = [Job(source.path, source.path.with_suffix(suffix)) for source in sources]
    else:
        jobs = [Job(source.path, (output / source.name).with_suffix(suffix)) for source in sources]
    _check_targets(jobs)
    return jobs


def _check_targets(jobs: list[Job]) -> None:
    sources: dict[Path, Path] = {}  # by target
    for source, target in jobs:
        if target == source:
            raise InputError(f"{source} would be written over itself; name another output with -o")
        if target in sources:
            raise InputError(
                f"{source} and {sources[target]} would both become {target}; rename one of them"
            )
        sources[target] = source


def run_jobs(
    jobs: list[Job],
    run: Callable[[Path, Path, Callable[[float], Any]], None],
    seconds: Callable[[Path], float],
    *,
    label: str,
    force: bool,
    quiet: bool,
) -> int:
    """Run all jobs with one progress bar; return 0, or 2 if any of them failed.

    A file that fails, for whatever reason, is one line on stderr, and the others are done.

    Args:
        run: does one job; its third argument is called with the seconds of audio just done.
        seconds: the length of the audio in a file, 0 where it cannot be known.
        label: of the progress bar.
        force: overwrite existing files.
        quiet: show neither the bar nor what was written.
    """
    from tqdm import tqdm

    failures = 0
    total = round(sum(seconds(job.source) for job in jobs), 1)
    disable = True if quiet else None  # None: shown on a terminal only
    with tqdm(total=total, desc=label, unit="s", disable=disable, leave=False) as bar:
        for source, target in jobs:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                check_output(target, force)
                run(source, target, bar.update)
            except Exception as error:
                failures += 1
                tqdm.write(f"codecplus: {describe_failure(source, error)}", file=sys.stderr)
                continue
            if not quiet:
                tqdm.write(f"{source} -> {target}", file=sys.stdout)
    return 2 if failures else 0


def describe_failure(source: Path, error: Exception) -> str:
    """Return one line that names the file and says what went wrong."""
    lines = str(error).strip().splitlines() or [""]
    message = lines[0]
    if not isinstance(error, CodecPlusError | OSError):  # says little without its type
        message = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if str(source) not in message:
        message = f"{source}: {message}"
    return message
