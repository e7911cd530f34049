"""Several clips or files in one call: their outputs, and what happens when one of them fails."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from codecplus.errors import CodecPlusError, InputError
from codecplus.recordings.listing import NamedFile
from codecplus.recordings.output_names import output_names, repeated
from codecplus.system.paths import PathLike, as_path, explain_os_error


def batch_outputs(sources: list, folder: PathLike | None, suffix: str) -> list[Path | None]:
    """Return where each of several files goes: into a folder, under its own name with another
    suffix.

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


def each(function: Callable[[Any], Any], items: Iterable[Any]) -> list:
    """Call a function with each of several items; an error names the item that it came of."""
    results = []
    for number, item in enumerate(items):
        try:
            results.append(function(item))
        except CodecPlusError as error:
            raise type(error)(f"item {number}: {error}") from error
    return results


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
        except (CodecPlusError, OSError) as error:
            failures.append((source, error))
    if not failures:
        return results
    if len(sources) == 1:
        raise failures[0][1]
    reasons = "; ".join(f"{os.fsdecode(source)}: {_reason(error)}" for source, error in failures)
    first = failures[0][1]
    raise type(first)(
        f"{len(failures)} of {len(sources)} files failed, the others were done: {reasons}"
    ) from first


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return explain_os_error(error)
    return str(error)
