"""Ratings that people gave in listening tests, and what follows from them. Knows numbers, no audio.

Two methods: `mushra` (ITU-R BS.1534-3, 0 to 100, with a hidden reference and low-pass anchors) and
`acr` (absolute category rating, ITU-T P.800, 1 to 5, whose mean is the MOS). A condition has the
name of its row in the harness, for example opus@6; the hidden reference is `identity`, the anchors
are `lowpass-3500` and `lowpass-7000`.
"""

import csv
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.errors import FileFormatError, InputError
from codecplus.eval.results import write_json
from codecplus.eval.statistics import SIGNIFICANCE, crossed_interval, holm, sign_flip_p

SCHEMA = 1
FILE = "listening.json"
SCALES = {"mushra": (0.0, 100.0), "acr": (1.0, 5.0)}
TITLES = {"mushra": "MUSHRA", "acr": "MOS"}
REFERENCE, MID_ANCHOR = "identity", "lowpass-7000"
_WEBMUSHRA_NAMES = {"reference": REFERENCE, "anchor35": "lowpass-3500", "anchor70": MID_ANCHOR}
_FIELDS = ("method", "rater", "item", "condition", "score")


@dataclass(frozen=True)
class Rating:
    """One listener's score of one condition of one item."""

    method: str
    rater: str  # a random name; nothing about the person
    item: str
    condition: str
    score: float

    def __post_init__(self) -> None:
        if self.method not in SCALES:
            raise InputError(f"expected the method {' or '.join(SCALES)}, got {self.method!r}")
        low, high = SCALES[self.method]
        if not low <= self.score <= high:
            raise InputError(
                f"expected a score from {low:g} to {high:g} for {self.method}, got {self.score:g}"
            )


@dataclass(frozen=True)
class ConditionScore:
    """The mean of a condition with its 95 % interval over listeners and items.

    There is no interval below five listeners or two items.
    """

    mean: float
    low: float | None
    high: float | None
    listeners: int
    items: int
    ratings: int


@dataclass(frozen=True)
class ConditionDifference:
    """How two conditions differ for the listeners who rated both on the same items.

    Attributes:
        a, b: the conditions.
        mean: of b − a.
        low, high: the 95 % interval over listeners and items, as that of a condition.
        p: of the sign-flip test over listeners, corrected for all pairs (Holm).
        listeners, items: that have both.
        better: the condition that the test shows to be better; None: no difference is shown.
    """

    a: str
    b: str
    mean: float
    low: float | None
    high: float | None
    p: float
    listeners: int
    items: int
    better: str | None


@dataclass(frozen=True)
class ListeningResult:
    """What the listeners of one method said, after screening.

    Attributes:
        method: `mushra` or `acr`.
        conditions: the best first.
        listeners: whose ratings count.
        excluded: the others, and why.
        differences: every pair of conditions.
        by_item, by_listener: item or listener -> condition -> mean.
    """

    method: str
    conditions: dict[str, ConditionScore]
    listeners: list[str]
    excluded: dict[str, str]
    differences: list[ConditionDifference] = field(default_factory=list)
    by_item: dict[str, dict[str, float]] = field(default_factory=dict)
    by_listener: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def analyse(ratings: Iterable[Rating]) -> dict[str, ListeningResult]:
    """Screen the listeners and estimate every condition and every pair, method by method.

    A listener who rated something twice counts with the later rating.
    """
    unique = {(r.method, r.rater, r.item, r.condition): r for r in ratings}
    results = {}
    for method in SCALES:
        own = [rating for rating in unique.values() if rating.method == method]
        if own:
            results[method] = _analyse_method(method, own)
    return results


def _analyse_method(method: str, ratings: list[Rating]) -> ListeningResult:
    if method == "mushra":
        excluded = screen_mushra(ratings)
    else:
        excluded = screen_acr(ratings)
    counted = [rating for rating in ratings if rating.rater not in excluded]
    conditions = _estimates(counted)
    return ListeningResult(
        method=method,
        conditions=conditions,
        listeners=sorted({rating.rater for rating in counted}),
        excluded=excluded,
        differences=_differences(counted, list(conditions)),
        by_item=_means_by(counted, "item"),
        by_listener=_means_by(counted, "rater"),
    )


def screen_mushra(ratings: Iterable[Rating]) -> dict[str, str]:
    """Return the listeners to leave out and why, by the post-screening of ITU-R BS.1534-3 (2015),
    section 4.1.2.

    A listener is left out who rates the hidden reference below 90, or the mid-range anchor above
    90, for more than 15 % of the items. The anchor does not count for items that it hardly
    degrades: those where more than 25 % of the listeners rate it above 90. Single scores more than
    1.5 interquartile ranges from the quartiles stay, although the section calls them outliers: they
    may go only where somebody has shown that they are mistakes.
    """
    ratings = list(ratings)
    reference = _by_rater(ratings, REFERENCE)
    anchor = _by_rater(ratings, MID_ANCHOR)
    hardly_degraded = _hardly_degraded(anchor.values())
    excluded = {}
    for rater in sorted({rating.rater for rating in ratings}):
        missed = [score < 90 for score in reference.get(rater, {}).values()]
        fooled = [
            score > 90
            for item, score in anchor.get(rater, {}).items()
            if item not in hardly_degraded
        ]
        if _is_often(missed):
            excluded[rater] = (
                f"rated the hidden reference below 90 for {sum(missed)} of {len(missed)} items"
            )
        elif _is_often(fooled):
            excluded[rater] = (
                f"rated the 7 kHz anchor above 90 for {sum(fooled)} of {len(fooled)} items"
            )
    return excluded


def _hardly_degraded(anchor_scores: Iterable[dict[str, float]]) -> set[str]:
    """Return the items whose anchor more than a quarter of the listeners rate above 90.

    Args:
        anchor_scores: item -> score, for each listener.
    """
    above: dict[str, list[bool]] = {}
    for scores in anchor_scores:
        for item, score in scores.items():
            above.setdefault(item, []).append(score > 90)
    return {item for item, answers in above.items() if np.mean(answers) > 0.25}


def _is_often(answers: list[bool]) -> bool:
    """Return whether more than 15 % of the answers are yes; no for none."""
    return bool(answers) and bool(np.mean(answers) > 0.15)


def screen_acr(ratings: Iterable[Rating]) -> dict[str, str]:
    """Return the listeners to leave out and why, by the screening of observers of ITU-R BT.500,
    which ITU-T P.910 applies to ACR.

    For each stimulus with mean u, standard deviation S and kurtosis m4 / m2², a listener's P is
    raised by a score of u + kS or more and Q by one of u − kS or less; k is 2 where the kurtosis is
    that of a normal distribution, from 2 to 4, else √20. A listener is left out who has (P + Q) /
    stimuli > 0.05 and |P − Q| / (P + Q) < 0.3: erratic listeners go, severe ones stay. It is done
    once: a second round would find others. ITU-T P.800, the method itself, leaves nobody out.
    """
    stimuli: dict[tuple[str, str], dict[str, float]] = {}
    for rating in ratings:
        stimuli.setdefault((rating.item, rating.condition), {})[rating.rater] = rating.score
    above: dict[str, int] = {}
    below: dict[str, int] = {}
    seen: dict[str, int] = {}
    for scores in stimuli.values():
        low, high = _spread(np.array(list(scores.values())))
        for rater, score in scores.items():
            seen[rater] = seen.get(rater, 0) + 1
            above[rater] = above.get(rater, 0) + (score >= high)
            below[rater] = below.get(rater, 0) + (score <= low)
    excluded = {}
    for rater in sorted(seen):
        outside = above[rater] + below[rater]
        if outside / seen[rater] > 0.05 and abs(above[rater] - below[rater]) / outside < 0.3:
            excluded[rater] = (
                f"left the spread of the others in both directions for {outside} of {seen[rater]} "
                "stimuli"
            )
    return excluded


def _spread(scores: np.ndarray) -> tuple[float, float]:
    """u − kS and u + kS of `screen_acr`, given all ratings of a stimulus; without bounds for fewer
    than three.
    """
    deviation = scores.std(ddof=1) if scores.size > 2 else 0.0
    if deviation == 0:
        return -np.inf, np.inf
    centred = scores - scores.mean()
    kurtosis = np.mean(centred**4) / np.mean(centred**2) ** 2
    reach = deviation * (2.0 if 2 <= kurtosis <= 4 else 20**0.5)
    return scores.mean() - reach, scores.mean() + reach


def _by_rater(ratings: Iterable[Rating], condition: str) -> dict[str, dict[str, float]]:
    """Return rater -> item -> score of a condition."""
    scores: dict[str, dict[str, float]] = {}
    for rating in ratings:
        if rating.condition == condition:
            scores.setdefault(rating.rater, {})[rating.item] = rating.score
    return scores


def _matrix(ratings: list[Rating], listeners: list[str], items: list[str]) -> np.ndarray:
    """Scores (listeners, items), NaN where one did not rate."""
    row_of = {name: index for index, name in enumerate(listeners)}
    column_of = {name: index for index, name in enumerate(items)}
    scores = np.full((len(listeners), len(items)), np.nan)
    for rating in ratings:
        scores[row_of[rating.rater], column_of[rating.item]] = rating.score
    return scores


def _matrices(ratings: list[Rating]) -> dict[str, np.ndarray]:
    """For each condition its scores (listeners, items), all in the same order."""
    listeners = sorted({rating.rater for rating in ratings})
    items = sorted({rating.item for rating in ratings})
    by_condition: dict[str, list[Rating]] = {}
    for rating in ratings:
        by_condition.setdefault(rating.condition, []).append(rating)
    return {name: _matrix(own, listeners, items) for name, own in by_condition.items()}


def _rated(scores: np.ndarray) -> np.ndarray:
    """Scores (listeners, items) without the listeners and items that have none."""
    present = ~np.isnan(scores)
    return scores[present.any(axis=1)][:, present.any(axis=0)]


def _estimates(ratings: list[Rating]) -> dict[str, ConditionScore]:
    estimates = {}
    for condition, matrix in _matrices(ratings).items():
        scores = _rated(matrix)
        low, high = crossed_interval(scores)
        estimates[condition] = ConditionScore(
            mean=float(np.nanmean(scores)),
            low=low,
            high=high,
            listeners=scores.shape[0],
            items=scores.shape[1],
            ratings=int(np.count_nonzero(~np.isnan(scores))),
        )
    return dict(sorted(estimates.items(), key=lambda pair: (-pair[1].mean, pair[0])))


def _differences(ratings: list[Rating], conditions: list[str]) -> list[ConditionDifference]:
    """Every pair of conditions, the better one first, with p values corrected together."""
    matrices = _matrices(ratings)
    differences = []
    for a, b in combinations(conditions, 2):
        scores = matrices[b] - matrices[a]  # (listeners, items)
        if np.isnan(scores).all():
            continue
        scores = _rated(scores)
        low, high = crossed_interval(scores)
        by_listener = np.nansum(scores, axis=1)
        differences.append(
            ConditionDifference(
                a=a,
                b=b,
                mean=float(np.nanmean(scores)),
                low=low,
                high=high,
                p=float(sign_flip_p(by_listener)),
                listeners=scores.shape[0],
                items=scores.shape[1],
                better=None,
            )
        )
    p_values = holm([difference.p for difference in differences])
    return [_decided(*pair) for pair in zip(differences, p_values, strict=True)]


def _decided(difference: ConditionDifference, p: float) -> ConditionDifference:
    """The difference with its corrected p value, and the better condition if there is one."""
    better = None
    if difference.low is not None and difference.high is not None and p <= SIGNIFICANCE:
        if difference.low > 0:
            better = difference.b
        elif difference.high < 0:
            better = difference.a
    return replace(difference, p=p, better=better)


def _means_by(ratings: list[Rating], what: str) -> dict[str, dict[str, float]]:
    """The mean of each condition for each `item` or `rater`."""
    grouped: dict[str, dict[str, list[float]]] = {}
    for rating in ratings:
        group = grouped.setdefault(getattr(rating, what), {})
        group.setdefault(rating.condition, []).append(rating.score)
    means = {}
    for name in sorted(grouped):
        means[name] = {
            condition: float(np.mean(scores)) for condition, scores in grouped[name].items()
        }
    return means


# ---- files


def load_ratings(path: str | Path) -> list[Rating]:
    """Read ratings, oldest first: the demo's `.sqlite` or `.jsonl`, a `.csv`, or a folder of such
    files.

    A `.csv` has the columns method, rater, item, condition and score, or is what webMUSHRA writes
    for its pages `mushra` and `likert_single_stimulus`; of its questionnaire nothing is kept but a
    hash that tells listeners apart.

    Raises InputError for a missing file or one without ratings, FileFormatError for one that holds
    something else.
    """
    path = Path(path)
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.suffix in _READERS)
        ratings = [rating for file in inside for rating in _read(file)]
    elif path.is_file():
        ratings = list(_read(path))
    else:
        raise InputError(
            f"there are no ratings {path}; expected a {', '.join(_READERS)} file or a folder of "
            "them"
        )
    if not ratings:
        raise InputError(f"{path} holds no ratings")
    return ratings


def _read(path: Path) -> Iterator[Rating]:
    if path.suffix not in _READERS:
        raise InputError(f"expected ratings as {', '.join(_READERS)}, got {path.name}")
    try:
        for number, fields in _READERS[path.suffix](path):
            try:
                values = {name: str(fields[name]) for name in _FIELDS[:-1]}
                yield Rating(**values, score=float(fields["score"]))
            except (KeyError, TypeError, ValueError) as error:
                problem = str(error)
                if isinstance(error, KeyError):
                    problem = f"there is no {error}"
                raise FileFormatError(f"{path}, rating {number}: {problem}") from error
    except (sqlite3.Error, UnicodeDecodeError, csv.Error) as error:
        raise FileFormatError(f"{path} cannot be read as ratings: {error}") from error


def _read_sqlite(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        database.execute("PRAGMA trusted_schema = OFF")
        rows = database.execute(f"SELECT {', '.join(_FIELDS)} FROM ratings ORDER BY rowid")
        for number, row in enumerate(rows, start=1):
            yield number, dict(zip(_FIELDS, row, strict=True))
    finally:
        database.close()


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                fields = json.loads(line)
            except ValueError as error:
                raise FileFormatError(f"{path}, line {number}: no JSON ({error})") from error
            if not isinstance(fields, dict):
                raise FileFormatError(
                    f"{path}, line {number}: expected an object with {', '.join(_FIELDS)}"
                )
            yield number, fields


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        if set(_FIELDS) <= set(columns):
            yield from enumerate(reader, start=1)
        elif "trial_id" in columns and {"rating_stimulus", "rating_score"} <= set(columns):
            yield from _webmushra(reader, columns, "mushra", "rating_stimulus", "rating_score")
        elif "trial_id" in columns and {"stimuli", "stimuli_rating"} <= set(columns):
            yield from _webmushra(reader, columns, "acr", "stimuli", "stimuli_rating")
        else:
            raise FileFormatError(
                f"{path} has the columns {', '.join(columns) or 'of none'}; expected "
                f"{', '.join(_FIELDS)}, or the CSV "
                "that webMUSHRA writes for mushra or likert_single_stimulus pages"
            )


def _webmushra(
    rows: Iterable[dict[str, Any]], columns: list[str], method: str, stimulus: str, score: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the ratings of webMUSHRA's table with their numbers, from 1.

    Args:
        rows: of the table.
        columns: of the table.
        method: of the test.
        stimulus, score: the columns that hold the condition and its rating.
    """
    answers = columns[: columns.index("trial_id")]  # the session, its test, and the questionnaire
    rated: dict[str, set[tuple[str, str]]] = {}  # by person: trials and stimuli so far
    visits: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if "session_uuid" in columns:
            person = str(row["session_uuid"])
        else:
            person = "\0".join(str(row.get(name)) for name in answers)
        # Without names a listener ends where the first stimulus comes again.
        so_far = rated.setdefault(person, set())
        trial = (row["trial_id"], row[stimulus])
        if trial in so_far:
            visits[person] = visits.get(person, 0) + 1
            so_far.clear()
        so_far.add(trial)
        rater = hashlib.sha256(f"{person}\0{visits.get(person, 0)}".encode()).hexdigest()[:16]
        condition = str(row[stimulus])
        rating = {
            "method": method,
            "rater": rater,
            "item": row["trial_id"],
            "condition": _WEBMUSHRA_NAMES.get(condition, condition),
            "score": str(row[score]).strip(),
        }
        yield number, rating


_READERS = {".sqlite": _read_sqlite, ".jsonl": _read_jsonl, ".csv": _read_csv}


# ---- reports


def write_listening(results: dict[str, ListeningResult], folder: str | Path) -> Path:
    """Write listening.json into a results folder, where the leaderboard finds it."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the results cannot be written to {folder}: {error.strerror}") from error
    write_json(
        folder / FILE,
        {"schema": SCHEMA, **{name: result.as_dict() for name, result in results.items()}},
    )
    return folder / FILE


def read_listening(folder: str | Path) -> dict[str, ListeningResult]:
    """Return what `write_listening` wrote into a results folder; empty if nothing."""
    path = Path(folder) / FILE
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("schema") != SCHEMA:
            raise FileFormatError(
                f"expected {path} of schema {SCHEMA}; run `codecplus listening` again"
            )
        return {name: _result_from(fields) for name, fields in data.items()}
    except FileFormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path} is damaged: {error}") from error


def _result_from(fields: dict[str, Any]) -> ListeningResult:
    scores = {name: ConditionScore(**score) for name, score in fields["conditions"].items()}
    pairs = [ConditionDifference(**pair) for pair in fields.get("differences", [])]
    return ListeningResult(**{**fields, "conditions": scores, "differences": pairs})


def describe(result: ListeningResult) -> dict[str, Any]:
    """The method as a metric of the leaderboard."""
    low, high = SCALES[result.method]
    items = max((score.items for score in result.conditions.values()), default=0)
    source = (
        f"{len(result.listeners)} listeners, {items} items, {len(result.excluded)} listeners left "
        "out"
    )
    return {
        "title": TITLES[result.method],
        "unit": "",
        "higher_is_better": True,
        "range": [low, high],
        "source": source,
    }


def as_metric(score: ConditionScore) -> dict[str, Any]:
    """A condition's score as an entry of the leaderboard."""
    return {
        "mean": score.mean,
        "median": None,
        "low": score.low,
        "high": score.high,
        "files": score.items,
        "listeners": score.listeners,
    }


def listening_report(results: dict[str, ListeningResult]) -> str:
    """Return the results as Markdown tables, with everybody who was left out and why."""
    parts = []
    for result in results.values():
        title = TITLES[result.method]
        parts.append(
            f"{title}: {len(result.listeners)} listeners, {len(result.excluded)} left out\n"
        )
        parts.append(_condition_table(result) + "\n")
        if result.differences:
            parts.append(f"Pairs, tested over listeners, p corrected:\n\n{_pair_table(result)}\n")
        parts.append(f"By item:\n\n{_means_table(result.by_item, result, 'item')}\n")
        parts.append(f"By listener:\n\n{_means_table(result.by_listener, result, 'listener')}\n")
        for rater, reason in result.excluded.items():
            parts.append(f"left out: {rater}, who {reason}")
    return "\n".join(parts)


def _condition_table(result: ListeningResult) -> str:
    from codecplus.eval.report.markdown import interval, number, table

    lines = []
    for name, score in result.conditions.items():
        mean = number(score.mean)
        counts = [str(score.listeners), str(score.items), str(score.ratings)]
        lines.append([name, mean, interval(score.low, score.high), *counts])
    title = TITLES[result.method]
    return table(["condition", title, "95 % interval", "listeners", "items", "ratings"], lines)


def _pair_table(result: ListeningResult) -> str:
    from codecplus.eval.report.markdown import interval, number, table

    lines = []
    for pair in result.differences:
        shown = interval(pair.low, pair.high)
        better = pair.better or "no difference shown"
        lines.append([pair.a, pair.b, number(pair.mean), shown, number(pair.p), better])
    return table(["a", "b", "b − a", "95 % interval", "p", "better"], lines)


def _means_table(means: dict[str, dict[str, float]], result: ListeningResult, what: str) -> str:
    from codecplus.eval.report.markdown import number, table

    conditions = list(result.conditions)
    lines = []
    for name, scores in means.items():
        lines.append([name, *(number(scores.get(condition)) for condition in conditions)])
    return table([what, *conditions], lines)
