"""Results as Markdown: one table per domain, every failure and everything left out named."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from codecplus.eval.results import Results, Row, signal_warnings


def markdown_report(results: Results, plots: Sequence[str] = (), note: str | None = None) -> str:
    """The whole report; `plots` are paths relative to it, `note` says why there are none."""
    sections = [
        _head(results),
        _warnings(results),
        *(_domain(results, domain) for domain in domains(results)),
        _sets(results),
        _bands(results),
        _plots(plots, note),
        _tokens(results),
        _failures(results),
        _left_out(results),
        _costs(results),
        _metrics(results),
        _provenance(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def domains(results: Results) -> list[str]:
    """Domains that occur; `all` only where there are several."""
    named: list[str] = []
    for codec in results.summary["codecs"].values():
        named += [name for name in codec["domains"] if name != "all" and name not in named]
    if len(named) > 1:
        return [*named, "all"]
    return named


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [header, ["---"] * len(header), *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    texts = ["| " + " | ".join(line) + " |" for line in cells]
    texts[1] = "|" + "|".join(cells[1]) + "|"
    return "\n".join(texts)


def number(value: float | None, digits: int = 3) -> str:
    """A number to so many significant digits, at least whole; a dash for none.

    >>> number(3.14159), number(12345.6), number(None)
    ('3.14', '12346', '–')
    """
    if value is None:
        return "–"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    text = f"{value:.{digits}g}"
    return f"{value:.{digits}f}" if "e" in text else text


def interval(low: float | None, high: float | None) -> str:
    """Return an interval as text; a dash for none.

    >>> interval(-36.8, -3.4), interval(None, None)
    ('[-36.8, -3.4]', '–')
    """
    if low is None or high is None:
        return "–"
    return f"[{number(low)}, {number(high)}]"


def sample_size(files: int, speakers: int | None) -> str:
    """Return how many recordings and speakers a figure rests on.

    >>> sample_size(22, 16), sample_size(22, None)
    ('22 of 16 speakers', '22')
    """
    if speakers is None:
        return str(files)
    return f"{files} of {speakers} speakers"


def cell(entry: dict[str, Any] | None) -> str:
    """Return a mean with its interval and its recordings, and what could not be scored."""
    if not entry:
        return "–"
    text = number(entry.get("mean"))
    if entry.get("mean") is not None:
        if entry.get("low") is not None:
            text += f" {interval(entry['low'], entry['high'])}"
        text += f", n = {sample_size(entry['files'], entry.get('speakers'))}"
    failed = 0
    for status, count in entry["counts"].items():
        if status not in ("ok", "reference_unscorable"):
            failed += count
    if failed:
        text += f" ({failed} failed)"
    return text


def _head(results: Results) -> str:
    task = results.summary["task"]
    data = results.provenance["data"]
    sentences = [
        f"{data['files']} recordings, {data['clips']} clips, {data['seconds'] / 60:.1f} minutes.",
        f"Recordings over {task['segment_seconds']:g} s are cut, "
        f"at most {task['segments_per_file']} segments of each are scored.",
    ]
    unreadable = len({problem["source"] for problem in data["problems"] if problem["fatal"]})
    if unreadable == 1:
        sentences.append("1 more could not be read and is named below.")
    elif unreadable:
        sentences.append(f"{unreadable} more could not be read and are named below.")
    if task.get("dataset"):
        sentences.append(
            f"Data set `{task['dataset']}`, split `{task['split']}`, revision "
            f"`{task.get('revision')}`."
        )
    if task.get("licence"):
        sentences.append(f"Licence: {task['licence']}.")
    return "\n\n".join([f"# Codecs on {task['name']}", " ".join(sentences), _READING])


_READING = (
    "Scores are means over n recordings with 95 % intervals by Student's t, over speakers "
    "where they are known; there is none below five. Bit rates are measured: all bits over all "
    "seconds, of the payload (without container) and of the file, all channels together. "
    "`identity` and `lowpass` are anchors: a perfect copy, and the original without its high "
    "frequencies."
)


def _domain(results: Results, domain: str) -> str:
    present = [
        codec["domains"][domain]
        for codec in results.summary["codecs"].values()
        if domain in codec["domains"]
    ]
    metrics = [
        name
        for name in results.summary["metrics"]
        if any(name in part["metrics"] for part in present) and not name.startswith(_BANDS)
    ]
    header = [
        "codec",
        "payload kbit/s",
        "file kbit/s",
        "failed clips",
        *(_titled(results.summary["metrics"][name]) for name in metrics),
    ]
    rows = []
    for name, codec in results.summary["codecs"].items():
        part = codec["domains"].get(domain)
        if part:
            failed = _failed_clips(results, name, domain)
            cells = [
                number(part["payload_kbps"]),
                number(part["file_kbps"]),
                f"{failed} of {part['clips']}",
            ]
            cells += [cell(part["metrics"].get(metric)) for metric in metrics]
            rows.append([name, *cells])
    return f"## {domain.capitalize()}\n\n{table(header, rows)}"


def _failed_clips(results: Results, codec: str, domain: str) -> int:
    rows = [row for row in results.rows if row.codec == codec and row.status != "ok"]
    if domain != "all":
        rows = [row for row in rows if row.domain == domain]
    return len(rows)


def _sets(results: Results) -> str:
    """Metrics of all recordings of a kind together."""
    described = results.summary.get("set_metrics", {})
    lines = []
    for name, codec in results.summary["codecs"].items():
        for kind, values in codec.get("sets", {}).items():
            for metric, entry in values.items():
                title = described[metric]["title"]
                lines.append([name, kind, title, number(entry["value"]), _basis(entry)])
    if not lines:
        return ""
    header = ["codec", "kind", "metric ↓", "value", "embeddings"]
    sources = " ".join(f"{entry['title']}: {entry['source']}." for entry in described.values())
    return f"## Over all recordings\n\n{sources}\n\n{table(header, lines)}"


def _basis(entry: dict[str, Any]) -> str:
    """Return what a set metric was computed from, or why it has no value."""
    if entry["value"] is None:
        return entry["reason"]
    return f"{entry['embeddings']} embeddings, {entry['clips']} clips"


_BANDS = "band_power_"  # the power of each band: a table of its own


def _bands(results: Results) -> str:
    """The median power of each band, decoded against original, for each kind of audio."""
    names = [
        name
        for name in results.summary["metrics"]
        if name.startswith(_BANDS) and not name.endswith("error")
    ]
    header = ["codec", *(name.removeprefix(_BANDS).replace("_", "–") for name in names)]
    parts = []
    for domain in domains(results):
        lines = _band_lines(results, domain, names)
        if lines and domain != "all":
            parts.append(f"### {domain.capitalize()}\n\n{table(header, lines)}")
    if not parts:
        return ""
    introduction = "dB above the original, the median over recordings; bands in kHz."
    return "\n\n".join(["## Power of each band", introduction, *parts])


def _band_lines(results: Results, domain: str, names: list[str]) -> list[list[str]]:
    """Return each codec that has bands, with the medians of the metrics of that name."""
    lines = []
    for codec, summary in results.summary["codecs"].items():
        metrics = summary["domains"].get(domain, {}).get("metrics", {})
        medians = [metrics.get(name, {}).get("median") for name in names]
        if any(median is not None for median in medians):
            lines.append([codec, *(number(median) for median in medians)])
    return lines


def _titled(metric: dict[str, Any]) -> str:
    """Return the title of a metric with its unit, and an arrow to where it is better."""
    title = metric["title"]
    if metric["unit"]:
        title += f" ({metric['unit']})"
    arrow = {True: " ↑", False: " ↓", None: ""}[metric["higher_is_better"]]
    return title + arrow


def _warnings(results: Results) -> str:
    """A line for each codec whose level or sign is not that of the recordings."""
    lines = []
    for codec in results.codecs:
        if not results.summary["codecs"][codec]["anchor"]:
            rows = [row for row in results.rows if row.codec == codec]
            lines += [f"**Warning: {codec} {text}.**" for text in signal_warnings(rows)]
    return "\n\n".join(lines)


def _plots(plots: Sequence[str], note: str | None) -> str:
    if note:
        return f"## Plots\n\nNone: {note}."
    if not plots:
        return ""
    return "## Rate and distortion\n\n" + "\n".join(f"![{path}]({path})" for path in plots)


def _tokens(results: Results) -> str:
    """What each codec asks of a language model, for those that have codes or a network."""
    lines = []
    for name, codec in results.summary["codecs"].items():
        tokens = codec.get("tokens") or {}
        network = codec.get("complexity") or {}
        if tokens or network:
            measured = codec["domains"]["all"]["payload_kbps_per_channel"]
            lines.append([name, *_token_cells(tokens, network, measured)])
    if not lines:
        return ""
    introduction = (
        "Of one channel, counted. *Nominal*: at whole bits; *entropy*: at the entropy of each "
        "codebook in these recordings, too low where they are few; *measured*: the payload. "
        "Operations are multiplications and additions, of encoder and decoder."
    )
    return f"## Tokens\n\n{introduction}\n\n" + table(["codec", *_TOKEN_COLUMNS], lines)


_TOKEN_COLUMNS = (
    "frames/s",
    "tokens/s",
    "codebooks",
    "entries",
    "nominal kbit/s",
    "entropy kbit/s",
    "measured kbit/s",
    "parameters, millions",
    "operations, 10⁹ per second of audio",
)


def _token_cells(
    tokens: dict[str, Any], network: dict[str, Any], measured: float | None
) -> list[str]:
    """Return the cells of `_TOKEN_COLUMNS`; `measured` is the rate in kbit/s of one channel."""
    return [
        number(tokens.get("frame_rate")),
        number(tokens.get("tokens_per_second")),
        str(tokens.get("codebooks", "–")),
        str(tokens.get("codebook_size", "–")),
        number(tokens.get("nominal_kbps_per_channel")),
        number(tokens.get("entropy_kbps_per_channel")),
        number(measured),
        number(_in(1e6, network.get("parameters"))),
        number(_in(1e9, network.get("operations_per_second"))),
    ]


def _in(unit: float, value: float | None) -> float | None:
    if value is None:
        return None
    return value / unit


def _failures(results: Results) -> str:
    reasons: Counter[tuple[str, str, str]] = Counter()
    for row in results.rows:
        if row.status != "ok":
            reasons[row.codec, "all", f"{row.status}: {row.reason}"] += 1
            continue
        for name, score in row.scores.items():
            if score.status not in ("ok", "reference_unscorable"):
                reasons[row.codec, name, f"{score.status}: {score.reason}"] += 1
    if not reasons:
        return "## Failures\n\nNone."
    rows = [
        [codec, metric, str(count), reason] for (codec, metric, reason), count in reasons.items()
    ]
    return "## Failures\n\n" + table(["codec", "metric", "clips", "reason"], rows)


def _left_out(results: Results) -> str:
    """Problems of the data, and references that no metric can be asked about; the same for every
    codec.
    """
    rows = []
    for problem in results.provenance["data"]["problems"]:
        metrics = "all" if problem["fatal"] else "–"
        rows.append([problem["source"], metrics, problem["reason"]])
    first = results.codecs[0]
    for row in results.rows:
        if row.codec == first:
            for reason, names in _unscorable(row).items():
                rows.append([row.clip, ", ".join(names), reason])
    if not rows:
        return "## Left out\n\nNothing."
    header = ["recording", "metrics", "reason"]
    return (
        "## Left out\n\nDecided on the recordings alone, so the same for every codec.\n\n"
        + table(header, rows)
    )


def _unscorable(row: Row) -> dict[str, list[str]]:
    """Return the metrics that cannot be asked about a reference, by reason."""
    reasons: dict[str, list[str]] = {}
    for name, score in row.scores.items():
        if score.status == "reference_unscorable" and not name.startswith(_BANDS):
            reasons.setdefault(str(score.reason), []).append(name)
    return reasons


def _costs(results: Results) -> str:
    rows = []
    for name, codec in results.summary["codecs"].items():
        cost = results.costs[name]
        rows.append(
            [
                name,
                number(cost["encode_real_time_factor"]),
                number(cost["decode_real_time_factor"]),
                number(_in(2**20, cost["peak_memory_bytes"] or None)),
                number(_in(1e-3, codec["latency_seconds"])),
                *_codebook_cells(codec["codebooks"]),
            ]
        )
    header = [
        "codec",
        "encode × real time",
        "decode × real time",
        "peak memory, MiB",
        "latency, ms",
        "codebooks used",
        "entropy per code, bits",
    ]
    return (
        "## Cost\n\nEach codec works in two processes, one clip at a time. The times are those of "
        "its own calls; memory is that of the larger process.\n\n" + table(header, rows)
    )


def _codebook_cells(codebooks: list[dict[str, float]] | None) -> list[str]:
    """Return the mean share of entries in use, and the entropy of each codebook."""
    if not codebooks:
        return ["–", "–"]
    used = sum(book["used"] for book in codebooks) / len(codebooks)
    return [f"{100 * used:.0f} %", " ".join(number(book["entropy_bits"]) for book in codebooks)]


def _metrics(results: Results) -> str:
    rows = []
    for name, metric in results.summary["metrics"].items():
        rate = "native"
        if metric["sample_rate"]:
            rate = f"{metric['sample_rate']} Hz"
        low, high = (_bound(value) for value in metric["range"])
        domains_of_metric = ", ".join(metric["domains"])
        rows.append([name, f"{low} to {high}", rate, domains_of_metric, metric["source"]])
    return "## Metrics\n\n" + table(["metric", "range", "computed at", "domains", "source"], rows)


def _bound(value: float | None) -> str:
    if value is None:
        return "∞"
    return number(value, 4)


def _provenance(results: Results) -> str:
    known = results.provenance
    hardware = known["hardware"]
    versions = [f"{name} {value}" for name, value in known["versions"].items() if value]
    return (
        f"## Provenance\n\n{known['date']}; {hardware['processor']}, {hardware['cores']} cores, "
        f"{known['device']}; resampler {known['resampler']}; {', '.join(versions)}. "
        "Settings and codecs: `provenance.json`, `summary.json`."
    )
