"""Which of two codecs is better, by paired bootstrap on the clips that both have scores for."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from codecplus.errors import InputError
from codecplus.eval.codecs.anchors import is_anchor
from codecplus.eval.metrics import METRICS
from codecplus.eval.results import Results, Row, load_results, metric_by_file
from codecplus.eval.statistics import Difference, paired_difference


@dataclass(frozen=True)
class Comparison:
    """How codec b differs from codec a in one metric and domain."""

    a: str
    b: str
    domain: str
    metric: str
    difference: Difference  # b − a
    better: (
        str | None
    )  # the codec whose advantage interval and p confirm; None: no difference is shown
    left_out: int  # clips that either of them has no score for, though the reference allows one

    def as_dict(self) -> dict:
        """Plain data."""
        return asdict(self)


def compare(a: str | Path, b: str | Path, metrics: Sequence[str] | None = None) -> list[Comparison]:
    """Compare codecs of two results; `FOLDER` or `FOLDER:CODEC` names each side.

    Without a codec's name every codec that both have is compared with itself, as after a change; if
    they share none and each has one, these two. Domains are compared apart, and only clips of equal
    audio are paired.
    """
    found = []
    for (left, name_a), (right, name_b) in _pairs(str(a), str(b)):
        rows_a = [row for row in left.rows if row.codec == name_a]
        rows_b = [row for row in right.rows if row.codec == name_b]
        chosen = [
            m
            for m in left.summary["metrics"]
            if m in right.summary["metrics"] and (not metrics or m in metrics)
        ]
        _check_versions(left, right, chosen)
        for domain in sorted({row.domain for row in rows_a}):
            for metric in chosen:
                label_a, label_b = _labels(left, name_a, right, name_b)
                result = _compare_rows(rows_a, rows_b, domain, metric, label_a, label_b)
                if result:
                    found.append(result)
    if not found:
        raise InputError(f"{a} and {b} have no clip with a score of the same metric in common")
    return found


def _check_versions(left: Results, right: Results, metrics: list[str]) -> None:
    for metric in metrics:
        a, b = (results.summary["metrics"][metric]["identity"] for results in (left, right))
        if a != b:
            raise InputError(
                f"{left.path} has scores of {a} and {right.path} of {b}, which do not compare; "
                "evaluate the older one "
                "again, or name other metrics"
            )


def _compare_rows(
    rows_a: list[Row], rows_b: list[Row], domain: str, metric: str, a: str, b: str
) -> Comparison | None:
    pairs = _scorable(rows_a, rows_b, domain, metric)
    both = {
        x.clip_hash for x, y in pairs if x.scores[metric].status == y.scores[metric].status == "ok"
    }
    left = metric_by_file((x for x, _ in pairs if x.clip_hash in both), metric)
    # Files are matched by the audio they hold: the two runs may have read it under different names.
    names = {y.clip_hash: x.source for x, y in pairs}
    right: dict[str, list[float]] = {}
    for _, y in pairs:
        value = y.scores[metric].value
        if y.clip_hash in both and value is not None:
            right.setdefault(names[y.clip_hash], []).append(value)
    difference = paired_difference(left, {source: sum(v) / len(v) for source, v in right.items()})
    if difference is None:
        return None
    return Comparison(
        a, b, domain, metric, difference, _better(difference, metric, a, b), len(pairs) - len(both)
    )


def _scorable(
    rows_a: list[Row], rows_b: list[Row], domain: str, metric: str
) -> list[tuple[Row, Row]]:
    """Pairs of rows on the same audio whose reference can be scored."""
    others = {row.clip_hash: row for row in rows_b if metric in row.scores}
    unique = {row.clip_hash: row for row in rows_a if row.domain == domain and metric in row.scores}
    pairs = [(row, others[key]) for key, row in unique.items() if key in others]
    return [(x, y) for x, y in pairs if x.scores[metric].status != "reference_unscorable"]


def _better(difference: Difference, metric: str, a: str, b: str) -> str | None:
    direction = METRICS[metric].higher_is_better
    if direction is None or difference.low is None or difference.high is None:
        return None
    if (
        difference.p is None or difference.p > 0.05
    ):  # too few recordings, whatever the interval says
        return None
    if difference.low > 0:
        return b if direction else a
    if difference.high < 0:
        return a if direction else b
    return None


def _pairs(a: str, b: str) -> list[tuple[tuple[Results, str], tuple[Results, str]]]:
    (left, name_a), (right, name_b) = _side(a), _side(b)
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
    if Path(text).is_dir():
        return load_results(text), None
    parts = text.split(":")  # both sides of the colon may have some of their own
    pairs = [(":".join(parts[:i]), ":".join(parts[i:])) for i in range(len(parts) - 1, 0, -1)]
    folder, codec = next(((f, c) for f, c in pairs if f and Path(f).is_dir()), ("", ""))
    if not folder:
        raise InputError(f"there are no results in {text!r}; expected FOLDER or FOLDER:CODEC")
    results = load_results(folder)
    if codec not in results.codecs:
        raise InputError(
            f"there is no codec {codec!r} in {folder}; there are {', '.join(results.codecs)}"
        )
    return results, codec


def _labels(left: Results, a: str, right: Results, b: str) -> tuple[str, str]:
    """Names that differ."""
    return (a, b) if a != b else (f"{left.path}:{a}", f"{right.path}:{b}")


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Comparisons as a Markdown table."""
    from codecplus.eval.report.markdown import number, table

    rows = []
    for c in comparisons:
        d = c.difference
        interval = f"[{number(d.low)}, {number(d.high)}]" if d.low is not None else "–"
        rows.append(
            [
                c.a,
                c.b,
                c.domain,
                c.metric,
                number(d.mean),
                interval,
                "–" if d.p is None else f"{d.p:.3g}",
                str(d.files),
                str(c.left_out),
                c.better or "no difference shown",
            ]
        )
    header = [
        "a",
        "b",
        "domain",
        "metric",
        "b − a",
        "95 % interval",
        "p",
        "recordings",
        "clips left out",
        "better",
    ]
    return table(header, rows)
