"""Measured results in cards: a section, a picture and entries for the Hub.

They come from a results folder of `codecplus eval`, and only from results of the checkpoint's own
weights. Every section names its run and data, and the command that repeats it.
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
        self._domains = self._shown_domains(shown_domains)

    def _shown_domains(self, wanted: list[str] | None) -> list[str]:
        """Return the measured domains that are wanted. Raises InputError if there is none."""
        shown = []
        for domain in domains(self.run):
            if domain != "all" and (wanted is None or domain in wanted):
                shown.append(domain)
        if wanted is not None and not shown:
            raise InputError(
                f"{self.run.path} has none of the domains {', '.join(wanted)} that the facts name"
            )
        return shown

    @property
    def task_file_name(self) -> str:
        """The name of the task as a part of file names."""
        return file_name(self.run.summary["task"]["name"])

    def section(self, picture: str) -> dict[str, str]:
        """Return the section of the card; `picture` is the path of its picture."""
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
        """Write `.eval_results` into a folder, and return the paths.

        Without a data set on the Hub nothing is written.
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
        labels = self._labels_by_family()
        figure = new_figure(len(panels), 3.4)
        axes_row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (domain, metric) in zip(axes_row, panels, strict=True):
            shown = {}
            for family, points in panels_of(self.run, metric).get(domain, {}).items():
                if family in labels:
                    shown[labels[family]] = points
            description = self.run.summary["metrics"][metric]
            better = "lower"
            if description["higher_is_better"]:
                better = "higher"
            draw_panel(axes, shown, description, title=f"{domain}, {better} is better")
            axes.grid(alpha=0.3)
        return figure

    def _labels_by_family(self) -> dict[str, str]:
        """Return the labels of lines in pictures by codec name without rate."""
        labels = {}
        for codec in self._others():
            labels[_family(codec)] = _family(codec)
        for codec in self._own:
            labels[_family(codec)] = self.name
        return labels

    def _panels(self) -> list[tuple[str, str]]:
        """Return the domain and metric of each panel.

        Of a single domain they are up to three metrics, of several one each and one more of speech.
        """
        panels: list[tuple[str, str]] = []
        if len(self._domains) == 1:
            domain = self._domains[0]
            metrics = self._metrics(domain)
            for metric in (*metrics[:2], *metrics[-1:]):
                panels.append((domain, metric))
        else:
            if "speech" in self._domains:
                for metric in self._metrics("speech")[:1]:
                    panels.append(("speech", metric))
            for domain in self._domains:
                for metric in self._metrics(domain)[-1:]:
                    panels.append((domain, metric))
        return list(dict.fromkeys(panels))  # each once

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
        """Return codecs to compare with, by name and falling rate.

        Other checkpoints are not among them: they have cards of their own.
        """
        others = []
        for name, codec in self._codecs.items():
            if not codec["anchor"] and "model" not in codec["config"]:
                others.append(name)
        return sorted(others, key=lambda name: (_family(name), -self._rate(name)))

    def _rate(self, codec: str) -> float:
        return self._codecs[codec]["domains"]["all"]["payload_kbps_per_channel"] or 0.0

    def _metrics(self, domain: str) -> list[str]:
        """Return the metrics that a card shows of a domain and that were measured."""
        measured = self.run.summary["metrics"]
        metrics = []
        for metric in _METRICS:
            if metric not in measured:
                continue
            if domain == "unknown" or domain in measured[metric]["domains"]:
                metrics.append(metric)
        return metrics

    def _summary(self) -> str:
        clips = {}
        for row in self.run.rows:
            if row.codec == self._own[0] and row.domain in self._domains:
                clips[row.source, row.clip] = row.seconds
        recordings = {source for source, _ in clips}
        return (
            f"{len(recordings)} recordings, {sum(clips.values()) / 60:.1f} minutes. Means over "
            "recordings with 95 % intervals; rates are measured, all bits of the payload "
            "over all seconds, per channel."
        )

    def _table(self, domain: str) -> str:
        scored: set[str] = set()  # metrics that this checkpoint has here
        for codec in self._own:
            scored |= self._codecs[codec]["domains"].get(domain, {"metrics": {}})["metrics"].keys()
        metrics = [metric for metric in self._metrics(domain) if metric in scored]
        rows = []
        for codec in (*self._own, *self._others()):
            results = self._codecs[codec]["domains"].get(domain)
            if results is None:
                continue
            cells = [cell(results["metrics"].get(metric)) for metric in metrics]
            rows.append([self._label(codec), number(results["payload_kbps_per_channel"]), *cells])
        titles = [_title(self.run.summary["metrics"][metric]) for metric in metrics]
        return table(["codec", "kbit/s", *titles], rows)

    def _label(self, codec: str) -> str:
        if codec not in self._own:
            return _family(codec)
        config = self._codecs[codec]["config"]
        label = f"**{self.name}**"
        if config.get("rate_control") == "abr":
            label += ", average rate"
        if config.get("effort"):
            label += f", effort {config['effort']}"
        return label

    def _provenance(self) -> str:
        """Return a text that names the run, its data, and the command that repeats it."""
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


def _family(codec: str) -> str:
    """Return the name of a codec without its rate."""
    return codec.split("@")[0]


def _title(metric: dict[str, Any]) -> str:
    title = metric["title"]
    if metric["unit"]:
        title += f" ({metric['unit']})"
    return title + _ARROWS[metric["higher_is_better"]]
