"""Datasets of codes: what `codec.encode` gives clip by clip, however the work is cut, killed, or
spread.
"""

import doctest
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from token_data import lively_codec, signal, write_recordings

from codecplus import Codec
from codecplus.cli import main
from codecplus.errors import CodecPlusError, FileFormatError, InputError, ModelMismatchError
from codecplus.recordings import open_recordings
from codecplus.tokenizing import Coding, counts, detokenize, row_codes, tokenize
from codecplus.tokenizing import job as job_module
from codecplus.tokenizing.shards import NEW_COLUMNS
from codecplus.utils import load_audio

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

PLANTED = {5: "empty", 11: "junk", 12: "cut", 20: "nan"}


@pytest.fixture(scope="module")
def codec() -> Codec:
    return lively_codec()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "recordings"
    names = write_recordings(folder, 36, PLANTED)
    lines = [f"{name},speaker {i % 5},{i}" for i, name in enumerate(names)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,speaker,take", *lines]))
    return folder


@pytest.fixture(scope="module")
def tokenized(recordings, codec, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("codes") / "out"
    run(recordings, codec, out)
    return out


def run(data, codec, out, shard=None, workers=0, **coding):
    return tokenize(
        data,
        codec,
        out,
        coding=Coding(**{"shard_rows": 10, **coding}),
        shard=shard,
        workers=workers,
    )


def load(out: Path, **options):
    return datasets.load_dataset(
        str(out), split="train", cache_dir=str(out.parent / "cache"), **options
    )


def files(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


# ---- what the rows are


def test_codes_are_those_of_encode_clip_by_clip(recordings, codec, tokenized):
    rows = load(tokenized)
    assert len(rows) == 36
    used = set()
    for row in rows:
        if row["error"] is None:
            audio, rate = load_audio(recordings / row["path"], channels=1)
            assert np.array_equal(row["codes"], codec.encode(audio, rate))
            assert (row["num_samples"], row["sample_rate"]) == (len(audio), rate)
            assert row["num_frames"] == np.shape(row["codes"])[-1]
            used |= set(np.ravel(row["codes"]))
    assert len(used) > 50


def test_a_failed_clip_is_a_row_with_its_reason_and_nothing_of_this_machine(recordings, tokenized):
    failed = {int(row["path"][2:7]): row for row in load(tokenized) if row["error"] is not None}
    assert failed.keys() == PLANTED.keys()
    for number, said in {
        5: "empty",
        11: "not readable",
        12: "damaged|truncated",
        20: "NaN",
    }.items():
        row = failed[number]
        assert any(word in row["error"] for word in said.split("|")), row["error"]
        assert row["codes"] is None
        assert row["num_samples"] is None
        assert row["speaker"].startswith("speaker")
        assert str(recordings) not in row["error"]


def test_columns_stay_with_their_types_and_new_ones_say_what_they_are(codec, tokenized):
    rows = load(tokenized)
    assert rows.features["codes"] == datasets.List(datasets.List(datasets.Value("uint16")))
    assert rows.features["take"] == datasets.Value("int64")
    assert rows[7]["speaker"] == "speaker 2"
    assert rows[0]["model_fingerprint"] == codec.fingerprint.hex()
    said = json.loads(pq.read_metadata(next((tokenized / "data").iterdir())).metadata[b"codecplus"])
    assert said["codes_shape"] == "(codebooks, frames)"
    assert (said["num_codebooks"], said["codebook_size"], said["sample_rate"]) == (4, 64, 16_000)


def test_the_output_loads_and_streams_even_when_unfinished(recordings, codec, tmp_path):
    assert run(recordings, codec, tmp_path / "out", shard=(1, 2)) is None
    streamed = list(load(tmp_path / "out", streaming=True))
    assert [row["path"] for row in streamed] == [row["path"] for row in load(tmp_path / "out")]
    assert len(streamed) == 10 + 6  # the second and the fourth shard


def test_statistics_count_what_is_there(codec, tokenized):
    said = json.loads((tokenized / "statistics.json").read_text())
    rows = [row for row in load(tokenized) if row["error"] is None]
    codes = np.concatenate([row["codes"] for row in rows], axis=1)
    for k, book in enumerate(said["codebooks"]):
        counts = np.bincount(codes[k], minlength=64)
        p = counts[counts > 0] / counts.sum()
        assert book["used"] == pytest.approx((counts > 0).mean(), abs=1e-6)
        assert book["entropy_bits"] == pytest.approx(-(p * np.log2(p)).sum(), abs=1e-6)
    assert (said["rows"], said["failed"], said["clips"]) == (36, 4, 32)
    assert said["frames"] == codes.shape[1]
    seconds = sum(row["num_samples"] / row["sample_rate"] for row in rows)
    assert said["hours"] == pytest.approx(seconds / 3600, abs=1e-6)
    assert sum(said["durations"].values()) == 32
    assert sum(said["failures"].values()) == 4


@pytest.mark.parametrize("channels", [1, 2])
def test_bitrate_and_channels_are_those_asked_for(recordings, codec, tmp_path, channels):
    run(
        recordings,
        codec,
        tmp_path / "out",
        bitrate=codec.bitrates[1] * channels,
        channels=channels,
        shard_rows=100,
    )
    for row in load(tmp_path / "out").select([0, 1, 3]):
        audio, rate = load_audio(recordings / row["path"], channels=channels)
        assert np.array_equal(row["codes"], codec.encode(audio, rate, n_quantizers=2))


def test_what_the_page_says_is_true():
    page = Path(__file__).parents[2] / "docs" / "tokenize.md"
    assert doctest.testfile(str(page), module_relative=False).failed == 0
    assert doctest.testmod(counts).failed == 0


# ---- however the work is done


@pytest.mark.parametrize("how", ["workers", "shares", "streamed later", "long"])
def test_the_files_are_the_same_however_the_work_is_done(
    recordings, codec, tokenized, tmp_path, monkeypatch, how
):
    out = tmp_path / "out"
    if how == "workers":
        run(recordings, codec, out, workers=2)
    elif how == "shares":
        assert run(recordings, codec, out, shard=(2, 3)) is None
        assert run(recordings, codec, out, shard=(0, 3)) is None
        assert run(recordings, codec, out, shard=(1, 3)) is not None
    elif how == "streamed later":
        run(recordings, codec, out)
        lost = sorted((out / "data").iterdir())[1]
        lost.unlink()
        run(recordings, codec, out)
    else:  # recordings too long to pass in one piece are read in blocks
        monkeypatch.setattr("codecplus.tokenizing.reading.MAX_SECONDS", 0.1)
        run(recordings, codec, out)
    assert files(out) == files(tokenized)


def test_padded_batches_give_the_codes_of_single_clips(recordings, codec, tokenized, tmp_path):
    run(recordings, codec, tmp_path / "out", batch_seconds=3.0)
    assert load(tmp_path / "out")["codes"] == load(tokenized)["codes"]


@needs_fork
def test_killed_at_random_it_ends_as_if_it_had_never_been(recordings, codec, tokenized, tmp_path):
    out, chance = tmp_path / "out", random.Random(0)
    for _ in range(5):
        job = start(recordings, codec, out)
        deadline, wanted = (
            time.monotonic() + 60,
            len(list(out.glob("data/*"))) + chance.choice([0, 1, 1]),
        )
        while (
            len(list(out.glob("data/*"))) < wanted
            and job.is_alive()
            and time.monotonic() < deadline
        ):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.1))
        job.kill()
        job.join()
    run(recordings, codec, out)
    assert files(out) == files(tokenized)


@needs_fork
def test_two_processes_of_a_launcher_give_the_rows_of_one(recordings, codec, tokenized, tmp_path):
    jobs = [
        start(recordings, codec, tmp_path / "out", RANK=str(rank), WORLD_SIZE="2")
        for rank in range(2)
    ]
    for job in jobs:
        job.join(100)
    assert [job.exitcode for job in jobs] == [0, 0]
    assert files(tmp_path / "out") == files(tokenized)


@needs_fork
def test_two_processes_with_the_same_share_do_no_harm(recordings, codec, tokenized, tmp_path):
    jobs = [start(recordings, codec, tmp_path / "out") for _ in range(2)]
    for job in jobs:
        job.join(100)
    assert [job.exitcode for job in jobs] == [0, 0]
    assert files(tmp_path / "out") == files(tokenized)
    assert not [path for path in (tmp_path / "out").rglob(".*") if path.is_file()]


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names are bytes on Linux")
def test_a_name_that_is_no_utf8_is_a_row_as_any_other(codec, tmp_path):
    folder = tmp_path / "data"
    (name,) = write_recordings(folder, 1, {})
    odd = os.fsencode(folder) + b"/\xff.wav"
    os.rename(os.fsencode(folder / name), odd)
    run(folder, codec, tmp_path / "out", workers=1)
    (row,) = load(tmp_path / "out").to_list()
    assert (row["path"], row["error"]) == ("\\xff.wav", None)
    np.testing.assert_array_equal(row["codes"], codec.encode(os.fsdecode(odd)))


def start(data: Path, codec: Codec, out: Path, **environment: str):
    """A process of its own at work; forked, as a fresh one would spend seconds on imports."""

    def work():
        os.environ.update(environment)
        run(data, codec, out)

    job = multiprocessing.get_context("fork").Process(target=work)
    job.start()
    return job


# ---- whatever the data are


def table(recordings: Path, names: list[str]) -> pa.Table:
    cells = [{"bytes": (recordings / name).read_bytes(), "path": name} for name in names]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.table({"sound": pa.array(cells, kind), "text": [f"text of {name}" for name in names]})


@pytest.fixture(scope="module")
def parquet(recordings, tmp_path_factory) -> Path:
    """Three files, whose rows are those of the folder, in its order."""
    folder = tmp_path_factory.mktemp("parquet")
    names = sorted(
        p.relative_to(recordings).as_posix() for p in recordings.rglob("*.*") if p.suffix != ".csv"
    )
    for i, part in enumerate((names[:13], names[13:14], names[14:])):
        pq.write_table(table(recordings, part), folder / f"train-{i}.parquet")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_of_the_library_stream_or_not(
    parquet, recordings, codec, tokenized, tmp_path, streaming
):
    source = open_recordings(str(parquet), streaming=streaming)
    assert run(source, codec, tmp_path / "out", shard=(0, 2)) is None
    assert run(source, codec, tmp_path / "out", shard=(1, 2)) is not None
    rows, folder_rows = load(tmp_path / "out"), load(tokenized)
    assert rows["codes"] == folder_rows["codes"]
    assert rows["error"] == folder_rows["error"]
    assert rows["text"] == [f"text of {path}" for path in folder_rows["path"]]
    assert "sound" not in rows.features
    # a stream that loses its last shard continues within the file
    shards = sorted((tmp_path / "out" / "data").iterdir())
    before = shards[-1].read_bytes()
    shards[-1].unlink()
    run(source, codec, tmp_path / "out")
    assert shards[-1].read_bytes() == before


def test_datasets_in_memory_and_generators_of_arrays(codec, tmp_path):
    clips = [signal(0.2, 16_000, seed=i) for i in range(5)]

    def rows():
        for i, clip in enumerate(clips):
            yield {"audio": {"array": clip, "sampling_rate": 16_000}, "label": i}

    run(datasets.Dataset.from_generator(rows, cache_dir=str(tmp_path)), codec, tmp_path / "table")
    run(datasets.IterableDataset.from_generator(rows), codec, tmp_path / "stream", shard_rows=2)
    for name in ("table", "stream"):
        found = load(tmp_path / name)
        assert [np.array(c).tolist() for c in found["codes"]] == [
            codec.encode(c, 16_000).tolist() for c in clips
        ]
        assert found["label"] == list(range(5))
    assert len(list((tmp_path / "stream" / "data").iterdir())) == 3


def test_data_without_other_columns_give_codes_alone(codec, tmp_path):
    rows = [{"audio": {"array": signal(0.2, 16_000, i), "sampling_rate": 16_000}} for i in range(3)]
    run(datasets.Dataset.from_list(rows), codec, tmp_path / "out")
    found = load(tmp_path / "out")
    assert found.column_names == list(NEW_COLUMNS)
    assert [len(codes) for codes in found["codes"]] == [4, 4, 4]


def test_encode_batch_works_in_map_of_datasets(parquet, codec, tokenized, tmp_path):
    rows = datasets.load_dataset(str(parquet), split="train", cache_dir=str(tmp_path))
    mapped = rows.map(
        codec.encode_batch, batched=True, batch_size=7, fn_kwargs={"audio_column": "sound"}
    )
    wanted = load(tokenized)
    for name in ("codes", "num_frames", "num_samples", "sample_rate", "error"):
        for got, shard in zip(mapped[name], wanted[name], strict=True):
            assert got == shard or (shard is None and not np.any(got))
    assert mapped["text"] == rows["text"]
    with pytest.raises(InputError, match="no column 'audio' among sound, text"):
        codec.encode_batch(rows[:2])
    arrays = [signal(0.1, 16_000, seed=1), signal(0.2, 16_000, seed=2)]
    coded = codec.encode_batch({"audio": arrays})["codes"]
    assert all(np.array_equal(a, codec.encode(b)) for a, b in zip(coded, arrays, strict=True))
    assert coded[0].dtype == np.uint16


# ---- a hostile world


def test_a_recording_that_kills_its_decoder_is_a_failed_row(monkeypatch):
    from codecplus.system import workers as processes
    from codecplus.tokenizing import reading

    code = "import os, sys, codecplus.tokenizing.reading as w; sys.argv = ['', sys.argv[1]]\n"
    code += "read = w.read_cell\n"
    code += "def explode(cell, *a, **k): return os._exit(7) if cell == 'bomb' else read(cell, *a, **k)\n"
    code += "w.read_cell = explode; w._main()\n"
    real = subprocess.Popen
    monkeypatch.setattr(
        processes.subprocess,
        "Popen",
        lambda command, **kw: real([command[0], "-c", code, command[-1]], **kw),
    )
    clip = {"array": signal(0.1, 16_000, 0), "sampling_rate": 16_000}
    items = [(i, "bomb" if i in (1, 4) else clip) for i in range(6)]
    found = list(reading.read_ordered(iter(items), 16_000, 1, workers=2))
    assert [i for i, _ in found] == list(range(6))
    for i, recording in found:
        if i in (1, 4):
            assert recording == "the decoder's process died on it twice, with status 7"
        else:
            assert np.array_equal(recording.audio[0], clip["array"])


def test_errors_of_the_data_reach_the_caller(codec, tmp_path):
    def rows():
        yield {"audio": {"array": [0.1] * 100, "sampling_rate": 16_000}}
        raise RuntimeError("the disk is gone")

    data = datasets.IterableDataset.from_generator(rows)
    for workers in (0, 1):
        with pytest.raises(Exception, match="disk is gone"):
            run(open_recordings(data), codec, tmp_path / f"out{workers}", workers=workers)
        assert not list((tmp_path / f"out{workers}").glob("data/*"))


def test_another_job_or_a_strangers_folder_is_refused(recordings, codec, tokenized, tmp_path):
    before = files(tokenized)
    with pytest.raises(InputError, match=r"another job: codes.num_codebooks is 4 there and 2 here"):
        run(recordings, codec, tokenized, n_quantizers=2)
    with pytest.raises(InputError, match="shard_rows is 10 there and 7 here"):
        run(recordings, codec, tokenized, shard_rows=7)
    with pytest.raises(InputError, match=r"codes\.model_fingerprint"):
        run(recordings, lively_codec(seed=1), tokenized)
    assert files(tokenized) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is not empty"):
        run(recordings, codec, tmp_path / "mine")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bitrate": 1.0, "n_quantizers": 2}, "got both"),
        ({"n_quantizers": 9}, "1 to 4 codebooks"),
        ({"shard_rows": 0}, "at least 1 row"),
        ({"shard": (2, 2)}, "got 2/2"),
    ],
)
def test_impossible_options_are_refused(recordings, codec, tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        run(recordings, codec, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_unusable_data_are_refused(parquet, recordings, codec, tmp_path):
    with pytest.raises(InputError, match="no column 'nothing'"):
        open_recordings(str(parquet), columns=["nothing"])
    with pytest.raises(InputError, match="no column 'nothing'"):
        open_recordings(str(recordings), columns=["nothing"])
    with pytest.raises(InputError, match="no folder or file"):
        open_recordings("./nowhere")
    with pytest.raises(InputError, match="one column of audio, found none among x"):
        open_recordings(datasets.Dataset.from_dict({"x": [1]}))
    data = datasets.Dataset.from_dict(
        {"codes": [1], "audio": [{"array": [0.1], "sampling_rate": 16_000}]}
    )
    with pytest.raises(InputError, match="a column 'codes' already"):
        run(data, codec, tmp_path / "out")


# ---- and back


def test_detokenize_gives_what_decode_gives_of_encode(recordings, codec, tokenized, tmp_path):
    result = detokenize(str(tokenized), tmp_path / "wav", codec=codec, progress=False)
    assert (result["written"], result["failed"]) == (32, 4)
    row = load(tokenized)[1]
    audio, rate = load_audio(recordings / row["path"], channels=1)
    found, found_rate = load_audio(tmp_path / "wav" / row["path"])
    expected = codec.decode(codec.encode(audio, rate))
    assert (found_rate, len(found)) == (rate, len(audio))
    assert np.abs(found - np.clip(expected, -1, 1)).max() < 1e-4
    assert detokenize(str(tokenized), tmp_path / "wav", codec=codec, progress=False)["kept"] == 32
    # it is a folder of recordings again, with their columns
    again = open_recordings(str(tmp_path / "wav"))
    assert again.num_recordings == 32
    assert {"path", "speaker", "take"} <= set(again.features)


def test_rows_that_lie_are_refused(codec, tokenized, tmp_path):
    row = load(tokenized)[0]
    with pytest.raises(ModelMismatchError):
        row_codes(lively_codec(seed=1), row)
    with pytest.raises(ValueError, match="frames for"):
        row_codes(codec, {**row, "num_samples": 10**15}, max_seconds=None)
    with pytest.raises(ValueError, match="no codes: silence"):
        row_codes(codec, {**row, "codes": None, "error": "silence"})
    data = datasets.Dataset.from_list(
        [{**row, "path": "../../outside.wav"}, {**row, "path": "/outside.wav"}]
    )
    detokenize(data, tmp_path / "a" / "b", codec=codec, progress=False)
    assert sorted(p.name for p in (tmp_path / "a" / "b").glob("*.wav")) == [
        "outside-00000001.wav",
        "outside.wav",
    ]
    assert not list(tmp_path.glob("*.wav"))


def test_names_that_are_one_on_some_disks_become_two_files(codec, tokenized, tmp_path):
    row = load(tokenized)[0]
    names = ["take.wav", "Take.wav", "\u00fc.wav", "u\u0308.wav"]
    data = datasets.Dataset.from_list([{**row, "path": name} for name in names])
    assert detokenize(data, tmp_path, codec=codec, progress=False)["written"] == 4
    found = sorted(path.name for path in tmp_path.glob("*.wav"))
    assert found == ["Take-00000001.wav", "take.wav", "u\u0308-00000003.wav", "\u00fc.wav"]


def test_a_row_that_fails_for_an_unknown_reason_takes_no_other_along(
    codec, tokenized, tmp_path, monkeypatch
):
    rows = [row for row in load(tokenized) if row["codes"] is not None][:2]
    decode = Codec.decode

    def decode_or_fail(self, codes):
        if not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            raise MemoryError
        return decode(self, codes)

    monkeypatch.setattr(Codec, "decode", decode_or_fail)
    result = detokenize(datasets.Dataset.from_list(rows), tmp_path, codec=codec, progress=False)
    assert (result["written"], result["refused"]) == (1, 1)
    assert result["failures"] == {0: "MemoryError: MemoryError"}


LIES = {
    "another model's fingerprint": ({"model_fingerprint": "no digits"}, "got codes of another"),
    "a fingerprint of no text": ({"model_fingerprint": 7}, "got codes of another"),
    "no samples": ({"num_samples": 0}, "num_samples of 1 at least, got 0"),
    "samples below zero": ({"num_samples": -5}, "num_samples of 1 at least, got -5"),
    "no rate": ({"sample_rate": 0}, "from 4000 to 1000000, got 0"),
    "a rate beyond any": ({"sample_rate": 10**12}, "from 4000 to 1000000"),
    "another rate": ({"sample_rate": 900_000}, "frames for"),
    "codes of no numbers": ({"codes": [["a"] * 4] * 4}, "frames for|expected codes from 0"),
    "ragged codes": ({"codes": [[1, 2], [3]]}, "the row is damaged"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_row_of_a_stranger_is_refused_in_one_sentence(codec, tokenized, lie):
    row = load(tokenized)[0]
    fields, said = LIES[lie]
    with pytest.raises(CodecPlusError, match=said):
        codec.decode(row_codes(codec, {**row, **fields}))


def test_a_row_becomes_no_longer_than_max_seconds_and_takes_no_other_along(
    codec, tokenized, tmp_path
):
    rows = [row for row in load(tokenized) if row["codes"] is not None][:3]
    seconds = [row["num_samples"] / row["sample_rate"] for row in rows]
    with pytest.raises(InputError, match=r"at most 0\.001 s of audio"):
        row_codes(codec, rows[0], max_seconds=0.001)
    (tmp_path / "file").write_text("in the way")
    rows[1] = {**rows[1], "path": "file/a.wav"}
    rows[2] = {**rows[2], "path": "n" * 300}
    data = datasets.Dataset.from_list(rows)
    result = detokenize(data, tmp_path, codec=codec, max_seconds=max(seconds), progress=False)
    assert (result["written"], result["failed"], result["refused"]) == (1, 2, 2)
    assert "file" in result["failures"][1]
    assert "too long" in result["failures"][2]


def test_codes_that_no_codebook_has_are_refused_and_do_not_wrap_around(codec, tokenized):
    row = load(tokenized)[0]
    for value in (-1, codec.codebook_size, 1 << 16, 0.5):
        codes = np.array(row["codes"]).tolist()
        codes[0][0] = value
        with pytest.raises(FileFormatError, match=f"codes from 0 to {codec.codebook_size - 1}"):
            row_codes(codec, {**row, "codes": codes})


# ---- the command line


def test_the_verbs_go_there_and_back(recordings, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lively_codec().model.save_pretrained(tmp_path / "model")
    data = str(recordings / "1")
    arguments = [
        "tokenize",
        "--data",
        data,
        "--model",
        "model",
        "--output",
        "codes",
        "--quiet",
        "--device",
        "cpu",
    ]
    assert main([*arguments, "--codebooks", "2", "--shard", "0/1"]) == 0
    out = capsys.readouterr().out
    assert "clips" in out
    assert "entropy" in out
    assert (
        main(
            [
                "detokenize",
                "--data",
                "codes",
                "--output",
                "wav",
                "--model",
                "model",
                "--limit",
                "3",
                "--quiet",
            ]
        )
        == 0
    )
    assert len(list(Path("wav").glob("*.wav"))) + capsys.readouterr().err.count("row") == 3
    assert main([*arguments, "--shard", "1/1"]) == 2
    assert "I from 0 to N - 1" in capsys.readouterr().err
    assert main([*arguments, "--shard", "x"]) == 2


def test_the_launchers_environment_is_read(monkeypatch):
    assert job_module.shard_of_launcher() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert job_module.shard_of_launcher() == (3, 8)
