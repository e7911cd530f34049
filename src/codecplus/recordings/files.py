"""Audio files that a user names, one by one or as folders. Knows names, not samples."""

import os
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from codecplus.errors import InputError
from codecplus.system.paths import PathLike

# Formats that cannot be read are listed too: they are reported, not overlooked.
AUDIO_SUFFIXES = frozenset(
    {
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".caf",
        ".w64",
        ".rf64",
        ".m4a",
        ".aac",
        ".wma",
    }
)
MANIFESTS = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "MANIFEST.csv")


class NamedFile(NamedTuple):
    """A file, and its name relative to the folder that the user named, with slashes."""

    path: Path
    name: str


class FoundFiles(NamedTuple):
    """Files, and the number of files in the named folders that have other suffixes, by suffix."""

    files: list[NamedFile]
    left_out: dict[str, int]


def audio_files(inputs: PathLike | Iterable[PathLike]) -> FoundFiles:
    """Return the audio files among what a user named. See `find_files`."""
    return find_files(inputs, AUDIO_SUFFIXES)


def find_files(inputs: PathLike | Iterable[PathLike], suffixes: Collection[str]) -> FoundFiles:
    """Return the files that a user named, and the files with certain suffixes in named folders.

    A named file is taken whatever its suffix is. A folder is searched with all its subfolders, in
    the order of names. Names that begin with a dot are skipped: they are the leftovers of other
    programs, such as `._take.wav` of macOS, and of interrupted writing.

    Args:
        inputs: a file or folder, or several.
        suffixes: in lower case, with the dot.

    Raises:
        InputError: for a name that does not exist, and for a folder without such files.
    """
    if isinstance(inputs, (str, os.PathLike)):
        inputs = [inputs]
    files: list[NamedFile] = []
    left_out: Counter[str] = Counter()
    for path in map(Path, inputs):
        if path.is_dir():
            in_folder, others = files_in_folder(path, suffixes)
            if not in_folder:
                raise InputError(f"the folder {path} holds no {', '.join(sorted(suffixes))} file")
            files.extend(NamedFile(path / name, name) for name in in_folder)
            left_out.update(others)
        elif path.exists():
            files.append(NamedFile(path, path.name))
        else:
            raise InputError(f"there is no file or folder {path}")
    return FoundFiles(files, dict(sorted(left_out.items())))


def files_in_folder(
    folder: Path, suffixes: Collection[str] = AUDIO_SUFFIXES
) -> tuple[list[str], Counter[str]]:
    """Return the sorted names of a folder's files with certain suffixes, and a count of the others.

    Names are relative to the folder, with slashes. The count is by suffix; it leaves out
    `MANIFESTS`. Names that begin with a dot are skipped, folders of such names with all they hold.
    """
    names: list[str] = []
    left_out: Counter[str] = Counter()
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            if name.startswith(".") or not path.is_file():
                continue
            suffix = path.suffix.lower()
            if suffix in suffixes:
                names.append(path.relative_to(folder).as_posix())
            elif name not in MANIFESTS:
                left_out[suffix] += 1
    return sorted(names), left_out
