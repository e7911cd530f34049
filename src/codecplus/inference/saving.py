"""A codec as a folder that `load_codec` reads, and as a repository on the Hub."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from codecplus._version import __version__
from codecplus.bitstream import EntropyModel
from codecplus.checkpoints.commits import (
    explained_errors,
    full_repo_name,
    stored_card,
    upload_folder,
)
from codecplus.checkpoints.identity import ENTROPY_FILES, WEIGHT_FILES
from codecplus.errors import InputError
from codecplus.inference.entropy_models import ENTROPY_FILE
from codecplus.system.paths import PathLike, atomic_files

SETTINGS = "codec"  # the name in config.json for settings that a codec adds to its model


def save_codec(
    model: Any,
    folder: PathLike,
    entropy_models: Iterable[EntropyModel] = (),
    settings: dict[str, Any] | None = None,
) -> Path:
    """Write a model with its feature extractor, entropy models and settings into a folder.

    Everything is written beside the folder first, and moved into it in the end. Other files in the
    folder stay, but for weights and entropy models that were saved there before.

    Args:
        model: a `DacModel`; weight norm is folded.
        folder: made if it is missing.
        entropy_models: the first is the one to write files with.
        settings: plain data for `config.json`; none by default.

    Raises:
        InputError: for an exported model, and a folder that cannot be written.
    """
    refuse_export(model, "be saved")
    folder = Path(folder)
    try:
        with atomic_files(folder) as temporary:
            _write(model, temporary, entropy_models, settings or {})
            names = {path.name for path in temporary.iterdir()}
    except OSError as error:
        raise InputError(f"cannot save a codec in {folder}: {error.strerror or error}") from error
    for pattern in (ENTROPY_FILES, *WEIGHT_FILES):
        for path in folder.glob(pattern):
            if path.name not in names:
                path.unlink()
    return folder


def push_codec(
    model: Any,
    repo: str,
    entropy_models: Iterable[EntropyModel] = (),
    settings: dict[str, Any] | None = None,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Upload the files of `save_codec`, in one commit; return the commit's address.

    A repository without a card gets a short one; `codecplus push` writes one with results.

    Args:
        model, entropy_models, settings: see `save_codec`.
        repo: `OWNER/NAME`, made if it does not exist; `NAME` alone belongs to the user who is
            logged in.
        private: make it a private repository.
        revision: branch to push to, made from `main` if it does not exist.
        message: of the commit.

    Raises:
        InputError: for an exported model, or a revision that is a commit.
        HubError: if the Hub cannot be reached, or refuses.
    """
    refuse_export(model, "be pushed")
    with tempfile.TemporaryDirectory() as temporary, explained_errors(repo):
        name = full_repo_name(repo, revision)
        folder = save_codec(model, Path(temporary) / "codec", entropy_models, settings)
        _write_card(model, name, revision, folder)
        message = message or f"Upload a codec with codecplus {__version__}"
        return upload_folder(folder, name, message, private=private, revision=revision)


def refuse_export(model: Any, action: str) -> None:
    """Raise InputError for an exported model, which cannot do this."""
    if not hasattr(model, "save_pretrained"):
        raise InputError(
            f"an exported codec cannot {action}: it is two files, ready to run where they lie; "
            "copy them, or load the checkpoint that was exported"
        )


def _write_card(model: Any, repo: str, revision: str | None, folder: Path) -> None:
    """Write a card into a folder, unless the repository has one that says something."""
    from codecplus.modeling_dac.checkpoints_dac import describe, is_empty_card, replace_empty_card

    text = stored_card(repo, revision)
    path = folder / "README.md"
    if text is None:
        describe(model, repo).save(path)
    elif is_empty_card(text):
        path.write_text(text, encoding="utf-8")
        replace_empty_card(folder, repo, model)


def _write(
    model: Any, folder: Path, entropy_models: Iterable[EntropyModel], settings: dict[str, Any]
) -> None:
    from codecplus.modeling_dac import DacFeatureExtractor

    config = model.config
    model.save_pretrained(folder)
    extractor = DacFeatureExtractor(
        sampling_rate=config.sampling_rate, hop_length=config.hop_length
    )
    extractor.save_pretrained(folder)
    for number, entropy in enumerate(entropy_models):
        # The first name comes first when they are read, the others in their order.
        name = f"entropy-{number:02d}.safetensors" if number else ENTROPY_FILE
        (folder / name).write_bytes(entropy.to_bytes())
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields.pop(SETTINGS, None)  # those that the model was loaded with
    if settings:
        fields[SETTINGS] = settings
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
