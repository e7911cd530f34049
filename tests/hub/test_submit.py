"""Results are checked before they are pushed, and only what others may see goes along."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from hub_server import Entry, running_hub
from test_hub import environment

from codecplus.errors import FileFormatError
from codecplus.eval import EvaluationConfig, load_results, run_evaluation
from codecplus.eval.report.submission import check_results, submission_name


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of the anchors alone."""
    place = tmp_path_factory.mktemp("results")
    noise = 0.1 * np.random.default_rng(0).standard_normal(8000)
    soundfile.write(place / "noise.wav", noise, 16_000)
    config = EvaluationConfig(
        codecs=(), data=str(place / "noise.wav"), out=place / "out", metrics=("snr",), workers=1
    )
    return run_evaluation(config)


def submit(env, *arguments):
    return codecplus(env, "submit", *arguments)


def codecplus(env, *arguments):
    command = [sys.executable, "-m", "codecplus", *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def test_results_reach_the_repository_without_their_audio(results, tmp_path):
    with running_hub() as hub:
        env = environment(tmp_path, hub.endpoint, HF_TOKEN="hf_writer")
        done = submit(env, results, "--repo", "ada/codec-results")
        assert done.returncode == 0, done.stderr
        assert "/datasets/ada/codec-results/commit/" in done.stdout
        (commit,) = [
            files for files in hub.repos["dataset", "ada/codec-results"].commits.values() if files
        ]
        name = submission_name(load_results(results))
        assert set(commit) - {".gitattributes"} == {
            f"{name}/{file}"
            for file in ("rows.jsonl", "summary.json", "costs.json", "provenance.json", "report.md")
        }
        assert commit[f"{name}/rows.jsonl"].data == (results / "rows.jsonl").read_bytes()
        damaged = Entry(b"{}", lfs=False)
        files = {**commit, "set/bad/rows.jsonl": damaged, "set/bad/summary.json": damaged}
        hub.repos["dataset", "ada/codec-results"].commit("main", files)
        built = codecplus(
            env,
            "leaderboard",
            "hf://datasets/ada/codec-results",
            "--push-to",
            "ada/codec-leaderboard",
            "--rank-by",
            "snr",
        )
        assert built.returncode == 0, built.stderr
        assert "left out: set/bad: a line of rows.jsonl is damaged" in built.stderr
        space = hub.repos["space", "ada/codec-leaderboard"]
        assert space.sdk == "static"
        assert b"sdk: static" in space.files["README.md"].data
        assert b"ada/codec-results" in space.files["README.md"].data
        (board,) = json.loads(space.files["leaderboard.json"].data)["boards"]
        assert board["runs"][0]["link"].endswith(f"datasets/ada/codec-results/tree/main/{name}")
        page = space.files["index.html"].data.decode()
        assert board["clip_set"] in page


@pytest.mark.parametrize("change", ["mean", "hash", "command"])
def test_results_that_do_not_hold_together_are_refused(results, change):
    run = load_results(results)
    codec = run.summary["codecs"]["lowpass-3500"]
    if change == "mean":
        codec["domains"]["all"]["metrics"]["snr"]["mean"] += 1
    elif change == "hash":
        codec["config"]["cutoff"] = 4000
    else:
        del run.provenance["command"]
    with pytest.raises(
        FileFormatError, match=r"do not follow from rows|is not that of its|names n"
    ):
        check_results(run)


def test_what_was_changed_by_hand_is_not_pushed(results, tmp_path):
    import shutil

    copy = shutil.copytree(results, tmp_path / "copy", ignore=shutil.ignore_patterns("cache"))
    summary = json.loads((copy / "summary.json").read_text())
    summary["codecs"]["identity"]["failures"] = 7
    (copy / "summary.json").write_text(json.dumps(summary))
    done = submit(environment(tmp_path, "http://127.0.0.1:9"), copy, "--repo", "ada/x")
    assert done.returncode == 2
    assert "the failures of identity in" in done.stderr
