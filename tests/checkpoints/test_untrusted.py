"""A hostile checkpoint is one clear error, in bounded time and memory."""

import json
import os
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import GEOMETRIES, tiny_model

from codecplus import CausalDacModel, DacModel, load_codec
from codecplus.bitstream import EntropyModel
from codecplus.checkpoints import load_model
from codecplus.errors import CheckpointError, CodecPlusError, FileFormatError


@pytest.fixture
def folder(tmp_path):
    tiny_model(**GEOMETRIES["odd"]).save_pretrained(tmp_path)
    return tmp_path


def change(folder, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture(autouse=True)
def quick():
    """Every refusal of this module takes seconds at most."""
    start = time.process_time()
    yield
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    "fields",
    [
        {"n_codebooks": 10**9},
        {"num_labels": 10**8},
        {"num_labels": -1},
        {"codebook_size": 1 << 40},
        {"codebook_dim": 10**9},
        {"encoder_hidden_size": 1 << 30},
        {"decoder_hidden_size": 1 << 40},
        {"hidden_size": 10**9},
        {"downsampling_ratios": [2] * 100},
        {"downsampling_ratios": [10**9]},
        {"downsampling_ratios": "ratios"},
        {"downsampling_ratios": [3.5]},
        {"sampling_rate": 10**12},
        {"sampling_rate": 0},
        {"sampling_rate": "fast"},
    ],
    ids=str,
)
def test_numbers_that_no_codec_has_are_refused(folder, fields):
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=next(iter(fields))):
        load_codec(folder)
    with pytest.raises(CheckpointError):
        load_codec(folder / "model.safetensors")
    with pytest.raises(Exception, match=next(iter(fields))):  # huggingface_hub's or ValueError
        DacModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attn_implementation", "kernels-community/flash-attn"),
        ("_attn_implementation", "someone/kernel@main:forward"),
        ("experts_implementation", {"": "someone/kernel"}),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ("quantization_config", "text"),
    ],
)
def test_a_configuration_that_names_code_to_run_is_refused(folder, name, value):
    change(folder, **{name: value})
    for source in (folder, folder / "model.safetensors"):
        with pytest.raises(CheckpointError, match=rf"^expected no {name} in .*config\.json, got"):
            load_codec(source)
    change(folder, **{name: None, "attn_implementation": "eager"})
    assert load_codec(folder).config.n_codebooks == 4


@pytest.mark.parametrize("fields", [{"n_codebooks": True}, {"sampling_rate": 0.5}])
def test_a_number_of_another_type_is_named_with_what_it_should_be(folder, fields):
    (name,) = fields
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=f"'{name}': TypeError: .* expected int, got"):
        load_codec(folder)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "7",
        "null",
        "{",
        "",
        "[" * 100_000,
        '{"a": ' * 100_000,
        "\ud800".encode("utf-8", "surrogatepass"),
    ],
    ids=["list", "number", "null", "brace", "empty", "deep", "deeper", "not text"],
)
def test_a_configuration_that_is_no_object_is_refused(folder, text):
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    for name in (folder, folder / "model.safetensors"):
        with pytest.raises(CheckpointError, match=r"expected .*JSON"):
            load_codec(name)


@pytest.mark.parametrize("model_type", [[], {}, 7, "bert", None])
def test_another_model_type_is_refused(folder, model_type):
    change(folder, model_type=model_type)
    for name in (folder, folder / "model.safetensors"):
        with pytest.raises(CheckpointError, match="type"):
            load_codec(name)


def test_large_networks_in_small_files_cost_no_memory(folder):
    change(folder, decoder_hidden_size=1 << 15, encoder_hidden_size=1 << 13, hidden_size=None)
    for name in (folder, folder / "model.safetensors"):
        with pytest.raises(CheckpointError, match="do not belong together"):
            load_model(name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "entropy.safetensors"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_pipes_and_folders_under_the_name_of_a_file_are_refused(folder, name, kind):
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("needs named pipes")
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=f"expected a file at .*{name}, got a"):
        load_codec(folder)


def test_entropy_models_come_from_the_folder_that_was_named(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "entropy.safetensors").write_bytes(b"no entropy model")
    change(folder, _name_or_path=str(elsewhere))
    load_codec(folder)
    load_codec(folder / "model.safetensors")


def test_an_adapter_does_not_lead_to_the_weights_of_another_folder(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    tiny_model(**GEOMETRIES["odd"], seed=1).save_pretrained(elsewhere)
    own = load_codec(folder).fingerprint
    adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["in_proj"]}
    adapter["base_model_name_or_path"] = str(elsewhere)
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(CheckpointError, match=r"with an adapter of PEFT.*merge_and_unload"):
        load_codec(folder)
    assert load_codec(folder / "model.safetensors").fingerprint == own


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "nowhere.safetensors"])
def test_shards_lie_in_the_folder(folder, shard):
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"encoder.conv1.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"expected (weights beside|a file at)"):
        load_codec(folder)


def test_shapes_that_are_not_in_the_file_are_refused(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    name = next(iter(state))
    save_file({**state, name: torch.zeros(3, 3)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError):
        load_codec(folder)
    header = json.dumps({name: {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(CheckpointError):
        load_codec(folder)


@pytest.mark.parametrize(
    "header",
    [
        '{"__metadata__": {"codecplus": "' + "[" * 100_000 + '"}}',
        "[" * 100_000,
        "[]",
        '{"__metadata__": []}',
        '{"__metadata__": {"codecplus": "[]"}}',
        '{"__metadata__": {"codecplus": "{\\"version\\": [], \\"fingerprint\\": 7}"}}',
    ],
    ids=["deep", "deeper", "list", "empty", "no object", "types"],
)
def test_side_files_of_another_kind_are_one_error(header):
    data = len(header).to_bytes(8, "little") + header.encode()
    with pytest.raises(FileFormatError, match="entropy model"):
        EntropyModel.from_bytes(data)


def test_a_damaged_entropy_model_is_named(folder):
    (folder / "entropy-old.safetensors").write_bytes(b"not one")
    with pytest.raises(FileFormatError, match=r"entropy-old\.safetensors: expected an entropy"):
        load_codec(folder)


def test_a_whole_folder_loads_and_its_errors_are_errors_of_this_package(folder):
    assert issubclass(CheckpointError, CodecPlusError)
    assert isinstance(load_model(folder), DacModel)
    assert not isinstance(load_model(folder), CausalDacModel)
