"""Metrics of a whole set of recordings: the Fréchet distance between two clouds of embeddings.

A set metric is one function, from a signal to its embeddings, decorated with `@set_metric`. It
says how far what a codec made lies from the recordings as a whole, and nothing of a single one, so
it has no interval and ranks nobody.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np

from codecplus.errors import InputError
from codecplus.eval.metrics.base import Measure, content_mark
from codecplus.eval.metrics.spectral import log_mel

Embed = Callable[[np.ndarray, int], np.ndarray]  # (S,), rate -> (N, D)


@dataclass(frozen=True, kw_only=True)
class SetMetric(Measure):
    """Embeddings whose distributions are compared.

    Attributes:
        embed: called with a signal (S,) and its rate; returns embeddings (N, D).
    """

    embed: Embed
    sample_rate: int | None = 16_000

    @property
    def module(self) -> str:
        """The module that registers it."""
        return self.embed.__module__

    def describe(self) -> dict[str, Any]:
        """What a reader of results must know, as plain data."""
        return {
            "title": self.title,
            "unit": "",
            "higher_is_better": False,
            "domains": list(self.domains),
            "source": self.source,
            "identity": self.identity,
        }


SET_METRICS: dict[str, SetMetric] = {}
"""Every set metric by its name."""

_Function = TypeVar("_Function", bound=Embed)


def set_metric(**declaration: Any) -> Callable[[_Function], _Function]:
    """Register the decorated function of (signal, rate) as a set metric of its own name.

    Args:
        declaration: the fields of `SetMetric` but `name` and `embed`.
    """

    def register(function: _Function) -> _Function:
        name = function.__name__
        SET_METRICS[name] = SetMetric(name=name, embed=function, **declaration)
        return function

    return register


def set_metric_by_name(name: str) -> SetMetric | None:
    """Return the set metric of that name, `fad:ID` among them; None if there is none."""
    if name not in SET_METRICS and name.startswith("fad:"):
        source = name.removeprefix("fad:")
        SET_METRICS[name] = SetMetric(
            name=name,
            title=f"FAD, {source}",
            source=f"Fréchet distance of the last hidden states of {source}",
            embed=HiddenStates(source),
            library="transformers",
            modules=("transformers",),
            mark=lambda: content_mark(source),
        )
    return SET_METRICS.get(name)


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Return the squared Fréchet distance of Gaussians fitted to (N, D) and (M, D).

    >>> points = np.random.default_rng(0).standard_normal((100, 3))
    >>> round(frechet_distance(points, points + 2), 6)
    12.0
    """
    if min(len(x), len(y)) < 2:
        raise InputError(f"expected 2 embeddings or more, got {len(x)} and {len(y)}")
    x = x.astype(np.float64)
    y = y.astype(np.float64)
    shift = x.mean(axis=0) - y.mean(axis=0)
    root_x = _root(x)
    root_y = _root(y)
    # With covariances AᵀA and BᵀB, the trace of the root of their product is the sum of the
    # singular values of A Bᵀ. So nothing is inverted, and few embeddings are no problem.
    shared = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    spread = np.square(root_x).sum() + np.square(root_y).sum() - 2 * shared
    return float(shift @ shift + max(spread, 0.0))


def _root(points: np.ndarray) -> np.ndarray:
    """A matrix (min(N, D), D) whose product with itself, AᵀA, is the covariance of (N, D)."""
    centred = (points - points.mean(axis=0)) / np.sqrt(len(points) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r"))


_WINDOW_SECONDS = 0.96  # as of VGGish, with which FAD was introduced
_HOP_SECONDS = 0.48
_BANDS = 64


@set_metric(
    title="FAD, log mel",
    source="Fréchet distance (Kilgour et al. 2019) of means and deviations of 64 log-mel bands in "
    "windows of 0.96 s: no network, so it runs anywhere and hears timbre alone",
)
def fad(signal: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return mean and standard deviation of each log-mel band, a row for each window."""
    levels = log_mel(signal, sample_rate, length=512, bands=_BANDS)  # (T, M)
    per_second = len(levels) * sample_rate / len(signal)
    size = max(2, round(_WINDOW_SECONDS * per_second))
    hop = max(1, round(_HOP_SECONDS * per_second))
    starts = range(0, max(1, len(levels) - size + 1), hop)
    windows = [levels[start : start + size] for start in starts]
    return np.stack([np.r_[window.mean(axis=0), window.std(axis=0)] for window in windows])


@set_metric(
    title="FAD, speaker embedding",
    source="Fréchet distance of GE2E embeddings in windows of 1.6 s, by Resemblyzer: a network of "
    "voices whose weights are in the package",
    domains=("speech",),
    library="Resemblyzer",
    modules=("resemblyzer", "librosa", "webrtcvad"),
    extra="mos",
)
def fad_voice(signal: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return Resemblyzer's embeddings (N, 256) of the windows of (S,) at 16 kHz."""
    from codecplus.eval.metrics.predicted import voice_encoder

    _, windows, _ = voice_encoder().embed_utterance(signal, return_partials=True, rate=2)
    return np.asarray(windows)


class HiddenStates:
    """The last hidden states of a transformers model of audio, such as wav2vec 2.0 or WavLM."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __call__(self, signal: np.ndarray, sample_rate: int) -> np.ndarray:
        """Return the states (T, D) of (S,) at 16 kHz."""
        import torch

        extractor, model = _encoder(self.source)
        inputs = extractor(signal, sampling_rate=sample_rate, return_tensors="pt")
        with torch.inference_mode():
            states = model(**inputs).last_hidden_state
        return states.reshape(-1, states.shape[-1]).float().numpy()


@cache
def _encoder(source: str) -> tuple[Any, Any]:
    from transformers import AutoFeatureExtractor, AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it would stand between the bars of the run
    return AutoFeatureExtractor.from_pretrained(source), AutoModel.from_pretrained(source).eval()
