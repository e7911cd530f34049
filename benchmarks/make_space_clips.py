"""Make the clips of spaces_demo/clips, all of them synthesised: speech, strings, percussion.

    python benchmarks/make_space_clips.py [--seed 0]

Speech comes from espeak-ng, which must be installed; the rest is numpy, with the instruments of
make_demo_clip.py.
"""

import argparse
from pathlib import Path

import numpy as np
from make_demo_clip import (
    BEAT,
    RATE,
    drum,
    faded,
    frequency,
    levelled,
    pad,
    pluck,
    shaker,
    speak,
    with_room,
)

from codecplus.utils import save_audio

TEXT = (
    "Six sharp whistles crossed the quiet station, then the last train rolled away, "
    "and nobody thought of it again."
)
ARPEGGIO = [
    "A2",
    "E3",
    "A3",
    "C4",
    "E4",
    "C4",
    "A3",
    "E3",
    "F2",
    "C3",
    "F3",
    "A3",
    "C4",
    "A3",
    "F3",
    "C3",
]
PATTERN = "x..sh.s.x.xs..sxx..sh.s.x.h.s.sx"  # sixteenths: drum, shaker, wood block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    rng = np.random.default_rng(parser.parse_args().seed)
    folder = Path(__file__).resolve().parent.parent / "spaces_demo" / "clips"
    folder.mkdir(exist_ok=True)
    for name, audio in (
        ("speech", speech(rng)),
        ("strings", strings(rng)),
        ("percussion", percussion(rng)),
    ):
        save_audio(faded(levelled(audio, -23.0), 0.02, 0.3), folder / f"{name}.flac", RATE)


def speech(rng: np.random.Generator) -> np.ndarray:
    return with_room(speak(TEXT), 0.05, rng)


def strings(rng: np.random.Generator) -> np.ndarray:
    step = BEAT / 2
    out = np.zeros(int((len(ARPEGGIO) * step + 2) * RATE))
    for i, note in enumerate(ARPEGGIO):
        mix(out, pluck(frequency(note), 2.5, rng), i * step, 0.8 if i % 8 == 0 else 0.5)
    for half, chord in enumerate((("A3", "C4", "E4"), ("F3", "A3", "C4"))):
        mix(out, pad([frequency(note) for note in chord], 9 * step), half * 8 * step, 0.06)
    return with_room(out, 0.2, rng)


def percussion(rng: np.random.Generator) -> np.ndarray:
    step = BEAT / 4
    out = np.zeros(int((len(PATTERN) * step + 1) * RATE))
    for i, letter in enumerate(PATTERN):
        if letter == "x":
            mix(out, drum(), i * step, 0.5)
        elif letter == "s":
            mix(out, shaker(rng), i * step, 0.12)
        elif letter == "h":
            mix(out, block(), i * step, 0.5)
    return with_room(out, 0.08, rng)


def block() -> np.ndarray:
    """A wood block: three modes that die at once."""
    t = np.arange(int(0.15 * RATE)) / RATE
    modes = [(810, 0.018, 1.0), (1870, 0.010, 0.6), (3350, 0.006, 0.4)]
    return faded(
        sum(
            gain * np.sin(2 * np.pi * pitch * t) * np.exp(-t / decay)
            for pitch, decay, gain in modes
        ),
        5e-4,
        0.02,
    )


def mix(out: np.ndarray, sound: np.ndarray, seconds: float, gain: float) -> None:
    start = int(seconds * RATE)
    end = min(len(out), start + len(sound))
    out[start:end] += gain * sound[: end - start]


if __name__ == "__main__":
    main()
