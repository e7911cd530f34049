"""The three stages of a run: read the clips, encode and decode them, score them. Each goes on from
what the store has.

No stage knows what the others are for: encoding reads references and leaves audio, scoring reads
audio and leaves numbers. So a new metric does not encode again, and a new codec does not touch the
scores of the others.
"""

from __future__ import annotations

import os
import queue
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from codecplus.errors import InputError
from codecplus.eval.codecs import Codec, Original, codec_hash
from codecplus.eval.metrics import Metric, Score, output_problem
from codecplus.eval.metrics.worker import Scorer
from codecplus.eval.store import Journal, Store, read_journal
from codecplus.eval.tasks import Clip, Problem, Task


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


def prepare(
    task: Task, store: Store, identity: Codec, progress: bool
) -> tuple[list[ClipRecord], list[Problem]]:
    """Read every clip of a task once and keep it as the reference; a task read before is not read
    again.
    """
    path = store.clips_path(task.fingerprint())
    if not any(line.get("complete") for line in read_journal(path)):
        path.unlink(missing_ok=True)
        journal = Journal(path)
        for item in tqdm(task, desc="read", unit="clip", disable=not progress, file=sys.stderr):
            if isinstance(item, Problem):
                journal.append({"problem": asdict(item)})
            else:
                record = _record(item)
                store.save(store.audio_path(codec_hash(identity), record.hash), item.audio)
                journal.append({"clip": asdict(record)})
        journal.append({"complete": True})
        journal.close()
    return read_prepared(task, store)


def read_prepared(task: Task, store: Store) -> tuple[list[ClipRecord], list[Problem]]:
    """The clips and problems of a task that has been prepared; InputError when it has no clip at
    all.
    """
    lines = list(read_journal(store.clips_path(task.fingerprint())))
    clips = [ClipRecord(**line["clip"]) for line in lines if "clip" in line]
    problems = [Problem(**line["problem"]) for line in lines if "problem" in line]
    if not clips:
        reasons = "; ".join(f"{problem.source}: {problem.reason}" for problem in problems[:3])
        raise InputError(f"the data {task.name!r} holds no audio that can be read ({reasons})")
    return clips, problems


def _record(clip: Clip) -> ClipRecord:
    channels, samples = clip.audio.shape
    return ClipRecord(
        clip.id,
        clip.hash,
        clip.source,
        clip.start,
        clip.kind,
        clip.speaker,
        samples,
        clip.sample_rate,
        channels,
    )


def encode(
    codec: Codec,
    clips: list[ClipRecord],
    store: Store,
    identity: Codec,
    progress: bool,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Encode and decode this process's share of the clips; what fails is noted with its reason."""
    key = codec_hash(codec)
    done = store.encoded(key)
    unique = list({clip.hash: clip for clip in clips}.values())
    todo = [clip for clip in unique[rank::world] if clip.hash not in done]
    if not todo:
        return
    journal = store.encoded_journal(key, rank)
    _reset_peak_memory()
    _warm_up(
        codec, np.load(store.audio_path(codec_hash(identity), todo[0].hash)), todo[0].sample_rate
    )
    for clip in tqdm(
        todo, desc=f"encode {codec.name}", unit="clip", disable=not progress, file=sys.stderr
    ):
        reference = np.load(store.audio_path(codec_hash(identity), clip.hash))
        line, audio, codes = _round_trip(codec, reference, clip.sample_rate)
        if audio is not None:
            store.save(store.audio_path(key, clip.hash), audio)
        if codes is not None:
            store.save(store.codes_path(key, clip.hash), codes)
        journal.append({"clip": clip.hash, **line})
    journal.append({"peak_memory": _peak_memory()})
    journal.close()


def _round_trip(codec: Codec, reference: np.ndarray, rate: int) -> tuple[dict[str, Any], Any, Any]:
    """The journal's line, the audio (C, S) or None, the codes (K, T) or None."""
    line: dict[str, Any] = {"status": "codec_failure", "reason": None, "codebook_size": None}
    original = Original(reference.shape[0], reference.shape[1], rate)
    try:
        start = time.perf_counter()
        payload = codec.encode(
            reference.copy(), rate
        )  # a codec that writes into its input must not spoil it
        line["encode_seconds"] = time.perf_counter() - start
        line.update(
            bits=int(payload.bits),
            file_bits=8 * len(payload.data),
            codebook_size=payload.codebook_size,
        )
        start = time.perf_counter()
        audio = np.asarray(codec.decode(payload.data, original), dtype=np.float32)
        line["decode_seconds"] = time.perf_counter() - start
    except (
        Exception
    ) as error:  # a codec is somebody else's code: whatever it raises belongs in the report
        return {**line, "reason": f"{type(error).__name__}: {error}"}, None, None
    if not 0 < payload.bits <= 8 * len(payload.data):
        reason = f"claims {payload.bits} bits for a payload of {8 * len(payload.data)} bits"
    else:
        reason = output_problem(reference, audio)
    if reason:
        return {**line, "reason": reason}, None, None
    return {**line, "status": "ok"}, audio, payload.codes


def _warm_up(codec: Codec, reference: np.ndarray, rate: int) -> None:
    """Load what is loaded lazily, so that the first clip's time is not the disk's."""
    _round_trip(codec, reference[:, :rate], rate)


def score(
    codecs: list[Codec],
    clips: list[ClipRecord],
    metrics: list[Metric],
    store: Store,
    workers: int,
    progress: bool,
) -> None:
    """Compute every score that the store does not have, a clip at a time over several processes.

    The first codec is the identity: its audio is the reference, and what it cannot be given a score
    for, nobody can.
    """
    journals = {codec.name: store.scores_journal(codec_hash(codec)) for codec in codecs}
    jobs = list(_jobs(codecs, clips, metrics, store))
    hired = [Scorer() for _ in range(min(workers, len(jobs)))]
    scorers: queue.Queue[Scorer] = queue.Queue()
    for scorer in hired:
        scorers.put(scorer)

    def run(clip: ClipRecord, estimates: dict) -> None:
        def note(name: str, metric: str, result: Score) -> None:
            line = {"clip": clip.hash, "metric": identities[metric], **asdict(result)}
            journals[name].append(line)

        scorer = scorers.get()
        try:
            reference = store.audio_path(codec_hash(codecs[0]), clip.hash)
            scorer.score(reference, estimates, clip.sample_rate, note)
        finally:
            scorers.put(scorer)

    identities = {metric.name: metric.identity for metric in metrics}
    pool = ThreadPoolExecutor(max(1, len(hired)))
    try:
        futures = [pool.submit(run, *job) for job in jobs]
        bar = tqdm(
            as_completed(futures),
            "score",
            len(jobs),
            unit="clip",
            disable=not progress,
            file=sys.stderr,
        )
        for future in bar:
            future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for scorer in hired:
            scorer.stop()
        for journal in journals.values():
            journal.close()


def _jobs(
    codecs: list[Codec], clips: list[ClipRecord], metrics: list[Metric], store: Store
) -> Iterable[tuple[ClipRecord, dict]]:
    """Each clip with the audio files that lack scores, and which."""
    known = {codec.name: (codec_hash(codec), store.encoded(codec_hash(codec)), store.scores(codec_hash(codec)))
             for codec in codecs}  # fmt: skip
    wanted: dict[str, list[Metric]] = {}
    for clip in clips:  # the same audio may be listed twice, under two kinds
        chosen = wanted.setdefault(clip.hash, [])
        chosen += [
            metric for metric in metrics if metric.applies_to(clip.kind) and metric not in chosen
        ]
    for clip in {clip.hash: clip for clip in clips}.values():
        estimates = {}
        for name, (key, encoded, scores) in known.items():
            if encoded.get(clip.hash, {}).get("status") == "ok":
                missing = [
                    m.name for m in wanted[clip.hash] if (clip.hash, m.identity) not in scores
                ]
                if missing:
                    estimates[name] = (store.audio_path(key, clip.hash), missing)
        if estimates:
            yield clip, estimates


def _reset_peak_memory() -> None:
    try:
        with open(
            "/proc/self/clear_refs", "w"
        ) as file:  # Linux: 5 resets the high-water mark of resident memory
            file.write("5")
    except OSError:
        return
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_memory() -> int | None:
    """Peak bytes of resident memory since the reset, and of CUDA memory on top; None where the
    system cannot tell.
    """
    try:
        with open("/proc/self/status") as file:
            host = next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        host += torch.cuda.max_memory_allocated()
    return host


def default_workers() -> int:
    """One process per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
