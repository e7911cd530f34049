"""Codecs return what they were given in shape, and say truly how many bits they spent."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from eval_signals import speech_like

from codecplus.errors import CheckpointError, InputError
from codecplus.eval.audio import resample
from codecplus.eval.codecs import (
    Aac,
    CodecAdapter,
    Identity,
    LowPass,
    Mp3,
    Opus,
    OpusVbr,
    Original,
    StockCodec,
    codec_hash,
    resolve_codecs,
)
from codecplus.eval.codecs.stock_model import codec_class
from codecplus.eval.metrics import score

CLASSIC = [Opus(6), Opus(24), OpusVbr(12), Mp3(16), Mp3(64), Aac(16), Aac(64)]


def round_trip(codec, audio, rate):
    payload = codec.encode(audio, rate)
    assert 0 < payload.bits <= 8 * len(payload.data)
    return codec.decode(payload.data, Original(len(audio), audio.shape[-1], rate)), payload


@pytest.mark.parametrize("codec", CLASSIC, ids=lambda c: c.name)
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (8_000, 1), (22_050, 3)])
def test_classic_codecs_keep_shape_and_time(codec, rate, channels):
    audio = np.stack([speech_like(1.0, rate, seed) for seed in range(channels)])
    output, _ = round_trip(codec, audio, rate)
    assert output.shape == audio.shape
    assert output.dtype == np.float32
    assert abs(score(audio, output, rate, ["lag"])["lag"].value) < 1.0  # milliseconds


@pytest.mark.parametrize("codec", [Opus(6), Opus(12), Mp3(16), Mp3(32)], ids=lambda c: c.name)
@pytest.mark.parametrize("channels", [1, 2])
def test_constant_rates_are_what_was_asked_for(codec, channels):
    audio = np.stack([speech_like(10.0, 16_000, seed) for seed in range(channels)])
    _, payload = round_trip(codec, audio, 16_000)
    assert payload.bits / 10 / 1000 == pytest.approx(codec.nominal_kbps * channels, rel=0.02)


def test_opus_bits_are_those_of_its_packets(voice):
    """Counted a second time in the pages of the Ogg file (RFC 3533): head and tags come first, the
    rest is payload.
    """
    payload = Opus(12).encode(voice[None], 16_000)
    sizes, position, size = [], 0, 0
    while position < len(payload.data):
        assert payload.data[position : position + 4] == b"OggS"
        lacing = payload.data[position + 27 : position + 27 + payload.data[position + 26]]
        for value in lacing:
            size += value
            if value < 255:
                sizes.append(size)
                size = 0
        position += 27 + len(lacing) + sum(lacing)
    assert 8 * sum(sizes[2:]) == payload.bits < 8 * len(payload.data)


@pytest.mark.parametrize(
    "codec", [Opus(8), Opus(24), OpusVbr(16), Mp3(16), Mp3(64)], ids=lambda c: c.name
)
def test_scores_are_those_of_other_decoders(codec, voice):
    """libsndfile decodes with libopus and mpg123, where the harness has FFmpeg's decoders."""
    output, payload = round_trip(codec, voice[None], 16_000)
    other, rate = soundfile.read(io.BytesIO(payload.data), dtype="float32")
    other = resample(other[None], rate, 16_000, samples=voice.size)
    names = ["pesq_wb", "stoi"]
    ours, theirs = (score(voice, decoded, 16_000, names) for decoded in (output, other))
    assert [ours[name].value for name in names] == pytest.approx(
        [theirs[name].value for name in names], rel=0.01
    )


def test_more_bits_sound_better(voice):
    for family in (Opus, Mp3, Aac):
        low, high = (round_trip(family(rate), voice[None], 16_000)[0] for rate in (8, 32))
        scores = [
            score(voice, output[0], 16_000, ["pesq_wb"])["pesq_wb"].value for output in (low, high)
        ]
        assert scores[0] < scores[1], family.family


def test_anchors(voice, rng):
    output, payload = round_trip(Identity(), voice[None], 16_000)
    assert np.array_equal(output[0], voice)
    assert payload.bits == 32 * voice.size
    noise = rng.standard_normal((1, 16_000)).astype(np.float32)
    for cutoff in (3500, 7000):
        filtered, _ = round_trip(LowPass(cutoff), noise, 16_000)
        found = score(noise, filtered, 16_000, ["bandwidth", "lag"])
        assert found["bandwidth"].value == pytest.approx(cutoff, abs=150)
        assert found["lag"].value == 0
    kept, _ = round_trip(LowPass(7000), voice[None, ::2], 8_000)
    assert np.array_equal(kept[0], voice[::2])


def tiny_stock(kind):
    import transformers as t

    if kind == "dac":
        return t.DacModel(
            t.DacConfig(
                encoder_hidden_size=4,
                downsampling_ratios=[2, 4, 5, 8],
                decoder_hidden_size=32,
                n_codebooks=3,
                codebook_size=64,
                codebook_dim=4,
                sampling_rate=16_000,
                upsampling_ratios=[8, 5, 4, 2],
            )
        )
    if kind.startswith("encodec"):
        wide = (
            {
                "audio_channels": 2,
                "normalize": True,
                "chunk_length_s": 0.5,
                "overlap": 0.01,
                "norm_type": "time_group_norm",
                "use_causal_conv": False,
            }
            if kind == "encodec-stereo"
            else {}
        )
        return t.EncodecModel(
            t.EncodecConfig(
                target_bandwidths=[1.5, 3.0],
                num_filters=4,
                hidden_size=16,
                codebook_size=1024,
                codebook_dim=16,
                num_lstm_layers=1,
                **wide,
            )
        )
    if kind == "mimi":
        return t.MimiModel(
            t.MimiConfig(
                num_filters=4,
                hidden_size=16,
                codebook_size=64,
                codebook_dim=8,
                num_quantizers=4,
                num_hidden_layers=1,
                vector_quantization_hidden_dimension=8,
                intermediate_size=16,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
                upsample_groups=16,
            )
        )
    if kind == "wavtokenizer":
        return t.WavTokenizerModel(
            t.WavTokenizerConfig(
                num_filters=4,
                hidden_size=16,
                codebook_size=64,
                codebook_dim=16,
                decoder_hidden_size=32,
                decoder_intermediate_size=32,
                decoder_num_layers=1,
                num_lstm_layers=1,
            )
        )
    if kind == "vibevoice":
        return t.VibeVoiceAcousticTokenizerModel(
            t.VibeVoiceAcousticTokenizerConfig(hidden_size=8, num_filters=4, depths=[1] * 7)
        )
    acoustic = t.DacConfig(
        encoder_hidden_size=4,
        downsampling_ratios=[8, 5, 4, 2],
        decoder_hidden_size=32,
        hidden_size=16,
        codebook_dim=4,
        upsampling_ratios=[8, 5, 4, 2],
    )
    semantic = t.HubertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    return t.XcodecModel(
        t.XcodecConfig(
            target_bandwidths=[0.5, 1.0],
            codebook_size=1024,
            acoustic_model_config=acoustic,
            semantic_model_config=semantic,
        )
    )


STOCK = ["dac", "encodec", "encodec-stereo", "mimi", "xcodec", "wavtokenizer"]


def save_stock(kind, folder):
    import torch
    import transformers

    torch.manual_seed(0)
    model_type = {"encodec-stereo": "encodec", "vibevoice": "vibevoice_acoustic_tokenizer"}
    if codec_class(model_type.get(kind, kind)) is None:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    tiny_stock(kind).save_pretrained(folder)


@pytest.mark.parametrize("kind", STOCK)
def test_stock_models_from_random_configs_run(kind, tmp_path, voice):
    save_stock(kind, tmp_path)
    codec = StockCodec(str(tmp_path))
    audio = np.stack([speech_like(0.731, 22_050, seed) for seed in range(3)])
    output, payload = round_trip(codec, audio, 22_050)
    assert output.shape == audio.shape
    assert np.isfinite(output).all()
    codes, codebook_size = codec.codes(payload.data)
    assert codes.ndim == 2
    assert 0 <= codes.min() <= codes.max() < codebook_size
    assert codec_hash(codec) != codec_hash(StockCodec(str(tmp_path), 0.01)) or kind in ONE_RATE
    found = codec.complexity()
    assert found["operations_per_second"] > found["parameters"] > 100


ONE_RATE = ["wavtokenizer"]


def test_a_stock_model_of_latents_pays_for_every_one_of_them(tmp_path):
    import transformers

    save_stock("vibevoice", tmp_path)
    transformers.VibeVoiceAcousticTokenizerFeatureExtractor().save_pretrained(tmp_path)
    codec = StockCodec(str(tmp_path))
    assert codec.nominal_kbps == pytest.approx(7.5 * 8 * 16 / 1000)  # frames/s, latents, bits
    audio = speech_like(1.0, 24_000)[None]
    output, payload = round_trip(codec, audio, 24_000)
    assert output.shape == audio.shape
    assert payload.bits == 8 * 8 * 16  # 8 frames
    assert codec.codes(payload.data) is None
    assert codec.encode(audio, 24_000).data == payload.data  # no noise as in training


def test_a_model_that_is_no_codec_says_so(tmp_path):
    import transformers

    config = transformers.Wav2Vec2Config(hidden_size=16, num_attention_heads=2)
    config.save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match="holds a 'wav2vec2' model; expected a codec, whose encode"
    ):
        StockCodec(str(tmp_path))


STAND_IN = {
    "torchaudio-2.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: torchaudio\nVersion: 2.0\n",
    "torchaudio/__init__.py": "from torchaudio import compliance, functional\n",
    "torchaudio/functional.py": """
import numpy, soxr, torch
def resample(waveform, old, new):
    rows = [soxr.resample(row, old, new) for row in waveform.reshape(-1, waveform.shape[-1]).numpy()]
    return torch.from_numpy(numpy.stack(rows)).reshape(*waveform.shape[:-1], -1)
""",
    "torchaudio/compliance/__init__.py": "from torchaudio.compliance import kaldi\n",
    "torchaudio/compliance/kaldi.py": """
import torch
def fbank(waveform, num_mel_bins, **settings):
    power = torch.fft.rfft(waveform[0].unfold(0, 400, 160)).abs().square()
    return torch.nn.functional.adaptive_avg_pool1d(power[None], num_mel_bins)[0].add(1e-9).log()
""",
}
WITH_FEATURES = """
import sys, numpy as np, torch, transformers as t
from codecplus.eval.codecs import Original, StockCodec

hubert = t.HubertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                        conv_dim=[8] * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2)
acoustic = t.DacConfig(encoder_hidden_size=4, downsampling_ratios=[8, 5, 4, 3, 2], decoder_hidden_size=32,
                       hidden_size=16, codebook_dim=4, upsampling_ratios=[8, 5, 4, 3, 2])
bert = t.Wav2Vec2BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                            intermediate_size=16, feature_projection_input_dim=160)
small = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
             num_key_value_heads=2, head_dim=16, encoder_hidden_size=4, quantization_dim=48,
             semantic_model_config=bert)
torch.manual_seed(0)
models = {
    "xcodec2": (t.Xcodec2Model(t.Xcodec2Config(**small)), t.Xcodec2FeatureExtractor()),
    "neucodec": (t.NeuCodecModel(t.NeuCodecConfig(**small)), t.NeuCodecFeatureExtractor()),
    "higgs": (t.HiggsAudioV2TokenizerModel(t.HiggsAudioV2TokenizerConfig(
        target_bandwidths=[0.5, 1.0], acoustic_model_config=acoustic, semantic_model_config=hubert)), None),
}
audio = 0.1 * np.random.default_rng(0).standard_normal((2, 22050), np.float32)
for name, (model, extractor) in models.items():
    folder = f"{sys.argv[1]}/{name}"
    model.save_pretrained(folder)
    if extractor is not None:
        extractor.save_pretrained(folder)
    codec = StockCodec(folder)
    payload = codec.encode(audio, 22050)
    decoded = codec.decode(payload.data, Original(2, 22050, 22050))
    codes, size = codec.codes(payload.data)
    print(name, codec.nominal_kbps, payload.bits, decoded.shape == audio.shape, len(codes), size)
"""


@pytest.mark.slow
def test_stock_models_that_need_features_run(tmp_path):
    """X-Codec 2 and NeuCodec take a spectrogram, too, and Higgs resamples, both by torchaudio: a
    stand-in serves, since a model of random weights hears nothing anyway.
    """
    for name, text in STAND_IN.items():
        file = tmp_path / "stand-in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    paths = [str(tmp_path / "stand-in"), *(path for path in sys.path if path)]
    done = subprocess.run(
        [sys.executable, "-c", WITH_FEATURES, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    # kbit/s, bits of a second in two channels, its shape, codebooks, entries
    assert lines["xcodec2"][0] == lines["neucodec"][0] == "0.8"
    for name in ("xcodec2", "neucodec"):
        assert 2 * 50 * 16 <= int(lines[name][1]) <= 2 * 52 * 16
        assert lines[name][2:] == ["True", "1", "65536"]
    assert lines["higgs"][2:] == ["True", "4", "1024"]


def test_stock_dac_equals_the_model_called_by_hand(tmp_path):
    import torch

    torch.manual_seed(0)
    model = tiny_stock("dac").eval()
    model.save_pretrained(tmp_path)
    audio = speech_like(320 * 20 / 16_000)[None]
    with torch.inference_mode():
        codes = model.encode(torch.from_numpy(audio[None]), n_quantizers=2).audio_codes
        expected = model.decode(audio_codes=codes).audio_values.numpy().reshape(1, -1)
    codec = StockCodec(str(tmp_path), 0.6)
    assert codec.nominal_kbps == pytest.approx(2 * 6 * 50 / 1000)
    output, payload = round_trip(codec, audio, 16_000)
    assert payload.bits == codes.numel() * 6
    assert np.allclose(output[:, : expected.shape[-1]], expected, atol=1e-6)


def test_missing_stock_model_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="cannot load the stock model"):
        StockCodec(str(tmp_path / "nothing"))


def test_names_resolve_to_anchors_and_each_rate_once():
    names = [codec.name for codec in resolve_codecs(["opus", "mp3"], [3, 6, 8])]
    assert names == [
        "identity",
        "lowpass-3500",
        "lowpass-7000",
        "opus@3",
        "opus@6",
        "opus@8",
        "mp3@8",
    ]
    assert all(isinstance(codec, CodecAdapter) for codec in resolve_codecs(["aac"]))


def test_registered_codecs_are_found_and_checked(monkeypatch):
    from importlib.metadata import EntryPoint

    import codecplus.eval.codecs as module

    points = [
        EntryPoint("half", "eval_signals:HalfCodec", "codecplus.codecs"),
        EntryPoint("wrong", "eval_signals:speech_like", "codecplus.codecs"),
    ]
    monkeypatch.setattr(
        module, "entry_points", lambda group: points if group == "codecplus.codecs" else []
    )
    assert resolve_codecs(["half"])[-1].name == "half"
    with pytest.raises(InputError, match="made a ndarray without name"):
        resolve_codecs(["wrong"], [1.0])


@pytest.mark.parametrize("rate", [0, -3])
def test_rates_must_be_positive(rate):
    with pytest.raises(InputError, match="above 0 kbit/s"):
        resolve_codecs(["opus"], [rate])


@pytest.mark.parametrize("kbps", Mp3.RATES)
def test_mp3_rates_are_legal_for_every_source(kbps):
    for rate, channels in ((8_000, 2), (48_000, 1)):
        audio = np.stack([speech_like(2.0, rate, seed) for seed in range(channels)])
        _, payload = round_trip(Mp3(kbps), audio, rate)
        assert payload.bits / 2 / 1000 == pytest.approx(kbps * channels, rel=0.1)


@pytest.mark.parametrize("codec", CLASSIC, ids=lambda c: c.name)
@pytest.mark.parametrize("samples", [1, 30, 500])
def test_classic_codecs_take_very_short_clips(codec, samples):
    audio = speech_like(1.0)[None, 3000 : 3000 + samples]
    output, _ = round_trip(codec, audio, 16_000)
    assert output.shape == audio.shape


def test_a_typing_error_is_pointed_out():
    with pytest.raises(InputError, match="no checkpoint 'opsu'; did you mean 'opus'"):
        resolve_codecs(["opsu"])
