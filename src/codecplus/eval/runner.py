"""`run_evaluation`: from a configuration to a results folder, on one process or under `accelerate
launch`.
"""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.errors import InputError, MissingExtraError
from codecplus.eval import stages
from codecplus.eval.audio import RESAMPLER
from codecplus.eval.codecs import Codec, codec_hash, is_anchor, resolve_codecs
from codecplus.eval.config import EvaluationConfig
from codecplus.eval.metrics import Metric, Score, metrics_by_name
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
)  # fmt: skip
from codecplus.eval.store import Store
from codecplus.eval.tasks import Problem, Task, load_task


def run_evaluation(config: EvaluationConfig) -> Path:
    """Evaluate codecs and write the results folder, whose path is returned.

    A run that was stopped is continued: what the folder's cache holds is not computed again. Under
    `accelerate launch` every process encodes its share, on a folder that all of them see, and the
    first one scores and writes.
    """
    team = _Team()
    metrics = metrics_by_name(config.metrics)
    task = load_task(
        config.data,
        limit=config.limit,
        segment_seconds=config.segment_seconds,
        segments_per_file=config.segments_per_file,
    )
    codecs = resolve_codecs(config.codecs, config.bitrates, config.device, config.revision)
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the results cannot be written to {out}: {error.strerror}") from error
    store, progress = Store(out / "cache"), config.progress and team.rank == 0
    with store.sole_use() if team.rank == 0 else nullcontext():
        if team.rank == 0:
            stages.prepare(task, store, codecs[0], progress)
        team.wait()
        clips, problems = stages.read_prepared(task, store)
        for codec in codecs:
            stages.encode(codec, clips, store, codecs[0], progress, team.rank, team.size)
        team.wait()
        if team.rank == 0:
            stages.score(
                codecs, clips, metrics, store, config.workers or stages.default_workers(), progress
            )
            _write(out, config, task, codecs, metrics, clips, problems, store)
        team.wait()
    return out


# As torch's and the MPI launchers, which `accelerate launch` uses, tell how many processes there
# are.
_WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


class _Team:
    """The processes of `accelerate launch`, or this one alone."""

    def __init__(self) -> None:
        self.rank, self.size, self._state = 0, 1, None
        if any(int(os.environ.get(name, "1")) > 1 for name in _WORLD_SIZES):
            try:
                from accelerate import PartialState
            except ImportError as error:
                raise MissingExtraError(
                    "several processes need accelerate: pip install codecplus[train]"
                ) from error
            # Only to count and to wait, for which gloo does wherever the codecs run; the others may
            # wait for days while the first scores.
            self._state = PartialState(cpu=True, timeout=datetime.timedelta(days=14))
            self.rank, self.size = self._state.process_index, self._state.num_processes

    def wait(self) -> None:
        """Wait until every process is here."""
        if self._state is not None:
            self._state.wait_for_everyone()


def build_rows(
    codecs: list[Codec], clips: list[stages.ClipRecord], metrics: list[Metric], store: Store
) -> list[Row]:
    """Rows in the order of codecs and clips, from what the store holds."""
    identity = store.scores(codec_hash(codecs[0]))
    rows = []
    for codec in codecs:
        key = codec_hash(codec)
        encoded, scores = store.encoded(key), store.scores(key)
        for clip in clips:
            record = encoded[clip.hash]
            chosen = [metric for metric in metrics if metric.applies_to(clip.kind)]
            found = {
                metric.name: _final_score(record, clip.hash, metric, scores, identity)
                for metric in chosen
            }
            rows.append(_row(codec.name, key, clip, record, found))
    return rows


def _final_score(record: dict, clip: str, metric: Metric, scores: dict, identity: dict) -> Score:
    """The reference decides first, on the identity's score alone; then the codec; then the metric."""
    own = identity[clip, metric.identity]
    if own["status"] != "ok":
        return Score.failed("reference_unscorable", own["reason"])
    if record["status"] != "ok":
        return Score.failed("codec_failure", record["reason"])
    line = scores[clip, metric.identity]
    return Score(line["value"], line["status"], line["reason"])


def _row(
    codec: str, key: str, clip: stages.ClipRecord, record: dict, scores: dict[str, Score]
) -> Row:
    coded = record["status"] == "ok"
    return Row(
        codec=codec, codec_hash=key, clip=clip.id, clip_hash=clip.hash, source=clip.source, kind=clip.kind,
        speaker=clip.speaker, seconds=clip.seconds, sample_rate=clip.sample_rate, channels=clip.channels,
        status=record["status"], reason=record["reason"], payload_bits=record["bits"] if coded else None,
        file_bits=record["file_bits"] if coded else None, scores=scores,
    )  # fmt: skip


def _write(
    out: Path,
    config: EvaluationConfig,
    task: Task,
    codecs: list[Codec],
    metrics: list[Metric],
    clips: list[stages.ClipRecord],
    problems: list[Problem],
    store: Store,
) -> None:
    from codecplus.eval.report import write_report

    rows = build_rows(codecs, clips, metrics, store)
    summary = summarize(rows, [metric.name for metric in metrics])
    for codec in codecs:
        summary[codec.name].update(
            hash=codec_hash(codec),
            config=codec.config(),
            anchor=is_anchor(codec.name),
            nominal_kbps_per_channel=getattr(codec, "nominal_kbps", None),
            latency_seconds=getattr(codec, "latency", None),
            codebooks=_codebook_use(codec_hash(codec), clips, store),
        )
    write_rows(out / ROWS, rows)
    described = {metric.name: metric.describe() for metric in metrics}
    write_json(
        out / SUMMARY,
        {"schema": SCHEMA, "task": task.describe(), "metrics": described, "codecs": summary},
    )
    write_json(
        out / COSTS, {codec.name: _cost(codec_hash(codec), clips, store) for codec in codecs}
    )
    write_json(out / PROVENANCE, _provenance(config, task, problems, clips))
    write_report(load_results(out))


def _cost(key: str, clips: list[stages.ClipRecord], store: Store) -> dict[str, Any]:
    """Real-time factors, audio seconds per second of work, and peak memory."""
    encoded = store.encoded(key)
    timed = [(clip, encoded[clip.hash]) for clip in clips if encoded[clip.hash]["status"] == "ok"]
    audio = sum(clip.seconds for clip, _ in timed)
    result: dict[str, Any] = {"peak_memory_bytes": store.peak_memory(key)}
    for stage in ("encode", "decode"):
        spent = sum(record[f"{stage}_seconds"] for _, record in timed)
        result[f"{stage}_real_time_factor"] = audio / spent if spent else None
    return result


def _codebook_use(
    key: str, clips: list[stages.ClipRecord], store: Store
) -> list[dict[str, float]] | None:
    """For each codebook the share of its entries that occur, and the entropy of the codes in bits."""
    counts: dict[int, Counter] = {}
    encoded, size = store.encoded(key), 0
    for hashed in {clip.hash for clip in clips}:
        path = store.codes_path(key, hashed)
        if (
            encoded[hashed]["status"] == "ok"
            and encoded[hashed].get("codebook_size")
            and path.exists()
        ):
            size = encoded[hashed]["codebook_size"]
            for book, codes in enumerate(np.load(path)):  # (K, T)
                values, times = np.unique(codes, return_counts=True)
                counts.setdefault(book, Counter()).update(
                    dict(zip(values.tolist(), times.tolist(), strict=True))
                )
    if not counts:
        return None
    return [
        {"used": len(counter) / size, "entropy_bits": _entropy(counter)}
        for _, counter in sorted(counts.items())
    ]


def _entropy(counter: Counter) -> float:
    p = np.array(sorted(counter.values()), dtype=np.float64)
    p /= p.sum()
    return float(-(p * np.log2(p)).sum())


def _provenance(
    config: EvaluationConfig, task: Task, problems: list[Problem], clips: list[stages.ClipRecord]
) -> dict[str, Any]:
    names = ("codecplus", "numpy", "torch", "transformers", "datasets", "soundfile", "soxr", "av", "pesq", "pystoi",
             "torchmetrics", "visqol-python")  # fmt: skip
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "settings": {**config.as_dict(), "out": None, "data": task.name},
        "data": {
            "clips": len(clips),
            "files": len({clip.source for clip in clips}),
            "seconds": sum(clip.seconds for clip in clips),
            "problems": [asdict(problem) for problem in problems],
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in names},
        },
        "resampler": RESAMPLER,
        "hardware": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": stages.default_workers(),
        },
        "device": config.device or "automatic",
    }


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
