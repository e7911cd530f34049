"""The demo as people meet it: in a real browser, and by gradio_client, running alone in a folder of
its own.
"""

import os
import re
import sqlite3
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from codecplus.utils import load_audio, save_audio

SLOW = pytest.mark.skipif(
    not os.environ.get("CODECPLUS_BROWSER_TESTS"),
    reason="takes a minute; set CODECPLUS_BROWSER_TESTS=1",
)


@pytest.fixture
def page(server, browser):
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, permissions=["microphone"], accept_downloads=True
    )
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(server)
    page.wait_for_selector("#showcase .cp-root[data-playable]")
    yield page
    assert page.faults == []
    context.close()


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    gradio_client = pytest.importorskip("gradio_client")
    folder = tmp_path_factory.mktemp("client")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))  # it leaves folders behind
        yield gradio_client.Client(server, verbose=False, download_files=folder)


def open_tab(page, name):
    page.get_by_role("tab", name=name, exact=True).first.click()


def test_the_first_tap_plays_and_the_rate_changes_while_it_plays(page):
    player = "document.querySelector('#showcase .cp-root').cpPlayer"
    page.click("#showcase .cp-play")
    page.wait_for_function(f"{player}.now > 0.2")
    page.wait_for_selector("#showcase .cp-root[data-ready]")
    before = page.evaluate(f"{player}.now")
    page.locator("#showcase .cp-rate input").fill("0")
    page.wait_for_function(f"{player}.audible === 1")
    assert page.evaluate(f"{player}.sources !== null")
    assert page.evaluate(f"{player}.now") >= before  # it goes on, from where it was
    assert "0.3" in page.inner_text("#showcase .cp-rate output")
    assert "version=codecplus-0" in page.evaluate("location.hash")
    page.get_by_role("button", name="Original").click()
    page.wait_for_function(f"{player}.audible === 0")


def test_links_open_a_tab_and_a_recording(server, page):
    page.goto(f"{server}/?again#tab=hear&clip=orchestra&version=opus")
    page.wait_for_selector("#showcase [data-name=orchestra][aria-pressed=true]")
    assert page.locator("#showcase [data-name=opus]").get_attribute("aria-pressed") == "true"
    page.goto(f"{server}/?more#tab=quiz&right=4")
    page.get_by_text("A friend found 4 of 5. Can you?").wait_for()


def answer_round(page, index):
    """Hear both of a blind round, in real time, and say that A is the original."""
    page.wait_for_selector(f"#quiz .cp-root[data-ready='{index}']")
    assert page.locator("#quiz [data-letter=A]").is_disabled()
    for letter in "AB":
        page.get_by_role("button", name=f"Hear {letter}").click()
        page.wait_for_function(
            f"!document.querySelector('#quiz [role=status]').textContent.includes('{letter}')"
        )
    page.click("#quiz [data-letter=A]")


def text_with_focus(page):
    return page.evaluate("document.activeElement.textContent")


def test_a_blind_round_is_answered_once_both_were_heard(page):
    open_tab(page, "Can you hear it?")
    page.click("#quiz .cp-primary")
    answer_round(page, 0)
    page.get_by_text("Round 2 of 5").wait_for()
    # Who listens to the page, or has a keyboard only, is where the next round begins.
    assert text_with_focus(page) == "Which one is the original?"


@pytest.mark.slow
def test_five_blind_rounds_end_with_a_result(page):
    open_tab(page, "Can you hear it?")
    page.click("#quiz .cp-primary")
    for index in range(5):
        answer_round(page, index)
    page.get_by_text("You found the original in").wait_for()
    assert page.locator("#quiz tbody tr").count() == 5


def test_upload_encode_play_switch_and_download(page, world, tmp_path):
    folder, _ = world
    open_tab(page, "Try it")
    page.set_input_files("#own input[type=file]", str(folder / "one.wav"))
    page.wait_for_function("document.querySelector('#size')?.textContent.includes('kbit/s')")
    page.click("#encode")
    page.wait_for_selector("#player .cp-root[data-ready]")
    assert page.locator("#player .cp-pick").count() == 3
    page.click("#player .cp-track:nth-child(3) .cp-pick")
    page.wait_for_function("document.querySelector('#player .cp-root').cpPlayer.now > 0.1")
    # Switching keeps the position.
    before = page.evaluate("document.querySelector('#player .cp-root').cpPlayer.now")
    page.click("#player .cp-track:nth-child(2) .cp-pick")
    chosen, now = page.evaluate(
        "(p => [p.chosen, p.now])(document.querySelector('#player .cp-root').cpPlayer)"
    )
    assert chosen == 0
    assert now >= before or now < 0.3  # it may have come to its end meanwhile
    assert "SI-SDR" in page.inner_text("#figures")
    # Three spectrograms, the codes below them, and what changed; a press listens from there.
    page.wait_for_function(
        "[...document.querySelectorAll('#player img')].filter(i => i.naturalWidth > 9).length === 4"
    )
    numbers = page.inner_text("#player .cp-numbers").split()
    assert len(numbers) == page.locator("#player .cp-codes canvas").evaluate("c => c.height")
    assert all(0 <= int(number) < 1024 for number in numbers)
    spectrogram = page.locator("#player .cp-track:nth-child(4) .cp-spectrogram")
    spectrogram.click(position={"x": 0.9 * spectrogram.bounding_box()["width"], "y": 20})
    chosen = "document.querySelector('#player .cp-root').cpPlayer.chosen"
    assert page.evaluate(chosen) == 2
    for button, name in (("#download-dacp", "clip.dacp"), ("#download-wav", "decoded.wav")):
        with page.expect_download() as caught:
            page.click(button)
        caught.value.save_as(tmp_path / name)
    audio, rate = load_audio(tmp_path / "decoded.wav")
    assert (len(audio), rate) == (12000, 16000)
    assert (tmp_path / "clip.dacp").stat().st_size < 3000


def test_a_sound_in_a_link_is_decoded_by_whoever_opens_it(client, world, server, page):
    from gradio_client import handle_file
    from space.sound_link import link_text

    folder, settings = world
    name = settings["CODECPLUS_CHECKPOINTS"].split(",")[1]
    _, dacp, _ = client.predict(
        None, handle_file(folder / "one.wav"), name, 1.0, api_name="/encode"
    )
    with open(dacp, "rb") as file:
        sound = link_text(file.read())
    page.goto(f"{server}/?sound#dacp={sound}")
    page.wait_for_selector("#player .cp-root[data-ready]")
    assert page.locator("#player .cp-pick").count() == 1
    assert "tiny-live" in page.inner_text("#figures")


def test_a_bad_file_gives_a_sentence(page, tmp_path):
    (tmp_path / "evil.wav").write_bytes(b"PK\x03\x04" + bytes(500))
    open_tab(page, "Try it")
    page.set_input_files("#own input[type=file]", str(tmp_path / "evil.wav"))
    page.wait_for_function("document.querySelector('#own').textContent.includes('evil')")
    page.click("#encode")
    said = page.locator(".toast-body").first
    said.wait_for()
    assert "not readable audio" in said.inner_text()
    assert "Traceback" not in page.content()


# Which stimulus is the reference: its samples differ by no more than the salt.
HIDDEN_REFERENCE = """
(() => {
  const { buffers } = document.querySelector("#listening .cp-root").cpPlayer;
  const [reference, ...others] = buffers.map(buffer => buffer.getChannelData(0));
  const far = others.map(other => other.reduce((sum, x, i) => sum + (x - reference[i]) ** 2, 0));
  return far.indexOf(Math.min(...far));
})()
"""


def test_three_listeners_take_the_test_and_the_leaderboard_shows_it(server, browser, world):
    """Each in a browser of their own, all at the same time: listening takes as long as it takes."""
    folder, _ = world
    contexts = [browser.new_context() for _ in range(3)]
    pages = [context.new_page() for context in contexts]

    def each(act):
        for page in pages:
            act(page)

    def go_on(page):
        page.locator(".cp-next:not([disabled])").click()

    for page in pages:
        page.set_default_timeout(120_000)
        page.goto(server)
        open_tab(page, "Listening test")
        page.click("[data-method=mushra] .cp-primary")
    for page in pages:
        page.wait_for_selector("#listening .cp-root[data-ready=volume]")
        page.click("#listening .cp-play")
        page.get_by_role("button", name="Play the soft beep").click()
    each(go_on)
    for page in pages:
        page.wait_for_selector("#listening .cp-root[data-ready=training]")
        assert page.locator(".cp-next").is_disabled()
    for i in range(5):
        for page in pages:
            page.locator("#listening .cp-words .cp-word").nth(i).click()
        for page in pages:
            version = page.locator("#listening .cp-words .cp-word").nth(i)
            version.and_(page.locator(".cp-heard")).wait_for()
    each(go_on)
    for trial in range(2):
        for page in pages:
            page.wait_for_selector(f"#listening .cp-root[data-ready$=' {trial}']")
            assert page.locator(".cp-next").is_disabled()
            assert page.locator("#listening .cp-slider").count() == 5
        hidden = [page.evaluate(HIDDEN_REFERENCE) for page in pages]
        for i in range(5):
            for page in pages:
                page.locator("#listening .cp-stimulus .cp-pick").nth(i + 1).click()
            for listener, page in enumerate(pages):
                stimulus = page.locator("#listening .cp-stimulus").nth(i + 1)
                stimulus.and_(page.locator(".cp-on.cp-heard")).wait_for()
                score = 100 if i == hidden[listener] else 91 + listener
                page.locator("#listening .cp-slider").nth(i).fill(str(score))
        each(go_on)
    for page in pages:
        page.wait_for_selector("#listening .cp-table")
        assert text_with_focus(page) == "Thank you: your ratings are saved"
        assert "reference" in page.inner_text("#listening .cp-table")
    page = pages[-1]
    open_tab(page, "Leaderboard")
    page.wait_for_function("document.querySelector('#table')?.textContent.includes('opus')")
    page.click("#board input")
    page.get_by_role("option", name="listening test here: MUSHRA").click()
    page.wait_for_function("document.querySelector('#table')?.textContent.includes('MUSHRA')")
    for context in contexts:
        context.close()
    with sqlite3.connect(folder / "ratings" / "ratings.sqlite") as database:
        found = database.execute(
            "SELECT count(*), count(DISTINCT rater), count(DISTINCT item) FROM ratings"
        ).fetchone()
    assert found == (30, 3, 2)


def test_a_listener_who_comes_back_after_closing_the_page_goes_on(server, browser):
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    key = "window.localStorage.getItem('codecplus-listener')"
    page.goto(server)
    page.evaluate("window.localStorage.setItem('codecplus-listening-open', 'acr')")
    for visit in range(2):
        page.goto(f"{server}/?visit={visit}#tab=listening")
        page.get_by_role("button", name="Go on").click()
        page.wait_for_selector("#listening .cp-root[data-ready]")
        said = page.locator("#listening .cp-root").get_attribute("data-ready")
        if visit == 0:
            first = page.evaluate(key), said
    assert (page.evaluate(key), said) == first  # the same listener, session and trial
    context.close()


def test_the_leaderboard_sorts(page):
    open_tab(page, "Leaderboard")
    page.wait_for_function("document.querySelector('#table')?.textContent.includes('opus@24')")
    page.locator("#plot .cp-dot").first.click()
    assert re.search(r"\(.* to .*\) at \d+\.\d\d kbit/s", page.inner_text("#plot [role=status]"))
    first = "document.querySelector('#table tbody tr').innerText.split(/\\s/)[0]"
    assert page.evaluate(first) == "opus@24"
    page.get_by_role("button", name="kbit/s", exact=True).click()
    assert page.evaluate(first) == "dac@3"
    page.get_by_role("button", name="PESQ").click()  # where more is better, the best comes first
    assert page.evaluate(first) == "opus@24"
    page.get_by_role("button", name="PESQ").click()
    assert page.evaluate(first) == "opus@6"


def test_a_live_call_is_heard_and_timed(page):
    open_tab(page, "Live")
    page.click("#live .cp-primary")  # the microphone, which beeps
    page.wait_for_function("Number(document.querySelector('#live .cp-root').dataset.total) > 20")
    assert "kbit/s" in page.inner_text("#live .cp-rate dd")
    assert re.fullmatch(r"\d+ ms", page.inner_text("#live .cp-trip dd"))
    said = page.locator("#live [role=status]")
    for name, way, least, most in (("Opus", "opus", 0.4, 9), ("No codec", "raw", 200, 999)):
        page.get_by_role("button", name=name, exact=True).click()
        page.wait_for_selector(f"#live .cp-root[data-way={way}]")
        kbps = "Number(document.querySelector('#live .cp-root').dataset.kbps)"
        page.wait_for_function(f"{kbps} > {least} && {kbps} < {most}")
        assert name in said.inner_text()
    assert page.inner_text("#live .cp-primary") == "Stop"  # it is the same call
    page.click("#live .cp-primary")
    assert page.inner_text("#live .cp-primary") == "Start"


def record_a_voice(page):
    open_tab(page, "Try it")
    page.click("#recorder .cp-record")
    page.wait_for_selector("#recorder .cp-recording")
    page.wait_for_timeout(1200)
    page.click("#recorder .cp-record")


def wait_for_result(page):
    """Wait until the result of "Try it" is there; a message in its stead fails the test."""
    page.locator("#player .cp-root[data-ready], .toast-body").first.wait_for()
    assert page.locator(".toast-body").all_inner_texts() == []


def test_a_recorded_voice_comes_back_as_a_link_and_a_qr_code(page, server):
    record_a_voice(page)
    wait_for_result(page)
    assert page.locator("#player .cp-track .cp-pick").count() == 3
    page.get_by_role("button", name="Show as QR code").click()
    page.locator("#player .cp-qr img:not([hidden]), #player .cp-qr p:not(:empty)").first.wait_for()
    # Without segno there is a sentence instead.
    is_drawn = page.locator("#player .cp-qr img").is_visible()
    assert is_drawn or "segno" in page.inner_text("#player .cp-qr")


def test_no_late_answer_takes_a_result_away(page):
    """On a busy server, unqueued answers come after the result of the queued encoding."""
    held = []
    page.route("**/gradio_api/run/**", lambda route: held.append(route))
    record_a_voice(page)
    for _ in range(600):
        page.wait_for_timeout(100)
        if held:
            break
    held.pop().continue_()  # the server takes the recording
    wait_for_result(page)
    while held:
        held.pop().continue_()
        page.wait_for_timeout(500)  # one answer may lead to the next request
    page.wait_for_selector("#download-dacp")  # which the last of the late answers shows
    assert page.locator("#player .cp-pick").count() == 3


def test_another_clip_takes_away_what_belongs_to_the_one_before(page):
    open_tab(page, "Try it")
    page.click("#encode")
    wait_for_result(page)
    page.wait_for_selector("#download-dacp")
    page.route("**/gradio_api/**", lambda route: None)  # the server is not asked
    page.get_by_role("radio", name="Orchestra").first.check()
    page.wait_for_selector("#player .cp-empty")
    page.wait_for_selector("#download-dacp", state="hidden")
    assert page.inner_text("#figures").strip() == ""
    assert page.inner_text("#size").strip() == ""


def test_another_clip_stops_the_encoding_of_the_one_before(page):
    open_tab(page, "Try it")
    page.click("#encode")
    page.wait_for_timeout(300)
    page.get_by_role("radio", name="Orchestra").first.check()
    page.wait_for_timeout(10_000)  # an encoding takes a few seconds
    assert page.locator("#player .cp-pick").count() == 0
    page.click("#encode")
    wait_for_result(page)
    assert page.locator("#player .cp-pick").count() == 3


def test_the_keyboard_alone_plays_switches_and_changes_the_rate(page):
    player = "document.querySelector('#showcase .cp-root').cpPlayer"
    page.wait_for_selector("#showcase .cp-root[data-ready]")
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        label = page.evaluate(
            "(e => e.getAttribute('aria-label') || e.textContent)(document.activeElement)"
        )
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", label  # who uses the keyboard sees where they are
        seen.append(label)
        if label == "Play":
            page.keyboard.press("Enter")
            page.wait_for_function(f"{player}.sources !== null")
        if label.startswith("Opus"):
            page.keyboard.press("Enter")
            page.wait_for_function(f"{player}.audible === {player}.buffers.length - 2")
        if label == "Rate of codecplus":
            page.keyboard.press("ArrowLeft")
            page.wait_for_function(f"{player}.audible === 2")
            break
    assert seen[-1] == "Rate of codecplus"
    assert any(label.startswith("Opus") for label in seen)


SLOW_LINE = {"latency": 225, "downloadThroughput": 750e3 / 8, "uploadThroughput": 750e3 / 8}


@SLOW
def test_on_a_slow_line_the_first_tap_plays_within_eight_seconds(server, browser):
    """750 kbit/s and 150 to 300 ms there and back, as on a telephone far from a mast."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.emulateNetworkConditions", {"offline": False, **SLOW_LINE})
    begun = time.monotonic()
    page.goto(server, wait_until="commit")
    page.wait_for_selector(".cp-showcase[data-playable]", timeout=60_000)
    page.click(".cp-showcase .cp-play")
    page.wait_for_function("document.querySelector('.cp-showcase').cpPlayer.now > 0")
    assert time.monotonic() - begun < 8
    # What began before Gradio was there plays on in its tab.
    page.evaluate("document.querySelector('.cp-showcase').cpPlayer.setLoop(true)")
    page.wait_for_selector("#showcase .cp-root[data-playable]")
    assert page.evaluate("document.querySelector('.cp-showcase').cpPlayer.sources !== null")
    assert page.locator("#early").count() == 0
    assert page.locator(".cp-showcase").count() == 1
    context.close()


@SLOW
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_every_tab_fits_its_window(server, browser, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{server}/?__theme={scheme}")
    open_tab(page, "Try it")
    page.click("#encode")
    page.wait_for_selector("#player .cp-root[data-ready]")
    for tab in (
        "Hear it",
        "Can you hear it?",
        "Try it",
        "Live",
        "Compare",
        "Listening test",
        "Leaderboard",
    ):
        open_tab(page, tab)
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
    # Names such as "listening test here: MUSHRA" are not cut off.
    assert page.locator("#board input").bounding_box()["width"] > 200
    context.close()


@pytest.mark.skipif(
    not os.environ.get("CODECPLUS_AXE"),
    reason="set CODECPLUS_AXE to axe.min.js of the npm package axe-core",
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious_in_any_tab(server, browser, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{server}/?__theme={scheme}")
    page.wait_for_selector("#showcase .cp-root[data-playable]")
    page.evaluate(Path(os.environ["CODECPLUS_AXE"]).read_text())
    for tab in ("hear", "quiz", "try", "live", "compare", "listening", "leaderboard"):
        assert page.evaluate(f"window.codecplus.links.openTab('{tab}')")
        if tab == "quiz":
            page.click("#quiz .cp-primary")
            page.wait_for_selector("#quiz .cp-root[data-ready]")
        if tab in ("try", "compare"):
            button, player = {
                "try": ("encode", "player"),
                "compare": ("compare", "compare-player"),
            }[tab]
            page.click(f"#{button}")
            page.wait_for_selector(f"#{player} .cp-root[data-ready]")
            page.hover(f"#{button}")  # its colour then is another one
        page.wait_for_timeout(1000)  # colours fade
        found = page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa']})")["violations"]
        serious = [v["id"] for v in found if v["impact"] in ("serious", "critical")]
        assert serious == [], tab
    context.close()


# ---- scripts


def test_scripts_encode_decode_and_compare(client, world, tmp_path):
    import httpx
    from gradio_client import handle_file

    _, settings = world
    name = settings["CODECPLUS_CHECKPOINTS"].split(",")[1]
    # A path in a file's name stays outside.
    tone = 0.1 * np.sin(np.arange(8000) / 9)
    save_audio(tone, tmp_path / "..%2f..%2fetc%2fpasswd.wav", 16000)
    own = handle_file(tmp_path / "..%2f..%2fetc%2fpasswd.wav")
    figures, dacp, wav = client.predict(None, own, name, 0.5, api_name="/encode")
    assert figures["codec"]["bytes"] == os.path.getsize(dacp)
    assert client.predict(None, own, name, 0.5, api_name="/size")["bytes"] == os.path.getsize(dacp)
    assert set(figures["urls"]) == {"original", "decoded", "opus"}
    assert httpx.get(figures["urls"]["opus"]).status_code == 200
    assert len(load_audio(wav)[0]) == 8000
    about, again = client.predict(handle_file(dacp), api_name="/decode")
    assert about["checkpoint"] == "tiny-live"
    np.testing.assert_array_equal(load_audio(again)[0], load_audio(wav)[0])
    both = client.predict(None, own, name, 1.0, "opus", 12, api_name="/compare")
    assert (both["one"]["codec"], both["other"]["codec"]) == ("tiny-live", "opus")
    measured, _ = client.predict(None, own, name, 1.0, api_name="/stream")
    assert measured["algorithmic_ms"] == 20


def test_scripts_are_told_in_a_sentence(client):
    from gradio_client.exceptions import AppError

    name = next(iter(client.predict(api_name="/checkpoints")))
    with pytest.raises(AppError, match="There is no clip yet"):
        client.predict(None, None, name, 1.0, api_name="/size")
    with pytest.raises(AppError, match="begin again"):
        client.predict("nonsense", 0, {}, api_name="/listening_submit")
    assert client.predict(api_name="/leaderboard")["rows"][0]["codec"] == "opus@24"


def test_uploads_over_the_limit_are_cut_off(server):
    """The server cuts an upload off at its limit of 30 MB."""
    import httpx

    answer = httpx.post(
        f"{server}/gradio_api/upload", files={"files": ("big.wav", bytes(31 * 2**20))}, timeout=60
    )
    assert answer.status_code == 413


def test_the_page_is_small_on_the_line_and_fetches_the_first_sound_at_once(server):
    import httpx

    answer = httpx.get(server)
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) < 60_000
    (sound,) = re.findall("<(.+)>; rel=preload", answer.headers["link"])
    assert httpx.get(f"{server}/{sound}").headers["content-type"] == "audio/flac"


def test_the_page_as_it_is_served_says_what_a_link_to_it_shows(server):
    """Those who show links run no scripts."""
    import app
    import httpx

    page = httpx.get(server, headers={"host": "demo.test", "x-forwarded-proto": "https"}).text
    for property, content in (
        ("title", app.TITLE),
        ("description", app.DESCRIPTION),
        ("image", "https://demo.test/preview.jpg"),
    ):
        found = re.findall(f'<meta property="og:{property}" content="(.*?)"', page)
        assert found == [content]
    assert httpx.get(f"{server}/preview.jpg").headers["content-type"] == "image/jpeg"


def test_results_have_names_that_cannot_be_guessed(server):
    import httpx

    for path in ("shelf/x.wav", "shelf/..%2f..%2fetc%2fpasswd", "shelf/%2e%2e/app.py"):
        assert httpx.get(f"{server}/{path}").status_code in (404, 307)
        assert "root:" not in httpx.get(f"{server}/{path}", follow_redirects=True).text
