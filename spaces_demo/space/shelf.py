"""Serves results to browsers for a while, under URLs that nobody can guess."""

import mimetypes
import secrets
import shutil
import tempfile
import threading
import time
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

from .settings import KEEP_BYTES, KEEP_SECONDS


class Shelf:
    """A temporary folder of files, each with a token; the oldest go when they are too old or too
    many.
    """

    def __init__(self, seconds: float = KEEP_SECONDS, size: int = KEEP_BYTES):
        self.seconds = seconds
        self.size = size
        self.folder = Path(tempfile.mkdtemp(prefix="codecplus-space-"))
        # token -> path, time of arrival, bytes
        self._files: dict[str, tuple[Path, float, int]] = {}
        self._lock = threading.Lock()

    def new(self, name: str) -> Path:
        """A path in a new folder, to be written and then put on the shelf."""
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir()
        return folder / name

    def put(self, path: Path, *, keep: bool = False, again: bool = False) -> str:
        """Put a file on the shelf and return its URL, relative to the app.

        `keep` makes it stay; `again` is one more name for a file that stays, which costs no space.
        """
        size = 0 if again else path.stat().st_size
        token = secrets.token_urlsafe(16)
        with self._lock:
            self._files[token] = path, float("inf") if keep else time.monotonic(), size
            self._tidy()
        return f"shelf/{token}{path.suffix}"

    def find(self, token: str) -> Path | None:
        """The file of a token, if it is still there."""
        with self._lock:
            self._tidy()
            entry = self._files.get(token)
        return entry[0] if entry else None

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    async def serve(self, request: Request) -> Response:
        """Answer a request for a file, or for a part of it."""
        path = self.find(request.path_params["name"].partition(".")[0])
        if path is None or not path.is_file():
            return PlainTextResponse(
                "This result is gone; results are kept for an hour.", status_code=404
            )
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return FileResponse(
            path, media_type=kind, headers={"Cache-Control": "private, max-age=3600"}
        )

    def _tidy(self) -> None:
        """Drop what is too old, and the oldest of what is too much."""
        limit = time.monotonic() - self.seconds
        passing = sorted(
            (when, token) for token, (_, when, _) in self._files.items() if when != float("inf")
        )
        total = sum(self._files[token][2] for _, token in passing)
        for when, token in passing:
            if when >= limit and total <= self.size:
                break
            path, _, size = self._files.pop(token)
            total -= size
            if all(other.parent != path.parent for other, _, _ in self._files.values()):
                shutil.rmtree(path.parent, ignore_errors=True)
