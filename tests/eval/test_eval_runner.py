"""A run names every failure, flatters nobody, and gives the same rows however often it is killed or
split.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from eval_codecs import BROKEN, Sometimes
from eval_signals import HalfCodec, speech_like

import codecplus.eval.codecs as codecs_module
from codecplus.errors import FileFormatError, InputError
from codecplus.eval import (
    EvaluationConfig,
    build_leaderboard,
    compare,
    load_results,
    run_evaluation,
    score,
)
from codecplus.eval.store import Store
from codecplus.eval.tasks import load_task

FAST = ("mel_distance", "stoi")


def write_clips(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        soundfile.write(folder / f"{i}.wav", speech_like(1.0 + 0.1 * i, seed=i), 16_000, "FLOAT")
    lines = [f"{i}.wav,speech,s{i}" for i in range(count)]
    (folder / "MANIFEST.csv").write_text("\n".join(["path,kind,speaker", *lines]) + "\n")
    return folder


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for name, codec in {**BROKEN, "half": HalfCodec, "sometimes": Sometimes}.items():
        monkeypatch.setitem(codecs_module.CODECS, name, codec)


_accesses: list[tuple[str, str]] | None = None


def _note_access(event: str, arguments: tuple) -> None:
    if _accesses is None or event not in ("open", "os.scandir", "os.listdir"):
        return
    if event != "open":
        _accesses.append(("list", str(arguments[0])))
    elif arguments[1] is not None and arguments[1].startswith("r"):
        _accesses.append(("read", str(arguments[0])))


@pytest.fixture
def accesses():
    """Every file that this process opens for reading, and every folder that it lists."""
    global _accesses
    _accesses = []
    yield _accesses
    _accesses = None


sys.addaudithook(_note_access)  # there is no way to remove one


def run(data, out, codecs=("half",), **settings):
    settings = {"metrics": FAST, "workers": 1, "progress": False, **settings}
    return load_results(
        run_evaluation(EvaluationConfig(codecs=codecs, data=str(data), out=out, **settings))
    )


def test_scores_are_those_of_the_clips_scored_by_hand(tmp_path):
    results = run(
        write_clips(tmp_path / "data"),
        tmp_path / "out",
        ["opus"],
        bitrates=[12],
        metrics=("pesq_wb", "snr"),
    )
    for row in results.rows:
        if row.codec == "opus@12":
            reference = soundfile.read(tmp_path / "data" / row.source, dtype="float32")[0]
            codec = codecs_module.Opus(12)
            payload = codec.encode(reference[None], 16_000)
            output = codec.decode(payload.data, codecs_module.Original(1, len(reference), 16_000))[
                0
            ]
            assert row.payload_bits == payload.bits
            assert row.scores == score(reference, output, 16_000, ["pesq_wb", "snr"])
    part = results.summary["codecs"]["opus@12"]["domains"]["speech"]
    rows = [row for row in results.rows if row.codec == "opus@12"]
    assert part["payload_kbps"] == pytest.approx(
        sum(r.payload_bits for r in rows) / sum(r.seconds for r in rows) / 1e3
    )
    assert part["metrics"]["snr"]["mean"] == pytest.approx(
        np.mean([row.scores["snr"].value for row in rows])
    )


def test_broken_codecs_fail_or_come_last(tmp_path):
    results = run(write_clips(tmp_path / "data", 6), tmp_path / "out", [*BROKEN, "half"])
    for name in BROKEN:
        rows = [row for row in results.rows if row.codec == name]
        if name == "noise":
            assert (
                results.summary["codecs"]["noise"]["domains"]["all"]["metrics"]["stoi"]["mean"]
                < 0.5
            )
            continue
        assert {row.status for row in rows} == {"codec_failure"}
        assert {score.value for row in rows for score in row.scores.values()} == {None}
        assert {score.status for row in rows for score in row.scores.values()} == {"codec_failure"}
    report = (results.path / "report.md").read_text()
    for reason in (
        "the output is silent",
        "NaN",
        "shape (1, 17601)",
        "RuntimeError: out of luck",
        "claims 0 bits",
    ):
        assert reason in report
    (board,) = build_leaderboard([results.path])["boards"]
    ranks = {entry["codec"]: entry["rank"] for entry in board["entries"] if not entry["anchor"]}
    assert ranks["half"] == 1
    assert ranks["noise"] == 2
    assert {ranks[name] for name in BROKEN if name != "noise"} == {None}
    last = [entry["codec"] for entry in board["entries"] if not entry["anchor"]][2:]
    assert set(last) == set(BROKEN) - {"noise"}


def test_failing_on_hard_clips_does_not_pay(tmp_path):
    results = run(write_clips(tmp_path / "data", 6), tmp_path / "out", ["sometimes", "noise"])
    assert results.summary["codecs"]["sometimes"]["failures"] == 1
    (board,) = build_leaderboard([results.path])["boards"]
    ranks = {entry["codec"]: (entry["rank"], entry["failures"]) for entry in board["entries"]}
    assert ranks["noise"] == (1, 0)
    assert ranks["sometimes"] == (None, 1)


def test_hard_files_are_named_and_the_rest_is_scored(tmp_path):
    data = write_clips(tmp_path / "data", 1)
    soundfile.write(data / "narrow.wav", speech_like(1.0, 8_000), 8_000)
    soundfile.write(
        data / "six.wav", np.stack([speech_like(1.0, seed=i) for i in range(6)], 1), 16_000
    )
    soundfile.write(data / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(data / "long.wav", np.tile(speech_like(1.0, 8_000), 100), 8_000)
    (data / "corrupt.wav").write_bytes(b"RIFF nothing")
    (data / "empty.wav").touch()
    results = run(
        data,
        tmp_path / "out",
        ["opus", "mp3"],
        bitrates=[16],
        metrics=("pesq_wb", "si_sdr"),
        segments_per_file=2,
    )
    report = (results.path / "report.md").read_text()
    for name in ("corrupt.wav", "empty.wav", "silent.wav", "narrow.wav", "long.wav"):
        assert name in report.split("## Left out")[1].split("##")[0]
    scores = {(row.codec, row.clip): row.scores for row in results.rows}
    for codec in ("identity", "opus@16", "mp3@16"):
        assert scores[codec, "six.wav"]["si_sdr"].status == "ok"
        assert scores[codec, "long.wav"]["si_sdr"].status == "ok"
        assert scores[codec, "silent.wav"]["si_sdr"].status == "reference_unscorable"
        assert scores[codec, "narrow.wav"]["pesq_wb"].status == "reference_unscorable"
    assert len([row for row in results.rows if row.source == "long.wav"]) == 2 * 5


def test_the_reference_alone_decides_what_is_left_out(tmp_path):
    """Every codec has the same set of clips with `reference_unscorable`, failures or not."""
    data = write_clips(tmp_path / "data", 1)
    soundfile.write(data / "silent.wav", np.zeros(16_000), 16_000)
    results = run(data, tmp_path / "out", ["raising", "noise"])
    unscorable = {
        name: {
            (row.clip, m)
            for row in results.rows
            if row.codec == name
            for m, s in row.scores.items()
            if s.status == "reference_unscorable"
        }
        for name in results.codecs
    }
    assert len(unscorable["identity"]) == len(FAST)
    assert all(found == unscorable["identity"] for found in unscorable.values())


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import codecplus
import codecplus.eval.codecs as codecs_module
from eval_signals import HalfCodec
from codecplus.eval import EvaluationConfig, run_evaluation
codecs_module.CODECS["half"] = HalfCodec
run_evaluation(EvaluationConfig(codecs=["half", "opus"], bitrates=[8], data={data!r}, out={out!r},
                                workers=1, metrics={metrics!r}, progress=False))
"""


def script(tmp_path, data, out) -> Path:
    paths = [str(Path(__file__).parent), *(path for path in sys.path if path)]
    file = tmp_path / f"{Path(out).name}.py"
    file.write_text(SCRIPT.format(paths=paths, data=str(data), out=str(out), metrics=FAST))
    return file


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_killed_in_each_stage_it_resumes_to_the_same_rows(tmp_path):
    data = write_clips(tmp_path / "data", 6)
    expected = run(data, tmp_path / "whole", ["half", "opus"], bitrates=[8])
    out = tmp_path / "killed"
    for stage in ("clips", "encoded", "scores"):
        process = subprocess.Popen([sys.executable, script(tmp_path, data, out)])
        deadline = time.monotonic() + 600
        while (
            not list(out.glob(f"cache/{stage}/*.jsonl"))
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (out / "rows.jsonl").exists()
        for journal in out.glob(
            "cache/[es]*/*.jsonl"
        ):  # as a kill in the middle of a write leaves it
            journal.write_bytes(journal.read_bytes() + b'{"clip": "to')
    resumed = run(data, out, ["half", "opus"], bitrates=[8])
    assert (resumed.path / "rows.jsonl").read_bytes() == (expected.path / "rows.jsonl").read_bytes()
    assert resumed.summary == expected.summary


def test_two_runs_do_not_write_to_the_same_folder(tmp_path):
    data = write_clips(tmp_path / "data", 1)
    with (
        Store(tmp_path / "out" / "cache").sole_use(),
        pytest.raises(InputError, match="another run is writing to"),
    ):
        run(data, tmp_path / "out", metrics=("snr",))
    assert run(data, tmp_path / "out", metrics=("snr",)).rows


def test_a_second_run_computes_nothing_and_a_new_metric_does_not_encode(tmp_path, monkeypatch):
    data = write_clips(tmp_path / "data", 2)
    first = run(data, tmp_path / "out")
    monkeypatch.setattr(HalfCodec, "encode", lambda *_: pytest.fail("encoded again"))
    assert run(data, tmp_path / "out").rows == first.rows
    more = run(data, tmp_path / "out", metrics=(*FAST, "snr"))
    assert all(row.scores["snr"].status == "ok" for row in more.rows)


def test_a_run_lists_the_folder_once_and_reads_a_journal_at_most_once(tmp_path, accesses):
    data = write_clips(tmp_path / "data", 3)
    cache = tmp_path / "out" / "cache"
    load_task(str(data)).fingerprint()
    one_listing = accesses.count(("list", str(data)))  # the library may open a folder twice for it
    assert one_listing
    for attempt in ("from nothing", "from the cache", "with another metric"):
        metrics = FAST if attempt != "with another metric" else (*FAST, "snr")
        accesses.clear()
        run(data, tmp_path / "out", ["half", "opus"], bitrates=[8], metrics=metrics)
        assert accesses.count(("list", str(data))) == one_listing, attempt
        journals = [path for kind, path in accesses if kind == "read" and path.endswith(".jsonl")]
        journals = [path for path in journals if path.startswith(str(cache))]
        assert len(journals) == len(set(journals)), attempt
        if attempt != "from nothing":
            assert len(journals) == 1 + 2 * 5  # clips; encoded and scores of five codecs


def test_our_own_files_are_decoded_once_and_not_while_the_encoder_is_timed(tmp_path, monkeypatch):
    from codecplus.bitstream import Reader
    from codecplus.eval.codecs import own

    reads = []

    def read(self, *arguments, real=Reader.read):
        reads.append("read")
        return real(self, *arguments)

    monkeypatch.setattr(Reader, "read", read)
    own._load.cache_clear()
    save_codec(tmp_path / "model")
    codec = own.OwnCodec(str(tmp_path / "model"))
    audio = speech_like(1.0)[None]
    payload = codec.encode(audio, 16_000)
    assert reads == []
    decoded = codec.decode(payload.data, codecs_module.Original(1, audio.shape[1], 16_000))
    codes, _ = codec.codes(payload.data)
    own._load.cache_clear()
    assert decoded.shape == audio.shape
    assert codes.ndim == 2
    assert reads == ["read"]


def test_an_average_rate_is_an_option_of_a_checkpoint(tmp_path):
    from codecplus.eval.codecs import own

    save_codec(tmp_path / "model")
    name = f"{tmp_path / 'model'}:abr"
    with pytest.raises(InputError, match=r":abr' needs a bit rate to have on average, got none"):
        own.OwnCodec(name)
    every = own.OwnCodec(str(tmp_path / "model"))
    assert own.OwnCodec(name, 9 * every.nominal_kbps).nominal_kbps == every.nominal_kbps
    rng = np.random.default_rng(0)
    loudness = rng.uniform(0, 5, (2, 192)).repeat(1000, axis=1)  # tiny models need it
    audio = (loudness * rng.standard_normal(loudness.shape)).astype(np.float32)
    most = len(every.encode(audio, 16_000).data)
    rate = 0.7 * most / 125 / 12 / len(audio)  # kbit/s per channel, of no number of codebooks
    codec = own.OwnCodec(f"{name}:effort=0", rate)
    assert codec.name == f"{name}:effort=0@{round(rate, 2):g}"
    data = codec.encode(audio, 16_000).data
    assert len(data) == pytest.approx(0.7 * most, rel=0.03)
    decoded = codec.decode(data, codecs_module.Original(2, audio.shape[1], 16_000))
    codes, _ = codec.codes(data)
    own._load.cache_clear()
    assert decoded.shape == audio.shape
    assert (codes == -1).any()


def save_codec(folder: Path) -> None:
    """A tiny checkpoint."""
    from tiny import GEOMETRIES, tiny_model

    from codecplus import DacFeatureExtractor

    tiny_model(**GEOMETRIES["16khz"]).save_pretrained(folder)
    DacFeatureExtractor(sampling_rate=16_000).save_pretrained(folder)


@pytest.mark.slow
def test_two_processes_give_exactly_the_rows_of_one(tmp_path):
    pytest.importorskip("accelerate")
    data = write_clips(tmp_path / "data", 3)
    expected = run(data, tmp_path / "one", ["half", "opus"], bitrates=[8])
    file = script(tmp_path, data, tmp_path / "two")
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        str(file),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    encoded = {path.name.split(".")[1] for path in (tmp_path / "two/cache/encoded").iterdir()}
    assert encoded == {"0", "1"}
    assert (tmp_path / "two/rows.jsonl").read_bytes() == (expected.path / "rows.jsonl").read_bytes()


def test_own_checkpoints_go_through_the_public_door(tmp_path, monkeypatch):
    import codecplus.codec
    from codecplus.bitstream import StreamInfo, pack
    from codecplus.eval.codecs import own

    class Tiny:
        """A stand-in with the public contract: codes are samples rounded to 6 bits."""

        bitrates, sample_rate, latency, entropy_models = [48.0, 96.0], 16_000, 0.02, None
        fingerprint = bytes(16)

        def compress(self, audio, sample_rate, bitrate, effort):
            assert (bitrate, effort) == (96.0 * len(audio), 2)
            codes = np.clip(np.round(audio * 31) + 32, 0, 63).astype(np.int16)[:, None]
            info = StreamInfo(
                fingerprint=bytes(16),
                sample_rate=sample_rate,
                original_sample_rate=sample_rate,
                channels=len(audio),
                num_codebooks=1,
                codebook_size=64,
                hop_length=1,
            )
            return pack(codes, info, num_samples=audio.shape[-1])

        def decode(self, codes):
            audio = (np.asarray(codes)[:, 0].astype(np.float32) - 32) / 31
            return audio[:, : codes.num_samples]

    monkeypatch.setattr(codecplus.codec, "load_codec", lambda name, device, revision: Tiny())
    own._load.cache_clear()
    with pytest.raises(InputError, match="an effort from 0 to 3 in 'tiny:effort=9', got '9'"):
        own.OwnCodec("tiny:effort=9")
    codec = own.OwnCodec("tiny:effort=2", 90)
    assert (codec.name, codec.latency) == ("tiny:effort=2@96", 0.02)
    audio = np.stack([speech_like(1.0), speech_like(1.0, seed=1)])
    payload = codec.encode(audio, 16_000)
    assert payload.bits == 2 * 6 * 16_000
    assert 8 * len(payload.data) > payload.bits
    decoded = codec.decode(payload.data, codecs_module.Original(2, 16_000, 16_000))
    own._load.cache_clear()
    assert np.abs(decoded - audio).max() < 0.02
    codes, size = codec.codes(payload.data)
    assert (codes.shape, size) == ((1, 2 * 16_000), 64)


def test_a_run_of_a_checkpoint_knows_its_codes(tmp_path):
    save_codec(tmp_path / "model")
    model = str(tmp_path / "model")
    results = run(write_clips(tmp_path / "data", 2), tmp_path / "out", [model], metrics=("snr",))
    (name,) = (name for name in results.codecs if name.startswith(model))
    assert {row.status for row in results.rows} == {"ok"}
    summary = results.summary["codecs"][name]
    assert all(0 < book["used"] <= 1 for book in summary["codebooks"])
    assert results.costs[name]["encode_real_time_factor"] > 0
    tokens = summary["tokens"]
    per_frame = tokens["tokens_per_second"] / tokens["frame_rate"]
    assert per_frame == pytest.approx(tokens["codebooks"]) == len(summary["codebooks"])
    # An entropy coder needs fewer bits than the tokens have.
    assert tokens["nominal_kbps_per_channel"] >= summary["domains"]["all"]["payload_kbps"] > 0
    assert "## Tokens" in (results.path / "report.md").read_text()


def test_compare_is_paired_and_says_which_is_better(tmp_path):
    results = run(write_clips(tmp_path / "data", 7), tmp_path / "out", ["opus"], bitrates=[8, 32])
    sides = f"{results.path}:opus@8", f"{results.path}:opus@32"
    comparisons = {comparison.metric: comparison for comparison in compare(*sides)}
    assert {comparison.better for comparison in comparisons.values()} == {"opus@32"}
    assert {c.p_corrected for c in comparisons.values()} == {len(FAST) * 2 / 2**7}
    rows = {(row.codec, row.clip): row.scores["stoi"].value for row in results.rows}
    by_hand = np.mean([rows["opus@32", f"{i}.wav"] - rows["opus@8", f"{i}.wav"] for i in range(7)])
    assert comparisons["stoi"].difference.mean == pytest.approx(by_hand)
    same = compare(sides[0], results.path)
    assert {(c.difference.mean, c.better) for c in same} == {(0.0, None)}
    twin = shutil.copytree(results.path, tmp_path / "a:b")
    assert compare(f"{twin}:opus@8", twin)[0].better is None
    with pytest.raises(InputError, match="no codec 'opus@9'"):
        compare(f"{results.path}:opus@9", results.path)


def test_a_damaged_results_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no results"):
        load_results(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"schema": 0}\n')
    with pytest.raises(FileFormatError, match="schema 1"):
        load_results(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(FileFormatError, match="damaged"):
        load_results(tmp_path)


def test_results_do_not_depend_on_where_the_data_lies(tmp_path):
    data = write_clips(tmp_path / "here" / "data", 2)
    first = run(data, tmp_path / "a", metrics=("snr",))
    shutil.copytree(data, tmp_path / "there" / "data")
    time.sleep(0.01)
    os.utime(tmp_path / "there" / "data" / "0.wav")
    second = run(tmp_path / "there" / "data", tmp_path / "b", metrics=("snr",))
    assert (first.rows, first.summary["task"], first.clip_set) == (
        second.rows,
        second.summary["task"],
        second.clip_set,
    )
    (board,) = build_leaderboard([tmp_path])["boards"]
    assert [entry["codec"] for entry in board["entries"]].count("half") == 1
    assert str(tmp_path) not in json.dumps(first.summary) + json.dumps(first.provenance)


def test_a_clip_set_names_samples_and_kinds(tmp_path):
    data = write_clips(tmp_path / "data", 2)
    known = {run(data, tmp_path / "a", metrics=("snr",)).clip_set}
    audio, rate = soundfile.read(data / "1.wav", dtype="float32")
    audio[-1] += 2**-12
    soundfile.write(data / "1.wav", audio, rate, "FLOAT")
    known.add(run(data, tmp_path / "b", metrics=("snr",)).clip_set)
    manifest = data / "MANIFEST.csv"
    manifest.write_text(manifest.read_text().replace("1.wav,speech", "1.wav,sound"))
    known.add(run(data, tmp_path / "c", metrics=("snr",)).clip_set)
    assert len(known) == 3


def test_contradictory_settings_are_refused(tmp_path):
    with pytest.raises(InputError, match="put it in a list"):
        EvaluationConfig(codecs="opus", data="x", out=tmp_path)
    with pytest.raises(InputError, match="at least 1 worker"):
        EvaluationConfig(codecs=["opus"], data="x", out=tmp_path, workers=0)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written to"):
        run(write_clips(tmp_path / "data", 1), tmp_path / "file")
