"""Output files: whether one may be written, and writing it whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codecplus.errors import InputError, OutputExistsError

PathLike = str | os.PathLike[str]


def as_path(path: Any) -> Path:
    """Return a string or path object as a path; raise InputError for other types and names that no
    file can have.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"expected a path as a string or pathlib.Path, got {type(path).__name__}")
    name = os.fsdecode(path)
    if not name or "\0" in name:
        raise InputError(f"expected a file name, got {name!r}")
    return Path(name)


def check_output(path: PathLike, overwrite: bool = True) -> Path:
    """Return `path` if a file can be written there.

    Raises OutputExistsError when it exists and `overwrite` is false, InputError when it is a folder
    or when the folder it belongs in does not exist.
    """
    target = as_path(path)
    if os.path.isdir(target):
        raise InputError(f"expected a file name to write to, got the folder {target}")
    if not os.path.isdir(target.parent):
        raise InputError(
            f"cannot write {target}: there is no folder {target.parent}; create it first"
        )
    if not overwrite and os.path.lexists(target):
        raise OutputExistsError(
            f"{target} exists already; choose another name or allow overwriting"
        )
    return target


def refuse_own_source(source: Any, output: PathLike) -> None:
    """Raise InputError if writing `output` would replace the file that is read; links count."""
    if not isinstance(source, str | os.PathLike) or not os.path.exists(output):
        return
    if os.path.exists(source) and os.path.samefile(source, output):
        raise InputError(f"{source} would be written over itself; name another output")


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Give a temporary name beside `path`, which becomes `path` when the block succeeds and is
    removed when it fails.

    The name keeps the suffix; the file gets the permissions of any new file; a link is written
    through. Raises InputError as `check_output` does.
    """
    target = Path(os.path.realpath(check_output(path)))
    if os.path.exists(target) and not target.is_file():
        yield target  # /dev/null or a pipe: a rename would put a file in place of the device
        return
    temporary = target.with_name(f".{secrets.token_hex(8)}.part{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
