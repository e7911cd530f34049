"""Results as Markdown: one table per domain, every failure and everything left out named."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from codecplus.eval.results import Results, signal_warnings


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
    found = list(
        dict.fromkeys(
            name for codec in results.summary["codecs"].values() for name in codec["domains"]
        )
    )
    named = [name for name in found if name != "all"]
    return [*named, "all"] if len(named) > 1 else named


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [header, ["---"] * len(header), *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(
        "|" + "|".join(line) + "|" if i == 1 else "| " + " | ".join(line) + " |"
        for i, line in enumerate(cells)
    )


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
    task, data = results.summary["task"], results.provenance["data"]
    text = (
        f"# Codecs on {task['name']}\n\n{data['files']} recordings, {data['clips']} clips, "
        f"{data['seconds'] / 60:.1f} minutes. Recordings over {task['segment_seconds']:g} s are "
        "cut, "
        f"at most {task['segments_per_file']} segments of each are scored."
    )
    if unread := len({problem["source"] for problem in data["problems"] if problem["fatal"]}):
        text += (
            f" {unread} more could not be read and {'is' if unread == 1 else 'are'} named below."
        )
    if task.get("dataset"):
        text += (
            f" Data set `{task['dataset']}`, split `{task['split']}`, revision "
            f"`{task.get('revision')}`."
        )
    if task.get("licence"):
        text += f" Licence: {task['licence']}."
    return text + (
        "\n\nScores are means over n recordings with 95 % intervals by Student's t, over speakers "
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
            failed = sum(
                row.codec == name and row.status != "ok" and domain in ("all", row.domain)
                for row in results.rows
            )
            rates = [
                number(part["payload_kbps"]),
                number(part["file_kbps"]),
                f"{failed} of {part['clips']}",
            ]
            rows.append([name, *rates, *(cell(part["metrics"].get(metric)) for metric in metrics)])
    return f"## {domain.capitalize()}\n\n{table(header, rows)}"


def _sets(results: Results) -> str:
    """Metrics of all recordings of a kind together."""
    described = results.summary.get("set_metrics", {})
    lines = []
    for name, codec in results.summary["codecs"].items():
        for kind, values in codec.get("sets", {}).items():
            for metric, entry in values.items():
                if entry["value"] is None:
                    text = entry["reason"]
                else:
                    text = f"{entry['embeddings']} of {entry['clips']} clips"
                lines.append([name, kind, described[metric]["title"], number(entry["value"]), text])
    if not lines:
        return ""
    header = ["codec", "kind", "metric ↓", "value", "embeddings"]
    sources = " ".join(f"{entry['title']}: {entry['source']}." for entry in described.values())
    return f"## Over all recordings\n\n{sources}\n\n{table(header, lines)}"


_BANDS = "band_power_"  # the power of each band: a table of its own


def _bands(results: Results) -> str:
    """The median power of each band, decoded against original, for each kind of audio."""
    names = [name for name in results.summary["metrics"] if name.startswith(_BANDS)]
    names = [name for name in names if not name.endswith("error")]
    parts = []
    for domain in domains(results):
        lines = []
        for codec, summary in results.summary["codecs"].items():
            metrics = summary["domains"].get(domain, {}).get("metrics", {})
            medians = [metrics.get(name, {}).get("median") for name in names]
            if any(median is not None for median in medians):
                lines.append([codec, *map(number, medians)])
        if lines and domain != "all":
            header = [name.removeprefix(_BANDS).replace("_", "–") for name in names]
            parts.append(f"### {domain.capitalize()}\n\n{table(['codec', *header], lines)}")
    if not parts:
        return ""
    introduction = "dB above the original, the median over recordings; bands in kHz."
    return "\n\n".join(["## Power of each band", introduction, *parts])


def _titled(metric: dict[str, Any]) -> str:
    arrow = {True: " ↑", False: " ↓", None: ""}[metric["higher_is_better"]]
    return metric["title"] + (f" ({metric['unit']})" if metric["unit"] else "") + arrow


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
    return (
        "## Rate and distortion\n\n" + "\n".join(f"![{path}]({path})" for path in plots)
        if plots
        else ""
    )


def _tokens(results: Results) -> str:
    """What each codec asks of a language model, for those that have codes or a network."""
    lines = []
    for name, codec in results.summary["codecs"].items():
        tokens = codec.get("tokens") or {}
        network = codec.get("complexity") or {}
        if not tokens and not network:
            continue
        measured = codec["domains"]["all"]["payload_kbps_per_channel"]
        lines.append(
            [
                name,
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
        )
    if not lines:
        return ""
    header = [
        "codec",
        "frames/s",
        "tokens/s",
        "codebooks",
        "entries",
        "nominal kbit/s",
        "entropy kbit/s",
        "measured kbit/s",
        "parameters, millions",
        "operations, 10⁹ per second of audio",
    ]
    introduction = (
        "Of one channel, counted. *Nominal*: at whole bits; *entropy*: at the entropy of each "
        "codebook in these recordings, too low where they are few; *measured*: the payload. "
        "Operations are multiplications and additions, of encoder and decoder."
    )
    return f"## Tokens\n\n{introduction}\n\n" + table(header, lines)


def _in(unit: float, value: float | None) -> float | None:
    return None if value is None else value / unit


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
    rows = [
        [p["source"], "–" if not p["fatal"] else "all", p["reason"]]
        for p in results.provenance["data"]["problems"]
    ]
    first = results.codecs[0]
    for row in results.rows:
        if row.codec == first:
            reasons: dict[str, list[str]] = {}
            for name, score in row.scores.items():
                if score.status == "reference_unscorable" and not name.startswith(_BANDS):
                    reasons.setdefault(str(score.reason), []).append(name)
            rows += [[row.clip, ", ".join(names), reason] for reason, names in reasons.items()]
    if not rows:
        return "## Left out\n\nNothing."
    header = ["recording", "metrics", "reason"]
    return (
        "## Left out\n\nDecided on the recordings alone, so the same for every codec.\n\n"
        + table(header, rows)
    )


def _costs(results: Results) -> str:
    rows = []
    for name, codec in results.summary["codecs"].items():
        cost, books = results.costs[name], codec["codebooks"]
        memory, latency = cost["peak_memory_bytes"], codec["latency_seconds"]
        used = sum(book["used"] for book in books) / len(books) if books else None
        rows.append(
            [
                name,
                number(cost["encode_real_time_factor"]),
                number(cost["decode_real_time_factor"]),
                number(memory / 2**20) if memory else "–",
                number(latency * 1000) if latency is not None else "–",
                f"{100 * used:.0f} %" if used is not None else "–",
                " ".join(number(book["entropy_bits"]) for book in books) if books else "–",
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
        "## Cost\n\nMeasured in this process, one clip at a time; memory is that of the whole "
        "process.\n\n" + table(header, rows)
    )


def _metrics(results: Results) -> str:
    rows = []
    for name, metric in results.summary["metrics"].items():
        rate = f"{metric['sample_rate']} Hz" if metric["sample_rate"] else "native"
        low, high = (number(value, 4) if value is not None else "∞" for value in metric["range"])
        rows.append(
            [name, f"{low} to {high}", rate, ", ".join(metric["domains"]), metric["source"]]
        )
    return "## Metrics\n\n" + table(["metric", "range", "computed at", "domains", "source"], rows)


def _provenance(results: Results) -> str:
    p = results.provenance
    versions = ", ".join(f"{name} {value}" for name, value in p["versions"].items() if value)
    return (
        f"## Provenance\n\n{p['date']}; {p['hardware']['processor']}, {p['hardware']['cores']} "
        f"cores, {p['device']}; "
        f"resampler {p['resampler']}; {versions}. Settings and codecs: `provenance.json`, "
        "`summary.json`."
    )
