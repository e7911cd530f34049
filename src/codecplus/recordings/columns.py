"""Columns of recordings: which one holds the audio, and which others a caller asks for."""

from collections.abc import Sequence
from typing import Any

from codecplus.errors import InputError, MissingExtraError

AUDIO = "__audio__"  # the audio column of Arrow tables, whatever its name is in the data
READ_ROWS = 32  # per table: rows may hold whole files


def import_datasets() -> Any:
    """Return the module `datasets`. Raises MissingExtraError where it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            "data sets and tables need datasets: pip install codecplus[tokenize], or [train], [eval]"
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
    return datasets.Audio(decode=False) if isinstance(feature, datasets.Audio) else feature


def _feature_at(features: Any, path: Sequence[str]) -> Any:
    for name in path:
        if not isinstance(features, dict) or name not in features:
            return None
        features = features[name]
    return features


def _audio_paths(features: Any) -> list[tuple[str, ...]]:
    """Return the paths of `Audio` features, else of those that look like audio, outer ones first."""
    for is_audio in (_is_audio, _looks_like_audio):
        outer = [(name,) for name, feature in features.items() if is_audio(feature)]
        if outer:
            return outer
    for is_audio in (_is_audio, _looks_like_audio):
        inner = [
            (name, *path)
            for name, feature in features.items()
            if isinstance(feature, dict)
            for path in _inner_paths(feature, is_audio)
        ]
        if inner:
            return inner
    return []


def _inner_paths(feature: dict, is_audio: Any) -> list[tuple[str, ...]]:
    paths: list[tuple[str, ...]] = []
    for name, inner in feature.items():
        if is_audio(inner):
            paths.append((name,))
        elif isinstance(inner, dict):
            paths += [(name, *path) for path in _inner_paths(inner, is_audio)]
    return paths


def _is_audio(feature: Any) -> bool:
    return isinstance(feature, import_datasets().Audio)


def _looks_like_audio(feature: Any) -> bool:
    return isinstance(feature, dict) and (
        {"bytes", "path"} <= set(feature) or {"array", "sampling_rate"} <= set(feature)
    )
