"""Metrics agree with the libraries called by hand, are perfect on copies, and refuse instead of
inventing.
"""

import doctest
import importlib
import importlib.util
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_signals import speech_like

from codecplus.errors import InputError, MissingExtraError
from codecplus.eval.metrics import (
    METRICS,
    Score,
    Signal,
    compute_score,
    metrics_by_name,
    score,
    spectral,
    waveform,
)
from codecplus.eval.metrics.worker import score_in, scoring_worker
from codecplus.system.workers import Worker

RATE = 16_000
LOCAL = [m.name for m in metrics_by_name()]


@pytest.fixture(scope="module")
def pair():
    reference = speech_like()
    noise = np.random.default_rng(1).standard_normal(reference.size)
    return reference, (reference + 0.01 * noise).astype(np.float32)


def test_the_doctests_pass():
    for module in (waveform, spectral):
        assert doctest.testmod(module).failed == 0


def test_identity_is_perfect(voice):
    scores = score(voice, voice, RATE)
    assert scores["pesq_wb"].value == pytest.approx(4.644, abs=1e-3)
    assert scores["pesq_nb"].value == pytest.approx(4.549, abs=1e-3)
    assert scores["stoi"].value == pytest.approx(1)
    assert scores["estoi"].value == pytest.approx(1)
    assert scores["si_sdr"].value == scores["snr"].value == scores["si_sdr_aligned"].value == 100
    for name in ("mel_distance", "stft_distance", "log_spectral_distance", "lag"):
        assert scores[name].value == 0


def test_scores_lie_in_the_declared_range(pair):
    for name, result in score(*pair, RATE).items():
        if name.startswith("band_power_") and result.value is None:
            continue  # a band above half the rate
        assert METRICS[name].lowest <= result.value <= METRICS[name].highest + 1e-6


def test_pesq_and_stoi_equal_the_libraries_called_by_hand(pair):
    from pesq import pesq
    from pystoi import stoi

    scores = score(*pair, RATE, ["pesq_wb", "stoi", "estoi"])
    assert scores["pesq_wb"].value == pesq(RATE, *pair, "wb")
    assert scores["stoi"].value == stoi(*pair, RATE)
    assert scores["estoi"].value == pytest.approx(stoi(*pair, RATE, extended=True), abs=1e-9)


def test_ratios_equal_torchmetrics(pair):
    from torchmetrics.functional.audio import (
        scale_invariant_signal_distortion_ratio,
        signal_noise_ratio,
    )

    scores = score(*pair, RATE, ["si_sdr", "snr"])
    reference, estimate = (torch.from_numpy(x).double() for x in pair)
    expected = scale_invariant_signal_distortion_ratio(estimate, reference, zero_mean=True)
    assert scores["si_sdr"].value == pytest.approx(expected.item(), abs=1e-6)
    assert scores["snr"].value == pytest.approx(
        signal_noise_ratio(estimate, reference).item(), abs=1e-6
    )


def mel_triangles(rate, n, bands):
    """Slaney's filters as the literature states them, band by band: (bands, bins)."""

    def to_hz(mel):
        return 200 / 3 * mel if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    top = 15 + 27 * np.log(rate / 2 / 1000) / np.log(6.4)
    edges = [to_hz(top * i / (bands + 1)) for i in range(bands + 2)]
    bins = np.arange(n // 2 + 1) * rate / n
    rows = [
        np.interp(bins, edges[i : i + 3], [0, 2 / (edges[i + 2] - edges[i]), 0])
        for i in range(bands)
    ]
    return torch.from_numpy(np.array(rows)).float()


def test_paper_distances_equal_an_independent_computation(pair):
    """With torch's STFT and filters built band by band, at 44.1 kHz so that no resampling is in the
    way.
    """
    x, y = (torch.from_numpy(np.repeat(s, 3)) for s in pair)
    mel = stft = 0.0
    for n, bands in ((2048, 150), (512, 80)):
        window, bank = torch.hann_window(n), mel_triangles(44_100, n, bands)
        a, b = (torch.stft(s, n, n // 4, window=window, return_complex=True).abs() for s in (x, y))
        for distance, (p, q) in {"stft": (a, b), "mel": (bank @ a, bank @ b)}.items():
            power = [(m.clamp(1e-5) ** 2).log10() for m in (p, q)]
            value = (p - q).abs().mean() + (power[0] - power[1]).abs().mean()
            stft, mel = (stft + value, mel) if distance == "stft" else (stft, mel + value)
    scores = score(x.numpy(), y.numpy(), 44_100, ["mel_distance", "stft_distance"])
    assert scores["mel_distance"].value == pytest.approx(float(mel), rel=1e-4)
    assert scores["stft_distance"].value == pytest.approx(float(stft), rel=1e-4)


@pytest.mark.parametrize(("mode", "rate"), [("speech", 16_000), ("audio", 48_000)])
def test_visqol_equals_the_library_called_by_hand(mode, rate):
    visqol = pytest.importorskip("visqol")
    if mode == "speech":
        pytest.importorskip("ai_edge_litert")
    name, reference = f"visqol_{mode}", speech_like(1.2, rate)
    estimate = (reference + 0.01 * np.random.default_rng(1).standard_normal(reference.size)).astype(
        np.float32
    )
    api = visqol.VisqolApi()
    api.create(mode=mode)
    by_hand = [
        api.measure_from_arrays(reference.astype(float), x.astype(float), rate).moslqo
        for x in (estimate, reference)
    ]
    assert score(reference, estimate, rate, [name])[name].value == pytest.approx(by_hand[0])
    assert score(reference, reference, rate, [name])[name].value == pytest.approx(by_hand[1])
    assert by_hand[0] < by_hand[1] - 1


def test_a_metric_without_its_library_names_the_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ai_edge_litert" else find(name)
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'codecplus\[visqol\]'"):
        score(np.zeros(RATE), np.zeros(RATE), RATE, ["visqol_speech"])
    assert "visqol_speech" not in [metric.name for metric in metrics_by_name(["all"])]


@pytest.mark.parametrize("spoil", ["silence", "nan", "longer", "twice", "channels"])
def test_broken_output_is_a_failure_of_the_codec_and_no_number(voice, spoil):
    bad = {
        "silence": voice * 0,
        "nan": np.where(np.arange(voice.size) == 7, np.nan, voice),
        "longer": np.r_[voice, voice[:1]],
        "twice": np.r_[voice, voice],
        "channels": np.stack([voice, voice]),
    }[spoil]
    assert {(s.value, s.status) for s in score(voice, bad, RATE).values()} == {
        (None, "codec_failure")
    }


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        (np.zeros(RATE), "silent"),
        (np.full(RATE, np.nan), "NaN"),
        (np.ones(RATE), "silent"),
        (np.zeros(0), "lasts"),
    ],
)
def test_a_reference_that_cannot_be_scored_blames_no_codec(reference, reason):
    for result in score(
        reference, reference, RATE, ["stoi", "si_sdr", "pesq_wb", "mel_distance"]
    ).values():
        assert result.status == "reference_unscorable"
        assert reason in result.reason


def test_narrow_references_are_refused_by_wide_metrics_only(voice):
    scores = score(voice[::2], voice[::2], 8_000, ["pesq_wb", "pesq_nb"])
    assert scores["pesq_wb"].status == "reference_unscorable"
    assert scores["pesq_nb"].value == pytest.approx(4.549, abs=1e-3)


def test_channels_are_averaged_and_silent_ones_left_out(voice, rng):
    noisy = (voice + 0.01 * rng.standard_normal(voice.size)).astype(np.float32)
    stereo, mono = (
        np.stack([voice, voice]),
        score(voice, noisy, RATE, ["si_sdr_aligned"])["si_sdr_aligned"].value,
    )
    assert score(stereo, np.stack([voice, noisy]), RATE, ["si_sdr"])[
        "si_sdr"
    ].value == pytest.approx((100 + mono) / 2)
    with_empty = np.stack([voice, 0 * voice])
    assert score(with_empty, np.stack([noisy, 0 * voice]), RATE, ["si_sdr"])[
        "si_sdr"
    ].value == pytest.approx(mono)


def test_alignment_finds_the_lag_that_plain_si_sdr_punishes(voice):
    late = np.r_[np.zeros(5, np.float32), voice[:-5]]
    scores = score(voice, late, RATE, ["lag", "si_sdr", "si_sdr_aligned"])
    assert scores["lag"].value == pytest.approx(1000 * 5 / RATE)
    assert scores["si_sdr_aligned"].value > 60 > 20 > scores["si_sdr"].value


@pytest.mark.parametrize("cut", [1000, 3000])
def test_bandwidth_is_where_a_low_pass_cuts(rng, cut):
    noise = rng.standard_normal(RATE).astype(np.float32)
    spectrum = np.fft.rfft(noise)
    spectrum[np.fft.rfftfreq(RATE, 1 / RATE) > cut] = 0
    low = np.fft.irfft(spectrum).astype(np.float32)
    assert score(noise, low, RATE, ["bandwidth"])["bandwidth"].value == pytest.approx(cut, abs=100)
    assert score(noise, noise, RATE, ["bandwidth"])["bandwidth"].value == RATE / 2


def test_long_speech_is_scored_in_pieces():
    """PESQ alone overruns its buffers here; the mean of equal pieces under 30 s does not."""
    from pesq import pesq

    reference = speech_like(40, seed=3)
    estimate = (reference + 0.02 * np.random.default_rng(0).standard_normal(reference.size)).astype(
        np.float32
    )
    halves = [
        pesq(RATE, a, b, "wb")
        for a, b in zip(np.split(reference, 2), np.split(estimate, 2), strict=True)
    ]
    assert score(reference, estimate, RATE, ["pesq_wb"])["pesq_wb"].value == pytest.approx(
        np.mean(halves)
    )


def test_a_metric_that_raises_or_returns_nan_becomes_a_reason(voice):
    from dataclasses import replace

    nan = replace(METRICS["snr"], function=lambda *_: float("nan"))
    broken = replace(METRICS["snr"], function=lambda *_: 1 / 0)
    signal_ = Signal(voice, RATE)
    assert compute_score(nan, signal_, signal_) == Score.failed("metric_error", "snr returned nan")
    assert compute_score(broken, signal_, signal_).reason == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(("deaths", "lost"), [(1, []), (2, ["pesq_wb"])])
def test_a_score_is_given_up_when_its_worker_died_twice(voice, deaths, lost):
    class Mortal(Worker):
        starts = 0

        def _start(self):
            super()._start()
            self.starts += 1
            if 1 < self.starts <= deaths:
                self._process.kill()

    worker = Mortal("codecplus.eval.metrics.worker")

    def kill_after_snr(estimate, metric, score):
        if metric == "snr":
            worker._process.kill()

    try:
        scores = score_in(
            worker,
            voice[None],
            {"a": (voice[None], ["snr", "pesq_wb", "lag"])},
            RATE,
            kill_after_snr,
        )["a"]
    finally:
        worker.close()
    assert [name for name, result in scores.items() if result.status != "ok"] == lost
    assert all(
        scores[name].reason == "the metric's process died twice, with status -9" for name in lost
    )


def test_a_metric_that_hangs_is_a_timeout_and_on_the_reference_it_is_not_tried_again(
    voice, monkeypatch, tmp_path
):
    """A minute of audio takes ESTOI long enough that no time at all is never enough."""
    from dataclasses import replace

    monkeypatch.setitem(METRICS, "estoi", replace(METRICS["estoi"], timeout=0.0))
    minute = np.tile(voice, 30)[None]
    np.save(tmp_path / "reference.npy", minute)
    np.save(tmp_path / "other.npy", minute)
    reference, other = tmp_path / "reference.npy", tmp_path / "other.npy"
    names = ["estoi", "snr"]
    worker = scoring_worker()
    try:
        estimates = {"identity": (reference, names), "a": (other, names)}
        scores = score_in(worker, reference, estimates, RATE)
        alone = score_in(worker, reference, {"a": (other, ["estoi"])}, RATE)["a"]
    finally:
        worker.close()
    timeout = Score.failed("timeout", "no score within 0 s")
    assert scores["identity"]["estoi"] == alone["estoi"] == timeout
    assert list(scores["a"]) == ["snr"]
    assert scores["identity"]["snr"].status == scores["a"]["snr"].status == "ok"


def test_a_crowded_machine_is_no_timeout(voice, monkeypatch):
    """The worker stands still for longer than the limit, and has then used no processor time."""
    from dataclasses import replace

    monkeypatch.setitem(METRICS, "pesq_wb", replace(METRICS["pesq_wb"], timeout=0.5))
    worker = scoring_worker()

    def stop_for_a_while(estimate, metric, score):
        if metric == "si_sdr":
            process = worker._process
            process.send_signal(signal.SIGSTOP)
            threading.Timer(1.5, process.send_signal, [signal.SIGCONT]).start()

    try:
        scores = score_in(
            worker, voice[None], {"a": (voice[None], ["si_sdr", "pesq_wb"])}, RATE, stop_for_a_while
        )["a"]
    finally:
        worker.close()
    assert scores["pesq_wb"].status == "ok"


def test_unknown_metric_is_told_apart(voice):
    with pytest.raises(InputError, match=r"unknown metric 'pesq_wd'; did you mean 'pesq_wb'"):
        score(voice, voice, RATE, ["pesq_wd"])


def test_every_metric_declares_what_it_needs():
    for name, metric in METRICS.items():
        described = metric.describe()
        assert described["identity"].startswith(name + "/")
        assert described["source"]
        assert set(described["domains"]) <= {"speech", "music", "sound"}


def test_a_metric_is_one_function_registered_where_it_is_defined(voice, tmp_path, monkeypatch):
    """The example of docs/evaluating.md, executed."""
    page = (Path(__file__).parents[2] / "docs" / "evaluating.md").read_text()
    code = re.search(r"```python\n# peak_error.py\n(.*?)```", page, flags=re.DOTALL).group(1)
    (tmp_path / "peak_error.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("codecplus.eval.metrics.worker._shared", None)  # it knows its own path only
    importlib.import_module("peak_error")
    try:
        scores = score(voice, voice * np.float32(0.5), RATE, ["peak_error", "snr"])
    finally:
        del METRICS["peak_error"]
    assert scores["peak_error"].value == pytest.approx(np.abs(voice).max() / 2)
    assert scores["snr"].status == "ok"
