"""The device that computes is the one asked for, or the best there is."""

import pytest
import torch

from codecplus.errors import InputError
from codecplus.system.devices import best_device, check_dtype, resolve_device


@pytest.fixture
def machine(monkeypatch):
    """Pretend that a machine has these devices."""

    def pretend(cuda: bool = False, mps: bool = False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("devices", "best"),
    [
        ({}, "cpu"),
        ({"mps": True}, "mps"),
        ({"cuda": True}, "cuda:0"),
        ({"cuda": True, "mps": True}, "cuda:0"),
    ],
)
def test_the_default_is_the_fastest_device(machine, devices, best):
    machine(**devices)
    assert str(best_device()) == best
    assert resolve_device(None) == best_device()


def test_each_process_of_a_launcher_has_its_own_gpu(machine, monkeypatch):
    machine(cuda=True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert best_device() == torch.device("cuda", 3)


def test_a_device_by_name_is_that_device():
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(InputError, match=f"there is no device {name} here; expected 'cpu'"):
        resolve_device(name)


def test_a_dtype_is_a_float_type_of_torch():
    assert check_dtype(None) == torch.float32
    assert check_dtype("bfloat16") == check_dtype(torch.bfloat16) == torch.bfloat16
    with pytest.raises(InputError, match="expected dtype float32, bfloat16, float16, got 'int8'"):
        check_dtype("int8")
