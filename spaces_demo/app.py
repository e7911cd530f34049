"""The demo Space of codecplus: `python app.py` serves it. It needs no account and no GPU."""

import atexit
import html
import json
import os
import re
import threading

import gradio as gr
from gradio.themes import Base
from space import (
    compare_tab,
    hear_tab,
    leaderboard_tab,
    listening_tab,
    live,
    live_tab,
    quiz_tab,
    scripts,
    settings,
    sound_link,
    try_tab,
)
from space.coding import checkpoint, load
from space.listening import Definition, ListeningTest
from space.quiz import Quiz
from space.ratings import VoteStore
from space.shelf import Shelf
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from codecplus.errors import InputError

SCRIPTS = "".join(
    f"<script>{(settings.FOLDER / 'static' / name).read_text(encoding='utf-8')}</script>"
    for name in (
        "player.js",
        "pictures.js",
        "tracks.js",
        "links.js",
        "recorder.js",
        "showcase.js",
        "quiz.js",
        "listening.js",
        "jitter.js",
        "live.js",
        "plot.js",
        "table.js",
    )
)
STYLE = settings.FOLDER / "static" / "style.css"
THEME = Base(
    primary_hue="teal",
    secondary_hue="teal",
    neutral_hue="slate",
    # Fonts of the visitor's own system: nothing is loaded from elsewhere.
    font=["ui-sans-serif", "system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)
TITLE = "codecplus: hear a neural codec"
PAPER = "https://arxiv.org/abs/2306.06546"
LEAD = (
    "A neural network squeezes a voice into a hundredth of its bytes, and another one rebuilds it. "
    "Hear what is left."
)
DESCRIPTION = (
    "A voice in a hundredth of its bytes: hear the codec beside Opus and MP3, find out whether you "
    "can tell, and send it your own clip."
)


def preview_tags(root: str) -> str:
    """Return the tags from which chats and social networks show a link to this page.

    `root` is the address of the app as visitors see it, with a slash at its end: those who show
    links take no relative address of a picture.
    """
    root = html.escape(root, quote=True)
    picture = f"{root}preview.jpg"
    tags = [
        f"<title>{TITLE}</title>",
        f'<meta name="description" content="{DESCRIPTION}">',
        '<meta name="twitter:card" content="summary_large_image">',
    ]
    for name, content in (("title", TITLE), ("description", DESCRIPTION), ("image", picture)):
        tags.append(f'<meta property="og:{name}" content="{content}">')
        tags.append(f'<meta name="twitter:{name}" content="{content}">')
    tags.append('<meta property="og:type" content="website">')
    tags.append(f'<meta property="og:url" content="{root}">')
    return "".join(tags)


# Gradio's own tags for previews, which name Gradio.
_FOREIGN_TAG = re.compile(rb"<meta\s+(?:property=\"og:|name=\"twitter:)[^>]*>\s*")


def with_opening(page: bytes, root: str) -> bytes:
    """Put into Gradio's page what must be there before Gradio's scripts are.

    These are `preview_tags`, in the place of Gradio's own, for those who show links run no scripts;
    and the recordings of the first tab with the scripts they need, so that the first tap plays
    while Gradio is on its way.
    """
    head, mark, body = page.partition(b"</head>")
    if not mark:
        return page
    head = _FOREIGN_TAG.sub(b"", head)
    # First: who reads a page for its preview reads only its beginning.
    head = head.replace(b"<head>", b"<head>" + preview_tags(root).encode(), 1)
    body = body.replace(b"<gradio-app", _EARLY + b"<gradio-app", 1)
    return head + _STYLE + SCRIPTS.encode() + mark + body


def preload_link() -> bytes:
    """Return the header that fetches the sound of the first tap while Gradio's scripts load."""
    clip = hear_tab.read_showcase()["clips"][0]
    (file,) = [one["file"] for one in clip["versions"] if one["name"] == clip["chosen"]]
    return f"<clips/{file}>; rel=preload; as=fetch; crossorigin".encode()


def header() -> str:
    """Return the head of the page, with links to paper, code and model cards where these are."""
    links = [("Paper", PAPER)]
    space = os.environ.get("SPACE_ID")
    if space:
        links.append(("Code", f"https://huggingface.co/spaces/{space}/tree/main"))
    for model in settings.models():
        links.append(
            (f"Model card of {model.rpartition('/')[2]}", f"https://huggingface.co/{model}")
        )
    anchors = []
    for text, address in links:
        address = html.escape(address, quote=True)
        text = html.escape(text)
        anchors.append(f'<a href="{address}" target="_blank" rel="noopener">{text}</a>')
    return (
        f"<header class='cp-head'><h1>codecplus</h1><p>{LEAD}</p>"
        f"<nav aria-label='About'>{' '.join(anchors)}</nav></header>"
    )


async def serve_qr(request: Request) -> Response:
    """Answer a link, which is the body of the request, with its QR code as SVG.

    The link does not stand in the address: what lies behind its # is for no server's log.
    """
    try:
        text = (await request.body())[: sound_link.MAX_QR + 1].decode()
        picture = await run_in_threadpool(sound_link.qr_code, text)
    except (InputError, UnicodeDecodeError) as error:
        return PlainTextResponse(str(error), status_code=400)
    return Response(picture, media_type="image/svg+xml")


async def serve_preview(_: Request) -> FileResponse:
    """Answer with the picture that `preview_tags` names."""
    return FileResponse(settings.FOLDER / "static" / "preview.jpg")


_STYLE = f"<style>{STYLE.read_text(encoding='utf-8')}</style>".encode()
# In a script's text, "<" could end it.
_SHOWCASE = json.dumps(hear_tab.read_showcase()).replace("<", "\\u003c")
_EARLY = (
    f"<div id='early' class='gradio-container'>{header()}"
    "<div class='cp-root cp-showcase'></div>"
    f"<script type='application/json' id='showcase-value'>{_SHOWCASE}</script></div>"
    "<script>window.codecplus.early();</script>"
).encode()


class OpenedPage:
    """Answers with the page of another app, with what `with_opening` adds."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for the page."""
        start: Message = {}
        parts: list[bytes] = []

        async def send_whole(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            parts.append(message.get("body", b""))
            if message.get("more_body"):
                return
            page = with_opening(b"".join(parts), settings.root_address(Headers(scope=scope)))
            headers = MutableHeaders(raw=list(start["headers"]))
            headers["Content-Length"] = str(len(page))
            await send({**start, "headers": headers.raw})
            await send({"type": "http.response.body", "body": page})

        await self.app(scope, receive, send_whole)


class CompressedPage:
    """Compresses the page itself, 300 kB otherwise, and names the sound that it begins with.

    Answers that come bit by bit, and audio, pass unchanged.
    """

    def __init__(self, app: ASGIApp):
        self.app = app
        self.compressed = GZipMiddleware(OpenedPage(app))
        self.link = preload_link()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"] != "/":
            await self.app(scope, receive, send)
            return

        async def send_with_link(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"link", self.link)]
            await send(message)

        await self.compressed(scope, receive, send_with_link)


def build(shelf: Shelf, test: ListeningTest) -> gr.Blocks:
    """The page: a tab for each thing to do."""
    votes = VoteStore(test.store.path.parent, test.store.hub)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        scripts.build(shelf, test)  # first: a name that is taken gets a number
        gr.HTML(
            header(),
            apply_default_css=False,
        )
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Hear it", id="hear", elem_id="tab-hear"):
                hear_tab.build()
            with gr.Tab("Can you hear it?", id="quiz", elem_id="tab-quiz"):
                quiz_tab.build(Quiz(hear_tab.read_showcase(), shelf, votes))
            with gr.Tab("Try it", id="try", elem_id="tab-try"):
                try_tab.build(shelf)
            with gr.Tab("Live", id="live", elem_id="tab-live"):
                live_tab.build(shelf)
            with gr.Tab("Compare", id="compare", elem_id="tab-compare"):
                compare_tab.build(shelf, votes)
            with gr.Tab("Listening test", id="listening", elem_id="tab-listening"):
                listening_tab.build(test)
            with gr.Tab("Leaderboard", id="leaderboard", elem_id="tab-leaderboard") as tab:
                leaderboard_tab.build(test, tab)
    return page.queue(max_size=settings.MAX_QUEUE, default_concurrency_limit=2)


def launch(**options):
    """Start the app: gr.Blocks.launch with theme, limits and the routes that the pages use. Returns
    the page.
    """
    load()
    shelf = Shelf()
    atexit.register(shelf.close)
    if threading.current_thread() is threading.main_thread():
        shelf.close_on_sigterm()
    # Gradio keeps uploads and copies of results there; the shelf removes them.
    os.environ["GRADIO_TEMP_DIR"] = str(shelf.uploads)
    shelf.tidy_regularly()
    test = ListeningTest(Definition.read(settings.LISTENING_TEST), shelf, settings.RATINGS)
    page = build(shelf, test)
    threading.Thread(target=_warm, args=(test,), daemon=True).start()
    routes = [
        Route("/shelf/{name}", shelf.serve),
        Mount("/clips", StaticFiles(directory=settings.CLIPS_FOLDER)),
        Route("/preview.jpg", serve_preview),
        Route("/qr", serve_qr, methods=["POST"]),
        WebSocketRoute("/live-socket", live.serve),
    ]
    page.launch(
        theme=THEME,
        css_paths=STYLE,
        max_file_size=settings.MAX_UPLOAD,
        app_kwargs={"routes": routes, "middleware": [Middleware(CompressedPage)]},
        footer_links=["api"],
        ssr_mode=False,  # the routes are this server's
        **options,
    )
    return page


def _warm(test: ListeningTest) -> None:
    """Load the weights, start the scorer's process and code the stimuli of the listening test, so
    that the first visitor does not wait for them.
    """
    import numpy as np

    from codecplus.eval import score

    for name in settings.CHECKPOINTS:
        checkpoint(name).compress(np.zeros(4000, np.float32))
    noise = np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1
    score(noise, noise, 16000, ["pesq_wb", "stoi"])
    test.prepare()


if __name__ == "__main__":
    # matplotlib needs a folder for its fonts even where the home is read-only
    os.environ.setdefault("MPLCONFIGDIR", str(settings.RATINGS / "matplotlib"))
    launch()
