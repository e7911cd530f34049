"""One folder with everything that goes wrong goes through every verb: the outputs of the good files,
one line for each bad one, the status, and nothing else.
"""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from codecplus.cli import app, batch, main
from codecplus.cli.streams import BinaryOutput, one_line
from codecplus.utils import load_audio, save_audio

MODEL = ["--model", "dac-16khz-live"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="names are bytes, devices as on Linux")
ODD = os.fsdecode(b"odd-\xff.wav")  # no UTF-8
LONG = "l" * 251 + ".wav"  # its .dacp would have 256 bytes

# File by file: the good ones, and what is said of each bad one.
GOOD = ["a.wav", "deep/b.flac", "deep/ü.wav", "c.w64", ODD]
BAD = {
    "cut.wav": "is truncated",
    "empty.wav": "is empty (0 bytes)",
    "junk.flac": "is not readable audio",
    "nan.wav": "NaN",
    "zip.m4a": "is not readable",
    "locked.wav": "permission denied",
}


@pytest.fixture(scope="module")
def nasty(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nasty") / "in"
    (folder / "deep").mkdir(parents=True)
    noise = 0.1 * np.random.default_rng(0).standard_normal(4000)
    formats = {".wav": "WAV", ".flac": "FLAC", ".w64": "W64"}
    for name in [*GOOD, LONG]:
        path = folder / name
        with path.open("wb") as file:
            soundfile.write(file, noise, 16000, format=formats[path.suffix])
    (folder / "cut.wav").write_bytes((folder / "a.wav").read_bytes()[:-100])
    (folder / "empty.wav").write_bytes(b"")
    (folder / "junk.flac").write_bytes(b"this is not audio")
    soundfile.write(folder / "nan.wav", np.array([0.0, np.nan]), 16000, subtype="FLOAT")
    (folder / "zip.m4a").write_bytes(b"PK\3\4" + bytes(100))
    (folder / "locked.wav").write_bytes((folder / "a.wav").read_bytes())
    (folder / "locked.wav").chmod(0)
    (folder / "._a.wav").write_bytes(b"AppleDouble")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "d.wav").write_bytes(b"")
    (folder / "notes.txt").write_text("not audio")
    (folder / "README").write_text("not audio")
    (folder / "dead.wav").symlink_to("nowhere.wav")
    (folder / "linked").symlink_to("deep")
    os.mkfifo(folder / "pipe.wav")
    return folder


LEFT_OUT = (
    "other files left out: 1 without a suffix, 1 .txt, 1 devices or pipes, "
    "1 links that lead nowhere, 1 links to folders"
)


def bad() -> dict[str, str]:
    """What fails when it is read, for this user: root reads what is locked."""
    return {name: said for name, said in BAD.items() if name != "locked.wav" or os.geteuid() != 0}


def check_lines(lines: list[str], expected: dict[str, str]) -> None:
    """One line for each of these files, and no other line."""
    assert len(lines) == len(expected), lines
    for name, said in expected.items():
        (line,) = [line for line in lines if name in line]
        assert said in line
        assert line.startswith("codecplus: ")


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@linux
def test_encode_info_and_decode(nasty, tmp_path, capfd):
    coded, again = tmp_path / "coded", tmp_path / "again"
    assert main(["encode", str(nasty), "-o", str(coded), *MODEL]) == 2
    printed = capfd.readouterr()
    lines = printed.err.splitlines()
    left_out = [line for line in lines if "left out" in line]
    assert left_out == [f"codecplus: {LEFT_OUT}"]
    lines.remove(left_out[0])
    check_lines(lines, {**bad(), LONG: "its name has 256 bytes, and the disk takes 255"})
    good = GOOD if os.geteuid() else [*GOOD, "locked.wav"]
    outputs = {Path(name).with_suffix(".dacp").as_posix() for name in good}
    assert files_below(coded) == outputs
    assert len(printed.out.splitlines()) == len(good)

    (coded / "bad.dacp").write_bytes(b"not coded")
    assert main(["info", str(coded)]) == 2
    check_lines(capfd.readouterr().err.splitlines(), {"bad.dacp": "expected a .dacp file"})
    assert main(["decode", str(coded), "-o", str(again), "-q"]) == 2
    check_lines(capfd.readouterr().err.splitlines(), {"bad.dacp": "expected a .dacp file"})
    assert files_below(again) == {Path(name).with_suffix(".wav").as_posix() for name in good}
    assert load_audio(again / ODD)[0].shape == (4000,)

    # The same again does nothing but what is missing.
    (coded / "a.dacp").unlink()
    times = {path: path.stat().st_mtime_ns for path in coded.rglob("*.dacp")}
    assert main(["encode", str(nasty), "-o", str(coded), "--skip-existing", *MODEL]) == 2
    assert f"skipped {len(good) - 1} of {len(good) + len(bad()) + 1}" in capfd.readouterr().err
    assert (coded / "a.dacp").is_file()
    assert all(path.stat().st_mtime_ns == times[path] for path in times)


@linux
def test_tokenize_writes_bad_files_as_failed_rows(nasty, tmp_path, capfd):
    pytest.importorskip("datasets")
    import pyarrow.parquet as pq

    out = tmp_path / "codes"
    arguments = ["tokenize", "--data", str(nasty), "-o", str(out), "--workers", "0", "-q", *MODEL]
    assert main(arguments) == 0  # a failed row is part of the data set
    assert capfd.readouterr().err.splitlines() == [f"codecplus: {LEFT_OUT}"]
    rows = {row["path"]: row["error"] for row in pq.read_table(out / "data").to_pylist()}
    failed = {name for name, error in rows.items() if error is not None}
    assert failed == set(bad())
    assert rows["odd-\\xff.wav"] is None
    assert not any("/." in f"/{name}" for name in files_below(out))


def test_a_table_is_read_without_a_word_and_a_bad_one_is_one_line(tmp_path):
    pytest.importorskip("datasets")
    save_audio(np.zeros(640), tmp_path / "a.wav", 16000)
    (tmp_path / "good.csv").write_text(f"file_name\n{tmp_path / 'a.wav'}\n")
    (tmp_path / "bad.parquet").write_bytes(b"no table at all")
    command = [sys.executable, "-m", "codecplus", "tokenize", "--workers", "0", "-q", *MODEL]
    command += ["--audio-column", "file_name"]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    said = {}
    for name in ("good.csv", "bad.parquet"):
        data = ["--data", str(tmp_path / name), "-o", str(tmp_path / f"of {name}")]
        done = subprocess.run([*command, *data], capture_output=True, text=True, env=environment)
        said[name] = (done.returncode, done.stderr)
    assert said["good.csv"] == (0, "")
    status, line = said["bad.parquet"]
    assert status == 2
    assert line.startswith(f"codecplus: cannot load {tmp_path / 'bad.parquet'}: ")
    assert line.count("\n") == 1


@linux
def test_eval_excludes_bad_files_with_reasons(nasty, tmp_path, capfd):
    pytest.importorskip("av")
    out = tmp_path / "results"
    arguments = ["eval", "--codec", "opus", "--bitrate-per-channel", "12", "--metric", "si_sdr"]
    status = main([*arguments, "--data", str(nasty), "-o", str(out), "--workers", "1", "-q"])
    assert status == 0
    lines = (out / "report.md").read_text(encoding="utf-8").splitlines()
    for name, said in bad().items():
        (line,) = [line for line in lines if line.startswith(f"| {name} |")]
        assert said in line.lower() or said in line
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text("utf-8").splitlines()]
    scored = {row["clip"] for row in rows}
    locked = set() if os.geteuid() else {"locked.wav"}
    assert scored == {*GOOD, LONG, "odd-\\xff.wav", *locked} - {ODD}
    assert capfd.readouterr().err.splitlines() == [f"codecplus: {LEFT_OUT}"]


# ---- several folders and clashing names


def test_outputs_of_several_folders_stay_apart(tmp_path, capsys):
    for name in ("x/take.wav", "y/take.wav", "y/take.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_audio(np.zeros(640), tmp_path / name, 16000)
    folders = [str(tmp_path / "x"), str(tmp_path / "y")]
    out = tmp_path / "out"
    assert main(["encode", *folders, "-o", str(out), "-q", *MODEL]) == 2
    lines = capsys.readouterr().err.splitlines()
    check_lines(lines, {"y/take.wav": "--keep-suffix", "y/take.flac": "--keep-suffix"})
    assert files_below(out) == {"x/take.dacp"}
    assert main(["encode", *folders, "-o", str(out), "-q", "--keep-suffix", *MODEL]) == 0
    kept = {"x/take.wav.dacp", "y/take.wav.dacp", "y/take.flac.dacp"}
    assert files_below(out) == {"x/take.dacp", *kept}
    named = [str(tmp_path / name) for name in ("x/take.wav", "y/take.wav")]
    assert main(["encode", *named, "-o", str(tmp_path / "flat"), "-q", *MODEL]) == 0
    assert files_below(tmp_path / "flat") == {"x/take.dacp", "y/take.dacp"}


def test_a_missing_input_does_not_stop_the_others(tmp_path, capsys):
    save_audio(np.zeros(640), tmp_path / "a.wav", 16000)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.txt").write_text("")
    inputs = ["missing.wav", "a.wav", "none", "n" * 300 + ".wav"]
    assert main(["encode", *(str(tmp_path / name) for name in inputs), "-q", *MODEL]) == 2
    expected = {
        "missing.wav": "there is no file or folder",
        "none": "holds no audio file, such as .wav, .flac, .mp3 or .m4a; it holds 1 .txt",
        "n" * 300: "there is no file or folder",
    }
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" not in line]
    check_lines(lines, expected)
    assert (tmp_path / "a.dacp").is_file()


def test_an_input_that_fails_for_an_unknown_reason_does_not_stop_the_others(
    tmp_path, monkeypatch, capsys
):
    save_audio(np.zeros(640), tmp_path / "a.wav", 16000)
    find_files = batch.find_files

    def find_or_fail(path, suffixes):
        if path.name == "odd":
            raise RecursionError("too deep")
        return find_files(path, suffixes)

    monkeypatch.setattr(batch, "find_files", find_or_fail)
    assert main(["encode", str(tmp_path / "odd"), str(tmp_path / "a.wav"), "-q", *MODEL]) == 2
    check_lines(capsys.readouterr().err.splitlines(), {"odd": "RecursionError: too deep"})
    assert (tmp_path / "a.dacp").is_file()


@linux
def test_a_folder_that_cannot_be_read_is_a_failure(tmp_path, monkeypatch, capsys):
    save_audio(np.zeros(640), tmp_path / "a.wav", 16000)
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def scandir_or_refuse(path):  # root reads what is locked
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir_or_refuse)
    assert main(["encode", str(tmp_path), "-q", *MODEL]) == 2
    assert "1 folders that cannot be read in it; check the permissions" in capsys.readouterr().err
    assert (tmp_path / "a.dacp").is_file()


def test_skip_existing_leaves_what_is_older_than_its_source(tmp_path, capsys):
    save_audio(np.zeros(640), tmp_path / "a.wav", 16000)
    encode = ["encode", str(tmp_path / "a.wav"), "-q", "--skip-existing", *MODEL]
    assert main(encode) == 0
    os.utime(tmp_path / "a.dacp", (1, 1))
    assert main(encode) == 2
    assert "is empty or older than" in capsys.readouterr().err
    assert main([*encode, "--force"]) == 0
    assert (tmp_path / "a.dacp").stat().st_mtime > 1


@linux
def test_control_characters_in_a_name_are_printed_as_escapes(tmp_path, capsys):
    good = "red\x1b[31m\n.wav"
    save_audio(np.zeros(640), tmp_path / good, 16000)
    (tmp_path / "two\nlines.wav").write_bytes(b"")
    assert main(["encode", str(tmp_path), "-o", str(tmp_path / "out"), *MODEL]) == 2
    printed = capsys.readouterr()
    said = f"codecplus: {tmp_path}/two\\nlines.wav is empty (0 bytes); expected an audio file\n"
    assert printed.err == said
    name = f"{tmp_path}/red\\x1b[31m\\n.wav -> {tmp_path}/out/red\\x1b[31m\\n.dacp\n"
    assert printed.out == name
    assert (tmp_path / "out" / "red\x1b[31m\n.dacp").is_file()


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u202e", "\u2066"])
def test_characters_that_break_or_turn_a_line_are_printed_as_escapes(character):
    assert one_line(f"a{character}vaw.b") == f"a\\u{ord(character):04x}vaw.b"
    joined = "נ‍ü👩‍🚀"  # letters of another direction, and joiners, which names need
    assert one_line(joined) == joined


@pytest.mark.parametrize(
    "arguments", [["encode", ""], ["encode", "x.wav", "-o", ""], ["decode", ""], ["info", ""]]
)
def test_an_empty_name_is_not_the_working_folder(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "expected the name of a file or folder, got an empty one" in capsys.readouterr().err
    assert main(["tokenize", "--data", "", "-o", "x", *MODEL]) == 2
    assert "expected the name of data, got an empty one" in capsys.readouterr().err


@linux
def test_a_target_that_cannot_be_is_named(tmp_path, capsys):
    save_audio(np.zeros(640), tmp_path / "a.wav", 16000)
    (tmp_path / "file").write_bytes(b"")
    source = str(tmp_path / "a.wav")
    for target in ("/dev/null", str(tmp_path / "file")):
        assert main(["encode", source, "-o", target, *MODEL]) == 2
        assert f"{target} is no folder; name another output" in capsys.readouterr().err
    assert main(["encode", source, "-o", "/proc/x.dacp", *MODEL]) == 2
    assert "codecplus: " + source + ": cannot write /proc/x.dacp: " in capsys.readouterr().err


# ---- standard streams, and signals


def run(script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess:
    """A shell line, in which codecplus is "$@"."""
    command = ["sh", "-c", script, "sh", sys.executable, "-m", "codecplus", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "", **settings}
    return subprocess.run(command, capture_output=True, timeout=100, env=environment)


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """A coded file whose name most terminals cannot print."""
    folder = tmp_path_factory.mktemp("odd")
    save_audio(np.zeros(640), folder / "a.wav", 16000)
    path = folder / os.fsdecode(b"\xc3\xbc-\xff.dacp")
    assert main(["encode", str(folder / "a.wav"), "-o", str(path), "-q", *MODEL]) == 0
    return path


@linux
@pytest.mark.parametrize(
    ("encoding", "name"), [("utf-8", b"\xc3\xbc-\xff.dacp"), ("ascii", b"\\xfc-\xff.dacp")]
)
def test_a_name_is_printed_as_its_bytes_or_spelt(odd, encoding, name):
    done = run('"$@"', "info", str(odd), PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[0].endswith(name)


@linux
@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        (
            '"$@" > /dev/full',
            2,
            b"codecplus: cannot write to standard output: no space left on the disk; make room or "
            b"write elsewhere\n",
        ),
        (
            '"$@" >&-',
            2,
            b"codecplus: cannot write to standard output: bad file descriptor\n",
        ),
        ('"$@" <&-', 0, b""),
        ('"$@" 2>&-', 0, b""),
        ('"$@" 2> /dev/full', 0, b""),
    ],
)
def test_closed_and_full_output_streams_end_with_their_status(odd, script, status, said):
    done = run(script, "info", str(odd))
    assert (done.returncode, done.stderr) == (status, said)


@linux
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_help_that_cannot_be_printed_is_an_error(unbuffered):
    done = run('"$@" > /dev/full', "--help", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 2
    assert b"no space left on the disk" in done.stderr


@linux
def test_a_live_pipe_into_a_full_disk_names_standard_output():
    line = 'head -c 32000 /dev/zero | "$@" > /dev/full'
    done = run(line, "encode", "-", "-o", "-", "--raw", "16000", *MODEL)
    said = b"codecplus: cannot write to standard output: no space left on the disk; make room or"
    assert done.returncode == 2
    assert done.stderr.startswith(said)


def test_bytes_for_standard_output_are_written_to_the_last(monkeypatch):
    class Raw(io.BytesIO):  # as `python -u` has it: it takes what the system takes
        def write(self, data):
            return super().write(data[:3])

    raw = Raw()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=raw))
    assert BinaryOutput().write(b"a packet") == 8
    assert raw.getvalue() == b"a packet"


@linux
def test_an_error_that_cannot_be_printed_keeps_its_status(odd):
    assert run('"$@" 2> /dev/full', "info", "missing").returncode == 2
    assert run('"$@" 2>&-', "info", "missing").returncode == 2


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from codecplus.cli import batch, main
from codecplus.system.paths import atomic_path
run_one = batch._run_one

def slow(job, *_, **__):
    with atomic_path(job.target) as temporary:
        temporary.write_bytes(b"half")
        print("working", flush=True)
        time.sleep(60)

batch._run_one = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_closed_terminal_ends_a_command_as_ctrl_c_does(monkeypatch, capsys):
    def work(arguments):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(60)

    monkeypatch.setattr(app, "_run", work)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
    try:
        assert main([]) == 129
    finally:
        signal.signal(signal.SIGHUP, before)
    said = "codecplus: hung up; nothing half-written was left behind\n"
    assert capsys.readouterr().err == said


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "word", "status"),
    [(signal.SIGTERM, "terminated", 143), (signal.SIGINT, "interrupted", 130)],
)
def test_a_signal_ends_a_job_with_a_word_and_leaves_nothing_half_written(
    odd, tmp_path, number, word, status
):
    command = [sys.executable, "-c", SLOW, "decode", str(odd), "-o", str(tmp_path / "x.wav")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (
        status,
        f"codecplus: {word}; nothing half-written was left behind\n",
    )
    assert os.listdir(tmp_path) == []
