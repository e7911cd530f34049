"""Files of dataset repositories from the Hub."""

from collections.abc import Iterable
from pathlib import Path

from codecplus.checkpoints.commits import explained_errors


def pull_dataset_files(repo: str, names: Iterable[str]) -> Path:
    """Download files of a dataset repository, whatever folders they are in; return their folder.

    What was downloaded before is not downloaded again.

    Args:
        repo: `OWNER/NAME`.
        names: of the files, such as `rows.jsonl`.

    Raises:
        HubError: if the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import snapshot_download

    patterns = [pattern for name in names for pattern in (name, f"*/{name}")]
    with explained_errors(repo):
        return Path(snapshot_download(repo, repo_type="dataset", allow_patterns=patterns))
