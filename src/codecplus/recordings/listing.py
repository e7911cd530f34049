"""Audio files that a user names, one by one or as folders. Knows names, not samples."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from codecplus.audio.formats import AUDIO_SUFFIXES
from codecplus.errors import InputError
from codecplus.system.paths import PathLike

MANIFESTS = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "MANIFEST.csv")
# What is left out of a folder, beside files of other suffixes.
FOLDER_LINKS = "links to folders"
DEAD_LINKS = "links that lead nowhere"
NO_FILES = "devices or pipes"
UNREADABLE = "folders that cannot be read"


class NamedFile(NamedTuple):
    """A file, and its name relative to the folder that the user named, with slashes."""

    path: Path
    name: str


class FoundFiles(NamedTuple):
    """Files, and a count of the others in the named folders, see `files_in_folder`."""

    files: list[NamedFile]
    left_out: dict[str, int]


def audio_files(inputs: PathLike | Iterable[PathLike]) -> FoundFiles:
    """Return the audio files that a user named, one by one or by folder. See `find_files`."""
    return find_files(inputs, AUDIO_SUFFIXES)


def find_files(inputs: PathLike | Iterable[PathLike], suffixes: Collection[str]) -> FoundFiles:
    """Return the files that a user named, and the files with certain suffixes in named folders.

    A named file is taken whatever its suffix is. A folder is searched with all its subfolders, in
    the order of names; links to folders are not followed. Names that begin with a dot are skipped:
    they are the leftovers of other programs, such as `._take.wav` of macOS, and of interrupted
    writing.

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
        if os.path.isdir(path):
            in_folder, others = files_in_folder(path, suffixes)
            if not in_folder:
                raise InputError(_nothing_in(path, suffixes, others))
            files.extend(NamedFile(path / name, name) for name in in_folder)
            left_out.update(others)
        elif os.path.exists(path):
            files.append(NamedFile(path, path.name))
        else:
            raise InputError(f"there is no file or folder {path}")
    return FoundFiles(files, dict(sorted(left_out.items())))


def _nothing_in(folder: Path, suffixes: Collection[str], others: Mapping[str, int]) -> str:
    if suffixes == AUDIO_SUFFIXES:
        kind = "audio file, such as .wav, .flac, .mp3 or .m4a"
    else:
        kind = f"{' or '.join(sorted(suffixes))} file"
    held = f"; it holds {describe_left_out(others)}" if others else ""
    return f"the folder {folder} holds no {kind}{held}"


def files_in_folder(
    folder: Path, suffixes: Collection[str] = AUDIO_SUFFIXES
) -> tuple[list[str], Counter[str]]:
    """Return the sorted names of a folder's files with certain suffixes, and a count of the others.

    Names are relative to the folder, with slashes. The count is by suffix; links to folders, dead
    links, devices and unreadable folders are counted under words of their own. `MANIFESTS` are not
    counted. Files and folders whose names begin with a dot are skipped.
    """
    names: list[str] = []
    left_out: Counter[str] = Counter()
    for path in _walk(folder, left_out):
        suffix = path.suffix.lower()
        if not os.path.isfile(path):
            left_out[NO_FILES if os.path.exists(path) else DEAD_LINKS] += 1
        elif suffix in suffixes:
            names.append(path.relative_to(folder).as_posix())
        elif path.name not in MANIFESTS:
            left_out[suffix] += 1
    return sorted(names), +left_out  # without those that are 0


def holds_files(folder: Path, suffixes: Collection[str] = AUDIO_SUFFIXES) -> bool:
    """Return whether `files_in_folder` finds any file; the search ends at the first one."""
    return any(
        path.suffix.lower() in suffixes and os.path.isfile(path)
        for path in _walk(folder, Counter())
    )


def _walk(folder: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Yield what lies in a folder and its subfolders; count folders that are not searched.

    `os.walk` calls itself for each subfolder before Python 3.12, and fails in deep ones.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        parent = waiting.pop()
        try:
            with os.scandir(parent) as scanned:
                entries = [entry for entry in scanned if not entry.name.startswith(".")]
        except OSError:
            left_out[UNREADABLE] += 1
            continue
        for entry in entries:
            if not _is_folder(entry):
                yield Path(entry.path)
            elif entry.is_symlink():
                left_out[FOLDER_LINKS] += 1
            else:
                waiting.append(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """Return a count of files in words.

    >>> describe_left_out({"": 1, ".txt": 20})
    '1 without a suffix, 20 .txt'
    """
    return ", ".join(
        f"{count} {suffix or 'without a suffix'}" for suffix, count in left_out.items()
    )


def folder_prefixes(inputs: Sequence[Path]) -> list[str]:
    """Return for each input what tells its folder from the others', with a slash at the end.

    It is nothing for a single input, and for files of one folder.

    >>> folder_prefixes([Path("/a/train"), Path("/b/train")])
    ['a/train/', 'b/train/']
    """
    if len(inputs) == 1:
        return [""]
    folders = []
    for path in inputs:
        resolved = Path(os.path.realpath(path))
        folders.append(resolved if os.path.isdir(resolved) else resolved.parent)
    different = set(folders)
    if len(different) == 1 and not any(os.path.isdir(path) for path in inputs):
        return [""] * len(inputs)
    longest = max(len(folder.parts) for folder in folders)
    length = 1
    while length < longest and len({f.parts[-length:] for f in different}) < len(different):
        length += 1
    return ["/".join(folder.parts[-length:]).lstrip("/") + "/" for folder in folders]
