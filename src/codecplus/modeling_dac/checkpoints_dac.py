"""Where checkpoints lie, how they are loaded without a word, and their card on the Hub.

It knows names, folders and text, nothing of tensors.
"""

import importlib
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import logging

CARD_TAGS = ("audio", "audio-codec", "dac", "codecplus")

# In a card that transformers makes for want of another, and in one of its Trainer, which asks those
# who complete the card to remove the sentence.
_EMPTY_CARD = "This model card has been automatically generated."
_TRAINER_CARD = "generated automatically according to the information the Trainer had access to"
_PROCEDURE = "## Training procedure"  # the part of a Trainer's card that says something


def embedded_folder(name) -> str | None:
    """Return the folder of the checkpoint of this name, if codecplus brings one along.

    By name: this file also lies in model repositories, where codecplus need not be installed, and
    where such names mean nothing.
    """
    if not isinstance(name, str) or __package__ != "codecplus.modeling_dac":
        return None
    identity = importlib.import_module("codecplus.checkpoints.identity")
    if name not in identity.embedded_names():
        return None
    return str(identity.EMBEDDED_FOLDER / name)


_no_bars = ContextVar("no_bars", default=False)
_outer_hook = None


@contextmanager
def no_bars():
    """Show no progress bar of transformers in this thread meanwhile.

    Files that are here are read and written in a moment. Downloads show bars of their own, and
    other models and threads show theirs.
    """
    token = _no_bars.set(True)
    try:
        yield
    finally:
        _no_bars.reset(token)


def _make_bar(factory, args, kwargs):
    """Return the progress bar that transformers asks for, one that stays silent under `no_bars`."""
    if _no_bars.get():
        kwargs = {**kwargs, "disable": True}
    if _outer_hook is not None:
        return _outer_hook(factory, args, kwargs)
    return factory(*args, **kwargs)


if hasattr(logging, "set_tqdm_hook"):  # older versions show the bar
    _outer_hook = logging.set_tqdm_hook(_make_bar)


def replace_empty_card(folder, repo_id: str, model) -> None:
    """Write the card of a model where transformers left one that says nothing; keep its tags."""
    path = Path(folder) / "README.md"
    if not path.is_file():
        return
    card = ModelCard.load(path)
    if is_empty_card(card.text):
        procedure = training_procedure(card.text)
        describe(model, repo_id, card.data.to_dict(), procedure).save(path)


def is_empty_card(text: str) -> bool:
    """Return whether transformers or its Trainer made a card, and nobody has completed it."""
    return _EMPTY_CARD in text or _TRAINER_CARD in text


def training_procedure(text: str) -> str:
    """Return what the card of a Trainer says on hyperparameters and results; "" for other cards."""
    if _TRAINER_CARD not in text or _PROCEDURE not in text:
        return ""
    return _PROCEDURE + text.partition(_PROCEDURE)[2].rstrip() + "\n"


def describe(model, repo_id: str, metadata: dict | None = None, procedure: str = "") -> ModelCard:
    """Return a short card: what the network is, and how it is loaded.

    Tags and other metadata of the card before stay, and so does a section on the training.
    `codecplus push` writes a longer one, with measured results.
    """
    metadata = dict(metadata or {})
    config = model.config
    causal = config.model_type == "causal_dac"
    kind = "causal DAC" if causal else "DAC"
    highest = config.n_codebooks * config.bits_per_codebook * config.frame_rate / 1000
    remote = ", trust_remote_code=True" if causal else ""
    tags = list(CARD_TAGS)
    tags += [tag for tag in metadata.get("tags") or [] if tag not in tags]
    metadata["tags"] = tags
    metadata["library_name"] = "transformers"
    metadata["pipeline_tag"] = "feature-extraction"
    if embedded_folder(metadata.get("base_model")):  # no repository of the Hub
        del metadata["base_model"]
    data = ModelCardData(**metadata)
    name = repo_id.split("/")[-1]
    frame_rate = f"{config.frame_rate:.4g} frames a second"
    text = f"""---
{data.to_yaml()}
---

# {name}

A {kind}, the neural audio codec: audio to {highest / config.n_codebooks:.3g} to {highest:.3g}
kbit/s of codes and back, before entropy coding.

| | |
|---|---|
| network | `{type(model).__name__}`, {model.num_parameters():,} parameters |
| audio | {config.sampling_rate} Hz, one channel at a time |
| codes | {config.n_codebooks} codebooks of {config.codebook_size}, {frame_rate} |
| latency | {1000 * model.latency_samples / config.sampling_rate:.0f} ms of look-ahead |

## Use

```python
from codecplus import load_codec

codec = load_codec("{repo_id}")
codec.compress("input.wav", "output.dacp")
codec.decompress("output.dacp", "again.wav")
```

With transformers alone: `AutoModel.from_pretrained("{repo_id}"{remote})`.
"""
    if procedure:
        text += f"\n{procedure}"
    return ModelCard(text)
