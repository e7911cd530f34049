"""The three stages of a run: read the clips, encode and decode them, score them.

Each stage goes on from what the store has, and no stage knows what the others are for: encoding
reads references and leaves audio, scoring reads audio and leaves numbers. So a new metric does not
encode again, and a new codec does not touch the scores of the others.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.errors import CodecPlusError, InputError
from codecplus.eval.codecs import CodecAdapter, DecodedFolder, Original, codec_hash, is_anchor
from codecplus.eval.codecs.isolation import CodecFailed, CodecProcesses, Loss, RoundTrip
from codecplus.eval.metrics import (
    METRICS,
    Metric,
    Score,
    SetMetric,
    frechet_distance,
    output_problem,
)
from codecplus.eval.metrics.embedding import EmbeddingFailed, embed_in, embedding_worker
from codecplus.eval.metrics.worker import Estimates, score_in, scoring_worker
from codecplus.eval.store import Line, Store
from codecplus.eval.tasks import Clip, Problem, Task
from codecplus.system.progress import progress_bar
from codecplus.system.workers import Reserve, Worker, WorkerPool


@dataclass(frozen=True)
class ClipRecord:
    """What the later stages need to know of a clip; its audio lies in the store."""

    id: str
    hash: str
    source: str
    start: float
    kind: str | None
    speaker: str | None
    samples: int
    sample_rate: int
    channels: int
    loss: float | None = None

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.samples / self.sample_rate


@dataclass(frozen=True)
class Prepared:
    """The clips of a task, whose audio lies in the store, and its problems."""

    clips: list[ClipRecord]
    problems: list[Problem]


# ---- reading


def prepare(task: Task, store: Store, identity: CodecAdapter, progress: bool) -> Prepared:
    """Read every clip of a task once and keep it as the reference.

    A task that was read before is not read again.

    Raises:
        InputError: if the task has no clip at all.
    """
    fingerprint = task.fingerprint()
    lines = store.clips(fingerprint)
    if not any(line.get("complete") for line in lines):
        store.forget_clips(fingerprint)
        lines = []
        reference = codec_hash(identity)
        for item in progress_bar(task, shown=progress, desc="read", unit="clip"):
            if isinstance(item, Problem):
                line: Line = {"problem": asdict(item)}
            else:
                record = _record(item)
                store.save(store.audio_path(reference, record.hash), item.audio)
                line = {"clip": asdict(record)}
            store.add_clip(fingerprint, line)
            lines.append(line)
        store.add_clip(fingerprint, {"complete": True})
    return _prepared(task, lines)


def read_prepared(task: Task, store: Store) -> Prepared:
    """Return what another process has prepared; InputError when the task has no clip at all."""
    return _prepared(task, store.clips(task.fingerprint()))


def _prepared(task: Task, lines: list[Line]) -> Prepared:
    clips = [ClipRecord(**line["clip"]) for line in lines if "clip" in line]
    problems = [Problem(**line["problem"]) for line in lines if "problem" in line]
    if not clips:
        reasons = "; ".join(f"{problem.source}: {problem.reason}" for problem in problems[:3])
        raise InputError(f"the data {task.name!r} holds no audio that can be read ({reasons})")
    return Prepared(clips, problems)


def _record(clip: Clip) -> ClipRecord:
    channels, samples = clip.audio.shape
    return ClipRecord(
        id=clip.id,
        hash=clip.hash,
        source=clip.source,
        start=clip.start,
        kind=clip.kind,
        speaker=clip.speaker,
        samples=samples,
        sample_rate=clip.sample_rate,
        channels=channels,
        loss=clip.loss,
    )


# ---- encoding


@dataclass(frozen=True)
class Share:
    """Which part of the clips this process encodes: every `size`-th, from the `rank`-th on."""

    rank: int = 0
    size: int = 1


_GIVE_UP_AFTER = 3  # clips in a row on which a codec ran out of time


def encode(
    codec: CodecAdapter,
    clips: list[ClipRecord],
    store: Store,
    identity: CodecAdapter,
    progress: bool,
    share: Share,
    processes: CodecProcesses,
    retry_failed: bool = False,
) -> None:
    """Encode and decode this process's share of the clips; what fails is noted with its reason.

    Args:
        codec: the codec.
        clips: all clips of the run.
        store: where results are kept.
        identity: the codec whose audio is the reference.
        progress: show a bar.
        share: which clips are this process's.
        processes: where the codec runs.
        retry_failed: try again what has failed before.
    """
    key = codec_hash(codec)
    known = store.encoded(key).lines
    todo = []
    for clip in list(_unique(clips))[share.rank :: share.size]:
        line = known.get(clip.hash)
        if line is None or (retry_failed and line["status"] != "ok"):
            todo.append(clip)
    if not todo:
        return
    reference_key = codec_hash(identity)
    processes.reset_peak_memory()
    out_of_time = 0
    for clip in progress_bar(todo, shown=progress, desc=f"encode {codec.name}", unit="clip"):
        if out_of_time >= _GIVE_UP_AFTER:
            reason = f"not tried: it ran out of time on {out_of_time} clips in a row"
            outcome = _failure(reason, passing=True)
        else:
            reference = np.load(store.audio_path(reference_key, clip.hash))
            outcome = _outcome(codec, clip, reference, processes)
            timed_out = str(outcome.line["reason"]).startswith("no answer within")
            if timed_out:
                out_of_time += 1
            else:
                out_of_time = 0
        if outcome.audio is not None:
            store.save(store.audio_path(key, clip.hash), outcome.audio)
        if outcome.codes is not None:
            store.save(store.codes_path(key, clip.hash), outcome.codes)
        store.add_encoded(key, share.rank, {"clip": clip.hash, **outcome.line})
    costs = {"peak_memory": processes.peak_memory, "complexity": processes.complexity(codec)}
    store.add_encoded(key, share.rank, costs)


@dataclass(frozen=True)
class _Outcome:
    """The journal's line for one clip, its audio (C, S) and its codes (K, T), if there are any."""

    line: Line
    audio: np.ndarray | None = None
    codes: np.ndarray | None = None


def _failure(reason: str, passing: bool = False, **known: Any) -> _Outcome:
    line: Line = {"status": "codec_failure", "codebook_size": None, **known, "reason": reason}
    if passing:
        line["passing"] = True
    return _Outcome(line)


def _outcome(
    codec: CodecAdapter, clip: ClipRecord, reference: np.ndarray, processes: CodecProcesses
) -> _Outcome:
    """Encode and decode one clip, or take the audio that was decoded elsewhere."""
    if isinstance(codec, DecodedFolder):
        return _decoded_elsewhere(codec, clip, reference)
    try:
        if is_anchor(codec.name):  # the harness's own: no process is needed
            result = _round_trip_here(codec, reference, clip.sample_rate)
        else:
            result = processes.round_trip(codec, reference, clip.sample_rate, _loss(clip))
    except CodecFailed as error:
        return _failure(str(error), error.passing)
    measured = {
        "encode_seconds": result.encode_seconds,
        "decode_seconds": result.decode_seconds,
        "bits": result.bits,
        "file_bits": result.file_bits,
        "codebook_size": result.codebook_size,
    }
    if not 0 < result.bits <= result.file_bits:
        reason = f"claims {result.bits} bits for a payload of {result.file_bits} bits"
        return _failure(reason, **measured)
    problem = output_problem(reference, result.audio)
    if problem:
        return _failure(problem, **measured)
    line = {"status": "ok", "reason": None, **measured}
    return _Outcome(line, result.audio, result.codes)


def _loss(clip: ClipRecord) -> Loss | None:
    """Which packets are lost: the same ones for every codec with as many packets."""
    if clip.loss is None:
        return None
    return Loss(clip.loss / 100, seed=int(clip.hash, 16))


def _round_trip_here(codec: CodecAdapter, reference: np.ndarray, rate: int) -> RoundTrip:
    """Encode and decode in this process."""
    original = Original(reference.shape[0], reference.shape[1], rate)
    start = time.perf_counter()
    payload = codec.encode(reference, rate)
    encoded = time.perf_counter()
    audio = codec.decode(payload.data, original)
    decoded = time.perf_counter()
    return RoundTrip(
        bits=payload.bits,
        file_bits=8 * len(payload.data),
        encode_seconds=encoded - start,
        decode_seconds=decoded - encoded,
        audio=audio,
    )


def _decoded_elsewhere(codec: DecodedFolder, clip: ClipRecord, reference: np.ndarray) -> _Outcome:
    try:
        audio = codec.read(clip.source, clip.start, reference, clip.sample_rate)
    except (CodecPlusError, OSError) as error:
        return _failure(str(error))
    problem = output_problem(reference, audio)
    if problem:
        return _failure(problem)
    bits = None
    if codec.kbps is not None:
        bits = round(1000 * codec.kbps * clip.seconds * clip.channels)
    line = {
        "status": "ok",
        "reason": None,
        "bits": bits,
        "file_bits": None,
        "encode_seconds": 0.0,
        "decode_seconds": 0.0,
        "codebook_size": None,
    }
    return _Outcome(line, audio)


# ---- scoring


@dataclass(frozen=True)
class ScoringJob:
    """One clip, the audio files that lack scores, the metrics they lack, and delays to use."""

    clip: ClipRecord
    estimates: Estimates
    lags: dict[str, float]


class ScoreKeys:
    """Names every score in the store: its clip, its metric's version, and the lag it was given.

    A codec has one lag for each sample rate: the median over the clips it coded.
    """

    def __init__(self, codecs: list[CodecAdapter], clips: list[ClipRecord], store: Store) -> None:
        self._codecs = {codec.name: codec_hash(codec) for codec in codecs}
        self._clips = clips
        self._store = store
        self._lags: dict[tuple[str, int], float] = {}

    def lag_ms(self, codec: str, sample_rate: int) -> float:
        """Return the delay of a codec at a rate, in milliseconds; 0 where none could be found."""
        key = codec, sample_rate
        if key not in self._lags:
            scores = self._store.scores(self._codecs[codec])
            values = []
            for clip in self._clips:
                line = scores.get((clip.hash, METRICS["lag"].identity))
                if clip.sample_rate == sample_rate and line and line["value"] is not None:
                    values.append(line["value"])
            samples = 0
            if values:
                samples = round(float(np.median(values)) * sample_rate / 1000)
            self._lags[key] = 1000 * samples / sample_rate
        return self._lags[key]

    def identity(self, codec: str, clip: ClipRecord, metric: Metric) -> str:
        """Return what a score is filed under beside its clip."""
        if not metric.uses_lag:
            return metric.identity
        return f"{metric.identity}@{self.lag_ms(codec, clip.sample_rate):.6g}ms"

    def score(self, codec: str, clip: ClipRecord, metric: Metric) -> Line | None:
        """Return a score, or None where there is none yet."""
        scores = self._store.scores(self._codecs[codec])
        return scores.get((clip.hash, self.identity(codec, clip, metric)))


def score(
    codecs: list[CodecAdapter],
    clips: list[ClipRecord],
    metrics: list[Metric],
    store: Store,
    workers: int,
    progress: bool,
    retry_failed: bool = False,
) -> ScoreKeys:
    """Compute every score that the store does not have, a clip at a time over several processes.

    Metrics that use a codec's lag wait until it is known from all clips. The first codec is the
    identity, whose audio is the reference.

    Args:
        codecs, clips, metrics: what is scored.
        store: where audio and scores are kept.
        workers: processes that score.
        progress: show a bar.
        retry_failed: compute scores again whose metric crashed or took too long.

    Returns:
        The keys by which the scores are found in the store.
    """
    first = [metric for metric in metrics if not metric.uses_lag]
    second = [metric for metric in metrics if metric.uses_lag]
    if second and METRICS["lag"] not in first:
        first.append(METRICS["lag"])
    for stage in (first, second):
        keys = ScoreKeys(codecs, clips, store)
        jobs = list(_scoring_jobs(codecs, clips, stage, store, keys, retry_failed))
        if jobs:
            _run_scoring(jobs, codecs, store, keys, workers, progress)
    return ScoreKeys(codecs, clips, store)


def _run_scoring(
    jobs: list[ScoringJob],
    codecs: list[CodecAdapter],
    store: Store,
    keys: ScoreKeys,
    workers: int,
    progress: bool,
) -> None:
    hashes = {codec.name: codec_hash(codec) for codec in codecs}

    def score_clip(worker: Worker, job: ScoringJob, reserve: Reserve) -> None:
        def note(name: str, metric: str, result: Score) -> None:
            identity = keys.identity(name, job.clip, METRICS[metric])
            line = {"clip": job.clip.hash, "metric": identity, **result.as_dict()}
            store.add_score(hashes[name], line)

        reference = store.audio_path(hashes[codecs[0].name], job.clip.hash)
        score_in(worker, reference, job.estimates, job.clip.sample_rate, note, job.lags)

    _run_pool(scoring_worker, score_clip, jobs, workers, "score", progress)


def _run_pool(
    new_worker: Callable[[], Worker],
    run: Callable[[Worker, Any, Reserve], None],
    jobs: Sequence[Any],
    workers: int,
    label: str,
    progress: bool,
) -> None:
    """Run jobs, of a clip each, on up to so many worker processes, with a progress bar."""
    pool = WorkerPool([new_worker() for _ in range(min(workers, len(jobs)))], run)
    with closing(pool.run(jobs)) as done:
        for _ in progress_bar(done, shown=progress, total=len(jobs), desc=label, unit="clip"):
            pass


def _scoring_jobs(
    codecs: list[CodecAdapter],
    clips: list[ClipRecord],
    metrics: list[Metric],
    store: Store,
    keys: ScoreKeys,
    retry_failed: bool,
) -> Iterable[ScoringJob]:
    """Yield each clip with the audio files that lack scores, and the metrics that they lack."""
    wanted = _metrics_of_clips(clips, metrics)
    hashes = {codec.name: codec_hash(codec) for codec in codecs}
    for clip in _unique(clips):
        estimates: Estimates = {}
        lags: dict[str, float] = {}
        for name, key in hashes.items():
            if not _is_coded(store, key, clip):
                continue
            missing = [
                metric
                for metric in wanted[clip.hash]
                if _lacks_score(keys.score(name, clip, metric), retry_failed)
                and not _is_hopeless(keys.score(codecs[0].name, clip, metric), retry_failed)
            ]
            if missing:
                names = [metric.name for metric in missing]
                estimates[name] = (store.audio_path(key, clip.hash), names)
            if any(metric.uses_lag for metric in missing):
                lags[name] = keys.lag_ms(name, clip.sample_rate)
        if estimates:
            yield ScoringJob(clip, estimates, lags)


def _unique(clips: list[ClipRecord]) -> Iterable[ClipRecord]:
    """Return each clip once: the same audio may be listed under several names."""
    return {clip.hash: clip for clip in clips}.values()


def _is_coded(store: Store, codec: str, clip: ClipRecord) -> bool:
    """Return whether the codec of a hash has coded a clip."""
    line = store.encoded(codec).lines.get(clip.hash)
    return line is not None and line["status"] == "ok"


def _lacks_score(known: Line | None, retry_failed: bool) -> bool:
    if known is None:
        return True
    return retry_failed and known["status"] in ("metric_error", "timeout")


def _is_hopeless(reference: Line | None, retry_failed: bool) -> bool:
    """Whether a metric is known to fail on a perfect copy, so that it scores no codec."""
    if reference is None or retry_failed:
        return False
    return reference["status"] in ("metric_error", "timeout")


def _metrics_of_clips(clips: list[ClipRecord], metrics: list[Metric]) -> dict[str, list[Metric]]:
    """The metrics of each clip hash; the same audio may be listed twice, under two kinds."""
    wanted: dict[str, list[Metric]] = {}
    for clip in clips:
        chosen = wanted.setdefault(clip.hash, [])
        for metric in metrics:
            if metric.applies_to(clip.kind) and metric not in chosen:
                chosen.append(metric)
    return wanted


# ---- embedding


@dataclass(frozen=True)
class EmbeddingJob:
    """One audio file of which a set metric wants embeddings, and where they go."""

    metric: SetMetric
    audio: Path
    sample_rate: int
    target: Path


def embed(
    codecs: list[CodecAdapter],
    clips: list[ClipRecord],
    metrics: list[SetMetric],
    store: Store,
    workers: int,
    progress: bool,
) -> dict[Path, str]:
    """Compute the embeddings that the store does not have, over several processes.

    Returns:
        Why embeddings are missing, by the path where they would be.
    """
    jobs = []
    for codec in codecs:
        key = codec_hash(codec)
        for clip in _unique(clips):
            if _is_coded(store, key, clip):
                jobs += _embedding_jobs(key, clip, metrics, store)
    failures: dict[Path, str] = {}
    if not jobs:
        return failures

    def embed_clip(worker: Worker, job: EmbeddingJob, reserve: Reserve) -> None:
        try:
            store.save(job.target, embed_in(worker, job.metric, job.audio, job.sample_rate))
        except EmbeddingFailed as error:
            failures[job.target] = str(error)

    _run_pool(embedding_worker, embed_clip, jobs, workers, "embed", progress)
    return failures


def _embedding_jobs(
    codec: str, clip: ClipRecord, metrics: list[SetMetric], store: Store
) -> list[EmbeddingJob]:
    """Return what is to be embedded of a clip, which the codec of that hash has coded."""
    audio = store.audio_path(codec, clip.hash)
    jobs = []
    for metric in metrics:
        target = store.embeddings_path(metric.identity, codec, clip.hash)
        if metric.applies_to(clip.kind) and not target.exists():
            jobs.append(EmbeddingJob(metric, audio, clip.sample_rate, target))
    return jobs


def set_values(
    codecs: list[CodecAdapter],
    clips: list[ClipRecord],
    metrics: list[SetMetric],
    store: Store,
    failures: dict[Path, str],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what each codec has in each set metric, by codec, kind of audio and metric.

    A value is over the recordings that the codec coded: `value`, the number of `clips` and of
    `embeddings`; or a `reason` why there is none.
    """
    reference = codec_hash(codecs[0])
    kinds = list(dict.fromkeys(clip.kind for clip in clips))
    values: dict[str, dict[str, dict[str, Any]]] = {}
    for codec in codecs:
        key = codec_hash(codec)
        for kind in kinds:
            of_kind = [clip for clip in clips if clip.kind == kind]
            coded = [clip for clip in _unique(of_kind) if _is_coded(store, key, clip)]
            for metric in metrics:
                if not metric.applies_to(kind):
                    continue
                name = metric.identity
                references = [store.embeddings_path(name, reference, clip.hash) for clip in coded]
                estimates = [store.embeddings_path(name, key, clip.hash) for clip in coded]
                value = _set_value(references, estimates, failures)
                by_kind = values.setdefault(codec.name, {}).setdefault(kind or "unknown", {})
                by_kind[metric.name] = value
    return values


def _set_value(
    references: list[Path], estimates: list[Path], failures: dict[Path, str]
) -> dict[str, Any]:
    if not estimates:
        return {"value": None, "reason": "no clip was coded"}
    pairs = zip(references, estimates, strict=True)
    # A silent reference says nothing, whatever became of it.
    scored = [(x, y) for x, y in pairs if x.exists()]
    for _, path in scored:
        if not path.exists():
            reason = failures.get(path, "embeddings are missing")
            return {"value": None, "reason": reason}
    if not scored:
        return {"value": None, "reason": failures.get(references[0], "embeddings are missing")}
    x = np.concatenate([np.load(path, allow_pickle=False) for path, _ in scored])
    y = np.concatenate([np.load(path, allow_pickle=False) for _, path in scored])
    try:
        value = frechet_distance(x, y)
    except (CodecPlusError, np.linalg.LinAlgError) as error:
        return {"value": None, "reason": str(error)}
    return {"value": value, "clips": len(scored), "embeddings": len(y)}
