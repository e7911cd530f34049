"""The codec as an object of the ecosystem: tensors, saving, moving, listening, and what it says to
what it cannot take.
"""

import copy
import io
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from tiny import GEOMETRIES, tiny_model
from torch.nn.utils import prune
from transformers import DacModel as StockModel

from codecplus import Codec, load_codec
from codecplus.bitstream import EntropyModel
from codecplus.checkpoints.identity import EMBEDDED_FOLDER
from codecplus.errors import CheckpointError, FileFormatError, InputError, ModelMismatchError
from codecplus.inference.tensors import CodesTensor
from codecplus.streaming import StreamingEncoder
from codecplus.utils import save_audio


@pytest.fixture
def clips(rng) -> np.ndarray:
    return (rng.standard_normal((3, 2, 4000)) * 0.1).astype(np.float32)


# ---- tensors and batches


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy], ids=["arrays", "tensors"])
def test_a_batch_is_its_clips(codec, clips, form):
    codes = codec.encode(form(clips), 8000)
    assert codes.shape == (3, 2, 4, 25)
    audio = codec.decode(codes)
    assert audio.shape == clips.shape
    for number, clip in enumerate(clips):
        expected = codec.encode(clip, 8000)
        np.testing.assert_array_equal(codes[number], expected)
        np.testing.assert_array_equal(audio[number], codec.decode(expected))
        np.testing.assert_array_equal(codec.decode(codes[number]), codec.decode(expected))
    with pytest.raises(InputError, match="a gain of its own; give a list"):
        codec.encode(form(clips), 8000, loudness=-20)
    with pytest.raises(InputError, match=r"at least 1 clip, got shape \(0, 2, 4000\)"):
        codec.encode(form(clips[:0]), 8000)


@pytest.mark.parametrize("form", ["tensor", "pair", "dict", "list"])
def test_tensors_come_back_as_tensors(codec, clips, form):
    tensor = torch.from_numpy(clips[0]).requires_grad_()
    audio = {
        "tensor": tensor,
        "pair": (tensor, 16000),
        "dict": {"array": tensor, "sampling_rate": 16000},
        "list": [tensor, tensor[0]],
    }[form]
    codes = codec.encode(audio)
    decoded = codec.decode(codes)
    if form == "list":
        assert decoded[1].shape == (4000,)
        codes, decoded = codes[0], decoded[0]
    assert type(codes) is CodesTensor
    assert (codes.dtype, codes.device.type) == (torch.int64, "cpu")
    np.testing.assert_array_equal(codes, codec.encode(clips[0]))
    assert type(decoded) is torch.Tensor
    assert (decoded.dtype, decoded.requires_grad) == (torch.float32, False)
    np.testing.assert_array_equal(decoded, codec.decode(codec.encode(clips[0])))
    assert codec.write_codes(codes) == codec.compress(clips[0])
    with torch.no_grad():  # they are what the model takes
        assert codec.model.decode(audio_codes=codes)[0].shape == (2, 13 * 320)


def test_tensors_keep_what_arrays_keep(codec, clips):
    codes = codec.encode(torch.from_numpy(clips[0]), 8000, loudness=-30)
    arrays = codec.encode(clips[0], 8000, loudness=-30)
    first = torch.arange(2)
    for view in (np.s_[:, :2], np.s_[..., 3:5], np.s_[:, 1:], np.s_[1], np.s_[0, 0]):
        assert getattr(codes[view], "info", None) == arrays[view].info
        assert getattr(codes[view], "num_samples", None) == arrays[view].num_samples
    assert codes[:, first].num_samples == 4000
    file = io.BytesIO()
    torch.save({"codes": codes}, file)
    file.seek(0)
    copies = [codes.clone(), codes.to("cpu"), copy.copy(codes), copy.deepcopy(codes)]
    copies += [pickle.loads(pickle.dumps(codes)), torch.load(file)["codes"]]
    for other in copies:
        assert codec.decode(other).shape == (2, 4000)
    for result in (codes + 1, codes.float(), codes == codes):
        assert type(result) is torch.Tensor
    other = Codec(tiny_model(seed=1, **GEOMETRIES["16khz"]))
    with pytest.raises(ModelMismatchError):
        other.decode(codes[:, :2])


def test_the_clips_of_a_batch_are_taken_out_in_any_way(codec, clips):
    # As arrays they would decode at another rate and level, without a word.
    batch = codec.encode(torch.from_numpy(clips), 8000)  # (B, C, K, T)
    expected = [codec.decode(codec.encode(clip, 8000)) for clip in clips]
    ways = {
        "for": list(batch),
        "unbind": batch.unbind(),
        "split": [part.squeeze(0) for part in batch.split(1)],
        "chunk": [part[0] for part in batch.chunk(len(clips))],
        "select": [batch.select(0, i) for i in range(len(clips))],
        "narrow": [batch.narrow(0, i, 1).flatten(0, 1) for i in range(len(clips))],
        "unsqueeze": [part.unsqueeze(0)[0] for part in batch],
    }
    for way, parts in ways.items():
        for part, audio in zip(parts, expected, strict=True):
            np.testing.assert_array_equal(codec.decode(part), audio, err_msg=way)
    first, rest = batch.split([2, 2], dim=-2)
    assert (first.num_samples, getattr(rest, "info", None)) == (clips.shape[-1], None)
    begin, end = batch.tensor_split(2, dim=-1)
    assert (begin.info, end.info, begin.num_samples, end.num_samples) == (batch.info,) * 2 + (
        None,
    ) * 2
    for other in (batch.transpose(-1, -2), batch.view(len(clips), -1), batch.to(torch.uint8)):
        assert getattr(other, "info", None) is None


def test_arrays_are_shaped_otherwise_with_what_stays_true(codec, clips):
    codes = codec.encode(clips[0, :1], 8000, loudness=-30)  # (1, K, T)
    expected = codec.decode(codes)
    for view in (
        codes.squeeze(),
        np.squeeze(codes, 0),
        codes.reshape(codes.shape[1:]),
        codes.take(0, 0),
    ):
        np.testing.assert_array_equal(codec.decode(view), expected[0])
    np.testing.assert_array_equal(codec.decode(np.expand_dims(codes[0], 0)), expected)
    mono = codes[0]
    assert mono.take([0, 1], axis=0).num_samples == codes.num_samples
    for other in (
        mono.take([1, 0], axis=0),
        np.take(mono, [2, 3], axis=0),
        mono.T,
        mono.mT,
        mono.swapaxes(0, 1),
        np.moveaxis(mono, 0, 1),
        mono.repeat(2, axis=0),
    ):
        assert getattr(other, "info", None) is None


@pytest.mark.parametrize(
    ("form", "join", "stack"),
    [(np.asarray, np.concatenate, np.stack), (torch.from_numpy, torch.cat, torch.stack)],
    ids=["arrays", "tensors"],
)
def test_codes_put_together_keep_what_is_true_of_all(codec, clips, form, join, stack):
    first, second, third = (codec.encode(form(clip), 8000) for clip in clips)
    quiet = codec.encode(form(clips[0]), 8000, loudness=-30)
    again = join([first[..., :3], first[..., 3:]], -1)
    assert (again.info, again.num_samples) == (first.info, None)
    np.testing.assert_array_equal(codec.decode(again)[:, :4000], codec.decode(first))
    assert codec.decode(join([first, second], 2)).shape == (2, 2 * 25 * 160)
    batch = stack([first, second, third])
    assert (batch.info, batch.num_samples) == (first.info, 4000)
    np.testing.assert_array_equal(codec.decode(batch), [codec.decode(c) for c in batch])
    channels = join([first, second[:1]], 0)
    assert channels.num_samples == 4000
    np.testing.assert_array_equal(codec.decode(channels)[:2], codec.decode(first))
    short = codec.encode(form(clips[0][:, :3999]), 8000)
    assert (stack([first, short]).info, stack([first, short]).num_samples) == (first.info, None)
    plain = type(form(clips))
    for other in (
        join([first, quiet], 2),  # two gains: no decoder could undo them
        join([first, codec.encode(form(clips[1]), 16000)[..., :5]], 2),
        join(
            [first, plain(first.shape) if plain is torch.Tensor else np.zeros(first.shape, int)], 0
        ),
        join([first[:, :2], first[:, 2:]], 1),
        join([first, first], 1),
        stack([first, first], 2),
        stack([first, first], -1),
        stack([first, quiet]),
    ):
        assert type(other) is plain


def test_arrays_that_are_rolled_or_appended(codec, clips):
    codes = codec.encode(clips[0, 0], 8000)
    assert getattr(np.roll(codes, 1, axis=0), "info", None) is None
    assert (np.roll(codes, 1, axis=1).info, np.roll(codes, 1, axis=1).num_samples) == (
        codes.info,
        None,
    )
    assert np.hstack([codes, codes]).info == codes.info
    assert type(np.append(codes, codes)) is np.ndarray
    assert type(np.vstack([codes, codes])) is np.ndarray


def test_variable_rate_and_plain_tensors_decode(codec, clips, rng):
    codes = codec.encode(torch.from_numpy(clips[0, 0]), rate_control="vbr", quality=3)
    assert int(codes.min()) == -1
    assert codec.decode(codes).shape == (4000,)
    plain = torch.from_numpy(rng.integers(0, 64, (4, 7)))
    np.testing.assert_array_equal(codec.decode(plain), codec.decode(plain.numpy()))
    assert codec.decode(plain[None, None]).shape == (1, 1, 7 * 320)


def test_a_spectrogram_comes_as_the_audio_came(codec, clips):
    array = codec.mel_spectrogram(clips[0])
    tensor = codec.mel_spectrogram((torch.from_numpy(clips[0]), 16000))
    assert isinstance(array, np.ndarray)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(array, tensor)


# ---- audio in all its forms


def test_gradio_and_scipy_give_the_rate_first_and_channels_last(codec, clips):
    audio = (clips[0] * 32768).astype(np.int16)
    expected = codec.encode(audio, 8000)
    np.testing.assert_array_equal(codec.encode((8000, audio.T)), expected)
    np.testing.assert_array_equal(codec.encode((torch.from_numpy(audio), 8000)), expected)
    assert codec.compress((8000, audio.T)) == codec.compress(audio, sample_rate=8000)
    np.testing.assert_array_equal(codec.encode((8000.0, audio[0])), codec.encode(audio[0], 8000))
    # A row of a data set in the format of tensors or arrays has its rate as one, too.
    for rate in (torch.tensor(8000), np.array(8000)):
        for same in ((audio, rate), {"array": audio, "sampling_rate": rate}):
            np.testing.assert_array_equal(codec.encode(same), expected)
    with pytest.raises(InputError, match=r"positive integer, got 8000\.5"):
        codec.encode({"array": audio, "sampling_rate": 8000.5})


@pytest.mark.parametrize("name", ["bytes", "path", "both"])
def test_audio_that_datasets_did_not_decode(codec, clips, tmp_path, name):
    path = tmp_path / "in.wav"
    save_audio(clips[0, 0], path, 8000, subtype="FLOAT")
    cell = {
        "bytes": {"bytes": path.read_bytes(), "path": None},
        "path": {"bytes": None, "path": str(path)},
        "both": {"bytes": path.read_bytes(), "path": "gone.wav"},
    }[name]
    expected = codec.encode(path)
    np.testing.assert_array_equal(codec.encode(cell), expected)
    assert codec.compress(cell) == codec.compress(path)
    batch = codec.encode([cell, path, (clips[0, 0], 8000)])
    for codes in batch:
        np.testing.assert_array_equal(codes, expected)
    assert codec.encode_batch({"audio": [cell, (clips[0, 0], 8000)]})["error"] == ["", ""]
    assert codec.encode_batch({"audio": ["gone.wav"]})["error"] == ["there is no such file"]
    with pytest.raises(InputError, match="knows its own rate"):
        codec.encode(cell, 8000)


def test_the_item_of_a_list_that_is_wrong_is_named(codec, clips):
    with pytest.raises(FileFormatError, match=r"item 1: .* is not readable audio"):
        codec.encode([clips[0], {"bytes": b"nothing", "path": None}])
    with pytest.raises(InputError, match="a list of clips, got NoneType as item 1"):
        codec.encode([clips[0], None])
    with pytest.raises(InputError, match="item 0: expected codes of 1 to 4 codebooks, got 5"):
        codec.decode([np.zeros((5, 2), int)])


# ---- what is no audio, and what are no codes


def test_a_wrong_type_says_what_to_call_instead(codec, clips, tmp_path):
    output = codec.model(torch.zeros(1, 1, 640))
    (tmp_path / "x.dacp").write_bytes(codec.compress(clips[0]))
    with open(tmp_path / "x.dacp", "rb") as file:
        for wrong, advice in [
            (None, "got None"),
            (b"RIFF", "decompress.*'bytes': data.*frombuffer"),
            (file, "open file; give its path"),
            (output, "got the DacOutput of a model; give its audio_values"),
            ({"input_values": clips}, "feature extractor.*give it to the model"),
            ({"audio": {}, "text": ""}, "got audio, text; of a row"),
            (tmp_path / "x.dacp", "a file of codes; decompress decodes it"),
            ((tmp_path / "x.wav", 8000), "got int as item 1; .*a file knows its own"),
            (codec.encode(torch.zeros(320)), "these are codes already"),
        ]:
            for call in (codec.encode, codec.compress):
                with pytest.raises(InputError, match=advice):
                    call(wrong)
    for wrong, advice in [
        (None, "got None"),
        (tmp_path / "x.dacp", "decompress decodes a file, read_codes"),
        ([str(tmp_path / "x.dacp")], "decompress decodes files"),
        (b"\xda", "decompress decodes a file"),
        (output, "DacOutput of a model; give its audio_codes"),
        ({"codes": [[0]]}, "a dict of codes; give one of its columns"),
        (output.quantized_representation, r"latents to codec\.model\.decode"),
        (clips[0], "audio goes to encode"),
        ([[1, 2], [3]], "lists of different lengths"),
    ]:
        for call in (codec.decode, codec.write_codes):
            with pytest.raises(InputError, match=advice):
                call(wrong)
    for wrong in (clips[0], codec.encode(clips[0]), None):
        with pytest.raises(InputError, match="decode decodes codes, compress takes audio"):
            codec.decompress(wrong)
    datasets = pytest.importorskip("datasets")
    with pytest.raises(InputError, match=r"dataset\.map\(codec\.encode_batch, batched=True\)"):
        codec.encode(datasets.Dataset.from_list([{"audio": 1}]))


@pytest.mark.parametrize(
    "call", ["encode", "compress", "file", "push", "encode_clips", "list", "listen"]
)
def test_peaks_far_beyond_full_scale_are_warned_of_once(codec, clips, tmp_path, call):
    def use(audio):
        if call == "push":
            stream = codec.encoder_stream()
            for piece in np.split(audio[0], 4):
                stream.push(piece)
        elif call == "file":
            save_audio(audio, tmp_path / "in.wav", 16000, subtype="FLOAT")
            codec.compress(tmp_path / "in.wav", loudness=-20)
        elif call == "encode_clips":
            codec.encode_clips([audio, audio])
        else:
            getattr(codec, "encode" if call == "list" else call)(audio)

    with pytest.warns(
        UserWarning, match=r"within ±1, got a peak of .*divide them by 32768"
    ) as all_:
        use(clips[0] * 32768)
    assert len(all_) == 1
    assert all_[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use(clips[0] / np.abs(clips[0]).max() * 2)  # 6 dB over
        codec.encode((clips[0] * 32768).astype(np.int16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: "dac-16khz-live", r"got a name; load_codec\('dac-16khz-live'\) loads"),
        (lambda model: type(model), "got the class DacModel; give a model"),
        (lambda model: Codec(model), "got a codec; give its model"),
        (lambda model: torch.nn.DataParallel(model), "got DataParallel; give its module"),
        (
            lambda model: torch.optim.swa_utils.AveragedModel(model),
            "got AveragedModel; give its module",
        ),
        (
            lambda model: StockModel(model.config),
            r"got the DacModel of transformers; save it by save_pretrained\(folder\)",
        ),
        (lambda model: model.encoder, r"got DacEncoder; load_codec\(name\)"),
        (lambda model: None, r"got NoneType; load_codec\(name\)"),
    ],
)
def test_a_codec_of_no_model_says_what_to_give(make, message):
    with pytest.raises(InputError, match=f"expected a DacModel of codecplus, {message}"):
        Codec(make(tiny_model()))


# ---- saving, loading, moving


@pytest.mark.parametrize("causal", [False, True])
def test_a_saved_codec_is_the_same_codec(clips, tmp_path, causal):
    model = tiny_model(causal, **GEOMETRIES["16khz"])
    codec = Codec(model, 22050)
    assert codec.save_pretrained(tmp_path / "saved") == tmp_path / "saved"
    loaded = Codec.from_pretrained(tmp_path / "saved")
    assert type(loaded.model) is type(model)
    assert loaded.fingerprint == codec.fingerprint
    assert (loaded.sample_rate, loaded.mel) == (22050, codec.mel)
    np.testing.assert_array_equal(loaded.encode(clips[0]), codec.encode(clips[0]))
    assert loaded.compress(clips[0]) == codec.compress(clips[0])
    assert load_codec(tmp_path / "saved", 8000).sample_rate == 8000
    files = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= files
    assert "generation_config.json" not in files
    Codec(model).save_pretrained(tmp_path / "saved")  # over the one before
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "codec" not in config
    assert load_codec(tmp_path / "saved").sample_rate == 16000


def test_a_saved_codec_keeps_entropy_models_and_spectrogram(clips, tmp_path):
    codec = load_codec("dac-16khz-live", sample_rate=8000, n_mels=40)
    entropy = next(iter(codec.entropy_models.values()))
    arrays = dict(entropy.arrays)
    arrays["hidden_bias"] = arrays["hidden_bias"] + 1
    another = EntropyModel(arrays, entropy.fingerprint)
    changed = Codec(codec.model, 8000, mel=codec.mel, entropy_models=[another, entropy])
    (tmp_path / "entropy-other.safetensors").write_bytes(entropy.to_bytes())
    changed.save_pretrained(tmp_path)
    loaded = load_codec(tmp_path)
    assert list(loaded.entropy_models) == [another.identity, entropy.identity]
    assert (loaded.sample_rate, loaded.mel.n_mels, loaded.mel.n_fft) == (8000, 40, 2048)
    data = changed.compress(clips[0])
    assert loaded.compress(clips[0]) == data
    assert codec.compress(clips[0]) != data
    embedded = (EMBEDDED_FOLDER / "dac-16khz-live" / "entropy.safetensors").read_bytes()
    assert (tmp_path / "entropy-01.safetensors").read_bytes() == embedded


def test_a_codec_saved_without_entropy_models_has_none_when_it_is_loaded(clips, tmp_path):
    model = load_codec("dac-16khz-live").model
    codec = Codec(model, entropy_models=[])
    codec.save_pretrained(tmp_path / "once")
    load_codec(tmp_path / "once").save_pretrained(tmp_path / "twice")
    loaded = load_codec(tmp_path / "twice")
    assert loaded.entropy_models == {}
    assert loaded.compress(clips[0, 0]) == codec.compress(clips[0, 0])
    model.save_pretrained(tmp_path / "model")  # knows nothing of entropy models
    assert len(load_codec(tmp_path / "model").entropy_models) == 1


@pytest.mark.parametrize(
    "settings", [3, {"sample_rate": -1}, {"mel": {"n_mels": "80"}}, {"mel": 1}]
)
def test_damaged_settings_are_one_sentence(codec, tmp_path, settings):
    codec.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["codec"] = settings
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"settings of the codec .* are damaged"):
        load_codec(tmp_path)


def test_a_codec_is_not_saved_over_a_file(codec, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot save a codec in .*file"):
        codec.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_moving_and_casting_keep_codes_of_the_same_model(codec, clips):
    data = codec.compress(clips[0])
    identity = codec.fingerprint
    stream = codec.encoder_stream()
    assert codec.to("cpu") is codec
    assert codec.to(torch.bfloat16).dtype == "bfloat16"
    assert next(codec.model.parameters()).dtype == torch.bfloat16
    assert codec.fingerprint == identity
    assert codec.decompress(data).shape == (2, 4000)
    assert codec.encoder_stream().network.dtype == torch.bfloat16
    assert stream.push(clips[0, 0]).shape[0] == 4  # opened before
    assert codec.to("cpu", "float32").dtype == "float32"
    for device, message in [("nonsense", "no device nonsense"), (torch.float64, "expected dtype")]:
        with pytest.raises(InputError, match=message):
            codec.to(device)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_an_automatic_precision_gives_the_codes_of_fp32(clips, tmp_path, monkeypatch, causal, fast):
    monkeypatch.setattr("codecplus.inference.loading._decodes_faster_in_bf16", lambda device: fast)
    tiny_model(causal=causal, **GEOMETRIES["odd"]).save_pretrained(tmp_path)
    plain = load_codec(tmp_path)
    codec = load_codec(tmp_path, dtype="auto")
    assert ("float32, decoding in bfloat16 on cpu" in repr(codec)) == fast
    assert ("float32 on cpu" in repr(codec)) == (not fast)
    codes = codec.encode(clips[0])
    np.testing.assert_array_equal(codes, plain.encode(clips[0]))
    expected = plain.decode(codes)
    stream = codec.decoder_stream(batch=2)
    live = np.concatenate([stream.push(codes), stream.flush()], axis=-1)
    for audio in (codec.decode(codes), live[:, : expected.shape[-1]]):
        error = np.linalg.norm(audio - expected) / np.linalg.norm(expected)
        assert (0 < error < 0.05) if fast else error < 1e-5
    assert codec.to("float32").dtype == "float32"


def test_an_exported_codec_says_what_it_cannot(clips, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from codecplus.export import export_onnx

    codec = Codec(tiny_model(True, **GEOMETRIES["16khz"]))
    export_onnx(codec.model, tmp_path)
    exported = load_codec(tmp_path)
    np.testing.assert_array_equal(exported.encode(clips[0]), codec.encode(clips[0]))
    tensor = exported.encode(torch.from_numpy(clips[0]))
    assert exported.decode(tensor).shape == (2, 4000)
    assert (exported.device, exported.dtype) == ("cpu", "float32")
    assert "float32 on cpu" in repr(exported)
    for call, message in [
        (lambda: exported.save_pretrained(tmp_path / "new"), "exported codec cannot be saved"),
        (lambda: exported.push_to_hub("ada/codec"), "exported codec cannot be pushed"),
        (lambda: exported.to("cpu"), "computes where it was loaded"),
        (exported.compile, "runs in another runtime"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
    assert not (tmp_path / "new").exists()


def test_a_codec_is_called_by_its_name(codec, tmp_path):
    codec.save_pretrained(tmp_path / "mine")
    assert repr(load_codec(tmp_path / "mine")).startswith(f"Codec({tmp_path / 'mine'}: 16000 Hz")
    assert repr(codec).startswith(f"Codec({codec.fingerprint.hex()[:8]}: 16000 Hz, 50 frames/s")


# ---- in a notebook


def test_a_notebook_gets_a_player_and_a_spectrogram(codec, clips, monkeypatch):
    import base64
    import sys

    import soundfile

    player = codec.listen(clips[0], 8000)
    assert repr(player) == "AudioPlayer(2 channels, 0.50 s at 8000 Hz; a notebook plays it)"
    html = player._repr_html_()
    sound = html.partition("data:audio/wav;base64,")[2].partition('"')[0]
    played, rate = soundfile.read(io.BytesIO(base64.b64decode(sound)))
    assert rate == 8000
    np.testing.assert_allclose(played.T, clips[0], atol=1e-4)
    decoded = codec.listen(codec.encode(clips[0], 8000))
    assert (decoded.sample_rate, decoded.audio.shape) == (8000, (2, 4000))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "needs matplotlib: pip install 'codecplus[eval]'" in player._repr_html_()
    assert "<audio" in player._repr_html_()


def test_the_spectrogram_is_a_picture(codec, clips):
    pytest.importorskip("matplotlib")
    for audio in (clips[0], np.zeros(8000), np.ones(1)):
        assert codec.listen(audio).spectrogram().startswith(b"\x89PNG")


def test_a_long_recording_does_not_fill_the_notebook(codec):
    player = codec.listen(np.zeros(130 * 4000, np.int16), 4000)
    assert len(player.wav()) < 121 * 8000


def test_adapters_are_refused_where_only_weights_are_read(codec, clips):
    codec.model.quantizer.quantizers[0].out_proj.register_forward_hook(lambda *_: None)
    codec.encode(clips[0])  # runs the modules
    for call in (
        codec.encoder_stream,
        codec.decoder_stream,
        lambda: codec.compress(clips[0], effort=1),
    ):
        with pytest.raises(InputError, match="without adapters and forward hooks"):
            call()


def test_codes_of_trained_weights_are_not_those_of_the_weights_before(codec, clips):
    before, identity = codec.encode(clips[0]), codec.fingerprint
    optimizer = torch.optim.SGD(codec.model.parameters(), lr=0.1)
    codec.model(torch.from_numpy(clips[0, :1, None])).loss.backward()
    optimizer.step()
    assert codec.fingerprint == codec.network.fingerprint != identity
    with pytest.raises(ModelMismatchError):
        codec.decode(before)
    assert codec.fingerprint.startswith(codec.encode(clips[0]).info.fingerprint)
    trained = codec.fingerprint
    assert codec.to("bfloat16").fingerprint == trained
    assert codec.to("float16").fingerprint == trained  # a cast is no training
    codec.model.bfloat16().half()
    for other in (codec, copy.deepcopy(codec), pickle.loads(pickle.dumps(codec))):
        assert other.fingerprint == trained


def step(optimizer, **options):
    """One step of training with an optimizer of torch."""

    def change(model):
        one = optimizer(model.parameters(), lr=0.1, **options)
        model(torch.ones(1, 1, 512)).loss.backward()
        one.step()

    return change


def scale_data(model):
    for weight in model.parameters():
        weight.data.mul_(1.1)


def replace_data(model):
    vector = torch.nn.utils.parameters_to_vector(model.parameters())
    torch.nn.utils.vector_to_parameters(1.1 * vector, model.parameters())


def clear_entry(model):
    model.quantizer.quantizers[2].codebook.weight.data[40] = 0


@pytest.mark.parametrize(
    "change",
    [
        step(torch.optim.SGD),
        step(torch.optim.SGD, fused=True),
        step(torch.optim.AdamW, foreach=True),
        step(torch.optim.AdamW, fused=True),
        scale_data,
        replace_data,
        clear_entry,
    ],
    ids=["sgd", "fused sgd", "adamw", "fused adamw", "data", "new data", "one entry"],
)
def test_every_way_to_write_weights_is_seen(change):
    # torch counts no writes of fused optimizers, which transformers' Trainer uses, and to `data`.
    codec = Codec(tiny_model())
    identity, stream = codec.fingerprint, codec.network._prepared(StreamingEncoder)
    change(codec.model)
    assert codec.fingerprint == codec.network.fingerprint != identity
    assert codec.network._prepared(StreamingEncoder) is not stream
    assert codec.network._prepared(StreamingEncoder) is codec.network._prepared(StreamingEncoder)


def test_a_pruned_model_keeps_its_identity_where_masks_become_zeros():
    codec = Codec(tiny_model())
    convolution = codec.model.encoder.conv1
    before = codec.fingerprint
    prune.l1_unstructured(convolution, "weight", 0.5)
    pruned = codec.fingerprint
    prune.remove(convolution, "weight")
    assert codec.fingerprint == pruned != before


@pytest.mark.parametrize("fused", [False, True])
def test_a_codec_of_a_model_in_training_leaves_the_training_alone(fused):
    # Fused optimizers read weights and their own state in the order of memory.
    def train(look):
        model = tiny_model(downsampling_ratios=[2, 4])
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
        for i in range(4):
            if look and i == 2:
                Codec(model).encode(np.zeros(800, np.float32))
            loss = model.train()(torch.ones(1, 1, 160)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.state_dict()

    alone = train(False)
    for name, value in train(True).items():
        torch.testing.assert_close(value, alone[name], atol=1e-6, rtol=0, msg=name)


def test_datasets_takes_a_codec_for_the_same_function_in_every_run(codec):
    # Else `map` would compute again what lies in its cache.
    hasher = pytest.importorskip("datasets.fingerprint").Hasher
    codec.encoder_stream()
    expected = hasher.hash(codec.encode_batch)
    assert hasher.hash(copy.deepcopy(codec).encode_batch) == expected
    with torch.no_grad():
        codec.model.encoder.conv1.weight.mul_(2)
    assert hasher.hash(codec.encode_batch) != expected


def test_streams_opened_after_a_change_of_the_model_have_it(codec, clips):
    before = codec.encoder_stream()
    codes = codec.encode(clips[0, 0])
    with torch.no_grad():
        codec.model.encoder.conv2.weight.mul_(-1)
        codec.model.encoder.conv2.bias.add_(1)
        codec.model.decoder.conv1.weight.mul_(-1)
    changed = codec.encode(clips[0, 0])
    assert not np.array_equal(changed, codes)
    for stream, expected in ((before, codes), (codec.encoder_stream(), changed)):
        pieces = [stream.push(clips[0, 0]), stream.flush()]
        np.testing.assert_array_equal(np.concatenate(pieces, axis=-1), expected)
    stream = codec.decoder_stream()
    pieces = [stream.push(np.asarray(changed)), stream.flush()]
    audio = np.concatenate(pieces, axis=-1)[:4000]
    np.testing.assert_allclose(audio, codec.decode(changed), atol=1e-4)
    hook = codec.model.encoder.conv1.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="without adapters and forward hooks"):
        codec.encoder_stream()
    hook.remove()
    codec.encoder_stream()


def test_a_stream_takes_tensors_and_refuses_a_rate(codec, clips):
    encoder = codec.encoder_stream()
    half = torch.from_numpy(clips[0, 0]).bfloat16()
    codes = np.concatenate([encoder.push(half), encoder.flush()], axis=-1)
    np.testing.assert_array_equal(codes, codec.encode(half.float().numpy()))
    for wrong in ((16000, clips[0, 0]), (clips[0, 0], 16000)):
        with pytest.raises(InputError, match="an array alone, got tuple; a stream has the model's"):
            encoder.push(wrong)
