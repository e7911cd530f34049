"""Files that a user names, and those that folders hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from codecplus.errors import InputError
from codecplus.recordings import audio_files
from codecplus.recordings.listing import find_files


@pytest.fixture
def folder(tmp_path):
    names = ["b.WAV", "a/c.flac", "a-b.mp3", "._b.wav", ".hidden/d.wav", "e.txt", "f.TXT", "g"]
    for name in [*names, "metadata.csv", ".take.wav-part.wav"]:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "data"


def test_a_folder_gives_its_audio_files_in_the_order_of_their_names(folder):
    files = audio_files(folder).files
    assert [name for _, name in files] == ["a-b.mp3", "a/c.flac", "b.WAV"]
    assert all(path == folder / name for path, name in files)


def test_the_files_left_out_are_counted_by_suffix(folder):
    assert audio_files([folder]).left_out == {"": 1, ".txt": 2}


def test_names_with_a_leading_dot_are_skipped_in_folders_and_taken_where_they_are_named(folder):
    assert not any("/." in f"/{name}" for _, name in audio_files(folder).files)
    assert audio_files(str(folder / "._b.wav")).files[0].name == "._b.wav"


def test_a_named_file_is_taken_whatever_its_suffix(folder):
    found = audio_files([folder / "e.txt", folder / "a"])
    assert [name for _, name in found.files] == ["e.txt", "c.flac"]
    assert found.left_out == {}


@pytest.mark.skipif(sys.platform != "linux", reason="paths have 4096 bytes on Linux")
def test_a_folder_may_be_as_deep_as_the_disk_allows(tmp_path, monkeypatch):
    for name, depth in (("deep", 1200), ("deeper", 2500)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("x.wav").touch()
    monkeypatch.chdir(tmp_path)
    assert audio_files(tmp_path / "deep").files[0].name == "d/" * 1200 + "x.wav"
    with pytest.raises(InputError, match="it holds 1 folders that cannot be read"):
        audio_files(tmp_path / "deeper")
    subprocess.run(["rm", "-rf", "deep", "deeper"], check=True)  # rmtree calls itself, too


def test_a_link_to_itself_leads_nowhere(tmp_path):
    (tmp_path / "a.wav").touch()
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    assert audio_files(tmp_path).left_out == {"links that lead nowhere": 1}


def test_other_suffixes_can_be_asked_for(folder):
    assert [name for _, name in find_files(folder, {".txt"}).files] == ["e.txt", "f.TXT"]


def test_names_that_give_nothing_are_refused(folder):
    with pytest.raises(InputError, match=r"no file or folder .*nowhere"):
        audio_files([folder, folder / "nowhere"])
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"the folder .*empty holds no audio file, such as \.wav"):
        audio_files(folder / "empty")
