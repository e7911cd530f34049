"""What is there at once: the recordings and their versions, the blind rounds, links and figures in
words.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from codecplus.audio.loudness import integrated_loudness
from codecplus.errors import CodecPlusError, InputError
from codecplus.utils import load_audio

pytestmark = pytest.mark.usefixtures("world")


@pytest.fixture
def names():
    from space.settings import CHECKPOINTS

    return CHECKPOINTS


@pytest.fixture(scope="module")
def showcase(world):
    from space.hear_tab import read_showcase

    return read_showcase()


def test_every_version_is_there_as_long_and_as_loud_as_the_original(showcase):
    from space.settings import CLIPS_FOLDER

    for clip in showcase["clips"]:
        lengths = set()
        for version in clip["versions"]:
            audio, rate = load_audio(CLIPS_FOLDER / version["file"])
            lengths.add((audio.shape, rate))
            assert integrated_loudness(np.atleast_2d(audio), rate) == pytest.approx(-23, abs=1.5)
            measured = 8 * version["bytes"] / clip["seconds"] / 1000
            assert version["kbps"] == pytest.approx(measured, abs=0.01)
        assert len(lengths) == 1, clip["name"]
    assert sum(path.stat().st_size for path in CLIPS_FOLDER.iterdir()) < 2e6


def test_the_versions_are_of_the_weights_in_the_package(showcase):
    """After new weights, run benchmarks/make_space_clips.py again."""
    from codecplus import load_codec

    for clip in showcase["clips"]:
        assert load_codec(clip["checkpoint"]).fingerprint.hex() == clip["fingerprint"]


def test_every_recording_has_its_source_and_licence_on_the_page_and_beside_it(showcase):
    from space.settings import CLIPS_FOLDER

    text = (CLIPS_FOLDER / "ATTRIBUTION.txt").read_text()
    for clip in showcase["clips"]:
        assert clip["licence"] in ("CC BY 4.0", "public domain")
        for fact in (clip["credit"], clip["licence"], clip["url"]):
            assert fact in text


def test_what_is_heard_first_is_the_strong_case(showcase):
    for clip in showcase["clips"]:
        versions = {version["name"]: version for version in clip["versions"]}
        assert clip["versions"][0]["name"] == "original"
        assert versions[clip["chosen"]]["kbps"] < versions["opus"]["kbps"]


# ---- blind rounds


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def quiz(showcase, shelf, clock, tmp_path):
    from space.quiz import Quiz
    from space.ratings import VoteStore

    return Quiz(showcase, shelf, VoteStore(tmp_path), clock)


def fetch(shelf, url: str) -> bytes:
    from starlette.applications import Starlette
    from starlette.routing import Route
    from starlette.testclient import TestClient

    client = TestClient(Starlette(routes=[Route("/shelf/{name}", shelf.serve)]))
    return client.get(f"/{url}").content


def hear(quiz, clock, page) -> list[bytes]:
    clock.now += 2
    return [fetch(quiz.shelf, sound["url"]) for sound in page["sounds"]]


def letter_of_original(quiz, page) -> str:
    return quiz._sessions[page["session"]].originals[page["index"]]


def test_five_rounds_are_counted_and_kept(quiz, clock):
    page = quiz.start()
    session = page["session"]
    wrong = 2
    for index in range(5):
        assert (page["stage"], page["index"], page["total"]) == ("round", index, 5)
        hear(quiz, clock, page)
        letter = letter_of_original(quiz, page)
        if index < wrong:
            letter = {"A": "B", "B": "A"}[letter]
        page = quiz.vote(session, index, letter)
    assert (page["stage"], page["right"], page["total"]) == ("result", 3, 5)
    assert [one["right"] for one in page["rounds"]] == [False, False, True, True, True]
    assert [one["others"] for one in page["rounds"]] == [1] * 5
    assert quiz.vote(session, 4, "A") == page  # asked for again: nothing is counted twice
    assert len(quiz.votes.path.read_text().splitlines()) == 5


def test_nothing_is_answered_before_both_were_heard(quiz, clock):
    page = quiz.start()
    with pytest.raises(InputError, match="Listen to A before"):
        quiz.vote(page["session"], 0, "A")
    fetch(quiz.shelf, page["sounds"][0]["url"])
    with pytest.raises(InputError, match="Listen to B before"):
        quiz.vote(page["session"], 0, "A")
    fetch(quiz.shelf, page["sounds"][1]["url"])
    with pytest.raises(InputError, match="1 s each"):
        quiz.vote(page["session"], 0, "A")
    clock.now += 2
    for letter in ("C", "", None):
        with pytest.raises(InputError, match="A or B"):
            quiz.vote(page["session"], 0, letter)
    for index in (1, -1, True, "0"):
        with pytest.raises(InputError, match="round 0"):
            quiz.vote(page["session"], index, "A")
    with pytest.raises(InputError, match="begin again"):
        quiz.vote("nonsense", 0, "A")
    assert not quiz.votes.path.exists()
    assert quiz.vote(page["session"], 0, "A")["index"] == 1


def test_files_do_not_tell_which_is_the_original(quiz, clock):
    pages = [quiz.start() for _ in range(2)]
    files = [content for page in pages for content in hear(quiz, clock, page)]
    assert len(set(files)) == 4
    assert len({len(content) for content in files}) == 1


def test_old_and_too_many_rounds_are_forgotten(quiz, clock, monkeypatch):
    from space import quiz as module

    monkeypatch.setattr(module, "_MAX_SESSIONS", 3)
    first = quiz.start()
    for _ in range(3):
        clock.now += 1
        quiz.start()
    assert len(quiz._sessions) == 3
    with pytest.raises(InputError, match="begin again"):
        quiz.vote(first["session"], 0, "A")


# ---- figures in words, defaults, previews


def test_the_better_value_of_a_pair_is_marked_and_each_score_has_its_words():
    from space.parts import table

    row = {"codec": "a", "bytes": 100, "kbps": 1.0, "smaller": 20.0, "reasons": {}}
    one = {**row, "pesq_wb": 2.0, "stoi": 0.9, "si_sdr": 1.0}
    other = {**row, "bytes": 200, "pesq_wb": 3.0, "stoi": 0.9, "si_sdr": None}
    other["reasons"] = {"si_sdr": "silent"}
    text = table([one, other])
    better = [part.split("<")[0] for part in text.split("class='cp-better'>")[1:]]
    assert better == ["100 bytes", "3.00"]  # equal and missing values have no better one
    assert "4.6 perfect" in text
    assert "cp-better" not in table([one])


def test_the_checkpoint_suits_the_clip_where_there_is_one(monkeypatch):
    from space import parts

    monkeypatch.setattr(parts, "CHECKPOINTS", ["dac-44khz-small", "dac-16khz-live"])
    assert parts.checkpoint_for("Voice") == "dac-16khz-live"
    assert parts.checkpoint_for("Orchestra") == "dac-44khz-small"
    monkeypatch.setattr(parts, "CHECKPOINTS", ["mine"])
    assert parts.checkpoint_for("Voice") == "mine"
    assert parts.rate_of_interest("mine", [1.0, 9.0]) == 9.0
    assert parts.rate_of_interest("dac-16khz-live", [0.5, 7.5]) == 2.0


def tags_of(page: str) -> dict[str, list[str]]:
    """Return what the tags in the head of a page say, by name, as a reader without scripts does."""
    from html.parser import HTMLParser

    found: dict[str, list[str]] = {}

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            said = dict(attributes)
            if tag == "meta" and (name := said.get("property") or said.get("name")):
                found.setdefault(name, []).append(said.get("content"))

    Reader().feed(page.partition("</head>")[0])
    return found


def test_links_show_a_title_a_sentence_and_a_picture_without_scripts():
    import app
    import gradio

    template = Path(gradio.__file__).parent / "templates" / "frontend" / "index.html"
    before = template.read_bytes()
    page = app.with_opening(before, 'https://me-demo.hf.space/?"<').decode()
    tags = tags_of(page)
    for kind in ("og", "twitter"):
        assert tags[f"{kind}:title"] == [app.TITLE]
        assert tags[f"{kind}:description"] == [app.DESCRIPTION]
        assert tags[f"{kind}:image"] == ['https://me-demo.hf.space/?"<preview.jpg']
    assert tags["description"] == [app.DESCRIPTION]
    assert tags["og:type"] == ["website"]
    assert f"<title>{app.TITLE}</title>" in page
    assert "Gradio" not in str(tags)
    assert app.with_opening(b"no page", "/") == b"no page"


def test_the_page_has_the_recordings_before_gradio_is_there(showcase):
    import app
    import gradio

    template = Path(gradio.__file__).parent / "templates" / "frontend" / "index.html"
    page = app.with_opening(template.read_bytes(), "/").decode()
    before = page.partition("<gradio-app")[0]
    value = before.partition("id='showcase-value'>")[2].partition("</script>")[0]
    assert json.loads(value) == showcase
    assert before.index("window.codecplus.showcase = ") < before.index("window.codecplus.early();")


def test_links_to_paper_code_and_model_cards_stand_where_these_are(monkeypatch):
    import app
    from space import settings

    assert 'href="https://arxiv.org/abs/2306.06546"' in app.header()
    assert "Code" not in app.header()
    monkeypatch.setenv("SPACE_ID", "me/demo")
    monkeypatch.setattr(settings, "models", lambda: ["me/dac-16khz-live"])
    assert 'href="https://huggingface.co/spaces/me/demo/tree/main"' in app.header()
    assert 'href="https://huggingface.co/me/dac-16khz-live"' in app.header()


# ---- pictures


def test_a_tone_is_drawn_where_the_axis_says(tmp_path):
    from PIL import Image
    from space import pictures

    rate = 16000
    tone = 0.1 * np.sin(2 * np.pi * 2000 * np.arange(rate) / rate)[None]
    levels = pictures.mel_levels(tone, rate)
    (mark,) = [tick for tick in pictures.ticks(rate) if tick["text"] == "2"]
    assert levels.mean(axis=1).argmax() / len(levels) == pytest.approx(mark["share"], abs=0.02)
    path = pictures.draw_levels(levels, float(levels.max()), tmp_path / "tone.webp")
    picture = np.asarray(Image.open(path).convert("L"), float)
    assert picture.shape == levels.shape
    assert picture.mean(axis=1).argmax() / len(levels) == pytest.approx(1 - mark["share"], abs=0.03)


def test_a_long_clip_has_no_wider_picture(tmp_path):
    from space import pictures

    assert pictures.mel_levels(np.zeros((2, 60 * 8000)), 8000).shape[1] <= 1001


def test_what_changed_is_red_where_something_came_and_blue_where_it_went(tmp_path):
    from PIL import Image
    from space import pictures

    before = np.zeros((80, 90))
    after = before.copy()
    after[:40, :45] = 30  # low bands, at the bottom
    after[:40, 45:] = -30
    path = pictures.draw_change(before, after, 0.0, tmp_path / "change.webp")
    red, _, blue = np.moveaxis(np.asarray(Image.open(path).convert("RGB"), int), 2, 0)
    assert red[60, 20] > blue[60, 20] + 50
    assert blue[60, 70] > red[60, 70] + 50
    assert max(red[10, 20], blue[10, 70]) < 60  # nothing changed: dark


def test_the_codes_of_the_highest_rate_are_on_the_page_and_hold_those_of_the_others(showcase):
    from space.settings import CLIPS_FOLDER

    for clip in showcase["clips"]:
        about = clip["codes"]
        codes = np.fromfile(CLIPS_FOLDER.parent / about["file"], "<u2")
        assert codes.size == about["books"] * about["frames"]
        assert 0 <= codes.min() <= codes.max() < 1024
        books = [version["books"] for version in clip["versions"] if "books" in version]
        assert books == sorted(books)
        assert books[-1] == about["books"]


def test_codes_are_written_as_they_are(world, names, tmp_path):
    from space import coding, pictures

    clip = coding.read_clip(world[0] / "one.wav")
    data = coding.round_trip(clip, names[1], 1.0).data
    codes = coding.checkpoint(names[1]).read_codes(data)
    about = pictures.write_codes(codes, tmp_path / "codes.bin")
    numbers = np.fromfile(tmp_path / "codes.bin", "<u2").reshape(about["books"], about["frames"])
    np.testing.assert_array_equal(numbers, np.asarray(codes))
    assert coding.checkpoint_of(data) == names[1]


# ---- sounds as links


def test_a_link_becomes_a_qr_code():
    from space import sound_link

    pytest.importorskip("segno", reason="QR codes need segno: pip install segno")
    picture = sound_link.qr_code("https://demo.test/#dacp=" + "A" * 1700)
    assert picture.startswith(b"<svg")
    for link in ("", "x" * (sound_link.MAX_QR + 1)):
        with pytest.raises(InputError, match="QR code"):
            sound_link.qr_code(link)


def test_a_sound_goes_through_a_link(world, names):
    from space import coding, sound_link

    clip = coding.read_clip(world[0] / "one.wav")
    coded = coding.round_trip(clip, names[1], 1.0)
    text = sound_link.link_text(coded.data)
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    audio, rate, about = coding.decode_bytes(sound_link.file_of(text))
    np.testing.assert_array_equal(audio, coded.audio)
    assert (rate, about["bytes"]) == (clip.sample_rate, coded.size)
    for damaged in (text[: len(text) // 2], "%" + text[1:], "", "A" * 99999):
        with pytest.raises(CodecPlusError):
            coding.decode_bytes(sound_link.file_of(damaged))


def test_a_large_file_becomes_no_link():
    from space import sound_link

    assert sound_link.link_text(bytes(sound_link.MAX_BYTES)) is not None
    assert sound_link.link_text(bytes(sound_link.MAX_BYTES + 1)) is None
