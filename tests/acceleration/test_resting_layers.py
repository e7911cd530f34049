"""Layers whose weights rest have the outputs and the gradients of plain layers, with every
instruction set that this processor has.
"""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processors import SETS, needs_amx, needs_compiler, needs_kernels
from tiny import random_weights, tiny_model

from codecplus.acceleration import resting, training_kernels
from codecplus.acceleration.resting import RestingSnake1d, use_resting_layers
from codecplus.acceleration.training import use_training_layers
from codecplus.modeling_dac.layers_dac import DacResidualUnit, Snake1d

pytestmark = [needs_kernels, needs_compiler]

some_examples = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=[one.name for one in SETS])
def instruction_set(request, monkeypatch):
    """Each instruction set in turn, forced."""
    monkeypatch.setenv("CODECPLUS_KERNELS", request.param)
    return request.param


@pytest.fixture
def kernels_run(monkeypatch):
    """The names of the kernels that ran."""
    names = []

    def call(kernel, tensors, sizes, call=resting.call):
        names.append(kernel)
        call(kernel, tensors, sizes)

    monkeypatch.setattr(resting, "call", call)
    return names


def at_rest(module):
    """Give a module random weights that need no gradients."""
    return random_weights(module).requires_grad_(False)


def output_and_gradient(module, x, gradient):
    x = x.clone().requires_grad_()
    y = module(x)
    (at_x,) = torch.autograd.grad(y, x, gradient)
    return y.detach(), at_x


def error(y: torch.Tensor, exact: torch.Tensor) -> float:
    return ((y - exact).square().mean() / exact.square().mean()).sqrt().item()


@some_examples
@given(
    channels=st.sampled_from([32, 64, 96, 256]),
    dilation=st.sampled_from([1, 3, 9]),
    causal=st.booleans(),
    length=st.integers(72, 700),
    batch=st.integers(1, 3),
)
def test_a_unit_at_rest(instruction_set, kernels_run, channels, dilation, causal, length, batch):
    unit = at_rest(DacResidualUnit(channels, dilation, causal=causal))
    exact = copy.deepcopy(unit).double()
    use_training_layers(unit)
    use_resting_layers(unit)
    x = torch.randn(batch, channels, length)
    gradient = torch.randn(batch, channels, length)
    kernels_run.clear()
    y, at_x = output_and_gradient(unit, x, gradient)
    assert kernels_run == ["unit_fp32", "unit_back_fp32"]
    exact_y, exact_at_x = output_and_gradient(exact, x.double(), gradient.double())
    assert error(y, exact_y) < 1e-5
    assert error(at_x, exact_at_x) < 1e-5


@needs_amx
def test_in_bf16_a_unit_at_rest_is_one_of_training(monkeypatch):
    names = []

    def call(kernel, tensors, sizes, call=training_kernels.call):
        names.append(kernel)
        call(kernel, tensors, sizes)

    monkeypatch.setattr(training_kernels, "call", call)
    unit = at_rest(DacResidualUnit(32, 3))
    exact = copy.deepcopy(unit).double()
    use_training_layers(unit)
    use_resting_layers(unit)
    x = torch.randn(1, 32, 100).bfloat16()
    gradient = torch.randn(1, 32, 100).bfloat16()
    y, at_x = output_and_gradient(unit, x, gradient)
    assert names == ["unit_bf16", "unit_back_bf16"]
    exact_y, exact_at_x = output_and_gradient(exact, x.double(), gradient.double())
    assert error(y, exact_y) < 0.02
    assert error(at_x, exact_at_x) < 0.02


def resting_decoder(model):
    decoder = model.decoder.requires_grad_(False)
    use_training_layers(decoder)
    use_resting_layers(decoder)
    return decoder


def test_units_of_a_model_of_transformers_rest_too(kernels_run):
    model = tiny_model(decoder_hidden_size=256, downsampling_ratios=[4, 5])
    decoder = resting_decoder(model)
    latents = torch.randn(1, model.config.hidden_size, 40, requires_grad=True)
    decoder(latents).sum().backward()
    assert "unit_back_fp32" in kernels_run


def test_a_hook_in_a_unit_at_rest_is_heard(kernels_run):
    model = tiny_model(decoder_hidden_size=256, downsampling_ratios=[4, 5])
    decoder = resting_decoder(model)
    latents = torch.randn(1, model.config.hidden_size, 40, requires_grad=True)
    before = decoder(latents)
    decoder.block[0].res_unit1.conv2.register_forward_hook(lambda _, __, y: 2 * y)
    assert not torch.allclose(decoder(latents), before)


def test_a_snake_at_rest(instruction_set, kernels_run):
    snake = at_rest(Snake1d(48))
    exact = copy.deepcopy(snake).double()
    snake.__class__ = RestingSnake1d
    x = torch.randn(2, 48, 1000) * 5
    gradient = torch.randn(2, 48, 1000)
    y, at_x = output_and_gradient(snake, x, gradient)
    assert kernels_run == ["snake_back_fp32"]
    exact_y, exact_at_x = output_and_gradient(exact, x.double(), gradient.double())
    torch.testing.assert_close(y.double(), exact_y, atol=1e-5, rtol=0)
    torch.testing.assert_close(at_x.double(), exact_at_x, atol=2e-5, rtol=0)


@pytest.mark.parametrize("off", [True, False])
def test_a_decoder_at_rest(monkeypatch, kernels_run, off):
    if off:
        monkeypatch.setenv("CODECPLUS_KERNELS", "off")
    model = tiny_model(decoder_hidden_size=256, downsampling_ratios=[4, 5])
    exact = copy.deepcopy(model.decoder).double()
    decoder = resting_decoder(model)
    latents = torch.randn(1, model.config.hidden_size, 40)
    audio = torch.randn_like(decoder(latents))
    y, at_latents = output_and_gradient(decoder, latents, audio)
    exact_y, exact_at_latents = output_and_gradient(exact, latents.double(), audio.double())
    assert bool(kernels_run) != off
    assert error(y, exact_y) < 1e-5
    assert error(at_latents, exact_at_latents) < 1e-5
