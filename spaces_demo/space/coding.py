"""Checks, codes and scores the clips of visitors. It knows nothing of pages."""

import functools
import hashlib
import io
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from codecplus import Codec, load_codec
from codecplus.audio.files import AudioFileReader
from codecplus.bitstream import Reader
from codecplus.errors import CodecPlusError, FileFormatError, InputError, ModelMismatchError
from codecplus.eval import score
from codecplus.eval.codecs import Original, resolve_codecs

from .settings import CHECKPOINTS, MAX_CHANNELS, MAX_RATE, MAX_SECONDS, MAX_UPLOAD

METRICS = ("pesq_wb", "stoi", "si_sdr")
_GPU_SECONDS = 20  # asked of ZeroGPU for one call; who asks for less is served sooner


@dataclass(frozen=True)
class Clip:
    """Audio (C, S) float32 that is fit to be coded here."""

    audio: np.ndarray = field(repr=False)
    sample_rate: int
    digest: str  # of the samples
    note: str = ""  # what was changed on reading, for the visitor

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.audio.shape[-1] / self.sample_rate

    @property
    def pcm_bytes(self) -> int:
        """Size as 16-bit PCM."""
        return 2 * self.audio.size


@dataclass(frozen=True)
class Coded:
    """A clip after a codec: the coded file and the decoded audio."""

    codec: str
    size: int  # bytes of the file
    kbps: float  # measured, all channels together; of other codecs without their container
    audio: np.ndarray = field(repr=False)  # (C, S), as the clip
    data: bytes = field(repr=False)
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0


def read_clip(path: str | Path | None) -> Clip:
    """Read a visitor's audio file.

    Raises InputError or FileFormatError, with one sentence for the visitor, if it cannot be used
    here.
    """
    if not path:
        raise InputError("There is no clip yet: pick one, upload one or record one.")
    path = Path(path)
    _check_size(path)
    try:
        audio, sample_rate = _read(path)
    except CodecPlusError as error:
        # Visitors must not see the server's folders.
        raise type(error)(str(error).replace(str(path), "The file")) from None
    note = ""
    channels = len(audio)
    if channels > MAX_CHANNELS:
        audio = audio.mean(axis=0, keepdims=True)
        note = f"the mix of its {channels} channels"
    digest = hashlib.sha256(f"{audio.shape} {sample_rate} ".encode() + audio.tobytes()).hexdigest()
    return Clip(audio, sample_rate, digest, note)


def _read(path: Path) -> tuple[np.ndarray, int]:
    """Read audio (C, S) and its rate, unless it is too long, too short, or of too high a rate.

    Headers may say less than there is: reading ends soon after the limit.
    """
    with AudioFileReader(path) as reader:
        rate = reader.sample_rate
        _check_rate(rate)
        if reader.header_seconds > MAX_SECONDS + 1:  # headers of some formats only estimate
            _check_longest(reader.header_seconds)
        blocks = []
        samples = 0
        for block in reader.blocks():
            blocks.append(block)
            samples += block.shape[-1]
            _check_longest(samples / rate)
    seconds = samples / rate
    if seconds < 0.1:
        raise InputError(f"Expected at least 0.1 s of audio, got {seconds:.3f} s.")
    return np.concatenate(blocks, axis=-1), rate


def _check_longest(seconds: float) -> None:
    if seconds > MAX_SECONDS:
        raise InputError(
            f"Expected at most {MAX_SECONDS} s of audio, got {_duration(seconds)}; cut it, or use "
            "`codecplus encode`, which takes any length."
        )


def _check_rate(sample_rate: int) -> None:
    if sample_rate > MAX_RATE:
        raise InputError(f"Expected audio at up to {MAX_RATE} Hz, got {sample_rate} Hz.")


def _check_size(path: Path) -> None:
    if path.is_file() and path.stat().st_size > MAX_UPLOAD:
        size = path.stat().st_size / 2**20
        raise InputError(
            f"Expected a file of at most {MAX_UPLOAD >> 20} MB, got {_rounded_up(size)} MB."
        )


def _rounded_up(value: float) -> str:
    """Write a value above its limit so that it does not look like the limit.

    >>> _rounded_up(60.004), _rounded_up(75.0)
    ('60.01', '75')
    """
    return f"{math.ceil(100 * value) / 100:g}"


def _duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{_rounded_up(seconds)} s"


# ---- codecs


@functools.cache
def device() -> str:
    """CUDA where there is some, also on ZeroGPU, which lends it to the functions marked by
    `on_gpu`.
    """
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def on_gpu(function: Callable) -> Callable:
    """Run a function on ZeroGPU's GPU; elsewhere return it unchanged."""
    try:
        import spaces  # pyright: ignore[reportMissingImports]
    except ImportError:
        return function

    # It runs in another process, from which an exception comes back as no more than its name.
    def there(*arguments: Any) -> tuple[Any, CodecPlusError | None]:
        try:
            return function(*arguments), None
        except CodecPlusError as error:
            return None, error.with_traceback(None)

    lent = spaces.GPU(duration=_GPU_SECONDS)(there)

    @functools.wraps(function)
    def here(*arguments: Any) -> Any:
        value, error = lent(*arguments)
        if error is not None:
            raise error
        return value

    return here


@functools.cache
def checkpoint(name: str) -> Codec:
    """Load a codec of the demo once, on the processor. Streams use it, whose steps are too small
    for a GPU.

    Raises InputError for any other name, so that visitors cannot make the server load a model.
    """
    if name not in CHECKPOINTS:
        raise InputError(
            f"There is no checkpoint {name!r} here; there are {', '.join(map(title, CHECKPOINTS))}."
        )
    return load_codec(name, device="cpu")


@functools.cache
def _fastest(name: str) -> Codec:
    """The same codec for whole clips: on the GPU, if there is one."""
    return checkpoint(name) if device() == "cpu" else load_codec(name, device=device())


def load() -> None:
    """Load every codec. ZeroGPU wants those of the GPU before the page is launched."""
    for name in CHECKPOINTS:
        _fastest(name)


def title(name: str) -> str:
    """Return the name that visitors see: of a folder its last part, which hides the server's
    folders.
    """
    return Path(name).name if Path(name).is_absolute() else name


def rates(name: str) -> list[float]:
    """Rates of a checkpoint in kbit/s per channel."""
    return checkpoint(name).bitrates


def check_rate(name: str, kbps: float) -> float:
    """Return a rate that a checkpoint has, in kbit/s per channel; raises InputError for others."""
    reachable = rates(name)
    low = round(reachable[0], 2)
    high = round(reachable[-1], 2)
    if not low <= round(kbps, 2) <= high:
        raise InputError(
            f"Expected {low:g} to {high:g} kbit/s per channel for {title(name)}, got {kbps:g}."
        )
    return min(max(kbps, reachable[0]), reachable[-1])


class _Recent:
    """A cache of the last results. Callers that ask for one key at once share the computation."""

    def __init__(self, count: int):
        self.count = count
        self._values: OrderedDict[Any, Any] = OrderedDict()
        self._locks: dict[Any, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of a key, made now if it is not known."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    return self._values[key]
            try:
                value = make()
            except BaseException:
                with self._lock:
                    self._locks.pop(key, None)
                raise
            with self._lock:
                self._values[key] = value
                while len(self._values) > self.count:
                    old, _ = self._values.popitem(last=False)
                    self._locks.pop(old, None)
            return value


_compressed, _decoded, _scores = _Recent(128), _Recent(24), _Recent(512)


def compress(clip: Clip, name: str, kbps: float) -> bytes:
    """The `.dacp` file of a clip at the nearest rate, in kbit/s per channel."""
    codec, channels = checkpoint(name), len(clip.audio)
    books = codec.n_quantizers_for(kbps * channels, channels)
    return _compressed.get((clip.digest, name, books), lambda: _compress(name, clip, books))


@on_gpu
def _compress(name: str, clip: Clip, books: int) -> bytes:
    audio = clip.audio[0] if len(clip.audio) == 1 else clip.audio
    return _fastest(name).compress(audio, sample_rate=clip.sample_rate, n_quantizers=books)


@on_gpu
def _decompress(name: str, data: bytes) -> np.ndarray:
    return np.atleast_2d(_fastest(name).decompress(data))


def round_trip(clip: Clip, name: str, kbps: float) -> Coded:
    """A clip through a checkpoint of the demo, by way of its file."""
    start = time.perf_counter()
    data = compress(clip, name, kbps)
    middle = time.perf_counter()
    key = hashlib.sha256(data).hexdigest(), name
    audio = _decoded.get(key, lambda: _decompress(name, data))
    spent = middle - start, time.perf_counter() - middle
    return Coded(title(name), len(data), len(data) * 8 / clip.seconds / 1000, audio, data, *spent)


HARNESS = ("opus", "opus-vbr", "mp3", "aac")


def any_codec(clip: Clip, name: str, kbps: float) -> Coded:
    """Code a clip by a checkpoint or a codec of the harness, at a rate in kbit/s per channel."""
    if name in CHECKPOINTS:
        reachable = rates(name)
        return round_trip(clip, name, min(max(kbps, reachable[0]), reachable[-1]))
    if name not in HARNESS:
        raise InputError(
            f"There is no codec {name!r} here; there are {', '.join([*CHECKPOINTS, *HARNESS])}."
        )
    codec = resolve_codecs([name], [round(kbps, 2)])[-1]
    return _decoded.get((clip.digest, codec.name), lambda: _code(name, codec, clip))


def _code(name: str, codec: Any, clip: Clip) -> Coded:
    channels, samples = clip.audio.shape
    start = time.perf_counter()
    payload = codec.encode(clip.audio, clip.sample_rate)
    middle = time.perf_counter()
    audio = codec.decode(payload.data, Original(channels, samples, clip.sample_rate))
    return Coded(
        name,
        len(payload.data),
        payload.bits / clip.seconds / 1000,
        audio,
        payload.data,
        middle - start,
        time.perf_counter() - middle,
    )


def read_coded(path: str | Path | None) -> bytes:
    """Return the bytes of an uploaded `.dacp`; raises InputError for none, or one too large."""
    if not path:
        raise InputError("There is no file yet: upload a .dacp.")
    path = Path(path)
    _check_size(path)
    return path.read_bytes()


def decode_file(path: str | Path | None) -> tuple[np.ndarray, int, dict[str, Any]]:
    """Audio (C, S) of an uploaded `.dacp`, its rate, and what the file says of itself.

    Raises InputError or FileFormatError with one sentence for a file that is no `.dacp`, is too
    long, or comes from another model.
    """
    return decode_bytes(read_coded(path))


def checkpoint_of(data: bytes) -> str:
    """Return the checkpoint that made a `.dacp` file; raises ModelMismatchError for another's."""
    return _checkpoint_of(Reader(io.BytesIO(data)).header)


def _checkpoint_of(header: Any) -> str:
    for name in CHECKPOINTS:
        # A file has the first bytes of its model's fingerprint.
        if checkpoint(name).fingerprint.startswith(header.fingerprint):
            return name
    raise ModelMismatchError(
        f"Another model made this file; here are {', '.join(map(title, CHECKPOINTS))}."
    )


def decode_bytes(data: bytes) -> tuple[np.ndarray, int, dict[str, Any]]:
    """Return what `decode_file` returns, of the bytes of a `.dacp` file; with the same errors."""
    if not data:
        raise FileFormatError("Expected a .dacp file, got an empty one.")
    header = Reader(io.BytesIO(data)).header
    seconds = header.num_samples / header.original_sample_rate
    if (
        seconds > MAX_SECONDS
        or header.channels > MAX_CHANNELS
        or header.original_sample_rate > MAX_RATE
    ):
        raise InputError(
            f"Expected at most {MAX_SECONDS} s of mono or stereo, got {_duration(seconds)} of "
            f"{header.channels} "
            "channels; use `codecplus decode`, which takes any length."
        )
    name = _checkpoint_of(header)
    audio = _decompress(name, data)
    about = {
        "checkpoint": title(name),
        "seconds": round(seconds, 3),
        "channels": header.channels,
        "sample_rate": header.original_sample_rate,
        "codebooks": header.num_codebooks,
        "bytes": len(data),
        "kbit/s": round(len(data) * 8 / max(seconds, 1e-9) / 1000, 3),
    }
    return audio, header.original_sample_rate, about


def size_figures(clip: Clip, data: bytes) -> dict[str, float]:
    """Measure a file: its bytes, its rate, and how many times smaller than 16-bit PCM it is."""
    return {
        "bytes": len(data),
        "kbps": round(len(data) * 8 / clip.seconds / 1000, 3),
        "smaller": round(clip.pcm_bytes / len(data), 1),
    }


def rate_text(kbps: float, clip: Clip) -> str:
    """Write a bitrate; of stereo as twice that of a channel, which the slider sets."""
    channels = len(clip.audio)
    if channels == 1:
        return f"{kbps:.2f} kbit/s"
    return f"{channels} × {kbps / channels:.2f} kbit/s"


def file_name(coded: Coded, suffix: str) -> str:
    """Name a file after its codec and rate, so that downloads can be told apart.

    >>> coded = Coded("opus", 750, 6.0, np.zeros((1, 1)), b"")
    >>> file_name(coded, ".wav")
    'opus-6.00kbps.wav'
    """
    return f"{coded.codec.replace('/', '-')}-{coded.kbps:.2f}kbps{suffix}"


def figures(clip: Clip, coded: Coded) -> dict[str, Any]:
    """Measure a coded clip: size, rate and scores. A score that failed is None, with a reason."""
    key = clip.digest, hashlib.sha256(coded.audio.tobytes()).hexdigest()
    found = _scores.get(key, lambda: score(clip.audio, coded.audio, clip.sample_rate, METRICS))
    return {
        "codec": coded.codec,
        "bytes": coded.size,
        "kbps": round(coded.kbps, 3),
        "smaller": round(clip.pcm_bytes / coded.size, 1),
        **{
            name: None if found[name].value is None else round(float(found[name].value), 3)
            for name in METRICS
        },
        "reasons": {name: found[name].reason for name in METRICS if found[name].value is None},
    }
