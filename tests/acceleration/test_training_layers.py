import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processors import needs_amx, needs_compiler
from tiny import GEOMETRIES, tiny_model
from transformers.modeling_layers import GradientCheckpointingLayer

from codecplus.acceleration.training import (
    TrainedConv1d,
    TrainedResidualUnit,
    TrainedSnake1d,
    snake_gradients,
    use_training_layers,
)
from codecplus.modeling_dac.layers_dac import DacConv1d, DacResidualUnit, Snake1d, snake


def trained(module, kind):
    module = copy.deepcopy(module)
    module.__class__ = kind
    return module


def run(module, x, weights):
    x = x.clone().requires_grad_()
    module.zero_grad()
    out = module(x)
    (out.float() * weights).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in module.parameters())]


def test_units_of_a_model_stay_layers_that_transformers_may_checkpoint(monkeypatch):
    monkeypatch.setattr("codecplus.acceleration.training._kernels_train", lambda: True)
    model = tiny_model(**GEOMETRIES["odd"])
    use_training_layers(model)
    use_training_layers(model)  # again changes nothing
    units = [unit for unit in model.modules() if isinstance(unit, DacResidualUnit)]
    assert all(isinstance(unit, TrainedResidualUnit) for unit in units)
    assert all(isinstance(unit, GradientCheckpointingLayer) for unit in units)
    model.gradient_checkpointing_enable()
    model.train()
    audio = torch.randn(1, 1, 300).requires_grad_()
    model(audio).audio_values.sum().backward()
    assert float(audio.grad.abs().sum()) > 0


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("kernel", "dilation", "steps"), [(7, 1, 40), (7, 3, 40), (7, 9, 130), (3, 1, 11), (7, 9, 20)]
)
@pytest.mark.parametrize("channels", [(5, 8), (1, 8), (8, 1)])
def test_a_convolution_has_the_gradients_of_torchs(causal, kernel, dilation, steps, channels):
    torch.manual_seed(0)
    conv = DacConv1d(*channels, kernel, dilation=dilation, causal=causal)
    x, weights = torch.randn(3, channels[0], steps), torch.randn(3, channels[1], steps)
    expected = run(conv, x, weights)
    for a, b in zip(
        expected, run(trained(conv, TrainedConv1d), x.bfloat16(), weights), strict=True
    ):
        assert b.dtype == (
            torch.float32 if a.shape != b.shape or b.ndim != 3 or b.shape[2] == kernel else b.dtype
        )
        assert float((a - b.float()).norm() / a.norm()) < 0.02


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stride", [2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_strided_convolution_has_the_gradients_of_torchs(causal, stride, dtype):
    torch.manual_seed(0)
    conv = DacConv1d(5, 8, 2 * stride, stride=stride, causal=causal)
    for steps in (2 * stride, 7 * stride, 7 * stride + 1):
        x = torch.randn(3, 5, steps)
        weights = torch.randn(conv(x).shape)
        expected, found = (
            run(conv, x, weights),
            run(trained(conv, TrainedConv1d), x.to(dtype), weights),
        )
        for a, b in zip(expected, found, strict=True):
            assert a.shape == b.shape
            assert float((a - b.float()).norm() / a.norm()) < (
                1e-5 if dtype == torch.float32 else 0.02
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_snake_has_the_gradients_of_autograd(dtype):
    torch.manual_seed(0)
    layer = Snake1d(6)
    with torch.no_grad():
        layer.alpha.copy_(torch.tensor([0.0, 1e-3, -0.5, 1.0, 3.0, 10.0]).view(1, 6, 1))
    x, weights = torch.randn(2, 6, 50), torch.randn(2, 6, 50)
    expected, found = (
        run(layer, x.to(dtype).float(), weights),
        run(trained(layer, TrainedSnake1d), x.to(dtype), weights),
    )
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for a, b in zip(expected[:2], found[:2], strict=True):
        torch.testing.assert_close(b.float(), a, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(found[2][:, 2:], expected[2][:, 2:], atol=1e-3, rtol=tolerance)
    assert found[2].isfinite().all()


@needs_compiler
@pytest.mark.slow
def test_the_snake_of_a_gpu_compiles_once_for_all_sizes():
    compiled = [torch.compile(function, dynamic=True) for function in (snake, snake_gradients)]
    for rows, channels in ((48, 16), (100, 24), (33, 7)):
        x, gradient, slope = (
            torch.randn(rows, channels),
            torch.randn(rows, channels),
            torch.rand(channels) + 0.5,
        )
        with torch.compiler.set_stance("default" if rows == 48 else "fail_on_recompile"):
            found = compiled[0](x, slope), *compiled[1](x, slope, gradient)
        for a, b in zip(
            found, (snake(x, slope), *snake_gradients(x, slope, gradient)), strict=True
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_codec_computes_what_it_did_before(geometry):
    plain = tiny_model(**GEOMETRIES[geometry])
    fast = copy.deepcopy(plain)
    use_training_layers(fast)
    assert any(isinstance(m, TrainedConv1d) for m in fast.modules())
    assert fast.state_dict().keys() == plain.state_dict().keys()
    audio = 0.1 * torch.randn(2, 1, 640, generator=torch.Generator().manual_seed(0))
    for model in (plain, fast):
        model.decoder(model.encoder(audio)).square().sum().backward()
    for a, b in zip(plain.parameters(), fast.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        assert torch.equal(
            plain.allow_kernels(False).encoder(audio), fast.allow_kernels(False).encoder(audio)
        )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_weights_give_the_same_gradients_of_the_input(dtype, causal):
    model = tiny_model(causal, decoder_hidden_size=64, downsampling_ratios=[2, 2], hidden_size=32)
    decoder = model.to(dtype).decoder
    use_training_layers(decoder)
    latents = (
        torch.randn(2, 32, 50, generator=torch.Generator().manual_seed(0))
        .to(dtype)
        .requires_grad_()
    )
    decoder(latents).float().square().sum().backward()
    resting = copy.deepcopy(decoder).requires_grad_(False)
    (found,) = torch.autograd.grad(resting(latents).float().square().sum(), latents)
    torch.testing.assert_close(
        found, latents.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-3
    )


def test_weight_norm_goes_on_top_and_copies_stand_alone():
    model = tiny_model(downsampling_ratios=[2, 2])
    use_training_layers(model)
    model.apply_weight_norm()
    twin = copy.deepcopy(model)
    audio = torch.randn(1, 1, 64)
    model.encoder(audio.bfloat16()).float().square().sum().backward()
    assert all(p.grad is None for p in twin.parameters())
    assert model.encoder.conv1.parametrizations.weight.original1.grad is not None
    model.remove_weight_norm()


@needs_amx
@settings(max_examples=20, deadline=None)
@given(
    channels=st.sampled_from([16, 32, 96]),
    dilation=st.sampled_from([1, 3, 9]),
    causal=st.booleans(),
    length=st.integers(1, 200),
    batch=st.integers(1, 3),
)
def test_a_unit_has_the_gradients_of_autograd(channels, dilation, causal, length, batch):
    torch.manual_seed(length)
    unit = DacResidualUnit(channels, dilation, causal=causal)
    for name, parameter in unit.named_parameters():
        if "alpha" in name:
            parameter.data.uniform_(0.2, 2)
        else:
            parameter.data.normal_(0, 0.1 if "bias" in name else parameter[0].numel() ** -0.5)
    x = torch.randn(batch, channels, length).bfloat16()
    weights = torch.randn(batch, channels, length).bfloat16().float()
    exact = run(copy.deepcopy(unit).double(), x.double(), weights)
    plain, found = run(unit, x, weights), run(trained(unit, TrainedResidualUnit), x, weights)
    for a, b, c in zip(exact, plain, found, strict=True):
        # Where terms cancel, as for an α, a few steps in bf16 say little: then autograd's own
        # gradient is as far off.
        assert float((a - c).norm()) < 0.02 * float(a.norm()) + 2 * float((a - b).norm())


@needs_amx
def test_a_unit_follows_its_weights():
    unit = trained(DacResidualUnit(32), TrainedResidualUnit)
    torch.nn.utils.parametrizations.weight_norm(unit.conv1)
    x, optimizer = torch.randn(1, 32, 60).bfloat16(), torch.optim.SGD(unit.parameters(), 0.1)
    for _ in range(3):
        y = unit(x)
        expected = DacResidualUnit.forward(unit, x)
        assert float((y - expected).norm() / expected.norm()) < 0.01
        optimizer.zero_grad()
        y.float().square().mean().backward()
        optimizer.step()
