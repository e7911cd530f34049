"""What the pages tell users to type is typed."""

import doctest
import re
import shlex
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tiny import FIXTURES, tiny_model

from codecplus import DacFeatureExtractor
from codecplus.checkpoints import embedded_names, fingerprint, load_model
from codecplus.cli import main
from codecplus.losses import LOSSES
from codecplus.utils import load_audio, save_audio

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "docs/migrating.md",
    "docs/migrating-encodec.md",
    "docs/quickstart.md",
    "docs/training.md",
]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL
    )


@pytest.fixture
def place(tmp_path, monkeypatch, rng):
    """A folder with every file that the pages name."""
    monkeypatch.chdir(tmp_path)
    noise = rng.standard_normal(30000) * 0.05
    (tmp_path / "recordings").mkdir()
    recordings = ("recordings/one.wav", "recordings/voice.flac", "recordings/orchestra.flac")
    for name in ("input.wav", *recordings, "song.flac"):
        save_audio(noise, name, 44100)
    model = tiny_model(sampling_rate=44100)
    model.save_pretrained("descript/dac_44khz")  # a folder of that name comes before the Hub
    DacFeatureExtractor(sampling_rate=44100).save_pretrained("descript/dac_44khz")
    shutil.copy(FIXTURES / "even44k.pth", "weights_44khz_8kbps_0.0.1.pth")
    shutil.copy(FIXTURES / "even44k_whole.dac", "old.dac")
    return {}


@pytest.mark.parametrize(
    ("page", "code"),
    [(page, code) for page in PAGES for code in blocks(page, "python")],
    ids=lambda x: x[:20],
)
def test_python_examples_run(place, page, code):
    exec(compile(code, page, "exec"), place)


@pytest.mark.parametrize(
    ("page", "results"),
    [
        ("docs/bitrate.md", ["constant.dacp", "average.dacp", "variable.dacp"]),
        ("docs/quickstart.md", ["coded.dacp", "decoded.wav"]),
    ],
    ids=["bitrate", "quickstart"],
)
def test_commands_run(place, page, results):
    for line in "".join(blocks(page, "bash")).splitlines():
        if line.startswith("codecplus "):
            assert main(shlex.split(line)[1:]) == 0, line
    assert all(Path(result).exists() for result in results)


def test_commands_of_the_readme_print_what_stands_there(tmp_path, monkeypatch, capsys):
    """But for numbers, which are those of longer recordings, of this processor and this minute."""
    monkeypatch.chdir(tmp_path)
    voice, rate = load_audio(ROOT / "spaces_demo" / "clips" / "voice-original.flac")
    (tmp_path / "recordings").mkdir()
    for name, seconds in (("voice", 5), ("orchestra", 2)):
        save_audio(voice[: seconds * rate], f"recordings/{name}.flac", rate)
    (session,) = blocks("README.md", "console")
    commands = re.findall(r"^\$ codecplus (.*)\n((?:(?!\$ ).*\n)*)", session, flags=re.MULTILINE)
    assert len(commands) == 5
    for command, shown in commands:
        assert main(shlex.split(command)) == 0, command
        output = capsys.readouterr()
        printed = output.err.split("\r")[-1] + output.out  # a progress bar is overwritten
        assert sorted(masked(printed)) == sorted(masked(shown)), command


def masked(text: str) -> list[str]:
    """The lines of a text without its numbers, fingerprints and columns."""
    lines = re.sub(r"\b[0-9a-f]{8,}\b|\d[\d.]*", "N", text).splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


def test_the_doctests_of_the_page_on_bitrates_pass():
    assert doctest.testfile(str(ROOT / "docs" / "bitrate.md"), module_relative=False).failed == 0


def test_the_page_on_training_describes_every_loss():
    page = (ROOT / "docs" / "training.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    described = set(re.findall(r"`(\w+)`", "".join(rows)))
    assert set(LOSSES) <= described, "describe the new loss in the table of docs/training.md"


@pytest.mark.parametrize("name", embedded_names())
def test_cards_of_embedded_checkpoints_belong_to_their_weights(name):
    """Fails when the weights were replaced and the card was not: see CONTRIBUTING.md."""
    card = ModelCard.load(ROOT / "model_cards" / f"{name}.md")
    assert card.data["codecplus_fingerprint"] == fingerprint(load_model(name)).hex()
    assert (card.data.license, card.data.pipeline_tag) == ("mit", "audio-to-audio")
    pictures = re.findall(r"!\[.*?\]\((assets/.*?)\)", card.content)
    for picture in pictures:
        assert (ROOT / "model_cards" / picture).stat().st_size <= 100_000
    assert bool(card.data.eval_results) == ("| kbit/s |" in card.content)


def test_links_between_pages_lead_somewhere():
    for page in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "model_cards").glob("*.md"),
    ]:
        for target in re.findall(r"\]\((?!https?://|#|\{\{)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", ["docs/reliability.md", "SECURITY.md"])
def test_tests_that_a_page_names_exist(page):
    """A promise whose test is gone or has another name is shown by nothing."""
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    named = re.findall(r"`([^`\n]*?)(test_\w+)(\.py)?(?:::(test_\w+))?`", (ROOT / page).read_text())
    assert len(named) > 5
    file = ""
    for prefix, name, is_file, test in named:
        if is_file:
            file = name + ".py"
            assert file in files, f"{page} names {file}"
            assert not prefix or (ROOT / prefix / file).is_file(), f"{page} names {prefix}{file}"
        elif prefix:  # …:: stands for the file that was named before
            assert prefix == "…::", f"{page} names {prefix}{name}"
            test = name
        else:
            assert any(f"def {name}(" in content for content in files.values()), name
        if test:
            assert f"def {test}(" in files[file], f"{page} names {test} in {file}"


def test_the_table_of_checkpoints_in_the_readme_is_right():
    from codecplus import load_codec

    table = (ROOT / "README.md").read_text()
    for name in ("dac-44khz-small", "dac-16khz-live"):
        codec = load_codec(name)
        row = next(line for line in table.splitlines() if line.startswith(f"| [`{name}`]"))
        assert f"{codec.model.config.n_codebooks} codebooks" in row
        assert f"{codec.latency * 1000:.0f} ms" in row
        for rate in (codec.bitrates[0], codec.bitrates[-1]):
            assert f"{rate:.2f}".rstrip("0").rstrip(".") in row
