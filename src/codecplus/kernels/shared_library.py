"""The compiled kernels as a loaded library: that of the wheel, of the cache, or compiled now.

The cache is `$CODECPLUS_CACHE`, or `codecplus` in the user's cache folder. In it each user has a
folder that nobody else may write to, since what lies there is run. A library carries the hash of
its bytes: one that was cut short would kill the process when it is used, not when it is loaded.
"""

import ctypes
import hashlib
import logging
import os
import stat
import sys
import tempfile
from functools import cache
from pathlib import Path

from codecplus.kernels.compiler import KernelError, compile_library, find_compiler, fingerprint
from codecplus.kernels.instruction_sets import InstructionSet, instruction_set, library_name
from codecplus.system.paths import atomic_path

logger = logging.getLogger(__name__)

_PREBUILT = Path(__file__).parent / "prebuilt"
_HASH_BYTES = hashlib.sha256().digest_size


def library(target: InstructionSet | None = None) -> ctypes.CDLL:
    """Return the kernels for an instruction set, by default the one of this process.

    Compiling them takes some seconds, once.

    Raises:
        KernelError: if there are none for this processor, or no compiler.
    """
    target = target or instruction_set()
    if target is None:
        raise KernelError(
            "expected a processor with AVX2, AVX-512 or NEON, and CODECPLUS_KERNELS not off, for "
            "compiled kernels; do without them"
        )
    loaded = _load_once(target)
    if isinstance(loaded, KernelError):
        raise loaded
    return loaded


def usable_set() -> InstructionSet | None:
    """Return the instruction set of this process if its kernels load, else None.

    Why they do not is logged once.
    """
    target = instruction_set()
    if target is None or isinstance(_load_once(target), KernelError):
        return None
    return target


@cache
def _load_once(target: InstructionSet) -> ctypes.CDLL | KernelError:
    try:
        return load(target)
    except KernelError as error:
        logger.info("no compiled kernels, which is slower: %s", error)
        return error


def load(target: InstructionSet) -> ctypes.CDLL:
    """Load the kernels for an instruction set; compile them first if they are nowhere.

    Raises KernelError if that does not work.
    """
    prebuilt = _PREBUILT / library_name(target)
    if prebuilt.is_file():
        return _open(str(prebuilt), prebuilt)
    compiler = find_compiler()
    path = own_folder() / f"{fingerprint(compiler, target)}-{library_name(target)}"
    loaded = _load_cached(path)
    if loaded is not None:
        return loaded
    _fill_cache(compiler, target, path)
    loaded = _load_cached(path)
    if loaded is None:
        raise KernelError(f"expected the compiled kernels in {path}, but something removes them")
    return loaded


def own_folder() -> Path:
    """Return this user's folder in the cache, which is made if it is not there.

    Raises KernelError if it cannot be made, or if somebody else may write to it.
    """
    if not hasattr(os, "getuid"):  # nobody can tell there who may write to a folder
        raise KernelError("expected a wheel with kernels: they cannot be built on this system")
    try:
        chosen = os.environ.get("CODECPLUS_CACHE")
        if chosen:
            cache_folder = Path(chosen)
        else:
            home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            cache_folder = Path(home) / "codecplus"
        folder = cache_folder / f"kernels-{os.getuid()}"
        cache_folder.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = os.lstat(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        raise KernelError(
            f"expected a writable folder for compiled kernels, set CODECPLUS_CACHE to one: {error}"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or not _is_ours_alone(status):
        raise KernelError(
            f"expected {folder} to be a folder that only you may write to, since what lies there "
            "is run; delete it, or set CODECPLUS_CACHE to another place"
        )
    return folder


def _is_ours_alone(status: os.stat_result) -> bool:
    others_write = stat.S_IWGRP | stat.S_IWOTH
    return status.st_uid == os.getuid() and not status.st_mode & others_write


def _fill_cache(compiler: list[str], target: InstructionSet, path: Path) -> None:
    logger.info("compiling kernels for %s, once", target.name)
    try:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / library_name(target)
            compile_library(compiler, target, output)
            code = output.read_bytes()
        path.unlink(missing_ok=True)  # a link would be written through
        with atomic_path(path) as temporary:
            temporary.chmod(0o600)
            content = code + hashlib.sha256(code).digest()  # loaders ignore what lies behind
            temporary.write_bytes(content)
    except OSError as error:
        raise KernelError(f"the compiled kernels could not be written: {error}") from error


def _load_cached(path: Path) -> ctypes.CDLL | None:
    """Load a library of the cache; None if it is not there, or damaged."""
    try:
        # The folder may be moved, and another put in its place, between a check and a use by name.
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if not _is_intact(path.name, folder):
            return None
        name = f"/proc/self/fd/{folder}/{path.name}" if sys.platform == "linux" else str(path)
        return _open(name, path)
    finally:
        os.close(folder)


def _is_intact(name: str, folder: int) -> bool:
    """Return whether a file of a folder, a descriptor, is this user's, with the hash it carries."""
    try:
        # A pipe would be waited for.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        return False
    except OSError as error:  # a link
        logger.warning("the compiled kernels %s are made anew: %s", name, error)
        return False
    try:
        status = os.fstat(descriptor)
        ours = _is_ours_alone(status) and _is_ours_alone(os.fstat(folder))
        content = b""
        if stat.S_ISREG(status.st_mode):
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read()
    finally:
        os.close(descriptor)
    code = content[:-_HASH_BYTES]
    if ours and content[-_HASH_BYTES:] == hashlib.sha256(code).digest():
        return True
    logger.warning("the compiled kernels %s are damaged or somebody else's; made anew", name)
    return False


def _open(name: str, path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise KernelError(
            f"the compiled kernels do not load ({error}); delete {path} and try again"
        ) from error
