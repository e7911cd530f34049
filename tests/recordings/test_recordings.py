"""One door for data: whatever holds the recordings, they are the same ones in the same order."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from codecplus.errors import FileFormatError, InputError
from codecplus.recordings import open_recordings
from codecplus.recordings.cells import read_cell
from codecplus.recordings.columns import AUDIO
from codecplus.recordings.tables import Origin, dataset_recordings

datasets = pytest.importorskip("datasets")
RATE = 16_000
NAMES = ["a-b.wav", "a/c.flac", "b.wav"]


def samples(number: int, channels: int = 1) -> np.ndarray:
    noise = np.random.default_rng(number).standard_normal((400 + number, channels))
    return (0.1 * noise).astype(np.float32)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "data"
    (folder / "a").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        soundfile.write(folder / name, samples(number, 1 + number), RATE)
    (folder / "._b.wav").write_bytes(b"AppleDouble")
    (folder / "notes.txt").write_text("no audio")
    return folder


@pytest.fixture
def table(folder):
    rows = [
        {
            "audio": {"bytes": (folder / name).read_bytes(), "path": name},
            "text": f"text {number}",
            "kind": "speech",
            "speaker": number,
        }
        for number, name in enumerate(NAMES)
    ]
    return datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))


def contents(recordings) -> list[tuple]:
    return [
        (Path(recording.name).name, recording.channels, recording.read().tobytes())
        for recording in recordings
    ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("where", ["parquet", "arrow", "saved", "folder", "jsonl", "memory"])
def test_tables_hold_the_recordings_of_the_folder(folder, table, tmp_path, where, streaming):
    place = tmp_path / "table"
    if where == "parquet":
        table.to_parquet(data := place.with_suffix(".parquet"))
    elif where == "arrow":
        table.save_to_disk(place)
        data = next(place.glob("*.arrow"))
    elif where == "saved":
        table.save_to_disk(data := place)
    elif where == "folder":
        (data := place).mkdir()
        table.to_parquet(place / "train-0.parquet")
    elif where == "jsonl":
        data = place.with_suffix(".jsonl")
        rows = [{"audio": str(folder / name), "kind": "speech"} for name in NAMES]
        data.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        data = table.to_iterable_dataset() if streaming else table
    recordings = open_recordings(data, streaming=streaming)
    assert contents(recordings) == contents(open_recordings(folder))
    assert [recording.kind for recording in recordings] == ["speech"] * 3
    assert recordings.num_recordings == (None if streaming else 3)
    if not streaming:
        assert recordings[1].read().shape == (2, 401)


def test_a_webdataset_holds_the_recordings_of_the_folder(folder, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for number, name in enumerate(NAMES):
            file = io.BytesIO()
            soundfile.write(file, samples(number), RATE, format="WAV", subtype="FLOAT")
            info = tarfile.TarInfo(f"{Path(name).stem}.wav")
            info.size = len(file.getvalue())
            tar.addfile(info, io.BytesIO(file.getvalue()))
    recordings = list(open_recordings(tmp_path / "set.tar", streaming=True))
    assert len(recordings) == 3
    for number, recording in enumerate(recordings):
        assert np.array_equal(recording.read()[0], samples(number)[:, 0])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_nested_column_is_named_with_a_dot_and_found_alone(table, folder, streaming):
    rows = [{"sample": {"audio": row["audio"], "text": row["text"]}} for row in table]
    nested = datasets.Dataset.from_list(rows)
    nested = nested.cast(
        datasets.Features({"sample": {"audio": datasets.Audio(), "text": datasets.Value("string")}})
    )
    data = nested.to_iterable_dataset() if streaming else nested
    for audio_column in ("sample.audio", None):
        recordings = open_recordings(data, audio_column=audio_column)
        assert contents(recordings) == contents(open_recordings(folder))
        tables = list(recordings.tables(0, 10, 0))
        cells = [cell for part in tables for cell in part["__audio__"].to_pylist()]
        assert [cell["path"] for cell in cells] == NAMES
    with pytest.raises(InputError, match=r"no column 'sample\.sound'"):
        open_recordings(data, audio_column="sample.sound")


def test_several_folders_and_files_are_one_data_set(folder, tmp_path):
    other = tmp_path / "other" / "data"
    other.mkdir(parents=True)
    soundfile.write(other / "b.wav", samples(9), RATE)
    recordings = open_recordings([folder, other])
    assert [recording.name for recording in recordings][-2:] == [
        f"{tmp_path.name}/data/b.wav",
        "other/data/b.wav",
    ]
    assert len({recording.name for recording in recordings}) == recordings.num_recordings == 4
    files = open_recordings([folder / "b.wav", folder / "a-b.wav"])
    assert [recording.name for recording in files] == ["b.wav", "a-b.wav"]
    assert [recording.name for recording in open_recordings(folder / "b.wav")] == ["b.wav"]


def test_several_tables_are_one_data_set(table, tmp_path):
    files = [tmp_path / f"{number}.parquet" for number in range(2)]
    for file in files:
        table.to_parquet(file)
    assert open_recordings(files).num_recordings == 6
    with pytest.raises(InputError, match="files of one kind"):
        open_recordings([*files, tmp_path / "data" / "b.wav"])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("metadata.csv", "file_name"),
        ("metadata.jsonl", "file_name"),
        ("metadata.parquet", "file_name"),
        ("MANIFEST.csv", "path"),
        ("../MANIFEST.csv", "path"),
    ],
)
def test_kind_and_speaker_come_from_the_table_beside_the_files(folder, name, key):
    prefix = "data/" if name.startswith("..") else ""
    rows = [
        {key: prefix + "a/c.flac", "kind": "music", "speaker": "7"},
        {key: prefix + "b.wav", "kind": "speech", "speaker": ""},
    ]
    path = folder / name
    if path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)
    recordings = open_recordings(folder)
    assert [(r.kind, r.speaker) for r in recordings] == [
        (None, None),
        ("music", "7"),
        ("speech", None),
    ]
    assert [r.name for r in recordings] == NAMES


def test_a_recording_is_read_at_any_rate_and_in_blocks(folder):
    recording = open_recordings(folder)[2]
    assert (recording.channels, recording.sample_rate, recording.num_samples) == (3, RATE, 402)
    assert recording.read(8000, channels=1).shape == (1, 201)
    blocks = list(recording.blocks(100))
    assert [block.shape for block in blocks] == [(3, 100)] * 4 + [(3, 2)]
    assert np.array_equal(np.concatenate(blocks, axis=1), recording.read())


def test_arrays_are_recordings_too():
    rows = [{"audio": {"array": samples(0)[:, 0], "sampling_rate": RATE}}]
    (recording,) = open_recordings(datasets.Dataset.from_list(rows))
    assert np.array_equal(recording.read()[0], samples(0)[:, 0])
    audio, rate = soundfile.read(io.BytesIO(recording.file), dtype="float32")
    assert rate == RATE
    assert np.array_equal(audio, samples(0)[:, 0])


def test_columns_can_be_chosen_and_labels_stay(table):
    recordings = open_recordings(table, columns=["text"])
    assert recordings.columns == ["text"]
    assert [dict(r.columns) for r in recordings] == [{"text": f"text {i}"} for i in range(3)]
    assert [r.speaker for r in recordings] == ["0", "1", "2"]
    assert [r.speaker for r in recordings.select_columns([])] == ["0", "1", "2"]


def test_data_without_recordings_are_refused(folder, table, tmp_path):
    (tmp_path / "empty").mkdir()
    for data, said in [
        (tmp_path / "empty", "no audio file in .*empty, and no table"),
        ([], "an empty list"),
        ("./nowhere", r"no folder or file \./nowhere"),
        ("nowhere/set.parquet", r"no folder or file nowhere/set\.parquet"),
        (folder / "notes.txt", "expected folders or audio files"),
        (datasets.DatasetDict(train=table), r"a dict of train; give data\['train'\]"),
    ]:
        with pytest.raises(InputError, match=said):
            open_recordings(data)
    (folder / "metadata.csv").write_text("file\nb.wav\n")
    with pytest.raises(FileFormatError, match="expected a column named file_name"):
        list(open_recordings(folder))


def test_a_table_without_rows_says_so(table, tmp_path):
    table.select([]).to_parquet(tmp_path / "none.parquet")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(FileFormatError, match=r"cannot load .*none\.parquet: it has no rows$"):
        open_recordings(tmp_path / "none.parquet")
    import pyarrow.parquet

    schema = pyarrow.schema([("x", pyarrow.int8())])
    with pyarrow.parquet.ParquetWriter(tmp_path / "group.parquet", schema) as file:
        file.write_table(schema.empty_table())
    with pytest.raises(FileFormatError, match=r"group\.parquet: it has no rows, or none in its fi"):
        open_recordings(tmp_path / "group.parquet")
    with pytest.raises(FileFormatError, match=r"cut\.parquet: (?!An error occurred)"):
        open_recordings(tmp_path / "cut.parquet")


def test_a_data_set_of_the_hub_names_no_file_of_this_machine(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(folder)
    (tmp_path / "cache").mkdir()
    (folder / "b.wav").rename(tmp_path / "cache" / "b.wav")
    (tmp_path / "cache" / "link.wav").symlink_to(folder / "a-b.wav")
    outside = [str(folder / "a-b.wav"), "a-b.wav", str(tmp_path / "cache" / ".." / "data/a-b.wav")]
    outside.append(str(tmp_path / "cache" / "link.wav"))
    rows = [{"audio": {"bytes": None, "path": path}} for path in outside]
    rows.append({"audio": {"bytes": None, "path": str(tmp_path / "cache" / "b.wav")}})
    table = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))
    stranger = dataset_recordings(table, Origin(name="ada/set", on_hub=True), None, None)
    cells = [cell.as_py() for cell in next(stranger.tables(0, 9, 0))[AUDIO]]
    for recording, cell in zip(stranger, cells, strict=True):
        if recording.file_name == "b.wav":
            assert recording.num_samples == read_cell(stranger.own_cell(cell), RATE).num_samples
            continue
        for read in (recording.open, lambda c=cell: read_cell(stranger.own_cell(c), RATE)):
            with pytest.raises(InputError, match="which is no file of the data set"):
                read()
    own = dataset_recordings(table, Origin(name="table"), None, None)  # the user's list
    assert [recording.num_samples for recording in own] == [400, 400, 400, 400, 402]


def test_files_and_folders_need_no_datasets(folder):
    code = (
        "import sys; sys.modules['datasets'] = sys.modules['pyarrow'] = None\n"
        "from codecplus.recordings import open_recordings\n"
        "print([r.read().shape for r in open_recordings(sys.argv[1])])\n"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[(1, 400), (2, 401), (3, 402)]"
