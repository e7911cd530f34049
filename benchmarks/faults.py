"""Faults at random moments of a job: results must be those of the undisturbed run.

    python benchmarks/faults.py --faults 30 [--verb encode decode tokenize eval train]
    [--kind kill term slow full disk] [--clips 12] [--seconds 1.0]

Each verb runs once undisturbed. Then, for each fault, it begins in a new folder, and at a random
moment its process is killed (`kill`), asked to end (`term`), killed while each rename and each wait
for the disk takes long (`slow`), or meets a full disk: no file may grow beyond a random size
(`full`), or the folder is a disk of its own of a random size (`disk`, as root on Linux). What it
left must be part of the undisturbed results, and the same command must then finish the job: with
the same results, and nothing else in the folder. `train` goes on with `--resume` where there is a
run to go on with. Processes are forks of this one, which has imported what the undisturbed run
imports, so that faults strike the work. Prints a line per verb and fault.
"""

import argparse
import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

KINDS = ("kill", "term", "slow", "full", "disk")
_PAGE = 4096  # bytes
_DELAY = 0.03  # seconds that a slow disk takes


class Verb:
    """A command, and what counts as its results."""

    def __init__(self, name: str, arguments: list[str], going_on: list[str]):
        self.name = name
        self.arguments = arguments  # with OUT for the folder to write to
        self._going_on = going_on

    def going_on(self, out: Path) -> list[str]:
        """Options that go on with a job that was stopped."""
        if self.name == "train":
            return ["--resume"] if (out / "training" / "state.pt").is_file() else []
        return self._going_on

    def results(self, out: Path) -> dict[str, Any]:
        """The results by the names of their files; those of `eval` are its scores alone."""
        if self.name == "eval":
            return scores(out)
        if self.name == "train":  # the state beside it holds times, too
            names = ["config.json", "preprocessor_config.json", "model.safetensors"]
            return {name: (out / name).read_bytes() for name in names if (out / name).is_file()}
        return {name: (out / name).read_bytes() for name in files_below(out)}


def files_below(folder: Path) -> list[str]:
    """Names of all files but the unfinished ones."""
    names = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            names.append(path.relative_to(folder).as_posix())
    return names


def unfinished(folder: Path) -> list[Path]:
    """The temporary files that a process left."""
    files = [path for path in folder.rglob(".codecplus-*") if path.is_file()]
    return [*files, *folder.rglob(".partial-*")]


def scores(out: Path) -> dict[str, Any]:
    """What was measured of each clip, without the times that it took."""
    rows = out / "rows.jsonl"
    if not rows.is_file():
        return {}
    found = {}
    for line in rows.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        timeless = {key: value for key, value in row.items() if "second" not in key}
        timeless.pop("rtf", None)
        found[f"{row.get('codec')} {row.get('clip')}"] = _without_times(timeless)
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if "second" not in k and k != "rtf"}
    return value


def verbs(data: Path, coded: Path, name: str, workers: int) -> list[Verb]:
    """The commands that are disturbed."""
    model = ["--model", name]
    evaluated = ["--codec", "opus", "--bitrate-per-channel", "12", "--metric", "si_sdr"]
    evaluated += ["--workers", "1"]
    go_on = ["--skip-existing"]
    rows = ["--shard-rows", "3", "--workers", str(workers), *model]
    common = ["-o", "OUT", "-q"]
    return [
        Verb("encode", ["encode", str(data), *common, *model], go_on),
        Verb("decode", ["decode", str(coded), *common, *model], go_on),
        Verb("tokenize", ["tokenize", "--data", str(data), *common, *rows], []),
        Verb("eval", ["eval", "--data", str(data), *common, *evaluated], []),
        Verb("train", ["train", "--data", str(data), *common, *training_options(data.parent)], []),
    ]


def training_options(folder: Path) -> list[str]:
    """A training of twelve steps of a tiny codec, saved every second one."""
    config = {
        "model_type": "causal_dac",
        "encoder_hidden_size": 8,
        "decoder_hidden_size": 32,
        "downsampling_ratios": [4, 4],
        "n_codebooks": 3,
        "codebook_size": 16,
        "sampling_rate": 8000,
    }
    recipe = {
        "preset": str(folder / "tiny.json"),
        "schedule": {"steps": 12, "warmup": 1},
        "objective": {
            "weights": {"mel": 15, "feature_matching": 2, "adversarial": 1},
            "mel_bands": {"64": 8},
            "stft_windows": [64],
        },
        "adversary": {
            "periods": [2],
            "fft_sizes": [64],
            "period_channels": [4, 8],
            "stft_channels": 4,
        },
        "batch": 2,
        "seconds": 0.018,
    }
    (folder / "tiny.json").write_text(json.dumps(config))
    (folder / "recipe.json").write_text(json.dumps(recipe))
    options = ["--preset", str(folder / "recipe.json"), "--device", "cpu", "--dtype", "float32"]
    options += ["--workers", "0", "--save-every", "2", "--validate-every", "0"]
    return [*options, "--tracker", "none"]


def write_clips(folder: Path, clips: int, seconds: float) -> None:
    """Tones under noise, of lengths from half to one and a half of `seconds`."""
    rng = np.random.default_rng(0)
    for i in range(clips):
        t = np.arange(int(seconds * (0.5 + rng.random()) * 16_000)) / 16_000
        audio = 0.2 * np.sin(2 * np.pi * 50 * (i + 3) * t * (1 + t))
        path = folder / f"{i % 3}" / f"{i:03d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, audio + 0.05 * rng.standard_normal(len(t)), 16_000)


def start(
    arguments: list[str],
    log: Path,
    prepare: Callable[[], None] | None = None,
    imported: Path | None = None,
) -> int:
    """Fork a process that runs a command line; return its number.

    Its last act is to write the names of the modules that it has to `imported`.
    """
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        if prepare is not None:
            prepare()
        from codecplus.cli import main

        status = main(arguments)
        if imported is not None:
            imported.write_text("\n".join(sys.modules), encoding="utf-8")
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(status)


def wait(child: int) -> int:
    """Return the exit status of a process, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def import_all(names: list[str]) -> None:
    """Import modules that a child has imported, for those that are forked later."""
    for name in names:
        if name not in sys.modules:
            with suppress(Exception):  # some are made by others, and are no files
                importlib.import_module(name)


class Fault:
    """One fault of one kind in one verb, and what must hold after it."""

    def __init__(self, verb: Verb, whole: Path, seconds: float, log: Path):
        self.verb = verb
        self.expected = verb.results(whole)
        self.pages = sum(
            -(-path.stat().st_size // _PAGE) for path in whole.rglob("*") if path.is_file()
        )
        self.seconds = seconds
        self.log = log

    def slow_down(self, out: Path) -> str:
        """Run the verb undisturbed on a slow disk, for as long as faults of that kind are to come;
        return what went wrong, or nothing.
        """
        started = time.perf_counter()
        status = wait(start(self._arguments(out, []), self.log, _slow_disk))
        self.seconds = time.perf_counter() - started
        if status or self.verb.results(out) != self.expected:
            return f"status {status}, or other results"
        return ""

    def strike(self, kind: str, out: Path, chance: random.Random) -> str:
        """Disturb the verb once; return what went wrong, or nothing."""
        with ExitStack() as stack:
            if kind == "disk":
                stack.enter_context(_own_disk(out, chance.randint(1, self.pages)))
            status = self._disturb(kind, out, chance)
            said = self.log.read_text(encoding="utf-8", errors="replace")
            problem = self._problem_after(kind, status, said, out)
            if problem:
                return f"{problem}; it said: {said.strip()[-300:]!r}"
            if kind == "disk":
                _mount(out, 1 << 18, "remount,")
            return self._problem_of_going_on(out)

    def _disturb(self, kind: str, out: Path, chance: random.Random) -> int:
        """Run the verb with a fault; return its status."""
        arguments = self._arguments(out, [])
        if kind == "full":
            return wait(start(arguments, self.log, lambda: _limit_files(chance)))
        if kind == "disk":
            return wait(start(arguments, self.log))
        child = start(arguments, self.log, _slow_disk if kind == "slow" else None)
        time.sleep(chance.uniform(0, 1.1 * self.seconds))
        os.kill(child, signal.SIGTERM if kind == "term" else signal.SIGKILL)
        return wait(child)

    def _arguments(self, out: Path, more: list[str]) -> list[str]:
        return [*(str(out) if part == "OUT" else part for part in self.verb.arguments), *more]

    def _problem_after(self, kind: str, status: int, said: str, out: Path) -> str:
        allowed = {"kill": {-9, 0}, "term": {143, 130, 0, -15}, "slow": {-9, 0}}
        if status not in allowed.get(kind, {0, 2}):
            return f"status {status}"
        if "Traceback" in said:
            return "a traceback"
        if status not in (-9, -15) and unfinished(out):  # -15: before main was reached
            return f"{unfinished(out)} was left"
        if self.verb.name in ("encode", "decode"):
            for name, content in self.verb.results(out).items():
                if self.expected.get(name) != content:
                    return f"{name} is not the undisturbed one"
        return ""

    def _problem_of_going_on(self, out: Path) -> str:
        going_on = self.verb.going_on(out)
        status = wait(start(self._arguments(out, going_on), self.log))
        said = self.log.read_text(encoding="utf-8", errors="replace").strip()
        if status != 0:
            return f"going on ended with status {status}: {said[-300:]!r}"
        results = self.verb.results(out)
        if results != self.expected:
            different = {
                name
                for name in results.keys() | self.expected.keys()
                if results.get(name) != self.expected.get(name)
            }
            return f"after going on, {sorted(different)[:3]} differ"
        if unfinished(out):
            return f"after going on, {unfinished(out)} is left"
        return ""


def _limit_files(chance: random.Random) -> None:
    """Let no file grow beyond a random size; the system says `File too large` then."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = int(10 ** chance.uniform(1, 4.5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _slow_disk() -> None:
    """Let all that waits for a disk take long."""
    for name in ("fsync", "rename", "replace", "unlink", "mkdir"):
        setattr(os, name, _slowed(getattr(os, name)))


def _slowed(function: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*args: Any, **settings: Any) -> Any:
        time.sleep(_DELAY)
        result = function(*args, **settings)
        time.sleep(_DELAY)
        return result

    return slow


@contextmanager
def _own_disk(folder: Path, pages: int) -> Iterator[None]:
    """Make a folder that is a disk of so many pages."""
    folder.mkdir()
    _mount(folder, pages)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _mount(folder: Path, pages: int, options: str = "") -> None:
    size = f"{options}size={pages * _PAGE}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "faults", str(folder)], check=True)


def run(
    names: list[str],
    kinds: list[str],
    *,
    faults: int,
    clips: int,
    seconds: float,
    seed: int = 0,
    model: str = "dac-16khz-live",
    workers: int = 1,
) -> list[str]:
    """Disturb verbs, with as many faults of each kind, and return what went wrong."""
    import torch

    torch.set_num_threads(1)
    import codecplus.codec  # noqa: F401  so that forks spend no time on it

    chance = random.Random(seed)
    problems = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        write_clips(place / "data", clips, seconds)
        log = place / "log"
        encode = ["encode", str(place / "data"), "-o", str(place / "coded"), "-q"]
        assert wait(start([*encode, "--model", model], log)) == 0, log.read_text()
        for verb in verbs(place / "data", place / "coded", model, workers):
            if verb.name not in names:
                continue
            whole = place / verb.name
            for number in range(2):  # the second one has nothing left to import
                out = whole / str(number)
                arguments = [str(out) if part == "OUT" else part for part in verb.arguments]
                started = time.perf_counter()
                child = start(arguments, log, imported=place / "imported")
                assert wait(child) == 0, log.read_text()
                duration = time.perf_counter() - started
                import_all((place / "imported").read_text(encoding="utf-8").split())
            assert verb.results(whole / "0") == verb.results(whole / "1")
            fault = Fault(verb, whole / "0", duration, log)
            print(f"{verb.name:9} undisturbed in {duration:.1f} s", flush=True)
            for kind in kinds:
                found = []
                if kind == "slow":
                    problem = fault.slow_down(whole / "slow")
                    if problem:
                        found.append(f"{verb.name}, on a slow disk: {problem}")
                for number in range(faults):
                    problem = fault.strike(kind, place / f"{verb.name}-{kind}-{number}", chance)
                    if problem:
                        found.append(f"{verb.name}, {kind} {number}: {problem}")
                print(f"{verb.name:9} {kind:5} {faults - len(found)} of {faults} well", flush=True)
                problems += found
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    all_verbs = ["encode", "decode", "tokenize", "eval", "train"]
    parser.add_argument("--verb", nargs="+", choices=all_verbs, default=all_verbs)
    possible = [kind for kind in KINDS if kind != "disk" or os.geteuid() == 0]
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=possible)
    parser.add_argument("--faults", type=int, default=30, help="of each kind in each verb")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="dac-16khz-live")
    args = parser.parse_args()
    problems = run(
        args.verb,
        args.kind,
        faults=args.faults,
        clips=args.clips,
        seconds=args.seconds,
        seed=args.seed,
        model=args.model,
    )
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
