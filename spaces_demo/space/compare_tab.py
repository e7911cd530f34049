"""Compare: any two codecs of the harness on one clip, blind if wished."""

import functools
import html
import random
from typing import Any

import gradio as gr

from codecplus.eval.stimuli import match_loudness

from . import coding
from .parts import (
    AT_A_TIME,
    BUSY,
    CLIPS,
    announced,
    checkpoint_for,
    chosen_clip,
    in_a_sentence,
    own_file,
    rate_of_interest,
    shelve,
    table,
    tracks,
)
from .ratings import VoteStore
from .settings import CHECKPOINTS
from .shelf import Shelf

_VERDICTS = {"X": "You preferred X", "Y": "You preferred Y", "neither": "You heard no difference"}


def vote(votes: VoteStore, choice: str, measured: list[dict[str, Any]]) -> str:
    """Store a blind vote for X, Y or neither, and return the tally so far, as HTML."""
    x, y = (f"{figures['codec']} at {figures['kbps']:.1f} kbit/s" for figures in measured)
    votes.add((x, y), {"X": x, "Y": y, "neither": None}[choice])
    counts = votes.tally((x, y))
    tally = f"{counts[x]} for {x}, {counts[y]} for {y}, {counts[None]} for neither"
    return f"<b>{_VERDICTS[choice]}</b>. Votes so far: {html.escape(tally)}."


def build(shelf: Shelf, votes: VoteStore) -> None:
    """Put the tab together."""
    codecs = [(coding.title(name), name) for name in (*CHECKPOINTS, *coding.HARNESS)]
    first_clip = next(iter(CLIPS))
    suited = checkpoint_for(first_clip)
    rate = rate_of_interest(suited, coding.rates(suited))
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            bundled = gr.Radio(list(CLIPS), value=first_clip, label="Clip", elem_id="compare-clip")
            own = own_file("or a file of your own")
            with gr.Row():
                left = gr.Dropdown(
                    codecs,
                    value=suited,
                    label="One codec",
                    scale=2,
                    min_width=150,
                    elem_id="left",
                )
                left_kbps = gr.Number(rate, minimum=0.5, maximum=256, label="kbit/s", min_width=90)
            with gr.Row():
                right = gr.Dropdown(
                    codecs, value="opus", label="The other", scale=2, min_width=150, elem_id="right"
                )
                right_kbps = gr.Number(rate, minimum=0.5, maximum=256, label="kbit/s", min_width=90)
            gr.Markdown("Rates are for each channel.", elem_classes="cp-note")
            blind = gr.Checkbox(
                True, label="Blind: hide which is which until you have chosen", elem_id="blind"
            )
            go = gr.Button("Compare", variant="primary", elem_id="compare")
        with gr.Column(scale=7, min_width=320):
            player = tracks(
                "Press “Compare”: the reference and both codecs, at one loudness.", "compare-player"
            )
            with gr.Row(visible=False, elem_id="votes") as buttons:
                vote_x = gr.Button("I prefer X", elem_id="vote-x")
                vote_none = gr.Button("No difference")
                vote_y = gr.Button("I prefer Y")
            verdict = announced("verdict")
            answer = gr.State()

    @in_a_sentence
    def compare(
        bundled: str | None,
        own: str | None = None,
        left: str = CHECKPOINTS[0],
        left_kbps: float = 6.0,
        right: str = "opus",
        right_kbps: float = 6.0,
        blind: bool = True,
    ) -> tuple:
        """Send one clip through two codecs, to be heard at one loudness beside the original.

        Args:
            bundled: a bundled clip, or nothing
            own: an audio file of your own, used instead
            left: a checkpoint, or opus, opus-vbr, mp3 or aac
            left_kbps: its bitrate in kbit/s per channel
            right: the other codec
            right_kbps: its bitrate in kbit/s per channel
            blind: whether to call them X and Y in a random order, and to tell which is which after
                a choice
        """
        clip = coding.read_clip(chosen_clip(bundled, own))
        pair = [coding.any_codec(clip, left, left_kbps), coding.any_codec(clip, right, right_kbps)]
        if blind:
            random.SystemRandom().shuffle(pair)
        signals = {"Reference": clip.audio, "X": pair[0].audio, "Y": pair[1].audio}
        names = {"Reference": ("Reference", ""), "X": ("X", ""), "Y": ("Y", "")}
        if not blind:
            names |= {
                key: (coded.codec, f"{coded.kbps:.2f} kbit/s")
                for key, coded in zip("XY", pair, strict=True)
            }
        shown = [
            {
                "label": names[key][0],
                "note": names[key][1],
                # Unlike FLAC, WAV files of equal length have equal sizes, which tell nothing.
                "url": shelve(shelf, audio, clip.sample_rate, "clip.wav")[0],
            }
            for key, audio in match_loudness(signals, clip.sample_rate).items()
        ]
        measured = [coding.figures(clip, coded) for coded in pair]
        said = "" if blind else table(measured)
        # A waveform would give away which codec it is; both are heard before one is preferred.
        value = {"tracks": shown, "blind": blind, "unlocks": "votes"}
        return value, gr.Row(visible=blind), said, measured if blind else None

    def reveal(choice: str, measured: list[dict[str, Any]] | None) -> tuple:
        if not measured:
            raise gr.Error(
                "There is nothing to reveal: compare two codecs blind first.", print_exception=False
            )
        named = []
        for letter, figures in zip("XY", measured, strict=True):
            named.append({**figures, "codec": f"{letter}: {figures['codec']}"})
        said = vote(votes, choice, measured)
        return f"<p class='cp-size'>{said}</p>{table(named)}", gr.Row(visible=False), None

    go.click(
        compare,
        [bundled, own, left, left_kbps, right, right_kbps, blind],
        [player, buttons, verdict, answer],
        api_visibility="private",
        concurrency_id=BUSY,
        concurrency_limit=AT_A_TIME,
    )
    for button, choice in ((vote_x, "X"), (vote_none, "neither"), (vote_y, "Y")):
        button.click(
            functools.partial(reveal, choice),
            answer,
            [verdict, buttons, answer],
            api_visibility="private",
            queue=False,
        )
