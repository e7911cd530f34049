"""transformers' Auto classes on folders that we saved, in fresh processes that nobody can answer."""

import json
import os
import subprocess
import sys

import pytest
from tiny import GEOMETRIES, tiny_model
from transformers import AutoProcessor

from codecplus import DacFeatureExtractor
from codecplus.modeling_dac import CausalDacFeatureExtractor

PROBE = """
import json, sys
plain, causal, first = sys.argv[1:]
if first == "codecplus":
    import codecplus
    assert "torch" not in sys.modules and "transformers" not in sys.modules
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor
if first == "transformers":
    import codecplus
seen = {}
for name, folder in (("plain", plain), ("causal", causal)):
    for auto in (AutoConfig, AutoModel, AutoFeatureExtractor, AutoProcessor):
        try:
            kind = type(auto.from_pretrained(folder))
            seen[f"{name} {auto.__name__}"] = [kind.__module__.split(".")[0], kind.__name__]
        except ValueError as error:
            seen[f"{name} {auto.__name__}"] = ["trust_remote_code" in str(error)]
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("auto")
    for name, causal in (("plain", False), ("causal", True)):
        model = tiny_model(causal, **GEOMETRIES["16khz"])
        extractor = DacFeatureExtractor(sampling_rate=16000, hop_length=320)
        saved = [model, extractor] if causal else [extractor, model]
        for part in saved:
            part.save_pretrained(root / name)
    return root


def probe(folders, first: str) -> dict:
    run = subprocess.run(
        [sys.executable, "-c", PROBE, folders / "plain", folders / "causal", first],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"HF_HOME": str(folders / "hf"), "HF_HUB_OFFLINE": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "custom code" not in run.stdout, "a question was asked"
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("first", ["codecplus", "transformers"])
def test_every_auto_class_loads_what_we_saved_and_asks_nothing(folders, first):
    assert probe(folders, first) == {
        "plain AutoConfig": ["transformers", "DacConfig"],
        "plain AutoModel": ["transformers", "DacModel"],
        "plain AutoFeatureExtractor": ["transformers", "DacFeatureExtractor"],
        "plain AutoProcessor": ["transformers", "DacFeatureExtractor"],
        "causal AutoConfig": ["codecplus", "CausalDacConfig"],
        "causal AutoModel": ["codecplus", "CausalDacModel"],
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
