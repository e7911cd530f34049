"""Cards say what was measured with these very weights, and carry metadata that the Hub understands."""

import json
import os
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from tiny import GEOMETRIES, tiny_model

from codecplus.checkpoints import fingerprint, load_model
from codecplus.errors import CodecPlusError, FileFormatError, InputError
from codecplus.eval import EvaluationConfig, load_results, run_evaluation
from codecplus.hub import export_folder, write_card
from codecplus.hub.template import SAMPLES_MARK
from codecplus.modeling_dac import DacFeatureExtractor
from codecplus.utils import save_audio


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("cards")


@pytest.fixture(scope="module")
def codec(place):
    """A checkpoint with facts beside it."""
    tiny_model(sampling_rate=16000, downsampling_ratios=[2, 4, 5, 8]).save_pretrained(
        place / "my-codec"
    )
    facts = {
        "licence": "cc0-1.0",
        "summary": "A tiny one.",
        "data": [{"name": "n", "licence": "l", "use": "u"}],
    }
    (place / "my-codec" / "card.yaml").write_text(yaml.safe_dump(facts))
    return place / "my-codec"


@pytest.fixture(scope="module")
def results(place, codec):
    """A real run of the harness, on noise and on tones."""
    import numpy as np

    (place / "data").mkdir()
    rng = np.random.default_rng(0)
    lines = ["path,kind,speaker"]
    for index in range(4):
        kind = ("music", "sound")[index % 2]
        signal = (
            0.1 * rng.standard_normal(9600)
            if kind == "sound"
            else 0.2 * np.sin(np.arange(9600) / (9 + index))
        )
        save_audio(signal, place / "data" / f"{index}.wav", 16000)
        lines.append(f"{index}.wav,{kind},")
    (place / "data" / "MANIFEST.csv").write_text("\n".join(lines))
    config = EvaluationConfig(
        codecs=[str(codec), "opus"], bitrates=[0.6, 1.2], data=str(place / "data"), out=place / "results",
        metrics=["si_sdr", "mel_distance"], workers=1, progress=False,
    )  # fmt: skip
    return run_evaluation(config)


@pytest.fixture
def curve(tmp_path):
    points = [
        {"step": n, "audio": 1800 * n, "k4": {"speech/stoi": n / 10}, "k1": {"speech/stoi": n / 20}}
        for n in (1, 2, 3)
    ]
    (tmp_path / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    return tmp_path / "curve.jsonl"


@pytest.fixture
def card(codec, results, curve):
    return ModelCard.load(write_card(codec, [results], curve=curve, step=2, dataset_id="owner/set"))


def test_every_figure_of_the_table_is_that_of_the_run(card, results):
    summary = json.loads((results / "summary.json").read_text())["codecs"]
    shown = [name for name, codec in summary.items() if not codec["anchor"]]
    assert len(shown) == 4
    for name in shown:
        for domain in ("music", "sound"):
            part = summary[name]["domains"][domain]
            score = part["metrics"]["mel_distance"]
            assert f"| {part['payload_kbps_per_channel']:.3g} |" in card.content
            assert score["low"] is None, "so few recordings have no interval"
            assert f"| {score['mean']:.3g}, n = {score['files']}" in card.content


def test_the_card_names_its_run_and_its_weights(card, codec, results):
    mark = fingerprint(load_model(codec)).hex()
    provenance = json.loads((results / "provenance.json").read_text())
    assert f"weights `{mark[:16]}`" in card.content
    assert provenance["date"][:10] in card.content
    assert f"`{load_results(results).clip_set}`" in card.content
    assert card.data["codecplus_fingerprint"] == mark


def test_metadata_keeps_domains_and_rates_apart(card):
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "cc0-1.0", "codecplus", "audio-to-audio",
    )  # fmt: skip
    metadata = yaml.safe_load(re.match(r"---\n(.*?)\n---", card.content, re.DOTALL).group(1))
    _, entries = model_index_to_eval_results(metadata["model-index"])
    found = {(e.dataset_config, e.metric_type, e.metric_name) for e in entries}
    assert len(found) == len(entries) == 2 * 2 * 2  # domains, metrics, rates
    assert {e.dataset_name for e in entries} == {"data (music)", "data (sound)"}


def test_pictures_results_and_facts_lie_beside_it(card, codec):
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", card.content)
    assert len(pictures) == 2
    for picture in pictures:
        data = (codec / picture).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) <= 100_000
    assert "A tiny one." in card.content
    assert "| n | l | u |" in card.content
    assert "2 steps, 1.0 hours of audio in crops. The run went on to step 3." in card.content
    (entries,) = (codec / ".eval_results").glob("*.yaml")
    assert {entry["dataset"]["id"] for entry in yaml.safe_load(entries.read_text())} == {
        "owner/set"
    }


def test_an_export_takes_the_card_along_and_makes_its_samples(card, codec, tmp_path):
    folder = export_folder(codec, tmp_path / "export")
    text = (folder / "README.md").read_text()
    assert SAMPLES_MARK in card.content
    assert SAMPLES_MARK not in text
    for target in re.findall(r"\]\((assets/.*?)\)", text):
        assert (folder / target).is_file()
    assert len(list((folder / ".eval_results").iterdir())) == 1


def test_results_and_cards_of_other_weights_are_refused(card, codec, results, tmp_path):
    other = tmp_path / "other"
    tiny_model(seed=1, sampling_rate=16000, downsampling_ratios=[2, 4, 5, 8]).save_pretrained(other)
    with pytest.raises(
        InputError,
        match=r"holds no results of .*other, whose weights are [0-9a-f]{32}; it has those of",
    ):
        write_card(other, [results])
    (other / "README.md").write_text(card.content)
    with pytest.raises(InputError, match=r"belongs to other weights .* run codecplus card"):
        export_folder(other, tmp_path / "export")


def test_a_card_without_results_says_so_and_states_no_figure(tmp_path):
    tiny_model(causal=True, sampling_rate=16000).save_pretrained(tmp_path / "bare")
    card = ModelCard.load(write_card(tmp_path / "bare"))
    assert "Nothing yet: no results were given for these weights." in card.content
    assert card.data.eval_results is None
    assert card.data.license is None  # whoever trained it has not said
    assert "trust_remote_code=True" in card.content


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ("sumary: x", "unknown field 'sumary'; did you mean summary?"),
        ("- a list", "to hold fields and their values, got list"),
        ("a: [", "expected YAML in"),
    ],
)
def test_facts_that_cannot_be_used_are_refused(tmp_path, facts, sentence):
    tiny_model(sampling_rate=16000).save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "card.yaml").write_text(facts)
    with pytest.raises(FileFormatError) as refused:
        write_card(tmp_path / "bare")
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("no json", "to hold JSON lines with step and scores"),
        ('{"step": 1}', "no line has scores of held-out recordings"),
        ("", "no line has scores of held-out recordings"),
    ],
)
def test_a_file_without_scores_is_refused_as_a_curve(codec, tmp_path, lines, sentence):
    (tmp_path / "curve.jsonl").write_text(lines)
    with pytest.raises(FileFormatError) as refused:
        write_card(codec, curve=tmp_path / "curve.jsonl", card=tmp_path / "README.md")
    assert sentence in str(refused.value)


def test_the_log_of_the_trainer_is_a_curve_too(codec, tmp_path, curve):
    lines = [
        {"step": 10, "train/mel": 1.0},
        {"step": 10, "validation/stoi": 0.5},
        {"step": 20, "validation/stoi": 0.6},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = write_card(codec, curve=tmp_path / "log.jsonl", card=tmp_path / "README.md")
    assert "20 steps.\n" in card.read_text()
    with pytest.raises(InputError, match="the curve has no step 11; its steps are 10, 20"):
        write_card(codec, curve=tmp_path / "log.jsonl", step=11, card=tmp_path / "README.md")


def test_only_files_that_belong_to_a_checkpoint_are_pushed(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    tiny_model().save_pretrained(checkpoint)
    for name in ("LICENSE.md", "LICENSE-secret.key", "entropy-notes.txt", ".env"):
        (checkpoint / name).write_text(name)
    exported = export_folder(checkpoint, tmp_path / "export")
    names = {path.name for path in exported.rglob("*")}
    assert "LICENSE.md" in names
    assert not names & {"LICENSE-secret.key", "entropy-notes.txt", ".env"}


@pytest.mark.skipif(os.name == "nt", reason="links of POSIX")
@pytest.mark.parametrize("name", ["entropy_link.safetensors", "LICENSE", "README.md"])
def test_a_link_out_of_the_folder_is_never_pushed(tmp_path, name):
    checkpoint = tmp_path / "snapshots" / "main"
    tiny_model().save_pretrained(checkpoint)
    (tmp_path / "secret").write_text("private")
    (checkpoint / name).symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=f"{name} is a link out of its folder, to .*secret; put"):
        export_folder(checkpoint, tmp_path / "export")
    assert not (tmp_path / "export").exists()
    (checkpoint / name).unlink()
    (tmp_path / "blobs").mkdir()  # as the cache of the Hub keeps files
    (tmp_path / "secret").rename(tmp_path / "blobs" / "abc")
    (checkpoint / name).symlink_to("../../blobs/abc")
    export_folder(checkpoint, tmp_path / "export")
    assert (tmp_path / "export" / name).read_text() == "private"


@pytest.mark.skipif(os.name == "nt", reason="links of POSIX")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_checkpoint_of_links_out_of_its_folder_is_never_pushed(tmp_path, name):
    checkpoint = tmp_path / "snapshots" / "main"
    model = tiny_model()
    model.save_pretrained(checkpoint)
    DacFeatureExtractor().save_pretrained(checkpoint)
    (checkpoint / name).rename(tmp_path / name)
    (checkpoint / name).symlink_to(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is a link out of its folder, to "):
        export_folder(checkpoint, tmp_path / "export")
    (tmp_path / "blobs").mkdir()  # as the cache of the Hub keeps files
    (tmp_path / name).rename(tmp_path / "blobs" / "abc")
    (checkpoint / name).unlink()
    (checkpoint / name).symlink_to("../../blobs/abc")
    export_folder(checkpoint, tmp_path / "export")
    assert fingerprint(load_model(tmp_path / "export")) == fingerprint(model)


def test_a_card_is_written_into_its_folder_alone(tmp_path):
    tiny_model(**GEOMETRIES["16khz"]).save_pretrained(tmp_path / "codec")
    folder = tmp_path / "codec"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "codec-training.png").write_bytes(b"a picture of its own")
    (outside / "notes").write_text("private")
    links = [("README.md", "notes"), ("assets", "."), (".eval_results", ".")]
    for name, target in links:
        (folder / name).symlink_to(outside / target)
        with pytest.raises(InputError, match=f"{name} is a link out of its folder"):
            write_card(folder)
        (folder / name).unlink()
    (folder / "assets").mkdir()
    (folder / "assets" / "codec-training.png").symlink_to(outside / "codec-training.png")
    with pytest.raises(InputError, match="is a link out of its folder"):
        write_card(folder)
    assert (outside / "notes").read_text() == "private"
    assert (outside / "codec-training.png").read_bytes() == b"a picture of its own"


@pytest.mark.parametrize("text", [b"[" * 5000, b"\xff", b"a: b: c", b"- 1", b"x" * (1 << 21)])
def test_facts_of_a_stranger_are_one_error(tmp_path, text):
    tiny_model(**GEOMETRIES["16khz"]).save_pretrained(tmp_path)
    (tmp_path / "card.yaml").write_bytes(text)
    with pytest.raises(CodecPlusError, match=r"card\.yaml"):
        write_card(tmp_path)
    assert not (tmp_path / "README.md").exists()
