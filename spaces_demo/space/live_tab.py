"""Live: the microphone through the streaming codec, with the latency that is really there."""

from typing import Any

import gradio as gr

from . import coding, live
from .parts import (
    AT_A_TIME,
    BUSY,
    CLIPS,
    checkpoint_label,
    chosen_clip,
    in_a_sentence,
    own_file,
    shelve,
    tracks,
)
from .settings import CHECKPOINTS, MAX_LIVE_CALLS, MAX_LIVE_SECONDS
from .shelf import Shelf

TALKING_SECONDS = 0.15  # of delay one way; ITU-T G.114 asks for no more


def build(shelf: Shelf) -> None:
    """Put the tab together."""
    names = sorted(CHECKPOINTS, key=lambda name: coding.checkpoint(name).latency)
    first = coding.checkpoint(names[0])
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            name = gr.Radio(
                [(_label(n), n) for n in names],
                value=names[0],
                label="Checkpoint",
                elem_id="live-checkpoint",
            )
            rates = first.bitrates
            kbps = gr.Slider(
                round(rates[0], 2),
                round(rates[-1], 2),
                value=round(rates[-1], 2),
                step=0.01,
                label="Bitrate, kbit/s",
                elem_id="live-bitrate",
            )
            gr.Markdown(
                "What you say is encoded in pieces of 20 ms, decoded, and played to you. You may "
                "change checkpoint and rate during the call. Nothing is kept. Up to "
                f"{MAX_LIVE_SECONDS} s a call and {MAX_LIVE_CALLS} calls at a time.",
                elem_classes="cp-note",
            )
        with gr.Column(scale=7, min_width=320):
            line = gr.HTML(
                value="",
                html_template='<div class="cp-root cp-live"></div>',
                js_on_load="window.codecplus.live(element, props, watch);",
                apply_default_css=False,
                elem_id="live",
                checkpoint=names[0],
                kbps=rates[-1],
                rate=first.model_sample_rate,
                clip=shelf.put(CLIPS["Voice"], keep=True),
            )
    with gr.Accordion("Without a microphone: what computing takes on this server", open=False):
        with gr.Row():
            bundled = gr.Radio(list(CLIPS), value="Voice", label="Clip")
            own = own_file("or a file of your own")
        button = gr.Button("Stream it in packets of 20 ms", elem_id="live-measure")
        player = tracks("", "live-player")
        measured = gr.JSON(label="Measured", elem_id="live-measured")

    def settings(name: str, kbps: float) -> gr.HTML:
        codec = coding.checkpoint(name)
        return gr.HTML(checkpoint=name, kbps=kbps, rate=codec.model_sample_rate)

    @in_a_sentence
    def new_checkpoint(name: str) -> tuple:
        rates = [round(rate, 2) for rate in coding.rates(name)]
        return gr.Slider(rates[0], rates[-1], value=rates[-1]), settings(name, rates[-1])

    @in_a_sentence
    def stream(
        bundled: str | None, own: str | None = None, name: str = names[0], kbps: float = 6.0
    ) -> tuple[dict, dict[str, Any]]:
        """Stream a clip through a checkpoint in packets of 20 ms, and time each.

        Args:
            bundled: a bundled clip, or nothing
            own: an audio file of your own, used instead
            name: the checkpoint
            kbps: bitrate in kbit/s
        """
        clip = coding.read_clip(chosen_clip(bundled, own))
        audio, rate, found = live.measure(clip, name, min(kbps, coding.rates(name)[-1]))
        url, _ = shelve(shelf, audio[None], rate, "streamed.wav")
        return {
            "tracks": [{"label": "Streamed", "note": f"{found['kbps']:.2f} kbit/s", "url": url}]
        }, found

    name.change(
        new_checkpoint,
        name,
        [kbps, line],
        api_visibility="private",
        queue=False,
        show_progress="hidden",
    )
    kbps.release(
        in_a_sentence(settings),
        [name, kbps],
        line,
        api_visibility="private",
        queue=False,
        show_progress="hidden",
    )
    button.click(
        stream,
        [bundled, own, name, kbps],
        [player, measured],
        api_visibility="private",
        concurrency_id=BUSY,
        concurrency_limit=AT_A_TIME,
    )


def _label(name: str) -> str:
    """A checkpoint's name, with a word of warning where its delay is too long for talking."""
    if coding.checkpoint(name).latency > TALKING_SECONDS:
        return f"{coding.title(name)} (not for talking)"
    return checkpoint_label(name)
