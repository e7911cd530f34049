import io
import os
import sys

import numpy as np
import pytest
import soundfile
import torch

from codecplus.audio.loudness import integrated_loudness
from codecplus.errors import InputError
from codecplus.training.data import Batches, Crops, Cutter, FileSource, find_recordings, hold_out
from codecplus.training.recipe import Augmentation
from codecplus.training.sampling import Sampling, TableOptions, open_data

RATE = 8000
PLAIN = Augmentation(flip_share=0)


@pytest.fixture
def folder(tmp_path):
    ramp = np.linspace(0.1, 0.9, 8 * RATE, dtype=np.float32)
    soundfile.write(tmp_path / "long.wav", ramp, RATE, subtype="FLOAT")
    (tmp_path / "below").mkdir()
    stereo = np.stack([np.full(RATE, 0.5), np.full(RATE, -0.7)], axis=1)
    soundfile.write(tmp_path / "below" / "stereo.flac", stereo, RATE)
    (tmp_path / "notes.txt").write_text("no audio")
    return tmp_path


def batches(folder, samples=200, batch=8, *, seed=0, augmentation=None, **options):
    source = FileSource(find_recordings(folder))
    return Batches(Crops(source, Cutter(RATE, samples, augmentation), seed), batch, **options)


def test_one_seed_gives_one_stream(folder):
    first, again, other = (batches(folder, seed=seed) for seed in (1, 1, 2))
    for _ in range(3):
        x = next(first).audio
        assert torch.equal(x, next(again).audio)
        assert not torch.equal(x, next(other).audio)


def test_a_stream_continues_from_its_state(folder):
    stream, later = batches(folder), batches(folder)
    next(stream)
    later.load_state_dict(stream.state_dict())
    assert torch.equal(next(stream).audio, next(later).audio)


def test_peeking_changes_nothing(folder):
    plain, peeked = batches(folder), batches(folder)
    ahead = peeked.peek(2)
    assert peeked.state_dict() == batches(folder).state_dict()
    for batch in ahead:
        assert torch.equal(next(plain).audio, batch.audio)
        assert torch.equal(next(peeked).audio, batch.audio)
    assert torch.equal(next(plain).audio, next(peeked).audio)
    assert peeked.state_dict() == plain.state_dict()


def test_workers_change_nothing(folder):
    alone, ahead = batches(folder), batches(folder, workers=2)
    for _ in range(3):
        assert torch.equal(next(alone).audio, next(ahead).audio)
    resumed = batches(folder, workers=1)  # what was made ahead is not what was given
    resumed.load_state_dict(ahead.state_dict())
    assert torch.equal(next(alone).audio, next(resumed).audio)


def test_two_processes_share_the_crops_of_one(folder):
    whole = batches(folder, batch=8)
    parts = [batches(folder, batch=4, rank=rank, processes=2) for rank in (0, 1)]
    for _ in range(3):
        assert torch.equal(next(whole).audio, torch.cat([next(part).audio for part in parts]))


def test_recordings_are_drawn_by_their_duration(folder):
    audio = next(batches(folder, batch=400, augmentation=PLAIN)).audio
    negative = (
        (audio < 0).all(dim=1).float().mean()
    )  # the stereo file averages to -0.1 and lasts 1 s of 9
    assert 0.05 < float(negative) < 0.18


def test_another_rate_is_resampled_and_says_its_bandwidth(folder):
    soundfile.write(
        folder / "long.wav", np.sin(2 * np.pi * 440 * np.arange(16000 * 8) / 16000), 16000
    )
    (folder / "below" / "stereo.flac").unlink()
    batch = next(batches(folder, samples=RATE, batch=1, augmentation=PLAIN))
    assert torch.fft.rfft(batch.audio[0]).abs().argmax() == 440
    assert batch.bandwidth.tolist() == [4000]
    soundfile.write(folder / "long.wav", np.sin(np.arange(40000)), 4000)
    assert next(batches(folder, batch=1)).bandwidth.tolist() == [2000]


def test_a_short_recording_is_padded_behind(folder):
    (folder / "long.wav").unlink()
    crop = next(batches(folder, samples=2 * RATE, batch=1, augmentation=PLAIN)).audio[0]
    assert (crop[:RATE] != 0).all()
    assert (crop[RATE:] == 0).all()


def test_silence_is_drawn_again(tmp_path):
    audio = np.zeros(4 * RATE, np.float32)
    audio[: 2 * RATE] = 0.5
    soundfile.write(tmp_path / "half.wav", audio, RATE)
    assert (
        next(batches(tmp_path, batch=100, augmentation=PLAIN)).audio.abs().amax(dim=1) > 0
    ).all()


def test_a_folder_of_silence_gives_silence(tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    augmentation = Augmentation(loudness_share=1, gain_share=1)
    assert not next(batches(tmp_path, batch=3, augmentation=augmentation)).audio.any()


def test_loudness_is_brought_into_its_range(tmp_path):
    noise = np.random.default_rng(0).standard_normal(8 * RATE) * 0.02
    soundfile.write(tmp_path / "noise.wav", noise, RATE)
    augmentation = Augmentation(loudness_share=1, loudness_lufs=(-30, -20))
    audio = next(batches(tmp_path, samples=RATE, batch=30, augmentation=augmentation)).audio
    found = [integrated_loudness(crop, RATE) for crop in audio]
    assert -30.5 < min(found) < -27
    assert -23 < max(found) < -19.5


def test_speed_moves_pitch_and_band_with_it(tmp_path):
    time = np.arange(4 * RATE) / RATE
    soundfile.write(tmp_path / "tone.wav", 0.3 * np.sin(2 * np.pi * RATE / 8 * time), RATE)
    augmentation = Augmentation(speed_share=0.5, speed=(0.8, 0.9), flip_share=0)
    batch = next(batches(tmp_path, samples=RATE, batch=40, augmentation=augmentation))
    pitch = torch.fft.rfft(batch.audio).abs().argmax(dim=1).double()  # in Hz: crops of a second
    moved = pitch != RATE / 8
    assert 5 < int(moved.sum()) < 35
    assert float(pitch[moved].min()) >= 0.8 * RATE / 8 - 1
    assert float(pitch[moved].max()) <= 0.9 * RATE / 8 + 1
    torch.testing.assert_close(batch.bandwidth, (4 * pitch).float(), rtol=0.01, atol=0)
    with pytest.raises(
        InputError, match=r"augmentation.speed as a range within 0.25 and 4, got \[0, 2\]"
    ):
        Augmentation(speed=(0, 2))


def test_gain_stays_in_its_range_and_never_clips(folder):
    plain = next(batches(folder, batch=200, augmentation=PLAIN)).audio
    augmentation = Augmentation(gain_share=1, gain_db=(-20, 10), flip_share=0)
    found = next(batches(folder, batch=200, augmentation=augmentation)).audio
    gain = 20 * (found.abs().amax(dim=1) / plain.abs().amax(dim=1)).log10()
    assert gain.min() > -20.01
    assert gain.max() < 10.01
    assert gain.std() > 3
    assert found.abs().max() < 0.951


def test_unreadable_files_are_named_once(folder):
    (folder / "broken.wav").write_bytes(b"RIFF and nothing else")
    with pytest.warns(UserWarning, match=r"1 unreadable files are skipped: broken\.wav"):
        recordings = find_recordings(folder)
    assert len(recordings) == 2


def test_a_file_that_breaks_later_is_reported_once(folder):
    stream = batches(folder, batch=50)
    (folder / "long.wav").write_bytes(b"gone")
    with pytest.warns(UserWarning, match=r"long\.wav cannot be read and is left out") as caught:
        audio = torch.cat([next(stream).audio, next(stream).audio])
    assert len(caught) == 1
    assert (audio.abs().amax(dim=1) > 0).all()


def test_formats_that_libsndfile_does_not_know_are_trained_on(tmp_path):
    av = pytest.importorskip("av")
    ramp = np.linspace(0.1, 0.9, 8 * RATE, dtype=np.float32)
    with av.open(str(tmp_path / "a.m4a"), "w", format="ipod") as container:
        stream = container.add_stream("alac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((ramp * 32767).astype(np.int16)[None], "s16p", "mono")
        frame.sample_rate = RATE
        stream.format = "s16p"
        for piece in av.AudioResampler("s16p", "mono", RATE, stream.frame_size).resample(frame):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    soundfile.write(tmp_path / "b.wav", ramp, RATE)
    files = {file.path.suffix: file for file in find_recordings(tmp_path)}
    assert files[".m4a"].seconds == pytest.approx(8, abs=0.6)
    crops = []
    for suffix in (".m4a", ".wav"):
        cutter = Cutter(RATE, 200, PLAIN)
        audio = next(Batches(Crops(FileSource([files[suffix]]), cutter), 64)).audio
        slopes = audio.diff(dim=1).mean(dim=1) * 8 * RATE  # of the ramp, at any place
        torch.testing.assert_close(slopes, torch.full((64,), 0.8), atol=0.02, rtol=0)
        crops.append(audio[:, 0])
    assert crops[0].std() == pytest.approx(float(crops[1].std()), rel=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes")
def test_a_name_that_is_no_utf8_is_trained_on(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.wav", "wb") as file:
        soundfile.write(file, np.full(RATE, 0.5), RATE, format="WAV")
    assert next(batches(tmp_path)).audio.abs().mean() == pytest.approx(0.5, abs=1e-3)


def test_nothing_readable_stops_with_a_message(folder):
    stream = batches(folder)
    for path in folder.rglob("*.*"):
        path.write_bytes(b"gone")
    with pytest.raises(InputError, match="no recording can be read; 2 were tried"):
        next(stream)


def test_an_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(
        InputError, match=r"no readable audio below .*expected files ending in .*\.flac"
    ):
        find_recordings(tmp_path)


def test_files_held_out_for_validation_are_not_trained_on(tmp_path):
    for index in range(60):
        soundfile.write(tmp_path / f"{index}.wav", np.full(100, 0.5), RATE)
    train, held = hold_out(find_recordings(tmp_path))
    assert len(held) == 3
    assert {r.path for r in train} | {r.path for r in held} == set(tmp_path.glob("*.wav"))
    assert len(train) == 57


@pytest.fixture
def speakers(tmp_path):
    """Two folders, of three speakers each, with a manifest of kinds and speakers."""
    lines = ["path,kind,speaker"]
    for index in range(12):
        folder = ("talk", "song")[index % 2]
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / f"{index}.wav"
        seconds = 1 + 3 * (index % 2)  # songs are longer
        level = 0.2 + 0.4 * (index % 2)
        soundfile.write(path, np.full(seconds * RATE, level), RATE)
        kind = ("speech", "music")[index % 2]
        lines.append(f"{folder}/{index}.wav,{kind},s{index % 6}")
    (tmp_path / "MANIFEST.csv").write_text("\n".join(lines))
    return tmp_path


def shares(data, count=400, **sampling):
    """Return the share of crops of speech, which is quieter."""
    cutter = Cutter(RATE, 100, PLAIN)
    batches, _ = open_data(data, cutter, count, sampling=Sampling(**sampling))
    return float((next(batches).audio[:, 0] < 0.4).float().mean())


def test_weights_are_shares_of_the_data_or_of_the_kinds(speakers):
    data = [speakers / "talk", speakers / "song"]
    assert shares(data) == pytest.approx(0.2, abs=0.06)  # by duration
    assert shares(data, weights=[9, 1]) == pytest.approx(0.9, abs=0.05)
    assert shares(speakers, weights={"speech": 1, "music": 1}) == pytest.approx(0.5, abs=0.08)
    assert shares(data, weights=[0, 1]) == 0
    assert shares(data, drawing="files") == pytest.approx(0.5, abs=0.08)


def test_files_are_drawn_alike_where_the_recipe_says_so(speakers):
    soundfile.write(speakers / "talk" / "long.wav", np.full(60 * RATE, 0.1), RATE)
    cutter = Cutter(RATE, 100, PLAIN)
    sampling = Sampling(drawing="files")
    batches, _ = open_data(speakers / "talk", cutter, 400, sampling=sampling)
    assert float((next(batches).audio[:, 0] < 0.15).float().mean()) == pytest.approx(
        1 / 7, abs=0.05
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1], "a weight for each of 2 data, got 1 weights"),
        ([0, 0], "weights of 0 or more, not all 0"),
        ([2, -1], "weights of 0 or more, not all 0"),
        ({"speech": 1}, "no weight for kind music; give 0 to leave it out"),
        ({"speech": 1, "music": 1, "noise": 1}, "weights for kind noise, of which there is no"),
    ],
)
def test_weights_that_do_not_fit_are_refused(speakers, weights, message):
    with pytest.raises(InputError, match=message):
        shares([speakers / "talk", speakers / "song"], weights=weights)


def test_weights_by_kind_need_the_kind_of_every_recording(folder):
    with pytest.raises(InputError, match=r"is of no kind; weights by kind need a MANIFEST.csv"):
        shares(folder, weights={"speech": 1})


def test_weights_for_data_that_cannot_be_read_name_them(speakers):
    (speakers / "noise").mkdir()
    (speakers / "noise" / "a.wav").write_bytes(b"no audio")
    data = [speakers / "talk", speakers / "noise"]
    with (
        pytest.warns(UserWarning, match="1 unreadable files are skipped"),
        pytest.raises(InputError, match=r"there are weights for \S*noise, of which there is no"),
    ):
        shares(data, weights=[1, 1])


@pytest.mark.parametrize(("unit", "count"), [("speaker", 2), ("folder", 6)])
def test_whole_speakers_and_folders_are_held_out(speakers, unit, count):
    cutter = Cutter(RATE, 100, PLAIN)
    batches, clips = open_data(speakers, cutter, 4, sampling=Sampling(hold_out=unit))
    held = {clip.name for clip in clips}
    trained = {file.path.name for file in batches.crops.source.files}
    assert len(held) == count
    assert len(trained) == 12 - count
    assert not held & trained
    groups = {name: int(name.split(".")[0]) % (6 if unit == "speaker" else 2) for name in held}
    assert len(set(groups.values())) == 1


def test_recordings_without_a_speaker_are_trained_on(speakers):
    soundfile.write(speakers / "talk" / "nobody.wav", np.full(RATE, 0.5), RATE)
    sampling = Sampling(hold_out="speaker")
    batches, _ = open_data(speakers, Cutter(RATE, 100, PLAIN), 4, sampling=sampling)
    assert "nobody.wav" in {file.path.name for file in batches.crops.source.files}


def test_groups_that_do_not_exist_cannot_be_held_out(tmp_path):
    for index in range(3):
        soundfile.write(tmp_path / f"{index}.wav", np.full(RATE, 0.5), RATE)
    for unit, message in (("speaker", "2 speakers to hold one out"), ("folder", "2 folders")):
        with pytest.raises(InputError, match=message):
            open_data(tmp_path, Cutter(RATE, 100), 4, sampling=Sampling(hold_out=unit))
    with pytest.raises(InputError, match="expected hold_out file or speaker or folder, got 'word'"):
        Sampling(hold_out="word")


# ---- data sets


def wav_bytes(level, seconds=1.0, rate=RATE):
    file = io.BytesIO()
    soundfile.write(
        file, np.full(int(seconds * rate), level, np.float32), rate, format="WAV", subtype="FLOAT"
    )
    return file.getvalue()


@pytest.fixture
def table(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"audio": {"bytes": wav_bytes((i + 1) / 100), "path": f"{i}.wav"}, "text": "x"}
        for i in range(40)
    ]
    rows[3]["audio"]["bytes"] = b"no audio"
    return datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))


def crop_levels(stream, count):
    return torch.cat([next(stream).audio.mean(dim=1) for _ in range(count)])


def opened(data, **options):
    table = TableOptions(**{k: options.pop(k) for k in ("column", "streaming") if k in options})
    return open_data(data, Cutter(RATE, 100, PLAIN), 5, options=table, **options)


def test_a_table_gives_crops_of_its_rows_and_keeps_some_for_validation(table):
    stream, clips = opened(table)
    with pytest.warns(UserWarning, match=r"3\.wav cannot be read"):
        levels = crop_levels(stream, 60)
    rows = (100 * levels).round().int().unique().tolist()
    assert set(rows) <= set(range(1, 39)) - {4}
    assert len(rows) > 30
    assert [clip.name for clip in clips] == ["38.wav", "39.wav"]


def test_long_rows_are_drawn_more_often():
    datasets = pytest.importorskip("datasets")
    rows = [
        {"audio": {"bytes": wav_bytes(0.1, 9), "path": None}},
        {"audio": {"bytes": wav_bytes(0.2, 1), "path": None}},
    ]
    stream, _ = opened(datasets.Dataset.from_list(rows))
    assert 0.03 < float((crop_levels(stream, 60) > 0.15).float().mean()) < 0.2


@pytest.mark.filterwarnings("ignore:3.wav cannot be read")
def test_a_table_takes_no_weights_and_holds_out_rows(table):
    for sampling, message in (
        (Sampling(weights=[1]), "weights are for audio files and folders"),
        (Sampling(hold_out="speaker"), "hold_out='speaker' is for audio files and folders"),
    ):
        with pytest.raises(InputError, match=message):
            opened(table, sampling=sampling)


@pytest.mark.parametrize("stop", [1, 90, 140])
def test_a_stream_resumes_with_the_same_crops(table, stop):
    def stream():
        return opened(table.to_iterable_dataset(num_shards=4), validation=table.select([0]))[0]

    whole, first, second = stream(), stream(), stream()
    expected = crop_levels(whole, stop + 5)
    crop_levels(first, stop)
    second.load_state_dict(first.state_dict())
    assert torch.equal(crop_levels(second, 5), expected[-25:])


def test_a_resumed_stream_goes_on_like_one_that_never_stopped(table):
    def stream():
        rows = table.select([0, 1]).to_iterable_dataset(num_shards=2)
        return opened(rows, validation=table.select([0]))[0]

    whole = stream()
    expected = crop_levels(whole, 80)  # a round has 32 batches
    before = stream()
    crop_levels(before, 10)
    resumed = stream()
    resumed.load_state_dict(before.state_dict())
    assert torch.equal(crop_levels(resumed, 70), expected[50:])


@pytest.mark.filterwarnings("ignore:3.wav")
def test_a_stream_visits_every_row_and_goes_round(table):
    stream, clips = opened(table.to_iterable_dataset())
    assert len(clips) == 7  # of the first 8 rows one is broken
    first = crop_levels(stream, 80)  # 32 s of audio are 2560 crops of 100 samples, in 512 batches
    assert float((100 * first).round().min()) == 9
    assert len((100 * first).round().unique()) == 32


def test_a_parquet_file_and_a_saved_data_set_are_tables(table, tmp_path):
    table = table.select(range(10, 20))
    table.to_parquet(tmp_path / "rows.parquet")
    table.save_to_disk(tmp_path / "saved")
    for place in (tmp_path / "rows.parquet", tmp_path / "saved"):
        for streaming in (False, True):
            levels = crop_levels(opened(place, streaming=streaming)[0], 2)
            assert 0.105 < float(levels.min()) <= float(levels.max()) < 0.205


def test_a_missing_column_is_refused_with_the_names_of_all_columns(table):
    with pytest.raises(
        InputError, match="no column 'sound'; name the one with the audio: audio, text"
    ):
        opened(table, column="sound")


@pytest.mark.parametrize("data", ["nowhere", "./no/where", ["a/b", "c/d"]])
def test_missing_data_is_refused_by_its_name(data):
    with pytest.raises(InputError, match="there is no folder or file"):
        opened(data)
