"""The demo as a folder: what it needs lies in it, wherever it is copied; and what it does where
ZeroGPU is.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from codecplus.errors import InputError
from codecplus.hub import export_space

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "spaces_demo"
INSTALL = pytest.mark.skipif(
    not os.environ.get("CODECPLUS_INSTALL_TESTS"),
    reason="installs 2 GB; set CODECPLUS_INSTALL_TESTS=1",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return export_space(tmp_path_factory.mktemp("out") / "space")


def test_the_folder_has_the_package_its_weights_and_clips_and_nothing_private(folder):
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "app.py",
        "requirements.txt",
        "README.md",
        "LICENSE",
        "clips/voice-original.flac",
        "codecplus/assets/demo.flac",
        "codecplus/configuration/presets/dac-44khz.json",
        "codecplus/checkpoints/embedded/dac-16khz-live/model.safetensors",
        "codecplus/checkpoints/embedded/dac-44khz-small/entropy.safetensors",
    } <= files
    assert not any("__pycache__" in name or name.startswith((".", "ratings/")) for name in files)
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert sum((folder / name).stat().st_size for name in files) < 60e6


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="expected an empty folder"):
        export_space(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert (export_space(tmp_path / "empty") / "app.py").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "empty"}


def test_its_requirements_are_those_of_the_package_in_the_versions_tested():
    from packaging.requirements import Requirement

    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [
        Requirement(line) for line in (*project["dependencies"], *extras["eval"], *extras["demo"])
    ]
    needed = [r for r in needed if r.name != "codecplus" and (not r.marker or r.marker.evaluate())]
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if "==" in line:
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate({"python_version": "3.12"}):
                pinned[pin.name] = str(pin.specifier).removeprefix("==")
    expected = {r.name: f"{r.name}=={pinned[r.name]}" for r in needed}
    expected["torch"] = next(
        str(r) for r in needed if r.name == "torch"
    )  # ZeroGPU has its own versions of it
    expected["gradio"] = expected["gradio"].replace("gradio", "gradio[mcp]")  # tools for agents
    found = [
        line
        for line in (SPACE / "requirements.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert found == [expected[name] for name in sorted(expected)]


def test_a_copy_that_follows_links_has_the_package_and_one_that_does_not_says_what_is_missing(
    tmp_path,
):
    if not (SPACE / "codecplus").is_symlink():
        pytest.skip("a checkout without symlinks")
    assert (SPACE / "codecplus").resolve() == (ROOT / "src" / "codecplus").resolve()
    shutil.copytree(SPACE, tmp_path / "space", symlinks=True)
    # -S: without the packages of this environment, of which codecplus is one
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import space"],
        cwd=tmp_path / "space",
        env=clean,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("The package codecplus is neither installed nor in this folder.")
    (tmp_path / "space" / "codecplus").unlink()
    (tmp_path / "space" / "codecplus").mkdir()
    (tmp_path / "space" / "codecplus" / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import space"], cwd=tmp_path / "space", env=clean
    )
    assert done.returncode == 0


def test_wheel_and_sdist_hold_package_data_and_the_demo_once():
    wheel = pytest.importorskip(
        "hatchling.builders.wheel", reason="packing needs hatchling: pip install hatchling"
    )
    sdist = pytest.importorskip("hatchling.builders.sdist")
    files = {
        f.distribution_path: Path(f.path)
        for f in wheel.WheelBuilder(str(ROOT)).recurse_included_files()
    }
    assert {
        "codecplus/spaces_demo/app.py",
        "codecplus/spaces_demo/space/coding.py",
        "codecplus/spaces_demo/clips/voice-original.flac",
        "codecplus/assets/demo.flac",
        "codecplus/configuration/presets/dac-44khz.json",
        "codecplus/model_cards/template.md",
    } <= set(files)
    demo = {path.name for path in SPACE.iterdir()} - {"codecplus", "ratings", "__pycache__"}
    assert {
        name.split("/")[2] for name in files if name.startswith("codecplus/spaces_demo/")
    } == demo
    assert sum(path.stat().st_size for path in files.values()) < 10e6
    names = {f.distribution_path for f in sdist.SdistBuilder(str(ROOT)).recurse_included_files()}
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "src").rglob("*.py")} <= names
    assert not any(
        name.startswith(("eval/", "modeling_dac/", "spaces_demo/codecplus", "weights/"))
        for name in names
    )


# ---- ZeroGPU

STAND_IN = '''
"""A stand-in for the package `spaces`: functions run in another process, errors return as names."""
import multiprocessing, os, sys

assert "torch" not in sys.modules, "spaces must be imported before torch"
asked = []

def GPU(task=None, *, duration=None):
    assert task is None
    def lend(function):
        def call(*arguments):
            asked.append(duration)
            mine, theirs = multiprocessing.Pipe(False)
            def work():
                try:
                    theirs.send((os.getpid(), function(*arguments)))
                except Exception as error:
                    theirs.send((None, type(error).__name__))
            process = multiprocessing.get_context("fork").Process(target=work)
            process.start()
            where, answer = mine.recv()
            process.join()
            if where is None:
                raise RuntimeError(f"ZeroGPU worker error: {answer}")
            assert where != os.getpid()
            return answer
        return call
    return lend
'''
ON_ZERO_GPU = """
import json, sys
from space import coding
import spaces

clip = coding.read_clip(sys.argv[1])
coding.load()
done = coding.round_trip(clip, coding.CHECKPOINTS[0], 1.0)
said = {"size": done.size, "shape": list(done.audio.shape), "asked": spaces.asked}
open("clip.dacp", "wb").write(done.data)
said["decoded"] = coding.decode_file("clip.dacp")[2]["bytes"]
data = bytearray(done.data)
data[len(data) // 2] ^= 255
try:
    coding._decompress(coding.CHECKPOINTS[0], bytes(data))
except Exception as error:
    said["bad"] = [type(error).__name__, str(error)]
print(json.dumps(said))
"""


def test_on_zerogpu_what_computes_runs_where_the_gpu_is_and_errors_stay_sentences(world, tmp_path):
    (tmp_path / "spaces.py").write_text(STAND_IN)
    folder, settings = world
    env = {
        **os.environ,
        **settings,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{SPACE}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", ON_ZERO_GPU, str(folder / "one.wav")]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["shape"] == [1, 12000]
    assert said["decoded"] == said["size"]
    assert said["asked"] == [20] * 4  # encoding, and decoding three times
    assert said["bad"][0] == "FileFormatError"


def test_without_zerogpu_nothing_is_marked():
    from space.coding import on_gpu

    assert on_gpu(len) is len


# ---- on a machine that has nothing


@INSTALL
def test_the_folder_alone_runs_with_its_own_requirements(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "space")
    python = tmp_path / "venv" / "bin" / "python"
    clean = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    install = [
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "-r",
        copy / "requirements.txt",
        "-c",
        ROOT / "constraints.txt",
    ]
    subprocess.run(install, check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [python, "app.py"], cwd=copy, env={**clean, "GRADIO_SERVER_PORT": str(port)}
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.5)
        script = (
            f"from gradio_client import Client; space = Client('http://127.0.0.1:{port}', "
            "verbose=False);"
            "print(space.predict('Voice', None, 'dac-16khz-live', 6.0, "
            "api_name='/encode')[0]['codec']['bytes'])"
        )
        done = subprocess.run(
            [python, "-c", script], cwd=tmp_path, env=clean, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert 1000 < int(done.stdout.splitlines()[-1]) < 10000
    finally:
        process.terminate()
        process.wait(30)
