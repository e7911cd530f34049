"""The command line as a user meets it: verbs, exit status, one line per error."""

import json
import subprocess
import sys

import numpy as np
import pytest
from processors import needs_amx
from tiny import FIXTURES

from codecplus.cli import main
from codecplus.cli.batch import FileBatch, Job, run_jobs
from codecplus.utils import load_audio, save_audio


@pytest.fixture
def wav(tmp_path, rng):
    path = tmp_path / "in.wav"
    save_audio(rng.standard_normal(12000) * 0.05, path, 16000)
    return path


MODEL = ["--model", "dac-16khz-live"]


@needs_amx
def test_compiled_in_bf16(wav, tmp_path):
    audio = {}
    for name, options in (("plain", []), ("fast", ["--dtype", "bfloat16", "--compile"])):
        assert (
            main(["encode", str(wav), *MODEL, *options, "-o", str(tmp_path / f"{name}.dacp")]) == 0
        )
        assert (
            main(
                [
                    "decode",
                    str(tmp_path / f"{name}.dacp"),
                    *options,
                    "-o",
                    str(tmp_path / f"{name}.wav"),
                ]
            )
            == 0
        )
        audio[name], _ = load_audio(tmp_path / f"{name}.wav")
    change = np.square(audio["plain"] - audio["fast"]).mean() / np.square(audio["plain"]).mean()
    assert 0 < change < 0.5


def test_encode_info_decode(wav, tmp_path, capsys):
    assert main(["encode", str(wav), *MODEL, "--bitrate", "2"]) == 0
    coded = tmp_path / "in.dacp"
    assert main(["info", str(coded)]) == 0
    printed = capsys.readouterr().out
    assert "dac-16khz-live" in printed
    assert "0.75 s, 1 channel, 16000 Hz" in printed
    assert "4 codebooks" in printed
    assert main(["decode", str(coded), "-o", str(tmp_path / "out.flac")]) == 0
    audio, rate = load_audio(tmp_path / "out.flac")
    assert (audio.shape, rate) == ((12000,), 16000)


def test_folders_keep_their_shape(wav, tmp_path):
    (tmp_path / "music" / "deep").mkdir(parents=True)
    for name in ("a.wav", "deep/b.wav"):
        (tmp_path / "music" / name).write_bytes(wav.read_bytes())
    (tmp_path / "music" / "notes.txt").write_text("not audio")
    assert main(["encode", str(tmp_path / "music"), "-o", str(tmp_path / "coded"), *MODEL]) == 0
    assert {
        p.relative_to(tmp_path / "coded").as_posix() for p in (tmp_path / "coded").rglob("*.*")
    } == {
        "a.dacp",
        "deep/b.dacp",
    }
    assert main(["decode", str(tmp_path / "coded"), "-o", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "deep" / "b.wav").exists()


def test_existing_files_are_safe_without_force(wav, tmp_path, capsys):
    (tmp_path / "in.dacp").write_text("mine")
    assert main(["encode", str(wav), *MODEL]) == 2
    assert "in.dacp exists already" in capsys.readouterr().err
    assert (tmp_path / "in.dacp").read_text() == "mine"
    assert main(["encode", "-f", str(wav), *MODEL]) == 0
    assert (tmp_path / "in.dacp").read_bytes()[:2] != b"mi"


def test_one_bad_file_does_not_stop_the_others(wav, tmp_path, capsys):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"PK\x03\x04 not audio")
    assert main(["encode", str(bad), str(wav), *MODEL]) == 2
    assert (tmp_path / "in.dacp").exists()
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert "bad.wav is not readable audio" in errors[0]


def test_official_files(tmp_path, capsys):
    dac, pth = FIXTURES / "even44k_chunked.dac", FIXTURES / "even44k.pth"
    assert main(["info", str(dac)]) == 0
    assert "2.50 s, 1 channel, 44100 Hz" in capsys.readouterr().out
    assert main(["decode", str(dac), "-o", str(tmp_path / "out.wav")]) == 2
    assert "does not say which model made it" in capsys.readouterr().err
    assert main(["decode", str(dac), "-o", str(tmp_path / "out.wav"), "--model", str(pth)]) == 0
    assert load_audio(tmp_path / "out.wav")[0].shape == (110250,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "/nowhere.wav"], "there is no file or folder /nowhere.wav"),
        (["encode", "IN", "--model", "dac-44khz-smal"], "give dac-44khz-small"),
        (["encode", "IN", "--bitrate", "64", *MODEL], "choose from 0.50, 1.00"),
        (
            ["encode", "IN", "OTHER", "-o", "out.dacp"],
            "expected a folder for 2 files, got -o out.dacp",
        ),
        (["encode", "IN", "--device", "nonsense", *MODEL], "no device nonsense"),
        (["encode", "IN", "--revision", "v1", *MODEL], "is for a repository on the Hub"),
        (["export", "--revision", "v1", *MODEL, "-o", "x"], "is for a repository on the Hub"),
        (
            ["eval", "--revision", "v1", *MODEL, "--data", ".", "-o", "x", "-q"],
            "is for a repository on the Hub",
        ),
        (
            ["train", "--revision", "v1", *MODEL, "--data", ".", "-o", "x", "-q"],
            "is for a checkpoint on the Hub",
        ),
        (
            ["train", *MODEL, "--device", "cuda:1", "--data", ".", "-o", "x"],
            "expected --device cpu, cuda or mps for training",
        ),
        (
            ["train", *MODEL, "--dtype", "float16", "--data", ".", "-o", "x"],
            "expected training in --dtype float32 or bfloat16",
        ),
        (["push", *MODEL], "push needs a repository"),
        (["push", "ada/x"], "push needs a checkpoint"),
        (["push", "ada/x", "--space", *MODEL], "leave out --model"),
        (["info", "IN"], "expected a .dacp file"),
        (["decode", "IN"], "in.wav is read, and would be written over; name another output"),
        (
            ["decode", "IN", "-o", "nowhere/out.wav", "--model", "dac-16khz-live"],
            "expected a .dacp file",
        ),
    ],
)
def test_errors_are_one_line_and_status_2(wav, capsys, arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.wav").write_bytes(wav.read_bytes())
    names = {"IN": str(wav), "OTHER": str(tmp_path / "other.wav")}
    assert main([names.get(a, a) for a in arguments]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("codecplus: ")
    assert message in errors[0]


def test_demo_scores_its_clip_and_writes_three_files(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path), *MODEL]) == 0
    printed = capsys.readouterr().out
    for figure in ("bitrate", "PESQ", "STOI", "SI-SDR", "real time"):
        assert figure in printed
    assert {p.name for p in tmp_path.iterdir()} == {"demo.dacp", "demo.wav", "demo.png"}
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_demo_takes_the_users_file(wav, tmp_path, capsys):
    save_audio(np.zeros(16000), tmp_path / "silence.wav", 16000)
    assert main(["demo", str(tmp_path / "silence.wav"), "-o", str(tmp_path / "out"), *MODEL]) == 0
    # A score that cannot be computed has a reason instead of a number.
    assert "silent" in capsys.readouterr().out
    assert (tmp_path / "out" / "silence.dacp").exists()


def test_help_imports_nothing_that_takes_long():
    command = [sys.executable, "-X", "importtime", "-m", "codecplus", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for verb in ("demo", "encode", "decode", "info", "eval", "leaderboard"):
        assert verb in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not {"torch", "transformers", "numpy", "scipy", "huggingface_hub"} & imported


def test_without_a_verb_the_help_is_printed(capsys):
    assert main([]) == 0
    alone = capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert alone == capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encod"], "invalid choice: 'encod'"),
        (["encode"], "required: inputs; see codecplus encode --help"),
        (["encode", "a.wav", "--bitrat", "3"], "unrecognized arguments: --bitrat"),
        (["eval", "--codec", "opsu", "--data", "x", "-o", "y"], "there is no codec 'opsu'"),
        (["eval", "--model", "opus", "--data", "x", "-o", "y"], "name it with --codec"),
    ],
)
def test_a_command_line_that_cannot_be_parsed_gets_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("codecplus: ")
    assert message in error


def test_any_exception_of_one_file_is_its_line_and_the_others_are_done(tmp_path, capsys):
    errors = {
        "a": ZeroDivisionError("division by zero"),
        "b": MemoryError(),
        "c": RuntimeError("first line\nsecond line"),
        "d": None,
    }
    jobs = [Job(tmp_path / name, tmp_path / "out" / name) for name in errors]

    def run(source, target, progress):
        if errors[source.name] is not None:
            raise errors[source.name]
        target.write_text("done")

    def seconds(source):
        raise UnicodeEncodeError("ascii", "x", 0, 1, "whatever a reader raises")

    options = {"label": "working", "force": False, "quiet": False}
    assert run_jobs(FileBatch(), jobs, run, seconds, **options) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        f"codecplus: {tmp_path / 'a'}: ZeroDivisionError: division by zero",
        f"codecplus: {tmp_path / 'b'}: there is not enough memory; use a smaller batch, "
        "or a shorter file",
        f"codecplus: {tmp_path / 'c'}: RuntimeError: first line",
    ]
    assert printed.out.splitlines() == [f"{tmp_path / 'd'} -> {tmp_path / 'out' / 'd'}"]
    assert (tmp_path / "out" / "d").read_text() == "done"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_reader_that_leaves_ends_the_command_with_status_141():
    command = [sys.executable, "-m", "codecplus", "completion", "bash"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""


def test_ctrl_c_is_one_line_and_status_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("codecplus.cli.files.find", interrupted)
    assert main(["info", "song.dacp"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_info_as_json_is_what_a_program_reads(wav, tmp_path, capsys):
    bad = tmp_path / "bad.dacp"
    bad.write_bytes(b"PK")
    assert main(["encode", str(wav), *MODEL, "--bitrate", "2", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    official = FIXTURES / "even44k_chunked.dac"
    assert main(["info", str(tmp_path / "in.dacp"), str(bad), str(official), "--json"]) == 2
    printed = capsys.readouterr()
    coded, old = json.loads(printed.out)
    assert (coded["model"], coded["codebooks"]) == ("dac-16khz-live", 4)
    assert (coded["seconds"], coded["sample_rate"], coded["channels"]) == (0.75, 16000, 1)
    assert coded["bytes"] == (tmp_path / "in.dacp").stat().st_size
    assert (old["format"], old["seconds"]) == ("dac", 2.5)
    assert printed.err.count("\n") == 1
    assert "bad.dacp" in printed.err


def test_importing_the_package_loads_no_torch():
    code = (
        "import codecplus, codecplus.cli, sys; "
        "assert not {'torch', 'transformers', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
