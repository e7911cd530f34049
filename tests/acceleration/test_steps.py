"""Steps of live streams by compiled kernels give what the layers give, for any width, stride and cut,
with every instruction set that this processor has.
"""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processors import SETS, needs_compiler, needs_kernels
from tiny import random_weights, tiny_model

from codecplus import load_codec
from codecplus.acceleration.steps import ConvolutionStep, SearchStep, UnitStep
from codecplus.modeling_dac.layers_dac import (
    CodebookSearch,
    DacConv1d,
    DacConvTranspose1d,
    DacResidualUnit,
    Snake1d,
)
from codecplus.streaming import StreamingEncoder
from codecplus.streaming.layers import Convolution, PlainStep, ResidualUnit

pytestmark = [needs_kernels, needs_compiler]

some_examples = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CUTS = st.lists(st.sampled_from([1, 2, 3, 5, 7, 12, 13, 40]), min_size=1, max_size=5)


@pytest.fixture(params=[one.name for one in SETS])
def instruction_set(request, monkeypatch):
    """Each instruction set in turn, forced."""
    monkeypatch.setenv("CODECPLUS_KERNELS", request.param)
    return request.param


def with_weights(module, halves: bool):
    """Give a module random weights; with `halves`, such as fp16 holds exactly."""
    random_weights(module)
    if halves:
        for parameter in module.parameters():
            parameter.data = parameter.data.half().float()
    return module


def in_steps(layer, x: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    """Take x (B, T, C) through a layer in pieces; return all its outputs (B, T', C')."""
    state = layer.start(len(x))
    parts = []
    pieces = x.split(cuts, dim=1)
    for i, piece in enumerate(pieces):
        y, state = layer.step(piece, state, i == len(pieces) - 1, None)
        parts.append(y)
    return torch.cat(parts, dim=1)


def check_equal(y: torch.Tensor, exact: torch.Tensor) -> None:
    """Compare outputs with those in fp64: fp32 rounds sums of some hundred terms to 1e-6."""
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), exact, atol=1e-5, rtol=1e-5)


@some_examples
@given(
    channels=st.sampled_from([1, 16, 48, 64]),
    columns=st.sampled_from([1, 16, 40, 64]),
    stride=st.sampled_from([1, 2, 4, 5]),
    transposed=st.booleans(),
    causal=st.booleans(),
    halves=st.booleans(),
    batch=st.integers(1, 3),
    cuts=CUTS,
)
@torch.inference_mode()
def test_a_convolution_in_steps_is_the_layer(
    instruction_set, channels, columns, stride, transposed, causal, halves, batch, cuts
):
    if transposed:
        conv = DacConvTranspose1d(channels, columns, 2 * stride, stride, causal=causal)
    else:
        conv = DacConv1d(channels, columns, 2 * stride, stride=stride, causal=causal)
    with_weights(conv, halves)
    snake = None
    exact_snake = None
    if channels > 1:
        snake = with_weights(Snake1d(channels), halves)
        exact_snake = copy.deepcopy(snake).double()
    layer = Convolution(conv, snake, 1, kernels=True)
    assert isinstance(layer.run, ConvolutionStep)
    assert layer.run.halves == halves
    exact = Convolution(copy.deepcopy(conv).double(), exact_snake, 1, kernels=True)
    assert isinstance(exact.run, PlainStep)  # there are no kernels in fp64
    x = torch.randn(batch, sum(cuts), channels)
    check_equal(in_steps(layer, x, cuts), in_steps(exact, x.double(), [sum(cuts)]))


@some_examples
@given(
    channels=st.sampled_from([16, 48, 128]),
    dilation=st.sampled_from([1, 3, 9]),
    causal=st.booleans(),
    halves=st.booleans(),
    batch=st.integers(1, 3),
    cuts=CUTS,
)
@torch.inference_mode()
def test_a_unit_in_steps_is_the_unit(
    instruction_set, channels, dilation, causal, halves, batch, cuts
):
    unit = with_weights(DacResidualUnit(channels, dilation, causal=causal), halves)
    layer = ResidualUnit(unit, 1)
    assert isinstance(layer.fused, UnitStep)
    x = torch.randn(batch, sum(cuts), channels)
    exact = copy.deepcopy(unit).double()(x.double().transpose(1, 2)).transpose(1, 2)
    check_equal(in_steps(layer, x, cuts), exact)


@torch.inference_mode()
def test_the_search_finds_the_same_codes(instruction_set):
    model = tiny_model(causal=True, n_codebooks=5, codebook_size=32, codebook_dim=6)
    search = CodebookSearch(model.quantizer, 5)
    step = SearchStep(search)
    rows = torch.randn(2, 200, model.config.hidden_size)
    for count in (1, 3, 5):
        _, _, codes = search(rows, count)
        assert torch.equal(step(rows, count), codes)


@torch.inference_mode()
def test_codes_exist_even_where_latents_are_not_numbers(instruction_set):
    model = tiny_model(causal=True)
    step = SearchStep(CodebookSearch(model.quantizer, model.config.n_codebooks))
    rows = torch.full((1, 3, model.config.hidden_size), torch.nan)
    codes = step(rows, model.config.n_codebooks)
    assert codes.min() >= 0
    assert codes.max() < model.config.codebook_size


def test_embedded_checkpoints_stream_with_weights_in_16_bits():
    layers = StreamingEncoder(load_codec("dac-16khz-live").model).layers
    assert layers[0].run.panels.dtype == torch.float16
    assert layers[1].fused.panels[0].dtype == torch.float16


def test_kernels_that_are_not_allowed_do_not_step():
    model = tiny_model(causal=True)
    assert StreamingEncoder(model).fused is not None
    assert StreamingEncoder(model.allow_kernels(False)).fused is None
