"""The folder that a Space receives: the demo with the whole package."""

import shutil
from pathlib import Path

from codecplus.checkpoints import embedded_names
from codecplus.hub.installation import PACKAGE, demo_folder, embedded_folders, licence_file
from codecplus.hub.staging import PathLike, new_folder

_LEFT_OUT_OF_PACKAGE = ("__pycache__", "spaces_demo", "model_cards")
_LEFT_OUT_OF_DEMO = ("*.pyc", "*.db", "*.sqlite*", ".*", "__pycache__", "ratings", "flagged")


def export_space(folder: PathLike, repo: str | None = None) -> Path:
    """Write the demo into an empty folder that runs wherever it lies, and return it.

    With a `repo` on the Hub, `OWNER/NAME`, its card gets the address of its thumbnail, and the
    models of the same owner that are copies of the embedded checkpoints.

    The package goes along, weights and all, and requirements.txt names what both need: a Space
    installs its requirements before its files are there, and could not install the package from one
    of them.
    """
    demo = demo_folder()
    matches = shutil.ignore_patterns(*_LEFT_OUT_OF_DEMO)

    def left_out(directory: str, names: list[str]) -> set[str]:
        return {*matches(directory, names), "codecplus"}  # a link to the package

    with new_folder(folder) as new:
        shutil.copytree(demo, new, ignore=left_out, dirs_exist_ok=True)
        shutil.copytree(
            PACKAGE, new / "codecplus", ignore=shutil.ignore_patterns(*_LEFT_OUT_OF_PACKAGE)
        )
        for checkpoint in embedded_folders():
            shutil.copytree(
                checkpoint,
                new / "codecplus" / "checkpoints" / "embedded" / checkpoint.name,
                dirs_exist_ok=True,  # a package with the weights inside has brought them
            )
        shutil.copy(licence_file(), new / "LICENSE")
        if repo is not None:
            complete_card(new / "README.md", repo)
    return Path(folder)


def complete_card(path: Path, repo: str) -> None:
    """Write into the card of a Space what depends on where it lies: its thumbnail and models."""
    from huggingface_hub import SpaceCard, constants, repo_exists

    owner = repo.partition("/")[0]
    card = SpaceCard.load(path)
    data = card.data
    data["thumbnail"] = f"{constants.ENDPOINT}/spaces/{repo}/resolve/main/static/preview.jpg"
    models = [f"{owner}/{name}" for name in embedded_names()]
    present = [model for model in models if repo_exists(model)]
    if present:
        data["models"] = present
    card.save(path)
