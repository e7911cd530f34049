"""Some hundred inputs of the fuzzer for every reader; `benchmarks/fuzz.py --count` runs millions."""

import pytest
from benchmark_modules import load_benchmark

fuzz = load_benchmark("fuzz")


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_mutated_input_is_a_value_or_one_error(name):
    assert fuzz.fuzz(name, fuzz.TARGETS[name](), count=200, seed=1, save=None) == 0


def test_the_seeds_are_read_without_an_error():
    for make in fuzz.TARGETS.values():
        target = make()
        for seed in target.seeds:
            target.run(seed)
