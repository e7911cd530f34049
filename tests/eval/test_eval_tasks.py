"""Every file of a data set is either scored or named; hours weigh as one file and fit in memory."""

import io
import json

import numpy as np
import pytest
import soundfile
from eval_signals import speech_like

from codecplus.errors import FileFormatError, InputError
from codecplus.eval.tasks import Clip, FolderTask, Problem, SegmentPolicy, load_task, task_names


@pytest.fixture
def folder(tmp_path):
    """The files that break other harnesses: corrupt, empty, silent, narrow, six channels, long."""
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "deep" / "voice.wav", speech_like(1.0), 16_000)
    soundfile.write(tmp_path / "narrow.flac", speech_like(1.0, 8_000), 8_000)
    soundfile.write(
        tmp_path / "six.wav", np.stack([speech_like(0.5, seed=i) for i in range(6)], 1), 16_000
    )
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 16_000)
    soundfile.write(tmp_path / "long.wav", np.tile(speech_like(1.0, 8_000), 500), 8_000)
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF\x00 this is no wave file")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "header.wav").write_bytes((tmp_path / "silent.wav").read_bytes()[:44])
    cut = (tmp_path / "narrow.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(cut[: len(cut) // 2])
    soundfile.write(tmp_path / "nan.wav", np.full(8000, np.nan), 16_000, "FLOAT")
    (tmp_path / "notes.txt").write_text("not audio")
    return tmp_path


def test_a_folder_names_what_it_cannot_read_and_yields_the_rest(folder):
    items = list(FolderTask(folder))
    clips = {item.id for item in items if isinstance(item, Clip)}
    broken = {item.source for item in items if isinstance(item, Problem) and item.fatal}
    assert broken == {"corrupt.wav", "empty.wav", "header.wav", "cut.flac", "nan.wav"}
    assert {
        "deep/voice.wav",
        "narrow.flac",
        "six.wav",
        "silent.wav",
        "long.wav",
        "long.wav@150s",
    } <= clips
    assert all(str(folder) not in item.reason for item in items if isinstance(item, Problem))


def test_native_rate_and_channels_are_kept(folder):
    clips = {clip.source: clip for clip in FolderTask(folder) if isinstance(clip, Clip)}
    assert (clips["six.wav"].audio.shape, clips["six.wav"].sample_rate) == ((6, 8000), 16_000)
    assert (clips["narrow.flac"].audio.shape, clips["narrow.flac"].sample_rate) == (
        (1, 8000),
        8_000,
    )


def test_long_recordings_are_cut_by_the_stated_policy(folder):
    clips = [item for item in FolderTask(folder, SegmentPolicy(30, 3)) if isinstance(item, Clip)]
    pieces = [clip for clip in clips if clip.source == "long.wav"]
    assert [clip.start for clip in pieces] == [0, 240, 480]
    whole, _ = soundfile.read(folder / "long.wav", dtype="float32")
    assert np.array_equal(pieces[1].audio[0], whole[240 * 8000 : 270 * 8000])
    note = next(
        item
        for item in FolderTask(folder)
        if isinstance(item, Problem) and item.source == "long.wav"
    )
    assert not note.fatal
    assert note.reason == "lasts 500 s: 4 segments of 30 s are scored"


def test_a_manifest_gives_kind_and_speaker(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    soundfile.write(data / "a.wav", speech_like(0.5), 16_000)
    soundfile.write(data / "b.wav", speech_like(0.5), 16_000)
    (tmp_path / "MANIFEST.csv").write_text("path,kind,speaker\ndata/a.wav,speech,anna\n")
    first, second = FolderTask(data)
    assert (first.kind, first.speaker) == ("speech", "anna")
    assert (second.kind, second.speaker) == (None, None)
    (data / "MANIFEST.csv").write_text("file\na.wav\n")
    with pytest.raises(FileFormatError, match="expected a column named path"):
        list(FolderTask(data))


@pytest.fixture
def parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def encoded(seed):
        file = io.BytesIO()
        soundfile.write(file, speech_like(0.5, seed=seed), 16_000, format="FLAC")
        return {"bytes": file.getvalue(), "path": f"{seed}.flac"}

    rows = [
        {"audio": encoded(i), "stem": "mixture" if i % 2 else "bass", "who": i} for i in range(6)
    ]
    rows.append({"audio": {"bytes": b"nothing", "path": "bad.flac"}, "stem": "mixture", "who": 9})
    path = tmp_path / "set.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_through_datasets(parquet, tmp_path, streaming, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    fields = {
        "files": [str(parquet)],
        "where": {"stem": "mixture"},
        "speaker_column": "who",
        "kind": "music",
        "streaming": streaming,
    }
    (tmp_path / "mine.json").write_text(json.dumps(fields))
    items = list(load_task(str(tmp_path / "mine.json")))
    assert [item.source for item in items] == [
        "000000 1.flac",
        "000001 3.flac",
        "000002 5.flac",
        "000003 bad.flac",
    ]
    assert [(item.kind, item.speaker) for item in items[:3]] == [
        ("music", "1"),
        ("music", "3"),
        ("music", "5"),
    ]
    assert isinstance(items[3], Problem)
    expected = (speech_like(0.5, seed=3) * 32768).round() / 32768
    assert np.allclose(items[1].audio[0], expected, atol=2**-15)
    assert len(list(load_task(str(tmp_path / "mine.json"), limit=2))) == 2


def test_presets_are_complete():
    assert set(task_names()) >= {"librispeech-test-clean", "vctk", "musdb-excerpts", "esc50"}
    for name in task_names():
        task = load_task(name)
        assert task.licence
        assert task.homepage
        assert task.revision
        assert task.kind in ("speech", "music", "sound")


def test_bad_data_is_one_clear_sentence(tmp_path):
    with pytest.raises(InputError, match="there is no data 'nowhere'; expected a folder"):
        load_task("nowhere")
    with pytest.raises(InputError, match="there is no audio file"):
        list(load_task(str(tmp_path)))
    (tmp_path / "x.json").write_text('{"datset": "a"}')
    with pytest.raises(FileFormatError, match="unknown fields \\['datset'\\]"):
        load_task(str(tmp_path / "x.json"))


def test_a_clip_is_known_by_its_samples_and_rate(voice):
    clip = Clip("a", 0, voice[None], 16_000)
    assert clip.hash == Clip("b", 3, voice[None].copy(), 16_000).hash
    assert clip.hash != Clip("a", 0, voice[None], 8_000).hash
    assert clip.hash != Clip("a", 0, voice[None] * 1.0001, 16_000).hash


def test_the_same_audio_is_the_same_clip_from_files_tables_and_saved_folders(tmp_path):
    import datasets

    folder = tmp_path / "folder"
    folder.mkdir()
    rows = []
    for i, kind in enumerate(["speech", "music", "speech"]):
        path = folder / f"{i}.flac"
        soundfile.write(path, speech_like(0.3, seed=i), 16_000)
        audio = {"bytes": path.read_bytes(), "path": path.name}
        rows.append({"audio": audio, "kind": kind, "speaker": f"s{i}"})
    lines = [f"{i}.flac,{row['kind']},{row['speaker']}" for i, row in enumerate(rows)]
    (folder / "MANIFEST.csv").write_text("\n".join(["path,kind,speaker", *lines]))
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(tmp_path / "table.parquet")
    table.save_to_disk(tmp_path / "saved")
    splits = datasets.DatasetDict({"train": table, "test": table.select([1])})
    splits.save_to_disk(tmp_path / "splits")

    def known(data, **options):
        return [(c.hash, c.kind, c.speaker) for c in load_task(str(tmp_path / data), **options)]

    expected = known("folder")
    assert [kind for _, kind, _ in expected] == ["speech", "music", "speech"]
    assert known("table.parquet") == known("saved") == known("splits") == expected
    assert known("splits", split="test") == known("saved", kinds=["music"]) == expected[1:2]
