"""Live calls: packets over a WebSocket through the streaming codec and back, each of them timed.

The browser sends 16-bit samples behind an eight-byte time stamp of its own. It gets back the time
stamp, the milliseconds that encoding and decoding took, the bits of the codes between the two, and
the samples that came out. The round trip is thus measured by one clock.
"""

import asyncio
import os
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from codecplus import Codec
from codecplus.audio.resampling import Resampler
from codecplus.errors import CodecPlusError, InputError

from .coding import Clip, checkpoint, title
from .settings import MAX_LIVE_CALLS, MAX_LIVE_CALLS_EACH, MAX_LIVE_SECONDS

PACKET = 0.02  # seconds
_MAX_MESSAGE = 1 << 16  # bytes
_HEAD = struct.Struct("<dfI")  # the browser's time stamp, milliseconds of work, bits of codes
_SILENCE_SECONDS = 5  # a browser sends a packet every 20 ms; who sends none gives the line free


class Lines:
    """The live lines, of which one address may hold a few."""

    def __init__(self, total: int, each: int):
        self.total = total
        self.each = each
        self._holders: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, address: str) -> str | None:
        """Take a line; returns a sentence for the caller where there is none."""
        with self._lock:
            if self._holders[address] >= self.each:
                return f"You have {self.each} live calls already; end one of them first."
            if self._holders.total() >= self.total:
                return f"All {self.total} live lines are taken; try again in a minute."
            self._holders[address] += 1
            return None

    def give_back(self, address: str) -> None:
        """Free a line that `take` gave."""
        with self._lock:
            self._holders[address] -= 1
            self._holders += Counter()  # forget addresses without a line


class Pace:
    """Tells whether samples come faster than anybody speaks: more than a second ahead of time."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic):
        self.rate = rate
        self._clock = clock
        self._begun = clock()
        self._samples = 0

    def allows(self, samples: int) -> bool:
        """Count some samples; returns False when they are too many for the time that passed."""
        self._samples += samples
        # Clocks of sound cards differ by less than 1 %.
        return self._samples <= self.rate * (1.01 * (self._clock() - self._begun) + 1)


_lines = Lines(MAX_LIVE_CALLS, MAX_LIVE_CALLS_EACH)


def is_own_page(headers: Mapping[str, str]) -> bool:
    """Return whether a page of this app opened a socket, or a program that is no browser.

    Browsers name the page's origin. Another website must not use its visitors for calls here.
    """
    origin = headers.get("origin")
    if origin is None:
        return True
    hosts = {headers.get("host"), os.environ.get("SPACE_HOST")}
    return urlsplit(origin).netloc in hosts - {None, ""}


def address_of(socket: WebSocket) -> str:
    """Return the caller's address: as the proxy before a Space names it, else of the connection."""
    forwarded = socket.headers.get("x-forwarded-for", "")
    if os.environ.get("SPACE_HOST") and forwarded:
        return forwarded.split(",")[0].strip()
    return socket.client.host if socket.client else ""


class Call:
    """One live call: samples (n,) of the caller's rate in, samples of that rate out."""

    def __init__(self, codec: Codec, kbps: float, sample_rate: int | None = None):
        rate = codec.model_sample_rate if sample_rate is None else sample_rate
        self.bits_per_frame = (
            1000 * codec.bitrates[codec.n_quantizers_for(kbps) - 1] / codec.frame_rate
        )
        self._encoder = codec.encoder_stream(n_quantizers=codec.n_quantizers_for(kbps))
        self._decoder = codec.decoder_stream()
        self._down = Resampler(rate, codec.model_sample_rate)
        self._up = Resampler(codec.model_sample_rate, rate)

    def push(self, samples: np.ndarray) -> tuple[np.ndarray, int]:
        """Give the samples that are ready, and how many bits the codes have."""
        codes = self._encoder.push(self._down.push(samples[None])[0])
        audio = self._up.push(self._decoder.push(codes)[None])[0]
        return audio, round(codes.shape[-1] * self.bits_per_frame)

    def flush(self) -> np.ndarray:
        """The samples that are left."""
        codes = self._encoder.push(self._down.flush()[0]), self._encoder.flush()
        parts = [self._decoder.push(piece) for piece in codes]
        parts.append(self._decoder.flush())
        return np.concatenate([self._up.push(np.concatenate(parts)[None])[0], self._up.flush()[0]])


def measure(clip: Clip, name: str, kbps: float) -> tuple[np.ndarray, int, dict[str, Any]]:
    """Stream a clip in packets of 20 ms and time each: audio (S,), its rate, and what was measured.

    The first half second is not counted: it pays for what later packets need not.
    """
    from codecplus.audio.resampling import resample

    codec = checkpoint(name)
    rate = codec.model_sample_rate
    samples = resample(clip.audio.mean(axis=0), clip.sample_rate, rate)
    call, size = Call(codec, kbps), round(PACKET * rate)
    parts, times, coded = [], [], 0
    for start in range(0, len(samples), size):
        begun = time.perf_counter()
        audio, count = call.push(samples[start : start + size])
        times.append(1000 * (time.perf_counter() - begun))
        parts.append(audio)
        coded += count
    parts.append(call.flush())
    steady = np.array(times[round(0.5 / PACKET) :] or times)
    measured = {
        "checkpoint": title(name),
        "algorithmic_ms": round(1000 * codec.latency, 1),
        "packet_ms": 1000 * PACKET,
        "compute_median_ms": round(float(np.median(steady)), 2),
        "compute_p95_ms": round(float(np.percentile(steady, 95)), 2),
        "real_time_factor": round(1000 * PACKET / float(steady.mean()), 2),
        "kbps": round(coded * rate / len(samples) / 1000, 2),
    }
    return np.concatenate(parts)[: len(samples)], rate, measured


async def serve(socket: WebSocket) -> None:
    """Answer one live call, from `ready` to its end. An error ends it with one sentence."""
    if not is_own_page(socket.headers):
        await socket.close(1008)  # before it is accepted: the browser sees 403
        return
    await socket.accept()
    address = address_of(socket)
    refusal = _lines.take(address)
    if refusal is not None:
        await _end(socket, refusal)
        return
    try:
        try:
            codec = checkpoint(socket.query_params.get("checkpoint", ""))
            rate = int(socket.query_params.get("rate", "0"))
            if not 8000 <= rate <= 96_000:
                raise InputError(f"Expected audio of 8,000 to 96,000 Hz, got {rate} Hz.")
            call = await asyncio.to_thread(
                Call, codec, float(socket.query_params.get("kbps", "0")), rate
            )
        except (CodecPlusError, ValueError) as error:
            await _end(socket, str(error))
            return
        await socket.send_json({"ready": True, "latency": codec.latency})
        await _converse(socket, call, Pace(rate))
    except (WebSocketDisconnect, RuntimeError, asyncio.TimeoutError):
        pass  # the caller hung up, or fell silent
    finally:
        _lines.give_back(address)


async def _converse(socket: WebSocket, call: Call, pace: Pace) -> None:
    deadline = time.monotonic() + MAX_LIVE_SECONDS
    while True:
        message = await asyncio.wait_for(socket.receive_bytes(), timeout=_SILENCE_SECONDS)
        if not 8 < len(message) <= _MAX_MESSAGE or len(message) % 2:
            await _end(
                socket,
                f"Expected packets of a time stamp and 16-bit samples, got {len(message)} bytes.",
            )
            return
        if time.monotonic() > deadline:
            await _end(socket, f"A live call lasts {MAX_LIVE_SECONDS} s here; start another.")
            return
        stamp = struct.unpack_from("<d", message)[0]
        samples = np.frombuffer(message, "<i2", offset=8).astype(np.float32) / 32768
        if not pace.allows(len(samples)):
            await _end(socket, "Expected packets as fast as one speaks, got them faster.")
            return
        begun = time.perf_counter()
        audio, size = await asyncio.to_thread(call.push, samples)
        spent = 1000 * (time.perf_counter() - begun)
        pcm = np.rint(audio.clip(-1, 32767 / 32768) * 32768).astype("<i2")
        await socket.send_bytes(_HEAD.pack(stamp, spent, size) + pcm.tobytes())


async def _end(socket: WebSocket, why: str) -> None:
    await socket.send_json({"error": why})
    await socket.close()
