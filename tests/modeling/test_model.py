"""The models: equal to transformers' own, without its bugs."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from processors import needs_compiler
from tiny import GEOMETRIES, tiny_model
from torch.autograd import forward_ad
from torch.nn.utils import prune
from transformers import DacConfig as StockConfig
from transformers import DacModel as StockModel

from codecplus import CausalDacConfig, CausalDacModel, DacConfig, DacFeatureExtractor, DacModel
from codecplus.audio import levels
from codecplus.modeling_dac.feature_extraction_dac import MAX_PEAK
from codecplus.modeling_dac.layers_dac import (
    CodebookSearch,
    DacConv1d,
    Snake1d,
    snake,
    snake_in_blocks,
    snake_in_passes,
    snake_in_turns,
    snake_reciprocal,
)


def stock(model: DacModel) -> StockModel:
    config = model.config
    fields = (
        "encoder_hidden_size",
        "decoder_hidden_size",
        "downsampling_ratios",
        "n_codebooks",
        "codebook_size",
    )
    other = StockModel(StockConfig(**{name: getattr(config, name) for name in fields})).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("gradients", [False, True])
def test_equals_transformers_on_whole_frames(geometry, gradients):
    model = tiny_model(**GEOMETRIES[geometry])
    audio = torch.randn(2, 1, 24 * model.config.hop_length) * 0.3
    with torch.set_grad_enabled(gradients):
        ours, theirs = model(audio, n_quantizers=3), stock(model)(audio, n_quantizers=3)
    assert torch.equal(ours.audio_codes, theirs.audio_codes)
    torch.testing.assert_close(
        ours.quantized_representation, theirs.quantized_representation, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(ours.projected_latents, theirs.projected_latents, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.loss, theirs.loss.mean())
    length = theirs.audio_values.shape[-1]
    torch.testing.assert_close(
        ours.audio_values[:, :length], theirs.audio_values, atol=3e-5, rtol=0
    )


def test_quantizer_and_decoder_are_drop_ins(rng):
    model = tiny_model()
    codes = torch.from_numpy(rng.integers(0, 64, (2, 3, 20)))
    z, entries, same = model.quantizer.from_codes(codes)
    their_z, their_entries, _ = stock(model).quantizer.from_codes(codes)
    torch.testing.assert_close(z, their_z)
    torch.testing.assert_close(entries, their_entries)
    assert same is codes
    torch.testing.assert_close(
        model.quantizer.from_latents(entries), stock(model).quantizer.from_latents(entries)
    )
    torch.testing.assert_close(model.decoder(z), stock(model).decoder(z), atol=1e-5, rtol=0)


@pytest.mark.parametrize("samples", [1, 2, 799])
def test_any_length_comes_back_with_its_length(model, samples):
    with torch.no_grad():
        out = model(torch.randn(1, 1, samples) * 0.3)
    frames = -(-samples // model.config.hop_length)
    assert out.audio_values.shape == (1, samples)
    assert out.audio_codes.shape == (1, 4, frames)
    assert model.decode(audio_codes=out.audio_codes).audio_values.shape == (
        1,
        frames * model.config.hop_length,
    )


def test_a_padded_batch_equals_its_items_alone(model):
    hop = model.config.hop_length
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(n, generator=generator) * 0.3 for n in (1, hop, 3 * hop + 7, 9 * hop)]
    features = DacFeatureExtractor(hop_length=hop)(clips, return_tensors="pt", sampling_rate=16000)
    features["input_values"][0, 0, 1:] = 7.0  # what lies in the padding must not matter
    with torch.no_grad():
        batch = model(**features)
        alone = [model(clip[None, None]) for clip in clips]
    for i, (clip, single) in enumerate(zip(clips, alone, strict=True)):
        frames = single.audio_codes.shape[-1]
        assert torch.equal(batch.audio_codes[i, :, :frames], single.audio_codes[0])
        assert not batch.audio_codes[i, :, frames:].any()
        # Products of other sizes sum in another order, and some 40 layers pass the rounding on:
        # batch and item alone each come to 80 units of rounding from the same decoded in fp64.
        rounding = torch.finfo(torch.float32).eps * float(single.audio_values.abs().max())
        torch.testing.assert_close(
            batch.audio_values[i, : len(clip)],
            single.audio_values[0],
            atol=2 * 80 * rounding,
            rtol=0,
        )
        assert not batch.audio_values[i, len(clip) :].any()
    torch.testing.assert_close(batch.loss, torch.stack([single.loss for single in alone]).mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_with_zero_alpha(model, dtype):
    for name, parameter in model.named_parameters():
        if name.endswith("alpha"):
            parameter.data[0, ::2] = 0
    with torch.no_grad():
        out = model.to(dtype)(torch.randn(1, 1, 2000))
    assert out.audio_values.dtype == dtype
    assert torch.isfinite(out.audio_values).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "autocast"])
def test_a_decoder_does_not_round_its_samples(dtype, causal):
    model = tiny_model(causal)
    decoder = model.decoder
    z = torch.randn(1, 128, 40, generator=torch.Generator().manual_seed(0))
    if dtype != "autocast":
        decoder.to(dtype)
        z = z.to(dtype)
    inputs = []
    decoder.conv2.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
        audio = decoder(z)
    assert audio.dtype == torch.float32
    for narrow in (torch.bfloat16, torch.float16):
        assert (audio != audio.to(narrow)).float().mean() > 0.8
    conv = decoder.conv2
    given = torch.nn.functional.pad(inputs[0].float(), conv.pads)
    expected = torch.conv1d(given, conv.weight.float(), conv.bias.float()).tanh()
    torch.testing.assert_close(audio, expected, atol=1e-5, rtol=1e-5)


def test_a_decoder_in_fp64_gives_fp64():
    decoder = tiny_model().decoder.double()
    z = torch.randn(1, 128, 8, dtype=torch.float64)
    with torch.no_grad():
        assert decoder(z).dtype == torch.float64


@pytest.mark.parametrize("autocast", [False, True])
def test_codes_are_searched_in_fp32(autocast):
    # Entries a bf16 search cannot tell apart: their cosine similarities differ by less than 2⁻¹⁴.
    model = tiny_model(n_codebooks=1)
    quantizer = model.quantizer.quantizers[0]
    angles = torch.linspace(0, 0.5, 64)
    quantizer.codebook.weight.data.zero_()
    quantizer.codebook.weight.data[:, 0], quantizer.codebook.weight.data[:, 1] = (
        angles.cos(),
        angles.sin(),
    )
    latents = quantizer.codebook.weight.data.t()[None]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(quantizer.decode_latents(latents)[1][0], torch.arange(64))


def test_loss_is_a_scalar_that_trains(model):
    model.train()
    out = model(torch.randn(3, 1, 1000) * 0.3)
    assert out.loss.shape == ()
    (out.loss + out.audio_values.square().mean()).backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in model.parameters()
    )


def test_gradients_equal_those_of_transformers():
    ours = tiny_model()
    theirs = stock(ours)
    audio = torch.randn(1, 1, 4096) * 0.3
    for net in (ours, theirs):
        out = net(audio)
        (out.loss.sum() + out.audio_values.square().mean()).backward()
    other = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, other[name].grad, atol=1e-4, rtol=1e-3, msg=name)


def test_quantizer_dropout_changes_only_the_first_share_of_a_batch():
    model = tiny_model(n_codebooks=8, quantizer_dropout=0.5).train()
    z = torch.randn(1, 128, 12).expand(8, -1, -1)
    torch.manual_seed(0)
    quantized, codes, *_ = model.quantizer(z)
    assert codes.shape[1] == 8
    assert all(torch.equal(quantized[i], quantized[-1]) for i in range(4, 8))
    assert any(not torch.equal(quantized[i], quantized[-1]) for i in range(4))


def test_causal_output_never_depends_on_later_input():
    model = tiny_model(causal=True, **GEOMETRIES["16khz"])
    hop = model.config.hop_length
    audio = torch.randn(1, 1, 30 * hop)
    changed = audio.clone()
    changed[..., 12 * hop :] = 0
    with torch.no_grad():
        one, two = model(audio), model(changed)
    assert torch.equal(one.audio_codes[..., :12], two.audio_codes[..., :12])
    assert not torch.equal(one.audio_codes[..., 12:], two.audio_codes[..., 12:])
    torch.testing.assert_close(
        one.audio_values[..., : 12 * hop], two.audio_values[..., : 12 * hop], atol=1e-6, rtol=0
    )


def test_reach_is_how_far_an_impulse_has_effect(model):
    hop, (past, future) = model.config.hop_length, model.encoder_reach
    frames = 2 * (past // hop + 2) + 8
    middle = frames // 2
    audio = torch.zeros(1, 1, frames * hop, requires_grad=True)
    model.analyze(audio + torch.randn_like(audio))[0, :, middle].sum().backward()
    felt = audio.grad[0, 0].nonzero()
    assert (felt.min(), felt.max()) == (middle * hop - past, middle * hop + future)

    past, future = model.decoder_reach
    z = torch.randn(1, model.config.hidden_size, past + future + 8, requires_grad=True)
    middle = past + 3
    model.decoder(z)[..., middle * hop : (middle + 1) * hop].sum().backward()
    felt = z.grad[0].abs().sum(0).nonzero()
    assert (felt.min(), felt.max()) == (middle - past, middle + future)


@pytest.mark.parametrize(
    ("preset", "milliseconds"), [("dac-44khz", 212), ("dac-24khz", 250), ("dac-16khz", 376)]
)
def test_released_models_report_their_latency(preset, milliseconds):
    from codecplus.configuration import load_preset

    config = load_preset(preset)
    small = tiny_model(downsampling_ratios=config.downsampling_ratios)
    assert small.latency_samples / config.sampling_rate * 1000 == pytest.approx(milliseconds, abs=1)


def test_weight_norm_comes_and_goes():
    model = tiny_model()
    with torch.no_grad():
        model.quantizer.quantizers[0].in_proj.weight[-1] = 0  # 0 / 0 has no direction
    audio = torch.randn(1, 1, 1024)
    before = model(audio).audio_values
    model.apply_weight_norm()
    model.apply_weight_norm()  # twice is once
    torch.testing.assert_close(model(audio).audio_values, before, atol=1e-5, rtol=0)
    assert any("original1" in name for name in model.state_dict())
    assert model.folded_state_dict().keys() == tiny_model().state_dict().keys()
    model.remove_weight_norm()
    model.remove_weight_norm()
    torch.testing.assert_close(model(audio).audio_values, before, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("audio", "options", "message"),
    [
        (torch.zeros(2, 64), {}, r"\(batch_size, 1, samples\), got \(2, 64\)"),
        (torch.zeros(1, 2, 64), {}, r"got \(1, 2, 64\)"),
        (torch.zeros(1, 1, 64, dtype=torch.int16), {}, "floating-point audio .* got torch.int16"),
        (torch.zeros(1, 1, 0), {}, r"got \(1, 1, 0\)"),
        (torch.zeros(1, 1, 64), {"n_quantizers": 0}, "between 1 and 4, got 0"),
        (torch.zeros(1, 1, 64), {"n_quantizers": 5}, "between 1 and 4, got 5"),
        (
            torch.zeros(1, 1, 4),
            {"padding_mask": torch.tensor([[0, 1, 1, 1]])},
            "padded on the right alone",
        ),
        (
            torch.zeros(1, 1, 4),
            {"padding_mask": torch.tensor([[0, 0, 0, 0]])},
            "at least one real sample",
        ),
        (
            torch.zeros(1, 1, 4),
            {"padding_mask": torch.ones(1, 7)},
            r"padding_mask of shape \(1, 4\)",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(audio, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().encode(audio, **options)


def test_decode_refuses_what_it_cannot_decode():
    with pytest.raises(ValueError, match="got neither"):
        tiny_model().decode()
    with pytest.raises(ValueError, match=r"1 to 4, frames\), got \(1, 5, 3\)"):
        tiny_model().decode(audio_codes=torch.zeros(1, 5, 3, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
@pytest.mark.parametrize("shape", [(1, 4, 3), (1, 128, 0), (128, 3), (1, 128, 3)])
def test_codes_in_place_of_latents_are_refused(dtype, shape):
    model = tiny_model(downsampling_ratios=[2, 4, 5, 8])
    wrong = torch.zeros(shape, dtype=dtype)
    if dtype == torch.float32 and shape == (1, 128, 3):
        assert model.decode(wrong).audio_values.shape == (1, 960)
        return
    with pytest.raises(
        ValueError, match=r"\(batch_size, 128, frames\).*decode\(audio_codes=codes\)"
    ):
        model.decode(wrong)
    with pytest.raises(ValueError, match=r"8 per codebook, frames\), got .* go to from_codes"):
        model.quantizer.from_latents(wrong[:, :5] if wrong.is_floating_point() else wrong)


def test_what_is_no_tensor_is_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match=r"as a tensor, got ndarray; .* feature extractor"):
        model(np.zeros((1, 1, 320), np.float32))
    with pytest.raises(ValueError, match="codes as a tensor, got ndarray"):
        model.decode(audio_codes=np.zeros((1, 4, 3), int))
    with pytest.raises(ValueError, match="padding_mask as a tensor, got ndarray"):
        model(torch.zeros(1, 1, 64), padding_mask=np.ones((1, 64)))
    with pytest.raises(ValueError, match=r"\(batch_size, 1, samples\), got \(0, 1, 64\)"):
        model(torch.zeros(0, 1, 64))


@pytest.mark.parametrize("wrong", [-1, -100, 64, 1024])
def test_codes_beyond_the_codebook_are_refused_with_their_value(model, wrong):
    codes = torch.zeros(2, 4, 5, dtype=torch.long)
    codes[1, 2, 3] = wrong
    for decode in (
        lambda: model.decode(audio_codes=codes),
        lambda: model.quantizer.from_codes(codes),
    ):
        with pytest.raises(ValueError, match=f"between 0 and 63, got {wrong};"):
            decode()


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16])
def test_codes_that_are_no_integers_are_refused(model, dtype):
    with pytest.raises(ValueError, match=f"an integer type, got {dtype}"):
        model.decode(audio_codes=torch.zeros(1, 4, 5, dtype=dtype))


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32]
)
def test_codes_of_any_integer_type_decode_alike(model, dtype):
    codes = torch.randint(0, 64, (2, 4, 6))
    expected = model.decode(audio_codes=codes).audio_values
    assert torch.equal(model.decode(audio_codes=codes.to(dtype)).audio_values, expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codebook_size": 1000}, "power of two, got 1000"),
        ({"decoder_hidden_size": 24}, r"decoder_hidden_size \(=24\) must be divisible"),
        ({"downsampling_ratios": []}, "one or more integers"),
        ({"n_codebooks": 0}, "n_codebooks must be at least 1"),
        ({"quantizer_dropout": 2.0}, "between 0 and 1, got 2.0"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DacConfig(**fields)


def test_a_stale_hop_length_is_ignored():
    config = DacConfig.from_dict(
        {"downsampling_ratios": [2, 4, 5, 8], "hop_length": 512, "sampling_rate": 16000}
    )
    assert (config.hop_length, config.frame_rate) == (320, 50)
    assert DacConfig(sampling_rate=44100).frame_rate == 86.1328125


def test_weights_laid_out_compute_and_save_the_same(model, tmp_path):
    audio = torch.randn(2, 1, 2000) * 0.3
    with torch.no_grad():
        before = model(audio)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        after = model.lay_out_weights()(audio)
    assert torch.equal(after.audio_codes, before.audio_codes)
    torch.testing.assert_close(after.audio_values, before.audio_values, atol=1e-5, rtol=0)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    saved = model.silenced(state)
    assert all(torch.equal(value, saved[name]) for name, value in again.state_dict().items())


def snake_without_gradients(rows, alpha):
    layer = Snake1d(len(alpha))
    layer.alpha.data = alpha.view(1, -1, 1)
    with torch.no_grad():
        return layer(rows.t()[None])[0].t()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "fast_snake",
    [
        lambda rows, alpha: snake_in_passes(rows, alpha, snake_reciprocal(alpha)),
        lambda rows, alpha: snake_in_turns(rows, alpha / torch.pi, snake_reciprocal(alpha)),
        snake_in_blocks,
        snake_without_gradients,
    ],
    ids=["passes", "turns", "blocks", "layer"],
)
def test_every_fast_snake_is_the_snake(fast_snake, dtype):
    alpha = torch.tensor([1.0, -0.3, 4.0, 1e-6, 0.0])
    rows = (torch.randn(30_000, 5, generator=torch.Generator().manual_seed(0)) * 5).to(dtype)
    fast = fast_snake(rows, alpha)
    assert fast.dtype == dtype
    one_step = {torch.float32: 2e-6, torch.bfloat16: 2**-4}[dtype]  # of the largest outputs
    torch.testing.assert_close(fast[:, :3], snake(rows, alpha)[:, :3], atol=one_step, rtol=0)
    torch.testing.assert_close(fast[:, 3:], rows[:, 3:], atol=one_step, rtol=1e-4)


@pytest.mark.parametrize("codebooks", [1, 3, 4])
def test_the_prepared_search_finds_what_codebook_after_codebook_finds(codebooks):
    quantizer = tiny_model().quantizer
    z = torch.randn(2, 128, 200, generator=torch.Generator().manual_seed(0))
    with torch.enable_grad():  # codebook after codebook
        plain, codes, projected, *losses = quantizer(z, codebooks)
    with torch.no_grad():
        quick, quick_codes, quick_projected, *quick_losses = quantizer(z, codebooks)
        _, _, first_codes = CodebookSearch(quantizer, 4)(z.mT, codebooks)
    assert torch.equal(codes, quick_codes)
    assert torch.equal(codes, first_codes)
    torch.testing.assert_close(quick, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(quick_projected, projected, atol=1e-5, rtol=0)
    torch.testing.assert_close(quick_losses, losses)


def test_the_steps_of_a_model_are_all_its_layers(model):
    gains = model.decoder.gains
    chains = [model.encoder, *(gains.children() if gains else [model.decoder])]
    for half in chains:
        modules = dict(half.named_modules())
        walked = []
        for name, layer in half.layers():
            assert modules[name] is layer
            walked += [layer] if not hasattr(layer, "steps") else [p for _, p in layer.steps()]
        leaves = [module for module in modules.values() if not list(module.children())]
        assert {id(layer) for layer in walked} == {id(layer) for layer in leaves}
        assert len(walked) == len(leaves)


def test_a_convolution_of_stride_one_keeps_the_length_in_an_exported_graph_too():
    # An even kernel, as of a downsampling ratio of 1: both sides cannot be padded alike.
    conv = DacConv1d(3, 4, 2)
    x = torch.randn(1, 3, 20)
    graph = torch.export.export(conv, (x,)).module()
    torch.testing.assert_close(graph(x), conv(x))


@needs_compiler
def test_compiled_layers_compute_the_same(monkeypatch):
    monkeypatch.setenv("CODECPLUS_KERNELS", "off")  # those have tests of their own
    model = tiny_model()
    audio = torch.randn(2, 1, 2000) * 0.3
    with torch.inference_mode():
        before = model(audio)
        after = model.compile_layers()(audio)
        again = model.decode(audio_codes=before.audio_codes).audio_values
    assert all(
        module.fused is not None for module in model.modules() if isinstance(module, Snake1d)
    )
    assert (after.audio_codes == before.audio_codes).float().mean() > 0.99
    torch.testing.assert_close(again[:, :2000], before.audio_values, atol=1e-4, rtol=0)


def test_without_a_compiler_the_model_stays_as_it_was(model, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no compiler")

    monkeypatch.setenv("CODECPLUS_KERNELS", "off")
    monkeypatch.setattr("codecplus.modeling_dac.network_dac.compiled_snake", lambda: refuse)
    with pytest.raises(RuntimeError, match="needs a C\\+\\+ compiler"):
        model.compile_layers()
    assert all(module.fused is None for module in model.modules() if isinstance(module, Snake1d))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_inputs_give_the_same_with_and_without_gradients(causal, dtype):
    # Strided convolutions without gradients run as another kernel from 512 outputs on.
    model = tiny_model(causal, downsampling_ratios=[3, 4]).to(dtype)
    audio = (torch.randn(2, 1, 12 * 700) * 0.3).to(dtype)
    z = model.encoder(audio)
    with torch.inference_mode():
        torch.testing.assert_close(
            model.encoder(audio), z, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0
        )


def test_one_graph_serves_all_lengths():
    model, graphs = tiny_model(downsampling_ratios=[2, 4]), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    encoder = torch.compile(model.encoder, dynamic=True, fullgraph=True, backend=backend)
    with torch.no_grad():
        for frames in (40, 41, 46, 63):
            audio = torch.randn(2, 1, frames * 8) * 0.3
            torch.testing.assert_close(encoder(audio), model.encoder(audio), atol=1e-5, rtol=0)
    assert len(graphs) == 1


@pytest.fixture(params=[8, 32])  # the second is a width that compiled kernels take
def wider(request):
    channels = request.param
    return tiny_model(encoder_hidden_size=channels, decoder_hidden_size=16 * channels)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functions_of_torch_func_see_every_layer(wider):
    audio = torch.randn(3, 1, 1, 4 * wider.config.hop_length) * 0.3
    with torch.no_grad():
        latents = wider.encoder(audio.squeeze(1))
        sound = wider.decoder(latents)
        mapped = torch.func.vmap(wider.encoder)(audio).squeeze(1)
        mapped_sound = torch.func.vmap(wider.decoder)(latents[:, None]).squeeze(1)
        raised = {name: 1.05 * value for name, value in wider.named_parameters()}
        other = torch.func.functional_call(wider.encoder, {}, (audio[0],))
        changed = torch.func.functional_call(wider, raised, (audio[0],)).projected_latents
        wider.load_state_dict(raised)
        expected = wider(audio[0]).projected_latents
    torch.testing.assert_close(mapped, latents, atol=1e-5, rtol=0)
    torch.testing.assert_close(mapped_sound, sound, atol=1e-4, rtol=0)
    torch.testing.assert_close(other, latents[:1], atol=1e-5, rtol=0)
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=0)


def test_forward_gradients_reach_through_with_and_without_backward_ones(wider):
    audio = torch.randn(1, 1, 4 * wider.config.hop_length) * 0.3
    tangents = []
    for backward in (False, True):
        with torch.set_grad_enabled(backward), forward_ad.dual_level():
            dual = forward_ad.make_dual(audio, torch.ones_like(audio))
            tangents.append(forward_ad.unpack_dual(wider.decoder(wider.encoder(dual))).tangent)
    assert tangents[0].abs().sum() > 0
    torch.testing.assert_close(*tangents, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_a_trace_of_one_length_serves_every_length(causal):
    model = tiny_model(causal, **GEOMETRIES["odd"]).requires_grad_(False)
    hop = model.config.hop_length

    def encode(audio):
        return model.encode(audio, return_dict=False)[2]

    def decode(codes):
        return model.decode(audio_codes=codes, return_dict=False)[0]

    with torch.no_grad():
        audio = torch.randn(1, 1, 7 * hop)
        codes = encode(audio)
        encoder = torch.jit.trace(model.encoder, audio, check_trace=False)
        encoding = torch.jit.trace(encode, audio, check_trace=False)
        decoding = torch.jit.trace(decode, codes, check_trace=False)
        for batch, frames in ((1, 7), (2, 5), (1, 52), (1, 700)):
            audio = torch.randn(batch, 1, frames * hop) * 0.3
            torch.testing.assert_close(encoder(audio), model.encoder(audio), atol=1e-5, rtol=0)
            codes = encode(audio)
            assert torch.equal(encoding(audio), codes)
            torch.testing.assert_close(decoding(codes), decode(codes), atol=1e-5, rtol=0)


def test_an_onnx_graph_of_the_tracing_exporter_serves_every_length(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    hop = model.config.hop_length
    with torch.no_grad():
        for name, half, example in (
            ("encoder", model.encoder, torch.randn(1, 1, 7 * hop)),
            ("decoder", model.decoder, torch.randn(1, model.config.hidden_size, 7)),
        ):
            path = str(tmp_path / f"{name}.onnx")
            axes = {"x": {2: "steps"}, "y": {2: "steps"}}
            torch.onnx.export(
                half,
                (example,),
                path,
                dynamo=False,
                input_names=["x"],
                output_names=["y"],
                dynamic_axes=axes,
            )
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            for frames in (7, 12, 31):
                x = torch.randn(1, example.shape[1], example.shape[2] // 7 * frames) * 0.3
                y = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
                torch.testing.assert_close(y, half(x), atol=1e-4, rtol=0)


class Masked(torch.nn.Module):
    """What a graph of a padded batch gives."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, audio, padding_mask):
        return self.model(audio, padding_mask=padding_mask, return_dict=False)[1:4:2]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_an_onnx_graph_of_the_tracing_exporter_serves_every_padding_mask(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    hop = model.config.hop_length
    example = torch.randn(2, 1, 3 * hop), torch.ones(2, 3 * hop, dtype=torch.int64)
    path = str(tmp_path / "model.onnx")
    names = ["audio", "padding_mask"]
    axes = {name: {0: "batch", 1 if name == "padding_mask" else 2: "samples"} for name in names}
    with torch.no_grad():
        torch.onnx.export(
            Masked(model), example, path, dynamo=False, input_names=names, dynamic_axes=axes
        )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for lengths in ([5 * hop, hop + 1], [4 * hop + 3, 2 * hop - 1, 2 * hop, 1]):
            audio = torch.randn(len(lengths), 1, lengths[0]) * 0.3
            mask = (torch.arange(lengths[0]) < torch.tensor(lengths)[:, None]).long()
            expected = model(audio, padding_mask=mask)
            inputs = dict(zip(names, (audio.numpy(), mask.numpy()), strict=True))
            values, codes = session.run(None, inputs)
            np.testing.assert_array_equal(codes, expected.audio_codes)
            np.testing.assert_allclose(values, expected.audio_values, atol=1e-4)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_negative_code_is_no_entry_for_a_trace_either():
    model = tiny_model().requires_grad_(False)
    codes = torch.zeros(1, 4, 3, dtype=torch.int64)
    with torch.no_grad():
        look_up = torch.jit.trace(lambda codes: model.quantizer.from_codes(codes)[0], codes)
        with pytest.raises(RuntimeError, match="out of range"):
            look_up(codes - 1)


class Scaled(torch.nn.Module):
    """An adapter around a layer, as LoRA puts one in its place."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, *args, **kwargs):
        return 1.5 * self.base_layer(*args, **kwargs)


def wrap(module, name):
    setattr(module, name, Scaled(getattr(module, name)))


def hook(module, name):
    getattr(module, name).register_forward_hook(lambda layer, inputs, output: output * 1.5)


def pre_hook(module, name):
    getattr(module, name).register_forward_pre_hook(
        lambda layer, inputs: inputs[0] * 1.5 if inputs[0].is_floating_point() else inputs[0] // 2
    )


class Half(torch.nn.Module):
    def forward(self, weight):
        return weight / 2


def parametrize(module, name):
    torch.nn.utils.parametrize.register_parametrization(getattr(module, name), "weight", Half())


@pytest.mark.parametrize("change", [wrap, hook, pre_hook, parametrize])
@pytest.mark.parametrize("name", ["in_proj", "out_proj", "codebook"])
def test_adapters_and_hooks_on_the_quantizer_work_with_and_without_gradients(change, name):
    model = tiny_model()
    z = torch.randn(2, 128, 30)
    with torch.no_grad():
        plain = model.quantizer(z)
        plain_sum = model.quantizer.from_codes(plain[1])[0]
    change(model.quantizer.quantizers[1], name)
    with_gradients = model.quantizer(z)
    looked_up = model.quantizer.from_codes(plain[1])
    with torch.no_grad():
        without = model.quantizer(z)
        looked_up_without = model.quantizer.from_codes(plain[1])
    assert not torch.equal(without[0], plain[0])
    for one, other in zip(with_gradients, without, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(looked_up[0], looked_up_without[0])
    assert name == "in_proj" or not torch.allclose(looked_up_without[0], plain_sum)


def test_a_hook_on_one_quantizer_is_called_without_gradients(model):
    seen = []
    model.quantizer.quantizers[2].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        model.quantizer(torch.randn(1, model.config.hidden_size, 3))
    assert seen == [1]
    with pytest.raises(ValueError, match="without adapters and forward hooks"):
        CodebookSearch(model.quantizer, 4)


def same_weights(one, other):
    ours, theirs = one.folded_state_dict(), other.folded_state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("normed_from", [False, True])
@pytest.mark.parametrize("normed_into", [False, True])
def test_folded_and_weight_normed_weights_load_into_each_other(normed_from, normed_into):
    source, target = tiny_model(seed=1), tiny_model(seed=2)
    with torch.no_grad():
        source.quantizer.quantizers[0].in_proj.weight[-1] = 0  # 0 / 0 has no direction
    if normed_from:
        source.apply_weight_norm()
    if normed_into:
        target.apply_weight_norm()
    target.load_state_dict(source.state_dict())
    same_weights(target, source)
    part = tiny_model(seed=3).encoder
    part.load_state_dict(source.encoder.state_dict())
    assert torch.allclose(part.conv1.weight, source.encoder.conv1.weight)


def test_old_weight_norm_keys_load_too():
    source, target = tiny_model(seed=1), tiny_model(seed=2)
    source.apply_weight_norm()
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in source.state_dict().items()
    }
    target.load_state_dict(old)
    same_weights(target, source)


def test_old_weight_norm_keys_load_as_they_are_where_weights_are_normed():
    source, target = tiny_model(seed=1), tiny_model(seed=2)
    for model in (source, target):
        model.apply_weight_norm()
    state = source.state_dict()
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): 2 * value
        for name, value in state.items()
    }
    target.load_state_dict(old)
    assert all(torch.equal(value, 2 * state[name]) for name, value in target.state_dict().items())


def test_a_model_is_pickled_after_weight_norm_was_applied_and_removed():
    model = tiny_model()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    model.apply_weight_norm()
    model.remove_weight_norm()
    again = pickle.loads(pickle.dumps(model)).state_dict()
    assert again.keys() == expected.keys()
    for name, value in again.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)


def test_a_pruned_model_is_saved_as_it_computes(tmp_path):
    model = tiny_model()
    prune.l1_unstructured(model.encoder.conv1, "weight", 0.5)
    prune.l1_unstructured(model.decoder.conv1, "bias", 0.5)
    prune.ln_structured(model.quantizer.quantizers[0].codebook, "weight", 0.5, n=2, dim=0)
    weight = model.encoder.conv1.weight.detach().clone()
    model.save_pretrained(tmp_path / "by itself")
    model.save_pretrained(tmp_path / "by a Trainer", state_dict=model.state_dict())
    audio = torch.randn(1, 1, 2048) * 0.3
    with torch.no_grad():
        expected = model(audio)
        for folder in tmp_path.iterdir():
            loaded = DacModel.from_pretrained(folder)
            assert torch.equal(loaded.encoder.conv1.weight, weight)
            computed = loaded(audio)  # in another order, as no hook is there
            assert torch.equal(computed.audio_codes, expected.audio_codes)
            torch.testing.assert_close(
                computed.audio_values, expected.audio_values, atol=1e-5, rtol=0
            )
    assert "encoder.conv1.weight_mask" in model.state_dict()


@pytest.mark.parametrize("trained", [False, True])
def test_a_copy_of_a_weight_normed_model_folds_alone(trained):
    model = tiny_model()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    model.apply_weight_norm()
    twin = copy.deepcopy(model).requires_grad_(trained)
    twin.remove_weight_norm()
    assert set(dict(twin.named_parameters())) == expected.keys()
    assert all(parameter.requires_grad == trained for parameter in twin.parameters())
    assert any("original1" in name for name in model.state_dict())
    model.remove_weight_norm()
    for net in (model, twin):
        assert type(net.encoder.conv1) is DacConv1d
        for name, value in net.state_dict().items():
            torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)


def test_a_given_weight_normed_state_dict_is_saved_folded(tmp_path):
    model = tiny_model()
    model.apply_weight_norm()
    model.save_pretrained(tmp_path, state_dict=model.state_dict())  # as Trainer calls it
    same_weights(DacModel.from_pretrained(tmp_path), model)
    stock_model = StockModel.from_pretrained(tmp_path)
    assert torch.equal(
        stock_model.encoder.conv1.weight, model.folded_state_dict()["encoder.conv1.weight"]
    )


@pytest.mark.parametrize("kind", [torch.from_numpy, lambda clip: clip])
def test_the_extractor_takes_one_channel_with_its_axis(kind):
    extractor = DacFeatureExtractor()
    clip = np.random.default_rng(0).standard_normal(700).astype(np.float32)
    expected = extractor(clip, sampling_rate=16000, return_tensors="pt")["input_values"]
    for raw in (kind(clip[None]), [kind(clip[None])], [kind(clip)]):
        features = extractor(raw, sampling_rate=16000, return_tensors="pt")
        assert torch.equal(features["input_values"], expected)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (np.array([0.0, np.nan]), "NaN"),
        (torch.tensor([0.0, torch.inf]), "NaN or infinite"),
        ([0.0, float("nan")], "NaN"),
        (np.zeros(5, np.int16), "floating-point audio .* got int16"),
        (torch.zeros(5, dtype=torch.int32), "floating-point audio .* got int32"),
        (torch.zeros(2, 5), r"mono audio, .* got shape \(2, 5\)"),
        (np.zeros((5, 1)), r"got shape \(5, 1\); give channels as clips"),
        ({"array": np.zeros(5), "sampling_rate": 16000}, "got .*dict; of a row of a data set"),
        ("speech.wav", "got .*str; .* of a file its samples"),
    ],
)
def test_the_extractor_refuses_what_is_no_audio(clip, message):
    for raw in (clip, [clip]):
        with pytest.raises(ValueError, match=message):
            DacFeatureExtractor()(raw, sampling_rate=16000)


def test_the_extractor_refuses_a_rate_in_place_of_a_clip():
    with pytest.raises(ValueError, match=r"got shape \(\); .* rates as sampling_rate"):
        DacFeatureExtractor()((np.zeros(5), 16000))


def test_the_extractor_warns_of_peaks_far_beyond_full_scale_as_the_codec_does():
    extractor = DacFeatureExtractor()
    assert MAX_PEAK == levels.MAX_PEAK
    loud = [np.array([0.1, -20000.0]), [100, 200]]
    with pytest.warns(UserWarning, match="peak of 20000; .* divide them by 32768") as all_:
        extractor(loud, sampling_rate=16000)
    assert [warning.filename for warning in all_] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor(np.array([0.1, -2.0]), sampling_rate=16000)


def test_a_replica_of_data_parallel_computes_the_same(model):
    # What torch's `replicate` makes on each device: modules whose weights are no parameters.
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            setattr(replica, name, replicas[child])
        for name, parameter in module._parameters.items():
            setattr(replica, name, parameter.detach())
    replica = replicas[model]
    assert not list(replica.parameters())
    audio = torch.randn(2, 1, 1000) * 0.3
    with torch.no_grad():
        assert torch.equal(replica(audio).audio_values, model(audio).audio_values)


@pytest.mark.parametrize("fields", [{}, {"hidden_size": 12, "gain_size": 4, "gain_bands": 2}])
@pytest.mark.parametrize("gradients", [False, True])
def test_one_graph_takes_padding_masks(gradients, fields):
    model = tiny_model(downsampling_ratios=[2, 4], **fields)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    audio = torch.randn(3, 1, 320) * 0.3
    with torch.set_grad_enabled(gradients):
        for lengths in ([320, 17, 100], [320, 320, 320]):
            mask = (torch.arange(320) < torch.tensor(lengths)[:, None]).long()
            ours, expected = compiled(audio, padding_mask=mask), model(audio, padding_mask=mask)
            assert torch.equal(ours.audio_codes, expected.audio_codes)
            torch.testing.assert_close(ours.audio_values, expected.audio_values, atol=1e-5, rtol=0)
            torch.testing.assert_close(ours.loss, expected.loss)


def test_models_and_configurations_are_those_of_transformers_too(model):
    assert isinstance(model, StockModel)
    assert isinstance(model.config, StockConfig)
    if not model.config.gain_size:  # which no model of transformers has
        assert model.state_dict().keys() == stock(model).state_dict().keys()
    assert type(model).config_class is type(model.config)
    assert DacConfig(hidden_size=24).hidden_size == 24


def test_a_configuration_of_transformers_makes_our_model(tmp_path):
    fields = {"encoder_hidden_size": 8, "decoder_hidden_size": 16, "downsampling_ratios": [2, 4]}
    model = DacModel(StockConfig(**fields, hop_length=512))
    assert type(model.config) is DacConfig
    assert (model.config.hop_length, model.config.sampling_rate) == (8, 16000)
    model.save_pretrained(tmp_path)
    config = StockConfig.from_pretrained(tmp_path)
    loaded = DacModel.from_pretrained(tmp_path, config=config, dtype=torch.bfloat16)
    assert loaded.dtype == loaded.config.dtype == torch.bfloat16
    assert loaded.config.name_or_path == str(tmp_path)


def test_a_configuration_of_another_network_is_refused():
    for kind, config, right in (
        (DacModel, CausalDacConfig(), "CausalDacModel"),
        (CausalDacModel, DacConfig(), "DacModel"),
        (CausalDacModel, StockConfig(), "DacModel"),
    ):
        with pytest.raises(ValueError, match=f"expected a model of type .* load it by {right}"):
            kind(config)
