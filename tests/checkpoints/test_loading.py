"""Names, folders, files and Hub layouts to models; and what other processes make of what we save."""

import json
import subprocess
import sys

import pytest
import torch
from tiny import GEOMETRIES, tiny_model
from transformers import DacConfig as StockConfig
from transformers import DacModel as StockModel

from codecplus import CausalDacModel, DacFeatureExtractor, DacModel, load_codec
from codecplus.checkpoints import embedded_names, fingerprint, load_model, write_official
from codecplus.errors import CheckpointError


def same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name].float(), b[name].float()) for name in a)


@pytest.mark.parametrize("causal", [False, True])
def test_every_form_of_a_model_loads_by_one_call(tmp_path, causal):
    model = tiny_model(causal)
    model.save_pretrained(tmp_path / "folder")
    forms = [tmp_path / "folder", tmp_path / "folder" / "model.safetensors"]
    if not causal:
        write_official(model, tmp_path / "model.pth")
        forms.append(tmp_path / "model.pth")
    for form in forms:
        again = load_model(str(form))
        assert type(again) is (CausalDacModel if causal else DacModel)
        assert not again.training
        assert fingerprint(again) == fingerprint(model), form


def test_the_stock_layout_loads_both_ways(tmp_path):
    StockModel(StockConfig(encoder_hidden_size=8, decoder_hidden_size=16)).save_pretrained(
        tmp_path / "stock"
    )
    ours = load_model(tmp_path / "stock")
    assert same(ours, StockModel.from_pretrained(tmp_path / "stock"))
    ours.save_pretrained(tmp_path / "ours")
    assert same(StockModel.from_pretrained(tmp_path / "ours"), ours)


def test_a_narrow_latent_survives_the_stock_class(tmp_path):
    model = tiny_model(hidden_size=24)  # as the released 44 kHz 16 kbit/s model has
    model.save_pretrained(tmp_path)
    audio = torch.randn(1, 1, 2048) * 0.3
    with torch.no_grad():
        theirs = StockModel.from_pretrained(tmp_path)(audio)
    assert torch.equal(model(audio).audio_codes, theirs.audio_codes)


def test_weight_norm_is_folded_in_what_is_saved(tmp_path):
    model = tiny_model()
    model.apply_weight_norm()
    model.save_pretrained(tmp_path)
    model.remove_weight_norm()
    again = DacModel.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


PROBE = """
import sys
from transformers import AutoFeatureExtractor, AutoModel
trust = sys.argv[2] == "trust"
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=trust)
extractor = AutoFeatureExtractor.from_pretrained(sys.argv[1], trust_remote_code=trust)
import torch
codes = model.encode(torch.linspace(-1, 1, model.config.hop_length * 3)[None, None]).audio_codes
print(type(model).__module__.split(".")[0], type(model).__name__, type(extractor).__name__, int(codes.sum()))
assert not any(name.startswith("codecplus") for name in sys.modules)
"""


@pytest.mark.parametrize(
    ("causal", "trust"),
    [(False, "no"), pytest.param(False, "trust", marks=pytest.mark.slow), (True, "trust")],
)
def test_a_saved_folder_loads_in_a_process_without_codecplus(tmp_path, causal, trust):
    model = tiny_model(causal, **GEOMETRIES["16khz"])
    model.save_pretrained(tmp_path / "m")
    DacFeatureExtractor(hop_length=320).save_pretrained(tmp_path / "m")
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "modeling_dac.py",
        "layers_dac.py",
        "configuration_dac.py",
    } <= names
    run = subprocess.run(
        [sys.executable, "-c", PROBE, tmp_path / "m", trust],
        capture_output=True,
        text=True,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": ""},
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    home, name, extractor, total = run.stdout.split()
    assert home == ("transformers_modules" if trust == "trust" else "transformers")
    assert name == type(model).__name__
    assert extractor == ("CausalDacFeatureExtractor" if causal else "DacFeatureExtractor")
    codes = model.encode(torch.linspace(-1, 1, 960)[None, None]).audio_codes
    assert int(total) == int(codes.sum())


def test_a_causal_model_loads_by_auto_classes_once_codecplus_is_imported(tmp_path):
    from transformers import AutoModel

    tiny_model(causal=True).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is CausalDacModel


def test_device_map_places_it(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    placed = DacModel.from_pretrained(tmp_path, device_map="auto")
    audio = torch.randn(1, 1, 1024)
    assert torch.equal(placed(audio).audio_codes, model(audio).audio_codes)


def test_weights_offloaded_to_disk_still_run(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "m")
    placed = DacModel.from_pretrained(
        tmp_path / "m",
        device_map={"encoder": "cpu", "decoder": "cpu", "quantizer": "disk"},
        offload_folder=tmp_path / "off",
    )
    audio = torch.randn(1, 1, 1024)
    with torch.no_grad():
        assert torch.equal(placed(audio).audio_codes, model(audio).audio_codes)


def test_only_safetensors_are_written(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".bin", ".pt", ".pth")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dac-44khz-smal", "there is no checkpoint 'dac-44khz-smal'; give dac-44khz-small"),
        ("./nowhere", "there is no checkpoint './nowhere'"),
        ("nobody/nothing-of-this-name", "cannot find a model at 'nobody/nothing-of-this-name'"),
    ],
)
def test_an_unknown_name_says_what_there_is(name, message):
    with pytest.raises(CheckpointError, match=message) as error:
        load_codec(name)
    assert "\n" not in str(error.value)


def test_no_model_stands_in_for_another(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "encodec"}))
    with pytest.raises(CheckpointError, match="of type 'encodec'; expected 'dac'"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"a \.safetensors or a \.pth file"):
        load_model(tmp_path / "config.json")


def test_weights_that_do_not_fit_are_refused(tmp_path):
    tiny_model(n_codebooks=2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_codebooks": 3}))
    with pytest.raises(CheckpointError, match="lack 5 tensors"):
        load_model(tmp_path)


def test_embedded_checkpoints_are_small_and_loadable():
    assert embedded_names() == ["dac-16khz-live", "dac-44khz-small"]
    for name in embedded_names():
        model = load_model(name)
        size = sum(parameter.numel() for parameter in model.parameters()) * 2
        assert size <= 20e6
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert model.dtype == torch.float32


def test_the_embedded_44khz_checkpoint_is_one_for_stock_transformers():
    from codecplus.checkpoints.loading import EMBEDDED_FOLDER

    audio = torch.sin(torch.arange(8192) / 20)[None, None] * 0.3
    theirs = StockModel.from_pretrained(EMBEDDED_FOLDER / "dac-44khz-small").eval().float()
    ours = load_model("dac-44khz-small")
    gains = ours.gain_codebooks()
    waveform = [k for k in range(ours.config.n_codebooks) if k not in gains]
    with torch.no_grad():
        codes = ours.encode(audio).audio_codes
        assert torch.equal(theirs.encode(audio).audio_codes[:, waveform], codes[:, waveform])
        # It knows nothing of band gains, and plays the waveform.
        latents = ours.quantizer.from_codes(codes)[0][:, : ours.config.waveform_size]
        torch.testing.assert_close(
            theirs.decode(audio_codes=codes).audio_values,
            ours.decoder.waveform(latents)[:, 0],
            atol=1e-4,
            rtol=0,
        )


@pytest.mark.parametrize("causal", [False, True])
def test_a_model_of_the_other_kind_is_refused_with_the_class_that_loads_it(tmp_path, causal):
    tiny_model(causal).save_pretrained(tmp_path)
    right, wrong = (CausalDacModel, DacModel) if causal else (DacModel, CausalDacModel)
    with pytest.raises(ValueError, match=f"; load it by {right.__name__}$"):
        wrong.from_pretrained(tmp_path)
    assert type(right.from_pretrained(tmp_path)) is right
