"""One folder and one table go through all verbs, which see the same recordings."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from training.training_recipes import CONFIG, PAPER

from codecplus import Codec, DacConfig, DacModel
from codecplus.audio.sources import ArraySource
from codecplus.eval import EvaluationConfig, run_evaluation
from codecplus.recordings import audio_files, open_recordings
from codecplus.recordings.cells import FileBlocks
from codecplus.tokenizing import Coding, row_codes, tokenize
from codecplus.training.entropy import fit_entropy_model
from codecplus.training.recipe import Recipe
from codecplus.training.run import RunOptions, train

pytest.importorskip("datasets")
RATE = CONFIG["sampling_rate"]
NAMES = ["a-b.flac", "a/c.WAV", "b.aiff"]  # suffixes of which some verbs once knew only a few


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verbs") / "data"
    (folder / "a").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        noise = np.random.default_rng(number).standard_normal(RATE // 2)
        soundfile.write(folder / name, 0.1 * noise, RATE)
    (folder / "._b.aiff").write_bytes(b"AppleDouble")
    return folder


@pytest.fixture(scope="module")
def table(folder):
    cells = [{"bytes": (folder / name).read_bytes(), "path": name} for name in NAMES]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    path = folder.parent / "table.parquet"
    pq.write_table(pa.table({"audio": pa.array(cells, kind)}), path)
    return path


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    torch.manual_seed(0)
    return Codec(DacModel(DacConfig(**CONFIG)))


@pytest.fixture
def opened(monkeypatch):
    """The samples of all recordings that were opened, by content."""
    contents = set()
    for reader in (FileBlocks, ArraySource):
        blocks = reader.blocks

        def spy(self, *size, _blocks=blocks):
            for block in _blocks(self, *size):
                contents.add(block.tobytes())
                yield block

        monkeypatch.setattr(reader, "blocks", spy)
    return contents


def expected(folder) -> list[np.ndarray]:
    return [recording.read() for recording in open_recordings(folder)]


def test_encode_and_tokenize_see_the_same_recordings(folder, table, codec, tmp_path):
    files = audio_files(folder).files
    assert [name for _, name in files] == NAMES
    encoded = []
    for number, (path, _) in enumerate(files):
        codec.compress(path, tmp_path / f"{number}.dacp")
        encoded.append(codec.decompress(tmp_path / f"{number}.dacp"))
    for data in (folder, table):
        out = tmp_path / data.name
        tokenize(data, codec, out, coding=Coding(), workers=0, progress=False)
        rows = pq.read_table(out / "data").to_pylist()
        assert len(rows) == 3
        for row, audio in zip(rows, encoded, strict=True):
            assert np.array_equal(codec.decode(row_codes(codec, row)), audio)


def test_eval_sees_the_same_recordings(folder, table, tmp_path):
    hashes = []
    for data in (folder, table):
        out = tmp_path / data.name
        config = EvaluationConfig(
            codecs=("opus",),
            bitrates=(12,),
            data=str(data),
            out=out,
            metrics=("si_sdr",),
            workers=1,
            progress=False,
        )
        run_evaluation(config)
        (journal,) = (out / "cache" / "clips").glob("*.jsonl")
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        hashes.append([line["clip"]["hash"] for line in lines if "clip" in line])
    assert len(hashes[0]) == 3
    assert hashes[0] == hashes[1]


def test_train_and_the_entropy_trainer_see_the_same_recordings(
    folder, table, codec, tmp_path, monkeypatch, opened
):
    from codecplus.training import data as training_data

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    changes = {
        "preset": str(tmp_path / "config.json"),
        "schedule": {"steps": 1, "warmup": 0, "gamma": 0.99},
        "batch": 24,  # enough to draw each of the three recordings
    }
    recipe = Recipe.from_dict({**PAPER, **changes})
    drawn = set()
    read = training_data.as_file

    def spy(file):
        drawn.add(file if isinstance(file, bytes) else file.read_bytes())
        return read(file)

    monkeypatch.setattr(training_data, "as_file", spy)
    options = RunOptions(
        workers=0,
        cpu=True,
        precision="no",
        tracker="none",
        save_every=1,
        validate_every=0,
        log_every=1,
        progress=False,
    )
    known = {(folder / name).read_bytes() for name in NAMES}
    for data in (folder, table):
        drawn.clear()
        train(recipe, data, tmp_path / data.name, options=options)
        assert drawn == known
        opened.clear()
        fit_entropy_model(codec, data, minutes=0.02)
        # and, as far as time goes, varied ones
        assert opened >= {audio.tobytes() for audio in expected(folder)}


def test_the_entropy_trainer_says_what_it_leaves_out(folder, codec, tmp_path):
    shutil.copytree(folder, tmp_path / "mixed")
    (tmp_path / "mixed" / "broken.wav").write_bytes(b"RIFF")
    with pytest.warns(UserWarning, match=r"1 of [1-4] recordings left out: not readable"):
        fit_entropy_model(codec, tmp_path / "mixed", minutes=0.1)


def test_the_entropy_trainer_says_when_audio_is_too_short(folder, codec):
    with pytest.warns(UserWarning, match=r"^2 s of audio were encoded.* may make files longer"):
        fit_entropy_model(codec, folder, minutes=0.1)
