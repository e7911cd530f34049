"""What a user's processes do with the Hub, run by the tests in fresh ones: `python hub_client.py
JOB ARGUMENTS`.

Each job prints one line of JSON. Settings of the Hub's client come from the environment, as they do
for users.
"""

import contextlib
import io
import json
import os
import sys


def clip():
    import torch

    return 0.3 * torch.sin(torch.arange(3840) / 9)[None, None]


def codes(model) -> list[int]:
    import torch

    with torch.no_grad():
        return model.eval()(clip()).audio_codes.flatten().tolist()


def command(*arguments: str, token: str | None = None) -> list:
    """Run the command line in this process: its status, what it printed, and its last line on
    stderr.
    """
    from codecplus.cli import main

    if token is not None:
        os.environ["HF_TOKEN"] = token
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(arguments))
    return [status, out.getvalue().strip(), (err.getvalue().strip().splitlines() or [""])[-1]]


def publish(first: str, second: str, plain: str) -> dict:
    """Everything that is pushed, and the pushes that must be refused."""
    done = {}
    done["resumed"] = command("push", "ada/tiny", "--model", first, "--discriminators")
    done["again"] = command("push", "ada/tiny", "--model", first, "--discriminators")
    done["branch"] = command("push", "ada/tiny", "--model", second, "--branch", "next")
    done["replaced"] = command("push", "ada/tiny", "--model", second)
    done["short name"] = command("push", "plain", "--model", plain, "--private")
    done["private, but public"] = command("push", "ada/tiny", "--model", second, "--private")
    done["private again"] = command("push", "ada/plain", "--model", plain, "--private")
    done["a commit"] = command("push", "ada/tiny", "--model", second, "--branch", "0" * 40)
    done["a bad name"] = command("push", "ada/ti ny", "--model", second)
    done["no discriminators"] = command("push", "ada/plain", "--model", plain, "--discriminators")
    done["no such folder"] = command("push", "ada/tiny", "--model", "nowhere")
    done["somebody else's"] = command("push", "bob/tiny", "--model", second)
    done["read-only token"] = command("push", "ada/tiny", "--model", second, token="hf_reader")
    done["wrong token"] = command("push", "ada/tiny", "--model", second, token="hf_wrong")
    done["no token"] = command("push", "ada/tiny", "--model", second, token="")
    return done


def documented(folder: str, page: str) -> dict:
    """What the page on the Hub tells users to type, in a folder where `my-codec` is."""
    import re
    import shlex
    from pathlib import Path

    os.chdir(folder)
    text = Path(page).read_text()
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for kind, block in blocks if kind == "bash" for line in block.splitlines()]
    done = {line: command(*shlex.split(line)[1:])[0] for line in lines}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, page, "exec"), {})
    return done


def publish_space(root: str, folder: str) -> dict:
    """The demo, out of a checkout that lies elsewhere."""
    from pathlib import Path

    from codecplus.hub import installation

    installation._REPOSITORY = Path(root) / "nothing"
    done = {"no demo": command("push", "ada/demo", "--space")}
    installation._REPOSITORY = Path(root)
    done["pushed"] = command("push", "ada/demo", "--space")
    done["again"] = command("push", "ada/demo", "--space")
    done["written"] = command("push", "--space", "-o", folder)
    return done


def write_folder(source: str, folder: str) -> dict:
    """What would be uploaded, without a Hub."""
    return {
        "written": command("push", "--model", source, "-o", folder),
        "again": command("push", "--model", source, "-o", folder),
        "and a repository": command("push", "ada/tiny", "--model", source, "-o", folder),
        "nothing": command("push", "-o", folder),
    }


def pull_stock() -> dict:
    """transformers alone: its own class, then ours by the code in the repository."""
    from transformers import AutoFeatureExtractor, AutoModel

    stock = AutoModel.from_pretrained("ada/tiny")
    ours = AutoModel.from_pretrained("ada/tiny", trust_remote_code=True)
    extractor = AutoFeatureExtractor.from_pretrained("ada/tiny", trust_remote_code=True)
    return {
        "stock": [type(stock).__module__, codes(stock)],
        "remote": [type(ours).__module__, codes(ours)],
        "extractor": [type(extractor).__module__, extractor.sampling_rate, extractor.hop_length],
        "codecplus": "codecplus" in sys.modules,
    }


def clips(name: str, **changes) -> list:
    """The clips of a task and the commit they are from, or the sentence that says why there are
    none.
    """
    import dataclasses

    from codecplus.errors import CodecPlusError
    from codecplus.eval.tasks import load_task

    task = dataclasses.replace(load_task(name), **changes)
    try:
        found = [
            [clip.source, clip.kind, clip.speaker, clip.sample_rate, clip.audio.shape[-1]]
            for clip in task
        ]
        return [task.describe()["revision"], found]
    except CodecPlusError as error:
        return [type(error).__name__, str(error)]


def evaluate(out: str) -> dict:
    """The presets as they ship, and what users get wrong about a data set."""
    preset = "librispeech-test-clean"
    return {
        "command": command("eval", "--codec", "opus", "--bitrate-per-channel", "16", "--data", preset, "-o", out,
                           "--metric", "si_sdr", "--quiet"),
        "streamed": clips(preset),
        "downloaded": clips(preset, streaming=False),
        "sounds": clips("esc50"),
        "branch": clips(preset, revision="main"),
        "no data set": clips(preset, dataset="ada/nothing"),
        "no revision": clips(preset, revision="v9"),
        "no split": clips(preset, split="tset"),
        "no column": clips(preset, speaker_column="who"),
    }  # fmt: skip


def evaluate_cached() -> dict:
    """The same without the Hub."""
    preset = "librispeech-test-clean"
    return {
        "downloaded": clips(preset, streaming=False),
        "elsewhere": clips(preset, dataset="ada/nothing"),
    }


def train(recipe: str, out: str, *names: str) -> dict:
    """Trainings from data sets, downloaded and streamed; and which rows each of two processes
    streams.
    """
    arguments = ("--preset", recipe, "--device", "cpu", "--dtype", "float32", "--tracker", "none",
                 "--workers", "0", "--quiet", "--validate-every", "1", "--log-every", "1")  # fmt: skip
    return {
        "downloaded": command("train", *arguments, "--data", names[0], "--output", f"{out}/downloaded"),
        "streamed": command("train", *arguments, "--data", names[0], "--output", f"{out}/streamed", "--streaming"),
        "no data set": command("train", *arguments, "--data", "ada/nothing", "--output", f"{out}/nothing"),
        "no column": command("train", *arguments, "--data", names[0], "--audio-column", "sound", "--output",
                             f"{out}/nothing"),
        "shares": {name: [streamed_levels(name, rank) for rank in (0, 1)] for name in names},
    }  # fmt: skip


def streamed_levels(name: str, rank: int) -> list[list[float]]:
    """Levels of many crops of recordings that are constant, of one of two processes, and of its
    validation clips.
    """
    from codecplus.training.data import Cutter
    from codecplus.training.recipe import Augmentation
    from codecplus.training.sampling import TableOptions, open_data

    cutter = Cutter(8000, 1000, Augmentation(flip_share=0.0))
    options = TableOptions(streaming=True)
    batches, clips = open_data(name, cutter, 8, options=options, rank=rank, processes=2)
    levels = [
        round(float(level), 2) for _ in range(20) for level in next(batches).audio.mean(dim=1)
    ]
    return [sorted(set(levels)), sorted(round(float(clip.audio.mean()), 2) for clip in clips)]


def load(name: str, revision: str | None = None, token: str | None = None) -> list:
    """A codec's codes, or the sentence that says why there are none."""
    from codecplus import load_codec
    from codecplus.errors import CodecPlusError

    os.environ["HF_TOKEN"] = token or ""
    try:
        return ["ok", codes(load_codec(name, revision=revision).model)]
    except CodecPlusError as error:
        return [type(error).__name__, str(error)]


def pull(old_commit: str, folder: str) -> dict:
    """load_codec, for those who may and those who may not."""
    return {
        "main": load("ada/tiny"),
        "commit": load("ada/tiny", old_commit),
        "branch": load("ada/tiny", "next"),
        "no revision": load("ada/tiny", "v9"),
        # those who may not first: afterwards the cache has it
        "private, stranger": load("ada/plain", token="hf_stranger"),
        "private, anonymous": load("ada/plain"),
        "private": load("ada/plain", token="hf_reader"),
        "gated, stranger": load("ada/gated", token="hf_stranger"),
        "gated": load("ada/gated", token="hf_reader"),
        "missing": load("ada/nothing", token="hf_reader"),
        "empty": load("ada/empty"),
        "wrong token": load("ada/tiny2", token="hf_wrong"),
        "revision of a folder": load(folder, "v1"),
    }


def pull_cached(old_commit: str, folder: str) -> dict:
    """What still works without the Hub, and what is said of the rest."""
    return {
        "main": load("ada/tiny"),
        "commit": load("ada/tiny", old_commit),
        "missing": load("ada/nothing"),
        "push": command("push", "ada/tiny", "--model", folder, token="hf_writer"),
    }


def share_codec() -> dict:
    """A codec with a rate and an entropy model of its own goes to the Hub and comes back."""
    import numpy as np

    from codecplus import Codec, load_codec
    from codecplus.bitstream import EntropyModel
    from codecplus.errors import CodecPlusError

    os.environ["HF_TOKEN"] = "hf_writer"
    embedded = load_codec("dac-16khz-live")
    (entropy,) = embedded.entropy_models.values()
    arrays = {**entropy.arrays, "hidden_bias": entropy.arrays["hidden_bias"] + 1}
    own = EntropyModel(arrays, entropy.fingerprint)
    codec = Codec(embedded.model, 8000, entropy_models=[own, entropy])
    done = {"commit": codec.push_to_hub("ada/codec"), "again": codec.push_to_hub("ada/codec")}
    done["branch"] = codec.push_to_hub("codec", revision="next", message="Another")
    pulled = load_codec("ada/codec")
    audio = np.sin(np.arange(4000) / 9).astype(np.float32)
    done["same bytes"] = pulled.compress(audio) == codec.compress(audio) != embedded.compress(audio)
    done["entropy models"] = [model.hex() for model in pulled.entropy_models]
    done["expected"] = [own.identity.hex(), entropy.identity.hex()]
    done["rate"] = pulled.sample_rate
    for name, repo in {"name": "ada/a codec", "stranger": "bob/codec"}.items():
        try:
            codec.push_to_hub(repo)
        except CodecPlusError as error:
            done[name] = f"{type(error).__name__}: {error}"
    return done


if __name__ == "__main__":
    answer = globals()[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(answer))
