"""Metrics of whole sets, and errors of transcripts, which weigh by how many words there are."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from eval_signals import speech_like
from test_eval_report import rows

from codecplus.errors import InputError
from codecplus.eval import EvaluationConfig, build_leaderboard, load_results, run_evaluation
from codecplus.eval.metrics import (
    SET_METRICS,
    find_metric,
    frechet_distance,
    metric_by_name,
    score,
    set_metrics_by_name,
)
from codecplus.eval.metrics.base import Score
from codecplus.eval.metrics.words import edit_distance
from codecplus.eval.results import Row, metric_estimate


def test_the_frechet_distance_is_the_textbook_one():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 5)) @ rng.standard_normal((5, 5))
    y = 0.5 + rng.standard_normal((150, 5)) @ rng.standard_normal((5, 5))
    a, b = np.cov(x.T), np.cov(y.T)
    shift = x.mean(0) - y.mean(0)
    expected = shift @ shift + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(expected)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    few = rng.standard_normal((3, 40))  # fewer embeddings than dimensions
    assert frechet_distance(few, few + 1) == pytest.approx(40)
    with pytest.raises(InputError, match="2 embeddings or more"):
        frechet_distance(x, y[:1])


def test_a_run_has_the_distance_of_all_recordings_of_a_kind(tmp_path):
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", speech_like(1.5, seed=i), 16_000, "FLOAT")
    config = EvaluationConfig(
        codecs=[], data=str(tmp_path), out=tmp_path / "out", metrics=["fad", "snr"], workers=1
    )
    results = load_results(run_evaluation(replace(config, progress=False)))
    codecs = results.summary["codecs"]
    values = {name: codecs[name]["sets"]["unknown"]["fad"] for name in codecs}
    assert values["identity"]["value"] == pytest.approx(0, abs=1e-6)
    assert values["lowpass-3500"]["value"] > values["lowpass-7000"]["value"] > 0
    assert values["identity"]["clips"] == 3
    # By hand, from the audio that the run kept.
    embed = SET_METRICS["fad"].embed
    clouds = {}
    for name in ("identity", "lowpass-3500"):
        folder = tmp_path / "out" / "cache" / "audio" / codecs[name]["hash"]
        hashes = dict.fromkeys(row.clip_hash for row in results.rows)
        audio = [np.load(folder / f"{key}.npy")[0] for key in hashes]
        clouds[name] = np.concatenate([embed(signal, 16_000) for signal in audio])
    expected = frechet_distance(clouds["identity"], clouds["lowpass-3500"])
    assert values["lowpass-3500"]["value"] == pytest.approx(expected, rel=1e-4)
    assert "## Over all recordings" in (tmp_path / "out" / "report.md").read_text()
    (board,) = build_leaderboard([tmp_path / "out"], rank_by="snr")["boards"]
    entry = next(entry for entry in board["entries"] if entry["codec"] == "lowpass-3500")
    assert entry["metrics"]["fad"]["mean"] == values["lowpass-3500"]["value"]
    assert board["metrics"]["fad"]["title"] == "FAD, log mel"


# ---- words


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    """A recogniser of random weights that hears letters and words in everything."""
    import torch
    import transformers as t

    folder = tmp_path_factory.mktemp("recogniser")
    letters = ["<pad>", "<unk>", *"saein|t"]
    (folder / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(letters)}))
    tokenizer = t.Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"), pad_token="<pad>", unk_token="<unk>", word_delimiter_token="|"
    )
    torch.manual_seed(3)
    config = t.Wav2Vec2Config(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
        initializer_range=0.6,
    )
    model = t.Wav2Vec2ForCTC(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
        model.lm_head.bias[1] = -1e3  # never <unk>, whose brackets are no part of a word
    for part in (tokenizer, t.Wav2Vec2FeatureExtractor(), model):
        part.save_pretrained(folder)
    return str(folder)


def test_word_errors_are_those_of_the_transcripts(recogniser, voice):
    from transformers import pipeline

    rng = np.random.default_rng(0)
    noisy = (voice + 0.1 * rng.standard_normal(voice.size)).astype(np.float32)
    pipe = pipeline("automatic-speech-recognition", model=recogniser, device="cpu")
    texts = [pipe({"raw": x.copy(), "sampling_rate": 16_000})["text"] for x in (voice, noisy)]
    expected, found = (text.split() for text in texts)
    assert len(expected) > 1
    assert texts[0] != texts[1]
    names = [f"wer:{recogniser}", f"cer:{recogniser}"]
    scores = score(voice, noisy, 16_000, names)
    errors = edit_distance(expected, found)
    assert scores[names[0]].value == pytest.approx(100 * errors / len(expected))
    assert scores[names[0]].weight == len(expected)
    assert scores[names[1]].value > 0
    assert score(voice, voice, 16_000, names)[names[0]].value == 0
    assert recogniser in metric_by_name(names[0]).source
    assert find_metric(names[0]).identity.startswith(f"{names[0]}/1+transformers-")


def test_an_error_rate_is_all_errors_over_all_words():
    made = rows("a", [50.0, 0.0], metric="wer:x")
    for row, words in zip(made, (2, 18), strict=True):
        row.scores["wer:x"] = Score(row.scores["wer:x"].value, weight=words)
    assert metric_estimate(made, "wer:x").mean == pytest.approx(5.0)  # 1 error in 20 words
    assert Row.from_json(made[0].to_json()) == made[0]
    assert '"weight"' not in rows("a", [1.0])[0].to_json()
    long = replace(made[1], source=made[0].source)  # two pieces of one recording
    assert metric_estimate([made[0], long], "wer:x").mean == pytest.approx(5.0)


def test_weights_make_an_interval_of_a_ratio():
    from codecplus.eval.statistics import estimate

    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        words = rng.integers(5, 40, 12)
        errors = rng.binomial(words, 0.2)
        values = dict(enumerate(errors / words))
        found = estimate(values, None, dict(enumerate(words)))
        assert found.mean == pytest.approx(errors.sum() / words.sum())
        hits += found.low <= 0.2 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_names_without_a_model_are_refused():
    with pytest.raises(InputError, match="unknown metric 'wer'"):
        metric_by_name("wer")
    with pytest.raises(InputError, match="did you mean 'fad_voice'"):
        metric_by_name("fad_voise")
    assert [metric.name for metric in set_metrics_by_name(["fad", "snr", "fad"])] == ["fad"]
