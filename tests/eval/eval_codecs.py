"""Codecs that fail in the ways a harness must not reward, registered as third parties would."""

import os
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
from eval_signals import HalfCodec

from codecplus.eval.codecs import Payload


class Broken(HalfCodec):
    def decode(self, data, original):
        return self.spoil(super().decode(data, original))


class Silent(Broken):
    name = "silent"

    def spoil(self, audio):
        return audio * 0


class NotANumber(Broken):
    name = "nan"

    def spoil(self, audio):
        return audio * np.nan


class Noise(Broken):
    name = "noise"

    def spoil(self, audio):
        return (0.1 * np.random.default_rng(0).standard_normal(audio.shape)).astype(np.float32)


class Longer(Broken):
    name = "longer"

    def spoil(self, audio):
        return np.pad(audio, ((0, 0), (0, 1)))


class Twice(Broken):
    name = "twice"

    def spoil(self, audio):
        return np.concatenate([audio, audio], axis=1)


class Raising(Broken):
    name = "raising"

    def spoil(self, audio):
        raise RuntimeError("out of luck")


class Liar(HalfCodec):
    """Claims more bits than it stores would be honest; claims none."""

    name = "liar"

    def encode(self, audio, sample_rate):
        from dataclasses import replace

        return replace(super().encode(audio, sample_rate), bits=0)


class Sometimes(HalfCodec):
    """Perfect where it works, and it does not work on the second file."""

    name = "sometimes"

    def encode(self, audio, sample_rate):
        if audio.shape[-1] == 17_600:
            raise RuntimeError("too hard")
        return super().encode(audio, sample_rate)


BROKEN = {c.name: c for c in (Silent, NotANumber, Noise, Longer, Twice, Raising, Liar)}


# ---- codecs that the harness must keep at arm's length


class Dictionary(HalfCodec):
    """Stores a key of 8 bits, and the audio in memory."""

    name = "dictionary"
    memory: ClassVar[dict] = {}

    def encode(self, audio, sample_rate):
        key = len(self.memory)
        self.memory[key] = audio
        return Payload(bytes([key]), 8)

    def decode(self, data, original):
        return self.memory[data[0]]


class Crashing(HalfCodec):
    name = "crashing"

    def decode(self, data, original):
        os._exit(7)


class Hanging(HalfCodec):
    name = "hanging"

    def encode(self, audio, sample_rate):
        time.sleep(600)


class Greedy(HalfCodec):
    name = "greedy"

    def encode(self, audio, sample_rate):
        if not Path(os.environ["CODECPLUS_TEST_MEMORY"]).exists():
            raise MemoryError("no memory today")
        return super().encode(audio, sample_rate)


class Slow(HalfCodec):
    name = "slow"
    calls = 0

    def encode(self, audio, sample_rate):
        self.calls += 1
        time.sleep(0.5 if self.calls == 1 else 0.05)
        return super().encode(audio, sample_rate)

    def codes(self, data):
        return [np.array([1, 2]), np.array([3, 4, 5, 6])], 8


class Unloadable(HalfCodec):
    name = "unloadable"

    def __setstate__(self, state):
        raise RuntimeError("no weights")

    def __getstate__(self):
        return {"weights": "elsewhere"}


ISOLATED = {c.name: c for c in (HalfCodec, Dictionary, Crashing, Hanging, Greedy, Slow, Unloadable)}


# ---- codecs whose packets may be lost


class Packets(HalfCodec):
    """A packet of 100 samples each; what is lost is silent."""

    name = "packets"
    first = b"head"

    def packets(self, data):
        return [self.first] + [data[i : i + 200] for i in range(0, len(data), 200)]

    def decode_packets(self, packets, original):
        assert packets[0] == self.first
        data = b"".join(bytes(200) if packet is None else packet for packet in packets[1:])
        return self.decode(data[: 2 * original.channels * original.samples], original)


class Smuggler(Packets):
    """All of the sound is in the packet that always arrives."""

    name = "smuggler"

    def packets(self, data):
        return [data, b"", b""]


class Inflating(Packets):
    """Its packets hold more than the file that it claims."""

    name = "inflating"

    def packets(self, data):
        return [packet * (1 + (index > 0)) for index, packet in enumerate(super().packets(data))]

    def decode_packets(self, packets, original):
        halves = [packet and packet[: len(packet) // 2] for packet in packets[1:]]
        return super().decode_packets([packets[0], *halves], original)
