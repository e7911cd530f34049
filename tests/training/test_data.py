import numpy as np
import pytest
import soundfile
import torch

from codecplus.training.data import Augmentation, RandomCrops, find_recordings

RATE = 8000
PLAIN = Augmentation(gain_share=0, flip_share=0)


@pytest.fixture
def folder(tmp_path):
    ramp = np.linspace(0.1, 0.9, 8 * RATE, dtype=np.float32)
    soundfile.write(tmp_path / "long.wav", ramp, RATE, subtype="FLOAT")
    (tmp_path / "below").mkdir()
    stereo = np.stack([np.full(RATE, 0.5), np.full(RATE, -0.7)], axis=1)
    soundfile.write(tmp_path / "below" / "stereo.flac", stereo, RATE)
    (tmp_path / "notes.txt").write_text("no audio")
    return tmp_path


def crops(folder, samples=200, batch=8, **options):
    return RandomCrops(find_recordings(folder), RATE, samples, batch, **options)


def test_one_seed_gives_one_stream(folder):
    first, again, other = (crops(folder, seed=seed) for seed in (1, 1, 2))
    for _ in range(3):
        x = next(first)
        assert torch.equal(x, next(again))
        assert not torch.equal(x, next(other))


def test_a_stream_continues_from_its_state(folder):
    stream, later = crops(folder), crops(folder, seed=9)
    next(stream)
    later.load_state_dict(stream.state_dict())
    assert torch.equal(next(stream), next(later))


def test_recordings_are_drawn_by_their_duration(folder):
    batch = next(crops(folder, batch=400, augmentation=PLAIN))
    negative = (batch < 0).all(dim=1).float().mean()  # the stereo file averages to -0.1 and lasts 1 s of 9
    assert 0.05 < float(negative) < 0.18


def test_another_rate_is_resampled(folder):
    soundfile.write(folder / "long.wav", np.sin(2 * np.pi * 440 * np.arange(16000 * 8) / 16000), 16000)
    (folder / "below" / "stereo.flac").unlink()
    crop = next(crops(folder, samples=RATE, batch=1, augmentation=PLAIN))[0]
    assert torch.fft.rfft(crop).abs().argmax() == 440


def test_a_short_recording_is_padded_behind(folder):
    (folder / "long.wav").unlink()
    crop = next(crops(folder, samples=2 * RATE, batch=1, augmentation=PLAIN))[0]
    assert (crop[:RATE] != 0).all()
    assert (crop[RATE:] == 0).all()


def test_silence_is_drawn_again(tmp_path):
    audio = np.zeros(4 * RATE, np.float32)
    audio[: 2 * RATE] = 0.5
    soundfile.write(tmp_path / "half.wav", audio, RATE)
    batch = next(crops(tmp_path, batch=100, augmentation=PLAIN))
    assert (batch.abs().amax(dim=1) > 0).all()


def test_gain_stays_in_its_range_and_never_clips(folder):
    batch = next(crops(folder, batch=200, augmentation=Augmentation(gain_share=1)))
    levels = 20 * batch.square().mean(dim=1).sqrt().log10()
    assert levels.min() > -34.5
    assert levels.max() < -14.5
    assert batch.abs().max() < 1


def test_unreadable_files_are_named_once(folder):
    (folder / "broken.wav").write_bytes(b"RIFF and nothing else")
    with pytest.warns(UserWarning, match=r"1 unreadable files are skipped: broken\.wav"):
        recordings = find_recordings(folder)
    assert len(recordings) == 2


def test_a_file_that_breaks_later_is_left_out(folder):
    stream = crops(folder, batch=50)
    (folder / "long.wav").write_bytes(b"gone")
    with pytest.warns(UserWarning, match=r"long\.wav cannot be read and is left out") as caught:
        torch.cat([next(stream), next(stream)])
    assert len(caught) == 1


def test_an_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match=r"no readable audio below .*expected files ending in .*\.flac"):
        find_recordings(tmp_path)
