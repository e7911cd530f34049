"""Listening test: MUSHRA and ACR by whoever comes, and what they said so far."""

from typing import Any

import gradio as gr
from gradio.events import api

from .listening import ListeningTest, copy_ratings
from .parts import in_a_sentence


def build(test: ListeningTest) -> gr.HTML:
    """Put the tab together."""
    page = gr.HTML(
        value={"stage": "intro"},
        html_template='<div class="cp-root cp-listening"></div>',
        # The names of the events must stand here for Gradio to know them: "begin" and "rated".
        js_on_load="window.codecplus.listening(element, props, watch, trigger); "
        'const EVENTS = ["begin", "rated"];',
        apply_default_css=False,
        elem_id="listening",
    )
    with gr.Accordion("Ratings so far", open=False):
        gr.Markdown(
            "Every rating, as SQLite: `codecplus eval --listening ratings.sqlite` screens the "
            "listeners and gives "
            "means with intervals over listeners and items. The leaderboard shows them, too.",
            elem_classes="cp-note",
        )
        download = gr.DownloadButton("Prepare the ratings", size="sm", elem_id="ratings")

    @in_a_sentence
    def begin(event: gr.EventData) -> dict[str, Any]:
        return test.start(str(event.method), event.rater)

    @in_a_sentence
    def rated(event: gr.EventData) -> dict[str, Any]:
        return test.submit(str(event.session), event.scores)

    @in_a_sentence
    def listening_start(method: str, rater: str = "") -> dict:
        """Begin a test, `mushra` or `acr`; gives the first trial, with the URLs of its stimuli."""
        return test.start(method, rater)

    @in_a_sentence
    def listening_submit(session: str, scores: dict) -> dict:
        """Give the scores of a trial by letter; gives the next trial, or the end."""
        return test.submit(session, scores)

    def listening_results() -> dict:
        """What all listeners said so far, after screening."""
        return test.results()

    page.begin(begin, None, page, api_visibility="private", concurrency_limit=8)
    page.rated(rated, None, page, api_visibility="private", concurrency_limit=8)
    for function in (listening_start, listening_submit, listening_results):
        api(function, api_name=function.__name__, concurrency_limit=8)

    def ratings() -> str:
        """Every rating given here so far, as SQLite."""
        path = copy_ratings(test.store, test.shelf.new("ratings.sqlite"))
        test.shelf.put(path)
        return str(path)

    download.click(ratings, None, download, api_name="ratings").success(
        lambda: gr.DownloadButton("Download ratings.sqlite"),
        None,
        download,
        api_visibility="private",
        queue=False,
    )
    return page
