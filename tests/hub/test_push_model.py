"""`model.push_to_hub` and `save_pretrained(push_to_hub=True)`: our card, not transformers' empty one."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_server import WRITER, Entry, Repo, running_hub
from test_hub import environment

JOB = Path(__file__).with_name("push_model.py")
WRITTEN = "---\nlicense: mit\n---\n\n# Written by hand\n"
EMPTY = "---\ntags:\n- mine\n---\n\nThis model card has been automatically generated.\n"


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """The cards of what was pushed, by repository."""
    place = tmp_path_factory.mktemp("push")
    with running_hub() as hub:
        written = {"written": WRITTEN, "emptied": EMPTY, "annotated": WRITTEN}
        for name, card in written.items():
            hub.repos["model", f"ada/{name}"] = Repo()
            hub.repo(f"ada/{name}").commit("main", {"README.md": Entry(card.encode(), lfs=False)})
        paths = {"PYTHONPATH": ":".join([str(JOB.parents[1]), *sys.path])}
        env = environment(place / "home", hub.endpoint, HF_TOKEN=WRITER, **paths)
        run = subprocess.run(
            [sys.executable, str(JOB), str(place / "folder")],
            env=env,
            capture_output=True,
            text=True,
            timeout=580,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        cards = {
            name: hub.repo(f"ada/{name}").files["README.md"].data.decode()
            for name in (
                "pushed", "saved", "causal", "trained", "folder", "emptied", "written", "annotated",
                "made",
            )
        }  # fmt: skip
        written = hub.repo("ada/written")
        commit = written.commits[written.refs["next"]]
        assert "model.safetensors" in commit
        cards["written, a branch"] = commit["README.md"].data.decode()
        assert {"model.safetensors", "config.json"} <= hub.repo("ada/annotated").files.keys()
        cards["made first"] = next(
            commit["README.md"].data.decode()
            for commit in hub.repo("ada/made").commits.values()
            if "README.md" in commit
        )
        return cards


@pytest.mark.parametrize("name", ["pushed", "saved", "causal"])
def test_a_pushed_model_has_a_card_that_says_what_it_is(pushed, name):
    card = pushed[name]
    assert "automatically generated" not in card
    assert "More Information Needed" not in card
    assert f'load_codec("ada/{name}")' in card
    assert ("trust_remote_code=True" in card) == (name == "causal")
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "transformers"
    assert {"audio-codec", "dac", "codecplus"} <= set(head["tags"])
    assert ("mine" in head["tags"]) == (name == "pushed")
    if name != "causal":
        # 4 codebooks of 64 entries, a frame each 8 samples at 8 kHz: 24 bits a millisecond
        assert "6 to 24\nkbit/s" in card
        assert "| 8000 Hz, one channel" in card


def test_a_card_that_somebody_wrote_stays(pushed):
    for name in ("written", "written, a branch"):
        assert "# Written by hand" in pushed[name]
        assert "load_codec" not in pushed[name]


def test_a_push_of_a_folder_without_a_card_leaves_one_that_somebody_wrote(pushed):
    assert pushed["annotated"] == WRITTEN
    heads = [yaml.safe_load(pushed[name].split("---")[1]) for name in ("made first", "made")]
    assert heads[0]["codecplus_fingerprint"] != heads[1]["codecplus_fingerprint"]


def test_a_codec_replaces_a_card_that_says_nothing(pushed):
    assert 'load_codec("ada/emptied")' in pushed["emptied"]
    assert "automatically generated" not in pushed["emptied"]
    assert "- mine" in pushed["emptied"]


@pytest.mark.parametrize("name", ["trained", "folder"])
def test_a_card_of_the_trainer_never_reaches_the_hub(pushed, name):
    card = pushed[name]
    assert "the Trainer had access to" not in card
    assert "information needed" not in card.lower()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "mit"
    assert {"audio-codec", "dac", "mine"} <= set(head["tags"])
    assert len(head["tags"]) == len(set(head["tags"]))
    assert "- learning_rate: 0.00125" in card
    if name == "trained":
        assert 'load_codec("ada/trained")' in card
        assert "codecplus_fingerprint" not in head
    else:
        assert "Nothing yet: no results were given for these weights." in card
        assert len(head["codecplus_fingerprint"]) == 32
