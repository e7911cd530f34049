"""Shards on the Hub: committed with their statistics, and enough for a machine that has nothing to
go on.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from hub.hub_server import WRITER, running_hub
from token_data import lively_codec, write_recordings

from codecplus.tokenizing import Coding, tokenize


def test_machines_without_a_common_disk_make_one_dataset(tmp_path):
    write_recordings(tmp_path / "data", 12, {4: "junk"})
    codec = lively_codec()
    codec.model.save_pretrained(tmp_path / "model")
    tokenize(
        str(tmp_path / "data"), codec, tmp_path / "here", coding=Coding(shard_rows=4), workers=0
    )
    options = [
        "--data",
        str(tmp_path / "data"),
        "--model",
        str(tmp_path / "model"),
        "--private",
        "--quiet",
    ]
    options += ["--shard-rows", "4", "--workers", "0", "--device", "cpu"]
    with running_hub() as hub:
        half, rest, nothing_left, another_job = work(
            hub,
            [str(tmp_path / "a"), "--shard", "0/2", *options],
            [str(tmp_path / "b"), *options],
            [str(tmp_path / "c"), *options],
            [str(tmp_path / "d"), *options, "--codebooks", "1"],
        )
    assert half[0] == 0
    assert "this share is done" in half[1]
    assert rest[0] == nothing_left[0] == 0
    assert "11 clips" in rest[1]
    assert "11 clips" in nothing_left[1]
    assert another_job[0] == 2
    assert "holds another job" in another_job[1]
    repo = hub.repo("ada/codes", "dataset")
    assert repo.private
    assert set(hub.uploads.values()) == {1}  # no shard was made, or sent, twice
    assert not list(tmp_path.glob("?/**/*.parquet"))  # what is there need not be here
    for path in (tmp_path / "here" / "data").iterdir():
        there = tmp_path / path.name
        there.write_bytes(repo.files[f"data/{path.name}"].data)
        assert pq.read_table(there).equals(pq.read_table(path))
    assert json.loads(repo.files["statistics.json"].data)["failed"] == 1


def work(hub, *jobs: list[str]) -> list:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    chosen = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": jobs[0][0],
        "HF_TOKEN": WRITER,
        "HF_HUB_DISABLE_XET": "1",
    }
    quiet = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("token_hub_job.py")), json.dumps(jobs)],
        env=kept | chosen | quiet,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
