"""Uploads of folders to the Hub, each in one commit. It knows the Hub's client, not the files."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from codecplus._version import __version__
from codecplus.checkpoints.identity import ENTROPY_FILES, WEIGHT_FILES
from codecplus.checkpoints.remote import explain
from codecplus.errors import CodecPlusError, HubError, InputError

# Files of a repository that belong to the weights being replaced, and results measured with them.
_FILES_OF_WEIGHTS = (*WEIGHT_FILES, ENTROPY_FILES)
_FILES_ABOUT_WEIGHTS = (".eval_results/*.yaml", "training/*")


def upload_folder(
    folder: Path,
    repo: str,
    message: str,
    *,
    kind: str = "model",
    sdk: str = "gradio",
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Upload a folder in one commit, to a repository that is made if it is missing.

    Of a model, files that belong to weights which are replaced are deleted in the same commit.

    Args:
        folder: all of its files are uploaded.
        repo: OWNER/NAME, from `full_repo_name`.
        message: of the commit.
        kind: `"model"`, `"dataset"` or `"space"`.
        sdk: of a Space that is made.
        private: make it a private repository.
        revision: branch to push to, made from `main` if it does not exist.

    Returns the commit's address. Raises HubError for a repository that exists and is public where
    a private one is wanted, and the errors of the Hub's client, see `explained_errors`.
    """
    _make_repo(repo, kind, sdk, private, revision)
    return _commit(folder, repo, kind, revision, message)


def full_repo_name(repo: str, revision: str | None = None) -> str:
    """Return OWNER/NAME for OWNER/NAME or NAME alone, before any work is done.

    Raises InputError for a revision that is a commit, HubError without a login.
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


def stored_card(repo: str, revision: str | None = None) -> str | None:
    """Return the card of a repository, or None if it has none.

    A branch that is not there yet begins with the card of `main`. Raises the errors of the Hub's
    client.
    """
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi()
    if not api.repo_exists(repo):
        return None
    if revision is not None and not api.revision_exists(repo, revision):
        revision = None
    if not api.file_exists(repo, "README.md", revision=revision):
        return None
    return Path(hf_hub_download(repo, "README.md", revision=revision)).read_text(encoding="utf-8")


def _make_repo(repo: str, kind: str, sdk: str, private: bool, revision: str | None = None) -> None:
    """Make the repository, and the branch, where they are missing."""
    api = _api()
    space_sdk = sdk if kind == "space" else None
    api.create_repo(
        repo, repo_type=kind, private=private or None, exist_ok=True, space_sdk=space_sdk
    )
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
    stale = []
    for path in stored:
        if path not in files and any(fnmatch(path, pattern) for pattern in patterns):
            stale.append(path)
    return stale


def _weights_change(stored: Any, file: Path | None) -> bool:
    """Return whether a stored file of weights is replaced by other bytes."""
    if stored is None or file is None:
        return False
    if stored.lfs is None:
        return True
    return stored.lfs.sha256 != hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def explained_errors(repo: str) -> Iterator[None]:
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
