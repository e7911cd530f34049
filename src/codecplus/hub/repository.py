"""Writes the folder of a model repository. It knows files of checkpoints, nothing of uploads."""

import re
import shutil
from pathlib import Path
from typing import Any

from codecplus.checkpoints import embedded_names, fingerprint, load_model
from codecplus.checkpoints.identity import ENTROPY_FILES
from codecplus.errors import CheckpointError, InputError
from codecplus.hub.installation import licence_file
from codecplus.hub.samples import write_samples
from codecplus.hub.staging import (
    PathLike,
    check_inside,
    copy_files,
    matching_files,
    new_folder,
)
from codecplus.hub.template import SAMPLES_MARK, card_path, local_checkpoint, render_card
from codecplus.modeling_dac import DacFeatureExtractor, DacModel
from codecplus.modeling_dac.checkpoints_dac import CARD_TAGS, is_empty_card, training_procedure

_CHECKPOINT_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
# Files to upload beside weights and configuration, and no others: a folder may hold private ones.
_LICENCES = ("LICENSE", "LICENSE.md", "LICENSE.txt")  # a pattern would take LICENSE-secret.key too
_CHECKPOINT_EXTRAS = (ENTROPY_FILES, *_LICENCES, "training/recipe.json")
_DISCRIMINATORS = "training/discriminators.safetensors"
_CARD_EXTRAS = ("assets/*.png", "assets/*.svg", ".eval_results/*.yaml")


def check_source(source: PathLike) -> None:
    """Raise CheckpointError unless `source` is an embedded name or exists."""
    if str(source) not in embedded_names() and not Path(source).exists():
        raise CheckpointError(
            f"there is no checkpoint {str(source)!r} here; "
            f"push takes {', '.join(embedded_names())}, or a folder"
        )


def export_folder(
    source: PathLike,
    folder: PathLike,
    *,
    discriminators: bool = False,
    site: str | None = None,
    stored_card: str | None = None,
) -> Path:
    """Write the files of a model repository into an empty folder, and return it.

    These are configuration, weights, model code for `trust_remote_code=True`, feature extractor,
    entropy tables, the card with its pictures, `.eval_results`, licences, and audio samples if the
    card has a place for them.

    Args:
        source: an embedded name, a folder that `load_codec` reads, or a `.safetensors` or official
            `.pth` file.
        folder: an empty folder or a new name.
        discriminators: include the discriminators that training left in the folder.
        site: the address that the card's players load samples from; links alone without one.
        stored_card: the card that the repository has. Where the source has none, no card and no
            samples are written, unless this one says nothing or was made for other weights.

    Raises:
        CheckpointError: for a source that is missing or cannot be read.
        InputError: for a folder that holds something, missing discriminators, a link that leads out
            of the source, or a card that belongs to other weights.
    """
    check_source(source)
    checkpoint = local_checkpoint(source)
    embedded = str(source) in embedded_names()
    if checkpoint is not None and not embedded:  # an installer may have linked what it installed
        for name in _CHECKPOINT_FILES:
            check_inside(checkpoint / name, checkpoint)
    model = load_model(source)
    with new_folder(folder) as new:
        model.save_pretrained(new)
        _feature_extractor(model, checkpoint).save_pretrained(new)
        if checkpoint is not None:
            _keep_stored_weights(checkpoint / "model.safetensors", new / "model.safetensors")
            copy_files(matching_files(checkpoint, _CHECKPOINT_EXTRAS), checkpoint, new)
        if discriminators:
            _copy_discriminators(source, checkpoint, new)
        _write_card(source, checkpoint, model, new, site, stored_card)
        licence_name = "LICENSE-CODE"
        if embedded:
            licence_name = "LICENSE"
        shutil.copy(licence_file(), new / licence_name)
    return Path(folder)


def _copy_discriminators(source: PathLike, checkpoint: Path | None, new: Path) -> None:
    if checkpoint is None:
        raise InputError(
            f"discriminators lie in the folder that training writes; {source} is no such folder"
        )
    file = checkpoint / _DISCRIMINATORS
    if not file.is_file():
        raise InputError(
            f"{checkpoint} holds no {_DISCRIMINATORS}; codecplus train writes it, or leave it out"
        )
    copy_files([file], checkpoint, new)


def _feature_extractor(model: DacModel, checkpoint: Path | None) -> DacFeatureExtractor:
    if checkpoint is not None and (checkpoint / "preprocessor_config.json").is_file():
        return DacFeatureExtractor.from_pretrained(checkpoint)
    return DacFeatureExtractor(
        sampling_rate=model.config.sampling_rate, hop_length=model.config.hop_length
    )


def _keep_stored_weights(stored: Path, saved: Path) -> None:
    """Replace the saved weights by the stored file if it has the same tensors.

    So bytes and precision stay those of the checkpoint.
    """
    if stored.is_file() and _tensor_shapes(stored) == _tensor_shapes(saved):
        shutil.copy(stored, saved)


def _tensor_shapes(path: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118


# ---- the card


def _write_card(
    source: PathLike,
    checkpoint: Path | None,
    model: DacModel,
    new: Path,
    site: str | None,
    stored_card: str | None,
) -> None:
    """Write the card of a checkpoint with its pictures, or one without figures if it has none.

    A card of transformers or its Trainer that nobody has completed counts as none; what it says of
    the training is kept.
    """
    folder = checkpoint or Path(source).with_suffix("")
    name = folder.resolve().name
    text = None
    if checkpoint is not None:
        path = card_path(source)
        copy_files(_card_extras(path, name), path.parent, new)
        if path.is_file():
            check_inside(path, path.parent)
            text = path.read_text(encoding="utf-8")
            _check_card(text, path, source, model)
    has_own = text is not None and not is_empty_card(text)
    if not has_own and stored_card is not None and _describes(stored_card, model):
        return
    if text is None:
        text = render_card(model, name, embedded=str(source) in embedded_names())
    elif is_empty_card(text):
        text = render_card(model, name, facts=_facts_of_empty_card(text))
    if SAMPLES_MARK in text:
        text = text.replace(SAMPLES_MARK, write_samples(model, new / "assets", name, site))
    (new / "README.md").write_text(text, encoding="utf-8")


def _facts_of_empty_card(text: str) -> dict[str, Any]:
    """Return what a card of transformers or its Trainer says of these weights, as facts."""
    from huggingface_hub import ModelCard

    card = ModelCard(text, ignore_metadata_errors=True)
    data = card.data.to_dict()
    facts: dict[str, Any] = {"licence": data.get("license")}
    facts["tags"] = [tag for tag in data.get("tags") or [] if tag not in CARD_TAGS]
    if data.get("base_model") not in embedded_names():  # those are no repositories of the Hub
        facts["base_model"] = data.get("base_model")
    procedure = training_procedure(card.text)
    if procedure:
        facts["training"] = procedure.partition("\n")[2].strip()  # without its heading
    return facts


def _card_extras(card: Path, name: str) -> list[Path]:
    """Return the pictures and results of a card."""
    files = matching_files(card.parent, _CARD_EXTRAS)
    if card.name == "README.md":
        return files
    # Cards of embedded checkpoints share a folder.
    return [file for file in files if file.name.startswith(f"{name}-")]


def _describes(card: str, model: DacModel) -> bool:
    """Return whether a card says something, and was not made for other weights."""
    return not is_empty_card(card) and _card_fingerprint(card) in (None, fingerprint(model).hex())


def _card_fingerprint(text: str) -> str | None:
    """Return the fingerprint of the weights that a card was made for; None if it names none."""
    found = re.search(r"^codecplus_fingerprint: ['\"]?([0-9a-f]{32})", text, flags=re.MULTILINE)
    return None if found is None else found.group(1)


def _check_card(text: str, path: Path, source: PathLike, model: DacModel) -> None:
    """Raise InputError if a card says that it was measured with other weights."""
    measured = _card_fingerprint(text)
    weights = fingerprint(model).hex()
    if measured not in (None, weights):
        raise InputError(
            f"the card {path} belongs to other weights ({measured}; these are {weights}); "
            f"evaluate these and run codecplus card --model {source} --results RESULTS"
        )
