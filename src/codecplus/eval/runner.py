"""`run_evaluation`: from a configuration to a results folder.

It runs on one process, or on those of `accelerate launch`.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from codecplus.errors import FileFormatError, InputError, MissingExtraError
from codecplus.eval import stages
from codecplus.eval.audio import RESAMPLER
from codecplus.eval.codecs import (
    CodecAdapter,
    DecodedFolder,
    codec_hash,
    counts_payload,
    is_anchor,
    release_models,
    resolve_codecs,
)
from codecplus.eval.codecs.isolation import CodecProcesses
from codecplus.eval.config import EvaluationConfig, shown_path
from codecplus.eval.metrics import Metric, Score, SetMetric, metrics_by_name, set_metrics_by_name
from codecplus.eval.report import write_report
from codecplus.eval.report.model_repository import file_name
from codecplus.eval.results import (
    COSTS,
    PROVENANCE,
    ROWS,
    SCHEMA,
    SUMMARY,
    Row,
    load_results,
    summarize,
    write_json,
    write_rows,
)
from codecplus.eval.stages import ClipRecord, Prepared, ScoreKeys, Share
from codecplus.eval.store import EncodedClips, Line, Store
from codecplus.eval.tasks import Conditions, Task, load_task
from codecplus.system.devices import available_cores


def run_evaluation(config: EvaluationConfig) -> Path:
    """Evaluate codecs and write the results folder.

    A run that was stopped is continued: what the folder's cache holds is not computed again. Under
    `accelerate launch` every process encodes its share, on a folder that all of them see, and the
    first one scores and writes.

    Args:
        config: what is evaluated, and where the results go.

    Returns:
        The results folder.

    Raises:
        InputError: for settings that cannot be used, data without audio, or a folder that cannot
            be written to or that another run is writing to.
        MissingExtraError: if a metric or a codec needs a package that is not installed.
    """
    team = _Team()
    out = Path(config.out)
    run = _Run.prepare(config, Store(out / "cache"))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the results cannot be written to {out}: {error.strerror}") from error
    if team.rank == 0:
        sole_use = run.store.sole_use()
    else:
        sole_use = nullcontext()
    with sole_use, closing(run.store):
        prepared = run.encode(team)
        if team.rank == 0:
            run.write(out, prepared, run.score(prepared.clips))
        team.wait()
    return out


class _Scores(NamedTuple):
    """The scores of a run: where those of clips are, and those of all recordings together."""

    keys: ScoreKeys
    sets: dict[str, dict[str, dict[str, Any]]]  # codec -> kind of audio -> metric -> value


@dataclass(frozen=True)
class _Run:
    """The data, codecs and metrics of a run, and the store of what was computed."""

    config: EvaluationConfig
    task: Task
    codecs: list[CodecAdapter]  # the identity first
    metrics: list[Metric]
    set_metrics: list[SetMetric]
    store: Store

    @classmethod
    def prepare(cls, config: EvaluationConfig, store: Store) -> "_Run":
        """Find all that a configuration names. Raises as `run_evaluation` does."""
        metrics = metrics_by_name(config.metrics)
        set_metrics = set_metrics_by_name(config.metrics or ())
        task = load_task(
            config.data,
            kinds=config.kinds or None,
            conditions=Conditions.parse(config.conditions),
            limit=config.limit,
            segment_seconds=config.segment_seconds,
            segments_per_file=config.segments_per_file,
        )
        codecs = resolve_codecs(config.codecs, config.bitrates, config.device, config.revision)
        codecs += [DecodedFolder.parse(text) for text in config.decoded]
        _check_names(codecs)
        release_models()
        return cls(config, task, codecs, metrics, set_metrics, store)

    def encode(self, team: "_Team") -> Prepared:
        """Read the clips in the first process, and encode them in all."""
        identity = self.codecs[0]
        progress = self.config.progress and team.rank == 0
        if team.rank == 0:
            prepared = stages.prepare(self.task, self.store, identity, progress)
            team.wait()
        else:
            team.wait()
            prepared = stages.read_prepared(self.task, self.store)
        share = Share(team.rank, team.size)
        with closing(CodecProcesses(self.config.time_limit)) as processes:
            for codec in self.codecs:
                stages.encode(
                    codec,
                    prepared.clips,
                    self.store,
                    identity,
                    progress,
                    share,
                    processes,
                    self.config.retry_failed,
                )
        team.wait()
        if team.size > 1:
            self.store.forget_encoded()
        return prepared

    def score(self, clips: list[ClipRecord]) -> _Scores:
        """Compute the scores that the store lacks."""
        workers = self.config.workers or available_cores()
        progress = self.config.progress
        retry_failed = self.config.retry_failed
        keys = stages.score(
            self.codecs, clips, self.metrics, self.store, workers, progress, retry_failed
        )
        failures = stages.embed(self.codecs, clips, self.set_metrics, self.store, workers, progress)
        sets = stages.set_values(self.codecs, clips, self.set_metrics, self.store, failures)
        return _Scores(keys, sets)

    def write(self, out: Path, prepared: Prepared, scores: _Scores) -> None:
        """Write the results folder."""
        clips = prepared.clips
        rows = build_rows(self.codecs, clips, self.metrics, self.store, scores.keys)
        names = [metric.name for metric in self.metrics]
        counted_here = [codec.name for codec in self.codecs if counts_payload(codec)]
        summary = summarize(rows, names, counted_here)
        costs = {}
        for codec in self.codecs:
            encoded = self.store.encoded(codec_hash(codec))
            summary[codec.name] |= self._describe(codec, clips, scores)
            costs[codec.name] = _cost(encoded, clips)
        write_rows(out / ROWS, rows)
        write_json(
            out / SUMMARY,
            {
                "schema": SCHEMA,
                "task": self.task.describe(),
                "metrics": {metric.name: metric.describe() for metric in self.metrics},
                "set_metrics": {metric.name: metric.describe() for metric in self.set_metrics},
                "codecs": summary,
            },
        )
        write_json(out / COSTS, costs)
        write_json(out / PROVENANCE, _provenance(self.config, self.task, prepared))
        write_report(load_results(out))

    def _describe(
        self, codec: CodecAdapter, clips: list[ClipRecord], scores: _Scores
    ) -> dict[str, Any]:
        """Return what the summary says of a codec beside its scores."""
        key = codec_hash(codec)
        use = _CodeUse.read(key, clips, self.store)
        return {
            "hash": key,
            "config": codec.config(),
            "anchor": is_anchor(codec.name),
            "nominal_kbps_per_channel": getattr(codec, "nominal_kbps", None),
            "latency_seconds": getattr(codec, "latency", None),
            "homepage": getattr(codec, "homepage", None),
            "complexity": self.store.encoded(key).complexity,
            "sets": scores.sets.get(codec.name, {}),
            "tokens": use.tokens() if use else None,
            "lag_ms": _lags(scores.keys, codec.name, clips),
            "codebooks": use.codebooks() if use else None,
        }


def _check_names(codecs: list[CodecAdapter]) -> None:
    counts = Counter(codec.name for codec in codecs)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise InputError(f"two codecs are called {twice[0]!r}; give one of them another name")


# How the launchers of torch and MPI, which `accelerate launch` uses, tell the number of processes.
_WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


class _Team:
    """The processes of `accelerate launch`, or this one alone."""

    def __init__(self) -> None:
        self.rank = 0
        self.size = 1
        self._state = None
        if any(int(os.environ.get(name, "1")) > 1 for name in _WORLD_SIZES):
            try:
                from accelerate import PartialState
            except ImportError as error:
                raise MissingExtraError(
                    "several processes need accelerate: pip install 'codecplus[train]'"
                ) from error
            # Only to count and to wait: gloo does that wherever the codecs run. The others may wait
            # for days while the first one scores.
            self._state = PartialState(cpu=True, timeout=datetime.timedelta(days=14))
            self.rank = self._state.process_index
            self.size = self._state.num_processes

    def wait(self) -> None:
        """Wait until every process is here."""
        if self._state is not None:
            self._state.wait_for_everyone()


# ---- rows


def build_rows(
    codecs: list[CodecAdapter],
    clips: list[ClipRecord],
    metrics: list[Metric],
    store: Store,
    keys: ScoreKeys,
) -> list[Row]:
    """Return rows in the order of codecs and clips, from what the store holds."""
    identity = codecs[0].name
    rows = []
    for codec in codecs:
        key = codec_hash(codec)
        encoded = store.encoded(key).lines
        for clip in clips:
            line = encoded[clip.hash]
            clip_scores = {}
            for metric in metrics:
                if metric.applies_to(clip.kind):
                    reference = keys.score(identity, clip, metric)
                    own = keys.score(codec.name, clip, metric)
                    assert reference is not None, "the identity is always scored"
                    clip_scores[metric.name] = _final_score(line, reference, own)
            rows.append(_row(codec.name, key, clip, line, clip_scores))
    return rows


def _final_score(encoded: Line, reference: Line, own: Line | None) -> Score:
    """The reference decides first, by the identity's score; then the codec; then the metric."""
    if reference["status"] in ("metric_error", "timeout"):  # even a perfect copy has no score
        return Score.failed(reference["status"], reference["reason"])
    if reference["status"] != "ok":
        return Score.failed("reference_unscorable", reference["reason"])
    if encoded["status"] != "ok":
        return Score.failed("codec_failure", encoded["reason"])
    assert own is not None, "what was coded has been scored"
    return Score(own["value"], own["status"], own["reason"], own.get("weight"))


def _row(codec: str, key: str, clip: ClipRecord, line: Line, scores: dict[str, Score]) -> Row:
    coded = line["status"] == "ok"
    return Row(
        codec=codec,
        codec_hash=key,
        clip=clip.id,
        clip_hash=clip.hash,
        source=clip.source,
        kind=clip.kind,
        speaker=clip.speaker,
        seconds=clip.seconds,
        sample_rate=clip.sample_rate,
        channels=clip.channels,
        status=line["status"],
        reason=line["reason"],
        payload_bits=line["bits"] if coded else None,
        file_bits=line["file_bits"] if coded else None,
        scores=scores,
    )


# ---- the results folder


def _lags(keys: ScoreKeys, codec: str, clips: list[ClipRecord]) -> dict[str, float]:
    """The delay of a codec in milliseconds, for each sample rate of the clips."""
    rates = sorted({clip.sample_rate for clip in clips})
    return {str(rate): keys.lag_ms(codec, rate) for rate in rates}


def _cost(encoded: EncodedClips, clips: list[ClipRecord]) -> dict[str, Any]:
    """Real-time factors, audio seconds per second of work, and peak memory."""
    lines = [(clip, encoded.lines[clip.hash]) for clip in clips]
    coded = [(clip, line) for clip, line in lines if line["status"] == "ok"]
    audio_seconds = sum(clip.seconds for clip, _ in coded)
    cost: dict[str, Any] = {"peak_memory_bytes": encoded.peak_memory}
    for stage in ("encode", "decode"):
        spent = sum(line[f"{stage}_seconds"] for _, line in coded)
        factor = None
        if spent:
            factor = audio_seconds / spent
        cost[f"{stage}_real_time_factor"] = factor
    return cost


@dataclass
class _CodeUse:
    """How often each codebook's entries occur, over the distinct clips of a codec."""

    counts: dict[int, Counter[int]] = field(default_factory=dict)  # by codebook
    size: int = 0
    channel_seconds: float = 0.0

    @classmethod
    def read(cls, key: str, clips: list[ClipRecord], store: Store) -> "_CodeUse | None":
        """Count the codes that the store has; None without any."""
        use = cls()
        encoded = store.encoded(key).lines
        for clip in {clip.hash: clip for clip in clips}.values():
            line = encoded[clip.hash]
            path = store.codes_path(key, clip.hash)
            if line["status"] != "ok" or not line.get("codebook_size") or not path.exists():
                continue
            use.size = line["codebook_size"]
            use.channel_seconds += clip.seconds * clip.channels
            for codebook, codes in enumerate(np.load(path)):  # (K, T)
                values, times = np.unique(codes[codes >= 0], return_counts=True)
                occurrences = dict(zip(values.tolist(), times.tolist(), strict=True))
                use.counts.setdefault(codebook, Counter()).update(occurrences)
        return use if use.counts else None

    def codebooks(self) -> list[dict[str, float]]:
        """For each codebook the share of its entries that occur, and the entropy in bits."""
        return [
            {"used": len(counter) / self.size, "entropy_bits": _entropy(counter)}
            for _, counter in sorted(self.counts.items())
        ]

    def tokens(self) -> dict[str, Any]:
        """What a language model would have to predict: tokens of one channel, counted.

        `nominal_kbps_per_channel` is what they take at whole bits. `entropy_kbps_per_channel` is
        what an ideal coder would need that knows how often each entry of each codebook occurs in
        these very recordings; few recordings make it too low.
        """
        totals = {codebook: sum(counter.values()) for codebook, counter in self.counts.items()}
        tokens = sum(totals.values()) / self.channel_seconds
        bits = sum(totals[codebook] * _entropy(self.counts[codebook]) for codebook in totals)
        return {
            "codebooks": len(self.counts),
            "codebook_size": self.size,
            "frame_rate": max(totals.values()) / self.channel_seconds,
            "tokens_per_second": tokens,
            "nominal_kbps_per_channel": tokens * (self.size - 1).bit_length() / 1000,
            "entropy_kbps_per_channel": bits / self.channel_seconds / 1000,
        }


def _entropy(counter: Counter) -> float:
    p = np.array(sorted(counter.values()), dtype=np.float64)
    p /= p.sum()
    return float(-(p * np.log2(p)).sum())


_VERSIONS_OF = (
    "codecplus",
    "numpy",
    "torch",
    "transformers",
    "datasets",
    "soundfile",
    "soxr",
    "av",
    "pesq",
    "pystoi",
    "scipy",
    "torchmetrics",
    "visqol-python",
)


def _provenance(config: EvaluationConfig, task: Task, prepared: Prepared) -> dict[str, Any]:
    clips = prepared.clips
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _VERSIONS_OF:
        versions[name] = _version(name)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": config.command(),
        "settings": {
            **config.as_dict(),
            "out": None,
            "data": shown_path(config.data) if isinstance(config.data, str) else task.name,
            "decoded": [shown_path(text) for text in config.decoded],
        },
        "commit": _commit(),
        "data": {
            "clips": len(clips),
            "files": len({clip.source for clip in clips}),
            "seconds": sum(clip.seconds for clip in clips),
            "problems": [asdict(problem) for problem in prepared.problems],
        },
        "versions": versions,
        "resampler": RESAMPLER,
        "hardware": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": available_cores(),
        },
        "device": config.device or "automatic",
    }


def _commit() -> str | None:
    """The commit of the package's repository, where it runs from one."""
    folder = Path(__file__).resolve().parent
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True
        )
    except OSError:
        return None
    return result.stdout.strip() or None


def load_rerun(path: str | Path, out: str | Path, **changes: Any) -> EvaluationConfig:
    """Return the configuration that repeats a run.

    Args:
        path: the `provenance.json` of the run, or its results folder.
        out: the folder of the new results.
        changes: settings that differ, such as the place of the data.

    Raises:
        InputError: if there is no such file.
        FileFormatError: for a file that holds no settings of a run.
    """
    path = Path(path)
    if path.is_dir():
        path = path / PROVENANCE
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
        return EvaluationConfig.from_dict(settings, out=out, **changes)
    except OSError as error:
        raise InputError(f"there is no {path}; expected the {PROVENANCE} of a run") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, (FileFormatError, InputError)):
            raise
        raise FileFormatError(f"{path} is not the provenance of a run: {error}") from error


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or sys.platform


def run_tasks(config: EvaluationConfig, data: Sequence[str]) -> list[Path]:
    """Evaluate on several data, each in a folder of its own below `config.out`.

    Args:
        config: the settings; its `data` is replaced.
        data: what each task reads.

    Returns:
        The results folders, in the order of the data.

    Raises:
        InputError: if two data would have the same folder.
    """
    names = [file_name(Path(name).stem or name) for name in data]
    if len(set(names)) < len(names):
        raise InputError(
            f"expected data of different names, got {', '.join(data)}; evaluate them apart"
        )
    folders = []
    for name, source in zip(names, data, strict=True):
        folders.append(run_evaluation(replace(config, data=source, out=Path(config.out) / name)))
    return folders
