"""Some hundred inputs of the fuzzer for every reader; `benchmarks/fuzz.py --count` runs millions."""

import importlib.util
import sys
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
_SPEC = importlib.util.spec_from_file_location("fuzz", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
fuzz = importlib.util.module_from_spec(_SPEC)
sys.modules["fuzz"] = fuzz
_SPEC.loader.exec_module(fuzz)


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_mutated_input_is_a_value_or_one_error(name):
    assert fuzz.fuzz(name, fuzz.TARGETS[name](), count=200, seed=1, save=None) == 0


def test_the_seeds_are_read_without_an_error():
    for make in fuzz.TARGETS.values():
        target = make()
        for seed in target.seeds:
            target.run(seed)
