"""Can you hear it? Five blind rounds, and a result to show to friends."""

from typing import Any

import gradio as gr

from .parts import in_a_sentence
from .quiz import Quiz


def build(quiz: Quiz) -> None:
    """Put the tab together."""
    page = gr.HTML(
        value={"stage": "intro"},
        html_template='<div class="cp-root cp-quiz"></div>',
        # The names of the events must stand here for Gradio to know them: "begin" and "voted".
        js_on_load="window.codecplus.quiz(element, props, watch, trigger); "
        'const EVENTS = ["begin", "voted"];',
        apply_default_css=False,
        elem_id="quiz",
        show_label=False,
    )

    @in_a_sentence
    def begin() -> dict[str, Any]:
        return quiz.start()

    @in_a_sentence
    def voted(event: gr.EventData) -> dict[str, Any]:
        return quiz.vote(str(event.session), event.index, str(event.letter))

    page.begin(begin, None, page, api_visibility="private", concurrency_limit=8)
    page.voted(voted, None, page, api_visibility="private", concurrency_limit=8)
