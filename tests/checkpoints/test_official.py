"""Against vectors of the original implementation, and back into its format."""

import numpy as np
import pytest
import torch
from tiny import FIXTURES, GEOMETRIES, KINDS, tiny_model

from codecplus import Codec
from codecplus.checkpoints import fingerprint, read_official, write_official
from codecplus.checkpoints.official import fold_weight_norm
from codecplus.errors import CheckpointError

pytestmark = pytest.mark.reference


@pytest.fixture(params=["even44k", "odd16k"], scope="module")
def vectors(request):
    return read_official(FIXTURES / f"{request.param}.pth"), dict(
        np.load(FIXTURES / f"{request.param}.npz")
    )


def share_that_differs(ours: np.ndarray, theirs: np.ndarray) -> float:
    # These nets saturate: every sample is ±1, and one whose sum is near 0 can take either sign.
    return float(np.mean(np.abs(ours - theirs) > 1e-4))


@torch.no_grad()
def summed(model, latents, codes):
    """The straight-through sum of projected latents (K * d, T) and their codes (K, T)."""
    total = torch.zeros(())
    parts = latents.chunk(len(codes))
    for quantizer, part, indices in zip(model.quantizer.quantizers, parts, codes, strict=True):
        entries = quantizer.codebook(indices.long()).T
        total = total + quantizer.out_proj((part + (entries - part))[None])[0]
    return total


@pytest.mark.parametrize(("codebooks", "suffix"), [(None, ""), (4, "_q4")])
def test_codes_and_audio_equal_the_original(vectors, codebooks, suffix):
    model, arrays = vectors
    audio = torch.from_numpy(arrays["audio"])[None, None]
    with torch.no_grad():
        out = model(audio, n_quantizers=codebooks)
    assert np.mean(out.audio_codes[0].numpy() == arrays["codes" + suffix]) >= 0.999
    reconstruction = arrays["reconstruction" + suffix]
    assert out.audio_values.shape[-1] == len(arrays["audio"])
    # Codes reach 7e6 here: what the straight-through sum keeps of an entry beside them is one
    # rounding, and where that goes the other way, a frame and its neighbours sound different.
    assert (
        share_that_differs(out.audio_values[0, : len(reconstruction)].numpy(), reconstruction) < 0.1
    )
    if codebooks is None:
        difference = np.abs(out.quantized_representation[0].numpy() - arrays["z"])
        assert np.mean(difference > 1e-5) < 0.01
        # That rounding is all that differs: of the original's latents our layers make its z.
        latents, codes = torch.from_numpy(arrays["latents"]), torch.from_numpy(arrays["codes"])
        np.testing.assert_allclose(summed(model, latents, codes), arrays["z"], rtol=0, atol=1e-5)
        with torch.no_grad():
            audio = model.decode(torch.from_numpy(arrays["z"])[None]).audio_values[0]
        assert share_that_differs(audio[: len(reconstruction)].numpy(), reconstruction) < 2e-4
        np.testing.assert_allclose(
            out.projected_latents[0].numpy(), arrays["latents"], rtol=1e-3, atol=200
        )


@pytest.mark.parametrize("kind", ["whole", "chunked"])
@pytest.mark.parametrize("name", ["even44k", "odd16k"])
def test_official_files_decode_as_the_original_decodes_them(name, kind):
    codec = Codec(read_official(FIXTURES / f"{name}.pth"))
    expected = np.load(FIXTURES / f"{name}.npz")[f"{kind}_reconstruction"]
    audio = codec.decompress(FIXTURES / f"{name}_{kind}.dac")
    assert np.isfinite(audio).all()
    if (name, kind) == ("odd16k", "whole"):  # the original cannot decode its own file
        assert audio.shape == (40000,)
    else:
        assert audio.shape == expected.shape
        # The gain to the measured loudness is of one flip's size off when a sample flips.
        assert np.mean(np.abs(audio - expected) > 1e-3) < 1e-4


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_written_and_read_again_is_the_same_model(tmp_path, geometry):
    model = tiny_model(**GEOMETRIES[geometry], hidden_size=24)
    with torch.no_grad():
        model.quantizer.quantizers[0].in_proj.weight[-1] = 0  # weight norm has no direction for it
    write_official(model, tmp_path / "model.pth")
    again = read_official(tmp_path / "model.pth")
    assert again.config.to_dict() == model.config.to_dict() | {
        "architectures": again.config.architectures
    }
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


def test_the_original_names_and_shapes_are_written(tmp_path):
    written = torch.load(FIXTURES / "odd16k.pth", weights_only=True)
    write_official(read_official(FIXTURES / "odd16k.pth"), tmp_path / "model.pth")
    again = torch.load(tmp_path / "model.pth", weights_only=True)
    assert {k: v.shape for k, v in again["state_dict"].items()} == {
        k: v.shape for k, v in written["state_dict"].items()
    }
    assert again["metadata"]["kwargs"] == written["metadata"]["kwargs"]
    ours, theirs = fold_weight_norm(again["state_dict"]), fold_weight_norm(written["state_dict"])
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


def test_weight_norm_of_either_spelling_folds_as_torch_does():
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(3, 4, 5))
    old = {
        "c.weight_g": conv.parametrizations.weight.original0 * 2,
        "c.weight_v": conv.parametrizations.weight.original1,
        "c.bias": conv.bias,
    }
    new = {f"c.{name}": value for name, value in conv.state_dict().items()}
    torch.testing.assert_close(fold_weight_norm(old)["c.weight"], 2 * conv.weight)
    torch.testing.assert_close(fold_weight_norm(new)["c.weight"], conv.weight)
    assert fold_weight_norm(new).keys() == {"c.weight", "c.bias"}


def test_a_pickled_model_is_refused_by_its_own_reason(tmp_path):
    from torch.package import PackageExporter

    net = torch.nn.Conv1d(1, 1, 3)
    with PackageExporter(tmp_path / "package.pth") as exporter:
        exporter.extern("torch.**")
        exporter.save_pickle("DAC", "DAC.pth", net)
    torch.save(net, tmp_path / "module.pth")
    torch.save({"state_dict": net, "metadata": {}}, tmp_path / "inside.pth")
    for name in ("package.pth", "module.pth", "inside.pth"):
        with pytest.raises(CheckpointError, match=r"would run .* give the weights\.pth"):
            read_official(tmp_path / name)


def test_a_hostile_pth_runs_nothing(tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "model.pth").write_bytes(pickle.dumps({"state_dict": Trap()}))
    with pytest.raises(CheckpointError, match="plain tensors"):
        read_official(tmp_path / "model.pth")
    torch.save(
        {"state_dict": {}, "metadata": {"kwargs": {"encoder_dim": Trap()}}}, tmp_path / "other.pth"
    )
    with pytest.raises(CheckpointError, match="plain tensors"):
        read_official(tmp_path / "other.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({}, "not a checkpoint of the original DAC"),
        ({"state_dict": {}, "metadata": {"kwargs": {"codebook_size": 1000}}}, "power of two"),
        (
            {"state_dict": {}, "metadata": {"kwargs": {"encoder_dim": 4, "decoder_dim": 16}}},
            "Missing key",
        ),
        (
            {"state_dict": {}, "metadata": {"kwargs": {"decoder_rates": [2, 2]}}},
            "the encoder's reversed",
        ),
    ],
)
def test_another_checkpoint_is_refused_in_a_sentence(tmp_path, checkpoint, message):
    torch.save(checkpoint, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        read_official(tmp_path / "model.pth")
    assert "\n" not in str(error.value)


def test_what_the_original_lacks_has_no_official_form(tmp_path):
    with pytest.raises(CheckpointError, match="no causal DAC"):
        write_official(tiny_model(causal=True), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="no band gains"):
        write_official(tiny_model(**KINDS["gains", False]), tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())


def test_fingerprints_tell_models_apart_and_survive_casts():
    model = tiny_model()
    mark = fingerprint(model)
    assert len(mark) == 16
    assert fingerprint(tiny_model()) == mark
    assert fingerprint(tiny_model().to(torch.bfloat16)) == mark
    assert fingerprint(tiny_model(seed=1)) != mark
    wide, narrow = (
        tiny_model(**{**KINDS["gains", False], "gain_linear_hz": hz}) for hz in (2e3, 4e3)
    )
    assert fingerprint(wide) != fingerprint(narrow)  # the tensors are the same
    model.decoder.conv2.bias.data += 0.1
    assert fingerprint(model) != mark
