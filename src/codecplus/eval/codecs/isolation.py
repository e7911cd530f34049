"""Codecs in processes of their own, which may die. It knows jobs and time limits, no single codec.

One process encodes and another one decodes. They share no memory, so nothing but the payload's
bytes can carry a recording from one to the other; neither crash nor hang reaches the run. Run as a
module, this is such a process.
"""

import base64
import hashlib
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codecplus.errors import InputError
from codecplus.eval.codecs.base import CodecAdapter, Original
from codecplus.system.workers import Message, Worker, WorkerDied, WorkerTimeout, serve

_LOAD_SECONDS = 900.0  # to load a model for the first time, perhaps from the Hub
_GRACE_SECONDS = 120.0  # for a clip of no length
_SECONDS_PER_SECOND = 60.0  # of audio
_MAX_FIRST_PACKET = 128  # bytes: no loss reaches it, so it must not hold sound
_MODULE = "codecplus.eval.codecs.isolation"


class CodecFailed(Exception):
    """The codec gave no output. `passing` says that another try may well succeed."""

    def __init__(self, reason: str, passing: bool = False):
        super().__init__(reason)
        self.passing = passing


@dataclass(frozen=True)
class Loss:
    """Packets that never arrive, each with the same chance from 0 to 1."""

    chance: float
    seed: int

    def arrivals(self, packets: int) -> np.ndarray:
        """Which of some packets arrive; the first one always does."""
        arrives = np.random.default_rng(self.seed).random(packets) >= self.chance
        arrives[:1] = True
        return arrives


@dataclass(frozen=True)
class RoundTrip:
    """One clip through a codec.

    Attributes:
        bits: that the codec counts as its payload.
        file_bits: the bits of all bytes.
        encode_seconds, decode_seconds: of the codec's own two calls.
        audio: what was decoded, whatever its shape.
        codes: (K, T) int32, −1 behind the end of a shorter codebook; None without.
        codebook_size: None without codes.
    """

    bits: int
    file_bits: int
    encode_seconds: float
    decode_seconds: float
    audio: np.ndarray
    codes: np.ndarray | None = None
    codebook_size: int | None = None


@dataclass
class _Side:
    """A process, and what it has loaded."""

    worker: Worker
    loaded: str | None = None  # the hash of the codec it has loaded


@dataclass
class CodecProcesses:
    """The process that encodes and the one that decodes, started when they are first needed.

    Args:
        time_limit: seconds for one clip in one direction; None: 120 and a minute for each second
            of audio.
    """

    time_limit: float | None = None
    peak_memory: int | None = None  # bytes, of the larger process; None where nobody can tell
    _warm: str | None = None  # the hash of the codec that has worked once
    _encoder: _Side = field(default_factory=lambda: _Side(Worker(_MODULE, threads=None)))
    _decoder: _Side = field(default_factory=lambda: _Side(Worker(_MODULE, threads=None)))

    def round_trip(
        self, codec: CodecAdapter, audio: np.ndarray, sample_rate: int, loss: Loss | None = None
    ) -> RoundTrip:
        """Encode (C, S) in one process and decode the bytes, or the packets left, in the other.

        A process that dies is tried once more, because the first death may be the machine's fault.

        Raises:
            CodecFailed: with the reason, if the codec raises, dies twice or takes too long.
            InputError: if the codec cannot be sent to a process.
        """
        if loss is not None and not hasattr(codec, "decode_packets"):
            raise CodecFailed("does not say how it decodes without lost packets")
        data = pickled(codec)
        limit = self._limit(audio, sample_rate)
        original = Original(audio.shape[0], audio.shape[1], sample_rate)
        self._load(data)
        self._warm_up(data, audio[:, :sample_rate], sample_rate)
        try:
            self._load(data)
            return self._try(audio, original, limit, loss)
        except WorkerDied:
            self._load(data)
        try:
            return self._try(audio, original, limit, loss)
        except WorkerDied as death:
            raise _death(death) from None

    def complexity(self, codec: CodecAdapter) -> dict[str, float] | None:
        """Return the codec's parameters and operations; None where it cannot tell."""
        if not hasattr(codec, "complexity"):
            return None
        try:
            self._load(pickled(codec))
            answer, _ = self._ask(self._encoder, ("complexity",), _LOAD_SECONDS)
        except (CodecFailed, WorkerDied):
            return None  # the codec works or fails without it
        return answer["complexity"]

    def reset_peak_memory(self) -> None:
        """Measure anew, from the next codec on."""
        self.peak_memory = None
        self._warm = None
        self._encoder.loaded = None
        self._decoder.loaded = None

    def close(self) -> None:
        """End both processes."""
        self._encoder.worker.stop()
        self._decoder.worker.stop()

    def _limit(self, audio: np.ndarray, sample_rate: int) -> float:
        if self.time_limit is not None:
            return self.time_limit
        return _GRACE_SECONDS + _SECONDS_PER_SECOND * audio.shape[1] / sample_rate

    def _load(self, data: bytes) -> None:
        """Send the codec to the processes that do not have it."""
        key = hashlib.sha256(data).hexdigest()
        for side in (self._encoder, self._decoder):
            if side.loaded == key:
                continue
            try:
                self._ask(side, ("load", data), _LOAD_SECONDS)
            except WorkerDied as death:
                raise _death(death) from None
            side.loaded = key

    def _warm_up(self, data: bytes, beginning: np.ndarray, sample_rate: int) -> None:
        """Let a new codec work once: the first clip's time is not that of loading a model."""
        key = hashlib.sha256(data).hexdigest()
        if self._warm == key:
            return
        self._warm = key
        original = Original(beginning.shape[0], beginning.shape[1], sample_rate)
        limit = self.time_limit or _LOAD_SECONDS
        with suppress(WorkerDied, CodecFailed):  # the clips themselves will tell
            self._try(beginning, original, limit)

    def _try(
        self, audio: np.ndarray, original: Original, limit: float, loss: Loss | None = None
    ) -> RoundTrip:
        job = ("encode", audio, original.sample_rate)
        encoded, _ = self._ask(self._encoder, job, limit)
        data = base64.b64decode(encoded["data"])
        size = len(data)
        if loss is None:
            job = ("decode", data, original)
        else:
            packets = self._packets(data, limit)
            size = max(size, sum(map(len, packets)))
            job = ("decode_packets", _after(packets, loss), original)
        decoded, samples = self._ask(self._decoder, job, limit)
        if samples is None:
            samples = np.empty(decoded["array_shape"], np.float32)
        codes = None
        if decoded["codebook_size"] is not None:
            _, values = self._receive(self._decoder, limit)
            assert values is not None, "codes follow where they are announced"
            codes = values.astype(np.int32)
        return RoundTrip(
            bits=encoded["bits"],
            file_bits=8 * size,
            encode_seconds=encoded["seconds"],
            decode_seconds=decoded["seconds"],
            audio=samples,
            codes=codes,
            codebook_size=decoded["codebook_size"],
        )

    def _packets(self, data: bytes, limit: float) -> list[bytes]:
        answer, _ = self._ask(self._encoder, ("packets", data), limit)
        packets = [base64.b64decode(text) for text in answer["packets"]]
        if len(packets) < 2 or len(packets[0]) > _MAX_FIRST_PACKET:
            raise CodecFailed(
                f"expected a first packet of at most {_MAX_FIRST_PACKET} bytes and others, got "
                f"{len(packets)} packets, the first of {len(packets[0]) if packets else 0} bytes"
            )
        return packets

    def _ask(self, side: _Side, job: tuple, limit: float) -> Message:
        try:
            side.worker.send(job)
        except WorkerDied:
            side.loaded = None
            raise
        return self._receive(side, limit)

    def _receive(self, side: _Side, limit: float) -> Message:
        try:
            answer, samples = side.worker.receive(np.inf, clock_seconds=limit)
        except WorkerTimeout:
            side.loaded = None
            raise CodecFailed(f"no answer within {limit:g} s", passing=True) from None
        except WorkerDied:
            side.loaded = None
            raise
        if answer.get("memory") is not None:
            self.peak_memory = max(self.peak_memory or 0, answer["memory"])
        if "error" in answer:
            raise CodecFailed(answer["error"], answer["passing"])
        return answer, samples


def _after(packets: list[bytes], loss: Loss) -> list[bytes | None]:
    """The packets that arrive, and None for each of the others."""
    arrives = loss.arrivals(len(packets))
    return [packet if here else None for packet, here in zip(packets, arrives, strict=True)]


def pickled(codec: CodecAdapter) -> bytes:
    """Return the codec as bytes that another process can load.

    Classes of a script or a notebook travel by value, by the package dill.

    Raises:
        InputError: if it cannot be sent.
    """
    module = type(codec).__module__
    try:
        if module != "__main__" and module in sys.modules:
            return pickle.dumps(codec)
        return _by_value(codec)
    except Exception as error:
        raise InputError(
            f"the codec {codec.name!r} cannot be sent to a process of its own "
            f"({type(error).__name__}: {error}); define it in a module, and let it open models "
            "and sessions when they are first used"
        ) from error


def _by_value(codec: CodecAdapter) -> bytes:
    import dill

    return dill.dumps(codec, byref=False, recurse=True)


def _death(death: WorkerDied) -> CodecFailed:
    hint = ""
    if death.status == -9:
        hint = ", killed: perhaps out of memory"
    return CodecFailed(f"the codec's process died twice, with status {death.status}{hint}", True)


# ---- inside a process

_codec: Any = None


def _answers(job: tuple) -> Iterator[Message]:
    global _codec
    kind, *arguments = job
    try:
        if kind == "load":
            _codec = None  # its memory is needed
            _reset_peak_memory()
            _codec = _unpickled(arguments[0])
            yield {}, None
        elif kind == "complexity":
            yield {"complexity": _complexity()}, None
        elif kind == "encode":
            yield _encode(*arguments), None
        elif kind == "packets":
            packets = _codec.packets(*arguments)
            yield {"packets": [base64.b64encode(packet).decode() for packet in packets]}, None
        elif kind == "decode_packets":
            yield from _decode(_codec.decode_packets, *arguments, codes_from=None)
        else:
            yield from _decode(_codec.decode, *arguments, codes_from=arguments[0])
    except Exception as error:  # somebody else's code: whatever it raises belongs in the report
        text = f"{type(error).__name__}: {error}"
        passing = isinstance(error, MemoryError) or "out of memory" in text.lower()
        yield {"error": text, "passing": passing, "memory": _peak_memory()}, None


def _unpickled(data: bytes) -> Any:
    if b"dill" in data[:200]:
        import dill

        return dill.loads(data)
    return pickle.loads(data)


def _encode(audio: np.ndarray, sample_rate: int) -> dict[str, Any]:
    start = time.perf_counter()
    payload = _codec.encode(audio, sample_rate)
    seconds = time.perf_counter() - start
    text = base64.b64encode(payload.data).decode()
    memory = _peak_memory()
    return {"bits": int(payload.bits), "data": text, "seconds": seconds, "memory": memory}


def _decode(
    decode: Callable[[Any, Original], Any],
    coded: Any,
    original: Original,
    codes_from: bytes | None,
) -> Iterator[Message]:
    start = time.perf_counter()
    decoded = decode(coded, original)
    seconds = time.perf_counter() - start
    audio = np.asarray(decoded, np.float32)
    header: dict[str, Any] = {"seconds": seconds, "codebook_size": None, "memory": _peak_memory()}
    codes = None
    found = None
    if codes_from is not None and hasattr(_codec, "codes"):
        found = _codec.codes(codes_from)
    if found is not None:
        values, header["codebook_size"] = found
        codes = as_matrix(values)
    if audio.ndim == 2:
        yield header, audio
    else:
        yield {**header, "array_shape": audio.shape}, None
    if codes is not None:
        yield {}, codes.astype(np.float32)  # exact up to 2^24


def _complexity() -> dict[str, float] | None:
    found = _codec.complexity()
    if found is None:
        return None
    return {name: float(found[name]) for name in ("parameters", "operations_per_second")}


def as_matrix(codes: Any) -> np.ndarray:
    """Return codes as (K, T): those of a codec of several rates end with −1.

    >>> as_matrix([np.array([1, 2]), np.array([3, 4, 5, 6])]).tolist()
    [[1, 2, -1, -1], [3, 4, 5, 6]]
    """
    if isinstance(codes, np.ndarray):
        return codes
    rows = [row for book in codes for row in np.atleast_2d(book)]
    matrix = np.full((len(rows), max(len(row) for row in rows)), -1)
    for index, row in enumerate(rows):
        matrix[index, : len(row)] = row
    return matrix


def _reset_peak_memory() -> None:
    try:
        # Linux: 5 resets the high-water mark of resident memory
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_memory() -> int | None:
    """Peak bytes of resident and CUDA memory since the reset; None where nobody can tell."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            host = next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        host += torch.cuda.max_memory_allocated()
    return host


if __name__ == "__main__":
    # Bars of libraries would stand between those of the run.
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    serve(_answers)
