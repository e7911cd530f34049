"""Live calls: packets over a WebSocket through the streaming codec and back, each of them timed.

The browser sends 16-bit samples behind an eight-byte time stamp of its own. It gets back the time
stamp, the milliseconds that encoding and decoding took, the bits of the codes between the two, and
the samples that came out. The round trip is thus measured by one clock.

A text message, {"way", "checkpoint", "kbps"}, chooses another way through the server without
hanging up: `codec`, `opus`, or `raw`, which returns the samples as they came.
"""

import asyncio
import json
import math
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
from codecplus.errors import CodecPlusError, InputError

from .coding import Clip, checkpoint, title
from .live_resampling import LiveResampler
from .settings import MAX_LIVE_CALLS, MAX_LIVE_CALLS_EACH, MAX_LIVE_SECONDS

PACKET = 0.02  # seconds
_MAX_MESSAGE = 1 << 16  # bytes
_HEAD = struct.Struct("<dfI")  # the browser's time stamp, milliseconds of work, bits of codes
WAYS = ("codec", "opus", "raw")
_OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)  # Hz
_OPUS_KBPS = (0.5, 256.0)  # what libopus takes of one channel
_UNHEARD_SECONDS = 0.1
_MAX_SWITCHES = 1000  # a call
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
        self._codec = codec
        self._encoder = codec.encoder_stream(n_quantizers=codec.n_quantizers_for(kbps))
        self._decoder = codec.decoder_stream()
        self._down = LiveResampler(rate, codec.model_sample_rate)
        self._up = LiveResampler(codec.model_sample_rate, rate)
        self.latency = codec.latency + self._down.delay + self._up.delay

    def set_rate(self, kbps: float) -> None:
        """Use another number of codebooks from the next frame on; the sound is not interrupted.

        Raises InputError for a rate that the checkpoint does not have.
        """
        self._encoder.n_quantizers = self._codec.n_quantizers_for(kbps)

    @property
    def bits_per_frame(self) -> float:
        """Bits of the codes of one frame."""
        kbps = self._codec.bitrates[self._encoder.n_quantizers - 1]
        return 1000 * kbps / self._codec.frame_rate

    def push(self, samples: np.ndarray) -> tuple[np.ndarray, int]:
        """Give the samples that are ready, and how many bits the codes have."""
        codes = self._encoder.push(self._down.push(samples))
        audio = self._up.push(self._decoder.push(codes))
        return audio, round(codes.shape[-1] * self.bits_per_frame)

    def flush(self) -> np.ndarray:
        """The samples that are left."""
        parts = [self._decoder.push(self._encoder.flush()), self._decoder.flush()]
        return self._up.push(np.concatenate(parts))


class RawCall:
    """A call without a codec: what comes in goes out."""

    latency = 0.0

    def set_rate(self, kbps: float) -> None:
        """Do nothing: 16-bit samples have one rate."""

    def push(self, samples: np.ndarray) -> tuple[np.ndarray, int]:
        """Give the samples back, and their bits."""
        return samples, 16 * len(samples)


class OpusCall:
    """A call through Opus in frames of 20 ms, set for speech, at a constant bit rate.

    Raises InputError without PyAV.
    """

    latency = 0.0265  # a frame, and 6.5 ms of look-ahead (RFC 6716, section 2.1.3)

    def __init__(self, kbps: float, sample_rate: int):
        # The lowest of the library's rates that loses nothing: no bits go to empty bands.
        self._rate = next((rate for rate in _OPUS_RATES if rate >= sample_rate), 48_000)
        self._down = LiveResampler(sample_rate, self._rate)
        self._up = LiveResampler(self._rate, sample_rate)
        self._waiting = np.zeros(0, np.float32)
        self._open(kbps)

    def _open(self, kbps: float) -> None:
        try:
            import av
        except ImportError as error:
            raise InputError("There is no Opus here: PyAV is missing.") from error
        self._av = av
        encoder: Any = av.CodecContext.create("libopus", "w")
        encoder.sample_rate = self._rate
        encoder.layout = "mono"
        encoder.format = "flt"
        encoder.bit_rate = round(1000 * min(max(kbps, _OPUS_KBPS[0]), _OPUS_KBPS[1]))
        encoder.options = {"vbr": "off", "application": "voip", "frame_duration": "20"}
        encoder.open()
        decoder: Any = av.CodecContext.create("libopus", "r")
        decoder.sample_rate = self._rate
        decoder.layout = "mono"
        self._encoder = encoder
        self._decoder = decoder
        self._resampler = av.AudioResampler(format="flt", layout="mono", rate=self._rate)

    def set_rate(self, kbps: float) -> None:
        """Code at another rate from the next frame on. libopus begins anew: 6.5 ms are silent."""
        self._open(kbps)

    def push(self, samples: np.ndarray) -> tuple[np.ndarray, int]:
        """Give the samples that are ready, and how many bits the packets have."""
        self._waiting = np.concatenate([self._waiting, self._down.push(samples)])
        size = round(PACKET * self._rate)
        parts = [np.zeros(0, np.float32)]
        bits = 0
        while len(self._waiting) >= size:
            frame = self._av.AudioFrame.from_ndarray(
                np.ascontiguousarray(self._waiting[None, :size]), format="flt", layout="mono"
            )
            frame.sample_rate = self._rate
            self._waiting = self._waiting[size:]
            for packet in self._encoder.encode(frame):
                bits += 8 * packet.size
                for decoded in self._decoder.decode(packet):
                    for piece in self._resampler.resample(decoded):
                        parts.append(piece.to_ndarray()[0])
        return self._up.push(np.concatenate(parts)), bits


class Line:
    """The ways through the server for one caller, of which one is heard.

    As many samples come out as go in, whatever the way: before the first one is ready there is
    silence. After a switch the new way runs unheard for a tenth of a second, then the two are
    cross-faded.

    Args:
        sample_rate: the caller's, Hz
        settings: as `switch` takes them
    """

    def __init__(self, sample_rate: int, settings: Mapping[str, Any]):
        self._rate = sample_rate
        self._settings = _checked_settings(settings)
        self._way = _EvenWay(self._make(self._settings))
        self._next: _EvenWay | None = None
        self._unheard = 0

    @property
    def latency(self) -> float:
        """Delay in seconds of the way chosen last, without the network and the sound card."""
        return (self._next or self._way).call.latency

    def switch(self, settings: Mapping[str, Any]) -> None:
        """Choose a way: `way` is `codec`, `opus` or `raw`, `checkpoint` a name, `kbps` a rate.

        Raises InputError for anything else; the call then goes on as before.
        """
        settings = _checked_settings(settings)
        other = {key: settings[key] for key in ("way", "checkpoint")}
        same = {key: self._settings[key] for key in ("way", "checkpoint")}
        if other == same:
            (self._next or self._way).call.set_rate(settings["kbps"])
        else:
            self._next = _EvenWay(self._make(settings))
            self._unheard = round(_UNHEARD_SECONDS * self._rate)
        self._settings = settings

    def push(self, samples: np.ndarray) -> tuple[np.ndarray, int]:
        """Take samples (n,) and return as many, and the bits between coding and decoding."""
        audio, bits = self._way.push(samples)
        if self._next is None:
            return audio, bits
        other, other_bits = self._next.push(samples)
        self._unheard -= len(samples)
        if self._unheard > 0:
            return audio, bits
        self._way = self._next
        self._next = None
        share = np.linspace(0, 1, len(samples), dtype=np.float32)
        return (1 - share) * audio + share * other, other_bits

    def _make(self, settings: Mapping[str, Any]) -> "Call | OpusCall | RawCall":
        if settings["way"] == "raw":
            return RawCall()
        if settings["way"] == "opus":
            return OpusCall(settings["kbps"], self._rate)
        return Call(checkpoint(settings["checkpoint"]), settings["kbps"], self._rate)


class _EvenWay:
    """Gives as many samples as it takes: silence until the call has some to give."""

    def __init__(self, call: "Call | OpusCall | RawCall"):
        self.call = call
        self._ready = np.zeros(0, np.float32)

    def push(self, samples: np.ndarray) -> tuple[np.ndarray, int]:
        audio, bits = self.call.push(samples)
        ready = np.concatenate([self._ready, audio])
        missing = max(0, len(samples) - len(ready))
        ready = np.concatenate([np.zeros(missing, np.float32), ready])
        self._ready = ready[len(samples) :]
        return ready[: len(samples)], bits


def _checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    way = settings.get("way", "codec")
    if way not in WAYS:
        raise InputError(f"There is no way {way!r} through here; there are {', '.join(WAYS)}.")
    try:
        kbps = float(settings.get("kbps", 0))
    except (TypeError, ValueError) as error:
        raise InputError(f"Expected a rate in kbit/s, got {settings['kbps']!r}.") from error
    if not math.isfinite(kbps):
        raise InputError(f"Expected a rate in kbit/s, got {kbps}.")
    codec = checkpoint(str(settings.get("checkpoint", "")))
    codec.n_quantizers_for(kbps)  # the slider is the checkpoint's, for Opus too
    return {"way": way, "kbps": kbps, "checkpoint": str(settings["checkpoint"])}


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
            rate = int(socket.query_params.get("rate", "0"))
            if not 8000 <= rate <= 96_000:
                raise InputError(f"Expected audio of 8,000 to 96,000 Hz, got {rate} Hz.")
            line = await asyncio.to_thread(Line, rate, socket.query_params)
        except (CodecPlusError, ValueError) as error:
            await _end(socket, str(error))
            return
        await socket.send_json({"ready": True, "latency": line.latency})
        await _converse(socket, line, Pace(rate))
    except (WebSocketDisconnect, RuntimeError, asyncio.TimeoutError):
        pass  # the caller hung up, or fell silent
    finally:
        _lines.give_back(address)


async def _converse(socket: WebSocket, line: Line, pace: Pace) -> None:
    deadline = time.monotonic() + MAX_LIVE_SECONDS
    switches = 0
    while True:
        event = await asyncio.wait_for(socket.receive(), timeout=_SILENCE_SECONDS)
        if event["type"] == "websocket.disconnect":
            return
        if time.monotonic() > deadline:
            await _end(socket, f"A live call lasts {MAX_LIVE_SECONDS} s here; start another.")
            return
        if event.get("text") is not None:
            switches += 1
            refusal = await _switch(socket, line, event["text"])
            if refusal is None and switches > _MAX_SWITCHES:
                refusal = f"Expected at most {_MAX_SWITCHES} changes a call; start another."
            if refusal is not None:
                await _end(socket, refusal)
                return
            continue
        message = event.get("bytes") or b""
        if not 8 < len(message) <= _MAX_MESSAGE or len(message) % 2:
            await _end(
                socket,
                f"Expected packets of a time stamp and 16-bit samples, got {len(message)} bytes.",
            )
            return
        stamp = struct.unpack_from("<d", message)[0]
        samples = np.frombuffer(message, "<i2", offset=8).astype(np.float32) / 32768
        if not pace.allows(len(samples)):
            await _end(socket, "Expected packets as fast as one speaks, got them faster.")
            return
        begun = time.perf_counter()
        audio, size = await asyncio.to_thread(line.push, samples)
        spent = 1000 * (time.perf_counter() - begun)
        pcm = np.rint(audio.clip(-1, 32767 / 32768) * 32768).astype("<i2")
        await socket.send_bytes(_HEAD.pack(stamp, spent, size) + pcm.tobytes())


async def _switch(socket: WebSocket, line: Line, text: str) -> str | None:
    """Change the way of a call and tell the caller; returns a sentence where that is impossible."""
    try:
        settings = json.loads(text)
        if not isinstance(settings, dict):
            raise InputError("Expected settings of the call as a JSON object.")
        await asyncio.to_thread(line.switch, settings)
    except (CodecPlusError, ValueError, RecursionError) as error:
        return str(error)
    await socket.send_json({"changed": settings, "latency": line.latency})
    return None


async def _end(socket: WebSocket, why: str) -> None:
    await socket.send_json({"error": why})
    await socket.close()
