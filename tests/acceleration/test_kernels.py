"""Compiled kernels give what the layers give, for any length, width, dilation and cut."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processors import needs_amx, needs_avx512
from tiny import tiny_model

from codecplus import kernels
from codecplus.acceleration import inference
from codecplus.kernels import build
from codecplus.modeling_dac.layers_dac import DacResidualUnit, Snake1d

DTYPES = [torch.float32] + [torch.bfloat16] * kernels.supported_in_bf16()


def unit_of(
    channels: int, dilation: int = 1, causal: bool = False, dtype=torch.float32
) -> DacResidualUnit:
    torch.manual_seed(channels + dilation)
    unit = DacResidualUnit(channels, dilation, causal=causal)
    for name, parameter in unit.named_parameters():
        if "alpha" in name:
            parameter.data.uniform_(-2, 2)
        else:
            parameter.data.normal_(0, 0.1 if "bias" in name else parameter[0].numel() ** -0.5)
    return unit.to(dtype).eval()


def steps(batch: int, length: int, channels: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(batch, length, channels).transpose(1, 2).to(dtype)


def error(y: torch.Tensor, reference: torch.Tensor) -> float:
    return ((y - reference).square().mean() / reference.square().mean()).sqrt().item()


@needs_avx512
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@settings(max_examples=25, deadline=None)
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
    dtype, causal, channels, dilation, length, batch, padded, threads
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
    assert error(y, exact) < (1e-5 if dtype == torch.float32 else error(unit(x, lengths), exact))


@needs_amx
@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 300), min_size=1, max_size=6), dilation=st.sampled_from([1, 3, 9])
)
@torch.inference_mode()
def test_a_unit_in_steps_is_the_unit(cuts, dilation):
    unit = unit_of(64, dilation, causal=True, dtype=torch.bfloat16)
    x = steps(2, sum(cuts), 64, torch.bfloat16)
    step, tail, parts = (
        inference.UnitStep(unit),
        torch.zeros(2, 6 * dilation, 64, dtype=x.dtype),
        [],
    )
    for part in x.transpose(1, 2).split(cuts, dim=1):
        y, tail = step(part, tail)
        parts.append(y)
    assert torch.equal(torch.cat(parts, dim=1).transpose(1, 2), inference.residual_unit(unit, x))


@needs_avx512
@torch.inference_mode()
def test_weights_may_change_between_calls():
    unit, x = unit_of(32), steps(1, 200, 32)
    inference.residual_unit(unit, x)
    unit.conv1.weight.mul_(0.5)
    unit.snake2.alpha.data = unit.snake2.alpha.data * 2
    torch.testing.assert_close(inference.residual_unit(unit, x), unit(x), atol=1e-4, rtol=0)


@needs_avx512
@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_snakes(dtype):
    snake = Snake1d(48)
    snake.alpha.data = torch.linspace(-3, 3, 48).view(1, -1, 1)
    x = steps(2, 1000, 48, dtype) * 4
    step = 2e-6 if dtype == torch.float32 else 2**-4  # of the largest outputs
    torch.testing.assert_close(inference.snake(snake, x), snake(x), atol=step, rtol=0)
    assert inference.snake(Snake1d(8), steps(1, 5, 8, dtype)) is None


@needs_avx512
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_compiled_model_gives_the_codes_of_the_plain_one(causal, dtype):
    model = tiny_model(
        causal, encoder_hidden_size=32, decoder_hidden_size=256, downsampling_ratios=[4, 5]
    ).to(dtype)
    audio = (torch.randn(2, 1, 9000) * 0.3).to(dtype)
    mask = (torch.arange(9000) < torch.tensor([9000, 5000])[:, None]).long()
    with torch.inference_mode():
        before = model(audio, padding_mask=mask)
        codes = model.compile_layers()(audio, padding_mask=mask).audio_codes
        decoded = model.decode(audio_codes=before.audio_codes).audio_values
    units = [module for module in model.modules() if isinstance(module, DacResidualUnit)]
    assert all(unit.fused is inference.residual_unit for unit in units)
    assert (codes == before.audio_codes).float().mean() > (0.999 if dtype == torch.float32 else 0.9)
    scale = before.audio_values[0].abs().max()
    step = (1e-4 if dtype == torch.float32 else 0.05) * scale
    torch.testing.assert_close(
        decoded[0, :9000], before.audio_values[0, :9000], atol=float(step), rtol=0
    )
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.inference_mode():
            assert torch.equal(twin(audio, padding_mask=mask).audio_codes, codes)
    assert model(audio).loss.requires_grad  # with gradients the layers run as ever


def test_processors_without_avx512_are_told_so(monkeypatch):
    monkeypatch.setattr(build, "processor_flags", lambda: frozenset({"avx2"}))
    assert not build.supported()
    assert not build.supported_in_bf16()
    with pytest.raises(kernels.KernelError, match="AVX-512"):
        build.library.__wrapped__()


@needs_avx512
@pytest.mark.parametrize(
    ("compiler", "expected"), [("/no/such/g++", "could not"), ("false", "could not compile")]
)
def test_a_compiler_that_fails_leaves_nothing_behind(compiler, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("CODECPLUS_CACHE", str(tmp_path))
    with pytest.raises(kernels.KernelError, match=expected):
        build.library.__wrapped__()
    assert not list(tmp_path.iterdir())


@needs_avx512
def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CODECPLUS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(kernels.KernelError, match="CODECPLUS_CACHE"):
        build.library.__wrapped__()
