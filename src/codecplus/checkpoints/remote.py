"""The Hub as a place where checkpoints lie: their folders in the cache, and what it means when
there is none.
"""

import os
from pathlib import Path

from codecplus.checkpoints.identity import EMBEDDED_FOLDER, embedded_names
from codecplus.errors import CheckpointError

# What a codec is loaded from; nothing that would have to be unpickled, and no training state.
CHECKPOINT_FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json", "entropy*")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form OWNER/NAME."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~"))


def fetch_checkpoint(repo: str, revision: str | None = None) -> Path:
    """The folder of the cache with a repository's checkpoint, all of it of one commit, downloaded
    where it is missing.

    `revision` is a branch, tag or commit. Endpoint, token, cache and offline mode are those of
    `huggingface_hub`. Raises CheckpointError, which says what is in the way.
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
    from huggingface_hub import snapshot_download

    if str(name) in embedded_names():
        return EMBEDDED_FOLDER / str(name)
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        return path.parent
    files: list[str] = [*CHECKPOINT_FILES]
    folder = snapshot_download(
        str(name), revision=revision, allow_patterns=files, local_files_only=True
    )
    return Path(folder)


def explain(error: BaseException, repo: str, revision: str | None = None) -> str:
    """What an error of the Hub's client means for a repository, and what to do, in one sentence."""
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
            "that is no name of a repository; expected OWNER/NAME, of "
            "letters, digits, '-', '_' and '.'"
        )
    if first(errors.OfflineModeIsEnabled) or (
        constants.is_offline_mode() and first(errors.LocalEntryNotFoundError)
    ):
        return (
            "HF_HUB_OFFLINE is set, so that only what is in the cache "
            "can be had, and this is not in it"
        )
    if (answer := first(errors.HfHubHTTPError)) is not None:
        status = answer.response.status_code  # pyright: ignore[reportAttributeAccessIssue]
        message = answer.response.headers.get("X-Error-Message")  # pyright: ignore[reportAttributeAccessIssue]
        if first(errors.RepositoryNotFoundError):
            return (
                f"{host} has no such repository, or it is private and not yours; check the name, "
                "or log in with "
                "`hf auth login`"
            )
        if status == 401:
            return (
                f"{host} does not accept the token; log in again with `hf "
                "auth login`, or correct HF_TOKEN"
            )
        if status == 403:
            return (
                f"the token may not do that ({message}); make one that may on "
                f"{host}/settings/tokens"
            )
        return f"{host} answered {status} ({message or _first_line(answer)})"
    kinds = {base.__name__ for link in chain for base in type(link).__mro__}
    if "TimeoutException" in kinds:
        return (
            f"{host} did not answer in time; try again, or raise "
            "HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT"
        )
    if "TransportError" in kinds:
        return f"{host} cannot be reached; check the network, or HF_ENDPOINT"
    return _first_line(error)


def _chain(error: BaseException):
    """An error and what it came from; a client's own error often says less than its cause."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
