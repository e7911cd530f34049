"""Names of the files that a job over many files writes. Knows names, and opens nothing."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from codecplus.errors import CodecPlusError, InputError
from codecplus.recordings.files import NamedFile, folder_prefixes
from codecplus.system.paths import PathLike, as_path


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


def batch_outputs(sources: list, folder: PathLike | None, suffix: str) -> list[Path | None]:
    """Where each of several files goes: into a folder, under its own name with another suffix.

    Files of one name get the folders that tell them apart, which are made; files that differ in
    their suffix alone keep it, as in `take.mp3.dacp`.

    Raises InputError where two would still become one file, or one would replace a source.
    """
    if folder is None:
        return [None] * len(sources)
    paths = [as_path(source) for source in sources]
    groups = [[NamedFile(path, path.name)] for path in paths]
    names = output_names(paths, groups, suffix)
    clashing = repeated(names)
    if clashing:
        longer = output_names(paths, groups, suffix, keep_suffix=True)
        pairs = zip(names, longer, strict=True)
        names = [long if name in clashing else name for name, long in pairs]
    originals = {os.path.realpath(path): path for path in paths}
    outputs: dict[Path, Path] = {}
    for path, name in zip(paths, names, strict=True):
        output = as_path(folder) / name
        if output in outputs:
            raise InputError(
                f"{path} and {outputs[output]} would both become {output}; "
                "rename one, or give them different folders"
            )
        replaced = originals.get(os.path.realpath(output))
        if replaced is not None:
            raise InputError(f"{path} would be written over {replaced}; name another folder")
        outputs[output] = path
    if os.path.isdir(folder):
        for output in outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
    return list(outputs)


def each_file(
    function: Callable[[Any, Path | None], Any], sources: list, outputs: Sequence[Path | None]
) -> list:
    """Call a function with each source and its output; one failure takes no other file along.

    Raises the kind of the first failure when all files were tried; its message names each that
    failed, and why.
    """
    results = []
    failures = []
    for source, output in zip(sources, outputs, strict=True):
        try:
            results.append(function(source, output))
        except CodecPlusError as error:
            failures.append((source, error))
    if not failures:
        return results
    if len(sources) == 1:
        raise failures[0][1]
    reasons = "; ".join(f"{os.fsdecode(source)}: {error}" for source, error in failures)
    first = failures[0][1]
    raise type(first)(
        f"{len(failures)} of {len(sources)} files failed, the others were done: {reasons}"
    ) from first
