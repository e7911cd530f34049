"""Try it: a clip through a checkpoint, to be heard, seen, measured and taken away."""

import html
import json
from typing import Any

import gradio as gr
import numpy as np

from codecplus.errors import CodecPlusError
from codecplus.eval.stimuli import match_loudness

from . import coding, pictures, sound_link
from .parts import (
    AT_A_TIME,
    BUSY,
    CLIPS,
    announced,
    checkpoint_for,
    checkpoint_label,
    chosen_clip,
    in_a_sentence,
    own_file,
    rate_of_interest,
    shelve,
    size_text,
    table,
    times_text,
    tracks,
)
from .settings import CHECKPOINTS, MAX_SECONDS, MAX_UPLOAD
from .shelf import Shelf

RECORDED_SECONDS = 10
EMPTY = "Press “Encode and decode”: original, codecplus and Opus, to be switched while they play."
# Values of the outputs, for Gradio's page: nothing to hear or to download.
_HIDDEN = {"__type__": "update", "value": None, "visible": False}
_FORGET = f"() => {json.dumps([{'empty': EMPTY}, '', _HIDDEN, _HIDDEN, None, ''])}"


def build(shelf: Shelf) -> None:
    """Put the tab together."""
    first_clip = next(iter(CLIPS))
    first_checkpoint = checkpoint_for(first_clip)
    rates = coding.rates(first_checkpoint)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            # The name of the event must stand here for Gradio to know it: "recorded".
            recorder = gr.HTML(
                html_template='<div class="cp-root cp-recorder"></div>',
                js_on_load="window.codecplus.recorder(element, props, trigger); "
                'const EVENTS = ["recorded"];',
                apply_default_css=False,
                elem_id="recorder",
                show_label=False,
                seconds=RECORDED_SECONDS,
            )
            bundled = gr.Radio(list(CLIPS), value=first_clip, label="Clip", elem_id="clip")
            own = own_file("or a file of your own", elem_id="own")
            gr.Markdown(
                f"Up to {MAX_SECONDS} s and {MAX_UPLOAD >> 20} MB: WAV, FLAC, OGG, MP3, "
                "or what a phone records (M4A, MP4, WebM).",
                elem_classes="cp-note",
            )
            name = gr.Radio(
                [(checkpoint_label(c), c) for c in CHECKPOINTS],
                value=first_checkpoint,
                label="Checkpoint",
                elem_id="checkpoint",
            )
            kbps = gr.Slider(
                round(rates[0], 2),
                round(rates[-1], 2),
                value=rate_of_interest(first_checkpoint, rates),
                step=0.01,
                label="Bitrate, kbit/s per channel",
                elem_id="bitrate",
            )
            size_line = announced("size")
            go = gr.Button("Encode and decode", variant="primary", elem_id="encode")
            with gr.Accordion("Decode a .dacp file", open=False):
                coded = gr.File(label=".dacp", file_types=[".dacp"], elem_id="coded", height=120)
                open_it = gr.Button("Decode", elem_id="decode")
        with gr.Column(scale=7, min_width=320):
            player = tracks(EMPTY, "player")
            # The name of the event must stand here for Gradio to know it: "received".
            receiver = gr.HTML(
                "",
                js_on_load='window.codecplus.links.receive(trigger); const EVENTS = ["received"];',
                apply_default_css=False,
                elem_id="receiver",
                show_label=False,
            )
            figures = announced("figures")
            with gr.Row():
                dacp = gr.DownloadButton(
                    "Download .dacp", visible=False, size="sm", elem_id="download-dacp"
                )
                wav = gr.DownloadButton(
                    "Download WAV", visible=False, size="sm", elem_id="download-wav"
                )
            data = gr.JSON(visible=False)

    @in_a_sentence
    def encode(
        bundled: str | None, own: str | None = None, name: str = CHECKPOINTS[0], kbps: float = 6.0
    ) -> tuple:
        """Send a clip through a checkpoint, beside Opus at the same rate, and measure both.

        Args:
            bundled: a bundled clip, "Voice", "Orchestra" or "Percussion"; or nothing
            own: an audio file of your own, used instead
            name: the checkpoint, one of those that `checkpoints` lists
            kbps: bitrate in kbit/s per channel

        Returns:
            tracks to hear with their pictures, a table, the .dacp file, the decoded WAV, the
            figures, a line about the size
        """
        clip = coding.read_clip(chosen_clip(bundled, own))
        coded_clip = coding.round_trip(clip, name, min(kbps, coding.rates(name)[-1]))
        opus = coding.any_codec(clip, "opus", round(coded_clip.kbps / len(clip.audio), 1))
        measured = [coding.figures(clip, coded_clip), coding.figures(clip, opus)]
        signals = {"Original": clip.audio, "Decoded": coded_clip.audio, "Opus": opus.audio}
        notes = {
            "Original": f"{size_text(clip.pcm_bytes)} PCM",
            "Decoded": f"{size_text(coded_clip.size)}, {coding.rate_text(coded_clip.kbps, clip)}",
            "Opus": f"{size_text(opus.size)}, {coding.rate_text(opus.kbps, clip)}",
        }
        file = shelf.new(coding.file_name(coded_clip, ".dacp"))
        file.write_bytes(coded_clip.data)
        shelf.put(file)
        _, decoded = shelve(
            shelf, coded_clip.audio, clip.sample_rate, coding.file_name(coded_clip, ".wav")
        )
        shown = {
            **tracks_with_pictures(shelf, signals, notes, clip.sample_rate),
            "codes": shelved_codes(shelf, name, coded_clip.data),
            "chosen": 1,
            "link": sound_link.link_text(coded_clip.data),
        }
        return (
            shown,
            table(measured),
            str(file),
            str(decoded),
            {
                "codec": measured[0],
                "opus": measured[1],
                "size": coding.size_figures(clip, coded_clip.data),
            },
            _size_line(clip, coded_clip.data),
        )

    @in_a_sentence
    def size(
        bundled: str | None, own: str | None = None, name: str = CHECKPOINTS[0], kbps: float = 6.0
    ) -> str:
        """Size and bitrate of the entropy-coded file of a clip.

        Args:
            bundled: a bundled clip, or nothing
            own: an audio file of your own, used instead
            name: the checkpoint
            kbps: bitrate in kbit/s per channel
        """
        try:
            clip = coding.read_clip(chosen_clip(bundled, own))
            data = coding.compress(clip, name, min(kbps, coding.rates(name)[-1]))
        except CodecPlusError as error:
            # Here and not as a message over the page: the button says it again when it is pressed.
            return f"<p class='cp-size'>{html.escape(str(error))}</p>"
        return _size_line(clip, data)

    @in_a_sentence
    def new_checkpoint(name: str) -> dict:
        rates = [round(rate, 2) for rate in coding.rates(name)]
        return gr.Slider(  # pyright: ignore[reportReturnType]
            rates[0], rates[-1], value=rate_of_interest(name, rates)
        )

    @in_a_sentence
    def decode(path: str | None) -> tuple:
        """Decode a .dacp file that a checkpoint of this demo made.

        Args:
            path: the file

        Returns:
            the track to listen to, a line about it, nothing, the decoded WAV, what the file says
            of itself
        """
        return show_decoded(coding.read_coded(path))

    def show_decoded(data: bytes) -> tuple:
        audio, rate, about = coding.decode_bytes(data)
        _, decoded = shelve(shelf, audio, rate, f"{about['checkpoint']}-decoded.wav")
        note = f"{size_text(len(data))}, {about['kbit/s']:.2f} kbit/s"
        shown = {
            **tracks_with_pictures(shelf, {"Decoded": audio}, {"Decoded": note}, rate),
            "codes": shelved_codes(shelf, coding.checkpoint_of(data), data),
            "link": sound_link.link_text(data),
        }
        about_it = (
            f"{about['checkpoint']}, {about['seconds']:.2f} s, {about['sample_rate']} Hz, {note}"
        )
        line = f"<p class='cp-size'>{html.escape(about_it)}</p>"
        return shown, line, None, str(decoded), about

    @in_a_sentence
    def receive(event: gr.EventData) -> tuple:
        return show_decoded(sound_link.file_of(str(event.sound)))

    @in_a_sentence
    def take_recording(event: gr.EventData) -> tuple:
        """Use what was just recorded: a voice, so the checkpoint and rate for voices."""
        path = shelf.uploaded(str(event.path))
        suited = checkpoint_for("Voice")
        return str(path), suited, new_checkpoint(suited)

    def show(coded: bool) -> tuple:
        return (
            gr.DownloadButton(visible=coded),
            gr.DownloadButton(visible=True),
        )

    inputs: list[Any] = [bundled, own, name, kbps]
    outputs: list[Any] = [player, figures, dacp, wav, data]
    options: dict[str, Any] = {"concurrency_id": BUSY, "concurrency_limit": AT_A_TIME}
    coding_it = go.click(encode, inputs, [*outputs, size_line], api_visibility="private", **options)
    coding_it.success(lambda: show(True), None, [dacp, wav], api_visibility="private", queue=False)
    open_it.click(decode, coded, outputs, api_visibility="private", **options).success(
        lambda: show(False), None, [dacp, wav], api_visibility="private", queue=False
    )
    receiver.received(receive, None, outputs, api_visibility="private", **options).success(
        lambda: show(False), None, [dacp, wav], api_visibility="private", queue=False
    )
    recorder.recorded(
        take_recording, None, [own, name, kbps], api_visibility="private", queue=False
    ).success(encode, inputs, [*outputs, size_line], api_visibility="private", **options).success(
        lambda: show(True), None, [dacp, wav], api_visibility="private", queue=False
    )
    # Only what the visitor's hand does: a recording sets `own` as well, and is coded at once.
    by_hand = [own.upload, own.clear]
    gr.on(
        [kbps.release, *by_hand],
        size,
        inputs,
        size_line,
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="always_last",
        **options,
    )

    def suit(bundled: str) -> tuple:
        """Take the visitor's own clip away, and choose what suits the bundled one."""
        suited = checkpoint_for(bundled)
        return None, suited, new_checkpoint(suited)

    # What was coded before, or is being coded, belongs to another clip. The page forgets it by
    # itself: an answer of the server could come after the next result, and take that away.
    gr.on(
        [bundled.input, *by_hand],
        None,
        None,
        [*outputs, size_line],
        js=_FORGET,
        cancels=[coding_it],
        api_visibility="private",
        queue=False,
        show_progress="hidden",
    )
    bundled.input(suit, bundled, [own, name, kbps], api_visibility="private", queue=False).then(
        size, inputs, size_line, api_visibility="private", show_progress="hidden", **options
    )
    name.input(
        new_checkpoint, name, kbps, api_visibility="private", queue=False, show_progress="hidden"
    ).then(size, inputs, size_line, api_visibility="private", show_progress="hidden", **options)


def tracks_with_pictures(
    shelf: Shelf, signals: dict[str, np.ndarray], notes: dict[str, str], rate: int
) -> dict[str, Any]:
    """Shelve signals (C, S) at one loudness with their spectrograms, as the player takes them.

    The picture of what changed is the second one's against the first.
    """
    levels = {name: pictures.mel_levels(audio, rate) for name, audio in signals.items()}
    first = next(iter(levels.values()))
    loudest = float(first.max())
    ticks = pictures.ticks(rate)
    tracks = []
    for name, audio in match_loudness(signals, rate).items():
        url, _ = shelve(shelf, audio, rate, "clip.flac")
        picture = pictures.draw_levels(levels[name], loudest, shelf.new("spectrogram.webp"))
        track = {"label": name, "note": notes[name], "url": url, "ticks": ticks}
        tracks.append({**track, "picture": shelf.put(picture)})
    shown = {"tracks": tracks, "seconds": next(iter(signals.values())).shape[-1] / rate}
    if len(levels) > 1:
        second = list(levels.values())[1]
        picture = pictures.draw_change(first, second, loudest, shelf.new("change.webp"))
        shown["change"] = {"picture": shelf.put(picture), "ticks": ticks}
    return shown


def shelved_codes(shelf: Shelf, name: str, data: bytes) -> dict[str, Any]:
    """Shelve the codes of a .dacp file that a checkpoint made, as the player takes them."""
    codec = coding.checkpoint(name)
    path = shelf.new("codes.bin")
    about = pictures.write_codes(codec.read_codes(data), path)
    often = f"{codec.frame_rate:.0f} times a second"
    note = f"{about['books']} numbers from 0 to {codec.codebook_size - 1}, {often}"
    return {**about, "note": note, "file": shelf.put(path)}


def _size_line(clip: coding.Clip, data: bytes) -> str:
    size = coding.size_figures(clip, data)
    note = f" ({clip.note})" if clip.note else ""
    smaller = times_text(size["smaller"])
    return (
        f"<p class='cp-size'><b>{size_text(len(data))}</b> for {clip.seconds:.1f} s{note}: "
        f"{coding.rate_text(size['kbps'], clip)}, {smaller} smaller than 16-bit PCM</p>"
    )
