"""Parts that the tabs share: errors as sentences, bundled clips, the player, readable numbers."""

import functools
import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from codecplus.errors import CodecPlusError

from .coding import title
from .settings import CHECKPOINTS, CLIPS_FOLDER
from .shelf import Shelf

CLIPS = {
    "Voice": CLIPS_FOLDER / "voice-original.flac",
    "Orchestra": CLIPS_FOLDER / "orchestra-original.flac",
    "Percussion": CLIPS_FOLDER / "percussion.flac",
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
    if bundled in CLIPS:
        return str(CLIPS[bundled])
    return None


def own_file(label: str, elem_id: str | None = None) -> gr.File:
    """A place for a visitor's own recording.

    It is no gr.Audio: that brings 200 kB of scripts to every visitor, and plays what the page's own
    player plays.
    """
    return gr.File(label=label, height=120, elem_id=elem_id)


def checkpoint_for(bundled: str | None) -> str:
    """Return the checkpoint that suits a bundled clip: one for speech, one for music."""
    suited = "dac-44khz-small"
    if bundled == "Voice":
        suited = "dac-16khz-live"
    if suited in CHECKPOINTS:
        return suited
    return CHECKPOINTS[0]


def checkpoint_label(name: str) -> str:
    """Return a checkpoint's name with what it is for, where that is known."""
    purpose = {"dac-16khz-live": "speech", "dac-44khz-small": "music"}.get(name)
    if purpose is None:
        return title(name)
    return f"{title(name)} ({purpose})"


def rate_of_interest(name: str, rates: list[float]) -> float:
    """Return the rate to begin with, in kbit/s per channel.

    It is where a checkpoint is at its best beside others, or its highest where that is not known.
    """
    best = {"dac-16khz-live": 2.0, "dac-44khz-small": 3.45}
    return round(min(best.get(name, rates[-1]), rates[-1]), 2)


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
    """Write audio (C, S), 16 bits, as the suffix says, and put it on the shelf: URL and path.

    FLAC loads faster; WAV files of equal length have equal sizes.
    """
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


@dataclass(frozen=True)
class _Line:
    """One figure of a table: its name, what it says in words, and whether more of it is better."""

    title: str
    words: str
    value: Callable[[dict[str, Any]], float | None]
    text: Callable[[dict[str, Any]], str]
    more_is_better: bool | None = None


_LINES = (
    _Line(
        "File",
        "All that is sent, with the container around it.",
        lambda row: row["bytes"],
        lambda row: size_text(row["bytes"]),
        False,
    ),
    _Line(
        "Bitrate",
        "Of Opus, MP3 and AAC without their container.",
        lambda row: row["kbps"],
        lambda row: f"{row['kbps']:.2f} kbit/s",
    ),
    _Line(
        "Smaller than 16-bit PCM",
        "",
        lambda row: row["smaller"],
        lambda row: times_text(row["smaller"]),
    ),
    _Line(
        "PESQ, wide band",
        "4.6 perfect, 1 unusable. It flatters codecplus, which was trained on a model of it.",
        lambda row: row["pesq_wb"],
        lambda row: _score(row, "pesq_wb", 2),
        True,
    ),
    _Line(
        "STOI",
        "How well words can be understood: 1 perfect, below 0.7 hard to follow.",
        lambda row: row["stoi"],
        lambda row: _score(row, "stoi", 3),
        True,
    ),
    _Line(
        "SI-SDR",
        "How exactly the wave is kept, not how it sounds.",
        lambda row: row["si_sdr"],
        lambda row: _score(row, "si_sdr", 1, " dB"),
        True,
    ),
)


def table(rows: list[dict[str, Any]]) -> str:
    """Lay out the figures of several codecs side by side, as HTML, the better value of each line
    marked.
    """
    head = "".join(f"<th scope='col'>{html.escape(row['codec'])}</th>" for row in rows)
    body = "".join(_table_line(line, rows) for line in _LINES)
    reasons = {reason for row in rows for reason in row["reasons"].values()}
    notes = "".join(f"<p class='cp-hint'>{html.escape(reason)}</p>" for reason in sorted(reasons))
    head = f"<thead><tr><td></td>{head}</tr></thead>"
    return f"<table class='cp-table'>{head}<tbody>{body}</tbody></table>{notes}"


def _table_line(line: _Line, rows: list[dict[str, Any]]) -> str:
    texts = [line.text(row) for row in rows]
    best = _best(line, rows)
    cells = []
    for row, text in zip(rows, texts, strict=True):
        # Values that read alike are alike.
        is_better = best is not None and line.value(row) == best and len(set(texts)) > 1
        if is_better:
            cells.append(f"<td><span class='cp-better'>{text}</span></td>")
        else:
            cells.append(f"<td>{text}</td>")
    words = f"<small>{line.words}</small>" if line.words else ""
    return f"<tr><th scope='row'>{line.title}{words}</th>{''.join(cells)}</tr>"


def _best(line: _Line, rows: list[dict[str, Any]]) -> float | None:
    """Return the best value of a line, or None where it has no better or a value is missing."""
    values = [line.value(row) for row in rows]
    known = [value for value in values if value is not None]
    if line.more_is_better is None or len(known) < len(rows) or len(rows) < 2:
        return None
    if line.more_is_better:
        return max(known)
    return min(known)


def _score(row: dict[str, Any], name: str, digits: int, unit: str = "") -> str:
    value = row[name]
    if value is None:
        return f"<span title='{html.escape(row['reasons'][name])}'>–</span>"
    return f"{value:.{digits}f}{unit}".replace("-", "−")
