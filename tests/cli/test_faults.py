"""Killed, stopped and starved at a random moment, a job can be finished as if nothing had been."""

import os

import pytest
from benchmark_modules import load_benchmark
from tiny import tiny_model


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks")
@pytest.mark.parametrize("verb", ["encode", "tokenize"])
def test_an_interrupted_job_writes_what_an_uninterrupted_one_writes(verb, tmp_path, capfd):
    pytest.importorskip("datasets")
    faults = load_benchmark("faults")
    tiny_model(downsampling_ratios=[2, 4, 5, 8], sampling_rate=16000).save_pretrained(tmp_path)
    kinds = ["kill", "term", "slow", "full"]
    size = {"faults": 1, "clips": 4, "seconds": 0.5, "workers": 0}
    problems = faults.run([verb], kinds, **size, seed=1, model=str(tmp_path))
    assert problems == []
    assert capfd.readouterr().out.count("1 of 1 well") == len(kinds)
