"""Push and pull over real HTTP, against a stand-in for the Hub on the loopback, in fresh processes
and caches.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hub_client import codes
from hub_server import WRITER, Entry, Repo, running_hub
from safetensors.torch import save_file
from tiny import tiny_model

import codecplus
from codecplus.checkpoints import fingerprint, load_model
from codecplus.checkpoints.identity import EMBEDDED_FOLDER

DISCRIMINATORS = "training/discriminators.safetensors"
CARD = "---\nlicense: cc0-1.0\n---\n\n# Written by hand\n"
CLIENT = Path(__file__).with_name("hub_client.py")


def environment(home: Path, endpoint: str, **more: str) -> dict[str, str]:
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "TRANSFORMERS_"))
    }
    chosen = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "",
    }
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1",
             "HF_HUB_ETAG_TIMEOUT": "100", "HF_HUB_DOWNLOAD_TIMEOUT": "100"}  # fmt: skip
    return kept | chosen | quiet | {"NO_PROXY": "127.0.0.1,localhost"} | more


def run(env: dict[str, str], *job: object):
    done = subprocess.run(
        [sys.executable, str(CLIENT), *map(str, job)],
        env=env,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wait_until(condition) -> None:
    deadline = time.monotonic() + 580
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub():
    with running_hub() as server:
        yield server


@pytest.fixture(scope="module")
def first(place) -> Path:
    """A trained checkpoint with all that can lie in its folder."""
    folder = place / "first"
    model = tiny_model(sampling_rate=16000, downsampling_ratios=[2, 4, 5, 8])
    model.save_pretrained(folder)
    half = {key: value.half().contiguous() for key, value in model.folded_state_dict().items()}
    save_file(
        half, folder / "model.safetensors", metadata={"format": "pt"}
    )  # as the embedded ones are kept
    (folder / "training").mkdir()
    (folder / "training" / "state.pt").write_bytes(b"private")
    (folder / "training" / "recipe.json").write_text("{}")
    save_file({"weight": torch.arange(100000.0)}, folder / DISCRIMINATORS)
    shutil.copy(EMBEDDED_FOLDER / "dac-16khz-live" / "entropy.safetensors", folder)
    for name in ("notes.txt", "entropy-notes.txt", "entropy.json"):
        (folder / name).write_text("private")
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "first.yaml").write_text("[]")
    return folder


@pytest.fixture(scope="module")
def second(place) -> Path:
    tiny_model(seed=1, sampling_rate=16000, downsampling_ratios=[2, 4, 5, 8]).save_pretrained(
        place / "second"
    )
    (place / "second" / "README.md").write_text(CARD)
    return place / "second"


@pytest.fixture(scope="module")
def plain(place) -> Path:
    tiny_model(causal=True, seed=2, sampling_rate=16000).save_pretrained(place / "plain")
    (place / "plain" / "README.md").write_text(CARD)
    return place / "plain"


@pytest.fixture(scope="module")
def interrupted(hub, place, first) -> dict:
    """A push that is killed while it uploads its last file."""
    hub.hold = sha256(first / DISCRIMINATORS)
    command = [
        sys.executable,
        "-m",
        "codecplus",
        "push",
        "ada/tiny",
        "--model",
        str(first),
        "--discriminators",
    ]
    env = environment(place / "writer", hub.endpoint, HF_TOKEN=WRITER)
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        weights = sha256(first / "model.safetensors")
        wait_until(lambda: hub.held.is_set() and weights in hub.blobs)
    finally:
        process.kill()
        process.wait()
    state = {"files": dict(hub.repo("ada/tiny").files), "uploads": dict(hub.uploads)}
    hub.hold = None
    hub.release.set()
    return state


@pytest.fixture(scope="module")
def published(hub, place, interrupted, first, second, plain) -> dict:
    hub.failures = 1  # and one upload breaks off halfway, which the client is to try again
    return run(
        environment(place / "writer", hub.endpoint, HF_TOKEN=WRITER),
        "publish",
        first,
        second,
        plain,
    )


@pytest.fixture(scope="module")
def commits(hub, published) -> list[str]:
    return list(hub.repo("ada/tiny").commits)


@pytest.fixture(scope="module")
def pulled(hub, place, commits, first) -> dict:
    files = hub.repo("ada/tiny").files
    hub.repos["model", "ada/gated"] = Repo(gated=True)
    hub.repo("ada/gated").commit("main", files)
    hub.repos["model", "ada/empty"] = Repo()
    hub.repo("ada/empty").commit("main", {"README.md": Entry(b"# nothing", lfs=False)})
    return run(environment(place / "reader", hub.endpoint), "pull", commits[1], first)


def test_an_interrupted_push_leaves_nothing_half_done(interrupted):
    assert interrupted["files"] == {}


def test_an_interrupted_push_goes_on_where_it_was(hub, published, first):
    status, address, _ = published["resumed"]
    assert status == 0
    assert address.startswith(f"{hub.endpoint}/ada/tiny/commit/")
    assert hub.uploads[sha256(first / "model.safetensors")] == 1
    assert hub.uploads[sha256(first / DISCRIMINATORS)] == 1


def test_one_commit_holds_all_that_belongs_to_a_checkpoint_and_nothing_private(hub, commits, first):
    files = hub.repo("ada/tiny").commits[commits[1]]
    parts = (
            "checkpoints", "coders", "configuration", "feature_extraction", "gains", "layers", "modeling",
            "network", "sizes"
        )  # fmt: skip
    code = {f"{part}_dac.py" for part in parts}
    listed = {path for path in files if not path.startswith("assets/")}
    assert listed == code | {
        "config.json", "preprocessor_config.json", "model.safetensors", "entropy.safetensors", DISCRIMINATORS,
        "training/recipe.json", "README.md", "LICENSE-CODE", ".eval_results/first.yaml",
    }  # fmt: skip
    assert files["model.safetensors"].data == (first / "model.safetensors").read_bytes()
    assert set(json.loads(files["config.json"].data)["auto_map"]) == {"AutoConfig", "AutoModel"}
    assert b"AutoFeatureExtractor" in files["preprocessor_config.json"].data


def test_the_card_has_players_for_the_samples_that_come_along(hub, commits):
    files = hub.repo("ada/tiny").commits[commits[1]]
    card = files["README.md"].data.decode()
    samples = {path for path in files if path.endswith(".flac")}
    assert len(samples) == 4
    for path in samples:
        assert f"]({path})" in card
        assert f'src="{hub.endpoint}/ada/tiny/resolve/main/{path}"' in card
        assert files[path].data.startswith(b"fLaC")


def test_a_second_push_of_the_same_files_makes_no_commit(hub, published, commits):
    assert published["again"][:2] == published["resumed"][:2]
    assert (
        len(commits) == 4
    )  # the empty start, the first checkpoint, the second on a branch and on main


def test_a_push_of_other_weights_removes_results_and_entropy_models(hub, published):
    assert published["replaced"][0] == 0
    stale = {
        "entropy.safetensors",
        ".eval_results/first.yaml",
        DISCRIMINATORS,
        "training/recipe.json",
    }
    assert not stale & set(hub.repo("ada/tiny").files)


def test_a_branch_is_made_and_main_left_alone(hub, published):
    assert published["branch"][0] == 0
    assert hub.repo("ada/tiny").find("next")


def test_a_private_repository_is_private(hub, published):
    assert published["short name"][0] == 0
    assert hub.repo("ada/plain").private
    assert published["private again"][0] == 0


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (
            "private, but public",
            "ada/tiny exists and is public; make it private in its settings first",
        ),
        ("a commit", "expected a branch to push to, got the commit 0000"),
        ("a bad name", "expected OWNER/NAME"),
        (
            "no discriminators",
            "holds no training/discriminators.safetensors; codecplus train writes it",
        ),
        ("no such folder", "there is no checkpoint 'nowhere' here"),
        ("somebody else's", "'bob/tiny': the token may not do that"),
        (
            "read-only token",
            "the token may not do that (you need a token with write permission); make one that may "
            "on",
        ),
        (
            "wrong token",
            "does not accept the token; log in again with `hf auth login`, or correct HF_TOKEN",
        ),
        ("no token", "pushing needs a login: run `hf auth login`, or set HF_TOKEN"),
    ],
)
def test_a_push_that_is_refused_says_so_in_one_line(published, case, sentence):
    status, out, line = published[case]
    assert (status, out) == (2, "")
    assert line.startswith("codecplus: ")
    assert sentence in line


def test_transformers_alone_loads_what_was_pushed(hub, place, published, second):
    answer = run(environment(place / "stock", hub.endpoint), "pull_stock")
    expected = codes(tiny_model(seed=1, sampling_rate=16000, downsampling_ratios=[2, 4, 5, 8]))
    assert not answer["codecplus"]
    assert answer["stock"] == ["transformers.models.dac.modeling_dac", expected]
    assert answer["remote"][0].startswith("transformers_modules.")
    assert answer["remote"][1] == expected
    assert answer["extractor"][0].startswith("transformers_modules.")
    assert answer["extractor"][1:] == [16000, 320]


def test_load_codec_takes_branches_and_commits(pulled, first):
    from codecplus import load_codec

    new = codes(tiny_model(seed=1, sampling_rate=16000, downsampling_ratios=[2, 4, 5, 8]))
    assert pulled["main"] == ["ok", new]
    assert pulled["branch"] == ["ok", new]
    assert pulled["commit"] == ["ok", codes(load_codec(first).model)]
    assert pulled["commit"][1] != new


def test_who_may_see_a_repository_can_load_it(pulled):
    assert pulled["private"][0] == pulled["gated"][0] == "ok"


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("no revision", "it has no branch, tag or commit 'v9'"),
        ("private, stranger", "has no such repository, or it is private and not yours"),
        ("private, anonymous", "has no such repository, or it is private and not yours"),
        ("gated, stranger", "it is gated; ask for access on"),
        ("missing", "has no such repository, or it is private and not yours"),
        ("empty", "holds no model: it has no config.json"),
        ("wrong token", "does not accept the token; log in again"),
        ("revision of a folder", "revision (='v1') is for a repository on the Hub"),
    ],
)
def test_a_pull_that_fails_says_why_in_one_sentence(pulled, case, sentence):
    kind, message = pulled[case]
    assert kind == ("InputError" if case == "revision of a folder" else "CheckpointError")
    assert sentence in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("settings", "missing", "push"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set", "HF_HUB_OFFLINE is set"),
        pytest.param(
            {"HF_ENDPOINT": "http://127.0.0.1:1"},
            "http://127.0.0.1:1 cannot be reached",
            "cannot be reached",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["offline", "no network"],
)
def test_the_cache_serves_without_the_hub(
    hub, place, pulled, commits, second, settings, missing, push
):
    before = len(hub.requests)
    env = environment(place / "reader", **{"endpoint": hub.endpoint}) | settings
    answer = run(env, "pull_cached", commits[1], second)
    assert answer["main"] == pulled["main"]
    assert answer["commit"] == pulled["commit"]
    assert missing in answer["missing"][1]
    assert answer["push"][0] == 2
    assert push in answer["push"][2]
    assert len(hub.requests) == before


def test_the_demo_is_pushed_as_a_space_with_the_package_it_needs(hub, place):
    demo = place / "checkout" / "spaces_demo"
    (demo / "__pycache__").mkdir(parents=True)
    (demo / "__pycache__" / "app.pyc").write_bytes(b"compiled")
    (demo / "app.py").write_text("import gradio")
    (demo / "requirements.txt").write_text("gradio")
    (demo / "README.md").write_text("---\ntitle: codecplus\nsdk: gradio\n---\n")
    (demo / "ratings.py").write_text("how they are kept")
    (demo / "ratings").mkdir()
    (demo / "ratings" / "ratings.sqlite").write_bytes(b"somebody's")
    env = environment(place / "writer", hub.endpoint, HF_TOKEN=WRITER)
    answer = run(env, "publish_space", place / "checkout", place / "written")
    assert answer["no demo"][0] == 2
    assert "the demo is not part of this installation" in answer["no demo"][2]
    assert answer["pushed"][0] == answer["again"][0] == answer["written"][0] == 0
    assert answer["again"][1] == answer["pushed"][1]  # the same once more makes no commit
    assert hub.repo("ada/demo", "space").sdk == "gradio"
    files = hub.repo("ada/demo", "space").files
    own = {path for path in files if not path.startswith("codecplus/")}
    assert own == {"app.py", "ratings.py", "requirements.txt", "README.md", "LICENSE"}
    package = Path(codecplus.__file__).parent
    sent = {
        path.relative_to(package.parent).as_posix(): path
        for path in package.rglob("*")
        if path.is_file()
    }
    for path in EMBEDDED_FOLDER.glob("dac-*/*"):
        sent[f"codecplus/checkpoints/embedded/{path.parent.name}/{path.name}"] = path
    assert {path for path in sent if "__pycache__" not in path} == set(files) - own
    weights = "codecplus/checkpoints/embedded/dac-16khz-live/model.safetensors"
    assert files[weights].data == sent[weights].read_bytes()
    thumbnail = f"{hub.endpoint}/spaces/ada/demo/resolve/main/static/preview.jpg"
    assert f"thumbnail: {thumbnail}".encode() in files["README.md"].data
    assert {
        path.relative_to(place / "written").as_posix()
        for path in (place / "written").rglob("*")
        if path.is_file()
    } == set(files)


@pytest.mark.slow
def test_the_files_of_a_push_can_be_written_into_a_folder(place, first, tmp_path):
    env = environment(place / "nobody", "http://127.0.0.1:1")
    answer = run(env, "write_folder", first, tmp_path / "out")
    assert answer["written"] == [0, str(tmp_path / "out"), ""]
    assert answer["again"][0] == answer["and a repository"][0] == answer["nothing"][0] == 2
    assert "expected an empty folder" in answer["again"][2]
    assert "push -o FOLDER uploads nothing" in answer["and a repository"][2]
    assert "push needs a checkpoint" in answer["nothing"][2]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        first / "model.safetensors"
    ).read_bytes()
    assert {"README.md", "config.json", "modeling_dac.py"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_the_examples_of_the_page_work(hub, place, first):
    shutil.copytree(first, place / "my-codec")
    env = environment(place / "writer", hub.endpoint, HF_TOKEN=WRITER)
    page = Path(__file__).parents[2] / "docs" / "hub.md"
    assert set(run(env, "documented", place, page).values()) == {0}
    embedded = EMBEDDED_FOLDER / "dac-16khz-live"
    assert {path.name for path in embedded.iterdir()} | {"README.md", "LICENSE"} <= set(
        hub.repo("ada/live").files
    )
    for name in ("model.safetensors", *(path.name for path in embedded.glob("entropy*"))):
        assert hub.repo("ada/live").files[name].data == (embedded / name).read_bytes()


def test_a_card_is_made_where_there_is_none_and_kept_where_there_is_one(hub, commits, first):
    made = hub.repo("ada/tiny").commits[commits[1]]["README.md"].data.decode()
    assert f"codecplus_fingerprint: {fingerprint(load_model(first)).hex()}" in made
    assert "Nothing yet: no results were given" in made
    assert hub.repo("ada/tiny").files["README.md"].data.decode() == CARD
