"""Several files at a time give what one after the other gives, and say it in the same order."""

import os
import threading
import time

import numpy as np
import pytest
from tiny import tiny_model

from codecplus.audio.files import save_audio
from codecplus.cli import main
from codecplus.cli.batch import Batch, Job, run_jobs
from codecplus.cli.signals import Stopped

OPTIONS = {"label": "working", "force": False, "quiet": False}


def jobs(folder, names: str) -> list[Job]:
    return [Job(folder / name, folder / "out" / name) for name in names]


def no_seconds(source) -> float:
    return 0.0


def test_threads_say_what_one_thread_says_in_the_same_order(tmp_path, capsys):
    later = threading.Event()

    def run(source, target, progress):
        if source.name == "a":
            assert later.wait(60)  # ends last
        if source.name == "c":
            raise ValueError("no good")
        progress(1.0)
        target.write_text(source.name)
        if source.name == "e":
            later.set()

    status = run_jobs(Batch(), jobs(tmp_path, "abcde"), run, no_seconds, workers=2, **OPTIONS)
    assert status == 2
    printed = capsys.readouterr()
    done = [line.split(" -> ")[0][-1] for line in printed.out.splitlines()]
    assert done == ["a", "b", "d", "e"]
    assert printed.err.splitlines() == [f"codecplus: {tmp_path / 'c'}: ValueError: no good"]
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b", "d", "e"]


def test_every_thread_begins_with_what_it_is_told(tmp_path):
    begun = []
    computing = []

    def run(source, target, progress):
        computing.append(threading.get_ident())

    run_jobs(
        Batch(),
        jobs(tmp_path, "abcdef"),
        run,
        no_seconds,
        workers=3,
        begin_worker=lambda: begun.append(threading.get_ident()),
        **OPTIONS,
    )
    assert set(computing) <= set(begun)
    assert threading.get_ident() not in begun
    assert len(begun) <= 3


def test_a_command_that_is_stopped_waits_for_its_threads_to_clean_up(tmp_path, monkeypatch):
    begun = []

    def run(source, target, progress):
        begun.append(source.name)
        if source.name == "a":
            return
        temporary = target.with_name(f"half-written {source.name}")
        temporary.write_text("half")
        try:
            while True:
                progress(0.1)
                time.sleep(0.01)
        finally:
            temporary.unlink()

    def stopped(line, stream):
        raise Stopped(15, "terminated")

    monkeypatch.setattr("codecplus.cli.batch.say", stopped)
    with pytest.raises(Stopped):
        run_jobs(Batch(), jobs(tmp_path, "abcdef"), run, no_seconds, workers=2, **OPTIONS)
    assert os.listdir(tmp_path / "out") == []
    assert set(begun) <= {"a", "b", "c"}


def test_files_are_the_same_bytes_with_any_number_of_workers(tmp_path, capsys):
    tiny_model(downsampling_ratios=[2, 4, 5, 8], sampling_rate=16000).save_pretrained(
        tmp_path / "model"
    )
    (tmp_path / "in").mkdir()
    for i in range(5):
        audio = 0.1 * np.random.default_rng(i).standard_normal(4000 + 700 * i)
        save_audio(audio, tmp_path / "in" / f"{i}.wav", 16000)
    model = ["--model", str(tmp_path / "model"), "-q"]
    written = []
    for workers in (["--workers", "0"], ["--workers", "3"], []):
        coded = tmp_path / f"coded{len(written)}"
        heard = tmp_path / f"heard{len(written)}"
        assert main(["encode", str(tmp_path / "in"), "-o", str(coded), *model, *workers]) == 0
        assert main(["decode", str(coded), "-o", str(heard), *model, *workers]) == 0
        files = sorted([*coded.iterdir(), *heard.iterdir()])
        written.append([file.read_bytes() for file in files])
    assert len(written[0]) == 10
    assert written[1:] == written[:-1]
    assert main(["encode", str(tmp_path / "in"), *model, "--workers", "-1"]) == 2
    assert "expected --workers of at least 0, got -1" in capsys.readouterr().err
