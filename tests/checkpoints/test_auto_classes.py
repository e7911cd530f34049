"""transformers' Auto classes on folders that we saved, in fresh processes that nobody can answer."""

import json
import os
import subprocess
import sys

import pytest
import torch
from tiny import GEOMETRIES, tiny_model
from transformers import AutoProcessor

from codecplus import Codec, DacFeatureExtractor
from codecplus.modeling_dac import CausalDacFeatureExtractor

PROBE = """
import json, sys
plain, causal, codes, first = sys.argv[1:]
if first == "codecplus":
    import codecplus
    assert "torch" not in sys.modules and "transformers" not in sys.modules
import torch
if first == "transformers":
    import transformers.models.auto.modeling_auto
    import codecplus
seen = {"codes": [type(torch.load(codes)).__name__, torch.load(codes).num_samples]}
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor
from transformers import AutoModelForAudioTokenization
for name, folder in (("plain", plain), ("causal", causal)):
    for auto in (
        AutoConfig, AutoModel, AutoModelForAudioTokenization, AutoFeatureExtractor, AutoProcessor
    ):
        try:
            kind = type(auto.from_pretrained(folder))
            seen[f"{name} {auto.__name__}"] = [kind.__module__.split(".")[0], kind.__name__]
        except ValueError as error:
            seen[f"{name} {auto.__name__}"] = ["trust_remote_code" in str(error)]
print(json.dumps(seen))
"""


FILES = ("plain", "causal", "codes.pt")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("auto")
    for name, causal in (("plain", False), ("causal", True)):
        model = tiny_model(causal, **GEOMETRIES["16khz"])
        extractor = DacFeatureExtractor(sampling_rate=16000, hop_length=320)
        saved = [model, extractor] if causal else [extractor, model]
        for part in saved:
            part.save_pretrained(root / name)
    torch.save(Codec(model).encode(torch.zeros(700)), root / "codes.pt")
    return root


def probe(folders, first: str) -> dict:
    run = subprocess.run(
        [sys.executable, "-c", PROBE, *(folders / name for name in FILES), first],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"HF_HOME": str(folders / "hf"), "HF_HUB_OFFLINE": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "custom code" not in run.stdout, "a question was asked"
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("first", ["codecplus", "transformers"])
def test_auto_classes_and_torch_load_what_we_saved_and_ask_nothing(folders, first):
    assert probe(folders, first) == {
        "codes": ["CodesTensor", 700],
        "plain AutoConfig": ["transformers", "DacConfig"],
        "plain AutoModel": ["transformers", "DacModel"],
        "plain AutoModelForAudioTokenization": ["transformers", "DacModel"],
        "plain AutoFeatureExtractor": ["transformers", "DacFeatureExtractor"],
        "plain AutoProcessor": ["transformers", "DacFeatureExtractor"],
        "causal AutoConfig": ["codecplus", "CausalDacConfig"],
        "causal AutoModel": ["codecplus", "CausalDacModel"],
        "causal AutoModelForAudioTokenization": ["codecplus", "CausalDacModel"],
        "causal AutoFeatureExtractor": ["codecplus", "CausalDacFeatureExtractor"],
        "causal AutoProcessor": ["codecplus", "CausalDacFeatureExtractor"],
    }


@pytest.mark.parametrize("model_first", [False, True])
def test_an_extractor_beside_a_causal_model_is_ours_in_either_order(tmp_path, model_first):
    model = tiny_model(True, **GEOMETRIES["16khz"])
    extractor = DacFeatureExtractor(sampling_rate=16000, hop_length=320, padding_value=0.5)
    for part in [model, extractor] if model_first else [extractor, model]:
        part.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is CausalDacFeatureExtractor
    assert (loaded.hop_length, loaded.padding_value) == (320, 0.5)
    assert type(extractor) is DacFeatureExtractor


@pytest.mark.parametrize("kind", [DacFeatureExtractor, CausalDacFeatureExtractor])
def test_a_saved_extractor_is_the_same_extractor(tmp_path, kind):
    # So asks transformers' common test of extractors.
    extractor = kind(sampling_rate=8000, hop_length=15)
    extractor.save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).to_dict() == extractor.to_dict()
