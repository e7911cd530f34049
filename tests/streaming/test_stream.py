"""Streams give what one pass over everything gives: however they are cut, in any company, and as
soon as they say.
"""

import copy
import doctest
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import accumulate, cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processors import needs_bf16
from tiny import KINDS, tiny_model

from codecplus.errors import InputError
from codecplus.streaming import DecoderStream, EncoderStream, StreamingDecoder, StreamingEncoder
from codecplus.streaming.layers import ResidualUnit

MODELS = {(g, c): tiny_model(c, **fields) for (g, c), fields in KINDS.items()}
ENCODERS = {key: StreamingEncoder(model) for key, model in MODELS.items()}
DECODERS = {key: StreamingDecoder(model) for key, model in MODELS.items()}
KEYS = sorted(MODELS)
PIECES = st.lists(st.sampled_from([1, 2, 7, 97, 331, 1021, 4999, 10**6]), min_size=1, max_size=4)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32) * 0.3


@cache
def exact(model):
    """The same weights in fp64: in fp32 one pass is, on some processors, further from the truth
    than a stream is.
    """
    return copy.deepcopy(model).double()


def offline(model, audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes (B, K, T) and audio (B, S) of one pass over audio (B, S)."""
    with torch.no_grad():
        codes = model.encode(torch.from_numpy(audio)[:, None]).audio_codes
        return codes.numpy(), exact(model).decode(audio_codes=codes).audio_values.numpy()


def cut(x: np.ndarray, sizes: list[int]):
    """x (..., n) in pieces of these sizes, again and again."""
    start = 0
    for stop in accumulate(cycle(sizes)):
        yield x[..., start:stop]
        if (start := stop) >= x.shape[-1]:
            return


def through(stream, x: np.ndarray, sizes: list[int]) -> np.ndarray:
    return np.concatenate(
        [*(stream.push(piece) for piece in cut(x, sizes)), stream.flush()], axis=-1
    )


def assert_close(audio: np.ndarray, expected: np.ndarray):
    assert audio.dtype == np.float32
    # Rounding in fp32: the farthest of the samples of all examples, on all processors. A step that
    # a seam loses or repeats is a hundred times as far.
    np.testing.assert_allclose(audio, expected, atol=2e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    key=st.sampled_from(KEYS),
    frames=st.floats(0.001, 40),
    batch=st.sampled_from([None, 1, 3]),
    sizes=PIECES,
    frame_sizes=PIECES,
)
def test_any_chunking_gives_the_codes_and_audio_of_one_pass(key, frames, batch, sizes, frame_sizes):
    model = MODELS[key]
    audio = noise(batch or 1, max(1, int(frames * model.config.hop_length)))
    sizes = (
        sizes if max(sizes) > 50 else [*sizes, 50]
    )  # one sample at a time is slow, and has a test of its own
    codes, decoded = offline(model, audio)
    mono = 0 if batch is None else slice(None)
    streamed = through(EncoderStream(ENCODERS[key], batch=batch), audio[mono], sizes)
    assert streamed.dtype == np.int16
    assert np.array_equal(streamed, codes[mono])
    assert_close(
        through(DecoderStream(DECODERS[key], batch=batch), codes[mono], frame_sizes), decoded[mono]
    )


@pytest.mark.parametrize("key", [("odd", False), ("odd", True)])
def test_one_sample_at_a_time(key):
    audio = noise(40 * MODELS[key].config.hop_length + 3)
    assert np.array_equal(
        through(EncoderStream(ENCODERS[key]), audio, [1]), offline(MODELS[key], audio[None])[0][0]
    )


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_long_pushes_are_taken_in_steps(key, monkeypatch):
    model = MODELS[key]
    monkeypatch.setattr("codecplus.streaming.stateful._STEP_ELEMENTS", 1 << 15)
    encoder, decoder = StreamingEncoder(model), StreamingDecoder(model)
    assert 1 <= decoder.step_length < 300
    audio = noise(12 * decoder.step_length * model.config.hop_length // 5)
    codes, decoded = offline(model, audio[None])
    assert np.array_equal(through(EncoderStream(encoder), audio, [10**9]), codes[0])
    assert_close(through(DecoderStream(decoder), codes[0], [10**9]), decoded[0])


def test_streams_take_fewer_codebooks_and_a_changing_rate():
    model, key = MODELS["16khz", True], ("16khz", True)
    audio = noise(20 * 320)
    codes, _ = offline(model, audio[None])
    assert np.array_equal(through(EncoderStream(ENCODERS[key], 2), audio, [700]), codes[0, :2])
    decoder, before = DecoderStream(DECODERS[key]), DecoderStream(DECODERS[key])
    audio = np.concatenate([decoder.push(codes[0, :, :10]), decoder.push(codes[0, :1, 10:])])
    assert np.array_equal(audio[:3200], before.push(codes[0, :, :10]))
    assert audio.shape == (6400,)


def test_a_model_in_bf16_streams():
    model = copy.deepcopy(MODELS["16khz", True]).to(torch.bfloat16)
    encoder, decoder = EncoderStream(model), DecoderStream(model)
    audio = decoder.push(encoder.push(noise(3200)))
    assert audio.shape == (3200,)
    assert audio.dtype == np.float32
    assert np.isfinite(audio).all()
    # Its samples are not rounded to bf16.
    rounded = torch.from_numpy(audio).bfloat16().float().numpy()
    assert (audio != rounded).mean() > 0.8


@needs_bf16
def test_kernels_stream_as_the_plain_layers():
    fields = {"encoder_hidden_size": 16, "decoder_hidden_size": 128, "downsampling_ratios": [4, 5]}
    model = tiny_model(True, **fields).to(torch.bfloat16)
    model.allow_kernels(False)
    plain = EncoderStream(model), DecoderStream(model)
    model.allow_kernels()
    fused = StreamingEncoder(model), StreamingDecoder(model)
    assert all(
        part.fused for half in fused for part in half.layers if isinstance(part, ResidualUnit)
    )
    audio = noise(2, 20 * 300)
    expected = plain[0].push(audio[0])
    codes = through(EncoderStream(fused[0], batch=2), audio, [7, 331, 20, 1021])
    assert (codes[0] == expected).mean() > 0.95
    pieces = through(DecoderStream(fused[1]), expected, [1, 1, 1, 50])
    assert np.abs(pieces - plain[1].push(expected)).max() < 0.05
    once = DecoderStream(fused[1]).push(expected)
    assert np.abs(pieces - once).max() < 0.02
    rows = EncoderStream(
        fused[0], batch=2
    )  # rows that begin anew take the plain way through the fused units' state
    rows.push(audio[:, :100])
    rows.reset(rows=1)
    again = rows.push(audio[:, :200])[1]
    assert (again == codes[1][:, :10]).mean() > 0.95


# ---- latency


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_frames_come_with_the_last_sample_that_they_depend_on(key):
    model = MODELS[key]
    hop, last = model.config.hop_length, model.encoder_reach[1]
    stream, received, frames = EncoderStream(ENCODERS[key]), 0, 0
    for piece in cut(noise(30 * hop), [hop - 1, 1]):
        received += len(piece)
        frames += stream.push(piece).shape[-1]
        assert frames == max(0, (received - 1 - last) // hop + 1)
    stream, ahead = DecoderStream(DECODERS[key]), model.decoder_reach[1]
    for frame in range(30):
        assert stream.push(np.zeros((4, 1), int)).shape == (hop * (frame >= ahead),)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_an_impulse_comes_out_after_the_latency(key):
    model = MODELS[key]
    hop, latency = model.config.hop_length, model.latency_samples
    frame = 20  # of which we watch the audio
    impulse = frame * hop + latency - 1  # the last sample that this frame can know of
    audio = noise(impulse + 2 * hop)
    struck = audio.copy()
    struck[impulse] += 1e21  # the way through the last tap of every layer weakens it to 1e-18
    outputs = []
    for signal in (audio, struck):
        encoder, decoder = EncoderStream(ENCODERS[key]), DecoderStream(DECODERS[key])
        before = decoder.push(encoder.push(signal[:impulse]))
        assert len(before) == frame * hop  # with all samples but that one in, the frame is not out
        outputs.append(
            np.concatenate([before, decoder.push(encoder.push(signal[impulse : impulse + 1]))])
        )
        assert len(outputs[-1]) == (frame + 1) * hop  # with it, the frame is
    changed = np.flatnonzero(outputs[0] != outputs[1])
    if key == ("gains", False):  # the edges of two windows weaken it to less than rounding
        assert not (changed < frame * hop).any()
        return
    assert frame * hop <= changed[0] < (frame + 1) * hop  # and could not have been any earlier


# ---- state


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_state_is_a_value(key):
    model, encoder, decoder = MODELS[key], ENCODERS[key], DECODERS[key]
    audio = noise(2, 50 * model.config.hop_length + 7)
    half = audio.shape[-1] // 2
    codes, decoded = offline(model, audio)
    first, state = encoder.step(encoder.start(2), torch.from_numpy(audio[:, :half]))
    for same in (state, copy.deepcopy(state), pickle.loads(pickle.dumps(state)), state):
        second, _ = encoder.step(same, torch.from_numpy(audio[:, half:]), last=True)
        assert np.array_equal(torch.cat([first, second], dim=-1).numpy(), codes)
    first, state = decoder.step(decoder.start(2), torch.from_numpy(codes[..., :20]))
    for same in (pickle.loads(pickle.dumps(state)), state):
        second, _ = decoder.step(same, torch.from_numpy(codes[..., 20:]), last=True)
        assert_close(torch.cat([first, second], dim=-1).numpy(), decoded)


def size(state) -> int:
    return len(pickle.dumps(state))


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_the_state_stays_as_small_as_it_is(key):
    hop = MODELS[key].config.hop_length
    encoder, decoder = EncoderStream(ENCODERS[key]), DecoderStream(DECODERS[key])
    sizes = []
    for _ in range(3):
        decoder.push(encoder.push(noise(40 * hop)))
        sizes.append((size(encoder.state), size(decoder.state)))
    for small, large in (sizes[::2], sizes[1:]):
        assert np.allclose(small, large, atol=100)  # counters may take some bytes more
    assert sum(sizes[-1]) < 600_000


def test_a_stream_goes_on_after_a_day():
    """A state moved on by a day's count of frames works as before: nothing counts in few bits, or
    in floats.
    """
    key = ("16khz", True)
    encoder, audio = ENCODERS[key], torch.from_numpy(noise(1, 3200))
    _, state = encoder.step(encoder.start(), audio)
    day = 50 * 60 * 60 * 24
    layers = tuple(
        layer._replace(position=layer.position + day * part.inputs_per_frame)
        for layer, part in zip(
            state.layers, (getattr(part, "conv1", part) for part in encoder.layers), strict=True
        )
    )
    later = type(state)(layers, state.received + day * 320, state.frames + day)
    assert torch.equal(encoder.step(later, audio)[0], encoder.step(state, audio)[0])
    again = encoder.reset_rows(later, [0])
    assert torch.equal(encoder.step(again, audio)[0], encoder.step(encoder.start(), audio)[0])


def test_a_stream_begins_anew_after_a_flush_and_a_reset():
    key = ("odd", False)
    model, encoder, decoder = (
        MODELS[key],
        EncoderStream(ENCODERS[key]),
        DecoderStream(DECODERS[key]),
    )
    assert encoder.flush().shape == (4, 0)
    assert decoder.flush().shape == (0,)
    audio = noise(501)
    codes, decoded = offline(model, audio[None])
    for _ in range(2):
        assert np.array_equal(through(encoder, audio, [200]), codes[0])
        assert_close(through(decoder, codes[0], [7]), decoded[0])
    encoder.push(audio)
    decoder.push(codes[0])
    encoder.reset()
    decoder.reset()
    assert np.array_equal(through(encoder, audio, [200]), codes[0])
    assert_close(through(decoder, codes[0], [7]), decoded[0])


# ---- company


def test_eight_streams_in_eight_threads_over_one_model():
    key = ("odd", False)
    clips = [noise(2000 + 31 * i, seed=i) for i in range(8)]

    def run(audio):
        codes = through(EncoderStream(ENCODERS[key]), audio, [173])
        return codes, through(DecoderStream(DECODERS[key]), codes, [3])

    with ThreadPoolExecutor(8) as pool:
        for audio, (codes, decoded) in zip(clips, pool.map(run, clips), strict=True):
            expected = offline(MODELS[key], audio[None])
            assert np.array_equal(codes, expected[0][0])
            assert_close(decoded, expected[1][0])


# A row's life: at each of these frames it ends, and another clip begins in it.
LIVES = st.lists(st.lists(st.integers(1, 25), min_size=1, max_size=3), min_size=2, max_size=3)


@settings(max_examples=15, deadline=None)
@given(key=st.sampled_from(KEYS), lives=LIVES)
def test_rows_come_and_go(key, lives):
    model = MODELS[key]
    hop, total = model.config.hop_length, max(sum(life) for life in lives)
    ends = [list(accumulate(life)) for life in lives]
    audio = noise(len(lives), total * hop)
    clips = [  # (row, first frame, last frame, codes, audio)
        (row, begin, end, *offline(model, audio[row : row + 1, begin * hop : end * hop]))
        for row, stops in enumerate(ends)
        for begin, end in zip([0, *stops], stops, strict=False)
    ]
    codes = np.zeros((len(lives), 4, total), np.int16)
    for row, begin, end, expected, _ in clips:
        codes[row, :, begin:end] = expected[0]

    def check(stream, x, unit, per_frame, agree):
        """Push x (B, ..., total * unit), ending rows in time; every clip must come out as if it
        were alone.
        """
        pieces, now = [], 0
        for stop in sorted({end for stops in ends for end in stops}):
            pieces.append(stream.push(x[..., now * unit : stop * unit]))
            now = stop
            for clip in (clip for clip in clips if clip[2] == stop):
                row, begin, end = clip[:3]
                got = np.concatenate(
                    [*(piece[row] for piece in pieces), stream.flush(rows=[row])[0]], axis=-1
                )
                assert (
                    got.shape[-1] == end * per_frame
                )  # the clock of the batch, also where the row owed something
                agree(got[..., begin * per_frame :], clip)

    check(
        EncoderStream(ENCODERS[key], batch=len(lives)),
        audio,
        hop,
        1,
        lambda got, clip: np.testing.assert_array_equal(got, clip[3][0]),
    )
    check(
        DecoderStream(DECODERS[key], batch=len(lives)),
        codes,
        1,
        hop,
        lambda got, clip: assert_close(got, clip[4][0]),
    )


def test_frames_left_of_a_row_that_was_reset_are_zero():
    key = ("odd", False)
    encoder, decoder = EncoderStream(ENCODERS[key], batch=2), DecoderStream(DECODERS[key], batch=2)
    codes = encoder.push(noise(2, 40 * 15))
    owed = 40 - codes.shape[-1]
    encoder.reset(rows=1)
    codes = encoder.push(noise(2, 40 * 15))
    assert not codes[1, :, :owed].any()
    assert codes[0, :, :owed].any()
    owed = codes.shape[-1] * 15 - decoder.push(codes).shape[-1]
    decoder.reset(rows=0)
    audio = decoder.push(codes)
    assert not audio[0, :owed].any()
    assert audio[1, :owed].any()


def test_the_page_is_true():
    page = Path(__file__).parents[2] / "docs" / "streaming.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 5
    assert not result.failed


# ---- refusals


def test_bad_pushes_are_refused_and_change_nothing():
    key = ("odd", True)
    encoder, decoder = EncoderStream(ENCODERS[key], batch=2), DecoderStream(DECODERS[key])
    state = encoder.state
    with pytest.raises(
        InputError, match=r"expected floats of shape \(2, samples\), got float32 of shape \(5,\)"
    ):
        encoder.push(np.zeros(5, np.float32))
    with pytest.raises(InputError, match=r"got int16 of shape \(2, 5\)"):
        encoder.push(np.zeros((2, 5), np.int16))
    with pytest.raises(InputError, match="NaN"):
        encoder.push(np.full((2, 5), np.nan, np.float32))
    assert encoder.state is state
    with pytest.raises(
        InputError, match=r"expected integers of shape \(codebooks, frames\), got float64"
    ):
        decoder.push(np.zeros((4, 1)))
    with pytest.raises(InputError, match="expected codes from 0 to 63, got 0 to 64"):
        decoder.push(np.array([[0, 64]]))
    with pytest.raises(InputError, match="expected codes from 0 to 63, got -1 to 0"):
        decoder.push(np.array([[-1, 0]]))
    with pytest.raises(InputError, match="expected codes of 1 to 4 codebooks, got 5"):
        decoder.push(np.zeros((5, 1), int))


def test_impossible_streams_are_refused():
    key = ("odd", True)
    with pytest.raises(InputError, match="1 to 4 codebooks, got n_quantizers=5"):
        EncoderStream(ENCODERS[key], 5)
    with pytest.raises(InputError, match="at least 1 row"):
        DecoderStream(DECODERS[key], batch=0)
    stream = EncoderStream(ENCODERS[key], batch=2)
    with pytest.raises(InputError, match="rows from 0 to 1, got 2"):
        stream.reset(rows=2)
    stream.push(noise(2, 20))
    with pytest.raises(InputError, match="got 5 samples of the next"):
        stream.reset(rows=1)
    with pytest.raises(InputError, match="got 5 samples of the next"):
        stream.flush(rows=1)
