"""Data sets on the Hub as evaluation tasks, over real HTTP through `datasets`: a pinned commit
stays what it was.
"""

import json

import numpy as np
import pytest
from hub_server import Entry, Repo, audio_table, running_hub
from test_hub import environment, run

from codecplus.eval.tasks import load_task

RATE = 16_000
SPEECH_CARD = """---
configs:
- config_name: clean
  data_files:
  - split: test
    path: clean/test-*
---
"""


def table(hub, names: list[str], **columns) -> Entry:
    """Half a second each."""
    tones = (0.3 * np.sin(np.arange(RATE // 2) * (0.1 + 0.01 * i)) for i in range(len(names)))
    return audio_table(hub, RATE, dict(zip(names, tones, strict=True)), **columns)


@pytest.fixture(scope="module")
def hub():
    """The data sets of two presets at the commits they pin, and a later commit on the branch of
    one.
    """
    with running_hub() as server:
        speech, sounds = load_task("librispeech-test-clean"), load_task("esc50")
        card = Entry(SPEECH_CARD.encode(), lfs=False)
        clips = table(server, ["1089-0.flac", "1089-1.flac"], speaker_id=[1089, 1090])
        repo = server.repos["dataset", speech.dataset] = Repo()
        repo.commits[speech.revision] = {
            "README.md": card,
            "clean/test-00000-of-00001.parquet": clips,
        }
        later = table(server, ["new.flac"], speaker_id=[7])
        repo.commit("main", {"README.md": card, "clean/test-00000-of-00001.parquet": later})
        clips = table(server, [f"{i}.wav" for i in range(7)], category=list("0123456"))
        repo = server.repos["dataset", sounds.dataset] = Repo()
        repo.commits[sounds.revision] = {"data/train-00000-of-00001.parquet": clips}
        yield server


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def answers(hub, place) -> dict:
    return run(environment(place / "reader", hub.endpoint), "evaluate", place / "out")


def test_a_preset_reads_the_commit_it_pins_streamed_or_not(hub, answers):
    pinned = load_task("librispeech-test-clean").revision
    clips = [["000000 1089-0.flac", "speech", "1089", RATE, RATE // 2],
             ["000001 1089-1.flac", "speech", "1090", RATE, RATE // 2]]  # fmt: skip
    assert answers["streamed"] == answers["downloaded"] == [pinned, clips]
    assert any(request.startswith("GET /cdn/") for request in hub.requests)


def test_a_preset_keeps_every_nth_row(answers):
    commit, clips = answers["sounds"]
    assert commit == load_task("esc50").revision
    assert [clip[0] for clip in clips] == ["000000 0.wav", "000005 5.wav"]
    assert {clip[1] for clip in clips} == {"sound"}


def test_a_branch_is_stated_as_its_commit(hub, answers):
    commit, clips = answers["branch"]
    assert commit == hub.repo(load_task("librispeech-test-clean").dataset, "dataset").refs["main"]
    assert [clip[0] for clip in clips] == ["000000 new.flac"]


def test_the_command_line_states_data_set_commit_and_licence(answers, place):
    assert answers["command"][0] == 0, answers["command"]
    task = load_task("librispeech-test-clean")
    stated = json.loads((place / "out" / "summary.json").read_text())["task"]
    assert (stated["dataset"], stated["revision"]) == (task.dataset, task.revision)
    report = (place / "out" / "report.md").read_text()
    assert f"revision `{task.revision}`. Licence: {task.licence}." in report
    results = (place / "out/hub/opus@16/.eval_results/librispeech-test-clean.yaml").read_text()
    assert task.dataset in results
    assert task.revision in results


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("no data set", "cannot load the data set ada/nothing at revision"),
        ("no revision", "cannot load the data set openslr/librispeech_asr at revision v9"),
        ("no split", "tset"),
        ("no column", "has no column 'who'; it has audio, speaker_id"),
    ],
)
def test_data_that_cannot_be_loaded_raises_one_sentence(answers, case, sentence):
    kind, message = answers[case]
    assert kind == "FileFormatError"
    assert sentence in message
    assert "\n" not in message


def test_downloaded_data_is_read_without_the_hub(hub, place, answers):
    before = len(hub.requests)
    cached = run(environment(place / "reader", hub.endpoint, HF_HUB_OFFLINE="1"), "evaluate_cached")
    assert cached["downloaded"] == answers["downloaded"]
    assert cached["elsewhere"][0] == "FileFormatError"
    assert len(hub.requests) == before
