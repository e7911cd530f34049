"""Outputs of shards: a folder, or a dataset on the Hub by way of a folder. Knows no columns.

On the Hub every shard has its footer beside it, `statistics/NAME.json`, in the same commit. So a
node without a common disk knows which shards the others have written, and it can delete its own.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from codecplus.checkpoints.remote import explain, is_hub_id
from codecplus.errors import HubError
from codecplus.system.paths import atomic_path
from codecplus.tokenizing.shards import SIDECARS, read_footer

_COMMIT_EVERY = 300.0  # seconds; the Hub takes some hundred commits an hour
_PREFIX = "hf://datasets/"


class LocalOutput:
    """A folder. Files need no publishing: they are where they belong when they are written."""

    def __init__(self, root: Path):
        self.root = root

    def join(self, job_file: str) -> None:
        """Learn which shards others have written, before the first shard and after the last."""

    def begin(self, names: list[str]) -> None:
        """Publish files before the first shard."""

    def shard_written(self, path: Path) -> None:
        """Note that a shard is complete."""

    def flush(self) -> None:
        """Publish every shard that is complete."""

    def finish(self, names: list[str]) -> None:
        """Publish files after the last shard."""


class HubOutput(LocalOutput):
    """A dataset on the Hub. Shards wait in a folder of the cache for the next commit."""

    def __init__(self, repo: str, private: bool = False):
        from huggingface_hub import HfApi, constants

        super().__init__(
            Path(constants.HF_HOME) / "codecplus" / "tokenize" / repo.replace("/", "--")
        )
        self.repo, self._api = repo, HfApi(library_name="codecplus")
        self._waiting: list[Path] = []
        self._committed = time.monotonic()
        self._ask(
            self._api.create_repo, repo, repo_type="dataset", private=private or None, exist_ok=True
        )

    def _ask(self, question: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return question(*args, **kwargs)
        except Exception as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # a file of ours
            raise HubError(
                f"cannot write the dataset {self.repo!r} on the Hub: {explain(error, self.repo)} "
                f"(for a folder of that name, write ./{self.repo})"
            ) from error

    def join(self, job_file: str) -> None:
        """See `LocalOutput`."""
        published = set(self._ask(self._api.list_repo_files, self.repo, repo_type="dataset"))
        sidecars = self.root / SIDECARS
        sidecars.mkdir(parents=True, exist_ok=True)
        missing = [
            name
            for name in sorted(published)
            if name.startswith("statistics/") and name.endswith(".json")
        ]
        missing = [name for name in missing if not (sidecars / Path(name).name).exists()]
        if job_file in published and not (self.root / job_file).exists():
            missing.append(job_file)
        for name in missing:
            file = self._ask(self._api.hf_hub_download, self.repo, name, repo_type="dataset")
            target = self.root / name if name == job_file else sidecars / Path(name).name
            _write(target, Path(file).read_bytes())
        for path in sidecars.glob("[!.]*.json"):  # of a repository that was made anew since
            if f"statistics/{path.name}" not in published:
                path.unlink(missing_ok=True)
        written = sorted((self.root / "data").glob("[!.]*.parquet"))
        self._waiting = [path for path in written if not (sidecars / f"{path.stem}.json").exists()]

    def begin(self, names: list[str]) -> None:
        """See `LocalOutput`."""
        self._commit({name: self.root / name for name in names}, "Begin tokenising")

    def shard_written(self, path: Path) -> None:
        """See `LocalOutput`."""
        self._waiting.append(path)
        if time.monotonic() - self._committed > _COMMIT_EVERY:
            try:
                self.flush()
            except HubError:  # a busy Hub; the shards wait for the next time, and fail at the end
                self._committed = time.monotonic()

    def flush(self) -> None:
        """See `LocalOutput`."""
        # Another process with the same share may have published a shard, and deleted it here.
        self._waiting = [path for path in self._waiting if path.exists()]
        if not self._waiting:
            return
        footers = {path: json.dumps(read_footer(path)).encode() for path in self._waiting}
        files: dict[str, Any] = {}
        for path, footer in footers.items():
            files |= {f"data/{path.name}": path, f"statistics/{path.stem}.json": footer}
        self._commit(files, f"{len(self._waiting)} shards")
        for path, footer in footers.items():
            _write(self.root / SIDECARS / f"{path.stem}.json", footer)
            path.unlink(missing_ok=True)
        self._waiting = []

    def finish(self, names: list[str]) -> None:
        """See `LocalOutput`."""
        self._commit({name: self.root / name for name in names}, "Statistics")

    def _commit(self, files: dict[str, Any], message: str) -> None:
        from huggingface_hub import CommitOperationAdd

        operations = [
            CommitOperationAdd(name, data if isinstance(data, bytes) else str(data))
            for name, data in files.items()
        ]
        self._ask(
            self._api.create_commit,
            self.repo,
            operations,
            commit_message=message,
            repo_type="dataset",
        )
        self._committed = time.monotonic()


def open_output(out: str | os.PathLike[str], private: bool = False) -> LocalOutput:
    """Return the output for a folder, or for a dataset on the Hub.

    `hf://datasets/OWNER/NAME` is a dataset on the Hub, and `OWNER/NAME` too unless there is a
    folder OWNER.

    Raises:
        HubError: if the Hub cannot be reached.
    """
    name = str(out)
    if name.startswith(_PREFIX):
        return HubOutput(name.removeprefix(_PREFIX), private)
    path = Path(out)
    if isinstance(out, str) and is_hub_id(name) and not path.exists() and not path.parent.exists():
        return HubOutput(name, private)
    return LocalOutput(path)


def _write(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
