"""The demo on tiny models: a folder of checkpoints, a short listening test, and a server of its
own.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from browsers import chromium
from tiny import GEOMETRIES, tiny_model

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "spaces_demo"

pytest.importorskip("gradio", reason="the demo needs gradio: pip install 'codecplus[demo]'")
sys.path.insert(0, str(SPACE))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with two tiny checkpoints, clips, a listening test and a leaderboard, and the
    settings that say so.
    """
    from codecplus.utils import save_audio

    folder = tmp_path_factory.mktemp("space")
    tiny_model(codebook_size=1024, **GEOMETRIES["44khz"]).save_pretrained(folder / "tiny-44khz")
    tiny_model(causal=True, codebook_size=1024, **GEOMETRIES["16khz"]).save_pretrained(
        folder / "tiny-live"
    )
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        save_audio(0.1 * rng.standard_normal(12000), folder / f"{name}.wav", 16000)
    (folder / "test.json").write_text(
        json.dumps(
            {
                "name": "tiny",
                "items": {"one": "one.wav", "two": "two.wav"},
                "conditions": [{"codec": "opus", "kbps": 6}, {"codec": "opus", "kbps": 24}],
            }
        )
    )
    (folder / "board.json").write_text(json.dumps(board()))
    settings = {
        "CODECPLUS_CHECKPOINTS": f"{folder / 'tiny-44khz'},{folder / 'tiny-live'}",
        "CODECPLUS_LISTENING_TEST": str(folder / "test.json"),
        "CODECPLUS_RATINGS": str(folder / "ratings"),
        "CODECPLUS_LEADERBOARD": str(folder / "board.json"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield folder, settings


def board() -> dict:
    """A leaderboard of two codecs at two rates each, as `codecplus leaderboard` writes it."""
    entries = [
        {
            "codec": f"{family}@{kbps:g}",
            "anchor": False,
            "rank": rank,
            "band": 2,
            "payload_kbps": kbps,
            "payload_kbps_per_channel": kbps,
            "file_kbps": kbps,
            "failures": 0,
            "latency_seconds": 0.02,
            "metrics": {
                "pesq_wb": {
                    "mean": mean,
                    "median": mean,
                    "low": mean - 0.1,
                    "high": mean + 0.1,
                    "files": 9,
                }
            },
        }
        for rank, (family, kbps, mean) in enumerate(
            [("opus", 24.0, 4.2), ("opus", 6.0, 2.1), ("dac", 6.0, 3.1), ("dac", 3.0, 2.4)], start=1
        )
    ]
    metrics = {"pesq_wb": {"title": "PESQ wide band", "unit": "MOS-LQO", "higher_is_better": True}}
    part = {
        "task": "tiny",
        "kind": "speech",
        "clip_set": "0",
        "primary": "pesq_wb",
        "rule": "By PESQ.",
        "clips": 9,
        "metrics": metrics,
        "licence": None,
        "entries": entries,
    }
    return {"schema": 1, "bands": [], "boards": [part]}


@pytest.fixture
def shelf(world):
    """A shelf whose folder goes with the test, also when the test fails."""
    from space.shelf import Shelf

    shelf = Shelf()
    yield shelf
    shelf.close()
    assert not shelf.folder.exists()


@pytest.fixture(scope="session")
def server(world, tmp_path_factory):
    """The URL of the demo, copied alone to another folder and running there."""
    import shutil

    folder, settings = world
    copy = tmp_path_factory.mktemp("elsewhere") / "space"
    shutil.copytree(SPACE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        **settings,
        "GRADIO_SERVER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    log = (folder / "log.txt").open("w")
    process = subprocess.Popen(
        [sys.executable, "app.py"], cwd=copy, env=environment, stdout=log, stderr=log
    )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 240
    try:
        while True:
            try:
                urllib.request.urlopen(url, timeout=2).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(
                        f"the demo did not start: {(folder / 'log.txt').read_text()[-2000:]}"
                    )
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)  # a busy machine takes half a minute to end the interpreter
        log.close()


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window, whose microphone beeps."""
    options = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        "--autoplay-policy=no-user-gesture-required",
    ]
    with chromium(*options) as launched:
        yield launched
