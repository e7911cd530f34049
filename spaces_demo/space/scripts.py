"""The actions for scripts and agents: plain values in, one small dictionary out, files beside it.

The tabs have events of their own, which no script can call. Arguments have defaults: those without
are required of agents, who could then name no bundled clip without a file of their own.
"""

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.events import api

from codecplus.eval.stimuli import match_loudness

from . import coding, live
from .leaderboard_tab import read_own_board, summary
from .listening import ListeningTest, copy_ratings
from .parts import AT_A_TIME, BUSY, CLIPS, chosen_clip, in_a_sentence, shelve
from .settings import CHECKPOINTS, root_address
from .shelf import Shelf

_FAST: dict[str, Any] = {"concurrency_limit": 8}
_SLOW: dict[str, Any] = {"concurrency_id": BUSY, "concurrency_limit": AT_A_TIME}


def build(shelf: Shelf, test: ListeningTest) -> None:
    """Register every action under its name."""
    _build_coding(shelf)
    _build_comparing(shelf)
    _build_listening(test)

    @in_a_sentence
    def leaderboard(board: str = "", metric: str = "") -> dict:
        """Return one board of the leaderboard, by one metric, best first.

        Args:
            board: the board's name; empty for the first
            metric: the metric's name; empty for the one that ranks

        Returns: names of all boards, names of the board's metrics, and a row for each codec
        """
        return summary(read_own_board(test), board, metric)

    api(leaderboard, api_name="leaderboard", **_FAST)


def _build_coding(shelf: Shelf) -> None:
    @in_a_sentence
    def encode(
        request: gr.Request,
        clip: str | None = None,
        own: str | None = None,
        checkpoint: str = CHECKPOINTS[0],
        kbps: float = 6.0,
    ) -> tuple[dict[str, Any], str, str]:
        """Send a clip through a checkpoint, and through Opus at the same rate, and measure both.

        Args:
            clip: a bundled clip, "Voice", "Orchestra" or "Percussion"; or none
            own: an audio file of your own, used instead
            checkpoint: one of those that `checkpoints` lists
            kbps: bitrate in kbit/s per channel

        Returns: figures and URLs to listen to, the .dacp file, the decoded WAV
        """
        audio = coding.read_clip(chosen_clip(clip, own))
        coded = coding.round_trip(audio, checkpoint, coding.check_rate(checkpoint, kbps))
        opus = coding.any_codec(audio, "opus", round(coded.kbps / len(audio.audio), 1))
        signals = {"original": audio.audio, "decoded": coded.audio, "opus": opus.audio}
        dacp = shelf.new(coding.file_name(coded, ".dacp"))
        dacp.write_bytes(coded.data)
        shelf.put(dacp)
        name = coding.file_name(coded, ".wav")
        _, decoded = shelve(shelf, coded.audio, audio.sample_rate, name)
        figures = {
            "codec": coding.figures(audio, coded),
            "opus": coding.figures(audio, opus),
            "urls": _urls(shelf, signals, audio.sample_rate, request),
        }
        return figures, str(dacp), str(decoded)

    @in_a_sentence
    def size(
        clip: str | None = None,
        own: str | None = None,
        checkpoint: str = CHECKPOINTS[0],
        kbps: float = 6.0,
    ) -> dict[str, float]:
        """Return bytes and bitrate of a clip's file, without decoding it.

        Args:
            clip: a bundled clip, or none
            own: an audio file of your own, used instead
            checkpoint: one of those that `checkpoints` lists
            kbps: bitrate in kbit/s per channel
        """
        audio = coding.read_clip(chosen_clip(clip, own))
        kbps = coding.check_rate(checkpoint, kbps)
        return coding.size_figures(audio, coding.compress(audio, checkpoint, kbps))

    @in_a_sentence
    def decode(file: str | None) -> tuple[dict[str, Any], str]:
        """Decode a .dacp file that a checkpoint of this demo made.

        Args:
            file: the .dacp file

        Returns: what the file says of itself, the decoded WAV
        """
        audio, rate, about = coding.decode_file(file)
        _, decoded = shelve(shelf, audio, rate, f"{about['checkpoint']}-decoded.wav")
        return about, str(decoded)

    @in_a_sentence
    def stream(
        clip: str | None = None,
        own: str | None = None,
        checkpoint: str = CHECKPOINTS[0],
        kbps: float = 6.0,
    ) -> tuple[dict, str]:
        """Stream a clip through a checkpoint in packets of 20 ms, and time each.

        Args:
            clip: a bundled clip, or none
            own: an audio file of your own, used instead
            checkpoint: one of those that `checkpoints` lists
            kbps: bitrate in kbit/s

        Returns: latency and computing time, the WAV that was heard
        """
        audio = coding.read_clip(chosen_clip(clip, own))
        kbps = coding.check_rate(checkpoint, kbps)
        heard, rate, measured = live.measure(audio, checkpoint, kbps)
        _, path = shelve(shelf, heard[None], rate, f"{measured['checkpoint']}-streamed.wav")
        return measured, str(path)

    def checkpoints() -> dict:
        """Return the checkpoints here, with their rates in kbit/s per channel."""
        return {name: coding.rates(name) for name in CHECKPOINTS}

    clip, own, kbps = _clip_fields()
    checkpoint = gr.Textbox(CHECKPOINTS[0], label="Checkpoint", visible=False)
    figures = gr.JSON(label="Figures", visible=False)
    wav = gr.File(label="WAV", visible=False)
    dacp = gr.File(label="dacp", visible=False)
    inputs = [clip, own, checkpoint, kbps]
    _register(encode, inputs, [figures, dacp, wav])
    _register(size, inputs, [figures])
    _register(stream, inputs, [figures, wav])
    _register(decode, [gr.File(label="File", visible=False)], [figures, wav])
    api(checkpoints, api_name="checkpoints", queue=False)


def _build_comparing(shelf: Shelf) -> None:
    @in_a_sentence
    def compare(
        request: gr.Request,
        clip: str | None = None,
        own: str | None = None,
        one: str = CHECKPOINTS[0],
        one_kbps: float = 6.0,
        other: str = "opus",
        other_kbps: float = 6.0,
    ) -> dict[str, Any]:
        """Send one clip through two codecs, and measure both.

        Args:
            clip: a bundled clip, or none
            own: an audio file of your own, used instead
            one: a checkpoint, or opus, opus-vbr, mp3 or aac
            one_kbps: its bitrate in kbit/s per channel
            other: the other codec
            other_kbps: its bitrate in kbit/s per channel

        Returns: figures of both, and URLs to listen to, at one loudness
        """
        audio = coding.read_clip(chosen_clip(clip, own))
        first = coding.any_codec(audio, one, one_kbps)
        second = coding.any_codec(audio, other, other_kbps)
        signals = {"original": audio.audio, "one": first.audio, "other": second.audio}
        return {
            "one": coding.figures(audio, first),
            "other": coding.figures(audio, second),
            "urls": _urls(shelf, signals, audio.sample_rate, request),
        }

    clip, own, one_kbps = _clip_fields()
    one = gr.Textbox(CHECKPOINTS[0], label="One", visible=False)
    other = gr.Textbox("opus", label="Other", visible=False)
    other_kbps = gr.Number(6.0, label="kbit/s", visible=False)
    figures = gr.JSON(label="Figures", visible=False)
    _register(compare, [clip, own, one, one_kbps, other, other_kbps], [figures])


def _build_listening(test: ListeningTest) -> None:
    @in_a_sentence
    def listening_start(method: str, key: str = "") -> dict:
        """Begin a listening test, or go on with an open one, and return its present trial.

        Args:
            method: `mushra` or `acr`
            key: the secret of a listener who was here before; empty for a new listener

        Returns: session, key, index, and the URLs of the stimuli, relative to the app
        """
        return test.start(method, key)

    @in_a_sentence
    def listening_submit(session: str, index: int, scores: dict) -> dict:
        """Rate a trial after listening to its stimuli, and return the next trial, or the end.

        Args:
            session: the session, as `listening_start` returned it
            index: the trial, as the last answer named it
            scores: a score for each letter; 0 to 100 for `mushra`, 1, 2, 3, 4 or 5 for `acr`
        """
        return test.submit(session, index, scores)

    def listening_results() -> dict:
        """Return the means of all listeners so far, and who was left out by screening and why."""
        return test.results()

    def ratings() -> str:
        """Return every rating given here so far, as an SQLite file."""
        path = copy_ratings(test.store, test.shelf.new("ratings.sqlite"))
        test.shelf.put(path)
        return str(path)

    for function in (listening_start, listening_submit, listening_results):
        api(function, api_name=function.__name__, **_FAST)
    _register(ratings, [], [gr.File(label="Ratings", visible=False)])


def _clip_fields() -> tuple[gr.Dropdown, gr.File, gr.Number]:
    """Fields for a bundled clip, a file of one's own, and a bitrate. Nobody sees them."""
    clip = gr.Dropdown(list(CLIPS), value=None, label="Clip", visible=False)
    own = gr.File(label="Own", visible=False)
    return clip, own, gr.Number(6.0, label="kbit/s", visible=False)


def _register(function: Callable, inputs: list[Any], outputs: list[Any]) -> None:
    button = gr.Button(visible=False)
    button.click(function, inputs, outputs, api_name=function.__name__, **_SLOW)


def _urls(shelf: Shelf, signals: dict, rate: int, request: gr.Request | None) -> dict[str, str]:
    """Shelve signals (C, S) at one loudness, and return their absolute URLs."""
    root = root_address({} if request is None else request.headers)
    levelled = match_loudness(signals, rate)
    return {
        name: root + shelve(shelf, audio, rate, f"{name}.wav")[0]
        for name, audio in levelled.items()
    }
