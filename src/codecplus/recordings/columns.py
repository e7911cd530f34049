"""Columns of recordings: which one holds the audio, and which others a caller asks for."""

from collections.abc import Iterator, Sequence
from typing import Any

from codecplus.errors import InputError, MissingExtraError
from codecplus.recordings.listing import AUDIO_SUFFIXES

AUDIO = "__audio__"  # the audio column of Arrow tables, whatever its name is in the data
READ_ROWS = 32  # per table: rows may hold whole files


def import_datasets() -> Any:
    """Return the module `datasets`. Raises MissingExtraError where it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            "tables and data sets need datasets: pip install 'codecplus[tokenize]'"
        ) from error
    return datasets


def checked_columns(
    default: Sequence[str], asked: Sequence[str] | None, known: Sequence[str]
) -> list[str]:
    """Return the columns that were asked for, or the default, each once.

    Raises:
        InputError: for one that is not known.
    """
    if asked is None:
        return list(dict.fromkeys(default))
    missing = [name for name in asked if name not in known]
    if missing:
        raise InputError(f"the data set has no column {missing[0]!r}; it has {', '.join(known)}")
    return list(dict.fromkeys(asked))


def find_audio_column(features: Any, asked: str | None) -> tuple[str, ...]:
    """Return the path to the audio column: its name, or the names from the outer column inwards.

    Args:
        features: the `datasets.Features` of the data.
        asked: a name, `outer.inner` for a nested column; None to find the only one.

    Raises:
        InputError: if there is no such column, or not exactly one that could be meant.
    """
    if asked is not None:
        if asked in features:
            return (asked,)
        path = tuple(asked.split("."))
        if _feature_at(features, path) is None:
            raise InputError(
                f"the data set has no column {asked!r}; "
                f"name the one with the audio: {', '.join(features)}"
            )
        return path
    candidates = _audio_paths(features)
    if "audio" in features and (not candidates or ("audio",) in candidates):
        return ("audio",)
    if len(candidates) != 1:
        names = [".".join(path) for path in candidates]
        raise InputError(
            f"expected one column of audio, found {', '.join(names) or 'none'} among "
            f"{', '.join(features)}; name it with --audio-column"
        )
    return candidates[0]


def undecoded(feature: Any, path: Sequence[str]) -> Any:
    """Return a feature in which the `Audio` at a path inwards is not decoded by `datasets`.

    Features of other types at that place stay as they are: they decode nothing.
    """
    datasets = import_datasets()
    if path:
        return {**feature, path[0]: undecoded(feature[path[0]], path[1:])}
    return datasets.Audio(decode=False) if is_audio(feature) else feature


def _feature_at(features: Any, path: Sequence[str]) -> Any:
    for name in path:
        if not isinstance(features, dict) or name not in features:
            return None
        features = features[name]
    return features


def is_audio(feature: Any) -> bool:
    """Return whether this is an `Audio` feature."""
    return isinstance(feature, import_datasets().Audio)


def _audio_paths(features: Any) -> list[tuple[str, ...]]:
    """Return the paths of `Audio` features, else of columns that look like audio."""
    paths = list(_all_paths(features))
    outer = [path for path in paths if len(path) == 1]
    inner = [path for path in paths if len(path) > 1]
    for candidates in (outer, inner):
        for test in (is_audio, _looks_like_audio):
            matching = [path for path in candidates if test(_feature_at(features, path))]
            if matching:
                return matching
    return [path for path in outer if _is_encoded_file(path[0], features[path[0]])]


def _all_paths(features: Any) -> Iterator[tuple[str, ...]]:
    for name, feature in features.items():
        yield (name,)
        if isinstance(feature, dict) and not _looks_like_audio(feature):
            for path in _all_paths(feature):
                yield (name, *path)


def _looks_like_audio(feature: Any) -> bool:
    return isinstance(feature, dict) and (
        {"bytes", "path"} <= set(feature) or {"array", "sampling_rate"} <= set(feature)
    )


def _is_encoded_file(name: str, feature: Any) -> bool:
    """Return whether a column holds files of an audio format, by its name, as webdataset names
    them.
    """
    return getattr(feature, "dtype", None) == "binary" and f".{name.lower()}" in AUDIO_SUFFIXES
