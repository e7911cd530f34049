"""An export gives what the model gives, and needs no torch for it."""

import doctest
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny import GEOMETRIES, KINDS, tiny_model

from codecplus import Codec, load_codec
from codecplus.cli import main
from codecplus.errors import CheckpointError, InputError, ModelMismatchError, OutputExistsError
from codecplus.export import export_onnx
from codecplus.inference.onnx_model import OnnxModel, find_export
from codecplus.utils import load_audio, save_audio

KEYS = list(KINDS)


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """key -> a codec in torch and a stateless export of it, each made once."""
    made = {}

    def get(key):
        if key not in made:
            model = tiny_model(key[1], **KINDS[key])
            folder = tmp_path_factory.mktemp("export")
            export_onnx(model, folder)
            made[key] = Codec(model), folder
        return made[key]

    return get


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A causal codec in torch, and the folder of its stateful export."""
    folder, model = tmp_path_factory.mktemp("live"), tiny_model(True, **GEOMETRIES["16khz"])
    export_onnx(model, folder, stateful=True)
    return Codec(model), folder


def clip(seconds_of: Codec, seconds: float, channels: int = 1) -> np.ndarray:
    """Noise that swells and fades, so that frames differ."""
    n = int(seconds * seconds_of.sample_rate)
    noise = np.random.default_rng(1).standard_normal((channels, n)).astype(np.float32)
    return noise * (0.3 * np.sin(np.linspace(0, 20, n, dtype=np.float32)) ** 2)


def same(a: np.ndarray, b: np.ndarray) -> float:
    """The share of codes that are equal."""
    assert a.shape == b.shape
    return float((np.asarray(a) == np.asarray(b)).mean())


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_an_export_gives_the_codes_and_audio_of_its_model(exports, key):
    codec, folder = exports(key)
    exported = load_codec(folder)
    audio = clip(codec, 0.5, channels=2)
    expected = codec.encode(audio)
    assert same(exported.encode(audio), expected) >= 0.999
    holes = np.array(expected)
    holes[:, 2:, 5:9] = -1  # frames that lack their finest codebooks
    ours, theirs = (
        np.concatenate(list(c.network.decode_blocks([holes])), axis=-1) for c in (exported, codec)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    for codes in (
        expected,
        expected[:, :1],
        expected[0, :3],
    ):  # any number of codebooks, one channel or two
        np.testing.assert_allclose(exported.decode(codes), codec.decode(codes), atol=1e-4)


def test_an_export_has_the_api_of_a_codec(exports, tmp_path):
    codec, folder = exports(("44khz", False))
    exported = load_codec(folder / "model.onnx", sample_rate=22050, n_mels=20)
    assert isinstance(exported, Codec)
    for name in (
        "fingerprint",
        "bitrates",
        "frame_rate",
        "hop_length",
        "latency",
        "model_sample_rate",
    ):
        assert getattr(exported, name) == getattr(codec, name), name
    assert exported.sample_rate == 22050
    audio = clip(exported, 0.3)[0]
    save_audio(audio, tmp_path / "in.wav", 22050)
    exported.compress(
        tmp_path / "in.wav", tmp_path / "out.dacp", bitrate=exported.bitrates[2], loudness=-23
    )
    np.testing.assert_allclose(  # each reads what the other wrote
        codec.decompress(tmp_path / "out.dacp"),
        exported.decompress(tmp_path / "out.dacp"),
        atol=1e-4,
    )
    data = codec.compress(audio, sample_rate=22050, n_quantizers=2)
    assert exported.decompress(data).shape == audio.shape
    assert exported.mel_spectrogram(audio).shape[0] == 20
    assert exported.encode([audio, audio[:100]])[1].shape == (4, 1)
    with pytest.raises(InputError, match="1 to 4 codebooks, got n_quantizers=5"):
        exported.encode(audio, n_quantizers=5)
    with pytest.raises(ModelMismatchError):
        load_codec(exports(("odd", False))[1]).decompress(data)


@pytest.mark.parametrize("key", [("odd", False), ("16khz", True)], ids=str)
def test_long_files_are_coded_in_exact_chunks(exports, key, monkeypatch):
    _, folder = exports(key)
    exported = load_codec(folder)
    audio = clip(exported, 3)[0]
    whole = exported.encode(audio)
    decoded = exported.decode(whole)
    monkeypatch.setattr("codecplus.inference.onnx_model._CHUNK_ELEMENTS", 1)  # the least: 32 frames
    assert whole.shape[-1] > 3 * 32
    assert same(exported.encode(audio), whole) >= 0.999
    np.testing.assert_allclose(exported.decode(whole), decoded, atol=1e-4)


def test_a_stateful_export_streams_and_codes_files(live, monkeypatch):
    codec, folder = live
    exported = load_codec(folder)
    monkeypatch.setattr("codecplus.inference.onnx_model._CHUNK_ELEMENTS", 1)
    audio = clip(codec, 2)[0]
    expected = codec.encode(audio)
    assert same(exported.encode(audio), expected) >= 0.999
    np.testing.assert_allclose(exported.decode(expected), codec.decode(expected), atol=1e-4)

    encoder, decoder = exported.encoder_stream(n_quantizers=3), exported.decoder_stream()
    cuts = [0, 1, 319, 320, 321, 5000, 5001, len(audio)]
    codes = [encoder.push(audio[a:b]) for a, b in pairwise(cuts)]
    assert [c.shape[-1] for c in codes[:4]] == [0, 0, 1, 0]  # a frame is out with its last sample
    codes.append(encoder.flush())
    assert same(np.concatenate(codes, axis=-1), expected[:3]) >= 0.999
    samples = np.concatenate([decoder.push(c) for c in codes] + [decoder.flush()])
    reference = codec.decode(np.asarray(expected[:3]))
    np.testing.assert_allclose(samples, reference, atol=1e-4)
    np.testing.assert_allclose(
        np.concatenate([decoder.push(c) for c in codes]), reference, atol=1e-4
    )  # began anew


def test_rows_of_a_stream_begin_and_end_at_any_frame(live):
    codec, folder = live
    encoder = load_codec(folder).encoder_stream(batch=2)
    audio = clip(codec, 0.2, channels=2)
    encoder.push(audio)
    encoder.reset(rows=1)
    again, expected = encoder.push(audio), codec.encode(audio)
    assert same(again[1], expected[1]) >= 0.999
    assert same(again[0], codec.encode(np.concatenate([audio, audio], axis=1))[0][:, 10:]) >= 0.999
    encoder.push(audio[:, :7])
    with pytest.raises(InputError, match="end of a frame, got 7 samples"):
        encoder.reset(rows=0)


def test_streams_need_a_state(exports):
    exported = load_codec(exports(("16khz", True))[1])
    with pytest.raises(InputError, match="export the model with --stateful"):
        exported.encoder_stream()
    with pytest.raises(InputError, match="stateful graph is for causal models"):
        export_onnx(tiny_model(), "anywhere", stateful=True)


def test_half_precision_stays_close(tmp_path):
    model = tiny_model(**GEOMETRIES["16khz"])
    codec = Codec(model)
    export_onnx(model, tmp_path / "half.onnx", precision="fp16")
    exported = load_codec(tmp_path / "half.onnx")
    audio = clip(codec, 0.5)[0]
    codes = codec.encode(audio)
    assert same(exported.encode(audio)[0], codes[0]) > 0.9
    assert snr(exported.decode(codes), codec.decode(codes)) > 30
    weights = onnx.load(tmp_path / "half.decoder.onnx").graph.initializer
    assert sum(w.data_type == onnx.TensorProto.FLOAT16 for w in weights) > 20


def snr(estimate: np.ndarray, reference: np.ndarray) -> float:
    return float(10 * np.log10((reference**2).sum() / ((estimate - reference) ** 2).sum()))


@pytest.mark.parametrize("stateful", [False, True])
def test_int8_quantizes_every_convolution(tmp_path, stateful):
    model = tiny_model(stateful, **GEOMETRIES["16khz"])
    codec = Codec(model)
    audio = clip(codec, 1.0)[0]
    paths = export_onnx(model, tmp_path, precision="int8", calibration=[audio], stateful=stateful)
    exported = load_codec(tmp_path)
    for path in paths:
        graph = onnx.load(path).graph
        weights = {w.name: w.data_type for w in graph.initializer}
        made_by = {output: node for node in graph.node for output in node.output}
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        assert (
            len(convolutions) == 30
        )  # 4 blocks of 7, and two ends: the transposed ones are among them
        for node in convolutions:
            assert weights[made_by[node.input[1]].input[0]] == onnx.TensorProto.INT8
        for node in convolutions[1:-1]:  # audio and latents stay wider than 8 bits
            assert made_by[node.input[0]].op_type == "DequantizeLinear"
    codes = codec.encode(audio)
    assert same(exported.encode(audio)[0], codes[0]) > 0.5
    assert snr(exported.decode(codes), codec.decode(codes)) > 8
    assert exported.fingerprint == codec.fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "expected precision fp32, fp16, int8, got 'int4'"),
        ({"precision": "int8"}, "int8 needs recordings to calibrate on"),
        ({"calibration": []}, "calibration is for int8"),
        ({"precision": "int8", "calibration": [np.zeros(99999)]}, "not silent, got none"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        export_onnx(tiny_model(), tmp_path / "x.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_the_command_line_exports_evaluates_and_codes(tmp_path, capsys, rng):
    model = tiny_model(True, **GEOMETRIES["16khz"])
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "sounds").mkdir()
    audio = clip(Codec(model), 1.2)[0]
    save_audio(audio, tmp_path / "sounds" / "a.wav", 16000)
    out = str(tmp_path / "out" / "tiny.onnx")
    arguments = [
        "export",
        "--model",
        str(tmp_path / "model"),
        "--output",
        out,
        "--precision",
        "int8",
        "--stateful",
    ]
    assert main([*arguments, "--calibration", str(tmp_path / "sounds")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "tiny.decoder.onnx",
        "tiny.encoder.onnx",
    ]
    assert "tiny.encoder.onnx" in capsys.readouterr().out
    assert main([*arguments, "--calibration", str(tmp_path / "sounds")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--force", "--calibration", str(tmp_path / "nowhere")]) == 2
    assert (
        main(
            [
                "encode",
                str(tmp_path / "sounds" / "a.wav"),
                "-o",
                str(tmp_path / "a.dacp"),
                "--model",
                out,
            ]
        )
        == 0
    )
    assert (
        main(["decode", str(tmp_path / "a.dacp"), "-o", str(tmp_path / "b.wav"), "--model", out])
        == 0
    )
    assert load_audio(tmp_path / "b.wav")[0].shape == audio.shape


def test_existing_files_are_not_overwritten_without_permission(tmp_path):
    (tmp_path / "x.decoder.onnx").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"x\.decoder\.onnx exists already"):
        export_onnx(tiny_model(), tmp_path / "x.onnx", overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["x.decoder.onnx"]


def test_an_export_runs_without_torch(live, tmp_path):
    codec, folder = live
    audio = clip(codec, 0.3)[0]
    np.save(tmp_path / "audio.npy", audio)
    np.save(tmp_path / "codes.npy", codec.encode(audio))
    script = """if True:
        import sys, numpy as np
        class Block:  # as on a machine without them
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("torch", "transformers", "onnx"):
                    raise ImportError(f"{name} is blocked")
        sys.meta_path.insert(0, Block())
        from codecplus import load_codec
        from codecplus.cli import main
        folder, place = sys.argv[1:]
        codec = load_codec(folder + "/model.onnx")
        audio, expected = np.load(place + "/audio.npy"), np.load(place + "/codes.npy")
        codes = codec.encode(audio)
        assert (codes == expected).mean() > 0.999
        stream, player = codec.encoder_stream(), codec.decoder_stream()
        assert player.push(stream.push(audio)).shape == (len(audio) // 320 * 320,)
        codec.compress(audio, place + "/a.dacp", sample_rate=44100)
        assert main(["decode", place + "/a.dacp", "-o", place + "/a.wav", "--model", folder]) == 0
        assert main(["info", place + "/a.dacp"]) == 0
        assert "torch" not in sys.modules and "transformers" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-c", script, folder, tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_broken_export_raises_an_error_of_one_sentence(exports, tmp_path):
    _, folder = exports(("odd", False))
    encoder, decoder = (folder / f"model.{half}.onnx" for half in ("encoder", "decoder"))
    (tmp_path / "model.encoder.onnx").write_bytes(encoder.read_bytes())
    with pytest.raises(
        CheckpointError, match=r"no file .*model\.decoder\.onnx; an export is two files"
    ):
        load_codec(tmp_path)
    with pytest.raises(CheckpointError, match="an export is two files"):
        load_codec(tmp_path / "other.onnx")
    other = exports(("16khz", False))[1] / "model.decoder.onnx"
    (tmp_path / "model.decoder.onnx").write_bytes(other.read_bytes())
    with pytest.raises(CheckpointError, match="not of one export"):
        load_codec(tmp_path)
    (tmp_path / "model.decoder.onnx").write_bytes(decoder.read_bytes()[:999])
    with pytest.raises(CheckpointError, match=r"cannot load .*model\.decoder\.onnx"):
        load_codec(tmp_path)
    for change, message in (
        ({"hop_length": "0"}, "hop_length is 0"),
        ({"n_codebooks": "x"}, "damaged"),
        ({"fingerprint": "zz"}, "no fingerprint"),
        ({"codecplus_export": "9"}, "export it again"),
    ):
        model = onnx.load(encoder)
        for entry in model.metadata_props:
            entry.value = change.get(entry.key, entry.value)
        onnx.save(model, tmp_path / "model.encoder.onnx")
        with pytest.raises(CheckpointError, match=message):
            OnnxModel(tmp_path / "model.encoder.onnx", decoder)
    with pytest.raises(InputError, match="dtype and revision are for models in torch"):
        load_codec(folder, dtype="float16")
    with pytest.raises(InputError, match="no device tpu"):
        load_codec(folder, device="tpu")
    assert find_export(folder / "nothing.pth") is None


def test_the_graphs_have_metadata_for_any_runtime(exports):
    codec, folder = exports(("44khz", False))
    session = onnxruntime.InferenceSession(folder / "model.decoder.onnx")
    told = session.get_modelmeta().custom_metadata_map
    assert (told["sampling_rate"], told["hop_length"], told["n_codebooks"]) == ("44100", "512", "4")
    assert (told["model_type"], told["fingerprint"]) == ("dac", codec.fingerprint.hex())
    assert int(told["latency_samples"]) == codec.model.latency_samples
    assert [value.shape for value in session.get_inputs()] == [["batch", "codebooks", "frames"]]
    for half in ("encoder", "decoder"):
        onnx.checker.check_model(onnx.load(folder / f"model.{half}.onnx"), full_check=True)


@pytest.mark.slow
def test_torch_export_takes_both_halves():
    model = tiny_model(downsampling_ratios=[2, 5], sampling_rate=8000)

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, audio):
            return self.model.encode(audio, return_dict=False)[2]

    class Decoder(Encoder):
        def forward(self, codes):
            return self.model.decode(audio_codes=codes, return_dict=False)[0]

    batch, frames = (
        torch.export.Dim("batch", min=1, max=64),
        torch.export.Dim("frames", min=2, max=4096),
    )
    with torch.no_grad():
        audio, other = torch.randn(2, 1, 10 * 20), torch.randn(3, 1, 10 * 33)
        encoder = torch.export.export(
            Encoder(), (audio,), dynamic_shapes=({0: batch, 2: 10 * frames},), strict=False
        ).module()
        codes = encoder(other)
        assert torch.equal(codes, model.encode(other).audio_codes)
        decoder = torch.export.export(
            Decoder(), (codes,), dynamic_shapes=({0: batch, 2: frames},), strict=False
        ).module()
        torch.testing.assert_close(
            decoder(codes[:2, :, :25]), model.decode(audio_codes=codes[:2, :, :25]).audio_values
        )


def test_the_examples_of_the_page_run():
    page = Path(__file__).parents[2] / "docs" / "export.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 5
    assert result.failed == 0
