"""Adapters of PEFT, and modules of one's own in place of a layer: the same results in every way."""

import copy

import pytest
import torch
from packaging.version import Version
from processors import needs_compiler
from tiny import GEOMETRIES, tiny_model

from codecplus import Codec, DacModel
from codecplus.modeling_dac.layers_dac import DacConv1d, DacConvTranspose1d

LAYERS = ["conv1", "conv2", "in_proj", "out_proj", "codebook"]


def with_adapter(model: DacModel, **fields):
    """The model with an adapter that does something in every layer that PEFT knows."""
    peft = pytest.importorskip("peft")
    options = {"r": 2, "target_modules": LAYERS, "init_lora_weights": False} | fields
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.mul_(0.1 if "embedding" in name else 0.3)
    return adapted


def padded_batch(model: DacModel):
    hop = model.config.hop_length
    lengths = [hop // 2, 3 * hop + 1, 7 * hop]
    audio = torch.randn(3, 1, 7 * hop, generator=torch.Generator().manual_seed(1)) * 0.3
    mask = torch.arange(7 * hop) < torch.tensor(lengths)[:, None]
    return audio, mask, lengths


def test_an_adapted_model_computes_alike_with_and_without_gradients_and_merged(model):
    hop = model.config.hop_length
    audio = torch.randn(2, 1, 9 * hop) * 0.3
    with torch.no_grad():
        plain = model(audio).audio_values
        adapted = with_adapter(model)
        without = adapted(audio)
    with_gradients = adapted(audio)
    merged = adapted.merge_and_unload()
    assert type(merged) is type(model)
    with torch.no_grad():
        after = merged(audio)
    assert not torch.allclose(without.audio_values, plain, atol=1e-2)
    for other in (with_gradients, after):
        assert torch.equal(other.audio_codes, without.audio_codes)
        torch.testing.assert_close(other.audio_values, without.audio_values, atol=2e-5, rtol=0)
        torch.testing.assert_close(other.loss, without.loss)


def test_a_padded_batch_of_an_adapted_model_equals_its_items_alone(model):
    adapted = with_adapter(model)
    audio, mask, lengths = padded_batch(model)
    with torch.no_grad():
        batch = adapted(audio, padding_mask=mask)
        for i, length in enumerate(lengths):
            alone = adapted(audio[i : i + 1, :, :length])
            frames = alone.audio_codes.shape[-1]
            assert torch.equal(batch.audio_codes[i, :, :frames], alone.audio_codes[0])
            torch.testing.assert_close(
                batch.audio_values[i, :length], alone.audio_values[0], atol=2e-5, rtol=0
            )


def test_an_adapter_trains_and_the_model_does_not(tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny_model(downsampling_ratios=[2, 4])
    before = copy.deepcopy(model.state_dict())
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=LAYERS)).train()
    optimizer = torch.optim.Adam((p for p in adapted.parameters() if p.requires_grad), lr=1e-2)
    audio = torch.randn(2, 1, 160) * 0.3
    losses = []
    for _ in range(8):
        output = adapted(audio)
        loss = (output.audio_values - audio.squeeze(1)).square().mean() + output.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    adapted.eval()
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_model(downsampling_ratios=[2, 4]), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(audio).audio_values, adapted(audio).audio_values)
    unloaded = adapted.unload().state_dict()
    assert all(torch.equal(value, unloaded[name]) for name, value in before.items())


@needs_compiler
def test_compiled_layers_see_an_adapter():
    adapted = with_adapter(tiny_model(encoder_hidden_size=32, decoder_hidden_size=512))
    audio = torch.randn(1, 1, 4096) * 0.3
    with torch.no_grad():
        before = adapted(audio)
        adapted.compile_layers()
        after = adapted(audio)
    assert torch.equal(after.audio_codes, before.audio_codes)
    torch.testing.assert_close(after.audio_values, before.audio_values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr"])
def test_other_adapters_compute_alike_merged(kind):
    peft = pytest.importorskip("peft")
    model = tiny_model(**GEOMETRIES["16khz"])
    convolutions = ["conv1", "conv2"]
    if kind == "dora":
        config = peft.LoraConfig(r=2, target_modules=convolutions, use_dora=True)
    elif kind == "loha":
        config = peft.LoHaConfig(r=2, target_modules=convolutions)
    else:
        config = peft.LoKrConfig(r=2, target_modules=convolutions)
    audio = torch.randn(1, 1, 3200) * 0.3
    torch.manual_seed(0)
    with torch.no_grad():
        plain = model.encoder(audio)
        adapted = peft.get_peft_model(model, config).eval()
        for name, parameter in adapted.named_parameters():
            if any(part in name for part in ("lora_B", "hada_w2_b", "lokr_w2_b", "lokr_w1")):
                parameter.add_(0.1 * torch.randn_like(parameter))
        before = adapted.encoder(audio)
        after = adapted.merge_and_unload().encoder(audio)
    assert not torch.allclose(before, plain, atol=1e-3)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)


def test_transformers_own_adapters_are_saved_and_loaded(tmp_path):
    peft = pytest.importorskip("peft")
    check = pytest.importorskip("transformers.integrations.peft")
    if Version(peft.__version__) < Version(check.MIN_PEFT_VERSION):
        pytest.skip(f"this transformers asks for PEFT {check.MIN_PEFT_VERSION}")
    model = tiny_model(downsampling_ratios=[2, 4])
    audio = torch.randn(1, 1, 160) * 0.3
    model.add_adapter(
        peft.LoraConfig(r=2, target_modules=["conv1", "conv2"], init_lora_weights=False)
    )
    model.eval()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    again = tiny_model(downsampling_ratios=[2, 4])
    again.load_adapter(str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(audio).audio_values, model(audio).audio_values)


class Around(torch.nn.Module):
    """A module of a user's own, which knows nothing of `lengths`."""

    def __init__(self, layer):
        super().__init__()
        self.wrapped = layer

    def forward(self, x):
        return 1.25 * self.wrapped(x)


@pytest.mark.parametrize("name", ["conv_t1", "conv1", "snake1", "res_unit2"])
def test_a_module_around_any_layer_is_called_with_audio_alone(model, name):
    audio, mask, lengths = padded_batch(model)
    before = model.encoder_reach, model.decoder_reach
    halves = [model.decoder] if name == "conv_t1" else [model.encoder, model.decoder]
    for half in halves:
        block = half.block[0] if hasattr(half.block[0], name) else half
        setattr(block, name, Around(getattr(block, name)))
    assert (model.encoder_reach, model.decoder_reach) == before
    with torch.no_grad():
        batch = model(audio, padding_mask=mask)
        for i, length in enumerate(lengths):
            alone = model(audio[i : i + 1, :, :length])
            frames = alone.audio_codes.shape[-1]
            assert torch.equal(batch.audio_codes[i, :, :frames], alone.audio_codes[0])
            torch.testing.assert_close(
                batch.audio_values[i, :length], alone.audio_values[0], atol=2e-5, rtol=0
            )


def test_functions_that_read_weights_refuse_adapters_and_hooks():
    codec = Codec(tiny_model(downsampling_ratios=[2, 4, 5, 8], sampling_rate=16000))
    handle = codec.model.encoder.block[1].res_unit2.conv1.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="without adapters and forward hooks"):
        codec.model.encoder.layers()
    handle.remove()
    codec.model.encoder.layers()
    block = codec.model.decoder.block[0]
    block.conv_t1 = Around(block.conv_t1)
    with pytest.raises(ValueError, match="merge the adapters"):
        codec.model.decoder.layers()
    block.conv_t1 = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"got Identity; .* keep the layer as a submodule"):
        codec.model.decoder.output_length(3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dilation", [1, 3, 9])
def test_a_layer_is_built_beside_another_as_adapters_build_it(causal, dilation):
    layer = DacConv1d(4, 6, 7, dilation=dilation, causal=causal)
    beside = type(layer)(4, 2, layer.kernel_size, layer.stride, layer.padding, bias=False)
    assert (beside.dilation, beside.pads) == (layer.dilation, layer.pads)
    assert copy.deepcopy(layer).padding.causal is causal
    x = torch.randn(1, 4, 40)
    assert beside(x).shape[-1] == layer(x).shape[-1]
    upsampling = DacConvTranspose1d(4, 6, 6, 3, causal=causal)
    beside = type(upsampling)(
        4, 2, upsampling.kernel_size, upsampling.stride, upsampling.padding, bias=False
    )
    assert beside(x).shape[-1] == upsampling(x).shape[-1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DacConv1d(4, 4, 7, padding=0), "expected padding=3, .* got 0"),
        (lambda: DacConv1d(4, 4, 7, groups=2), "expected groups=1, got 2"),
        (lambda: DacConvTranspose1d(4, 4, 5, 3), "expected kernel_size=6 and padding=2"),
    ],
)
def test_a_layer_that_no_dac_has_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
