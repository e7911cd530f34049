"""Codecs return what they were given in shape, and say truly how many bits they spent."""

import io

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


@pytest.mark.parametrize("kind", ["dac", "encodec", "encodec-stereo", "mimi", "xcodec"])
def test_stock_models_from_random_configs_run(kind, tmp_path, voice):
    import torch

    torch.manual_seed(0)
    model = tiny_stock(kind)
    model.save_pretrained(tmp_path)
    codec = StockCodec(str(tmp_path))
    audio = np.stack([speech_like(0.731, 22_050, seed) for seed in range(3)])
    output, payload = round_trip(codec, audio, 22_050)
    assert output.shape == audio.shape
    assert np.isfinite(output).all()
    codes, codebook_size = codec.codes(payload.data)
    assert codes.ndim == 2
    assert 0 <= codes.min() <= codes.max() < codebook_size
    assert codec_hash(codec) != codec_hash(StockCodec(str(tmp_path), 0.01))


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
