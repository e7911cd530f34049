"""Measured results in cards: a section, a picture and the entries that the Hub reads, from a
results folder of `codecplus eval`.

No figure without its run: results count only if they were measured with the very weights of the
checkpoint, and a section says with which run, on what, and how to repeat it.
"""

from pathlib import Path
from typing import Any

import yaml

from codecplus.errors import InputError
from codecplus.eval.report.markdown import cell, domains, number, table
from codecplus.eval.report.model_repository import eval_result_entries, eval_results, file_name
from codecplus.eval.report.plots import draw_panel, panels_of
from codecplus.eval.results import load_results
from codecplus.hub.pictures import new_figure
from codecplus.system.paths import atomic_path

_METRICS = (
    "pesq_wb",
    "stoi",
    "visqol_speech",
    "visqol_audio",
    "si_sdr",
    "stft_distance",
    "mel_distance",
)
_ARROWS = {True: " ↑", False: " ↓", None: ""}


class Measurements:
    """What one run of `codecplus eval` measured of a checkpoint.

    Args:
        folder: the results folder.
        source: the checkpoint, as users name it.
        name: what the card calls the checkpoint.
        fingerprint: hexadecimal, of the checkpoint's weights.
        shown_domains: domains that the card shows; all that were measured if None.

    Raises InputError for results of other weights, or of none of the domains.
    """

    def __init__(
        self,
        folder: str | Path,
        source: str,
        name: str,
        fingerprint: str,
        shown_domains: list[str] | None,
    ):
        self.run = load_results(folder)
        self.name = name
        self.fingerprint = fingerprint
        self._codecs = self.run.summary["codecs"]
        self._own = self._codecs_with_these_weights(source)
        measured = [domain for domain in domains(self.run) if domain != "all"]
        if shown_domains is not None:
            measured = [domain for domain in measured if domain in shown_domains]
            if not measured:
                raise InputError(
                    f"{self.run.path} has none of the domains {', '.join(shown_domains)} that the "
                    "facts name"
                )
        self._domains = measured

    @property
    def task_file_name(self) -> str:
        """The name of the task as a part of file names."""
        return file_name(self.run.summary["task"]["name"])

    def section(self, picture: str) -> dict[str, str]:
        """Return the section of the card, with a picture that lies at that path."""
        tables = []
        for domain in self._domains:
            heading = ""
            if len(self._domains) > 1:
                heading = f"### {domain.capitalize()}\n\n"
            tables.append(heading + self._table(domain))
        return {
            "summary": self._summary(),
            "picture": picture,
            "tables": "\n\n".join(tables),
            "run": self._provenance(),
        }

    def metadata(self) -> list[Any]:
        """Return the results as entries of the card's metadata."""
        entries = []
        for codec in self._own:
            entries += eval_results(self.run, codec, self._domains)
        return entries

    def write_eval_results(self, folder: Path, dataset_id: str | None) -> set[Path]:
        """Write `.eval_results` into a folder; return the paths written, none without a data set on
        the Hub.
        """
        dataset_id = dataset_id or self.run.summary["task"].get("dataset")
        if not dataset_id:
            return set()
        path = folder / ".eval_results" / f"{self.name}-{self.task_file_name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = []
        for codec in self._own:
            entries += eval_result_entries(self.run, codec, dataset_id)
        with atomic_path(path) as temporary:
            temporary.write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
        return {path}

    def draw(self) -> Any:
        """Return a figure of rate against quality."""
        panels = self._panels()
        if not panels:
            raise InputError(
                f"{self.run.path} has none of the metrics that a card shows: {', '.join(_METRICS)}"
            )
        labels = {codec.split("@")[0]: codec.split("@")[0] for codec in self._others()}
        labels |= {codec.split("@")[0]: self.name for codec in self._own}
        figure = new_figure(len(panels), 3.4)
        axes_row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (domain, metric) in zip(axes_row, panels, strict=True):
            families = panels_of(self.run, metric).get(domain, {})
            shown = {
                labels[family]: points for family, points in families.items() if family in labels
            }
            description = self.run.summary["metrics"][metric]
            better = "higher" if description["higher_is_better"] else "lower"
            draw_panel(axes, shown, description, title=f"{domain}, {better} is better")
            axes.grid(alpha=0.3)
        return figure

    def _panels(self) -> list[tuple[str, str]]:
        """Return up to three metrics of one domain, or one of each and one more of speech."""
        if len(self._domains) == 1:
            domain = self._domains[0]
            metrics = self._metrics(domain)
            return [(domain, metric) for metric in dict.fromkeys([*metrics[:2], *metrics[-1:]])]
        panels = []
        if "speech" in self._domains:
            panels += [("speech", metric) for metric in self._metrics("speech")[:1]]
        for domain in self._domains:
            panels += [(domain, metric) for metric in self._metrics(domain)[-1:]]
        return list(dict.fromkeys(panels))

    def _codecs_with_these_weights(self, source: str) -> list[str]:
        """Return names of codecs in the run, from the highest rate to the lowest."""
        own = []
        others = set()
        for name, codec in self._codecs.items():
            weights = codec["config"].get("model")
            if weights == self.fingerprint:
                own.append(name)
            elif weights is not None:
                others.add(weights)
        if not own:
            raise InputError(
                f"{self.run.path} holds no results of {source}, whose weights are "
                f"{self.fingerprint}; it has those of "
                f"{', '.join(sorted(others)) or 'no checkpoint'}; "
                f"run codecplus eval --model {source} with these weights"
            )
        return sorted(own, key=self._rate, reverse=True)

    def _others(self) -> list[str]:
        """Return codecs to compare with, by name and falling rate; other checkpoints of ours have
        cards of their own.
        """
        others = []
        for name, codec in self._codecs.items():
            if not codec["anchor"] and "model" not in codec["config"]:
                others.append(name)
        return sorted(others, key=lambda name: (name.split("@")[0], -self._rate(name)))

    def _rate(self, codec: str) -> float:
        return self._codecs[codec]["domains"]["all"]["payload_kbps_per_channel"] or 0.0

    def _metrics(self, domain: str) -> list[str]:
        """Return the metrics that a card shows of a domain, those that were measured."""
        described = self.run.summary["metrics"]
        metrics = [metric for metric in _METRICS if metric in described]
        if domain == "unknown":
            return metrics
        return [metric for metric in metrics if domain in described[metric]["domains"]]

    def _summary(self) -> str:
        clips = {}
        for row in self.run.rows:
            if row.codec == self._own[0] and row.domain in self._domains:
                clips[row.source, row.clip] = row.seconds
        recordings = {source for source, _ in clips}
        return (
            f"{len(recordings)} recordings, {sum(clips.values()) / 60:.1f} minutes. Means over "
            "recordings with 95 % bootstrap intervals; rates are measured, all bits of the payload "
            "over all seconds, per channel."
        )

    def _table(self, domain: str) -> str:
        own_parts = [
            self._codecs[codec]["domains"][domain]
            for codec in self._own
            if domain in self._codecs[codec]["domains"]
        ]
        metrics = [
            metric
            for metric in self._metrics(domain)
            if any(metric in part["metrics"] for part in own_parts)
        ]
        rows = []
        for codec in (*self._own, *self._others()):
            part = self._codecs[codec]["domains"].get(domain)
            if part is None:
                continue
            cells = [cell(part["metrics"].get(metric)) for metric in metrics]
            rows.append([self._label(codec), number(part["payload_kbps_per_channel"]), *cells])
        titles = [_title(self.run.summary["metrics"][metric]) for metric in metrics]
        return table(["codec", "kbit/s", *titles], rows)

    def _label(self, codec: str) -> str:
        if codec not in self._own:
            return codec.split("@")[0]
        effort = self._codecs[codec]["config"].get("effort")
        if effort:
            return f"**{self.name}**, effort {effort}"
        return f"**{self.name}**"

    def _provenance(self) -> str:
        """Return which run it was, and how to repeat it."""
        task = self.run.summary["task"]
        provenance = self.run.provenance
        data = f"`{task['name']}`"
        if task.get("dataset"):
            data = f"data set `{task['dataset']}` at `{task.get('revision')}`"
        return (
            f"The run: {provenance['date'][:10]}, codecplus {provenance['versions']['codecplus']}, "
            f"weights `{self.fingerprint[:16]}`, {data}, whose audio has the hash "
            f"`{self.run.clip_set}`. Repeat it with `codecplus eval --model {self.name} "
            "--codec opus --bitrate-per-channel ... --data FOLDER -o results/`."
        )


def _title(metric: dict[str, Any]) -> str:
    title = metric["title"]
    if metric["unit"]:
        title += f" ({metric['unit']})"
    return title + _ARROWS[metric["higher_is_better"]]
