"""Noise, level and lost packets change a task, and nothing else does."""

import numpy as np
import pytest
import soundfile
from eval_codecs import Inflating, Packets, Smuggler
from eval_signals import LYRA, HalfCodec, speech_like
from tiny import tiny_model

import codecplus.eval.codecs as codecs_module
from codecplus import Codec
from codecplus.errors import InputError
from codecplus.eval import EvaluationConfig, load_results, run_evaluation
from codecplus.eval.codecs import Original, OwnCodec
from codecplus.eval.codecs.libav import Opus
from codecplus.eval.codecs.lyra import LyraCodec
from codecplus.eval.tasks import Clip, Conditions, load_task


def clip(audio, rate=16_000):
    return Clip("a.wav", 0.0, np.atleast_2d(audio), rate)


def power(audio):
    return float(np.mean(np.square(audio, dtype=np.float64)))


def test_noise_has_the_ratio_that_was_asked_for_and_is_the_same_each_time():
    voice = clip(speech_like(1.0))
    noisy = Conditions(noise=10).apply(voice)
    noise = noisy.audio - voice.audio
    assert 10 * np.log10(power(voice.audio) / power(noise)) == pytest.approx(10, abs=0.01)
    spectrum = np.abs(np.fft.rfft(noise[0])) ** 2
    octaves = [spectrum[start : 2 * start].sum() for start in (500, 1000, 2000)]
    assert np.ptp(10 * np.log10(octaves)) < 1.5  # pink: as much in every octave
    assert noisy.hash == Conditions(noise=10).apply(voice).hash != voice.hash


def test_level_is_the_rms_and_never_beyond_full_scale():
    quiet = Conditions(level=-40).apply(clip(speech_like(1.0)))
    assert 10 * np.log10(power(quiet.audio)) == pytest.approx(-40, abs=0.01)
    loud = Conditions(level=0).apply(clip(speech_like(1.0)))
    assert np.abs(loud.audio).max() == pytest.approx(1.0, abs=1e-6)


def test_conditions_are_part_of_a_tasks_name_and_identity(tmp_path):
    soundfile.write(tmp_path / "a.wav", speech_like(0.5), 16_000)
    plain = load_task(str(tmp_path))
    lossy = load_task(str(tmp_path), conditions=Conditions.parse(["noise=10", "loss=5"]))
    assert lossy.name == f"{tmp_path.name}, noise 10 dB, loss 5 %"
    assert lossy.describe()["conditions"] == {"noise": 10.0, "loss": 5.0}
    assert lossy.fingerprint() != plain.fingerprint()
    (clean,) = plain
    (changed,) = load_task(str(tmp_path), conditions=Conditions(loss=5))
    assert np.array_equal(changed.audio, clean.audio)
    assert changed.hash != clean.hash  # its scores are others


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hiss=3"], "got 'hiss=3'"),
        (["noise"], "got 'noise'"),
        (["noise=3", "noise=4"], "got noise twice"),
        (["loss=100"], "between 0 and 100 %"),
        (["level=6"], "from -70 to 0 dBFS"),
    ],
)
def test_other_conditions_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        Conditions.parse(words)


# ---- lost packets


def test_lost_packets_never_reach_the_decoder(tmp_path, monkeypatch):
    for codec in (HalfCodec, Packets, Smuggler, Inflating):
        monkeypatch.setitem(codecs_module.CODECS, codec.name, codec)
    soundfile.write(tmp_path / "a.wav", speech_like(1.0), 16_000, "FLOAT")
    config = EvaluationConfig(
        codecs=["half", "packets", "smuggler", "inflating"],
        data=str(tmp_path),
        conditions=["loss=20"],
        out=tmp_path / "out",
        metrics=("snr",),
        workers=1,
        progress=False,
    )
    results = load_results(run_evaluation(config))
    rows = {row.codec: row for row in results.rows}
    assert rows["half"].reason == "does not say how it decodes without lost packets"
    assert "expected a first packet of at most 128 bytes" in rows["smuggler"].reason
    assert rows["packets"].status == "ok"
    assert 4 < rows["packets"].scores["snr"].value < 12  # a fifth is missing: about 7 dB
    assert rows["inflating"].file_bits > 1.9 * rows["inflating"].payload_bits
    assert rows["identity"].scores["snr"].value == 100
    assert results.provenance["command"].endswith("--condition loss=20 --metric snr -o results/")


@pytest.mark.parametrize("options", ["", ":abr"])
def test_our_own_codec_conceals_lost_frames_and_nothing_else(tmp_path, options):
    model = tiny_model(downsampling_ratios=[2, 4, 5, 8], sampling_rate=16000)
    Codec(model).save_pretrained(tmp_path / "tiny")
    loudness = np.linspace(0, 5, 12 * 16_000)  # tiny models need it
    audio = np.random.default_rng(0).standard_normal((2, loudness.size)).astype("f4") * loudness
    most = 8 * len(Codec(model).compress(audio)) / 1000 / 12 / len(audio)
    codec = OwnCodec(f"{tmp_path / 'tiny'}{options}", 0.8 * most if options else None)
    original = Original(2, audio.shape[1], 16_000)
    data = codec.encode(audio, 16_000).data
    packets = codec.packets(data)
    assert len(packets) == 1 + 12 * 50
    whole = codec.decode(data, original)
    assert (codec.codes(data)[0] == -1).any() == bool(options)  # frames with fewer codebooks
    assert np.array_equal(codec.decode_packets(packets, original), whole)
    packets[21] = packets[22] = None  # frames 20 and 21 of 320 samples
    concealed = codec.decode_packets(packets, original)
    assert concealed.shape == whole.shape
    changed = np.flatnonzero(np.abs(concealed - whole).max(axis=0) > 1e-6)
    assert changed.size
    reach = 12  # frames
    assert (20 - reach) * 320 <= changed[0] <= changed[-1] < (22 + reach) * 320


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_opus_conceals_lost_packets_and_nothing_else(channels):
    codec = Opus(24)
    audio = np.stack([speech_like(1.0, seed=i) for i in range(channels)])
    original = Original(channels, audio.shape[1], 16_000)
    data = codec.encode(audio, 16_000).data
    packets = codec.packets(data)
    streams = 3 if channels == 3 else 1
    assert len(packets) == 1 + 51 * streams
    whole = codec.decode_packets(packets, original)
    assert np.corrcoef(whole[0], codec.decode(data, original)[0])[0, 1] > 0.95
    lossy = [*packets]
    lossy[26] = lossy[27] = None  # of the first stream, from 0.5 s on
    concealed = codec.decode_packets(lossy, original)
    changed = np.abs(concealed - whole).max(axis=1) > 0.01
    assert changed.tolist() == {1: [True], 2: [True, True], 3: [True, False, False]}[channels]
    assert np.abs(concealed - whole)[:, : 24 * 320].max() < 1e-3
    assert power(concealed[0, 25 * 320 : 27 * 320]) > 0.05 * power(whole[0, 25 * 320 : 27 * 320])
    nothing = [packets[0], *[None] * (len(packets) - 1)]
    assert not codec.decode_packets(nothing, original).any()


def test_lyra_decodes_lost_frames_from_features_of_zeros():
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")
    if not LYRA.is_dir():
        pytest.skip("the networks of Lyra are not part of this package")
    codec = LyraCodec(LYRA, 3.2)
    audio = np.stack([speech_like(0.4), speech_like(0.4, seed=1)])
    original = Original(2, audio.shape[1], 16_000)
    data = codec.encode(audio, 16_000).data
    packets = codec.packets(data)
    assert [len(packet) for packet in packets] == [0] + 40 * [8]
    whole = codec.decode(data, original)
    assert np.array_equal(codec.decode_packets(packets, original), whole)
    packets[11:15] = [None] * 4  # of the first channel, from 0.2 s on
    lossy = codec.decode_packets(packets, original)
    assert np.array_equal(lossy[1], whole[1])
    assert np.array_equal(lossy[0, : 9 * 320], whole[0, : 9 * 320])
    assert not np.array_equal(lossy[0, 10 * 320 : 14 * 320], whole[0, 10 * 320 : 14 * 320])


def test_parameters_and_operations_are_those_of_the_network(tmp_path):
    model = tiny_model(downsampling_ratios=[2, 4, 5, 8], sampling_rate=16000)
    Codec(model).save_pretrained(tmp_path / "tiny")
    found = OwnCodec(str(tmp_path / "tiny")).complexity()
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    convolutions = sum(p[0].numel() for p in model.parameters() if p.ndim == 3)
    assert found["operations_per_second"] > 2 * 50 * convolutions  # each at 50 frames/s or more
