"""Embeddings for set metrics, computed in a process that may die. Run as a module, it is one."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np

from codecplus.eval.metrics.base import is_silent
from codecplus.eval.metrics.compute import Signal
from codecplus.eval.metrics.sets import SetMetric, set_metric_by_name
from codecplus.system.workers import Message, Worker, WorkerDied, WorkerTimeout, serve

_START_SECONDS = 300.0  # to import the libraries and load a network


class EmbeddingFailed(Exception):
    """A recording has no embeddings, for a reason."""


def embedding_worker() -> Worker:
    """Return a worker for `embed_in`; its process starts with the first job."""
    return Worker("codecplus.eval.metrics.embedding")


def embed_in(worker: Worker, metric: SetMetric, audio: Path, sample_rate: int) -> np.ndarray:
    """Return the embeddings (N, D) of audio (C, S) that numpy saved, of all channels.

    Raises:
        EmbeddingFailed: if the function raises, dies or takes too long.
        WorkerStopped: if another thread stopped the worker.
    """
    try:
        worker.send((metric.name, metric.module, audio, sample_rate))
        answer, embeddings = worker.receive(_START_SECONDS + metric.timeout)
    except WorkerTimeout:
        raise EmbeddingFailed(f"no embeddings within {metric.timeout:.0f} s") from None
    except WorkerDied as death:
        raise EmbeddingFailed(f"the process died, with status {death.status}") from None
    if embeddings is None:
        raise EmbeddingFailed(answer["error"])
    return embeddings


# ---- inside the worker


def _answers(job: tuple[str, str, Path, int]) -> Iterator[Message]:
    name, module, path, sample_rate = job
    try:
        import_module(module)  # it registers the metric
        metric = set_metric_by_name(name)
        assert metric is not None, "its module has registered it"
        signal = Signal(np.load(path, allow_pickle=False), sample_rate)
        audio, rate = signal.at(metric.sample_rate)
        rows = []
        for channel in audio:
            if not is_silent(channel):
                rows.append(np.atleast_2d(metric.embed(np.ascontiguousarray(channel), rate)))
        if not rows:
            yield {"error": "the recording is silent"}, None
            return
        yield {}, np.concatenate(rows).astype(np.float32)
    except Exception as error:  # somebody else's code: whatever it raises belongs in the report
        yield {"error": f"{type(error).__name__}: {error}"}, None


if __name__ == "__main__":
    serve(_answers)
