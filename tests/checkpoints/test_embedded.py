"""Embedded checkpoints run without transformers, as the model that transformers would load."""

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers.models.dac.modeling_dac import DacModel as StockDacModel

from codecplus import Codec, DacModel, load_codec
from codecplus.checkpoints import embedded as loading
from codecplus.checkpoints import embedded_names, load_embedded, load_model
from codecplus.errors import CheckpointError
from codecplus.modeling_dac import PlainDac

SMALL = "dac-16khz-live"


def clip(samples: int = 6000) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(samples).astype(np.float32)


def test_a_codec_compresses_without_transformers():
    code = f"""
import sys
import numpy as np
from codecplus import load_codec
codec = load_codec({SMALL!r})
data = codec.compress(np.zeros(640, np.float32))
codec.decompress(data)
codec.encoder_stream().push(np.zeros(640, np.float32))
assert repr(codec)
assert not {{"transformers", "torch._dynamo", "scipy", "huggingface_hub"}} & set(sys.modules)
assert type(codec.model).__mro__[-1] is object and "transformers" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", embedded_names())
def test_both_ways_of_loading_give_one_model(name):
    plain, full = load_embedded(name), load_model(name)
    weights, expected = plain.state_dict(), full.state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert not plain.training
    for size in ("hop_length", "upsampling_ratios", "frame_rate", "bits_per_codebook"):
        assert getattr(plain.config, size) == getattr(full.config, size)
    for size in ("activations_per_frame", "codebook_dim", "hidden_size", "causal", "model_type"):
        assert getattr(plain.config, size) == getattr(full.config, size)
    assert plain.encoder_reach == full.encoder_reach
    assert plain.decoder_reach == full.decoder_reach
    codes = [Codec(model).encode(clip()) for model in (plain, full)]
    assert np.array_equal(*codes)
    assert np.array_equal(*(Codec(model).decode(codes[0]) for model in (plain, full)))


def test_what_is_done_to_the_model_takes_effect():
    codec = load_codec(SMALL, dtype="float32", kernels=False)
    before = codec.encode(clip())
    model = codec.model
    assert isinstance(model, DacModel)
    assert isinstance(model, StockDacModel)
    assert codec.model is model
    assert codec.network.model is model
    assert not model.encoder.snake1.allow_kernels
    assert model.name_or_path == SMALL
    assert np.array_equal(codec.encode(clip()), before)
    hook = model.encoder.register_forward_hook(lambda module, inputs, output: -output)
    assert not np.array_equal(codec.encode(clip()), before)
    hook.remove()
    assert np.array_equal(codec.encode(clip()), before)
    with torch.no_grad():
        model.encoder.conv2.bias += 1
    assert not np.array_equal(codec.encode(clip()), before)


def test_the_model_is_what_the_codec_was_made():
    codec = load_codec(SMALL).to("bfloat16")
    weight = codec.network.model.encoder.conv1.weight
    assert codec.model.dtype == torch.bfloat16
    assert codec.model.encoder.conv1.weight.data_ptr() == weight.data_ptr()  # no second copy
    assert codec.model.encoder.conv1.weight.requires_grad
    assert codec.dtype == "bfloat16"


def test_threads_get_one_model():
    codec = load_codec(SMALL)
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: codec.model, range(8)))
    assert len(set(map(id, models))) == 1


def test_copies_and_pickles_of_a_codec_are_whole():
    codec = load_codec(SMALL)
    expected = codec.encode(clip())
    for other in (copy.deepcopy(codec), pickle.loads(pickle.dumps(codec))):
        assert isinstance(other._served.form, PlainDac)
        assert np.array_equal(other.encode(clip()), expected)
        assert isinstance(other.model, DacModel)


def test_a_damaged_installation_is_named(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text("{}")
    (tmp_path / "x" / "model.safetensors").write_bytes(b"nothing")
    monkeypatch.setattr(loading, "EMBEDDED_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match=r"the embedded checkpoint x in .* is damaged"):
        load_embedded("x")
