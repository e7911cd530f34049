"""Jobs over many files: which file becomes which, and running all of them, several at a time.

It knows paths and threads, and nothing of codecs. A file that fails, for whatever reason, is one
line on stderr; the others are done, and the status is 2.
"""

import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from codecplus.cli.streams import describe_error, one_line, say
from codecplus.errors import InputError, OutputExistsError
from codecplus.recordings.listing import UNREADABLE, NamedFile, describe_left_out, find_files
from codecplus.recordings.output_names import beside, output_names, repeated
from codecplus.system.paths import check_output
from codecplus.system.progress import progress_bar

CODED_SUFFIXES = frozenset({".dacp", ".dac"})


class Job(NamedTuple):
    """A file to read, and the file to write."""

    source: Path
    target: Path


Run = Callable[[Path, Path, Callable[[float], Any]], None]  # see `run_jobs`


@dataclass
class FileBatch:
    """Files to work on, by the inputs they come from, and what went wrong so far."""

    inputs: list[Path] = field(default_factory=list)
    groups: list[list[NamedFile]] = field(default_factory=list)
    failures: int = 0

    @property
    def files(self) -> list[NamedFile]:
        """The files of all inputs."""
        return [file for group in self.groups for file in group]

    @property
    def status(self) -> int:
        """The exit status: 2 if anything failed."""
        return 2 if self.failures else 0

    def fail(self, path: Path, error: Exception) -> None:
        """Say what went wrong with a file, and count it."""
        self.failures += 1
        say(f"codecplus: {describe_failure(path, error)}", sys.stderr)


def find(inputs: Iterable[Path], suffixes: Collection[str]) -> FileBatch:
    """Return the files named and those in folders named; say on stderr what was left out.

    An input that does not exist, and a folder without such a file or that cannot be read, is a
    failure of its own. What is named twice is taken once.
    """
    batch = FileBatch()
    left_out: Counter[str] = Counter()
    for path in dict.fromkeys(inputs):
        try:
            files = find_files(path, suffixes)
        except Exception as error:  # one input does not keep the others from being done
            batch.fail(path, error)
            continue
        batch.inputs.append(path)
        batch.groups.append(files.files)
        left_out.update(files.left_out)
        unreadable = files.left_out.get(UNREADABLE)
        if unreadable:
            batch.fail(path, InputError(f"{unreadable} {UNREADABLE} in it; check the permissions"))
    if left_out:
        described = describe_left_out(dict(sorted(left_out.items())))
        say(f"codecplus: other files left out: {described}", sys.stderr)
    return batch


def plan(
    batch: FileBatch, output: Path | None, suffix: str, *, keep_suffix: bool = False
) -> list[Job]:
    """Return a job for each file; those that cannot have one are failures of the batch.

    Args:
        batch: the files.
        output: a file for one input file, else a folder, see `output_names` for the names in it;
            None writes beside each input.
        suffix: of the files to write.
        keep_suffix: put it behind the suffix of the input.

    Raises:
        InputError: for the name of a file where a folder is needed.
    """
    files = batch.files
    if output is not None and output.suffix and not os.path.isdir(output):  # the name of a file
        if len(files) > 1 or any(os.path.isdir(path) for path in batch.inputs):
            raise InputError(f"expected a folder for {len(files)} files, got -o {output}")
        targets = [output] * len(files)
    elif output is None:
        targets = [beside(file.path, suffix, keep_suffix=keep_suffix) for file in files]
    else:
        names = output_names(batch.inputs, batch.groups, suffix, keep_suffix=keep_suffix)
        targets = [output / name for name in names]
    jobs = [Job(file.path, target) for file, target in zip(files, targets, strict=True)]
    return _possible(jobs, batch)


def _possible(jobs: list[Job], batch: FileBatch) -> list[Job]:
    """Return the jobs whose output is no other's, and no input; count the rest as failures."""
    targets = [os.path.realpath(job.target) for job in jobs]
    clashing = repeated(targets)
    sources = {os.path.realpath(job.source) for job in jobs}
    possible = []
    for job, target in zip(jobs, targets, strict=True):
        if target in sources:
            reason = f"{job.target} is read, and would be written over; name another output with -o"
        elif target in clashing:
            reason = (
                f"another file would become {job.target}, too; "
                "--keep-suffix keeps both, or rename one"
            )
        else:
            possible.append(job)
            continue
        batch.fail(job.source, InputError(f"{job.source}: {reason}"))
    return possible


def run_jobs(
    batch: FileBatch,
    jobs: list[Job],
    run: Run,
    seconds: Callable[[Path], float],
    *,
    label: str,
    force: bool,
    quiet: bool,
    skip_existing: bool = False,
    workers: int = 0,
    begin_worker: Callable[[], Any] | None = None,
) -> int:
    """Run all jobs with one progress bar; return 0, or 2 if any file of the batch failed.

    What is said of the files comes in their order.

    Args:
        batch: the files that the jobs come from.
        jobs: what to do.
        run: does one job; its third argument is called with the seconds of audio just done.
        seconds: the length of the audio in a file, 0 where it cannot be known.
        label: of the progress bar.
        force: overwrite existing files.
        quiet: show neither the bar nor what was written.
        skip_existing: leave out the jobs that `is_done` already.
        workers: threads that do a job each at a time; with 0 this thread does all of them.
        begin_worker: called first in every one of these threads.
    """
    missing = jobs
    if skip_existing:
        missing = [job for job in jobs if not is_done(job)]
        if len(missing) < len(jobs):
            count = len(jobs) - len(missing)
            say(f"codecplus: skipped {count} of {len(jobs)} files, which are done", sys.stderr)
    total = round(sum(_seconds_or_nothing(seconds, job.source) for job in missing), 1)
    with _Progress(total, len(missing), label, quiet) as progress:

        def work(job: Job) -> None:
            progress.check()
            try:
                _run_one(job, run, progress.add, force=force, skip_existing=skip_existing)
            finally:
                progress.add_file()

        done = _in_turn(work, missing)
        if workers:
            done = _in_threads(work, missing, workers, begin_worker, progress.stop)
        for job, error in done:
            if error is not None:
                batch.fail(job.source, error)
            elif not quiet:
                say(f"{job.source} -> {job.target}", sys.stdout)
    return batch.status


class _Stop(BaseException):
    """The command ends: a job that is half done is to clean up and end, too."""


class _Progress:
    """A bar of seconds of audio, with files per second. Threads may share it."""

    def __init__(self, seconds: float, files: int, label: str, quiet: bool):
        self._files = files
        self._files_done = 0
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._stopped = False
        self._bar = progress_bar(shown=not quiet, total=seconds, desc=label, unit="s", leave=False)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, seconds: float) -> None:
        """Count seconds of audio; raise _Stop after `stop`."""
        self.check()
        with self._lock:
            self._bar.update(seconds)

    def add_file(self) -> None:
        """Count a file."""
        with self._lock:
            self._files_done += 1
            per_second = self._files_done / max(1e-9, time.monotonic() - self._began)
            figures = f"{self._files_done}/{self._files} files, {per_second:.3g} files/s"
            self._bar.set_postfix_str(figures, refresh=False)

    def stop(self) -> None:
        """End all jobs at their next sign of progress."""
        self._stopped = True

    def check(self) -> None:
        """Raise _Stop after `stop`."""
        if self._stopped:
            raise _Stop


Done = Generator[tuple[Job, Exception | None], None, None]


def _in_turn(work: Callable[[Job], None], jobs: list[Job]) -> Done:
    """Do jobs one after the other; yield each with its error, if it failed."""
    for job in jobs:
        error = None
        try:
            work(job)
        except Exception as failure:
            error = failure
        yield job, error


def _in_threads(
    work: Callable[[Job], None],
    jobs: list[Job],
    workers: int,
    begin_worker: Callable[[], Any] | None,
    stop: Callable[[], None],
) -> Done:
    """Do jobs in threads; yield each in its turn with its error, if it failed.

    Where the caller is interrupted, or does not go on, `stop` is called, and jobs that are begun
    are waited for: they have temporary files to remove.
    """
    waiting = iter(jobs)
    begun: deque[tuple[Job, Future[None]]] = deque()
    pool = ThreadPoolExecutor(workers, initializer=begin_worker)
    try:
        while True:
            while len(begun) < _MAX_BEGUN and (job := next(waiting, None)) is not None:
                begun.append((job, pool.submit(work, job)))
            if not begun:
                return
            job, future = begun.popleft()
            error = future.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            yield job, error
    finally:
        stop()
        pool.shutdown(cancel_futures=True)


# Jobs that are handed to threads before the first of them is done: an hour of music does not keep
# the short files behind it waiting.
_MAX_BEGUN = 1000


def is_done(job: Job) -> bool:
    """Return whether the output of a job is there, whole, and not older than its input.

    Outputs appear under their names whole or not at all, so that one which exists is whole.
    """
    try:
        source, target = job.source.stat(), job.target.stat()
    except OSError:
        return False
    return target.st_size > 0 and target.st_mtime_ns >= source.st_mtime_ns


def _run_one(
    job: Job,
    run: Run,
    progress: Callable[[float], Any],
    *,
    force: bool,
    skip_existing: bool,
) -> None:
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"cannot write {job.target}: {error.filename} is no folder; name another output"
        ) from error
    if skip_existing and not force and os.path.lexists(job.target):
        raise OutputExistsError(
            f"{job.target} exists already, and is empty or older than {job.source}; "
            "--force writes it again"
        )
    check_output(job.target, force)
    run(job.source, job.target, progress)


def _seconds_or_nothing(seconds: Callable[[Path], float], source: Path) -> float:
    try:
        return seconds(source)
    except Exception:  # the job of that file will report it
        return 0.0


def describe_failure(source: Path, error: Exception) -> str:
    """Return one line that names the file and says what went wrong."""
    message = describe_error(error)
    name = one_line(str(source))
    if name not in message:
        message = f"{name}: {message}"
    return message
