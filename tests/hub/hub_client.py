"""What a user's processes do with the Hub, run by the tests in fresh ones: `python hub_client.py JOB ARGUMENTS`.

Each job prints one line of JSON. Settings of the Hub's client come from the environment, as they do for users.
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
    """Run the command line in this process: its status, what it printed, and its last line on stderr."""
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
    done["resumed"] = command("push", first, "ada/tiny", "--discriminators")
    done["again"] = command("push", first, "ada/tiny", "--discriminators")
    done["branch"] = command("push", second, "ada/tiny", "--revision", "next")
    done["replaced"] = command("push", second, "ada/tiny")
    done["short name"] = command("push", plain, "plain", "--private")
    done["private, but public"] = command("push", second, "ada/tiny", "--private")
    done["private again"] = command("push", plain, "ada/plain", "--private")
    done["a commit"] = command("push", second, "ada/tiny", "--revision", "0" * 40)
    done["a bad name"] = command("push", second, "ada/ti ny")
    done["no discriminators"] = command("push", plain, "ada/plain", "--discriminators")
    done["no such folder"] = command("push", "nowhere", "ada/tiny")
    done["somebody else's"] = command("push", second, "bob/tiny")
    done["read-only token"] = command("push", second, "ada/tiny", token="hf_reader")
    done["wrong token"] = command("push", second, "ada/tiny", token="hf_wrong")
    done["no token"] = command("push", second, "ada/tiny", token="")
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


def publish_space(root: str) -> dict:
    """The demo, out of a checkout that lies elsewhere."""
    from pathlib import Path

    from codecplus import hub

    hub._ROOT = Path(root) / "nothing"
    done = {"installed": command("push", "--space", "ada/demo")}
    hub._ROOT = Path(root)
    return done | {"checkout": command("push", "--space", "ada/demo")}


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
        "push": command("push", folder, "ada/tiny", token="hf_writer"),
    }


if __name__ == "__main__":
    answer = globals()[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(answer))
