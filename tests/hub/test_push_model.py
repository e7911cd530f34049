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


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """The cards of what was pushed, by repository."""
    place = tmp_path_factory.mktemp("push")
    with running_hub() as hub:
        hub.repos["model", "ada/written"] = Repo()
        hub.repo("ada/written").commit("main", {"README.md": Entry(WRITTEN.encode(), lfs=False)})
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
        names = ("pushed", "saved", "causal", "written")
        return {name: hub.repo(f"ada/{name}").files["README.md"].data.decode() for name in names}


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
    assert "# Written by hand" in pushed["written"]
    assert "load_codec" not in pushed["written"]
