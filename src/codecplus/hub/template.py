"""The text of a model card: facts and figures put into the template. Knows no results folders."""

import re
from pathlib import Path
from typing import Any

from codecplus.checkpoints import embedded_names, fingerprint
from codecplus.checkpoints.identity import EMBEDDED_FOLDER
from codecplus.errors import InputError
from codecplus.hub.installation import cards_folder
from codecplus.hub.staging import PathLike
from codecplus.modeling_dac import DacModel

SAMPLES_MARK = "<!-- audio samples -->"  # replaced by samples when a card is pushed


def local_checkpoint(source: PathLike) -> Path | None:
    """Return the folder of a checkpoint.

    It is None for an official file, because the other files of its folder may be anything.
    """
    if str(source) in embedded_names():
        return EMBEDDED_FOLDER / str(source)
    path = Path(source)
    if path.is_dir():
        return path
    if path.name == "model.safetensors":
        return path.parent
    return None


def card_path(source: PathLike) -> Path:
    """Return the path of a checkpoint's card.

    It is `model_cards/NAME.md` for an embedded one, else README.md in its folder. Raises InputError
    for a checkpoint that has no folder.
    """
    if str(source) in embedded_names():
        return cards_folder() / f"{source}.md"
    folder = local_checkpoint(source)
    if folder is None:
        raise InputError(
            f"expected an embedded name or a folder, got {source}; only those have a card"
        )
    return folder / "README.md"


def render_card(
    model: DacModel,
    name: str,
    *,
    embedded: bool = False,
    facts: dict[str, Any] | None = None,
    evaluation: list[dict[str, str]] | None = None,
    training: dict[str, str] | None = None,
    eval_results: list[Any] | None = None,
) -> str:
    """Return the card of a model by the template of `model_cards/`, as Markdown with metadata.

    Args:
        model: the model.
        name: of the checkpoint.
        embedded: whether the checkpoint is part of the package.
        facts: facts that were written by hand.
        evaluation: sections on measured results; without any the card says that there are none.
        training: the section on the learning curve.
        eval_results: measured results as metadata for the Hub.
    """
    import jinja2

    facts = facts or {}
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    config = model.config
    kbps_per_codebook = config.frame_rate * config.bits_per_codebook / 1000
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    latency = 1000 * model.latency_samples / config.sampling_rate
    template = (cards_folder() / "template.md").read_text(encoding="utf-8")
    text = environment.from_string(template).render(
        metadata=_metadata(model, name, facts, eval_results),
        name=name,
        embedded=embedded,
        kind=type(model).__name__,
        causal=config.model_type == "causal_dac",
        config=config,
        kbps=[short_number(n * kbps_per_codebook) for n in (1, config.n_codebooks)],
        parameters=f"{num_parameters / 1e6:.1f} M",
        latency=f"{latency:.0f}",
        samples_mark=SAMPLES_MARK,
        facts=facts,
        evaluation=evaluation,
        training=training,
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _metadata(
    model: DacModel, name: str, facts: dict[str, Any], eval_results: list[Any] | None
) -> str:
    """Return the YAML that the Hub reads at the head of a card."""
    from huggingface_hub import ModelCardData

    tags = ["audio", "audio-codec", "neural-codec", "dac"]
    if model.config.model_type == "causal_dac":
        tags.append("causal")
    tags += facts.get("tags", [])
    metadata = ModelCardData(
        license=facts.get("licence"),
        library_name="codecplus",
        pipeline_tag="audio-to-audio",
        tags=tags,
        model_name=name,
        eval_results=eval_results or None,
        base_model=facts.get("base_model"),
        codecplus_fingerprint=fingerprint(model).hex(),
    )
    return metadata.to_yaml()


def short_number(number: float) -> str:
    """Return a number with at most two decimals, without zeros at the end."""
    return f"{number:.2f}".rstrip("0").rstrip(".")
