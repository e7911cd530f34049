"""What the demo does, without its pages: files are checked, results kept for a while, ratings for
good.
"""

import io
import re
import sqlite3
import struct
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from codecplus.errors import CodecPlusError, FileFormatError, InputError
from codecplus.eval.listening import Rating, load_ratings
from codecplus.utils import save_audio

pytestmark = pytest.mark.usefixtures("world")


@pytest.fixture
def clip(world):
    from space.coding import read_clip

    return read_clip(world[0] / "one.wav")


@pytest.fixture
def names():
    from space.settings import CHECKPOINTS

    return CHECKPOINTS


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


# ---- what visitors bring


def test_a_zip_named_wav_is_refused_in_a_sentence_without_the_servers_folders(tmp_path):
    from space.coding import read_clip

    with zipfile.ZipFile(tmp_path / "evil.wav", "w") as archive:
        archive.writestr("a.txt", "x" * 1000)
    with pytest.raises(FileFormatError, match="The file is not readable audio") as caught:
        read_clip(tmp_path / "evil.wav")
    assert str(tmp_path) not in str(caught.value)


def test_hours_are_refused_by_their_header(tmp_path):
    from space.coding import read_clip

    with soundfile.SoundFile(tmp_path / "long.flac", "w", 4000, 1) as file:
        file.write(np.zeros(4000 * 7200, np.int16))
    assert (tmp_path / "long.flac").stat().st_size < 2**18  # small enough to be uploaded
    with pytest.raises(InputError, match=r"at most 60 s of audio, got 2\.0 hours"):
        read_clip(tmp_path / "long.flac")


def test_two_gigabytes_are_refused_before_they_are_read(tmp_path):
    from space.coding import read_clip

    with open(tmp_path / "huge.wav", "wb") as file:
        file.truncate(2 * 2**30)
    with pytest.raises(InputError, match="at most 30 MB, got 2048 MB"):
        read_clip(tmp_path / "huge.wav")


def test_too_short_and_nothing_at_all(tmp_path):
    from space.coding import read_clip

    save_audio(np.zeros(100), tmp_path / "short.wav", 16000)
    for path, message in ((tmp_path / "short.wav", "0.006 s"), (None, "no clip")):
        with pytest.raises(InputError, match=message):
            read_clip(path)


def test_a_limit_and_what_is_just_above_it_do_not_read_alike(tmp_path):
    from space.coding import read_clip

    save_audio(np.zeros(60 * 8000 + 1), tmp_path / "long.wav", 8000)
    with pytest.raises(InputError, match=r"at most 60 s of audio, got 60\.01 s"):
        read_clip(tmp_path / "long.wav")
    (tmp_path / "large.wav").write_bytes(bytes(30 * 2**20 + 1))
    with pytest.raises(InputError, match=r"at most 30 MB, got 30\.01 MB"):
        read_clip(tmp_path / "large.wav")


def test_six_channels_are_mixed_and_the_visitor_is_told(tmp_path):
    from space.coding import read_clip

    audio = 0.1 * np.random.default_rng(0).standard_normal((6, 16000))
    save_audio(audio, tmp_path / "six.wav", 16000)
    clip = read_clip(tmp_path / "six.wav")
    assert clip.note == "the mix of its 6 channels"
    np.testing.assert_allclose(clip.audio, audio.mean(axis=0, keepdims=True), atol=1e-4)


def record(path, container, codec, seconds=1.0, rate=48000, channels=1):
    """Write a tone as phones and browsers do."""
    av = pytest.importorskip("av", reason="phone recordings need PyAV: pip install av")
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
        planes = np.repeat(tone[None].astype(np.float32), channels, axis=0)
        resampler = av.AudioResampler(stream.format, layout, rate, frame_size=stream.frame_size)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.sample_rate = rate
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("container", "codec", "channels"),
    [("mp4", "aac", 1), ("ipod", "aac", 2), ("webm", "libopus", 1), ("mov", "alac", 2)],
)
def test_recordings_of_phones_and_browsers_are_read(tmp_path, container, codec, channels):
    from space.coding import read_clip

    path = record(tmp_path / "recording.bin", container, codec, channels=channels)
    clip = read_clip(path)
    assert (len(clip.audio), clip.sample_rate) == (channels, 48000)
    assert clip.seconds == pytest.approx(1, abs=0.06)
    middle = clip.audio[0, 12000:36000]
    assert np.abs(np.fft.rfft(middle)).argmax() == 220  # 440 Hz
    assert np.std(middle) == pytest.approx(0.3 / 2**0.5, rel=0.05)


def test_long_recordings_are_not_read_to_their_end_and_other_files_are_not_guessed(
    tmp_path, monkeypatch
):
    from space import coding
    from space.coding import read_clip

    class Reader(coding.AudioFileReader):
        header_seconds = 0.0  # as of a recording that browsers write while it goes on
        seconds_read = 0.0

        def blocks(self):
            for block in super().blocks():
                Reader.seconds_read += block.shape[-1] / self.sample_rate
                yield block

    path = record(tmp_path / "long.m4a", "mp4", "aac", seconds=70, rate=8000)
    with pytest.raises(InputError, match="at most 60 s"):
        read_clip(path)
    monkeypatch.setattr(coding, "AudioFileReader", Reader)
    monkeypatch.setattr(coding, "MAX_SECONDS", 5)
    with pytest.raises(InputError, match="at most 5 s"):
        read_clip(path)
    assert Reader.seconds_read < 10
    whole = path.read_bytes()
    (tmp_path / "half.m4a").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "list.m4a").write_text("#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n")
    (tmp_path / "junk.webm").write_bytes(b"\x1a\x45\xdf\xa3" + bytes(range(256)))
    for name in ("half.m4a", "list.m4a", "junk.webm"):
        with pytest.raises(FileFormatError) as caught:
            read_clip(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)


def test_visitors_cannot_make_the_server_load_what_they_like(clip):
    from space.coding import any_codec, checkpoint, round_trip

    for name in ("/etc", "somebody/model", "../tiny-live"):
        for call in (
            lambda name=name: checkpoint(name),
            lambda name=name: round_trip(clip, name, 1),
        ):
            with pytest.raises(InputError, match="no checkpoint"):
                call()
        with pytest.raises(InputError, match="no codec"):
            any_codec(clip, name, 6)


# ---- coding


def test_a_round_trip_gives_the_clips_shape_and_the_size_of_its_file(clip, names):
    from space.coding import compress, figures, round_trip

    done = round_trip(clip, names[0], 1.7)
    assert done.audio.shape == clip.audio.shape
    assert done.size == len(done.data) == len(compress(clip, names[0], 1.7))
    assert done.kbps == pytest.approx(8 * done.size / clip.seconds / 1000)
    assert len(compress(clip, names[0], 3.4)) > done.size
    found = figures(clip, done)
    assert found["bytes"] == done.size
    assert found["si_sdr"] is not None


def test_opus_beside_it_has_about_its_rate(clip):
    from space.coding import any_codec

    assert any_codec(clip, "opus", 12).kbps == pytest.approx(12, rel=0.1)


def test_a_file_is_decoded_by_the_checkpoint_that_made_it(clip, names, tmp_path):
    from space.coding import decode_file, round_trip

    for name in names:
        done = round_trip(clip, name, 1.0)
        (tmp_path / "clip.dacp").write_bytes(done.data)
        audio, rate, about = decode_file(tmp_path / "clip.dacp")
        assert about["checkpoint"] == name.rsplit("/", 1)[1]
        assert rate == clip.sample_rate
        np.testing.assert_array_equal(audio, done.audio)


def test_other_files_are_refused_as_dacp(clip, names, tmp_path):
    from space.coding import decode_file, round_trip

    data = round_trip(clip, names[0], 1.0).data
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
    for content in (b"", b"RIFF" + bytes(100), data[:middle], flipped):
        (tmp_path / "bad.dacp").write_bytes(content)
        with pytest.raises(CodecPlusError):
            decode_file(tmp_path / "bad.dacp")


def test_what_fails_is_tried_again(world):
    from space.coding import _Recent

    recent, tries = _Recent(2), []

    def fail():
        tries.append(1)
        raise InputError("no")

    for _ in range(2):
        with pytest.raises(InputError):
            recent.get("a", fail)
    assert len(tries) == 2
    assert [recent.get(key, lambda key=key: key) for key in "abcab"] == list("abcab")
    assert recent.get("b", lambda: "new") == "b"


def test_numbers_are_shown_as_people_read_them(clip, names):
    from space.coding import figures, round_trip
    from space.parts import size_text, table, times_text

    assert [times_text(x) for x in (1984.0, 45.26, 7.0)] == ["1,980 ×", "45.3 ×", "7 ×"]
    assert [size_text(n) for n in (12, 5985, 12_345_678)] == ["12 bytes", "5.99 kB", "12.3 MB"]
    row = {**figures(clip, round_trip(clip, names[0], 1.0)), "codec": "<script>"}
    assert "<script>" not in table([row])


def test_a_stereo_rate_is_told_as_twice_that_of_a_channel(clip):
    from space.coding import Clip, rate_text

    assert rate_text(6.0, clip) == "6.00 kbit/s"
    assert rate_text(12.0, Clip(np.zeros((2, 9)), 16000, "")) == "2 × 6.00 kbit/s"


def test_downloads_are_named_after_codec_and_rate(clip, names):
    from space.coding import any_codec, file_name, round_trip

    assert file_name(any_codec(clip, "opus", 12), ".wav").startswith("opus-1")
    assert file_name(round_trip(clip, names[0], 1.7), ".dacp").startswith("tiny-44khz-")


def test_an_unusable_clip_gives_one_message_and_a_line(page, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    (size, _, _) = [
        fn.fn for fn in page.fns.values() if fn.name == "size" and fn.api_visibility == "private"
    ]
    assert "not readable audio" in size(None, str(tmp_path / "bad.wav"))


# ---- live


def test_a_call_gives_what_the_codec_gives_and_counts_its_bits(clip, names):
    from space.coding import checkpoint
    from space.live import Call, measure

    codec = checkpoint(names[1])
    call, parts, size = Call(codec, 1.0), [], 0
    samples = clip.audio[0]
    for start in range(0, len(samples), 320):
        audio, count = call.push(samples[start : start + 320])
        parts.append(audio)
        size += count
    whole = np.concatenate([*parts, call.flush()])[: len(samples)]
    books = codec.n_quantizers_for(1.0)
    np.testing.assert_allclose(
        whole, codec.decode(codec.encode(samples, n_quantizers=books)), atol=1e-4
    )
    assert size / clip.seconds / 1000 == pytest.approx(codec.bitrates[books - 1], rel=0.03)
    audio, rate, measured = measure(clip, names[1], 1.0)
    assert (len(audio), rate) == (len(samples), 16000)
    assert measured["algorithmic_ms"] == 20
    assert measured["compute_p95_ms"] >= measured["compute_median_ms"] > 0


def test_a_caller_at_another_rate_is_resampled(names):
    from space.coding import checkpoint
    from space.live import Call

    call = Call(checkpoint(names[1]), 1.0, 48000)
    out = [call.push(np.zeros(960, np.float32))[0] for _ in range(25)]
    assert sum(map(len, out)) + len(call.flush()) == pytest.approx(24000, abs=960)


def test_the_line_answers_and_ends_in_a_sentence(names):
    from space import live
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute
    from starlette.testclient import TestClient

    client = TestClient(Starlette(routes=[WebSocketRoute("/live-socket", live.serve)]))
    query = f"/live-socket?checkpoint={names[1]}&kbps=1&rate=16000"
    with client.websocket_connect(query) as line:
        assert line.receive_json() == {"ready": True, "latency": 0.02}
        line.send_bytes(struct.pack("<d", 1.5) + bytes(640))
        answer = line.receive_bytes()
        stamp, spent, size = struct.unpack_from("<dfI", answer)
        assert stamp == 1.5
        assert spent > 0
        assert size > 0
        assert len(answer) == 16 + 640
        line.send_bytes(b"x")
        assert "Expected packets" in line.receive_json()["error"]
    for query, message in (
        ("/live-socket?checkpoint=x&rate=16000", "no checkpoint"),
        (f"/live-socket?checkpoint={names[1]}&kbps=1&rate=1", "got 1 Hz"),
        (f"/live-socket?checkpoint={names[1]}&kbps=1000&rate=16000", "kbit/s"),
    ):
        with client.websocket_connect(query) as line:
            assert message in line.receive_json()["error"]


def tone(seconds, rate=16000):
    return 0.2 * np.sin(2 * np.pi * 300 * np.arange(round(seconds * rate)) / rate).astype(
        np.float32
    )


def through(line, samples, switches=None, rate=16000):
    """Push samples in packets of 20 ms; return what comes out and the kbit/s of each packet."""
    size = round(0.02 * rate)
    heard, kbps = [], []
    for number, start in enumerate(range(0, len(samples) - size + 1, size)):
        if switches and number in switches:
            line.switch(switches[number])
        audio, bits = line.push(samples[start : start + size])
        assert len(audio) == size
        heard.append(audio)
        kbps.append(bits / 20)
    return np.concatenate(heard), kbps


def test_the_rate_changes_without_an_interruption(names):
    from space.coding import checkpoint
    from space.live import Line

    codec = checkpoint(names[1])
    low = {"way": "codec", "checkpoint": names[1], "kbps": 0.5}
    high = {**low, "kbps": 1.0}
    samples = tone(1)
    heard, kbps = through(Line(16000, low), samples, {25: high})
    assert set(kbps[:25]) == {0.5}
    assert set(kbps[25:]) == {1.0}
    encoder, decoder = codec.encoder_stream(n_quantizers=1), codec.decoder_stream()
    parts = [decoder.push(encoder.push(samples[:8000]))]
    encoder.n_quantizers = 2
    parts.append(decoder.push(encoder.push(samples[8000:])))
    np.testing.assert_allclose(heard, np.concatenate(parts), atol=1e-5)


def test_raw_and_opus_are_switched_to_during_the_call_without_a_click(names):
    from space.live import Line

    pytest.importorskip("av", reason="Opus needs PyAV: pip install av")
    raw = {"way": "raw", "checkpoint": names[1], "kbps": 1.0}
    opus = {**raw, "way": "opus"}
    samples = tone(2)
    heard, kbps = through(Line(16000, raw), samples, {30: opus, 70: raw})
    np.testing.assert_array_equal(heard[: 30 * 320], samples[: 30 * 320])
    np.testing.assert_array_equal(heard[-20 * 320 :], samples[-20 * 320 :])
    assert kbps[0] == kbps[-1] == 256
    assert kbps[50] < 2
    # The tone itself moves by 0.024 from one sample to the next, and a cut to silence by 0.2.
    assert np.abs(np.diff(heard)).max() < 0.1


@pytest.mark.parametrize("rate", [16000, 48000])
def test_opus_lasts_as_long_as_it_says(names, rate):
    from space.live import Line

    pytest.importorskip("av", reason="Opus needs PyAV: pip install av")
    line = Line(rate, {"way": "opus", "checkpoint": names[1], "kbps": 2.0})
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal(rate).astype(np.float32)
    samples = np.convolve(noise, np.ones(24) / 24, "same").astype(np.float32)
    line.switch({"way": "opus", "checkpoint": names[1], "kbps": 2.0})
    heard, _ = through(line, samples, rate=rate)
    assert line.latency == 0.0265
    assert np.abs(heard).max() > 0.001


@pytest.mark.parametrize(("source", "target"), [(48000, 16000), (16000, 48000), (44100, 16000)])
def test_rates_of_a_call_change_without_waiting(source, target):
    from space.live_resampling import LiveResampler

    seconds = np.arange(source) / source
    samples = np.sin(2 * np.pi * 440 * seconds).astype(np.float32)
    whole = LiveResampler(source, target).push(samples)
    resampler = LiveResampler(source, target)
    size = source // 50  # 20 ms
    parts = [resampler.push(samples[i : i + size]) for i in range(0, len(samples), size)]
    assert {len(part) for part in parts} == {target // 50}
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    assert resampler.delay < 0.002
    late = np.sin(2 * np.pi * 440 * (np.arange(target) / target - resampler.delay))
    np.testing.assert_allclose(whole[target // 4 :], late[target // 4 :], atol=0.003)


def test_settings_of_a_call_that_make_no_sense_are_refused(names):
    from space.live import Line

    good = {"way": "codec", "checkpoint": names[1], "kbps": 1.0}
    line = Line(16000, good)
    for wrong, message in (
        ({"way": "mp3"}, "no way"),
        ({"kbps": "x"}, "kbit/s"),
        ({"kbps": float("nan")}, "kbit/s"),
        ({"kbps": 1000}, "kbit/s"),
        ({"kbps": None}, "kbit/s"),
        ({"checkpoint": "somebody/model"}, "no checkpoint"),
    ):
        with pytest.raises(InputError, match=message):
            line.switch({**good, **wrong})
    assert len(line.push(np.zeros(320, np.float32))[0]) == 320  # the call goes on


def test_a_caller_changes_the_way_without_hanging_up(line, names):
    with line() as socket:
        socket.receive_json()
        socket.send_bytes(bytes(8 + 640))
        assert len(socket.receive_bytes()) == 16 + 640
        wish = {"way": "raw", "checkpoint": names[1], "kbps": 1.0}
        socket.send_json(wish)
        assert socket.receive_json() == {"changed": wish, "latency": 0}
        socket.send_bytes(bytes(8 + 640))
        assert len(socket.receive_bytes()) == 16 + 640
        socket.send_text("[" * 100)
        assert "error" in socket.receive_json()


@pytest.fixture
def line(names):
    from space import live
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute
    from starlette.testclient import TestClient

    client = TestClient(Starlette(routes=[WebSocketRoute("/live-socket", live.serve)]))
    query = f"/live-socket?checkpoint={names[1]}&kbps=1&rate=16000"
    return lambda **headers: client.websocket_connect(query, headers=headers)


def test_one_address_cannot_take_all_lines():
    from space.live import Lines

    lines = Lines(total=4, each=2)
    assert [lines.take("thief") for _ in range(2)] == [None, None]
    assert "2 live calls already" in lines.take("thief")
    assert [lines.take("one"), lines.take("two")] == [None, None]
    assert "All 4 live lines are taken" in lines.take("three")
    lines.give_back("thief")
    assert lines.take("three") is None


def test_a_third_call_of_one_address_is_refused_in_a_sentence(line):
    with line() as first, line() as second, line() as third:
        said = [socket.receive_json() for socket in (first, second, third)]
    assert ["error" in word for word in said] == [False, False, True]


def test_another_websites_page_gets_no_line(line):
    from starlette.websockets import WebSocketDisconnect

    with line(origin="http://testserver") as socket:
        assert socket.receive_json()["ready"]
    for origin in ("https://evil.test", "null", "http://testserver.evil.test", ""):
        with pytest.raises(WebSocketDisconnect), line(origin=origin):
            pass


def test_packets_faster_than_speech_end_the_call(line, clock, monkeypatch):
    from space import live

    pace = live.Pace
    monkeypatch.setattr(live, "Pace", lambda rate: pace(rate, clock))  # no time passes
    with line() as socket:
        socket.receive_json()
        for _ in range(51):  # 20 ms each: a second, and one more
            socket.send_bytes(bytes(8 + 640))
        for _ in range(50):
            assert socket.receive_bytes()
        assert "faster" in socket.receive_json()["error"]


def test_the_pace_of_a_sound_card_that_is_a_little_fast_is_kept(clock):
    from space.live import Pace

    pace = Pace(16000, clock)
    for _ in range(6000):  # two minutes
        clock.now += 0.02 / 1.005
        assert pace.allows(320)


# ---- the shelf


def test_the_shelf_forgets_what_is_old_or_too_much_but_not_what_stays(shelf):
    shelf.size = 1000
    urls = []
    for number in range(4):
        path = shelf.new("a.wav")
        path.write_bytes(bytes(400))
        urls.append((shelf.put(path, keep=number == 0), path))
    tokens = [url.split("/")[1].split(".")[0] for url, _ in urls]
    assert [shelf.find(token) is not None for token in tokens] == [True, False, True, True]
    assert not urls[1][1].exists()
    again = shelf.put(urls[0][1], again=True)
    assert again != urls[0][0]
    shelf.seconds = -1
    assert [shelf.find(token) is not None for token in tokens] == [True, False, False, False]
    assert urls[0][1].exists()


def test_an_idle_shelf_removes_uploads_and_results_by_itself(shelf):
    import os
    import time

    upload = shelf.uploads / "hash" / "mine.wav"
    recent = shelf.uploads / "hash" / "recent.wav"
    upload.parent.mkdir()
    for path in (upload, recent):
        path.write_bytes(bytes(400))
    os.utime(upload, (time.time() - 3700,) * 2)
    result = shelf.new("a.wav")
    result.write_bytes(bytes(400))
    shelf.put(result)
    shelf.tidy_regularly(every=0.01)
    deadline = time.monotonic() + 20
    while upload.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (upload.exists(), recent.exists(), result.exists()) == (False, True, True)
    shelf.seconds = -1
    while result.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not result.exists()


def test_a_folder_that_goes_while_the_shelf_is_tidied_does_not_end_the_tidying(shelf):
    shelf.close()
    shelf.tidy()


def test_only_what_was_uploaded_is_taken_for_a_recording(shelf, tmp_path):
    mine = shelf.uploads / "hash" / "voice.webm"
    mine.parent.mkdir()
    mine.write_bytes(bytes(4))
    (tmp_path / "secret").write_bytes(b"secret")
    (shelf.uploads / "link").symlink_to(tmp_path / "secret")
    assert shelf.uploaded(str(mine)) == mine.resolve()
    for path in ("/etc/passwd", f"{shelf.uploads}/../../x", f"{shelf.uploads}/link", "", "None"):
        with pytest.raises(InputError, match="record it again"):
            shelf.uploaded(path)


def test_on_sigterm_nothing_of_visitors_stays(tmp_path):
    import subprocess
    import sys

    from space.settings import FOLDER

    script = (
        "import time; from space.shelf import Shelf; shelf = Shelf();"
        "(shelf.uploads / 'mine.wav').write_bytes(bytes(9)); shelf.close_on_sigterm();"
        "print(shelf.folder, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True) as process:
        folder = Path(process.stdout.readline().strip())
        assert (folder / "uploads" / "mine.wav").exists()
        process.terminate()
        assert process.wait(30) == 128 + 15
    assert not folder.exists()


# ---- ratings and listening tests


def test_ratings_are_only_ever_added(tmp_path):
    from space.ratings import RatingStore

    store = RatingStore(tmp_path, "test")
    store.add([Rating("acr", "one", "item", "opus@6", 3.0)])
    store.add([Rating("acr", "two", "item", "opus@6", 4.0)])
    assert load_ratings(store.path) == store.all()
    with sqlite3.connect(store.path) as database:
        for statement in ("UPDATE ratings SET score = 5", "DELETE FROM ratings"):
            with pytest.raises(sqlite3.IntegrityError, match="only added"):
                database.execute(statement)
    assert len(RatingStore(tmp_path, "test").all()) == 2
    assert RatingStore(tmp_path, "another").all() == []


def test_on_the_hub_ratings_also_go_where_a_scheduler_commits_them(tmp_path, monkeypatch):
    """A real CommitScheduler; only the Hub behind it is not there."""
    import huggingface_hub
    from space import ratings

    commits = []

    class Api(huggingface_hub.HfApi):
        def create_repo(self, repo_id, **_):
            return types.SimpleNamespace(repo_id=repo_id)

        def create_commit(self, operations, **_):
            commits.extend(operations)

    monkeypatch.setattr(ratings, "_download", list)
    scheduler = huggingface_hub.CommitScheduler(
        repo_id="me/ratings",
        repo_type="dataset",
        folder_path=tmp_path / "out",
        path_in_repo="data",
        every=60,
        hf_api=Api(),
    )
    try:
        store = ratings.RatingStore(tmp_path, "test", scheduler)
        store.add([Rating("mushra", "one", "item", "opus@6", 50.0)])
        scheduler.push_to_hub()
    finally:
        scheduler.stop()
    (path,) = [operation.path_in_repo for operation in commits]
    assert path.startswith("data/test-")
    assert load_ratings(tmp_path / "out") == store.all()


def test_blind_votes_are_kept_and_counted_whichever_was_x(tmp_path):
    from space.compare_tab import vote
    from space.ratings import VoteStore

    ours = {"codec": "tiny", "kbps": 6.0}
    opus = {"codec": "<b>opus", "kbps": 6.04}
    for choice, measured in (("X", [ours, opus]), ("Y", [opus, ours]), ("neither", [ours, opus])):
        said = vote(VoteStore(tmp_path), choice, measured)
    assert "heard no difference" in said
    assert "2 for tiny at 6.0 kbit/s, 0 for &lt;b&gt;opus at 6.0 kbit/s, 1 for neither" in said
    assert len((tmp_path / "votes.jsonl").read_text().splitlines()) == 3
    vote(VoteStore(tmp_path), "X", [{**ours, "kbps": 3.0}, opus])  # another comparison
    assert VoteStore(tmp_path).tally(("tiny at 6.0 kbit/s", "<b>opus at 6.0 kbit/s")).total() == 3


def test_there_is_no_scheduler_without_a_space_a_dataset_and_a_token(tmp_path, monkeypatch):
    from space import ratings

    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.setattr(ratings, "RATINGS_DATASET", "me/ratings")
    assert ratings.hub_scheduler(tmp_path) is None


@pytest.fixture
def test_of(shelf, tmp_path, clock):
    from space.listening import Definition, ListeningTest
    from space.settings import LISTENING_TEST

    return ListeningTest(Definition.read(LISTENING_TEST), shelf, tmp_path, clock)


def fetch(shelf, url):
    """The bytes of a URL, as a browser gets them."""
    from starlette.applications import Starlette
    from starlette.routing import Route
    from starlette.testclient import TestClient

    return TestClient(Starlette(routes=[Route("/shelf/{name}", shelf.serve)])).get(f"/{url}")


def listen(test, clock, page):
    """Fetch the stimuli of a trial and let the time of listening pass; return the files."""
    clock.now += 10
    return [fetch(test.shelf, stimulus["url"]) for stimulus in page["stimuli"]]


def path_of(test, url):
    return test.shelf.find(url.split("/")[1].split(".")[0])


def names_in(page, *names):
    """Those of the names that a page tells. Its random tokens may spell any short name."""
    told = re.sub(r"[\w-]{32,}", "", str(page))
    return [name for name in names if name in told]


def test_a_listener_rates_everything_once_in_a_random_order_without_knowing_what(test_of, clock):
    orders = set()
    known = {s.path: s.condition for items in test_of.prepare().values() for s in items}
    for _ in range(4):
        page, conditions = test_of.start("mushra"), []
        while page["stage"] == "trial":
            assert [s["id"] for s in page["stimuli"]] == list("ABCDE")
            listen(test_of, clock, page)
            urls = [s["url"] for s in page["stimuli"]]
            assert len({*urls, page["reference"]}) == 6  # the hidden reference has a URL of its own
            assert not names_in(page, "opus", "identity", "lowpass", "one", "two")
            conditions.append([known[path_of(test_of, url)] for url in urls])
            scores = {
                s["id"]: 100 if c == "identity" else 50
                for s, c in zip(page["stimuli"], conditions[-1], strict=True)
            }
            page = test_of.submit(page["session"], page["index"], scores)
        assert page["stage"] == "done"
        assert dict(page["given"])["reference"] == 100
        assert len(conditions) == 2
        orders |= {tuple(order) for order in conditions}
    assert len(orders) > 2
    result = test_of.results()["mushra"]
    assert len(result["listeners"]) == 4
    assert result["conditions"]["identity"]["mean"] == 100
    assert result["conditions"]["opus@6"]["ratings"] == 8


def test_acr_asks_for_one_stimulus_at_a_time(test_of, clock):
    known = {s.path: s.condition for items in test_of.prepare().values() for s in items}
    page, count = test_of.start("acr"), 0
    assert page["reference"] is None
    while page["stage"] == "trial":
        listen(test_of, clock, page)
        condition = known[path_of(test_of, page["stimuli"][0]["url"])]
        score = 1 if condition == "lowpass-3500" else 4
        page = test_of.submit(page["session"], page["index"], {"A": score})
        count += 1
    assert count == 10
    assert test_of.results()["acr"]["conditions"]["opus@24"]["mean"] == 4


@pytest.mark.parametrize(
    "scores",
    [
        None,
        {},
        {"A": 50},
        *(dict.fromkeys("ABCDE", score) for score in ("50", 101, True, float("nan"))),
    ],
)
def test_impossible_scores_are_refused_and_nothing_is_saved(test_of, clock, scores):
    page = test_of.start("mushra", "../../etc")
    assert len(page["rater"]) == 16
    listen(test_of, clock, page)
    with pytest.raises(InputError, match="Expected a score"):
        test_of.submit(page["session"], 0, scores)
    assert test_of.store.all() == []
    with pytest.raises(InputError, match="begin again"):
        test_of.submit("nonsense", 0, {})
    with pytest.raises(InputError, match="no method"):
        test_of.start("vote")


@pytest.mark.parametrize("score", [3.33, 0, 6, True, "3", float("nan")])
def test_acr_has_five_categories(test_of, clock, score):
    page = test_of.start("acr")
    listen(test_of, clock, page)
    with pytest.raises(InputError, match="1, 2, 3, 4 or 5"):
        test_of.submit(page["session"], 0, {"A": score})


def test_who_knows_a_raters_public_name_cannot_rate_in_it(test_of, clock):
    mine = test_of.start("acr")
    thief = test_of.start("acr", mine["rater"])
    assert thief["rater"] != mine["rater"]
    listen(test_of, clock, mine)
    published = str([test_of.submit(mine["session"], 0, {"A": 3}), test_of.results()])
    assert mine["rater"] in published
    assert mine["key"] not in published
    assert mine["key"] not in test_of.store.path.read_bytes().decode("latin-1")


def test_a_listener_goes_on_where_the_page_was_closed(test_of, clock):
    first = test_of.start("acr")
    listen(test_of, clock, first)
    test_of.submit(first["session"], 0, {"A": 3})
    again = test_of.start("acr", first["key"])
    assert (again["session"], again["rater"]) == (first["session"], first["rater"])
    assert again["index"] == 1
    assert test_of.start("mushra", first["key"])["session"] != first["session"]


def test_the_same_request_twice_rates_one_trial(test_of, clock):
    page = test_of.start("acr")
    listen(test_of, clock, page)
    answers = [test_of.submit(page["session"], 0, {"A": score}) for score in (3, 5)]
    assert [answer["index"] for answer in answers] == [1, 1]
    assert [rating.score for rating in test_of.store.all()] == [3]
    for index in (2, -1, True, "1", None):
        with pytest.raises(InputError, match="trial"):
            test_of.submit(page["session"], index, {"A": 3})
    while page["stage"] == "trial":
        listen(test_of, clock, page)
        page = test_of.submit(answers[0]["session"], page["index"], {"A": 3})
    assert test_of.submit(answers[0]["session"], 9, {"A": 5}) == page  # the end, asked for again
    assert len(test_of.store.all()) == 10


def test_what_was_not_heard_is_not_rated(test_of, clock):
    page = test_of.start("acr")
    clock.now += 10
    with pytest.raises(InputError, match="Listen to A before"):
        test_of.submit(page["session"], 0, {"A": 3})
    listen(test_of, clock, page)
    page = test_of.submit(page["session"], 0, {"A": 3})
    fetch(test_of.shelf, page["stimuli"][0]["url"])
    clock.now += 0.6  # of 0.75 s
    with pytest.raises(InputError, match=r"at least 0\.8 s"):
        test_of.submit(page["session"], 1, {"A": 3})
    page = test_of.start("mushra")
    assert (page["least_seconds"], page["full_seconds"]) == (0.75, 0.75)
    now = clock.now
    listen(test_of, clock, page)
    clock.now = now + 4 * 0.75  # one is heard to its end, four for their least time: 5 × 0.75 s
    with pytest.raises(InputError, match="Listen first"):
        test_of.submit(page["session"], 0, dict.fromkeys("ABCDE", 50))
    assert len(test_of.store.all()) == 1


def test_no_two_files_of_a_test_are_equal_though_all_sound_as_before(test_of, clock):
    page = test_of.start("mushra")
    answers = [fetch(test_of.shelf, page["reference"]), *listen(test_of, clock, page)]
    assert len({answer.content for answer in answers}) == 6
    assert len({len(answer.content) for answer in answers}) == 1
    assert not any("etag" in answer.headers for answer in answers)
    url = page["stimuli"][0]["url"]
    assert fetch(test_of.shelf, url).content == answers[1].content  # the same for who asks again
    plain, _ = soundfile.read(path_of(test_of, url), dtype="int16")
    heard, rate = soundfile.read(io.BytesIO(answers[1].content), dtype="int16")
    assert rate == 16000
    assert np.abs(plain.astype(int) - heard).max() == 1


@pytest.mark.parametrize("method", ["mushra", "acr"])
def test_training_has_the_whole_range_without_names_and_keeps_nothing(test_of, method):
    page = test_of.training(method)
    assert (page["stage"], page["method"]) == ("training", method)
    known = {s.path: s.condition for items in test_of.prepare().values() for s in items}
    heard = {known[path_of(test_of, sound["url"])] for sound in page["stimuli"]}
    assert len(heard) == len(page["stimuli"]) == 5
    assert known[path_of(test_of, page["reference"])] == "identity"
    assert not names_in(page, "opus", "identity", "lowpass")
    assert test_of.store.all() == []
    with pytest.raises(InputError, match="no method"):
        test_of.training("vote")


def test_who_was_left_out_by_the_screening_is_said_with_the_reason(test_of):
    for rater, score in (("good", 100.0), ("careless", 40.0)):
        ratings = [Rating("mushra", rater, item, "identity", score) for item in ("one", "two")]
        test_of.store.add(ratings)
    result = test_of.results()["mushra"]
    assert result["listeners"] == ["good"]
    assert "below 90 for 2 of 2 items" in result["excluded"]["careless"]


@pytest.mark.parametrize(("method", "best", "worst"), [("acr", 5, 1), ("mushra", 100, 20)])
def test_bots_that_press_one_button_change_no_mean(test_of, method, best, worst):
    from space.leaderboard_tab import cells, with_listeners

    conditions = ("identity", "lowpass-3500", "lowpass-7000", "opus@6")
    middle = (best + worst) // 2

    def rate(rater, scores):
        for item in ("one", "two"):
            ratings = [
                Rating(method, rater, item, name, float(score))
                for name, score in zip(conditions, scores, strict=True)
            ]
            test_of.store.add(ratings)

    for bot in range(5):
        rate(f"bot{bot}", [best] * 4)
    result = test_of.results()[method]
    assert result["conditions"] == {}  # nobody has listened yet
    assert [cells(part)["rows"] for part in with_listeners({"boards": []}, test_of)["boards"]] == [
        []
    ]
    rate("person", [best, worst, middle, middle])
    result = test_of.results()[method]
    assert result["listeners"] == ["person"]
    assert set(result["excluded"]) == {f"bot{bot}" for bot in range(5)}
    assert "no better than its 3.5 kHz low-pass in 2 items" in result["excluded"]["bot0"]
    assert result["conditions"]["opus@6"]["mean"] == middle


def test_a_flood_of_new_sessions_does_not_end_the_session_of_who_rated(test_of, clock, monkeypatch):
    from space import listening

    monkeypatch.setattr(listening, "_MAX_SESSIONS", 3)
    mine = test_of.start("acr")
    listen(test_of, clock, mine)
    test_of.submit(mine["session"], 0, {"A": 3})
    for _ in range(9):
        clock.now += 1
        test_of.start("acr")
    assert test_of.start("acr", mine["key"])["index"] == 1


# ---- leaderboard


def test_what_listeners_said_here_has_a_board_of_its_own(test_of, world):
    from space.leaderboard_tab import board_name, cells, curve, read_board, with_listeners

    board = read_board(world[0] / "board.json")
    assert with_listeners(board, test_of) == board
    for rater in ("a", "b", "c"):
        ratings = [Rating("acr", rater, "one", name, 3.5) for name in ("opus@6", "identity")]
        test_of.store.add(ratings)
    other, own = with_listeners(board, test_of)["boards"]
    assert other == board["boards"][0]
    assert board_name(own) == "listening test here: MOS"
    table = cells(own)
    column = [column["title"] for column in table["columns"]].index("MOS")
    said = {row["cells"][0]["value"]: row["cells"][column]["value"] for row in table["rows"]}
    assert said == {"opus@6": 3.5, "identity": 3.5}
    assert [point["kbps"] for point in curve(own, "acr")["points"]] == [6.0]  # no anchors
    part = other
    drawn = curve(part, "pesq_wb")
    assert (drawn["title"], drawn["better"]) == ("PESQ wide band", "higher")
    low, high = pytest.approx(4.1), pytest.approx(4.3)
    assert drawn["points"][0] == {
        "codec": "opus",
        "ours": False,  # for context
        "kbps": 24.0,
        "mean": 4.2,
        "low": low,
        "high": high,
    }


def test_the_table_groups_codecs_of_about_one_rate_and_shows_failures_where_there_are_some(world):
    from space.leaderboard_tab import cells, read_board

    part = read_board(world[0] / "board.json")["boards"][0]
    table = cells(part, [1.75, 3.5])
    titles = [column["title"] for column in table["columns"]]
    # A phone shows three columns: the codec, and the two that matter most.
    assert titles[:4] == ["codec", "PESQ wide band", "kbit/s", "rank"]
    assert [cell["value"] for cell in table["rows"][0]["cells"][:4]] == ["opus@24", 4.2, 24.0, 1]
    assert {row["group"] for row in table["rows"]} == {"From 3.5 kbit/s per channel"}
    part["entries"][0] |= {"band": 0, "failures": 1}
    part["entries"][1] |= {"band": 1}
    part["entries"][2] |= {"band": None, "anchor": True}
    table = cells(part, [1.75, 3.5])
    assert [column["title"] for column in table["columns"][2:5]] == ["kbit/s", "rank", "failures"]
    assert [row["group"] for row in table["rows"][:3]] == [
        "Below 1.75 kbit/s per channel",
        "1.75 to 3.5 kbit/s per channel",
        "Anchors, not ranked",
    ]
    assert {row["group"] for row in cells(part)["rows"]} == {"", "Anchors, not ranked"}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": 2, "boards": []}', '{"schema": 1, "boards": [{}]}', "[" * 99999],
)
def test_another_file_is_no_leaderboard(tmp_path, text):
    from space.leaderboard_tab import read_board

    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FileFormatError, match="leaderboard"):
        read_board(tmp_path / "a.json")


# ---- scripts and agents


@pytest.fixture
def page(test_of):
    from app import build

    return build(test_of.shelf, test_of)


def test_every_action_has_a_name_and_so_has_everything_it_returns(page):
    endpoints = page.get_api_info()["named_endpoints"]
    assert set(endpoints) == {
        "/encode",
        "/decode",
        "/size",
        "/checkpoints",
        "/stream",
        "/compare",
        "/listening_start",
        "/listening_submit",
        "/listening_results",
        "/ratings",
        "/leaderboard",
    }
    for name, endpoint in endpoints.items():
        for value in endpoint["returns"]:
            assert not value["label"].startswith("value_"), name


def test_an_agent_need_not_name_both_a_bundled_clip_and_a_file(page):
    endpoints = page.get_api_info()["named_endpoints"]
    for name in ("/encode", "/size", "/stream", "/compare"):
        parameters = {p["parameter_name"]: p for p in endpoints[name]["parameters"]}
        assert list(parameters)[:2] == ["clip", "own"]
        for parameter in parameters.values():
            assert parameter["parameter_has_default"], (name, parameter["parameter_name"])


def test_nothing_is_fetched_when_the_page_is_loaded(page):
    events = [event for fn in page.fns.values() for _, event in fn.targets]
    assert "select" in events
    assert "load" not in events


def test_a_rate_is_checked_against_the_checkpoint_it_is_for(page, names):
    from space.coding import check_rate

    (encode,) = [fn for fn in page.fns.values() if fn.api_name == "encode"]
    assert encode.inputs[3].preprocess(0.5) == 0.5
    assert check_rate(names[1], 0.5) == pytest.approx(0.5)
    with pytest.raises(
        InputError, match=r"Expected 0\.86 to [0-9.]+ kbit/s .* tiny-44khz, got 0\.5"
    ):
        check_rate(names[0], 0.5)


def test_the_real_leaderboard_is_small_enough_to_be_read_by_an_agent():
    import json

    from space.leaderboard_tab import read_board, summary
    from space.settings import FOLDER

    board = read_board(FOLDER / "leaderboard.json")
    said = summary(board)
    assert len(json.dumps(said)) < 10_000
    assert said["rows"][0]["mean"] is not None
    other = summary(board, said["boards"][-1], "stoi")
    assert other["metric"] == "stoi"
    for name, metric, message in (("x", "", "no board"), ("", "x", "no metric")):
        with pytest.raises(InputError, match=message):
            summary(board, name, metric)


def test_urls_for_scripts_are_absolute(monkeypatch):
    from space.settings import root_address

    assert root_address({}) == "/"
    headers = {"host": "demo.test", "x-forwarded-proto": "https"}
    assert root_address(headers) == "https://demo.test/"
    monkeypatch.setenv("SPACE_HOST", "me-demo.hf.space")
    assert root_address(headers) == "https://me-demo.hf.space/"


# ---- the folder


def test_the_space_uses_public_names_only():
    import ast

    from space.settings import FOLDER

    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("codecplus"):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                assert not any(name.startswith("_") for name in names), f"{path.name}:{node.lineno}"


def test_the_front_matter_is_what_a_space_needs():
    import yaml
    from space.settings import FOLDER

    head = yaml.safe_load((FOLDER / "README.md").read_text().split("---")[1])
    assert head["sdk"] == "gradio"
    assert (FOLDER / head["app_file"]).is_file()
    assert len(head["short_description"]) <= 60
