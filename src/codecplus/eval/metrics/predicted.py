"""Scores that networks predict of speech as people would give them, by other packages.

Their weights are in the packages, so they need no network. Most of them hear the output alone: they
say how clean it sounds, and not whether it is still what was said.
"""

import importlib
import importlib.util
import sys
import types
from functools import cache, partial
from importlib.metadata import distribution
from typing import Any

import numpy as np

from codecplus.eval.metrics.base import ReferenceUnscorable, metric

_speech_metric = partial(
    metric,
    higher_is_better=True,
    sample_rate=16_000,
    min_seconds=1.0,
    max_seconds=30,
    domains=("speech",),
    by_default=False,  # each is a network, and none comes with the extra `eval`
)
_opinion_score = partial(
    _speech_metric, unit="MOS", lowest=1, highest=5, min_sample_rate=16_000, needs_reference=False
)


@_opinion_score(
    outputs={
        "ovrl": {"title": "DNSMOS overall"},
        "sig": {"title": "DNSMOS signal"},
        "bak": {"title": "DNSMOS background"},
        "p808": {"title": "DNSMOS P.808"},
    },
    library="speechmos",
    modules=("speechmos", "librosa", "onnxruntime"),
    extra="mos",
    source="DNSMOS P.835 and P.808, by speechmos",
)
def dnsmos(estimate: np.ndarray, sample_rate: int) -> dict[str, float]:
    """DNSMOS of (S,) at 16 kHz: overall, signal and background of P.835, and that of P.808."""
    from speechmos import dnsmos as model  # pyright: ignore[reportMissingImports]

    scores = model.run(np.clip(estimate, -1.0, 1.0), sample_rate)
    names = {"ovrl": "ovrl_mos", "sig": "sig_mos", "bak": "bak_mos", "p808": "p808_mos"}
    return {name: float(scores[key]) for name, key in names.items()}


@_opinion_score(
    title="PLCMOS",
    library="speechmos",
    modules=("speechmos", "onnxruntime"),
    extra="mos",
    source="PLCMOS v2, of concealed losses, by speechmos",
)
def plcmos(estimate: np.ndarray, sample_rate: int) -> float:
    """PLCMOS of (S,) at 16 kHz: how well losses of packets are concealed."""
    from speechmos import plcmos as model  # pyright: ignore[reportMissingImports]

    return float(model.run(np.clip(estimate, -1.0, 1.0), sample_rate)["plcmos"])


@_opinion_score(
    title="DistillMOS",
    library="distillmos",
    modules=("distillmos", "xls_r_sqa"),
    install="pip install --no-deps distillmos xls-r-sqa",
    source="Stahl and Gamper 2025, by distillmos",
)
def distillmos(estimate: np.ndarray, sample_rate: int) -> float:
    """DistillMOS of (S,) at 16 kHz."""
    import torch

    with torch.inference_mode():
        return float(_distillmos()(torch.from_numpy(estimate)[None])[0])


@_speech_metric(
    title="Speaker similarity",
    unit="",
    lowest=-1,
    highest=1,
    min_sample_rate=8000,
    library="Resemblyzer",
    modules=("resemblyzer", "librosa", "webrtcvad"),
    extra="mos",
    source="cosine of GE2E embeddings, by Resemblyzer",
)
def speaker_similarity(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """Cosine between embeddings of the speakers of (S,) and (S,) at 16 kHz."""
    import_without_setuptools("webrtcvad")
    from resemblyzer import preprocess_wav  # pyright: ignore[reportMissingImports]

    embeddings = []
    for signal in (reference, estimate):
        voiced = preprocess_wav(signal, source_sr=sample_rate)
        if not len(voiced):
            if signal is reference:
                raise ReferenceUnscorable("Resemblyzer finds no voice in the reference")
            voiced = signal
        embeddings.append(voice_encoder().embed_utterance(voiced))
    return float(np.dot(*embeddings))


@cache
def _distillmos() -> Any:
    # It imports torchaudio, which has no builds for many machines, for its command line alone.
    is_missing = importlib.util.find_spec("torchaudio") is None
    if is_missing:
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    try:
        from distillmos import ConvTransformerSQAModel  # pyright: ignore[reportMissingImports]
    finally:
        if is_missing:  # others ask whether it is installed
            del sys.modules["torchaudio"]
    return ConvTransformerSQAModel().eval()


@cache
def voice_encoder() -> Any:
    """Return Resemblyzer's network, which is loaded once."""
    import_without_setuptools("webrtcvad")
    from resemblyzer import VoiceEncoder  # pyright: ignore[reportMissingImports]

    return VoiceEncoder("cpu", verbose=False)


def import_without_setuptools(name: str) -> None:
    """Import a module that asks `pkg_resources` for its own version, and for nothing else.

    webrtcvad and pyworld do; setuptools 82 has no `pkg_resources` any more.
    """
    if importlib.util.find_spec("pkg_resources") is not None:
        importlib.import_module(name)
        return
    stand_in: Any = types.ModuleType("pkg_resources")
    stand_in.get_distribution = distribution
    sys.modules["pkg_resources"] = stand_in
    try:
        importlib.import_module(name)
    finally:
        del sys.modules["pkg_resources"]
