"""Embedded names in `from_pretrained`, what a model is called afterwards, and that nothing is
printed.
"""

import json
import threading

import pytest
import torch
from tiny import tiny_model
from transformers.utils import logging

from codecplus import CausalDacConfig, CausalDacModel, DacConfig, DacFeatureExtractor, DacModel
from codecplus.checkpoints import embedded_names, fingerprint, load_model

CLASSES = {
    "dac-44khz-small": (DacModel, DacConfig, 44100, 512),
    "dac-16khz-live": (CausalDacModel, CausalDacConfig, 16000, 320),
}


@pytest.mark.parametrize("name", CLASSES)
def test_embedded_names_load_by_every_class(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    model_class, config_class, rate, hop = CLASSES[name]
    model = model_class.from_pretrained(name)
    assert type(model) is model_class
    assert not model.training
    assert fingerprint(model) == fingerprint(load_model(name))
    config = config_class.from_pretrained(name)
    assert (config.sampling_rate, config.hop_length) == (rate, hop)
    extractor = DacFeatureExtractor.from_pretrained(name)
    assert (extractor.sampling_rate, extractor.hop_length) == (rate, hop)
    half, report = model_class.from_pretrained(name, dtype=torch.bfloat16, output_loading_info=True)
    assert half.dtype == torch.bfloat16
    assert not report["missing_keys"]
    assert capfd.readouterr() == ("", "")


def test_every_embedded_checkpoint_is_tried():
    assert set(CLASSES) == set(embedded_names())


@pytest.mark.parametrize("load", [CausalDacModel.from_pretrained, load_model])
def test_a_model_is_called_by_its_name_and_no_file_names_a_machine(load, tmp_path):
    model = load("dac-16khz-live")
    assert model.name_or_path == model.config.name_or_path == "dac-16khz-live"
    for folder in (tmp_path / "one", tmp_path / "two"):
        model.save_pretrained(folder)
        DacFeatureExtractor.from_pretrained("dac-16khz-live").save_pretrained(folder)
        model = load(folder)
    for path in tmp_path.rglob("*.json"):
        text = path.read_text()
        assert str(tmp_path) not in text
        assert "embedded" not in text
        assert "_name_or_path" not in json.loads(text)


def test_the_class_that_loads_another_embedded_name_is_named():
    with pytest.raises(ValueError, match="load it by CausalDacModel"):
        DacModel.from_pretrained("dac-16khz-live")


def test_an_extractor_follows_from_the_model_where_none_was_saved(tmp_path):
    tiny_model(downsampling_ratios=[2, 4], sampling_rate=8000).save_pretrained(tmp_path)
    extractor = DacFeatureExtractor.from_pretrained(tmp_path)
    assert (extractor.sampling_rate, extractor.hop_length) == (8000, 8)
    with pytest.raises(OSError, match="nowhere"):
        DacFeatureExtractor.from_pretrained(tmp_path / "nowhere")


def test_folders_are_saved_and_loaded_without_bars_and_other_bars_stay(tmp_path, capfd):
    logging.enable_progress_bar()  # a verb that another test ran here may have disabled it
    model = tiny_model(downsampling_ratios=[2, 4])
    model.save_pretrained(tmp_path)
    loading = threading.Thread(target=lambda: [DacModel.from_pretrained(tmp_path) for _ in "123"])
    loading.start()
    while loading.is_alive():
        list(logging.tqdm([1], desc="another model", mininterval=0))
    loading.join()
    list(logging.tqdm([1], desc="another model"))
    err = capfd.readouterr().err
    assert "another model" in err
    assert "Loading" not in err
    assert "Writing" not in err
    assert logging.is_progress_bar_enabled()
