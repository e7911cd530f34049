"""Compiled kernels give what the layers give, for any length, width, dilation and cut, with every
instruction set that this processor has.
"""

import copy
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processors import SETS, needs_bf16, needs_compiler, needs_kernels
from tiny import random_weights, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from codecplus import Codec, load_codec
from codecplus.acceleration import inference
from codecplus.acceleration.steps import Bf16UnitStep
from codecplus.modeling_dac.layers_dac import DacResidualUnit, Snake1d

pytestmark = [needs_kernels, needs_compiler]

CASES = []  # an instruction set and a dtype that it computes in
for one in SETS:
    CASES.append((one.name, torch.float32))
    if one.bf16:
        CASES.append((one.name, torch.bfloat16))
every_case = pytest.mark.parametrize(("instruction_set", "dtype"), CASES)
some_examples = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def use_instruction_set(request, monkeypatch):
    """Force the instruction set that a test is parametrized with."""
    if hasattr(request.node, "callspec"):
        name = request.node.callspec.params.get("instruction_set")
        if name:
            monkeypatch.setenv("CODECPLUS_KERNELS", name)


def unit_of(
    channels: int, dilation: int = 1, causal: bool = False, dtype=torch.float32
) -> DacResidualUnit:
    unit = DacResidualUnit(channels, dilation, causal=causal)
    return random_weights(unit, seed=channels + dilation).to(dtype)


def steps(batch: int, length: int, channels: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(batch, length, channels).transpose(1, 2).to(dtype)


def error(y: torch.Tensor, reference: torch.Tensor) -> float:
    return ((y - reference).square().mean() / reference.square().mean()).sqrt().item()


def run(module, *arguments, kernels: bool):
    """Run a module with or without kernels."""
    for part in module.modules():
        part.allow_kernels = kernels
    return module(*arguments)


@every_case
@pytest.mark.parametrize("causal", [False, True])
@some_examples
@given(
    channels=st.sampled_from([16, 32, 64, 96]),
    dilation=st.sampled_from([1, 3, 9]),
    length=st.integers(72, 700),
    batch=st.integers(1, 3),
    padded=st.booleans(),
    threads=st.sampled_from([1, 2]),
)
@torch.inference_mode()
def test_a_unit_is_as_close_to_exact_as_the_layers(
    instruction_set, dtype, causal, channels, dilation, length, batch, padded, threads
):
    unit = unit_of(channels, dilation, causal, dtype)
    x = steps(batch, length, channels, dtype)
    lengths = torch.randint(0, length + 1, (batch,)) if padded else None
    exact = copy.deepcopy(unit).double()(x.double(), lengths)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = inference.residual_unit(unit, x, lengths)
    finally:
        torch.set_num_threads(before)
    if dtype == torch.float32 and channels == 16:
        assert y is None
        return
    if dtype == torch.float32:
        limit = 1e-5
    else:
        limit = error(run(unit, x, lengths, kernels=False), exact)
    assert error(y, exact) < limit


@needs_bf16
@some_examples
@given(
    cuts=st.lists(st.integers(1, 300), min_size=1, max_size=6), dilation=st.sampled_from([1, 3, 9])
)
@torch.inference_mode()
def test_a_unit_in_steps_is_the_unit(cuts, dilation):
    unit = unit_of(64, dilation, causal=True, dtype=torch.bfloat16)
    x = steps(2, sum(cuts), 64, torch.bfloat16)
    step = Bf16UnitStep(unit)
    tail = torch.zeros(2, 6 * dilation, 64, dtype=x.dtype)
    parts = []
    for part in x.transpose(1, 2).split(cuts, dim=1):
        y, tail = step(part, tail, part)
        parts.append(y)
    assert torch.equal(torch.cat(parts, dim=1).transpose(1, 2), inference.residual_unit(unit, x))


def halve_through_data(unit):
    unit.conv1.weight.data.mul_(0.5)  # torch counts no change of the parameter


def change_one_weight(unit):
    unit.conv2.weight.data[0, 0, 0] += 1


def give_other_memory(unit):
    unit.snake2.alpha.data = unit.snake2.alpha.data * 2


def exchange_two_filters(unit):
    unit.conv1.weight.data[[0, 1]] = unit.conv1.weight.data[[1, 0]]


@pytest.mark.parametrize(
    "change", [halve_through_data, change_one_weight, give_other_memory, exchange_two_filters]
)
@torch.inference_mode()
def test_weights_may_change_between_calls_in_any_way(change):
    unit = unit_of(32)
    x = steps(1, 200, 32)
    before = unit(x)
    change(unit)
    after = unit(x)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, run(unit, x, kernels=False), atol=1e-4, rtol=0)


@every_case
@torch.inference_mode()
def test_the_snake_by_kernel_equals_the_layer(instruction_set, dtype):
    snake = Snake1d(48).eval()
    snake.alpha.data = torch.linspace(-3, 3, 48).view(1, -1, 1)
    x = steps(2, 1000, 48, dtype) * 4
    y = inference.snake(snake, x)
    expected = run(snake, x, kernels=False)
    # In fp32 the polynomial errs by 2e-7, almost two roundings, before alpha divides it; a sine
    # and a sum are rounded as well. In bf16 only the result is rounded.
    roundings = 2 if dtype == torch.float32 else 0.5
    terms = x.abs() + snake.alpha.abs().reciprocal()
    assert ((y - expected).abs() <= roundings * torch.finfo(dtype).eps * terms).all()
    assert inference.snake(Snake1d(8), steps(1, 5, 8, dtype)) is None


def model_of_kernels(causal: bool = False, dtype=torch.float32):
    fields = {"encoder_hidden_size": 32, "decoder_hidden_size": 256, "downsampling_ratios": [4, 5]}
    return tiny_model(causal, **fields).to(dtype)


@pytest.fixture
def units_by_kernel(monkeypatch):
    """The units that ran as a kernel, each time they did."""
    units = []

    def counted(unit, x, lengths=None, residual_unit=inference.residual_unit):
        y = residual_unit(unit, x, lengths)
        if y is not None:
            units.append(unit)
        return y

    monkeypatch.setattr(inference, "residual_unit", counted)
    return units


@every_case
@pytest.mark.parametrize("causal", [False, True])
def test_a_model_gives_the_codes_of_its_layers(instruction_set, dtype, causal, units_by_kernel):
    model = model_of_kernels(causal, dtype)
    audio = (torch.randn(2, 1, 9000) * 0.3).to(dtype)
    mask = (torch.arange(9000) < torch.tensor([9000, 5000])[:, None]).long()
    with torch.inference_mode():
        before = model.allow_kernels(False)(audio, padding_mask=mask)
        assert not units_by_kernel
        codes = model.allow_kernels()(audio, padding_mask=mask).audio_codes
        decoded = model.decode(audio_codes=before.audio_codes).audio_values
    units = [module for module in model.modules() if isinstance(module, DacResidualUnit)]
    assert set(units_by_kernel) == set(units)
    assert (codes == before.audio_codes).float().mean() > (0.999 if dtype == torch.float32 else 0.9)
    step = (1e-4 if dtype == torch.float32 else 0.05) * before.audio_values[0].abs().max()
    torch.testing.assert_close(
        decoded[0, :9000], before.audio_values[0, :9000], atol=float(step), rtol=0
    )
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.inference_mode():
            assert torch.equal(twin(audio, padding_mask=mask).audio_codes, codes)


def with_gradients(model, audio):
    assert model(audio).loss.requires_grad


def in_training_mode(model, audio):
    with torch.no_grad():
        model.train()(audio)


def with_a_hook_on_every_layer(model, audio):
    calls = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model.eval()(audio)
    assert len(calls) > 90


def with_a_global_hook(model, audio):
    calls = []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: calls.append(1))
    with hook, torch.no_grad():
        model.eval()(audio)
    assert len(calls) > 90


def with_weights_of_another_kind(model, audio):
    for module in list(model.modules()):
        if isinstance(module, DacResidualUnit):
            module.conv1 = Wrapped(module.conv1)
    with torch.no_grad():
        model(audio)


class Wrapped(torch.nn.Module):
    """An adapter around a layer, as peft puts it there."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer

    def forward(self, *arguments, **named):
        return 2 * self.base_layer(*arguments, **named)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_layer, name)


def under_autocast(model, audio):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(audio)


def counted_by_torch(model, audio):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(audio)
    assert counter.get_total_flops() > 1e6


def switched_off(model, audio):
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODECPLUS_KERNELS", "off")
        model(audio)


@pytest.mark.parametrize(
    "use",
    [
        with_gradients,
        in_training_mode,
        with_a_hook_on_every_layer,
        with_a_global_hook,
        with_weights_of_another_kind,
        under_autocast,
        counted_by_torch,
        switched_off,
    ],
)
def test_hooks_gradients_and_other_weights_run_the_layers_instead_of_kernels(use, units_by_kernel):
    model = model_of_kernels()
    audio = torch.randn(1, 1, 4000) * 0.3
    keys = list(model.state_dict())
    use(model, audio)
    assert not units_by_kernel
    if use is not with_weights_of_another_kind:
        assert list(model.state_dict()) == keys


def test_a_codec_says_which_kernels_run(monkeypatch):
    codec = Codec(model_of_kernels())
    assert codec.kernels == SETS[0].name
    assert f"float32 on cpu by {SETS[0].name} kernels" in repr(codec)
    monkeypatch.setenv("CODECPLUS_KERNELS", "off")
    assert codec.kernels is None
    assert repr(codec).endswith("float32 on cpu)")


def test_a_codec_is_loaded_with_kernels_or_without():
    assert load_codec("dac-16khz-live").kernels == SETS[0].name
    assert load_codec("dac-16khz-live", kernels=False).kernels is None
