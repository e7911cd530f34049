"""A codec to the Hub and back, over real HTTP against a stand-in for the Hub."""

import pytest
from hub_server import running_hub
from test_hub import environment, run


@pytest.fixture(scope="module")
def hub():
    with running_hub() as server:
        yield server


def test_a_codec_comes_back_from_the_hub(hub, tmp_path):
    answer = run(environment(tmp_path, hub.endpoint), "share_codec")
    repo = hub.repo("ada/codec")
    files = repo.files
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= files.keys()
    assert {"entropy.safetensors", "entropy-01.safetensors", "README.md"} <= files.keys()
    assert b'load_codec("ada/codec")' in files["README.md"].data
    assert answer["entropy models"] == answer["expected"]
    assert answer["same bytes"] is True
    assert answer["rate"] == 8000
    assert answer["commit"] == answer["again"]  # the same again makes no commit
    assert repo.commits[repo.refs["next"]]["README.md"] == files["README.md"]  # a card stays
    assert answer["branch"] == answer["commit"]  # the branch begins with it
    assert answer["name"].startswith("HubError: cannot push to 'ada/a codec': that is no name")
    assert answer["stranger"].startswith("HubError: cannot push to 'bob/codec'")
