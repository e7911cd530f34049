"""Folders of files that are written whole or not at all, and copies between folders."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from codecplus.errors import InputError

PathLike = str | os.PathLike[str]


@contextmanager
def new_folder(folder: PathLike) -> Iterator[Path]:
    """Give a temporary folder, which becomes `folder` when the block succeeds.

    Raises InputError if `folder` holds anything already, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"expected an empty folder, or the name of a new one, got {folder}, "
            "which holds something"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        temporary.chmod(0o755)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        yield temporary
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def matching_files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Return the files of a folder that match one of the patterns, pattern after pattern."""
    files = []
    for pattern in patterns:
        files += sorted(path for path in folder.glob(pattern) if path.is_file())
    return files


def copy_files(files: Iterable[Path], base: Path, folder: Path) -> None:
    """Copy files that lie below `base` to the same places below `folder`.

    Raises InputError for a link that leaves `base`, see `check_inside`.
    """
    for file in files:
        check_inside(file, base)
        target = folder / file.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


def check_inside(file: Path, base: Path) -> None:
    """Raise InputError if a file is a link to somewhere outside of the folder `base`.

    A push uploads only files of the folder. Files in the Hub's cache are links to the blobs beside
    the snapshot; they count as files of the folder.
    """
    home = base.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    target = file.resolve()
    if not any(target.is_relative_to(folder) for folder in allowed):
        raise InputError(
            f"{file} is a link out of its folder, to {target}; "
            "put the file itself there, or remove the link"
        )
