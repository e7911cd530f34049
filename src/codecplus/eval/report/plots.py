"""Rate–distortion plots: a picture per metric, a panel per domain, a line per codec, intervals as
bars.
"""

from typing import Any

from codecplus.errors import MissingExtraError
from codecplus.eval.results import Results

_TICKS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # kbit/s


def write_plots(results: Results) -> list[str]:
    """Write plots/METRIC.png for every metric that ranks; return their paths relative to the
    folder.

    Nothing is drawn of codecs that all have one rate: the tables say as much.
    """
    if not _has_rates(results):
        return []
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError(
            "plots need the package matplotlib: pip install 'codecplus[eval]'"
        ) from error
    matplotlib.use("Agg")
    paths = []
    for name, metric in results.summary["metrics"].items():
        panels = panels_of(results, name)
        if metric["higher_is_better"] is not None and panels:
            path = results.path / "plots" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            _draw(panels, metric).savefig(path, dpi=110, metadata={"Software": None})
            paths.append(path.relative_to(results.path).as_posix())
    return paths


def _has_rates(results: Results) -> bool:
    """Whether there are codecs of two rates."""
    rates = set()
    for codec in results.summary["codecs"].values():
        if not codec["anchor"]:
            rates.add(codec["domains"]["all"]["payload_kbps_per_channel"])
    return len(rates - {None}) > 1


def panels_of(results: Results, metric: str) -> dict[str, dict[str, list[tuple]]]:
    """domain -> family -> points (kbit/s per channel, mean, low, high); anchors have no rate."""
    from codecplus.eval.report.markdown import domains

    panels: dict[str, dict[str, list[tuple]]] = {}
    for domain in domains(results):
        for name, codec in results.summary["codecs"].items():
            part = codec["domains"].get(domain, {})
            entry = part.get("metrics", {}).get(metric, {})
            if entry.get("mean") is not None and name != "identity":
                rate = None
                if not codec["anchor"]:  # results of older versions have the payload's rate alone
                    payload = part["payload_kbps_per_channel"]
                    rate = part.get("rate_kbps_per_channel", payload)
                point = (rate, entry["mean"], entry["low"], entry["high"])
                panels.setdefault(domain, {}).setdefault(name.split("@")[0], []).append(point)
    return panels


def _draw(panels: dict[str, dict[str, list[tuple]]], metric: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
    for axes, (domain, families) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        draw_panel(axes, families, metric, title=domain)
    return figure


def draw_panel(
    axes: Any, families: dict[str, list[tuple]], metric: dict[str, Any], title: str
) -> None:
    """Draw one domain's lines, as of `panels_of`, into matplotlib axes."""
    for family, points in families.items():
        if points[0][0] is None:
            axes.axhline(points[0][1], linestyle=":", color="gray", linewidth=1)
            axes.annotate(
                family,
                (0.01, points[0][1]),
                xycoords=("axes fraction", "data"),
                fontsize=7,
                color="gray",
            )
            continue
        rates, means, lows, highs = zip(*sorted(points), strict=True)
        below = [
            mean - (mean if low is None else low) for mean, low in zip(means, lows, strict=True)
        ]
        above = [
            (mean if high is None else high) - mean for mean, high in zip(means, highs, strict=True)
        ]
        axes.errorbar(
            rates, means, yerr=[below, above], marker="o", markersize=4, capsize=2, label=family
        )
    axes.set_xscale("log", base=2)
    low, high = axes.get_xlim()
    axes.set_xticks([rate for rate in _TICKS if low <= rate <= high], minor=False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("payload, kbit/s per channel")
    axes.set_ylabel(metric["title"] + (f", {metric['unit']}" if metric["unit"] else ""))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
