"""Codecs that fail in the ways a harness must not reward, registered as third parties would."""

import numpy as np
from eval_signals import HalfCodec


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
