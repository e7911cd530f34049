"""Intervals cover what they promise, tests call no winners between equals, at the sizes people run.

Each simulation draws its samples at once, so that thousands of runs take a fraction of a second.
"""

import numpy as np
import pytest

from codecplus.eval.statistics import (
    MIN_UNITS,
    crossed_interval,
    estimate,
    holm,
    paired_difference,
    sign_flip_p,
    t_interval,
)

RUNS = 4000
SHAPES = {  # drawn values and their true mean; PESQ and MUSHRA scores are skewed like the beta
    "normal": (lambda rng, size: rng.normal(3.0, 0.5, size), 3.0),
    "beta": (lambda rng, size: rng.beta(5.0, 1.5, size), 5.0 / 6.5),
    "lognormal": (lambda rng, size: rng.lognormal(0.0, 0.5, size), np.exp(0.125)),
}


def named(values):
    return {f"{i:02d}.wav": float(value) for i, value in enumerate(values)}


@pytest.mark.parametrize("n", [3, 6, 10, 30])
@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_cover_the_true_mean_as_often_as_they_say(shape, n):
    draw, truth = SHAPES[shape]
    low, high = t_interval(draw(np.random.default_rng(n), (RUNS, n)))
    coverage = np.mean((low <= truth) & (truth <= high))
    if shape == "normal":
        assert 0.935 <= coverage <= 0.965
    else:
        assert 0.90 <= coverage <= 0.97


def test_an_estimate_has_the_interval_of_the_simulation_and_none_below_five():
    values = np.random.default_rng(0).normal(size=6)
    low, high = t_interval(values)
    found = estimate(named(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.files, found.speakers) == (6, None)
    few = estimate(named(values[: MIN_UNITS - 1]))
    assert (few.low, few.high, few.files) == (None, None, 4)
    assert estimate({}) is None


@pytest.mark.parametrize("n", [3, 6, 10, 30])
def test_equal_codecs_have_a_winner_in_one_case_of_twenty_at_most(n):
    rng = np.random.default_rng(n)
    runs = 8000 if n < 30 else 1000
    for differences in (rng.normal(size=(runs, n)), rng.laplace(size=(runs, n))):
        winners = np.mean(sign_flip_p(differences) <= 0.05)
        assert winners <= 0.06
        if n >= 10:
            assert winners >= 0.03  # it is no test that never speaks


@pytest.mark.parametrize("n", [6, 30])
def test_the_tests_of_one_call_have_one_false_winner_in_twenty_calls(n):
    p = sign_flip_p(np.random.default_rng(n).normal(size=(400, 5, n)))
    calls = np.mean([min(holm(list(tests))) <= 0.05 for tests in p])
    assert calls <= 0.07


def test_a_clear_difference_is_found():
    differences = np.random.default_rng(0).normal(1.0, 0.5, (500, 8))
    assert np.mean(sign_flip_p(differences) <= 0.05) > 0.95


@pytest.mark.parametrize("n", [2, 5, 9, 14])
def test_p_values_are_those_of_scipy(n):
    from scipy.stats import permutation_test

    differences = np.random.default_rng(n).normal(0.5, 1.0, n)
    expected = permutation_test(
        (differences,),
        lambda x, axis: x.mean(axis),
        permutation_type="samples",
        n_resamples=2**n,
        vectorized=True,
    )
    assert float(sign_flip_p(differences)) == pytest.approx(expected.pvalue)


def test_many_pairs_are_tried_at_random_and_always_alike():
    differences = np.random.default_rng(0).normal(0.3, 1.0, 40)
    p = float(sign_flip_p(differences))
    assert p == float(sign_flip_p(differences))
    from scipy.stats import ttest_1samp

    assert p == pytest.approx(float(ttest_1samp(differences, 0).pvalue), abs=0.02)
    assert float(sign_flip_p(np.ones(40))) == 1 / 10_000
    assert float(sign_flip_p(np.zeros(40))) == 1


@pytest.mark.parametrize(("pairs", "smallest"), [(1, 1.0), (2, 0.5), (5, 2 / 32), (6, 2 / 64)])
def test_few_recordings_show_no_more_than_tosses_of_a_coin(pairs, smallest):
    a = named(np.random.default_rng(0).normal(size=pairs))
    difference = paired_difference(a, {name: value + 1 for name, value in a.items()})
    assert difference.p == smallest


def test_pairing_shows_differences_that_intervals_hide():
    rng = np.random.default_rng(0)
    a = named(rng.normal(0, 10, 40))
    b = {name: value + 0.5 + 0.1 * rng.normal() for name, value in a.items()}
    assert estimate(a).high > estimate(b).low
    difference = paired_difference(a, b)
    assert difference.low > 0.4
    assert difference.p < 0.01
    assert paired_difference({"x": 1.0}, {"y": 1.0}) is None


def test_recordings_of_one_speaker_are_one_piece_of_evidence():
    """Ten speakers of three alike recordings: the interval is that of the ten."""
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(10), 3)
    hits = {"speakers": 0, "recordings": 0}
    runs = 300
    for _ in range(runs):
        values = named(rng.normal(size=10)[speakers] + 0.1 * rng.normal(size=30))
        speaker_of = dict(zip(values, map(str, speakers), strict=True))
        by_speaker = estimate(values, speaker_of)
        by_recording = estimate(values)
        hits["speakers"] += by_speaker.low <= 0 <= by_speaker.high
        hits["recordings"] += by_recording.low <= 0 <= by_recording.high
    assert by_speaker.speakers == 10
    assert by_speaker.mean == pytest.approx(by_recording.mean)
    assert 0.92 <= hits["speakers"] / runs <= 0.98
    assert hits["recordings"] / runs < 0.85


def test_speakers_count_only_where_they_are_known():
    values = named(np.arange(6.0))
    assert estimate(values, dict.fromkeys(values)).speakers is None
    one = estimate(values, dict.fromkeys(values, "Ada"))
    assert (one.speakers, one.low) == (None, pytest.approx(estimate(values).low))
    two = estimate(values, {name: "AB"[i % 2] for i, name in enumerate(values)})
    assert (two.speakers, two.low) == (2, None)  # two voices say nothing about others


def test_holm_is_the_published_procedure():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("listeners", "items"), [(5, 4), (8, 6), (20, 8)])
def test_listening_intervals_cover_other_panels_and_other_items(listeners, items):
    rng = np.random.default_rng(listeners)
    hits = 0
    runs = 400
    for _ in range(runs):
        severity = rng.normal(0, 8, (listeners, 1))
        difficulty = rng.normal(0, 8, (1, items))
        scores = 60 + severity + difficulty + rng.normal(0, 8, (listeners, items))
        low, high = crossed_interval(scores)
        hits += low <= 60 <= high
    assert 0.92 <= hits / runs <= 1.0


def test_a_small_panel_has_no_interval_and_missing_ratings_are_allowed():
    assert crossed_interval(np.array([[50.0]])) == (None, None)
    scores = np.random.default_rng(0).normal(50, 5, (6, 4))
    assert crossed_interval(scores[:4]) == (None, None)
    scores[0, 0] = np.nan
    low, high = crossed_interval(scores)
    assert low < np.nanmean(scores) < high
