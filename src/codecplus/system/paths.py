"""Output files: whether one may be written, and writing it whole or not at all."""

import errno
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from codecplus.errors import CodecPlusError, InputError, OutputError, OutputExistsError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PathLike = str | os.PathLike[str]

PARTIAL_FOLDER = ".partial-"  # begins the names of folders that are being written
_UNFINISHED = re.compile(r"\.codecplus-[0-9a-f]{16}\.part(\.[^.]*)?")
_LONGEST_NAME = 255  # bytes, where the file system does not say
_REFUSED_WRITES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_swept: set[str] = set()


def as_path(path: Any) -> Path:
    """Return a string or path object as a path; raise InputError for other types and names that no
    file can have.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"expected a path as a string or pathlib.Path, got {type(path).__name__}")
    name = os.fsdecode(path)
    if not name or "\0" in name:
        raise InputError(f"expected a file name, got {name!r}")
    return Path(name)


def printable(name: PathLike) -> str:
    """Return a name as text that can be printed and stored: bytes that are no UTF-8 become `\\xff`.

    >>> printable("take.wav")
    'take.wav'
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def check_output(path: PathLike, overwrite: bool = True) -> Path:
    """Return `path` if a file can be written there.

    Raises OutputExistsError when it exists and `overwrite` is false, InputError when it is a
    folder, when the folder it belongs in does not exist, or when its name is too long.
    """
    target = as_path(path)
    if os.path.isdir(target):
        raise InputError(f"expected a file name to write to, got the folder {target}")
    if not os.path.isdir(target.parent):
        raise InputError(
            f"cannot write {target}: there is no folder {target.parent}; create it first"
        )
    longest = _longest_name(target.parent)
    length = len(os.fsencode(target.name))
    if length > longest:
        raise InputError(
            f"cannot write {target}: its name has {length} bytes, and the disk takes {longest}; "
            "name a shorter output"
        )
    if not overwrite and os.path.lexists(target):
        raise OutputExistsError(
            f"{target} exists already; choose another name or allow overwriting"
        )
    return target


def _longest_name(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # AttributeError: Windows
        return _LONGEST_NAME


def refuse_own_source(source: Any, output: PathLike) -> None:
    """Raise InputError if writing `output` would replace the file that is read; links count."""
    if not isinstance(source, str | os.PathLike) or not os.path.exists(output):
        return
    if os.path.exists(source) and os.path.samefile(source, output):
        raise InputError(f"{source} would be written over itself; name another output")


def explain_os_error(error: OSError) -> str:
    """Return an error of the operating system as a sentence without numbers and brackets."""
    if error.strerror is None:
        return str(error)
    if error.errno == errno.ENOSPC:
        reason = "no space left on the disk; make room or write elsewhere"
    else:
        reason = error.strerror[0].lower() + error.strerror[1:]
    if error.filename is None:
        return reason
    return f"{os.fsdecode(error.filename)}: {reason}"


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Give a temporary name beside `path`, which becomes `path` when the block succeeds and is
    removed when it fails.

    The name keeps a short suffix; the file exists, empty, and gets the permissions of any new file;
    a link is written through. The bytes are on the disk before the name is: a power cut leaves the
    old file or the new one. What a killed process left in that folder is removed, see
    `remove_unfinished`. Raises InputError as `check_output` does, OutputError if the system refuses
    to write.
    """
    target = check_output(
        os.path.realpath(check_output(path))
    )  # a link leads to a file, or to none
    if os.path.exists(target) and not target.is_file():
        with _named_refusals(target, target):
            yield target  # /dev/null or a pipe: a rename would put a file in place of the device
        return
    folder = str(target.parent)
    if folder not in _swept:
        _swept.add(folder)
        remove_unfinished(target.parent)
    temporary = target.with_name(f".codecplus-{secrets.token_hex(8)}.part{_short_suffix(target)}")
    with _named_refusals(target, temporary), _locked(temporary, target):
        try:
            yield temporary
            _synchronize(temporary, os.O_RDWR)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    with suppress(OSError):  # some file systems do not synchronize folders
        _synchronize(target.parent, os.O_RDONLY)


@contextmanager
def _named_refusals(target: Path, temporary: Path) -> Iterator[None]:
    """Raise what the system says of a file that is written as an OutputError with its name.

    Errors that name another file, or that need not come from writing, stay.
    """
    try:
        yield
    except CodecPlusError:
        raise
    except OSError as error:
        nameless = error.filename is None and error.errno in _REFUSED_WRITES
        if not nameless and error.filename not in (str(target), str(temporary)):
            raise
        reason = explain_os_error(OSError(error.errno, error.strerror))
        refusal = OutputError(f"cannot write {target}: {reason}")
        refusal.errno = error.errno
        raise refusal from error


@contextmanager
def atomic_files(folder: PathLike) -> Iterator[Path]:
    """Give a temporary folder. What was written to it moves to `folder` when the block succeeds.

    Each file appears whole or not at all; other files of `folder`, which is made if it is missing,
    stay. The bytes of all files are on the disk before the first of them gets its name. What a
    killed process left begins with `PARTIAL_FOLDER`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL_FOLDER, dir=folder) as temporary:
        yield Path(temporary)
        written = sorted(Path(temporary).rglob("*"))
        for path in written:
            if path.is_file():
                _synchronize(path, os.O_RDWR)
        for path in written:
            target = folder / path.relative_to(temporary)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                os.replace(path, target)
    with suppress(OSError):  # some file systems do not synchronize folders
        _synchronize(folder, os.O_RDONLY)


def _short_suffix(path: Path) -> str:
    """Return the suffix, which libraries go by; none where it would make the name too long."""
    return path.suffix if len(path.suffix) <= 16 else ""


@contextmanager
def _locked(path: Path, target: Path) -> Iterator[None]:
    """Make an empty file, and hold its lock; the end of the process lets it go, too.

    Where it cannot be made, the error names the target.
    """
    descriptor = _make_locked(path, target)
    if fcntl is None:
        os.close(descriptor)
        yield
        return
    try:
        yield
    finally:
        os.close(descriptor)


def _make_locked(path: Path, target: Path) -> int:
    """Make an empty file and lock it; return its descriptor.

    Another process may find it before it is locked, and remove it as abandoned. It is made again
    then.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(target)) from error
        if fcntl is not None:
            with suppress(OSError):  # a disk without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.exists(path):
            return descriptor
        os.close(descriptor)


def _synchronize(path: Path, flags: int) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> list[str]:
    """Remove the temporary files of `atomic_path` whose process was killed; return their names.

    A process locks its file for as long as it lives, on network disks too. So a file is removed
    only if its name is ours and nobody holds the lock. Where locks cannot be had nothing is
    removed.
    """
    if fcntl is None:
        return []
    try:
        names = [entry.name for entry in os.scandir(folder) if _UNFINISHED.fullmatch(entry.name)]
    except OSError:
        return []
    removed = []
    for name in names:
        path = folder / name
        with suppress(OSError):
            if _remove_abandoned(path):
                removed.append(name)
    return removed


def _remove_abandoned(path: Path) -> bool:
    """Remove a file whose lock no process holds, and return whether that was so.

    Raises OSError where it is unknown. The lock is held until the file is gone, see `_make_locked`.
    """
    assert fcntl is not None, "nothing is removed without locks"
    if path.is_symlink():
        return False
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return False  # removed meanwhile, and made again
        path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
