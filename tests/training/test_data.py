import io

import numpy as np
import pytest
import soundfile
import torch

from codecplus.audio.loudness import integrated_loudness
from codecplus.errors import InputError
from codecplus.training.data import Batches, Crops, Cutter, FileSource, find_recordings, hold_out
from codecplus.training.recipe import Augmentation
from codecplus.training.sources import TableOptions, open_data

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
@pytest.mark.parametrize("stop", [1, 90, 140])
def test_a_stream_resumes_with_the_same_crops(table, stop):
    def stream():
        return opened(table.to_iterable_dataset(num_shards=4), validation=table.select([0]))[0]

    whole, first, second = stream(), stream(), stream()
    expected = crop_levels(whole, stop + 5)
    crop_levels(first, stop)
    second.load_state_dict(first.state_dict())
    assert torch.equal(crop_levels(second, 5), expected[-25:])


def test_a_resumed_stream_goes_round_like_one_that_never_stopped(table):
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
