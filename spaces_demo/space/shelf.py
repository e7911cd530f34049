"""Serves results to browsers for a while, under URLs that nobody can guess."""

import asyncio
import contextlib
import mimetypes
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

from codecplus.errors import InputError

from .settings import KEEP_BYTES, KEEP_SECONDS


@dataclass
class _Entry:
    """A file under one of its URLs."""

    path: Path
    arrived: float  # infinite for a file that stays
    size: int  # bytes
    owned: bool  # whether the file goes with this entry
    transform: Callable[[bytes, str], bytes] | None = None
    served: bool = False


class Shelf:
    """A temporary folder of files, each with a secret token. The oldest files are removed when they
    are too old, or all together too large.
    """

    def __init__(self, seconds: float = KEEP_SECONDS, size: int = KEEP_BYTES):
        self.seconds = seconds
        self.size = size
        self.folder = Path(tempfile.mkdtemp(prefix="codecplus-space-"))
        self.uploads = self.folder / "uploads"  # of Gradio: what visitors bring, and copies
        self.uploads.mkdir()
        self._entries: dict[str, _Entry] = {}  # by token
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def new(self, name: str) -> Path:
        """Return a path in a new folder, to be written and then put on the shelf."""
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir()
        return folder / name

    def put(
        self,
        path: Path,
        *,
        keep: bool = False,
        again: bool = False,
        transform: Callable[[bytes, str], bytes] | None = None,
    ) -> str:
        """Put a file on the shelf and return its URL, relative to the app.

        `keep` makes it stay. `again` is one more URL of a file that stays, which costs no space.
        `transform` is called with the file's bytes and the token; its result is served.
        """
        token = secrets.token_urlsafe(16)
        arrived = float("inf") if keep else time.monotonic()
        size = 0 if again else path.stat().st_size
        with self._lock:
            self._entries[token] = _Entry(path, arrived, size, not (keep or again), transform)
            self._tidy()
        return f"shelf/{token}{path.suffix}"

    def find(self, token: str) -> Path | None:
        """Return the file of a token, or None if it is gone."""
        entry = self._entry(token)
        return entry.path if entry else None

    def uploaded(self, path: str) -> Path:
        """Return the path of a file that a visitor uploaded; raises InputError for any other."""
        found = Path(path).resolve()
        if not found.is_relative_to(self.uploads.resolve()) or not found.is_file():
            raise InputError("This recording is gone; record it again.")
        return found

    def was_served(self, url: str) -> bool:
        """Return whether somebody fetched the file of a URL that `put` gave."""
        entry = self._entry(_token(url))
        return entry is not None and entry.served

    def tidy(self) -> None:
        """Remove results and uploads that are too old."""
        with self._lock:
            self._tidy()
        limit = time.time() - self.seconds
        # Files and folders may go meanwhile: os.walk passes over them, and nothing ends the thread.
        for folder, _, names in os.walk(self.uploads):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < limit:
                        path.unlink()

    def tidy_regularly(self, every: float = 60) -> None:
        """Tidy from now on, also while no visitor comes, in a thread of its own."""

        def run() -> None:
            while not self._closed.wait(every):
                self.tidy()

        threading.Thread(target=run, daemon=True).start()

    def close_on_sigterm(self) -> None:
        """Remove everything when the process is asked to stop, as a Space is; call it from the main
        thread.
        """

        def stop(number: int, _: Any) -> None:
            self.close()
            raise SystemExit(128 + number)

        signal.signal(signal.SIGTERM, stop)

    def close(self) -> None:
        """Remove everything."""
        self._closed.set()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def serve(self, request: Request) -> Response:
        """Answer a request for a file, or for a part of it."""
        token = _token(request.path_params["name"])
        entry = self._entry(token)
        if entry is None or not entry.path.is_file():
            return PlainTextResponse(
                "This result is gone; results are kept for an hour.", status_code=404
            )
        path = entry.path
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        headers = {"Cache-Control": "private, max-age=3600"}
        entry.served = True
        if entry.transform is None:
            return FileResponse(path, media_type=kind, headers=headers)
        content = await asyncio.to_thread(entry.transform, path.read_bytes(), token)
        return Response(content, media_type=kind, headers=headers)

    def _entry(self, token: str) -> _Entry | None:
        with self._lock:
            self._tidy()
            return self._entries.get(token)

    def _tidy(self) -> None:
        """Drop what is too old, and the oldest of what is too much."""
        limit = time.monotonic() - self.seconds
        passing = {t: e for t, e in self._entries.items() if e.arrived != float("inf")}
        total = sum(entry.size for entry in passing.values())
        for token in sorted(passing, key=lambda t: passing[t].arrived):
            entry = passing[token]
            if entry.arrived >= limit and total <= self.size:
                break
            del self._entries[token]
            total -= entry.size
            if entry.owned and all(
                other.path.parent != entry.path.parent for other in self._entries.values()
            ):
                shutil.rmtree(entry.path.parent, ignore_errors=True)


def _token(url: str) -> str:
    return url.rpartition("/")[2].partition(".")[0]
