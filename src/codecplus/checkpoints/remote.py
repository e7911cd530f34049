"""Downloads checkpoints from the Hub, and explains why one could not be downloaded."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codecplus.checkpoints.identity import (
    EMBEDDED_FOLDER,
    ENTROPY_FILES,
    WEIGHT_FILES,
    embedded_names,
)
from codecplus.errors import CheckpointError, first_line

# Files that a codec is loaded from: none that would have to be unpickled, and no training state.
CHECKPOINT_FILES = ("config.json", *WEIGHT_FILES, ENTROPY_FILES)


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form OWNER/NAME."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~"))


def fetch_checkpoint(repo: str, revision: str | None = None) -> Path:
    """Download a repository's checkpoint to the cache, all of one commit, and return its folder.

    Args:
        repo: OWNER/NAME.
        revision: branch, tag or commit; the main branch by default.

    Endpoint, token, cache and offline mode are those of `huggingface_hub`. Raises CheckpointError,
    which says why there is no checkpoint.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(repo, revision=revision, allow_patterns=list(CHECKPOINT_FILES))
        )
    except Exception as error:
        raise CheckpointError(
            f"cannot find a model at {repo!r}: {explain(error, repo, revision)}"
        ) from error
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{repo!r} holds no model: it has no config.json; check the name and the revision"
        )
    return folder


def checkpoint_folder(name: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Return the folder of a checkpoint that was loaded by this name, without a network.

    That of a repository lies in the cache, and holds the commit that was fetched last.
    """
    if str(name) in embedded_names():
        return EMBEDDED_FOLDER / str(name)
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        return path.parent
    from huggingface_hub import snapshot_download

    files: list[str] = [*CHECKPOINT_FILES]
    folder = snapshot_download(
        str(name), revision=revision, allow_patterns=files, local_files_only=True
    )
    return Path(folder)


def explain(error: BaseException, repo: str, revision: str | None = None) -> str:
    """Explain an error of the Hub's client in one sentence, and say how to mend it.

    Args:
        error: the error of the client.
        repo: OWNER/NAME, which was asked for.
        revision: which was asked for.
    """
    from huggingface_hub import constants, errors

    host = constants.ENDPOINT
    chain = list(_chain(error))

    def first(kind: type[BaseException]) -> BaseException | None:
        return next((link for link in chain if isinstance(link, kind)), None)

    if first(errors.GatedRepoError):
        return f"it is gated; ask for access on {host}/{repo} and log in with `hf auth login`"
    if first(errors.RevisionNotFoundError):
        return f"it has no branch, tag or commit {revision!r}; see {host}/{repo}"
    if first(errors.LocalTokenNotFoundError):
        return "nobody is logged in; run `hf auth login`, or set HF_TOKEN"
    if first(errors.HFValidationError):
        return (
            "that is no name of a repository; expected OWNER/NAME, of letters, digits, "
            "'-', '_' and '.'"
        )
    is_not_cached = constants.is_offline_mode() and first(errors.LocalEntryNotFoundError)
    if first(errors.OfflineModeIsEnabled) or is_not_cached:
        return "HF_HUB_OFFLINE is set, so that only the cache is read, and this is not in it"
    if first(errors.RepositoryNotFoundError):
        return (
            f"{host} has no such repository, or it is private and not yours; check the name, or "
            "log in with `hf auth login`"
        )
    answer = first(errors.HfHubHTTPError)
    if answer is not None:
        return _explain_answer(answer, host)
    kinds = {base.__name__ for link in chain for base in type(link).__mro__}
    if "TimeoutException" in kinds:
        return (
            f"{host} did not answer in time; try again, or raise "
            "HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT"
        )
    if "TransportError" in kinds:
        return f"{host} cannot be reached; check the network, or HF_ENDPOINT"
    return first_line(error)


def _explain_answer(error: Any, host: str) -> str:
    """Explain an answer of the Hub by its status."""
    status = error.response.status_code
    message = error.response.headers.get("X-Error-Message")
    if status == 401:
        return (
            f"{host} does not accept the token; log in again with `hf auth login`, "
            "or correct HF_TOKEN"
        )
    if status == 403:
        return f"the token may not do that ({message}); make one that may on {host}/settings/tokens"
    return f"{host} answered {status} ({message or first_line(error)})"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes; a client's own error often says less than its cause."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
