"""Uploads to the Hub, each in one commit. Knows the Hub's client and folders, nothing of what is in
them.
"""

import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from codecplus._version import __version__
from codecplus.checkpoints.remote import explain
from codecplus.errors import CodecPlusError, HubError, InputError
from codecplus.hub.folders import PathLike
from codecplus.hub.repository import check_source, export_folder
from codecplus.hub.space import export_space

# Files of a repository that belong to the weights being replaced, and results measured with them.
_FILES_OF_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "entropy*")
_FILES_ABOUT_WEIGHTS = (".eval_results/*.yaml", "training/*")


def push(
    source: PathLike,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    discriminators: bool = False,
) -> str:
    """Upload a checkpoint with all that belongs to it, in one commit; return the commit's address.

    The same again uploads nothing, and one that was interrupted goes on with the files that are
    missing.

    Args:
        source: an embedded name, a folder that `load_codec` reads, or a `.safetensors` or official
            `.pth` file.
        repo: `OWNER/NAME`, made if it does not exist; `NAME` alone belongs to the user who is
            logged in.
        private: make it a private repository.
        revision: branch to push to, made from `main` if it does not exist.
        discriminators: upload the discriminators that training left in the folder, too.

    Raises:
        CheckpointError: for a source that is missing or cannot be read.
        InputError: for a revision that is a commit, or a card that belongs to other weights.
        HubError: if the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import constants

    check_source(source)
    with tempfile.TemporaryDirectory() as temporary, _explained(repo):
        repo = _full_name(repo, revision)
        site = f"{constants.ENDPOINT}/{repo}/resolve/{revision or 'main'}"
        folder = Path(temporary) / "export"
        export_folder(source, folder, discriminators=discriminators, site=site)
        _make_repo(repo, "model", private, revision)
        message = f"Upload {Path(source).name} with codecplus {__version__}"
        return _commit(folder, repo, "model", revision, message)


def push_space(repo: str, *, private: bool = False) -> str:
    """Upload the demo as a Gradio Space, see `export_space`; return the commit's address.

    Args:
        repo: `OWNER/NAME`, made if it does not exist; `NAME` alone belongs to the user who is
            logged in.
        private: make it a private Space.

    Raises:
        HubError: if the Hub cannot be reached, or refuses.
    """
    with tempfile.TemporaryDirectory() as temporary, _explained(repo):
        repo = _full_name(repo)
        folder = export_space(Path(temporary) / "space")
        _make_repo(repo, "space", private)
        return _commit(folder, repo, "space", None, f"Upload the demo of codecplus {__version__}")


def push_dataset_files(folder: PathLike, repo: str, message: str, *, private: bool = False) -> str:
    """Upload a folder's files to a dataset repository, in one commit; return its address.

    What the repository has already stays.

    Args:
        folder: whose files keep their paths.
        repo: `OWNER/NAME`, made if it does not exist; `NAME` alone belongs to the user who is
            logged in.
        message: of the commit.
        private: make it a private repository.

    Raises:
        HubError: if the Hub cannot be reached, or refuses.
    """
    with _explained(repo):
        repo = _full_name(repo)
        _make_repo(repo, "dataset", private)
        return _commit(Path(folder), repo, "dataset", None, message)


def _full_name(repo: str, revision: str | None = None) -> str:
    """Return OWNER/NAME for what may be NAME alone; refuse what cannot be pushed to before any work
    is done.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo)
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        raise InputError(f"expected a branch to push to, got the commit {revision}")
    if get_token() is None:
        raise HubError(
            "pushing needs a login: run `hf auth login`, or set HF_TOKEN to a token that may write"
        )
    if "/" in repo:
        return repo
    return f"{HfApi().whoami()['name']}/{repo}"


def _make_repo(repo: str, kind: str, private: bool, revision: str | None = None) -> None:
    """Make the repository, and the branch, where they are missing."""
    api = _api()
    sdk = "gradio" if kind == "space" else None
    api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True, space_sdk=sdk)
    if private and not api.repo_info(repo, repo_type=kind).private:
        raise HubError(
            f"{repo} exists and is public; make it private in its settings first, "
            "or push to another"
        )
    if revision not in (None, "main"):
        api.create_branch(repo, branch=str(revision), repo_type=kind, exist_ok=True)


def _commit(folder: Path, repo: str, kind: str, revision: str | None, message: str) -> str:
    """Upload a folder in one commit, which also deletes what older weights left behind."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.hf_api import RepoFile

    api = _api()
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path
    operations: list[Any] = [CommitOperationAdd(name, path) for name, path in files.items()]
    if kind == "model":
        tree = api.list_repo_tree(repo, recursive=True, revision=revision)
        stored = {file.path: file for file in tree if isinstance(file, RepoFile)}
        operations += [CommitOperationDelete(path) for path in _stale(stored, files)]
    commit = api.create_commit(
        repo, operations, commit_message=message, repo_type=kind, revision=revision
    )
    return str(commit.commit_url)


def _stale(stored: dict[str, Any], files: dict[str, Path]) -> list[str]:
    """Return the stored files that belong to the weights being replaced, results among them."""
    patterns: list[str] = [*_FILES_OF_WEIGHTS]
    if _weights_change(stored.get("model.safetensors"), files.get("model.safetensors")):
        patterns += _FILES_ABOUT_WEIGHTS
    left = [path for path in stored if path not in files]
    return [path for path in left if any(fnmatch(path, pattern) for pattern in patterns)]


def _weights_change(stored: Any, file: Path | None) -> bool:
    """Whether a stored file of weights is replaced by other bytes."""
    if stored is None or file is None:
        return False
    if stored.lfs is None:
        return True
    return stored.lfs.sha256 != hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn errors of the Hub's client into one sentence about a repository."""
    try:
        yield
    except CodecPlusError:
        raise
    except Exception as error:
        raise HubError(f"cannot push to {repo!r}: {explain(error, repo)}") from error


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="codecplus", library_version=__version__)
