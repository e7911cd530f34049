"""A codec cheats nobody, and neither its crash nor its hang ends a run."""

import json

import numpy as np
import pytest
import soundfile
from eval_codecs import ISOLATED
from eval_signals import HalfCodec, speech_like

import codecplus.eval.codecs as codecs_module
from codecplus.errors import InputError
from codecplus.eval import EvaluationConfig, load_results, run_evaluation
from codecplus.eval.codecs.isolation import CodecFailed, CodecProcesses, pickled


@pytest.fixture(autouse=True)
def codecs(monkeypatch):
    for name, codec in ISOLATED.items():
        monkeypatch.setitem(codecs_module.CODECS, name, codec)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(2):
        audio = speech_like(0.5 + 0.1 * i, seed=i)
        soundfile.write(folder / f"{i}.wav", audio, 16_000, "FLOAT")
    return folder


def run(data, out, codecs, **settings):
    settings = {"metrics": ("snr",), "workers": 1, "progress": False, **settings}
    config = EvaluationConfig(codecs=codecs, data=str(data), out=out, **settings)
    return load_results(run_evaluation(config))


def failures(results, codec):
    return [row.reason for row in results.rows if row.codec == codec and row.status != "ok"]


def test_cheats_crashes_and_hangs_are_failures_and_the_others_are_scored(data, tmp_path):
    (data / "1.wav").unlink()  # each crash and each hang costs a new process
    names = ["dictionary", "crashing", "hanging", "half"]
    results = run(data, tmp_path / "out", names, time_limit=2)
    (reason,) = failures(results, "dictionary")
    assert "KeyError" in reason
    assert failures(results, "crashing") == ["the codec's process died twice, with status 7"]
    assert failures(results, "hanging") == ["no answer within 2 s"]
    assert failures(results, "half") == []


def test_what_failed_once_is_tried_again_when_asked(data, tmp_path, monkeypatch):
    flag = tmp_path / "memory is there"
    monkeypatch.setenv("CODECPLUS_TEST_MEMORY", str(flag))
    out = tmp_path / "out"
    first = run(data, out, ["greedy"])
    assert failures(first, "greedy") == ["MemoryError: no memory today"] * 2
    lines = [json.loads(line) for line in next_journal(out).splitlines()]
    assert [line["passing"] for line in lines if "clip" in line] == [True, True]
    flag.touch()
    assert failures(run(data, out, ["greedy"]), "greedy") == failures(first, "greedy")
    again = run(data, out, ["greedy"], retry_failed=True)
    assert failures(again, "greedy") == []
    assert failures(run(data, out, ["greedy"]), "greedy") == []
    whole = run(data, tmp_path / "whole", ["greedy"])
    assert (out / "rows.jsonl").read_bytes() == (whole.path / "rows.jsonl").read_bytes()


def next_journal(out):
    texts = [path.read_text() for path in (out / "cache" / "encoded").iterdir()]
    return next(text for text in texts if "no memory" in text)


def test_times_are_those_of_the_codecs_own_calls(tmp_path):
    processes = CodecProcesses()
    try:
        result = processes.round_trip(ISOLATED["slow"](), speech_like(0.5)[None], 16_000)
    finally:
        processes.close()
    # The first call takes longer, as the loading of a model does; it is not the one that counts.
    assert 0.05 <= result.encode_seconds < 0.4
    assert result.decode_seconds < 0.05
    assert processes.peak_memory > 1 << 20
    assert result.codebook_size == 8
    assert result.codes.tolist() == [[1, 2, -1, -1], [3, 4, 5, 6]]


def test_a_codec_that_cannot_be_sent_says_so():
    codec = HalfCodec()
    codec.session = lambda: None
    with pytest.raises(InputError, match="the codec 'half' cannot be sent to a process of its own"):
        pickled(codec)


def test_classes_of_a_notebook_travel_by_value():
    import sys

    namespace = {"__name__": "__main__", "np": np, "HalfCodec": HalfCodec}
    code = (
        "class Mine(HalfCodec):\n"
        "    name = 'mine'\n"
        "    def decode(self, data, original):\n"
        "        return np.ones((original.channels, original.samples))\n"
    )
    exec(code, namespace)
    codec = namespace["Mine"]()
    assert type(codec).__module__ == "__main__"
    assert not hasattr(sys.modules["__main__"], "Mine")
    processes = CodecProcesses()
    try:
        result = processes.round_trip(codec, speech_like(0.5)[None], 16_000)
    finally:
        processes.close()
    assert (result.audio == 1).all()


def test_a_codec_that_cannot_be_loaded_fails_with_its_reason():
    processes = CodecProcesses()
    try:
        with pytest.raises(CodecFailed, match="RuntimeError: no weights"):
            processes.round_trip(ISOLATED["unloadable"](), speech_like(0.5)[None], 16_000)
    finally:
        processes.close()
