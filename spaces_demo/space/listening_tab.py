"""Listening test: MUSHRA and ACR for every visitor, and the results so far."""

from typing import Any

import gradio as gr

from codecplus.eval.listening import listening_report

from .listening import ListeningTest, copy_ratings
from .parts import in_a_sentence


def build(test: ListeningTest) -> gr.HTML:
    """Put the tab together."""
    page = gr.HTML(
        value={"stage": "intro"},
        html_template='<div class="cp-root cp-listening"></div>',
        # The names of the events must stand here for Gradio to know them.
        js_on_load="window.codecplus.listening(element, props, watch, trigger); "
        'const EVENTS = ["train", "begin", "rated"];',
        apply_default_css=False,
        elem_id="listening",
    )
    with gr.Accordion("Ratings so far", open=False):
        gr.Markdown(
            "Every rating, as SQLite: `codecplus listening ratings.sqlite` screens the "
            "listeners and gives means with intervals over listeners and items. The leaderboard "
            "shows them, too. This page also leaves out who rates the original no better than its "
            "3.5 kHz low-pass.",
            elem_classes="cp-note",
        )
        with gr.Row():
            show = gr.Button("Show the results", size="sm", elem_id="show-results")
            download = gr.DownloadButton("Prepare the ratings", size="sm", elem_id="ratings")
        report = gr.Markdown("", elem_id="listening-report")

    @in_a_sentence
    def train(event: gr.EventData) -> dict[str, Any]:
        return test.training(str(event.method))

    @in_a_sentence
    def begin(event: gr.EventData) -> dict[str, Any]:
        return test.start(str(event.method), event.key)

    @in_a_sentence
    def rated(event: gr.EventData) -> dict[str, Any]:
        return test.submit(str(event.session), event.index, event.scores)

    page.train(train, None, page, api_visibility="private", concurrency_limit=8)
    page.begin(begin, None, page, api_visibility="private", concurrency_limit=8)
    page.rated(rated, None, page, api_visibility="private", concurrency_limit=8)

    def ratings() -> str:
        """Return every rating given here so far, as an SQLite file."""
        path = copy_ratings(test.store, test.shelf.new("ratings.sqlite"))
        test.shelf.put(path)
        return str(path)

    def results() -> str:
        found = test.analysis()
        return listening_report(found) if found else "Nobody has rated anything yet."

    show.click(results, None, report, api_visibility="private", concurrency_limit=8)
    download.click(ratings, None, download, api_visibility="private").success(
        lambda: gr.DownloadButton("Download ratings.sqlite"),
        None,
        download,
        api_visibility="private",
        queue=False,
    )
    return page
