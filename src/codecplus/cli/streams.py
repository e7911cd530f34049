"""The standard streams of a command. A stream that cannot be written to does not stop the work.

Names of files are bytes on most systems. They go to standard output as they are, and as escapes
where the terminal's encoding has no such letter.
"""

import codecs
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from codecplus.errors import CodecPlusError
from codecplus.system.paths import explain_os_error

_ESCAPES = "codecplus.names"  # of `_spell`, as an error handler of Python's codecs
# Unicode's classes of characters that set the direction of the text behind them (UAX 9).
_DIRECTIONS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


def describe_error(error: BaseException) -> str:
    """Return one line about an error; one of an unknown kind is named by its type."""
    if isinstance(error, MemoryError):
        return "there is not enough memory; use a smaller batch, or a shorter file"
    if isinstance(error, CodecPlusError):
        return one_line(str(error).strip()) or type(error).__name__
    if isinstance(error, OSError):
        return one_line(explain_os_error(error).strip()) or type(error).__name__
    message = f"{type(error).__name__}: {error}".rstrip(": ")
    return one_line(message.strip().splitlines()[0])


def one_line(text: str) -> str:
    """Return a text with its control characters as escapes.

    Names of files may hold them: a line feed would make two lines of one, and others tell a
    terminal what to do, or turn the text around.

    >>> one_line("new\nline.wav")
    'new\\nline.wav'
    """
    return "".join(
        repr(character)[1:-1] if _controls(character) else character for character in text
    )


def _controls(character: str) -> bool:
    """Return whether a character is none to see, but breaks lines or changes what stands near."""
    breaks = unicodedata.category(character) in ("Cc", "Zl", "Zp")
    return breaks or unicodedata.bidirectional(character) in _DIRECTIONS


def say(line: str, stream: Any) -> None:
    """Print a line above the progress bars; control characters become escapes, see `one_line`.

    A full disk behind standard output does not end the work on other files: it is reported at the
    end, by `flush_output`. A reader that left does.
    """
    from tqdm import tqdm

    try:
        tqdm.write(one_line(line), file=stream)
    except BrokenPipeError:
        raise
    except OSError:
        _lost.add(stream)


_lost: set[Any] = set()  # streams that did not take all that was printed


def flush_output() -> None:
    """Write out what standard output still holds.

    Raises:
        CodecPlusError: if it did not take everything that was printed.
        BrokenPipeError: if its reader is gone.
    """
    lost = sys.stdout in _lost
    _lost.clear()
    with _named_output():
        sys.stdout.flush()
    if lost:
        raise CodecPlusError("standard output did not take all that was printed")


class BinaryOutput:
    """Standard output for bytes. What keeps it from taking them is an error with its name."""

    def write(self, data: bytes) -> int:
        """Write all of these bytes; raise CodecPlusError if they are refused."""
        left = memoryview(data)
        with _named_output():
            while left:  # `python -u` writes as many as the system takes at a time
                left = left[sys.stdout.buffer.write(left) or 0 :]
        return len(data)

    def flush(self) -> None:
        """Write out what is held back; raise CodecPlusError if it is refused."""
        with _named_output():
            sys.stdout.buffer.flush()


@contextmanager
def _named_output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CodecPlusError(f"cannot write to standard output: {explain_os_error(error)}") from (
            error
        )


def discard_output() -> None:
    """Drop the buffered text of standard output; see `_discard`."""
    _discard(sys.stdout)


def _discard(stream: TextIO) -> None:
    """Drop the buffered text of a stream, on which Python would fail again at its exit."""
    with suppress(OSError, ValueError):  # a standard stream may be no file
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)


def discard_output_that_fails() -> None:
    """Write out what standard output holds, or send it nowhere if it takes nothing."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        discard_output()


@contextmanager
def safe_streams() -> Iterator[None]:
    """Open streams that were closed, and let standard output take every name."""
    _open_closed()
    stderr = sys.stderr
    errors = getattr(sys.stdout, "errors", None)
    sys.stderr = _ForgivingStream(stderr)  # pyright: ignore[reportAttributeAccessIssue]
    _set_errors(sys.stdout, _ESCAPES)
    try:
        yield
    finally:
        sys.stderr = stderr
        _set_errors(sys.stdout, errors)


def _open_closed() -> None:
    """Put something in place of standard streams that were closed when the program began.

    Else the next file that is opened would get their number, and what C libraries print would go
    into it. Reading finds nothing. Writing to standard output fails, as it should: what was asked
    for is lost.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _set_errors(stream: TextIO, errors: str | None) -> None:
    if errors is not None and hasattr(stream, "reconfigure"):
        with suppress(OSError):  # it flushes first
            stream.reconfigure(errors=errors)  # pyright: ignore[reportAttributeAccessIssue]


def _spell(error: UnicodeError) -> tuple[bytes, int]:
    """Return the bytes for characters that an encoding does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    spelt = b""
    for character in error.object[error.start : error.end]:
        number = ord(character)
        if 0xDC80 <= number <= 0xDCFF:  # a byte of a name that is no UTF-8
            spelt += bytes([number - 0xDC00])
        else:
            spelt += character.encode("ascii", "backslashreplace")
    return spelt, error.end


codecs.register_error(_ESCAPES, _spell)


class _ForgivingStream:
    """Standard error, on which nothing can be said of its own failure."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            _discard(self._stream)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
