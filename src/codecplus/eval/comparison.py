"""Which of two codecs is better, by paired tests on the recordings that both have scores for."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from codecplus.errors import InputError
from codecplus.eval.codecs.anchors import is_anchor
from codecplus.eval.results import (
    Results,
    Row,
    load_results,
    metric_by_file,
    speakers_by_file,
    weights_of,
)
from codecplus.eval.statistics import SIGNIFICANCE, Difference, holm, paired_difference


@dataclass(frozen=True)
class Comparison:
    """How codec b differs from codec a in one metric and domain.

    Attributes:
        a, b: names of the codecs.
        domain: the kind of audio.
        metric: its name.
        difference: b − a, with its interval and p value.
        p_corrected: the p value, corrected for all tests of the call (Holm).
        better: the codec whose lead the corrected test confirms; None: no difference is shown.
        left_out: clips that either has no score for, though the reference allows one.
    """

    a: str
    b: str
    domain: str
    metric: str
    difference: Difference
    p_corrected: float | None
    better: str | None
    left_out: int

    def as_dict(self) -> dict:
        """Plain data."""
        return asdict(self)


def compare(a: str | Path, b: str | Path, metrics: Sequence[str] | None = None) -> list[Comparison]:
    """Compare codecs of two results; `FOLDER` or `FOLDER:CODEC` names each side.

    Without a codec's name every codec that both have is compared with itself, as after a change; if
    they share none and each has one, these two. Domains are compared apart, and only clips of equal
    audio are paired. All tests of one call are corrected together, so naming the metrics that
    matter makes the comparison sharper.

    Args:
        a, b: the results.
        metrics: names of metrics; None: all that both results have.

    Raises:
        InputError: for results that share no scored clip, or whose metrics differ in version.
    """
    comparisons = []
    directions: dict[str, bool | None] = {}  # by metric; here nobody may know a stranger's metric
    for (left, name_a), (right, name_b) in _pairs(str(a), str(b)):
        rows_a = [row for row in left.rows if row.codec == name_a]
        rows_b = [row for row in right.rows if row.codec == name_b]
        chosen = _shared_metrics(left, right, metrics)
        _check_versions(left, right, chosen)
        for metric in chosen:
            directions[metric] = left.summary["metrics"][metric]["higher_is_better"]
        label_a, label_b = _labels(left, name_a, right, name_b)
        for domain in sorted({row.domain for row in rows_a}):
            for metric in chosen:
                result = _compare_rows(rows_a, rows_b, domain, metric, label_a, label_b)
                if result:
                    comparisons.append(result)
    if not comparisons:
        raise InputError(f"{a} and {b} have no clip with a score of the same metric in common")
    return _corrected(comparisons, directions)


def _shared_metrics(left: Results, right: Results, metrics: Sequence[str] | None) -> list[str]:
    """The metrics of both results, or those of them that were asked for."""
    shared = [name for name in left.summary["metrics"] if name in right.summary["metrics"]]
    if not metrics:
        return shared
    return [name for name in shared if name in metrics]


def _check_versions(left: Results, right: Results, metrics: list[str]) -> None:
    for metric in metrics:
        a = left.summary["metrics"][metric]["identity"]
        b = right.summary["metrics"][metric]["identity"]
        if a != b:
            raise InputError(
                f"{left.path} has scores of {a} and {right.path} of {b}, which do not compare; "
                "evaluate the older one again, or name other metrics"
            )


def _compare_rows(
    rows_a: list[Row], rows_b: list[Row], domain: str, metric: str, a: str, b: str
) -> Comparison | None:
    """The comparison before its correction; None where no recording has both scores."""
    pairs = _scorable(rows_a, rows_b, domain, metric)
    scored = []
    for x, y in pairs:
        if x.scores[metric].status == y.scores[metric].status == "ok":
            # The two runs may have read the same audio under different names.
            scored.append((x, replace(y, source=x.source)))
    left = [x for x, _ in scored]
    right = [y for _, y in scored]
    values = metric_by_file(left, metric)
    difference = paired_difference(
        values, metric_by_file(right, metric), speakers_by_file(left), weights_of(values)
    )
    if difference is None:
        return None
    return Comparison(a, b, domain, metric, difference, None, None, len(pairs) - len(scored))


def _scorable(
    rows_a: list[Row], rows_b: list[Row], domain: str, metric: str
) -> list[tuple[Row, Row]]:
    """Pairs of rows on the same audio whose reference can be scored."""
    others = {row.clip_hash: row for row in rows_b if metric in row.scores}
    unique = {row.clip_hash: row for row in rows_a if row.domain == domain and metric in row.scores}
    pairs = [(row, others[key]) for key, row in unique.items() if key in others]
    return [(x, y) for x, y in pairs if x.scores[metric].status != "reference_unscorable"]


def _corrected(
    comparisons: list[Comparison], higher_is_better: dict[str, bool | None]
) -> list[Comparison]:
    """Correct the tests for their number. Metrics that only describe are not tested."""
    tested = []
    for index, comparison in enumerate(comparisons):
        ranks = higher_is_better[comparison.metric] is not None
        if ranks and comparison.difference.p is not None:
            tested.append(index)
    p_values = holm([comparisons[index].difference.p or 0.0 for index in tested])
    for index, p in zip(tested, p_values, strict=True):
        comparison = replace(comparisons[index], p_corrected=p)
        better = _better(comparison, higher_is_better[comparison.metric])
        comparisons[index] = replace(comparison, better=better)
    return comparisons


def _better(comparison: Comparison, higher_is_better: bool | None) -> str | None:
    difference = comparison.difference
    if difference.low is None or difference.high is None:
        return None
    if comparison.p_corrected is None or comparison.p_corrected > SIGNIFICANCE:
        return None
    if difference.low <= 0 <= difference.high:  # the two tests disagree: nothing is shown
        return None
    b_is_higher = difference.mean > 0
    if b_is_higher == higher_is_better:
        return comparison.b
    return comparison.a


def _pairs(a: str, b: str) -> list[tuple[tuple[Results, str], tuple[Results, str]]]:
    left, name_a = _side(a)
    right, name_b = _side(b)
    if name_a and name_b:
        return [((left, name_a), (right, name_b))]
    own_a = [name_a] if name_a else [name for name in left.codecs if not is_anchor(name)]
    own_b = [name_b] if name_b else [name for name in right.codecs if not is_anchor(name)]
    shared = [name for name in own_a if name in own_b]
    if shared:
        return [((left, name), (right, name)) for name in shared]
    if len(own_a) == len(own_b) == 1:
        return [((left, own_a[0]), (right, own_b[0]))]
    raise InputError(
        f"say which codecs to compare, as FOLDER:CODEC; {a} has {', '.join(own_a)}, {b} has "
        f"{', '.join(own_b)}"
    )


def _side(text: str) -> tuple[Results, str | None]:
    """The results that a text names, and the codec, if it names one."""
    if Path(text).is_dir():
        return load_results(text), None
    parts = text.split(":")  # both sides of the colon may have some of their own
    for split in range(len(parts) - 1, 0, -1):
        folder = ":".join(parts[:split])
        codec = ":".join(parts[split:])
        if folder and Path(folder).is_dir():
            break
    else:
        raise InputError(f"there are no results in {text!r}; expected FOLDER or FOLDER:CODEC")
    results = load_results(folder)
    if codec not in results.codecs:
        raise InputError(
            f"there is no codec {codec!r} in {folder}; there are {', '.join(results.codecs)}"
        )
    return results, codec


def _labels(left: Results, a: str, right: Results, b: str) -> tuple[str, str]:
    """Names that differ."""
    if a != b:
        return a, b
    return f"{left.path}:{a}", f"{right.path}:{b}"


_HEADER = (
    "a",
    "b",
    "domain",
    "metric",
    "b − a",
    "95 % interval",
    "p",
    "p, corrected",
    "recordings",
    "clips left out",
    "better",
)


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Return comparisons as a Markdown table."""
    from codecplus.eval.report.markdown import interval, number, sample_size, table

    lines = []
    for comparison in comparisons:
        difference = comparison.difference
        lines.append(
            [
                comparison.a,
                comparison.b,
                comparison.domain,
                comparison.metric,
                number(difference.mean),
                interval(difference.low, difference.high),
                number(difference.p),
                number(comparison.p_corrected),
                sample_size(difference.files, difference.speakers),
                str(comparison.left_out),
                comparison.better or "no difference shown",
            ]
        )
    return table(_HEADER, lines)
