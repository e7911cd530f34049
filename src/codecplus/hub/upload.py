"""Checkpoints and the demo to the Hub."""

import tempfile
from pathlib import Path

from codecplus._version import __version__
from codecplus.checkpoints.commits import (
    explained_errors,
    full_repo_name,
    stored_card,
    upload_folder,
)
from codecplus.hub.repository import check_source, export_folder
from codecplus.hub.space import export_space
from codecplus.hub.staging import PathLike


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
    missing. Where the source has no card, one that somebody wrote on the Hub stays; see
    `export_folder`.

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
    with tempfile.TemporaryDirectory() as temporary, explained_errors(repo):
        repo = full_repo_name(repo, revision)
        site = f"{constants.ENDPOINT}/{repo}/resolve/{revision or 'main'}"
        folder = Path(temporary) / "export"
        card = stored_card(repo, revision)
        export_folder(source, folder, discriminators=discriminators, site=site, stored_card=card)
        message = f"Upload {Path(source).name} with codecplus {__version__}"
        return upload_folder(folder, repo, message, private=private, revision=revision)


def push_space(repo: str, *, private: bool = False) -> str:
    """Upload the demo as a Gradio Space, see `export_space`; return the commit's address.

    Args:
        repo: `OWNER/NAME`, made if it does not exist; `NAME` alone belongs to the user who is
            logged in.
        private: make it a private Space.

    Raises:
        HubError: if the Hub cannot be reached, or refuses.
    """
    with tempfile.TemporaryDirectory() as temporary, explained_errors(repo):
        repo = full_repo_name(repo)
        folder = export_space(Path(temporary) / "space", repo)
        message = f"Upload the demo of codecplus {__version__}"
        return upload_folder(folder, repo, message, kind="space", private=private)


def push_static_space(folder: PathLike, repo: str, message: str, *, private: bool = False) -> str:
    """Upload a folder's files as a static Space, in one commit; return its address.

    Args:
        folder: with an `index.html` and a `README.md` that says `sdk: static`.
        repo: `OWNER/NAME`, made if it does not exist; `NAME` alone belongs to the user who is
            logged in.
        message: of the commit.
        private: make it a private Space.

    Raises:
        HubError: if the Hub cannot be reached, or refuses.
    """
    with explained_errors(repo):
        repo = full_repo_name(repo)
        folder = Path(folder)
        return upload_folder(folder, repo, message, kind="space", sdk="static", private=private)


def push_dataset_files(folder: PathLike, repo: str, message: str, *, private: bool = False) -> str:
    """Upload a folder's files to a dataset repository, in one commit; return its address.

    Files that the repository has already stay.

    Args:
        folder: its files keep their paths.
        repo: `OWNER/NAME`, made if it does not exist; `NAME` alone belongs to the user who is
            logged in.
        message: of the commit.
        private: make it a private repository.

    Raises:
        HubError: if the Hub cannot be reached, or refuses.
    """
    with explained_errors(repo):
        repo = full_repo_name(repo)
        return upload_folder(Path(folder), repo, message, kind="dataset", private=private)
