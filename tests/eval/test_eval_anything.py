"""Audio, programs and metrics of other people take part."""

import json
import shutil
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile
from eval_signals import LYRA, HalfCodec, speech_like

import codecplus.eval.codecs as codecs_module
from codecplus.cli import main
from codecplus.errors import CheckpointError, FileFormatError, InputError, MissingExtraError
from codecplus.eval import EvaluationConfig, load_results, run_evaluation, score
from codecplus.eval.codecs import DecodedFolder, Original, resolve_codecs
from codecplus.eval.codecs.command import CommandCodec, command_presets, load_command
from codecplus.eval.metrics import METRICS, metric, metric_by_name, metrics_by_name
from codecplus.eval.report.terminal import aligned, average_over_tasks, terminal_report
from codecplus.eval.runner import load_rerun
from codecplus.eval.tasks import Clip, load_task


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(codecs_module.CODECS, "half", HalfCodec)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "inner").mkdir(parents=True)
    soundfile.write(folder / "a.wav", speech_like(1.0), 16_000, "FLOAT")
    soundfile.write(folder / "inner" / "b.wav", speech_like(1.2, seed=1), 16_000, "FLOAT")
    rows = "a.wav,speech,ada\ninner/b.wav,music,ben\n"
    (folder / "MANIFEST.csv").write_text(f"path,kind,speaker\n{rows}")
    return folder


def run(data, out, codecs=(), **settings):
    settings = {"metrics": ("snr",), "workers": 1, "progress": False, **settings}
    config = EvaluationConfig(codecs=codecs, data=str(data), out=out, **settings)
    return load_results(run_evaluation(config))


# ---- audio that exists already


def test_decoded_files_are_scored_as_their_recordings(data, tmp_path):
    decoded = tmp_path / "decoded"
    decoded.mkdir()
    a, _ = soundfile.read(data / "a.wav", dtype="float32")
    soundfile.write(decoded / "a.flac", 0.5 * a, 16_000, "PCM_24")
    b, _ = soundfile.read(data / "inner" / "b.wav", dtype="float32")
    soundfile.write(decoded / "b.wav", b[:-800], 16_000, "FLOAT")  # 50 ms short: filled up
    results = run(data, tmp_path / "out", decoded=[f"theirs={decoded},kbps=6"], metrics=("gain",))
    rows = {row.source: row for row in results.rows if row.codec == "theirs@6"}
    assert {row.status for row in rows.values()} == {"ok"}
    assert rows["a.wav"].scores["gain"].value == pytest.approx(-6.02, abs=0.01)
    part = results.summary["codecs"]["theirs@6"]["domains"]["all"]
    assert (part["rate_from"], part["rate_kbps"]) == ("declared", pytest.approx(6.0, rel=1e-3))
    assert "declared" in terminal_report(results, 120)
    soundfile.write(decoded / "a.flac", a, 16_000, "PCM_24")  # decoded again: scored again
    again = run(data, tmp_path / "out", decoded=[f"theirs={decoded},kbps=6"], metrics=("gain",))
    row = next(row for row in again.rows if (row.codec, row.source) == ("theirs@6", "a.wav"))
    assert row.scores["gain"].value == pytest.approx(0, abs=0.01)


def test_what_is_missing_or_differs_in_length_is_a_failure(data, tmp_path):
    decoded = tmp_path / "decoded"
    decoded.mkdir()
    soundfile.write(decoded / "a.wav", np.zeros(4000), 16_000)
    results = run(data, tmp_path / "out", decoded=[f"theirs={decoded}"])
    reasons = {row.source: row.reason for row in results.rows if row.codec == "theirs"}
    assert reasons["a.wav"] == "a.wav lasts 0.25 s, 0.75 s less than the recording"
    assert reasons["inner/b.wav"].startswith("there is no file for inner/b.wav in")


@pytest.mark.parametrize("text", ["folder", "=folder", "name=", "name=folder,kbps=six"])
def test_decoded_says_what_it_expects(text):
    with pytest.raises(InputError, match="expected NAME=FOLDER or NAME=FOLDER,kbps=6, got"):
        DecodedFolder.parse(text)
    with pytest.raises(InputError, match="there is no folder nowhere"):
        DecodedFolder.parse("name=nowhere,kbps=6")


# ---- programs

PROGRAM = """
import sys, wave
kind, source, target = sys.argv[1:4]
data = open(source, "rb").read()
if kind == "encode":
    data = data[::-1]
else:
    data = data[::-1]
open(target, "wb").write(data)
"""


@pytest.fixture
def program(tmp_path):
    script = tmp_path / "mirror.py"
    script.write_text(PROGRAM)
    toml = tmp_path / "mirror.toml"
    toml.write_text(
        f'encode = "{sys.executable} {script} encode {{input}} {{output}} {{bps}}"\n'
        f'decode = "{sys.executable} {script} decode {{input}} {{output}}"\n'
        "channels = 1\ndefault_rate = 16\n"
    )
    return toml


def test_a_program_of_two_command_lines_is_a_codec(program, data, tmp_path):
    results = run(data, tmp_path / "out", [str(program)], bitrates=[8])
    rows = [row for row in results.rows if row.codec == "mirror@8"]
    assert {row.status for row in rows} == {"ok"}
    assert all(row.scores["snr"].value > 60 for row in rows)  # 16-bit WAV files
    assert rows[0].payload_bits == rows[0].file_bits - 32
    stereo = np.stack([speech_like(0.5), speech_like(0.5, seed=1)])
    codec = CommandCodec(load_command(program))
    assert codec.name == "mirror@16"
    payload = codec.encode(stereo, 16_000)
    decoded = codec.decode(payload.data, Original(2, stereo.shape[1], 16_000))
    assert np.abs(decoded - stereo).max() < 1e-4


def test_a_program_that_fails_says_why(tmp_path):
    toml = tmp_path / "bad.toml"
    command = f"{sys.executable} -c 'raise SystemExit(\\\"no such mode\\\")' {{input}} {{output}}"
    toml.write_text(f'encode = "{command}"\ndecode = "{command}"\n')
    with pytest.raises(InputError, match="ended with status 1: no such mode"):
        CommandCodec(load_command(toml)).encode(speech_like(0.1)[None], 16_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('encode = "x {input}"', "has no 'decode'"),
        ('encode = "x"\ndecode = "y"\nsped = 3', "has 'sped'"),
        ("encode = ", "is no TOML"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text, message):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(FileFormatError, match=message):
        load_command(tmp_path / "x.toml")


def test_settings_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "x.toml").write_text('encode = "x {inputs}"\ndecode = "y"\n')
    with pytest.raises(InputError, match=r"has \{inputs\} in a command; expected one of"):
        load_command(tmp_path / "x.toml")
    (tmp_path / "x.toml").write_text('encode = "no-such-program {input}"\ndecode = "y {input}"\n')
    with pytest.raises(MissingExtraError, match="needs the program no-such-program; install"):
        resolve_codecs([str(tmp_path / "x.toml")])


@pytest.mark.parametrize("name", ["codec2", "lc3", "opusenc", "speex"])
def test_presets_of_programs_code_speech(name):
    settings = command_presets()[name]
    if shutil.which(settings.encode.split()[0]) is None:
        pytest.skip(f"{settings.package} is not installed")
    kbps = 3.2 if name == "codec2" else 20.0
    codec = CommandCodec(settings, kbps)
    audio = speech_like(1.0)[None]
    payload = codec.encode(audio, 16_000)
    decoded = codec.decode(payload.data, Original(1, audio.shape[1], 16_000))
    assert payload.bits / 1000 == pytest.approx(codec.nominal_kbps, rel=0.35)
    assert score(audio, decoded, 16_000, ["stoi"])["stoi"].value > 0.6


# ---- networks of others


def test_lyra_codes_speech_from_a_folder(tmp_path):
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")
    if not LYRA.is_dir():
        pytest.skip("the networks of Lyra are not part of this package")
    low, high = resolve_codecs([f"lyra:{LYRA}"], [3, 9])[3:]
    assert (low.name, high.name) == ("lyra@3.2", "lyra@9.2")
    audio = speech_like(1.0)[None]
    payload = low.encode(audio, 16_000)
    assert payload.bits == 50 * 64 == 8 * len(payload.data)
    decoded = low.decode(payload.data, Original(1, audio.shape[1], 16_000))
    assert score(audio, decoded, 16_000, ["stoi"])["stoi"].value > 0.6
    codes, size = low.codes(payload.data)
    assert (codes.shape, size) == ((16, 50), 16)
    assert np.array_equal(low.decode(payload.data, Original(1, 16_000, 16_000)), decoded)


def test_a_folder_without_lyras_networks_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no soundstream_encoder.tflite in"):
        resolve_codecs([f"lyra:{tmp_path}"])


def test_snac_has_codes_of_several_rates(tmp_path):
    snac = pytest.importorskip("snac", reason="the package snac is not installed")
    import torch

    config = {
        "sampling_rate": 16_000,
        "encoder_dim": 4,
        "encoder_rates": [2, 4],
        "decoder_dim": 16,
        "decoder_rates": [4, 2],
        "attn_window_size": None,
        "codebook_size": 64,
        "vq_strides": [4, 2, 1],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    torch.save(snac.SNAC(**config).state_dict(), tmp_path / "pytorch_model.bin")
    codec = resolve_codecs([f"snac:{tmp_path}"])[-1]
    audio = speech_like(0.1)[None]
    payload = codec.encode(audio, 16_000)
    books, size = codec.codes(payload.data)
    assert [len(book) for book in books] == [50, 100, 200]
    assert (size, payload.bits) == (64, 6 * 350)
    assert codec.decode(payload.data, Original(1, 1600, 16_000)).shape == audio.shape


# ---- metrics


def test_a_function_of_several_outputs_is_called_once():
    calls = []

    @metric(
        outputs={"high": {"title": "High", "higher_is_better": True}, "low": {"title": "Low"}},
        unit="",
        higher_is_better=False,
        lowest=-1,
        highest=1,
        needs_reference=False,
        source="a test",
    )
    def extremes(estimate, sample_rate):
        calls.append(sample_rate)
        return {"high": float(estimate.max()), "low": float(estimate.min())}

    try:
        signal = np.array([0.5, -0.25, 0.1], np.float32)
        values = [
            METRICS[name].function(signal, 16_000) for name in ("extremes_high", "extremes_low")
        ]
        assert values == [0.5, -0.25]
        assert calls == [16_000]
        assert METRICS["extremes_high"].higher_is_better is True
        assert METRICS["extremes_low"].module == __name__
    finally:
        del METRICS["extremes_high"], METRICS["extremes_low"]


def test_a_metric_of_another_package_is_found_and_scored(tmp_path, monkeypatch):
    package = tmp_path / "site" / "roughness.py"
    package.parent.mkdir()
    package.write_text(
        textwrap.dedent(
            """
            import numpy as np
            from codecplus.eval.metrics import metric

            @metric(title="Roughness", unit="", higher_is_better=False, lowest=0, highest=9,
                    source="a test", needs_reference=False)
            def roughness(estimate, sample_rate):
                return float(np.abs(np.diff(estimate)).mean())
            """
        )
    )
    info = tmp_path / "site" / "roughness-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: roughness\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[codecplus.metrics]\nroughness = roughness\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr("codecplus.eval.metrics._loaded_entry_points", False)
    try:
        assert "roughness" in {entry.name for entry in metrics_by_name()}
        signal = np.array([0.0, 1.0] * 4000, np.float32)
        result = score(signal, signal, 16_000, ["roughness"])["roughness"]
        assert result.value == pytest.approx(1.0)
    finally:
        METRICS.pop("roughness", None)


def test_names_that_other_tools_have_and_names_that_nobody_has():
    assert metric_by_name("pesq").name == "pesq_wb"
    assert [entry.name for entry in metrics_by_name(["lsd", "pesq_wb", "PESQ"])] == [
        "pesq_wb",
        "log_spectral_distance",
    ]
    with pytest.raises(InputError, match="unknown metric 'pesk'; did you mean 'pesq'"):
        metric_by_name("pesk")


def test_the_power_of_each_band_is_that_of_the_filter():
    from scipy.signal import butter, sosfilt

    rng = np.random.default_rng(0)
    x = (0.1 * rng.standard_normal(32_000)).astype(np.float32)
    names = [f"band_power_{band}" for band in ("0_1", "5_6", "11_16")] + ["band_power_error"]
    dull = sosfilt(butter(8, 3000, fs=16_000, output="sos"), x).astype(np.float32)
    scores = score(x, dull, 16_000, names)
    assert scores["band_power_0_1"].value == pytest.approx(0, abs=0.1)
    assert scores["band_power_5_6"].value < -30
    assert scores["band_power_11_16"].status == "reference_unscorable"
    assert scores["band_power_error"].value > 10
    half = score(x, 0.5 * x, 16_000, names)
    assert half["band_power_5_6"].value == pytest.approx(-6.02, abs=0.01)
    assert half["band_power_error"].value == pytest.approx(6.02, abs=0.01)


def test_level_sign_clipping_and_lag_describe_the_output():
    rng = np.random.default_rng(0)
    t = np.arange(16_000) / 16_000
    tone = sum(np.sin(2 * np.pi * 220 * k * t) / k for k in range(1, 9))  # a period of 72.7 samples
    x = (0.1 * tone + 0.001 * rng.standard_normal(16_000)).astype(np.float32)
    late = -0.5 * np.roll(x, 7)
    names = ["gain", "polarity", "lag", "si_sdr_aligned"]
    scores = {name: value.value for name, value in score(x, late, 16_000, names).items()}
    assert scores["gain"] == pytest.approx(-6.02, abs=0.01)
    assert scores["polarity"] == -1
    assert scores["lag"] == pytest.approx(7 / 16)
    assert scores["si_sdr_aligned"] > 10
    loud = x.copy()
    loud[100:108] = 1.5
    clipped = score(x, loud, 16_000, ["clipping"])["clipping"].value
    assert clipped == pytest.approx(100 * 8 / 16_000)


def test_mel_cepstral_distortion_knows_equal_signals_and_different_filters():
    x = speech_like(1.0)
    from scipy.signal import lfilter

    muffled = lfilter([1, 0.9], [1], x).astype(np.float32)
    assert score(x, x, 16_000, ["mcd"])["mcd"].value == 0
    assert score(x, 2 * x, 16_000, ["mcd"])["mcd"].value < 1  # the level is no timbre
    assert score(x, muffled, 16_000, ["mcd"])["mcd"].value > 1


@pytest.mark.parametrize(
    ("library", "names"),
    [
        ("speechmos", ["dnsmos_ovrl", "dnsmos_sig", "dnsmos_bak", "dnsmos_p808", "plcmos"]),
        ("distillmos", ["distillmos"]),
        ("resemblyzer", ["speaker_similarity"]),
        ("pyworld", ["f0_correlation", "f0_error_cents", "f0_voicing_error"]),
    ],
)
def test_predicted_scores_are_in_their_range_and_hear_noise(library, names):
    if not all(METRICS[name].available for name in names):
        pytest.skip(f"{library} is not installed")
    x = speech_like(3.0)
    noisy = (x + 0.1 * np.random.default_rng(0).standard_normal(len(x))).astype(np.float32)
    clean = score(x, x, 16_000, names)
    for name, result in score(x, noisy, 16_000, names).items():
        assert result.status == "ok", result
        assert METRICS[name].lowest <= result.value <= METRICS[name].highest
        if METRICS[name].needs_reference:
            better = METRICS[name].higher_is_better
            assert (clean[name].value >= result.value) == better or not better


# ---- which data, and what people see


def test_kinds_choose_recordings_and_the_limit_counts_them(data):
    clips = [item for item in load_task(str(data), kinds=["music"]) if isinstance(item, Clip)]
    assert [clip.source for clip in clips] == ["inner/b.wav"]
    assert len(list(load_task(str(data), kinds=["music", "speech"], limit=1))) == 1
    assert load_task(str(data), kinds=["music"]).fingerprint() != load_task(str(data)).fingerprint()
    with pytest.raises(InputError, match="no recording of the kind sound; its kinds are music, sp"):
        list(load_task(str(data), kinds=["sound"]))


def test_a_run_ends_with_a_table_and_can_be_repeated(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    out = tmp_path / "out"
    words = ["eval", "--codec", "half", "--data", str(data), "--metric", "snr", "-q", "-o"]
    assert main([*words, str(out)]) in (0, None)
    printed = capsys.readouterr().out
    assert "data: speech" in printed
    assert all(len(line) <= 60 for line in printed.splitlines() if "out/" not in line)
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["command"] == (
        "codecplus eval --codec half --data data --metric snr -o results/"
    )
    monkeypatch.chdir(tmp_path)
    main(["eval", "--rerun", str(out / "provenance.json"), "-q", "-o", str(tmp_path / "again")])
    assert (out / "rows.jsonl").read_bytes() == (tmp_path / "again" / "rows.jsonl").read_bytes()
    with pytest.raises(InputError, match="there is no"):
        load_rerun(tmp_path / "nothing.json", tmp_path)
    (tmp_path / "x.json").write_text('{"settings": {"codex": 1}}')
    with pytest.raises(FileFormatError, match="got 'codex'"):
        load_rerun(tmp_path / "x.json", tmp_path)


def test_several_data_are_tasks_whose_means_are_averaged(data, tmp_path):
    other = shutil.copytree(data, tmp_path / "other")
    (other / "a.wav").unlink()
    runs = [run(folder, tmp_path / "out" / folder.name, ["half"]) for folder in (data, other)]
    means = [r.summary["codecs"]["half"]["domains"]["all"]["metrics"]["snr"]["mean"] for r in runs]
    table = average_over_tasks(runs, 80)
    line = next(line for line in table.splitlines() if line.startswith("half"))
    assert float(line.split()[-1]) == pytest.approx(np.mean(means), rel=0.01)


@pytest.mark.parametrize(("option", "name"), [("--metric", "dnsmos_sig"), ("--codec", "codec2")])
def test_lists_name_what_there_is(option, name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["eval", option, "list"])
    assert ended.value.code == 0
    assert name in capsys.readouterr().out


def test_a_table_fits_its_terminal():
    lines = [["a-codec-of-a-very-long-name@6", "6.01", "2.1", "[2, 3]"]]
    for width in (30, 40, 80):
        table = aligned(["codec", "kbit/s", "PESQ", "95 %"], lines, width)
        assert max(map(len, table.splitlines())) <= width
        assert "…" in table or width == 80


def test_the_program_and_the_metric_of_the_page_can_be_used(tmp_path):
    import doctest
    import re

    file = Path(__file__).parents[2] / "docs" / "evaluating.md"
    assert doctest.testfile(str(file), module_relative=False).failed == 0
    page = file.read_text()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    (toml,) = (code for language, code in blocks if code.startswith("# mycodec.toml"))
    (tmp_path / "mycodec.toml").write_text(toml)
    settings = load_command(tmp_path / "mycodec.toml")
    assert (settings.name, settings.sample_rate, settings.channels) == ("mycodec", 16_000, 1)
    (code,) = (code for language, code in blocks if code.startswith("# peak_error.py"))
    try:
        exec(compile(code, "docs/evaluating.md", "exec"), {"__name__": "peak_error"})
        signal = np.array([0.5, -0.25], np.float32)
        assert METRICS["peak_error"].function(signal, 0 * signal, 16_000) == 0.5
    finally:
        METRICS.pop("peak_error", None)
    for command in re.findall(r"^codecplus (.*)$", page, flags=re.MULTILINE):
        from codecplus.cli import build_parser

        assert build_parser().parse_args(command.split()).run
