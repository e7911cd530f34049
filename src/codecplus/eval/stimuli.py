"""The sounds of a listening test: each item through every condition, at one loudness; and the
configuration of such a test for webMUSHRA.
"""

import random
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.audio.files import save_audio
from codecplus.audio.loudness import integrated_loudness
from codecplus.errors import InputError
from codecplus.eval.codecs import CodecAdapter, Original, anchors
from codecplus.eval.codecs.base import codec_hash
from codecplus.eval.listening import REFERENCE
from codecplus.eval.tasks import Problem, Task

LOUDNESS = -23.0  # LUFS, the level of EBU R 128
MAX_STIMULI = 12  # of one trial, by BS.1534-3, section 5.3: more cannot be compared
_MAX_SECONDS = 12  # section 5.1 asks for about 10 s: longer ones strain a listener's memory
_FADE = 0.005  # seconds, section 5.3: a loop that clicks could be told apart by its click


@dataclass(frozen=True)
class Stimulus:
    """One condition of one item, as a file; `kbps` is its measured payload rate, None for reference
    and anchors.
    """

    condition: str
    path: Path
    kbps: float | None


def prepare_item(
    audio: np.ndarray,
    sample_rate: int,
    codecs: Iterable[CodecAdapter],
    folder: Path,
    *,
    loudness: float = LOUDNESS,
) -> list[Stimulus]:
    """Write the hidden reference, the anchors and every codec's version of audio (C, S) into a
    folder, as 16-bit WAV.

    All have the same integrated loudness (ITU-R BS.1770-4), lowered for all alike where a peak
    would leave full scale, and begin and end with a raised-cosine fade of 5 ms, for they are
    looped. File names say nothing of what they hold.

    Raises InputError for audio that is silent or longer than a test's items may be, or that a codec
    could not code; and for more stimuli than a trial of ITU-R BS.1534-3 may have.
    """
    audio = np.atleast_2d(np.asarray(audio, np.float32))
    if audio.shape[1] > _MAX_SECONDS * sample_rate:
        raise InputError(
            f"expected items of at most {_MAX_SECONDS} s (ITU-R BS.1534), got "
            f"{audio.shape[1] / sample_rate:.1f} s; cut them"
        )
    codecs = list(codecs)
    if len(codecs) + len(anchors()) > MAX_STIMULI:
        raise InputError(
            f"expected at most {MAX_STIMULI - len(anchors())} conditions beside the reference and "
            f"the anchors (ITU-R BS.1534), got {len(codecs)}; make two tests of them"
        )
    signals: dict[str, np.ndarray] = {}
    rates: dict[str, float | None] = {}
    for anchor in anchors():
        signals[anchor.name], _ = _coded(anchor, audio, sample_rate)
        rates[anchor.name] = None
    for codec in codecs:
        if codec.name not in signals:
            signals[codec.name], rates[codec.name] = _coded(codec, audio, sample_rate)
    levelled = match_loudness(signals, sample_rate, loudness)
    paths = _write_shuffled(levelled, sample_rate, folder)
    return [Stimulus(name, paths[name], rates[name]) for name in signals]


def _coded(codec: CodecAdapter, audio: np.ndarray, sample_rate: int) -> tuple[np.ndarray, float]:
    """Return what a codec makes of audio (C, S), and its measured rate in kbit/s."""
    channels, samples = audio.shape
    payload = codec.encode(audio, sample_rate)
    decoded = codec.decode(payload.data, Original(channels, samples, sample_rate))
    if decoded.shape != audio.shape or not np.isfinite(decoded).all():
        raise InputError(
            f"{codec.name} decoded {decoded.shape} of {audio.shape}, or NaN; leave it out of "
            "the test"
        )
    return decoded, payload.bits * sample_rate / samples / 1000


def _write_shuffled(
    signals: dict[str, np.ndarray], sample_rate: int, folder: Path
) -> dict[str, Path]:
    """Write signals (C, S) to numbered files in random order; return the path of each."""
    folder.mkdir(parents=True, exist_ok=True)
    order = random.SystemRandom().sample(sorted(signals), len(signals))
    paths = {}
    for number, name in enumerate(order, start=1):
        paths[name] = folder / f"{number:02d}.wav"
        save_audio(_faded(signals[name], sample_rate), paths[name], sample_rate)
    return paths


def _faded(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    size = min(round(_FADE * sample_rate), audio.shape[-1] // 2)
    ramp = np.ones(audio.shape[-1], np.float32)
    ramp[:size] = 0.5 - 0.5 * np.cos(np.pi * (np.arange(size) + 0.5) / size)
    return audio * np.minimum(ramp, ramp[::-1])


def match_loudness(
    signals: dict[str, np.ndarray], sample_rate: int, loudness: float | None = None
) -> dict[str, np.ndarray]:
    """Bring signals (C, S) to one loudness in LUFS, that of the first by default, with no peak
    beyond full scale.

    Raises InputError where the first is silent; another one that is stays silent.
    """
    measured = {name: integrated_loudness(signal, sample_rate) for name, signal in signals.items()}
    first = next(iter(measured.values()))
    if not np.isfinite(first):
        raise InputError(
            "expected audio that can be heard; this is silent, or too short to have a loudness"
        )
    target = first if loudness is None else loudness
    gains = {
        name: 10 ** ((target - level) / 20) if np.isfinite(level) else 1.0
        for name, level in measured.items()
    }
    peak = max(float(np.abs(signals[name]).max()) * gain for name, gain in gains.items())
    headroom = min(1.0, 0.999 / peak) if peak else 1.0
    return {name: (signals[name] * (gains[name] * headroom)).astype(np.float32) for name in signals}


def export_webmushra(
    name: str, task: Task, codecs: Sequence[CodecAdapter], folder: str | Path
) -> Path:
    """Write a webMUSHRA test of every clip of a task; return the path of its configuration.

    The folder's content goes into webMUSHRA's `configs/`. A clip's first seconds are used, as many
    as a test may have.

    Raises InputError for a folder that holds a test already, and for a task without clips.
    """
    import yaml

    folder = Path(folder)
    test = _slug(name)
    sounds = folder / "resources" / test
    config = folder / f"{test}.yaml"
    if config.exists() or sounds.exists():
        raise InputError(
            f"{folder} holds a test {test!r} already; remove it, or name another folder"
        )
    pages = []
    try:
        for clip in task:
            if isinstance(clip, Problem):
                continue
            item = _slug(clip.id)
            excerpt = clip.audio[:, : _MAX_SECONDS * clip.sample_rate]
            stimuli = prepare_item(excerpt, clip.sample_rate, codecs, sounds / item)
            pages.append(_webmushra_page(item, f"configs/resources/{test}/{item}", stimuli))
        if not pages:
            raise InputError(f"{task.name} holds no clips to make a test of")
    except BaseException:
        shutil.rmtree(sounds, ignore_errors=True)
        raise
    test_config = {
        "testname": name,
        "testId": test,
        "bufferSize": 2048,
        "stopOnErrors": True,
        "showButtonPreviousPage": False,
        "remoteService": "service/write.php",
        "pages": [["random", *pages], _WEBMUSHRA_END],
    }
    config.write_text(
        yaml.safe_dump(test_config, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    return config


_WEBMUSHRA_END = {
    "type": "finish",
    "name": "Thank you",
    "content": "Your ratings are sent when you press the button.",
    "showResults": True,
    "writeResults": True,
}


def _webmushra_page(item: str, address: str, stimuli: Iterable[Stimulus]) -> dict[str, Any]:
    """Return webMUSHRA's page of an item, whose files lie at an address."""
    files = {stimulus.condition: f"{address}/{stimulus.path.name}" for stimulus in stimuli}
    return {
        "type": "mushra",
        "id": item,
        "name": "Which sounds like the reference?",
        "content": "Rate each version against the reference. One of them is the reference itself.",
        "showWaveform": False,
        "enableLooping": True,
        "createAnchor35": False,
        "createAnchor70": False,
        "reference": files.pop(REFERENCE),
        "stimuli": files,
    }


def conditions_hash(codecs: Iterable[CodecAdapter]) -> str:
    """A short name for a set of conditions, which changes when one of them does."""
    import hashlib

    return hashlib.sha256(" ".join(map(codec_hash, codecs)).encode()).hexdigest()[:12]


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "test"
