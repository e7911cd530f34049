"""Every error the package raises on purpose. It knows nothing of what raises them.

Each message says what was expected, what came, and what to do.

CodecPlusError
├── InputError          (ValueError)   an argument that cannot be used
├── FileFormatError     (ValueError)   a file that is not what it should be, or is damaged
├── ModelMismatchError  (ValueError)   codes of one model given to another
├── CheckpointError     (OSError)      a checkpoint that is missing or cannot be read
├── HubError            (OSError)      the Hub cannot be reached, or refuses
├── OutputError         (OSError)      a file that cannot be written, as on a full disk
│   └── OutputExistsError              refusing to overwrite a file
├── TrainingError       (RuntimeError) a training run that cannot go on
└── MissingExtraError   (ImportError)  an optional dependency is not installed
"""

from collections.abc import Iterable
from difflib import get_close_matches


class CodecPlusError(Exception):
    """The base of all errors of this package; the command line prints it as one line and exits with
    status 2.
    """


class InputError(CodecPlusError, ValueError):
    """An argument or an audio signal that cannot be used."""


class FileFormatError(CodecPlusError, ValueError):
    """A file that is truncated, damaged, or not of the expected format."""


class ModelMismatchError(CodecPlusError, ValueError):
    """Codes or a file made by another model than the one asked to decode them."""


class CheckpointError(CodecPlusError, OSError):
    """A checkpoint that does not exist or cannot be read safely."""


class HubError(CodecPlusError, OSError):
    """A push that the Hub refused, or that did not reach it."""


class OutputError(CodecPlusError, OSError):
    """A file that the system refuses to write; `errno` is the system's number for the reason."""


class OutputExistsError(OutputError):
    """The output exists already and overwriting was not asked for."""


class TrainingError(CodecPlusError, RuntimeError):
    """A training run that cannot go on, such as one whose gradient stays infinite."""


class MissingExtraError(CodecPlusError, ImportError):
    """An optional dependency is missing; the message names the extra that brings it."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: `; did you mean 'opus'?`

    The text is empty when no known name is close to `name`.

    >>> f"there is no codec 'opsu'{suggest('opsu', ['mp3', 'opus'])}"
    "there is no codec 'opsu'; did you mean 'opus'?"
    """
    close = get_close_matches(name, list(known), n=1)
    if not close:
        return ""
    return f"; did you mean {close[0]!r}?"


def closest(name: str, known: Iterable[str]) -> list[str]:
    """Return the one known name that is close to an unknown one, or all of them if none is.

    >>> closest("opsu", ["mp3", "opus"]), closest("flac", ["mp3", "opus"])
    (['opus'], ['mp3', 'opus'])
    """
    names = list(known)
    return get_close_matches(name, names, n=1) or names


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, or the name of its type if it has none.

    Errors of other packages may have pages of text. The second line belongs to it if it says what a
    colon announces.

    >>> first_line(ValueError("no such key\nin this file")), first_line(KeyError())
    ('no such key', 'KeyError')
    >>> first_line(ValueError("wrong field:\n  an int\nand more"))
    'wrong field: an int'
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].endswith(":") and len(lines) > 1:
        return f"{lines[0]} {lines[1].strip()}"
    return lines[0]
