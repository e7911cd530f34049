"""Ratings of people: what a screening leaves out, what an interval covers, and what is read from
which file.
"""

import doctest
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import yaml

from codecplus.audio.loudness import integrated_loudness
from codecplus.cli import main
from codecplus.errors import FileFormatError, InputError
from codecplus.eval import build_leaderboard
from codecplus.eval.codecs import resolve_codecs
from codecplus.eval.listening import (
    Rating,
    analyse,
    listening_report,
    load_ratings,
    read_listening,
    screen_acr,
    screen_mushra,
    write_listening,
)
from codecplus.eval.statistics import crossed_interval
from codecplus.eval.stimuli import export_webmushra, match_loudness, prepare_item
from codecplus.eval.tasks import FolderTask
from codecplus.utils import load_audio, save_audio

MEANS = {"identity": 98.0, "lowpass-7000": 60.0, "lowpass-3500": 30.0, "opus@6": 45.0}


def noise(seconds, rate, seed):
    return (0.25 * np.random.default_rng(seed).standard_normal(int(seconds * rate))).astype(
        np.float32
    )


def panel(listeners=6, items=10, seed=0, means=MEANS, method="mushra"):
    """Ratings of careful listeners, some more severe than others."""
    rng = np.random.default_rng(seed)
    return [
        Rating(
            method,
            f"listener{i}",
            f"item{j}",
            condition,
            float(np.clip(mean + bias * (mean < 90), 0, 100)),
        )
        for i, bias in enumerate(rng.normal(0, 6, listeners))
        for j in range(items)
        for condition, mean in means.items()
    ]


def with_scores(ratings, rater, condition, scores):
    """The ratings, with this listener's first scores of a condition replaced."""
    scores, changed = list(scores), []
    for rating in ratings:
        hit = rating.rater == rater and rating.condition == condition and scores
        changed.append(Rating(**{**vars(rating), "score": scores.pop(0)}) if hit else rating)
    return changed


def test_the_page_about_listening_tests_says_what_happens():
    page = Path(__file__).parents[2] / "docs" / "listening.md"
    assert doctest.testfile(str(page), module_relative=False).failed == 0


# ---- screening


def test_a_careful_panel_is_kept():
    assert screen_mushra(panel()) == {}


@pytest.mark.parametrize(("missed", "out"), [(1, False), (2, True)])
def test_who_misses_the_hidden_reference_for_more_than_15_percent_of_the_items_is_left_out(
    missed, out
):
    ratings = with_scores(panel(items=10), "listener2", "identity", [89.0] * missed)
    assert (list(screen_mushra(ratings)) == ["listener2"]) is out


def test_a_score_of_90_is_not_below_90():
    assert screen_mushra(with_scores(panel(), "listener2", "identity", [90.0] * 10)) == {}


def test_who_takes_the_mid_anchor_for_the_reference_is_left_out():
    ratings = with_scores(panel(), "listener1", "lowpass-7000", [95.0] * 2)
    assert screen_mushra(ratings) == {
        "listener1": "rated the 7 kHz anchor above 90 for 2 of 10 items"
    }


def test_an_item_that_the_anchor_does_not_harm_is_held_against_nobody():
    ratings = panel()
    for i in range(
        3
    ):  # half of the listeners: narrow-band items sound the same through a 7 kHz filter
        ratings = with_scores(ratings, f"listener{i}", "lowpass-7000", [95.0] * 10)
    assert screen_mushra(ratings) == {}


def test_acr_leaves_out_the_erratic_and_keeps_the_severe():
    rng = np.random.default_rng(1)
    ratings = []
    for item in range(20):
        for condition, mean in {"a": 2.6, "b": 3.4}.items():
            for listener in range(30):  # the rule needs a panel of about this size
                score = mean + rng.normal(0, 0.1)
                if listener == 0:
                    score = rng.choice([1.0, 5.0])
                if listener == 1:
                    score -= 0.4
                ratings.append(
                    Rating(
                        "acr",
                        f"listener{listener}",
                        f"item{item}",
                        condition,
                        float(np.clip(score, 1, 5)),
                    )
                )
    assert list(screen_acr(ratings)) == ["listener0"]


def bt500(scores):
    """Who is left out by the screening of ITU-R BT.500, given scores (listeners, stimuli)."""
    listeners, stimuli = scores.shape
    above, below = np.zeros(listeners), np.zeros(listeners)
    for stimulus in range(stimuli):
        u = scores[:, stimulus]
        mean, deviation = (
            u.sum() / listeners,
            (((u - u.sum() / listeners) ** 2).sum() / (listeners - 1)) ** 0.5,
        )
        m2, m4 = (((u - mean) ** power).sum() / listeners for power in (2, 4))
        reach = (2 if 2 <= m4 / m2**2 <= 4 else 20**0.5) * deviation
        above += u >= mean + reach
        below += u <= mean - reach
    outside = above + below
    return [
        i
        for i in range(listeners)
        if outside[i] / stimuli > 0.05 and abs((above[i] - below[i]) / outside[i]) < 0.3
    ]


def as_ratings(scores):
    return [
        Rating("acr", f"{i:02d}", f"{j}", "a", s)
        for i, row in enumerate(scores)
        for j, s in enumerate(row.tolist())
    ]


def test_acr_is_screened_as_the_recommendation_says():
    rng, found = np.random.default_rng(0), 0
    for _ in range(40):
        spread = (
            rng.uniform(0.3, 1.0, 15)[:, None] + 1.6 * (np.arange(15) < 2)[:, None]
        )  # two of them press what comes
        scores = np.clip(
            np.rint(rng.uniform(2, 4, 24) + spread * rng.standard_normal((15, 24))), 1, 5
        )
        out = bt500(scores)
        found += len(out)
        assert list(screen_acr(as_ratings(scores))) == [f"{i:02d}" for i in out]
    assert found > 20


def test_a_score_at_the_edge_of_the_spread_is_outside_but_the_severe_stay():
    # Mean 3, standard deviation 1, kurtosis 3.74 every time: 1 and 5 are exactly two deviations
    # away.
    column = np.array([1, 5, 2, 4, *[3] * 7], float)
    scores = np.stack(
        [column if j % 2 else column[[1, 0, *range(2, 11)]] for j in range(10)], axis=1
    )
    assert list(screen_acr(as_ratings(scores))) == ["00", "01"]
    assert screen_acr(as_ratings(np.repeat(column[:, None], 10, axis=1))) == {}


def test_ratings_of_who_is_left_out_do_not_count():
    ratings = with_scores(panel(), "listener2", "identity", [0.0] * 10)
    result = analyse(ratings)["mushra"]
    assert "listener2" in result.excluded
    assert "listener2" not in result.listeners
    assert result.conditions["identity"].mean == 98.0
    assert result.conditions["identity"].listeners == 5


# ---- means and intervals


def test_conditions_have_means_in_order_and_counts():
    result = analyse(panel())["mushra"]
    assert list(result.conditions) == ["identity", "lowpass-7000", "opus@6", "lowpass-3500"]
    score = result.conditions["opus@6"]
    assert (score.listeners, score.items, score.ratings) == (6, 10, 60)
    expected = np.mean([r.score for r in panel() if r.condition == "opus@6"])
    assert score.mean == pytest.approx(expected)
    assert score.low < score.mean < score.high


def test_a_later_rating_replaces_an_earlier_one():
    first = [Rating("acr", "one", "item", "a", 1), Rating("acr", "two", "item", "a", 3)]
    result = analyse([*first, Rating("acr", "one", "item", "a", 5)])["acr"]
    assert result.conditions["a"].mean == 4.0
    assert result.conditions["a"].ratings == 2


def test_the_interval_covers_listeners_and_items():
    """Of many panels drawn from one population, about 95 % of the intervals hold its mean; pooled
    ones would not.
    """
    rng, hits, narrow = np.random.default_rng(0), 0, 0
    for _ in range(60):
        scores = (
            50 + rng.normal(0, 8, (12, 1)) + rng.normal(0, 8, (1, 12)) + rng.normal(0, 4, (12, 12))
        )
        low, high = crossed_interval(scores)
        hits += low <= 50 <= high
        half = 1.96 * scores.std() / 12
        narrow += abs(scores.mean() - 50) <= half
    assert hits >= 52
    assert narrow < 42


def test_pairs_are_tested_over_listeners_who_rated_both():
    result = analyse(panel(listeners=12, items=5))["mushra"]
    pairs = {(pair.a, pair.b): pair for pair in result.differences}
    assert len(pairs) == 6  # of four conditions
    pair = pairs["lowpass-7000", "opus@6"]
    means = {name: score.mean for name, score in result.conditions.items()}
    assert pair.mean == pytest.approx(means["opus@6"] - means["lowpass-7000"])
    assert (pair.better, pair.listeners, pair.items) == ("lowpass-7000", 12, 5)
    assert pair.low < pair.mean < pair.high < 0
    few = analyse(panel(listeners=4))["mushra"]
    assert {pair.better for pair in few.differences} == {None}
    assert few.conditions["opus@6"].low is None


def test_tables_by_item_and_by_listener_have_the_means_of_their_ratings():
    ratings = panel()
    result = analyse(ratings)["mushra"]
    item, rater = ratings[0].item, ratings[0].rater
    of_item = [r.score for r in ratings if (r.item, r.condition) == (item, "opus@6")]
    of_rater = [r.score for r in ratings if (r.rater, r.condition) == (rater, "opus@6")]
    assert result.by_item[item]["opus@6"] == pytest.approx(np.mean(of_item))
    assert result.by_listener[rater]["opus@6"] == pytest.approx(np.mean(of_rater))
    report = listening_report({"mushra": result})
    assert "By listener:" in report
    assert f"| {item} |" in report


@pytest.mark.parametrize(
    ("method", "score"), [("mushra", 101), ("acr", 0), ("acr", float("nan")), ("votes", 1)]
)
def test_a_score_outside_the_scale_is_refused(method, score):
    with pytest.raises(InputError, match="expected"):
        Rating(method, "one", "item", "a", score)


# ---- files


def test_jsonl_csv_and_sqlite_say_the_same(tmp_path):
    ratings = panel(2, 2)
    fields = ("method", "rater", "item", "condition", "score")
    rows = [[getattr(r, name) for name in fields] for r in ratings]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(dict(zip(fields, row, strict=True))) + "\n" for row in rows)
    )
    (tmp_path / "b.csv").write_text(
        "\n".join([",".join(fields), *(",".join(map(str, row)) for row in rows)])
    )
    with sqlite3.connect(tmp_path / "c.sqlite") as database:
        database.execute(f"CREATE TABLE ratings (id INTEGER PRIMARY KEY, {', '.join(fields)})")
        database.executemany(
            f"INSERT INTO ratings ({', '.join(fields)}) VALUES (?, ?, ?, ?, ?)", rows
        )
    for name in ("a.jsonl", "b.csv", "c.sqlite"):
        assert load_ratings(tmp_path / name) == ratings
    assert load_ratings(tmp_path) == ratings * 3


def test_webmushra_ratings_are_read_without_the_persons(tmp_path):
    lines = [
        "session_test_id,email,age,trial_id,rating_stimulus,rating_score,rating_time,rating_comment"
    ]
    for person in ("ann@example.org,31", "bob@example.org,52"):
        for stimulus, score in (
            ("reference", 100),
            ("anchor35", 20),
            ("anchor70", 50),
            ("opus@6", 40),
        ):
            lines.append(f"demo,{person},speech,{stimulus},{score},1200,")
    (tmp_path / "mushra.csv").write_text("\n".join(lines))
    ratings = load_ratings(tmp_path / "mushra.csv")
    assert {r.condition for r in ratings} == {"identity", "lowpass-3500", "lowpass-7000", "opus@6"}
    assert len({r.rater for r in ratings}) == 2
    assert not any("ann" in r.rater or r.rater == "31" for r in ratings)
    assert analyse(ratings)["mushra"].conditions["identity"].mean == 100


def test_webmushra_listeners_without_answers_are_told_apart_by_repetition(tmp_path):
    lines = ["session_test_id,trial_id,stimuli_rating,stimuli,rating_time"]
    lines += [
        f"demo,speech,{score},{name},900" for _ in range(3) for name, score in (("a", 4), ("b", 2))
    ]
    (tmp_path / "lss.csv").write_text("\n".join(lines))
    result = analyse(load_ratings(tmp_path / "lss.csv"))["acr"]
    assert len(result.listeners) == 3
    assert result.conditions["a"].mean == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "colour,taste\nred,sweet\n", "columns colour, taste"),
        ("a.jsonl", "{}\n", "rating 1: there is no 'method'"),
        (
            "a.jsonl",
            '{"method": "acr", "rater": "x", "item": "i", "condition": "c", "score": 9}\n',
            "from 1 to 5",
        ),
        ("a.jsonl", "[1]\n", "expected an object"),
        ("a.sqlite", "no database at all, but long enough to be one " * 20, "cannot be read"),
    ],
)
def test_a_file_that_holds_no_ratings_says_so(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(FileFormatError, match=message):
        load_ratings(tmp_path / name)


def test_missing_and_empty_ratings(tmp_path):
    with pytest.raises(InputError, match="there are no ratings"):
        load_ratings(tmp_path / "none.csv")
    with pytest.raises(InputError, match="holds no ratings"):
        load_ratings(tmp_path)


def test_results_survive_the_disk(tmp_path):
    results = analyse(panel())
    write_listening(results, tmp_path)
    assert read_listening(tmp_path) == results
    assert "opus@6" in listening_report(results)
    (tmp_path / "listening.json").write_text('{"schema": 1, "mushra": 3}')
    with pytest.raises(FileFormatError, match="damaged"):
        read_listening(tmp_path)


# ---- stimuli


def test_stimuli_have_one_loudness_and_names_that_say_nothing(tmp_path):
    audio = np.stack(
        [noise(2.0, 16000, seed) * level for seed, level in ((0, 0.02), (1, 0.3))]
    ).astype(np.float32)
    stimuli = prepare_item(audio, 16000, resolve_codecs(["opus"], [6, 12]), tmp_path)
    assert [s.condition for s in stimuli] == [
        "identity",
        "lowpass-3500",
        "lowpass-7000",
        "opus@6",
        "opus@12",
    ]
    assert sorted(s.path.name for s in stimuli) == [f"{i:02d}.wav" for i in range(1, 6)]
    for stimulus in stimuli:
        heard, rate = load_audio(stimulus.path)
        assert heard.shape == audio.shape
        assert integrated_loudness(heard, rate) == pytest.approx(-23, abs=0.1)
        edges = [np.abs(heard[..., part]).max() for part in (slice(8), slice(-8, None))]
        assert max(edges) < 0.1 * np.abs(heard).max()  # looped without a click
    assert stimuli[0].kbps is None
    assert stimuli[3].kbps == pytest.approx(12, rel=0.15)  # two channels


def test_matching_never_clips_and_keeps_the_levels_equal():
    quiet, loud = noise(2.0, 16000, 0) * 0.01, noise(2.0, 16000, 1)
    peaky = quiet.copy()
    peaky[100] = 0.9
    matched = match_loudness({"loud": loud[None] * 0.5, "peaky": peaky[None]}, 16000)
    assert max(np.abs(audio).max() for audio in matched.values()) <= 1
    levels = [integrated_loudness(audio, 16000) for audio in matched.values()]
    assert levels[0] == pytest.approx(levels[1], abs=0.05)


def test_silence_and_long_items_are_refused(tmp_path):
    with pytest.raises(InputError, match="silent"):
        prepare_item(np.zeros((1, 16000), np.float32), 16000, [], tmp_path)
    with pytest.raises(InputError, match="at most 12 s"):
        prepare_item(np.zeros((1, 16000 * 13), np.float32), 16000, [], tmp_path)
    with pytest.raises(InputError, match=r"at most 9 conditions .* got 10"):
        prepare_item(
            noise(1.0, 16000, 0)[None],
            16000,
            resolve_codecs(["opus"], list(range(6, 16)))[3:],
            tmp_path,
        )


def test_a_webmushra_test_names_files_that_are_there(tmp_path):
    (tmp_path / "data").mkdir()
    save_audio(noise(1.0, 16000, 0) * 0.1, tmp_path / "data" / "a b.wav", 16000)
    config = export_webmushra(
        "my test", FolderTask(tmp_path / "data"), resolve_codecs(["opus"], [12]), tmp_path / "out"
    )
    test = yaml.safe_load(config.read_text())
    (shuffled, page), finish = test["pages"]
    assert (shuffled, page["type"], finish["type"]) == ("random", "mushra", "finish")
    assert set(page["stimuli"]) == {
        "lowpass-3500",
        "lowpass-7000",
        "opus@12",
    }  # webMUSHRA hides the reference itself
    for path in [page["reference"], *page["stimuli"].values()]:
        assert (config.parent / path.removeprefix("configs/")).is_file()
    with pytest.raises(InputError, match="holds a test"):
        export_webmushra("my test", FolderTask(tmp_path / "data"), [], tmp_path / "out")


# ---- command line and leaderboard


def test_the_leaderboard_shows_what_listeners_said(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    save_audio(noise(1.0, 16000, 0) * 0.1, tmp_path / "data" / "a.wav", 16000)
    run = [
        "eval",
        "--codec",
        "opus",
        "--bitrate-per-channel",
        "6",
        "--data",
        str(tmp_path / "data"),
        "-o",
        str(tmp_path / "r"),
    ]
    assert main([*run, "--metric", "si_sdr", "--quiet", "--workers", "1"]) == 0
    rows = [f"mushra,{r.rater},{r.item},{r.condition},{r.score}" for r in panel()]
    (tmp_path / "ratings.csv").write_text("\n".join(["method,rater,item,condition,score", *rows]))
    assert main(["listening", str(tmp_path / "ratings.csv"), "-o", str(tmp_path / "r")]) == 0
    assert "MUSHRA: 6 listeners, 0 left out" in capsys.readouterr().out
    assert main(["listening", str(tmp_path / "ratings.csv"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["mushra"]["listeners"]) == 6
    board = build_leaderboard([tmp_path / "r"], html=tmp_path / "board.html")["boards"][0]
    entries = {entry["codec"]: entry["metrics"] for entry in board["entries"]}
    assert (
        entries["opus@6"]["mushra"]["low"]
        < entries["opus@6"]["mushra"]["mean"]
        < entries["identity"]["mushra"]["mean"]
    )
    assert board["metrics"]["mushra"]["title"] == "MUSHRA"
    assert '"mushra"' in (tmp_path / "board.html").read_text()


def test_the_command_line_writes_a_webmushra_test(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    save_audio(noise(1.0, 16000, 0) * 0.1, tmp_path / "data" / "a.wav", 16000)
    common = ["webmushra", "--data", str(tmp_path / "data"), "-o", str(tmp_path / "out")]
    assert main(common) == 2
    assert "at least one --model or --codec" in capsys.readouterr().err
    assert main([*common, "--codec", "opus", "--bitrate-per-channel", "12"]) == 0
    assert list((tmp_path / "out").glob("*.yaml"))
