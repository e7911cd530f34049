"""Audio samples for a card: the bundled clip, coded by the model at three rates."""

import shutil
from pathlib import Path

import numpy as np

from codecplus.audio.files import load_audio, save_audio
from codecplus.codec import Codec
from codecplus.hub.installation import DEMO_CLIP
from codecplus.hub.template import short_number
from codecplus.modeling_dac import DacModel


def write_samples(model: DacModel, folder: Path, name: str, site: str | None) -> str:
    """Write the samples of a model into a folder; return their list as Markdown.

    Args:
        model: the model.
        folder: the folder `assets` of the card.
        name: of the checkpoint, the beginning of all file names.
        site: the address of the card's folder, from which players load samples; without it the
            list has links only.
    """
    folder.mkdir(exist_ok=True)
    audio, sample_rate = load_audio(DEMO_CLIP)
    codec = Codec(model, sample_rate)
    original = f"{name}-original.flac"
    shutil.copy(DEMO_CLIP, folder / original)
    lines = [_link("original", original, site)]
    codes = np.asarray(codec.encode(audio))
    all_codebooks = model.config.n_codebooks
    counts = {max(1, all_codebooks // 4), max(1, all_codebooks // 2), all_codebooks}
    for num_codebooks in sorted(counts, reverse=True):
        file = f"{name}-{num_codebooks}-codebooks.flac"
        decoded = codec.decode(codes[:num_codebooks])[: len(audio)]
        # FLAC holds no more than full scale.
        save_audio(np.clip(decoded, -1, 1), folder / file, sample_rate)
        bitrate = short_number(codec.bitrates[num_codebooks - 1])
        lines.append(_link(f"{bitrate} kbit/s", file, site))
    return "\n".join(lines)


def _link(label: str, file: str, site: str | None) -> str:
    link = f"- [{label}](assets/{file})"
    if site is None:
        return link
    return f'{link} <audio controls preload="none" src="{site}/assets/{file}"></audio>'
