"""Parts that the tabs share: errors as sentences, bundled clips, the player, readable numbers."""

import functools
import html
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from codecplus.cli.demo import BUNDLED_CLIP
from codecplus.errors import CodecPlusError

from .settings import FOLDER
from .shelf import Shelf

CLIPS = {
    "Speech into music": BUNDLED_CLIP,
    "Speech": FOLDER / "clips" / "speech.flac",
    "Strings": FOLDER / "clips" / "strings.flac",
    "Percussion": FOLDER / "clips" / "percussion.flac",
}
BUSY = "codec"  # actions that compute share this many-at-a-time group
AT_A_TIME = 2


def in_a_sentence(function: Callable) -> Callable:
    """Show the errors of a function to the visitor, each as one sentence."""

    @functools.wraps(function)
    def wrapped(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except CodecPlusError as error:
            raise gr.Error(
                html.escape(str(error), quote=False), duration=12, print_exception=False
            ) from error

    return wrapped


def chosen_clip(bundled: str | None, own: str | None) -> str | None:
    """The path of the visitor's own clip, else of the bundled one picked."""
    if own:
        return own
    return str(CLIPS[bundled]) if bundled in CLIPS else None


def tracks(empty: str, elem_id: str) -> gr.HTML:
    """A player of several tracks: its value is {"tracks": [{"label", "note", "url"}]}."""
    return gr.HTML(
        value={"empty": empty},
        html_template='<div class="cp-root cp-player"></div>',
        js_on_load="window.codecplus.tracks(element, props, watch);",
        apply_default_css=False,
        elem_id=elem_id,
        show_label=False,
    )


def announced(elem_id: str) -> gr.HTML:
    """Make a place for results, which screen readers read out when they come."""
    return gr.HTML(
        "",
        html_template='<div role="status">${value}</div>',
        apply_default_css=False,
        elem_id=elem_id,
    )


def shelve(shelf: Shelf, audio: Any, rate: int, name: str) -> tuple[str, Path]:
    """Write audio (C, S) as 16-bit WAV, and put it on the shelf: its URL and its path."""
    from codecplus.utils import save_audio

    path = shelf.new(name)
    save_audio(audio, path, rate)
    return shelf.put(path), path


def size_text(size: int) -> str:
    """Bytes as people read them.

    >>> size_text(5985)
    '5.99 kB'
    """
    if size < 1000:
        return f"{size} bytes"
    if size < 1e6:
        return f"{size / 1000:.3g} kB"
    return f"{size / 1e6:.3g} MB"


def times_text(factor: float) -> str:
    """Write a factor with three digits, and never with an exponent.

    >>> times_text(1984.0), times_text(45.26), times_text(7.0)
    ('1,980 ×', '45.3 ×', '7 ×')
    """
    digits = max(0, 2 - math.floor(math.log10(max(factor, 1e-3))))
    rounded = float(f"{factor:.3g}")
    text = f"{rounded:,.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{text} ×"


def table(rows: list[dict[str, Any]]) -> str:
    """Lay out the figures of several codecs side by side, as HTML."""
    lines = [
        ("File", lambda r: size_text(r["bytes"])),
        ("Bitrate", lambda r: f"{r['kbps']:.2f} kbit/s"),
        ("Smaller than 16-bit PCM", lambda r: times_text(r["smaller"])),
        ("PESQ, wide band", lambda r: _score(r, "pesq_wb", 2)),
        ("STOI", lambda r: _score(r, "stoi", 3)),
        ("SI-SDR", lambda r: _score(r, "si_sdr", 1, " dB")),
    ]
    head = "".join(f"<th scope='col'>{html.escape(row['codec'])}</th>" for row in rows)
    body = "".join(
        f"<tr><th scope='row'>{title}</th>{''.join(f'<td>{show(row)}</td>' for row in rows)}</tr>"
        for title, show in lines
    )
    reasons = {reason for row in rows for reason in row["reasons"].values()}
    notes = "".join(f"<p class='cp-hint'>{html.escape(reason)}</p>" for reason in sorted(reasons))
    head = f"<thead><tr><td></td>{head}</tr></thead>"
    return f"<table class='cp-table'>{head}<tbody>{body}</tbody></table>{notes}"


def _score(row: dict[str, Any], name: str, digits: int, unit: str = "") -> str:
    value = row[name]
    if value is None:
        return f"<span title='{html.escape(row['reasons'][name])}'>–</span>"
    return f"{value:.{digits}f}{unit}".replace("-", "−")
