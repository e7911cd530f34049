"""Where the package's own files lie: in a checkout of its repository, or as installed.

Knows paths only.
"""

from pathlib import Path

from codecplus.checkpoints.identity import EMBEDDED_FOLDER, embedded_names
from codecplus.errors import InputError

PACKAGE = Path(__file__).parents[1]
DEMO_CLIP = PACKAGE / "assets" / "demo.flac"
_REPOSITORY = PACKAGE.parents[1]  # if the package is used from one


def in_repository() -> bool:
    """Whether the package is used from a checkout of its repository."""
    return (_REPOSITORY / "model_cards" / "template.md").is_file()


def cards_folder() -> Path:
    """Return the folder of the card template and of the embedded checkpoints' cards."""
    if in_repository():
        return _REPOSITORY / "model_cards"
    return PACKAGE / "model_cards"


def demo_folder() -> Path:
    """Return the folder of the demo; raise InputError if the installation lacks it."""
    installed = PACKAGE / "spaces_demo"
    for folder in (_REPOSITORY / "spaces_demo", installed):
        if (folder / "app.py").is_file():
            return folder
    raise InputError(
        f"the demo is not part of this installation: there is no {installed}; "
        "install codecplus again"
    )


def embedded_folders() -> list[Path]:
    """Return the folders of the embedded checkpoints, which need not lie in the package."""
    return [EMBEDDED_FOLDER / name for name in embedded_names()]


def licence_file() -> Path:
    """Return the licence of the package, which its model code carries along."""
    if in_repository():
        return _REPOSITORY / "LICENSE"
    from importlib.metadata import files

    for file in files("codecplus") or []:
        if file.name == "LICENSE":
            return Path(str(file.locate()))
    raise InputError("the installed package lacks its LICENSE file; install it again")
