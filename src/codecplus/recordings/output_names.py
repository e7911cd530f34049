"""Names of the files that a job over many files writes. Knows names, and opens nothing."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from codecplus.recordings.listing import NamedFile, folder_prefixes


def output_names(
    inputs: Sequence[Path],
    groups: Sequence[Sequence[NamedFile]],
    suffix: str,
    *,
    keep_suffix: bool = False,
) -> list[str]:
    """Return the name of the output of each file, relative to the folder of the outputs.

    Outputs keep the subfolders of a folder that was named. Of several folders, each gets a folder
    of its own name. Files that were named one by one lie side by side; if two of them would get one
    name, the names of their folders go before it.

    Args:
        inputs: what the user named.
        groups: the files of each input.
        suffix: of the outputs.
        keep_suffix: put it behind the suffix of the input: `take.mp3.dacp`.
    """
    names = [[_renamed(name, suffix, keep_suffix) for _, name in group] for group in groups]
    folders = [path for path in inputs if path.is_dir()]
    if len(folders) > 1 or repeated([name for group in names for name in group]):
        prefixes = folder_prefixes(inputs)
        names = [
            [prefix + name for name in group] for prefix, group in zip(prefixes, names, strict=True)
        ]
    return [name for group in names for name in group]


def beside(path: Path, suffix: str, *, keep_suffix: bool = False) -> Path:
    """Return the output that lies beside an input."""
    return path.with_name(_renamed(path.name, suffix, keep_suffix))


def _renamed(name: str, suffix: str, keep_suffix: bool) -> str:
    if keep_suffix:
        return name + suffix
    return Path(name).with_suffix(suffix).as_posix()


def repeated(names: Sequence[str]) -> set[str]:
    """Return the names that stand more than once in a list."""
    return {name for name, count in Counter(names).items() if count > 1}
