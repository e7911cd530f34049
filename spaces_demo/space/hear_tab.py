"""Hear it: recordings with what codecs make of them, computed beforehand, so that sound comes at
once.
"""

import json
from typing import Any

import gradio as gr

from .settings import CLIPS_FOLDER


def read_showcase() -> dict[str, Any]:
    """Return what `benchmarks/make_space_clips.py` wrote about the recordings and their versions.

    Each of `clips` has its name, credit, licence, `ticks` of its spectrograms, `codes` at the
    highest rate, and `versions`: files with their size in bytes, rate in kbit/s, spectrogram, and
    of codecplus the number of codebooks.
    """
    return json.loads((CLIPS_FOLDER / "showcase.json").read_text(encoding="utf-8"))


def build() -> None:
    """Put the tab together."""
    gr.HTML(
        value=read_showcase(),
        html_template='<div class="cp-root cp-showcase"></div>',
        js_on_load="window.codecplus.showcase(element, props);",
        apply_default_css=False,
        elem_id="showcase",
        show_label=False,
    )
    gr.Markdown(
        "Every version has the same loudness. codecplus is counted with its whole file; Opus and "
        "MP3 without the containers around them.",
        elem_classes="cp-note",
    )
