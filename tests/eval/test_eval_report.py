"""Statistics, rankings and the files that people and programs read."""

import csv
import doctest
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from browsers import chromium

from codecplus.cli import build_parser
from codecplus.errors import InputError
from codecplus.eval import build_leaderboard, compare, load_results
from codecplus.eval import results as results_module
from codecplus.eval.metrics import METRICS, Score, score
from codecplus.eval.report import leaderboard, markdown, write_report
from codecplus.eval.report.leaderboard_space import sound_submissions, write_space
from codecplus.eval.report.model_repository import eval_result_entries, write_hub_files
from codecplus.eval.report.terminal import terminal_report
from codecplus.eval.results import Row, summarize, write_json, write_rows
from codecplus.eval.tasks import clips

RNG = np.random.default_rng(0)


def rows(codec, values, kbps=6.0, metric="pesq_wb", failed=()):
    """One file a value; bits such that the measured rate is `kbps`."""
    made = []
    for i, value in enumerate(values):
        bad = i in failed
        result = Score.failed("codec_failure", "it broke") if bad else Score(float(value))
        made.append(
            Row(
                codec=codec,
                codec_hash=codec,
                clip=f"{i}.wav",
                clip_hash=f"{i}",
                source=f"{i}.wav",
                kind="speech",
                speaker=None,
                seconds=2.0,
                sample_rate=16_000,
                channels=1,
                status="codec_failure" if bad else "ok",
                reason="it broke" if bad else None,
                payload_bits=None if bad else int(2000 * kbps),
                file_bits=None if bad else int(2200 * kbps),
                scores={metric: result},
            )
        )
    return made


def folder(path, groups, date="2026-01-01T00:00:00+00:00", dataset=None):
    """A results folder with those rows."""
    path.mkdir(parents=True)
    everything = [row for group in groups for row in group]
    names = list(dict.fromkeys(row.codec for row in everything))
    metrics = list(everything[0].scores)
    summary = summarize(everything, metrics, [name for name in names if "@" in name])
    for name in names:
        anchor = name == "identity"
        summary[name].update(
            hash=name,
            config={},
            anchor=anchor,
            nominal_kbps_per_channel=None,
            latency_seconds=0.02,
            codebooks=None,
        )
    task = {
        "type": "folder",
        "name": "set",
        "segment_seconds": 30.0,
        "segments_per_file": 4,
        "licence": "CC0",
    }
    if dataset:
        task.update(dataset=dataset, split="test", revision="f" * 40)
    write_rows(path / "rows.jsonl", everything)
    write_json(
        path / "summary.json",
        {
            "schema": 1,
            "task": task,
            "codecs": summary,
            "metrics": {name: METRICS[name].describe() for name in metrics},
        },
    )
    cost = {
        "encode_real_time_factor": 3.0,
        "decode_real_time_factor": 5.0,
        "peak_memory_bytes": None,
    }
    write_json(path / "costs.json", dict.fromkeys(names, cost))
    data = {"clips": 5, "files": 5, "seconds": 10.0, "problems": []}
    write_json(
        path / "provenance.json",
        {
            "date": date,
            "settings": {},
            "data": data,
            "versions": {"python": "3"},
            "resampler": "soxr",
            "device": "cpu",
            "hardware": {"system": "", "processor": "", "cores": 1},
        },
    )
    return path


def test_the_doctests_pass():
    from codecplus.eval import statistics
    from codecplus.eval.codecs import base

    for module in (markdown, statistics, base, clips, leaderboard):
        assert doctest.testmod(module).failed == 0


def test_a_long_file_weighs_as_one():
    group = rows("c", [1.0, 1.0, 4.0])
    group[1] = replace(group[1], source="0.wav")
    part = summarize(group, ["pesq_wb"])["c"]["domains"]["speech"]
    assert part["metrics"]["pesq_wb"]["mean"] == 2.5
    assert part["payload_kbps"] == 6.0
    assert part["file_kbps"] == pytest.approx(6.6)


def ranks(groups, metric="pesq_wb"):
    return {name: standing.rank for name, standing in leaderboard.rank(groups, metric).items()}


def test_ranks_are_shared_unless_a_paired_test_shows_a_difference():
    hard = RNG.normal(0, 0.5, 12)  # some recordings are harder for all
    noise = RNG.normal(0, 0.05, 12)
    groups = {
        "good": rows("good", 3.5 + hard),
        "same": rows("same", 3.49 + hard + noise - noise.mean()),
        "worse": rows("worse", 3.3 + hard + noise),
        "lucky": rows("lucky", 4.5 + hard, failed={3}),
    }
    standings = leaderboard.rank(groups, "pesq_wb")
    assert ranks(groups) == {"good": 1, "same": 1, "worse": 3}
    # Unpaired intervals would overlap: recordings differ more than these codecs do.
    assert standings["worse"].estimate.high > standings["good"].estimate.low
    assert standings["worse"].leader == "good"
    assert standings["worse"].behind.high < 0
    assert standings["good"].behind is None
    lower = {
        name: rows(name, value + noise, metric="mel_distance")
        for name, value in (("a", 2), ("b", 1))
    }
    assert ranks(lower, "mel_distance")["b"] == 1


def test_nobody_has_a_rank_below_six_recordings_or_speakers():
    values = np.array([2.0, 2.1, 2.2, 2.3, 2.4, 2.5])
    groups = {"a": rows("a", values), "b": rows("b", values + 1)}
    assert ranks(groups) == {"a": 2, "b": 1}
    assert ranks({name: group[:5] for name, group in groups.items()}) == {"a": None, "b": None}
    for name, group in groups.items():
        groups[name] = [replace(row, speaker=f"voice {i % 3}") for i, row in enumerate(group)]
    assert ranks(groups) == {"a": None, "b": None}
    assert leaderboard.rank(groups, "pesq_wb")["a"].estimate.speakers == 3


def test_codecs_are_ranked_on_the_clips_that_all_can_be_scored_on():
    """A metric that crashed for one codec on a hard clip takes that clip from all."""
    easy, hard = [3.0, 3.1, 2.9, 3.0, 3.0, 3.0], [1.0]
    a, b = rows("a", easy + hard), rows("b", [value + 0.5 for value in easy + hard])
    a[6] = replace(a[6], scores={"pesq_wb": Score.failed("metric_error", "died")})
    standings = leaderboard.rank({"a": a, "b": b}, "pesq_wb")
    assert standings["b"].estimate.mean == pytest.approx(3.5)
    assert standings["b"].rank == 1


def with_bits(group, payload, file):
    return [replace(row, payload_bits=payload, file_bits=file) for row in group]


@pytest.mark.parametrize(
    ("payload", "file", "counted"),
    [
        (12_000, 12_700, "payload"),  # a header, and checksums of blocks
        (2_000, 2_400, "payload"),  # the header of a short file
        (1_000, 1_674_000, "file"),  # a liar
        (8, 1_000, "file"),  # a key, and a header that holds the rest
        (12_000, 16_000, "file"),
    ],
)
def test_the_rate_that_ranks_is_that_of_the_file_unless_the_rest_is_a_container(
    payload, file, counted
):
    rates = results_module.bit_rates(with_bits(rows("c", [1.0]), payload, file))
    assert rates["rate_from"] == counted
    assert rates["rate_kbps"] == rates[f"{counted}_kbps"]
    ours = results_module.bit_rates(with_bits(rows("c", [1.0]), payload, file), counted_here=True)
    assert (ours["rate_from"], ours["rate_kbps"]) == ("payload", rates["payload_kbps"])


def test_a_liar_competes_where_its_files_belong(tmp_path):
    values = [2.0, 2.1, 2.2, 2.0, 2.1, 2.3]
    liar = with_bits(rows("liar", [4.6] * 6), 1000, 1_674_000)
    folder(tmp_path / "r", [rows("identity", [4.6] * 6, 512), rows("opus@6", values), liar])
    (board,) = build_leaderboard([tmp_path])["boards"]
    entries = {entry["codec"]: entry for entry in board["entries"]}
    assert entries["liar"]["band"] == len(leaderboard.BAND_EDGES)
    assert entries["opus@6"]["rank"] == 1


def test_a_declared_rate_has_no_rank(tmp_path):
    values = [2.0, 2.1, 2.2, 2.0, 2.1, 2.3]
    other = with_bits(rows("other@6", [4.6] * 6), 12_000, None)
    folder(tmp_path / "r", [rows("identity", [4.6] * 6, 512), rows("opus@6", values), other])
    (board,) = build_leaderboard([tmp_path])["boards"]
    entries = {entry["codec"]: entry for entry in board["entries"]}
    assert (entries["other@6"]["rank"], entries["other@6"]["rate_from"]) == (None, "declared")
    assert entries["opus@6"]["rank"] == 1


def test_all_has_only_the_metrics_that_every_kind_has():
    speech = rows("c", [3.0, 3.2])
    music = [
        replace(row, clip=f"m{row.clip}", kind="music", scores={"snr": Score(9.0)})
        for row in rows("c", [0.0, 0.0])
    ]
    for row in speech:
        row.scores["snr"] = Score(5.0)
    domains = summarize([*speech, *music], ["pesq_wb", "snr"])["c"]["domains"]
    assert set(domains["all"]["metrics"]) == {"snr"}
    assert set(domains["speech"]["metrics"]) == {"pesq_wb", "snr"}


def test_levels_signs_and_clipping_are_warned_about():
    def described(gain, polarity, clipping):
        group = rows("c", [1.0] * 3)
        scores = {"gain": gain, "polarity": polarity, "clipping": clipping}
        scores = {name: Score(value) for name, value in scores.items()}
        return results_module.signal_warnings([replace(row, scores=scores) for row in group])

    assert described(0.3, 1.0, 0.0) == []
    assert described(-6.02, 1.0, 0.0) == ["plays at -6.0 dB"]
    assert described(0.0, -1.0, 2.0) == ["inverts the signal", "clips 2 % of the samples"]


def test_runs_on_the_same_clips_are_merged_and_the_newer_counts(tmp_path):
    values = [2.0, 2.1, 2.2, 2.0, 2.1, 2.1]
    folder(tmp_path / "old", [rows("identity", [4.6] * 6, 512), rows("opus@6", values)])
    folder(
        tmp_path / "new",
        [
            rows("identity", [4.6] * 6, 512),
            rows("opus@6", [v + 1 for v in values]),
            rows("slow@24", values, 24.0),
        ],
        date="2026-02-01T00:00:00+00:00",
    )
    folder(tmp_path / "other", [rows("identity", [4.6] * 4, 512), rows("opus@6", values[:4])])
    first, second = build_leaderboard(
        [tmp_path], html=tmp_path / "b.html", json=tmp_path / "b.json"
    )["boards"]
    entries = {entry["codec"]: entry for entry in first["entries"]}
    assert list(entries) == ["opus@6", "slow@24", "identity"]
    assert entries["opus@6"]["metrics"]["pesq_wb"]["mean"] == pytest.approx(3 + 0.5 / 6)
    assert (
        entries["opus@6"]["rank"] == entries["slow@24"]["rank"] == 1
    )  # they do not compete: other bands
    assert entries["identity"]["rank"] is None
    assert second["clips"] == 4
    assert json.loads((tmp_path / "b.json").read_text())["boards"][0] == first


def test_a_run_without_the_metric_takes_nobodys_rank(tmp_path):
    folder(
        tmp_path / "a",
        [rows("identity", [4.6] * 6), rows("opus@6", [2.0, 2.1, 2.2, 2.0, 2.1, 2.2])],
    )
    folder(
        tmp_path / "b",
        [rows("identity", [100] * 6, metric="snr"), rows("mp3@6", [9.0] * 6, metric="snr")],
    )
    (board,) = build_leaderboard([tmp_path], rank_by="pesq_wb")["boards"]
    assert {entry["codec"]: entry["rank"] for entry in board["entries"]} == {
        "opus@6": 1,
        "mp3@6": None,
        "identity": None,
    }


def test_scores_by_another_version_of_a_metric_are_not_mixed(tmp_path):
    values = [2.0, 2.1, 2.2, 2.0, 2.1, 2.2]
    old = folder(tmp_path / "old", [rows("identity", [4.6] * 6, 512), rows("mp3@6", [4.0] * 6)])
    new = folder(
        tmp_path / "new",
        [rows("identity", [4.6] * 6, 512), rows("opus@6", values)],
        date="2026-02-01T00:00:00+00:00",
    )
    assert build_leaderboard([tmp_path])["boards"][0]["outdated"] == {}
    compare(f"{old}:mp3@6", f"{new}:opus@6")
    summary = json.loads((old / "summary.json").read_text())
    summary["metrics"]["pesq_wb"]["identity"] = "pesq_wb/0"
    write_json(old / "summary.json", summary)
    (board,) = build_leaderboard([tmp_path], html=tmp_path / "board.html")["boards"]
    entries = {entry["codec"]: entry for entry in board["entries"]}
    assert board["outdated"] == {"mp3@6": ["pesq_wb"]}
    assert entries["opus@6"]["rank"] == 1
    assert (entries["mp3@6"]["rank"], entries["mp3@6"]["metrics"]) == (None, {})
    with pytest.raises(InputError, match=r"pesq_wb/0 and .* which do not compare"):
        compare(f"{old}:mp3@6", f"{new}:opus@6")


def test_the_page_needs_nothing_else_and_no_name_breaks_out(tmp_path):
    folder(tmp_path / "r", [rows("identity", [4.6] * 3), rows("</script><b>x@6", [2.0, 2.1, 2.2])])
    build_leaderboard([tmp_path / "r"], html=tmp_path / "board.html")
    page = (tmp_path / "board.html").read_text()
    assert page.count("</script>") == 1
    assert not re.search(
        r"""(src|href)\s*=|@import|url\(|https?://(?!www\.w3\.org/2000/svg)""", page
    )
    embedded = re.search(r"const data = (.*);\n", page).group(1)
    assert json.loads(embedded)["boards"][0]["entries"][0]["codec"] == "</script><b>x@6"


def test_files_for_the_hub_can_be_read_back(tmp_path):
    from huggingface_hub import parse_eval_result_entries
    from huggingface_hub.repocard_data import model_index_to_eval_results

    results = load_results(
        folder(
            tmp_path / "r",
            [rows("identity", [4.6] * 3), rows("opus@6", [2.0, 2.1, 2.2])],
            dataset="owner/set",
        )
    )
    (out,) = write_hub_files(results)
    (entry,) = parse_eval_result_entries(
        yaml.safe_load((out / ".eval_results" / "set.yaml").read_text())
    )
    assert (entry.dataset_id, entry.task_id, entry.value) == ("owner/set", "speech_pesq_wb", 2.1)
    assert entry.dataset_revision == "f" * 40
    name, (old,) = model_index_to_eval_results(
        yaml.safe_load((out / "model-index.yaml").read_text())
    )
    assert (name, old.metric_type, old.metric_value) == ("opus@6", "pesq_wb", 2.1)
    card = (out / "card_section.md").read_text()
    assert "2.1" in card
    assert "identity" in card
    assert eval_result_entries(results, "opus@6", "own/copy")[0]["dataset"] == {
        "id": "own/copy",
        "task_id": "speech_pesq_wb",
    }


def test_local_data_has_no_hub_entry_unless_it_is_named(tmp_path):
    results = load_results(
        folder(tmp_path / "r", [rows("identity", [4.6] * 3), rows("opus@6", [2.0, 2.1, 2.2])])
    )
    (out,) = write_hub_files(results)
    assert not (out / ".eval_results").exists()
    (out,) = write_hub_files(results, "owner/set")
    assert (out / ".eval_results" / "set.yaml").exists()


def test_the_report_names_failures(tmp_path):
    results = load_results(
        folder(
            tmp_path / "r",
            [
                rows("identity", [4.6] * 3),
                rows("opus@6", [2.0, 2.1, 2.2], failed={1}),
                rows("opus@24", [4.0, 4.1, 4.2], 24),
            ],
        )
    )
    write_report(results)
    report = (tmp_path / "r" / "report.md").read_text()
    assert "| opus@6 | all | 1 | codec_failure: it broke |" in report
    assert "1 of 3" in report
    assert (tmp_path / "r" / "plots" / "pesq_wb.png").read_bytes().startswith(b"\x89PNG")


def test_rows_survive_the_disk(tmp_path):
    made = rows("a", [1.0, 2.0], failed={1})
    write_rows(tmp_path / "rows.jsonl", made)
    text = (tmp_path / "rows.jsonl").read_text()
    assert [Row.from_json(line) for line in text.splitlines()] == made
    assert json.loads(text.splitlines()[0])["schema"] == results_module.SCHEMA


def parse(*arguments):
    args = build_parser().parse_args(arguments)
    return args.run(args)


def test_compare_and_leaderboard_as_commands(tmp_path, capsys):
    path = folder(
        tmp_path / "r",
        [
            rows("identity", [4.6] * 3),
            rows("opus@6", [2.0, 2.1, 2.2]),
            rows("opus@24", [4.0, 4.1, 4.2], 24),
        ],
    )
    parse("leaderboard", str(path), "-o", str(tmp_path / "board.html"))
    assert "| – | opus@6 | 6 | 0 | 2.1 |" in capsys.readouterr().out
    assert (tmp_path / "board.html").exists()
    parse("compare", f"{path}:opus@6", f"{path}:opus@24")
    assert "| opus@6 | opus@24 | speech | pesq_wb | 2 |" in capsys.readouterr().out
    parse("compare", f"{path}:opus@6", f"{path}:opus@24", "--json")
    comparison = json.loads(capsys.readouterr().out)[0]
    assert (comparison["a"], comparison["b"], comparison["metric"]) == (
        "opus@6",
        "opus@24",
        "pesq_wb",
    )
    parse("leaderboard", str(path), "--json")
    assert json.loads(capsys.readouterr().out) == build_leaderboard([path])
    with pytest.raises(SystemExit):
        parse("eval", "--codec", "opus")
    assert "required: -o/--output" in capsys.readouterr().err
    with pytest.raises(InputError, match="expected --data"):
        parse("eval", "--codec", "opus", "-o", str(tmp_path / "out"))
    with pytest.raises(InputError, match="cannot rank by 'lag'"):
        parse("leaderboard", str(path), "--rank-by", "lag")
    with pytest.raises(InputError, match="there are no results"):
        parse("leaderboard", str(tmp_path / "nothing"))


def test_listing_the_verbs_imports_nothing_heavy():
    code = (
        "import sys, codecplus.cli; print({'numpy', 'torch', 'datasets', 'av'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_evaluate_module_loads_from_its_folder_without_a_network(tmp_path, monkeypatch, voice):
    evaluate = pytest.importorskip("evaluate")
    from codecplus.eval.modules import AUDIO_CODEC

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = evaluate.load(AUDIO_CODEC, "snr", cache_dir=str(tmp_path))
    noisy = voice + np.float32(0.01)
    found = module.compute(
        predictions=[noisy, voice * 0], references=[voice, voice], sample_rate=16_000
    )
    assert found["snr"] == pytest.approx(
        score(voice, noisy, 16_000, ["snr"])["snr"].value, abs=1e-4
    )
    assert found["snr_scores"][1] is None
    assert found["snr_reasons"] == [None, "the output is silent"]


def test_rates_that_give_the_same_files_are_one_row(tmp_path):
    values = [2.0, 2.1, 2.2, 2.0, 2.1, 2.3]
    groups = [rows("identity", [4.6] * 6, 512), rows("opus@5", values), rows("opus@6", values)]
    folder(tmp_path / "r", [*groups, rows("mp3@6", values)])
    (board,) = build_leaderboard([tmp_path])["boards"]
    entries = {entry["codec"]: entry for entry in board["entries"]}
    assert set(entries) == {"identity", "opus@5", "mp3@6"}
    assert entries["opus@5"]["also"] == ["opus@6"]


def test_the_page_plays_clips_whose_audio_is_still_there(tmp_path):
    path = folder(tmp_path / "r", [rows("identity", [4.6] * 4), rows("opus@6", [2.0] * 4)])
    cache = path / "cache" / "audio" / "opus@6"
    cache.mkdir(parents=True)
    for i in range(4):
        np.save(cache / f"{i}.npy", np.full((1, 1600), 0.1, np.float32))
    build_leaderboard([path], html=tmp_path / "board.html")
    page = (tmp_path / "board.html").read_text()
    data = json.loads(re.search(r"const data = (.*);\n", page).group(1))
    clips = {entry["codec"]: entry["clips"] for entry in data["boards"][0]["entries"]}
    assert len(clips["opus@6"]) == 3
    assert clips["identity"] == []
    assert all((tmp_path / clip).is_file() for clip in clips["opus@6"])


def test_the_page_in_a_browser_shows_a_metric_on_a_telephone_and_saves_intervals(tmp_path):
    """At 390 × 844 the first scores are there without scrolling, and the name stays in sight."""
    values = RNG.normal(2.0, 0.1, 6)
    groups = [rows("identity", [4.6] * 6), rows("opus@6", values), rows("lyra@6", values + 1)]
    build_leaderboard([folder(tmp_path / "r", groups)], html=tmp_path / "board.html")
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        errors = []
        page.on("pageerror", lambda error: errors.append(error))
        page.goto((tmp_path / "board.html").as_uri())
        box = page.locator("#body tr:first-child td:nth-child(3)").bounding_box()
        assert box["x"] + box["width"] <= 390
        assert box["y"] + box["height"] <= 844
        page.evaluate("document.querySelector('.scroll').scrollLeft = 200")
        assert page.locator("#body tr:first-child td:nth-child(2)").bounding_box()["x"] >= 0
        page.fill("#filter", "opus")
        assert page.locator("#body tr").count() == 1
        with page.expect_download() as download:
            page.click("#csv")
        (header, line) = csv.reader(Path(download.value.path()).read_text().splitlines())
        cells = dict(zip(header, line, strict=True))
        browser.close()
    assert errors == []
    title = "PESQ wide band (MOS-LQO) ↑"
    assert float(cells[title]) == pytest.approx(np.mean(values))
    assert float(cells[f"{title}, 95 % from"]) < np.mean(values) < float(cells[f"{title}, 95 % to"])
    assert cells[f"{title}, recordings"] == "6"
    assert "listen" not in cells


def test_results_of_an_older_version_can_still_be_read(tmp_path):
    """They have no rate that ranks, no command, and intervals without a number of speakers."""
    path = folder(tmp_path / "r", [rows("identity", [4.6] * 6), rows("opus@6", [2.0] * 6)])
    summary = json.loads((path / "summary.json").read_text())
    for codec in summary["codecs"].values():
        del codec["payload_counted_here"]
        for part in codec["domains"].values():
            for key in ("rate_kbps", "rate_kbps_per_channel", "rate_from"):
                del part[key]
            for entry in part["metrics"].values():
                del entry["speakers"]
    write_json(path / "summary.json", summary)
    write_report(load_results(path))
    (board,) = build_leaderboard([path], html=tmp_path / "board.html")["boards"]
    assert {entry["codec"] for entry in board["entries"]} == {"identity", "opus@6"}


def test_one_rate_makes_no_plot(tmp_path):
    path = folder(tmp_path / "r", [rows("identity", [4.6] * 3), rows("opus@6", [2.0, 2.1, 2.2])])
    write_report(load_results(path))
    assert not (path / "plots").exists()


def test_every_pair_of_a_band_is_tested_and_corrected(tmp_path):
    hard = RNG.normal(0, 0.5, 12)
    groups = {
        "a@6": 3.0 + hard + RNG.normal(0, 0.01, 12),
        "b@6": 3.5 + hard + RNG.normal(0, 0.01, 12),
        "c@6": 3.5 + hard + RNG.normal(0, 0.01, 12),
    }
    made = [rows("identity", [4.6] * 12), *(rows(name, v) for name, v in groups.items())]
    made.append(rows("far@24", [4.0] * 12, 24))  # of another band: in no pair
    (board,) = build_leaderboard([folder(tmp_path / "r", made)])["boards"]
    pairs = {(pair["a"], pair["b"]): pair for pair in board["pairs"]}
    assert set(pairs) == {("a@6", "b@6"), ("a@6", "c@6"), ("b@6", "c@6")}
    first = pairs["a@6", "b@6"]
    assert first["mean"] == pytest.approx(np.mean(groups["b@6"] - groups["a@6"]))
    assert first["low"] < first["mean"] < first["high"]
    assert first["p"] == 2 / 2**12
    assert first["p_corrected"] == pytest.approx(3 * first["p"])
    assert pairs["b@6", "c@6"]["p_corrected"] > 0.05


def test_runs_on_the_same_audio_merge_whatever_the_clips_are_called(tmp_path):
    """A folder calls a clip by its file, a table by its row and file."""
    folder(tmp_path / "a", [rows("identity", [4.6] * 6), rows("opus@6", [2.0] * 6)])
    table = [rows("identity", [4.6] * 6), rows("mp3@6", [1.5] * 6)]
    named = []
    for group in table:
        named.append(
            [replace(row, clip=f"00 {row.clip}", source=f"00 {row.source}") for row in group]
        )
    folder(tmp_path / "b", named, date="2026-02-01T00:00:00+00:00")
    (board,) = build_leaderboard([tmp_path])["boards"]
    ranks = {entry["codec"]: entry["rank"] for entry in board["entries"]}
    assert ranks == {"identity": None, "opus@6": 1, "mp3@6": 2}


def test_the_terminal_shows_rates_that_give_the_same_files_once(tmp_path):
    values = [2.0, 2.1, 2.2, 2.0, 2.1, 2.3]
    groups = [rows("identity", [4.6] * 6), rows("opus@5", values), rows("opus@6", values)]
    text = terminal_report(load_results(folder(tmp_path / "r", groups)), 100)
    assert text.count("opus@5") == 2
    assert "opus@5 stands for opus@6, too: the same files" in text


def test_metrics_that_are_not_installed_here_are_compared_and_shown(tmp_path, monkeypatch):
    """Somebody else's results have a metric of their own, or one by a recogniser's name."""
    description = replace(METRICS["stoi"], name="theirs", title="Theirs")
    monkeypatch.setitem(METRICS, "theirs", description)
    groups = [rows("identity", [1.0] * 6, metric="theirs")]
    groups += [
        rows(f"{name}@6", [low] * 6, metric="theirs") for name, low in (("a", 0.2), ("b", 0.4))
    ]
    path = folder(tmp_path / "r", groups)
    monkeypatch.delitem(METRICS, "theirs")
    (comparison,) = compare(f"{path}:a@6", f"{path}:b@6")
    assert comparison.metric == "theirs"
    assert comparison.better == "b@6"
    (board,) = build_leaderboard([path])["boards"]
    means = {entry["codec"]: entry["metrics"]["theirs"]["mean"] for entry in board["entries"]}
    assert means == pytest.approx({"identity": 1.0, "a@6": 0.2, "b@6": 0.4})
    assert board["metrics"]["theirs"]["title"] == "Theirs"
    assert {entry["rank"] for entry in board["entries"]} == {None}
    assert "a@6" in terminal_report(load_results(path), 80)


def test_eighty_columns_have_room_for_times(tmp_path):
    values = [2.03, 1.8, 2.2, 1.95, 2.1, 2.23]
    groups = [rows("identity", [4.6] * 6), rows("dac-16khz-live@3", values, 2.89)]
    text = terminal_report(load_results(folder(tmp_path / "r", groups)), 80)
    assert "pesq_wb" in text
    assert "decode ×" in text
    assert "dac-16khz-live@3" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_terminal_says_what_failed_and_why(tmp_path):
    identity, opus = rows("identity", [4.6] * 6), rows("opus@6", [2.0] * 6, failed=(0, 1))
    crash = Score.failed("metric_error", "the metric's process died twice, with status -11")
    for group in (identity, opus):
        for row in group:
            row.scores["stoi"] = crash
    opus[1] = replace(opus[1], reason="it hung")
    opus[2] = replace(opus[2], status="codec_failure", reason="it broke")
    text = terminal_report(load_results(folder(tmp_path / "r", [identity, opus])), 80)
    assert "failed: opus@6, 3 times: it broke; 1 more in report.md" in text
    assert "failed: stoi, 9 times: the metric's process died twice, with status -11" in text
    assert max(map(len, text.splitlines())) <= 80


def test_submissions_that_do_not_hold_together_are_named_and_left_out(tmp_path):
    path = folder(tmp_path / "r", [rows("identity", [4.6] * 3), rows("opus@6", [2.0] * 3)])
    good, refused = sound_submissions([path])
    assert good == []
    assert "the hash of identity is not that of its settings" in refused[path]
    with pytest.raises(InputError, match="no results that hold together"):
        write_space([], tmp_path / "space")


def test_links_of_a_page_are_addresses_of_the_web(tmp_path):
    path = folder(tmp_path / "r", [rows("identity", [4.6] * 6), rows("opus@6", [2.0] * 6)])
    summary = json.loads((path / "summary.json").read_text())
    summary["codecs"]["opus@6"]["homepage"] = "https://opus-codec.org"
    summary["task"]["homepage"] = "https://example.org/set"
    write_json(path / "summary.json", summary)
    links = {path: "https://huggingface.co/datasets/ada/x/tree/main/r"}
    (board,) = build_leaderboard([path], links=links)["boards"]
    assert board["link"] == "https://example.org/set"
    assert board["runs"][0]["link"] == links[path]
    assert {entry["codec"]: entry["link"] for entry in board["entries"]} == {
        "identity": None,
        "opus@6": "https://opus-codec.org",
    }
