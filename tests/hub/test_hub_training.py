"""Training from data sets on the Hub, over real HTTP through `datasets`: downloaded, streamed, and
by two processes.
"""

import json

import numpy as np
import pytest
from hub_server import Entry, Repo, audio_table, running_hub
from test_hub import environment, run

from codecplus import load_codec

RATE = 8000
CONFIG = {
    "model_type": "causal_dac",
    "encoder_hidden_size": 8,
    "decoder_hidden_size": 32,
    "downsampling_ratios": [4, 4],
    "n_codebooks": 2,
    "codebook_size": 16,
    "sampling_rate": RATE,
}
RECIPE = {
    "schedule": {"steps": 2},
    "objective": {"weights": {"relative_mel": 1}, "mel_bands": {"64": 8}, "stft_windows": [64]},
    "batch": 2,
    "seconds": 0.018,
}


def constants(hub, levels: list[float]) -> Entry:
    """A table of half seconds that are constant, so that a crop says which row it is of."""
    return audio_table(
        hub, RATE, {f"{level:.2f}.flac": np.full(RATE // 2, level) for level in levels}
    )


@pytest.fixture(scope="module")
def hub():
    """One data set of 2 files, which two processes can share, and one of 3, which they cannot."""
    with running_hub() as server:
        for files in (2, 3):
            repo = server.repos["dataset", f"ada/constants{files}"] = Repo()
            levels = np.split(np.round(0.1 + 0.01 * np.arange(36), 2), files)
            tables = [constants(server, list(part)) for part in levels]
            repo.commit(
                "main",
                {
                    f"data/train-{i:05d}-of-{files:05d}.parquet": table
                    for i, table in enumerate(tables)
                },
            )
        yield server


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "recipe.json").write_text(
        json.dumps({**RECIPE, "preset": str(folder / "config.json")})
    )
    return folder


@pytest.fixture(scope="module")
def answers(hub, place) -> dict:
    env = environment(place / "home", hub.endpoint)
    return run(env, "train", place / "recipe.json", place, "ada/constants2", "ada/constants3")


@pytest.mark.parametrize("how", ["downloaded", "streamed"])
def test_a_data_set_on_the_hub_trains_a_codec(answers, place, how):
    assert answers[how][0] == 0, answers[how]
    assert load_codec(place / how).sample_rate == RATE
    lines = [
        json.loads(line)
        for line in (place / how / "training" / "log.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines if "train/relative_mel" in line] == [1, 2]
    assert any("validation/mel" in name for line in lines for name in line)


@pytest.mark.parametrize("files", [2, 3])
def test_two_processes_stream_different_rows(answers, files):
    (first, held), (second, none) = (
        [set(part) for part in share] for share in answers["shares"][f"ada/constants{files}"]
    )
    assert (len(held), len(none)) == (
        {2: 8, 3: 4}[files],
        0,
    )  # of 3 files the rows are shared, also the first 8
    assert not first & second
    assert not held & (first | second)
    assert len(first | second) > 20  # nearly all of the others are met


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("no data set", "cannot load the data set ada/nothing"),
        ("no column", "has no column 'sound'"),
    ],
)
def test_missing_data_raises_one_sentence(answers, case, sentence):
    status, _, message = answers[case]
    assert status == 2
    assert sentence in message
