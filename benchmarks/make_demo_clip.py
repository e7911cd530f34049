"""Make src/codecplus/assets/demo.flac: a spoken sentence that runs into a few bars of music, all of
it synthesised.

    python benchmarks/make_demo_clip.py [output.flac] [--seed 0]

Speech comes from espeak-ng, which must be installed; plucked strings, pad, drum and shaker are
numpy.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from codecplus.audio.loudness import integrated_loudness
from codecplus.utils import load_audio, save_audio

RATE = 44100
TEXT = "Codec plus turns sound into a few kilobits per second, and back again."
BEAT = 60 / 116  # seconds
CHORDS = [("C3", "G3", "E4", "B4"), ("F2", "C4", "A3", "E4"), ("G2", "D4", "B3", "F4")]
ENDING = ("C3", "G3", "E4", "C5")
LOUDNESS = -20.5  # LUFS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    assets = Path(__file__).resolve().parent.parent / "src" / "codecplus" / "assets"
    parser.add_argument("output", nargs="?", type=Path, default=assets / "demo.flac")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    save_audio(clip(np.random.default_rng(arguments.seed)), arguments.output, RATE)


def clip(rng: np.random.Generator) -> np.ndarray:
    speech = levelled(with_room(speak(TEXT), 0.06, rng), -20.0)
    music = levelled(play(rng), -20.0)
    start = len(speech) - int(2 * BEAT * RATE)  # the music enters under the last words
    mix = np.zeros(start + len(music))
    mix[: len(speech)] += speech
    mix[start:] += music
    mix = faded(levelled(mix, LOUDNESS), 0.02, 0.6)
    if np.abs(mix).max() > 0.9:
        raise SystemExit(f"the peak is {np.abs(mix).max():.2f}; soften the drum or lower LOUDNESS")
    return mix


def levelled(audio: np.ndarray, loudness: float) -> np.ndarray:
    return audio * 10 ** ((loudness - integrated_loudness(audio, RATE)) / 20)


def faded(audio: np.ndarray, fade_in: float, fade_out: float) -> np.ndarray:
    t = np.arange(len(audio)) / RATE
    ramp = np.minimum(t / fade_in, (t[-1] - t) / fade_out).clip(0, 1)
    return audio * np.sin(np.pi / 2 * ramp) ** 2


# ---- speech


def speak(text: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        command = ["espeak-ng", "-v", "en-us", "-s", "168", "-p", "42", "-w", str(wav), text]
        try:
            subprocess.run(command, check=True)
        except FileNotFoundError:
            raise SystemExit(
                "espeak-ng is not installed; install it, on Debian with: apt install espeak-ng"
            ) from None
        audio, _ = load_audio(wav, sample_rate=RATE, channels=1)
    loud = np.flatnonzero(np.abs(audio) > 0.01)
    margin = RATE // 10
    return faded(audio[max(0, loud[0] - margin) : loud[-1] + margin], 0.02, 0.05)


# ---- music


def play(rng: np.random.Generator) -> np.ndarray:
    """Three chords of two beats and an ending, mono."""
    bars = [*CHORDS, ENDING]
    out = np.zeros(int((2 * len(bars) + 0.6) * BEAT * RATE))

    def add(sound: np.ndarray, beat: float, gain: float) -> None:
        start = int(beat * BEAT * RATE)
        end = min(len(out), start + len(sound))
        out[start:end] += gain * sound[: end - start]

    for bar, chord in enumerate(bars):
        notes = [frequency(name) for name in chord]
        last = bar == len(bars) - 1
        add(pad(notes, 3 * BEAT), 2 * bar - 0.2 * (bar > 0), 0.05)
        for i, step in enumerate([0, 1, 2, 3] if last else [0, 2, 3, 2]):
            add(
                pluck(notes[step], 2.2, rng),
                2 * bar + (0.06 if last else 0.5) * i,
                0.5 if step else 0.7,
            )
        add(drum(), 2 * bar, 0.35)
        for i in range(1 if last else 4):
            add(shaker(rng), 2 * bar + 0.5 * i, 0.10 if i % 2 else 0.05)
    return with_room(out, 0.16, rng)


def frequency(note: str) -> float:
    semitones = {"C": -9, "D": -7, "E": -5, "F": -4, "G": -2, "A": 0, "B": 2}[note[0]]
    return 440 * 2 ** (int(note[1]) - 4 + semitones / 12)


def pluck(pitch: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """A plucked string by Karplus-Strong: a burst of noise in a loop that filters it each turn."""
    period = round(RATE / pitch - 0.5)
    burst = rng.uniform(-1, 1, period)
    burst = 0.6 * burst + 0.4 * np.roll(burst, 1)
    turns, before = [burst - burst.mean()], 0.0
    for _ in range(int(seconds * RATE / period) + 2):
        delayed = np.concatenate([[before], turns[-1][:-1]])
        before = turns[-1][-1]
        turns.append(0.9985 * 0.5 * (turns[-1] + delayed))
    string = np.concatenate(turns)
    step = pitch * (period + 0.5) / RATE  # a whole number of samples is not quite the pitch
    return faded(
        np.interp(np.arange(int(seconds * RATE)) * step, np.arange(len(string)), string), 0.001, 0.3
    )


def pad(pitches: list[float], seconds: float) -> np.ndarray:
    t = np.arange(int(seconds * RATE)) / RATE
    vibrato = 0.002 * np.sin(2 * np.pi * 4.6 * t)
    tones = [
        np.sin(2 * np.pi * k * pitch * (t + vibrato / 8)) / k**1.6
        for pitch in pitches
        for k in range(1, 9)
    ]
    return faded(np.sum(tones, axis=0), 0.25, 0.5)


def drum() -> np.ndarray:
    t = np.arange(int(0.35 * RATE)) / RATE
    phase = 2 * np.pi * (52 * t + 2.2 * (1 - np.exp(-t / 0.03)))  # falls from 125 to 52 Hz
    return faded(np.sin(phase) * np.exp(-t / 0.12), 0.002, 0.1)


def shaker(rng: np.random.Generator) -> np.ndarray:
    t = np.arange(int(0.12 * RATE)) / RATE
    noise = np.diff(
        rng.standard_normal(len(t) + 2), n=2
    )  # twice differentiated: bright, up to half the rate
    return faded(noise * np.exp(-t / 0.03), 0.004, 0.03)


def with_room(dry: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    t = np.arange(int(0.7 * RATE)) / RATE
    room = rng.standard_normal(len(t)) * np.exp(-t / 0.16)
    room /= np.sqrt(np.sum(room**2))
    size = len(dry) + len(room)
    wet = np.fft.irfft(np.fft.rfft(dry, size) * np.fft.rfft(room, size), size)[: len(dry)]
    return dry + amount * wet


if __name__ == "__main__":
    main()
