"""The three stages of a run: read the clips, encode and decode them, score them.

Each stage goes on from what the store has, and no stage knows what the others are for: encoding
reads references and leaves audio, scoring reads audio and leaves numbers. So a new metric does not
encode again, and a new codec does not touch the scores of the others.
"""

import sys
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass

import numpy as np
from tqdm import tqdm

from codecplus.errors import InputError
from codecplus.eval.codecs import CodecAdapter, Original, codec_hash
from codecplus.eval.metrics import Metric, Score, output_problem
from codecplus.eval.metrics.worker import Estimates, score_in, scoring_worker
from codecplus.eval.store import Line, Store
from codecplus.eval.tasks import Clip, Problem, Task
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
        for item in tqdm(task, desc="read", unit="clip", disable=not progress, file=sys.stderr):
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
    )


# ---- encoding


@dataclass(frozen=True)
class Share:
    """Which part of the clips this process encodes: every `size`-th, from the `rank`-th on."""

    rank: int = 0
    size: int = 1


def encode(
    codec: CodecAdapter,
    clips: list[ClipRecord],
    store: Store,
    identity: CodecAdapter,
    progress: bool,
    share: Share,
) -> None:
    """Encode and decode this process's share of the clips; what fails is noted with its reason."""
    key = codec_hash(codec)
    done = store.encoded(key).lines
    unique = list({clip.hash: clip for clip in clips}.values())
    todo = [clip for clip in unique[share.rank :: share.size] if clip.hash not in done]
    if not todo:
        return
    reference_key = codec_hash(identity)

    def reference_of(clip: ClipRecord) -> np.ndarray:
        return np.load(store.audio_path(reference_key, clip.hash))

    _reset_peak_memory()
    _warm_up(codec, reference_of(todo[0]), todo[0].sample_rate)
    label = f"encode {codec.name}"
    for clip in tqdm(todo, desc=label, unit="clip", disable=not progress, file=sys.stderr):
        outcome = _round_trip(codec, reference_of(clip), clip.sample_rate)
        if outcome.audio is not None:
            store.save(store.audio_path(key, clip.hash), outcome.audio)
        if outcome.codes is not None:
            store.save(store.codes_path(key, clip.hash), outcome.codes)
        store.add_encoded(key, share.rank, {"clip": clip.hash, **outcome.line})
    store.add_encoded(key, share.rank, {"peak_memory": _peak_memory()})


@dataclass(frozen=True)
class _Outcome:
    """The journal's line for one clip, its audio (C, S) and its codes (K, T), if there are any."""

    line: Line
    audio: np.ndarray | None = None
    codes: np.ndarray | None = None


def _round_trip(codec: CodecAdapter, reference: np.ndarray, rate: int) -> _Outcome:
    """Encode and decode a clip. The times cover the codec's own two calls and nothing else."""
    line: Line = {"status": "codec_failure", "reason": None, "codebook_size": None}
    original = Original(reference.shape[0], reference.shape[1], rate)
    source = reference.copy()  # a codec that writes into its input must not spoil it
    codes = None
    try:
        start = time.perf_counter()
        payload = codec.encode(source, rate)
        line["encode_seconds"] = time.perf_counter() - start
        line.update(bits=int(payload.bits), file_bits=8 * len(payload.data))
        start = time.perf_counter()
        decoded = codec.decode(payload.data, original)
        line["decode_seconds"] = time.perf_counter() - start
        audio = np.asarray(decoded, dtype=np.float32)
        codes_of = getattr(codec, "codes", None)
        if codes_of is not None:
            codes, line["codebook_size"] = codes_of(payload.data)
    except Exception as error:  # somebody else's code: whatever it raises belongs in the report
        return _Outcome({**line, "reason": f"{type(error).__name__}: {error}"})
    if not 0 < payload.bits <= 8 * len(payload.data):
        reason = f"claims {payload.bits} bits for a payload of {8 * len(payload.data)} bits"
    else:
        reason = output_problem(reference, audio)
    if reason:
        return _Outcome({**line, "reason": reason})
    return _Outcome({**line, "status": "ok"}, audio, codes)


def _warm_up(codec: CodecAdapter, reference: np.ndarray, rate: int) -> None:
    """Load what is loaded lazily, so that the first clip's time is not the disk's."""
    _round_trip(codec, reference[:, :rate], rate)


def _reset_peak_memory() -> None:
    try:
        # Linux: 5 resets the high-water mark of resident memory
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_memory() -> int | None:
    """Peak bytes of resident and CUDA memory since the reset; None where nobody can tell."""
    try:
        with open("/proc/self/status") as file:
            host = next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        host += torch.cuda.max_memory_allocated()
    return host


# ---- scoring

ScoringJob = tuple[ClipRecord, Estimates]


def score(
    codecs: list[CodecAdapter],
    clips: list[ClipRecord],
    metrics: list[Metric],
    store: Store,
    workers: int,
    progress: bool,
) -> None:
    """Compute every score that the store does not have, a clip at a time over several processes.

    The first codec is the identity, whose audio is the reference.
    """
    jobs = list(_scoring_jobs(codecs, clips, metrics, store))
    if not jobs:
        return
    keys = {codec.name: codec_hash(codec) for codec in codecs}
    identities = {metric.name: metric.identity for metric in metrics}

    def score_clip(worker: Worker, job: ScoringJob, reserve: Reserve) -> None:
        clip, estimates = job

        def note(name: str, metric: str, result: Score) -> None:
            line = {"clip": clip.hash, "metric": identities[metric], **asdict(result)}
            store.add_score(keys[name], line)

        reference = store.audio_path(keys[codecs[0].name], clip.hash)
        score_in(worker, reference, estimates, clip.sample_rate, note)

    pool = WorkerPool([scoring_worker() for _ in range(min(workers, len(jobs)))], score_clip)
    with closing(pool.run(jobs)) as done:
        for _ in tqdm(done, "score", len(jobs), unit="clip", disable=not progress, file=sys.stderr):
            pass


def _scoring_jobs(
    codecs: list[CodecAdapter], clips: list[ClipRecord], metrics: list[Metric], store: Store
) -> Iterable[ScoringJob]:
    """Each clip with the audio files that lack scores, and the names of the metrics they lack."""
    identities = {metric.name: metric.identity for metric in metrics}
    keys = {codec.name: codec_hash(codec) for codec in codecs}
    wanted = _metrics_of_clips(clips, metrics)
    for clip in {clip.hash: clip for clip in clips}.values():
        estimates: Estimates = {}
        for name, key in keys.items():
            line = store.encoded(key).lines.get(clip.hash, {})
            if line.get("status") != "ok":
                continue
            known = store.scores(key)
            missing = [m for m in wanted[clip.hash] if (clip.hash, identities[m]) not in known]
            if missing:
                estimates[name] = (store.audio_path(key, clip.hash), missing)
        if estimates:
            yield clip, estimates


def _metrics_of_clips(clips: list[ClipRecord], metrics: list[Metric]) -> dict[str, list[str]]:
    """The metrics of each clip hash; the same audio may be listed twice, under two kinds."""
    wanted: dict[str, list[str]] = {}
    for clip in clips:
        names = wanted.setdefault(clip.hash, [])
        for metric in metrics:
            if metric.applies_to(clip.kind) and metric.name not in names:
                names.append(metric.name)
    return wanted
