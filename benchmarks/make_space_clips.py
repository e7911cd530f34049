"""Make the clips of spaces_demo/clips: two recordings as codecs leave them, and percussion.

    python benchmarks/make_space_clips.py --recordings FOLDER [--seed 0]

FOLDER holds the recordings that `RECORDINGS` names. Every version of a recording is written as FLAC
at one loudness, with its spectrogram; the codes of the highest rate hold those of the others, and
showcase.json says which file is what. The demo plays and shows them without computing anything. Run
it again after new weights. Percussion is numpy, with the instruments of make_demo_clip.py.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from make_demo_clip import BEAT, RATE, drum, faded, levelled, shaker, with_room

from codecplus import load_codec
from codecplus.eval.codecs import Original, resolve_codecs
from codecplus.eval.stimuli import match_loudness
from codecplus.utils import load_audio

SPACE = Path(__file__).resolve().parent.parent / "spaces_demo"
PATTERN = "x..sh.s.x.xs..sx"  # sixteenths: drum, shaker, wood block


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recording, and the rates at which it is shown.

    Rates of the checkpoint are in kbit/s before entropy coding; those of other codecs are what
    their encoders are asked for.
    """

    name: str
    title: str
    file: str
    seconds: float  # the clip is cut there
    checkpoint: str
    rates: tuple[float, ...]
    chosen: int  # index of the rate that is heard first
    others: tuple[tuple[str, float], ...]
    credit: str
    licence: str
    url: str


RECORDINGS = (
    Recording(
        name="voice",
        title="A voice",
        file="focal__audios__librispeech-dev-clean__84__84-121123-0016.flac",
        seconds=7.0,
        checkpoint="dac-16khz-live",
        rates=(0.5, 1.0, 2.0, 3.0, 7.5),
        chosen=2,
        others=(("opus", 2.0), ("mp3", 8.0)),
        credit="LibriSpeech, utterance 84-121123-0016, read by a volunteer of LibriVox; corpus by "
        "Vassil Panayotov and others",
        licence="CC BY 4.0",
        url="https://www.openslr.org/12",
    ),
    Recording(
        name="orchestra",
        title="An orchestra",
        file="librosa__garian_Dance_number_5_-_Allegro_in_F_sharp_minor__string_orchestra_.hq_0"
        ".flac",
        seconds=4.0,
        checkpoint="dac-44khz-small",
        rates=(1.75, 3.5, 10.4),
        chosen=1,
        others=(("opus", 4.0), ("mp3", 8.0)),
        credit="Johannes Brahms, Hungarian Dance No. 5, played by the US Army Strings; Musopen",
        licence="public domain",
        url="https://musopen.org/music/43805-hungarian-dance-no-5-in-f-sharp-minor-woo-1-string-"
        "orchestra-arr/",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the clips of spaces_demo/clips.")
    parser.add_argument("--recordings", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = SPACE / "clips"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(arguments.seed)
    drums = faded(levelled(percussion(rng), -23.0), 0.02, 0.3)
    _write_flac(drums[None], folder / "percussion.flac", RATE)
    clips = []
    for recording in RECORDINGS:
        clips.append(write_versions(recording, arguments.recordings, folder))
    (folder / "showcase.json").write_text(json.dumps({"clips": clips}, indent=1) + "\n")
    (folder / "ATTRIBUTION.txt").write_text(attribution())
    draw_preview(clips[0], folder, SPACE / "static" / "preview.jpg")


# ---- recordings and their versions


def write_versions(recording: Recording, source: Path, folder: Path) -> dict[str, Any]:
    """Write a recording and its versions into a folder; return what showcase.json says of it."""
    audio, rate = load_audio(source / recording.file)
    mono = np.atleast_2d(audio).mean(axis=0)[: round(recording.seconds * rate)]
    mono = faded(mono, 0.01, 0.05).astype(np.float32)
    seconds = len(mono) / rate
    codec = load_codec(recording.checkpoint)
    signals = {"original": mono[None]}
    codes = []
    versions = [{"name": "original", "label": "Original", "bytes": 2 * len(mono)}]
    for number, kbps in enumerate(recording.rates):
        data = codec.compress(mono, sample_rate=rate, bitrate=kbps)
        version = f"codecplus-{number}"
        signals[version] = codec.decompress(data)[None]
        codes.append(codec.read_codes(data))
        entry = {"name": version, "label": "codecplus", "bytes": len(data)}
        versions.append({**entry, "books": len(codes[-1])})
    for fewer in codes:  # the page draws the codes of the highest rate, and dims what is not sent
        assert np.array_equal(codes[-1][: len(fewer)], fewer)
    for family, kbps in recording.others:
        other = resolve_codecs([family], [kbps])[-1]
        payload = other.encode(mono[None], rate)
        signals[family] = other.decode(payload.data, Original(1, len(mono), rate))
        label = {"opus": "Opus", "mp3": "MP3"}[family]
        versions.append({"name": family, "label": label, "bytes": payload.bits // 8})
    levels = match_loudness(signals, rate)
    pictures = _space_pictures()
    mel = {name: pictures.mel_levels(audio, rate) for name, audio in signals.items()}
    loudest = float(mel["original"].max())
    for version in versions:
        version["kbps"] = round(8 * version["bytes"] / seconds / 1000, 2)
        version["file"] = f"{recording.name}-{version['name']}.flac"
        _write_flac(levels[version["name"]], folder / version["file"], rate)
        version["picture"] = f"{recording.name}-{version['name']}.webp"
        pictures.draw_levels(mel[version["name"]], loudest, folder / version["picture"])
    codes_file = f"{recording.name}-codes.bin"
    about_codes = pictures.write_codes(codes[-1], folder / codes_file)
    return {
        "name": recording.name,
        "title": recording.title,
        "seconds": round(seconds, 3),
        "checkpoint": recording.checkpoint,
        "fingerprint": codec.fingerprint.hex(),
        "chosen": f"codecplus-{recording.chosen}",
        "credit": recording.credit,
        "licence": recording.licence,
        "url": recording.url,
        "ticks": pictures.ticks(rate),
        "codes": {**about_codes, "file": f"clips/{codes_file}"},
        "versions": versions,
    }


def _space_pictures() -> Any:
    """Return the module of the demo that draws spectrograms and writes codes."""
    sys.path.insert(0, str(SPACE))
    from space import pictures

    return pictures


def _write_flac(audio: np.ndarray, path: Path, rate: int) -> None:
    """Write audio (1, S) as 16-bit FLAC, as small as the library makes it."""
    samples = np.rint(audio[0].clip(-1, 32767 / 32768) * 32768).astype(np.int16)
    with soundfile.SoundFile(
        path, "w", rate, 1, "PCM_16", format="FLAC", compression_level=1.0
    ) as file:
        file.write(samples)


def attribution() -> str:
    """Return the text that names the sources of the recordings, and what was changed."""
    lines = ["The recordings in this folder, and what codecs made of them, come from:", ""]
    for recording in RECORDINGS:
        lines.append(f"{recording.name}-*.flac: {recording.credit}.")
        lines.append(f"  Licence: {recording.licence}. Source: {recording.url}")
        lines.append("  Changed: cut, mixed to one channel, levelled; all but -original were coded")
        lines.append("  and decoded.")
        lines.append("")
    lines.append("percussion.flac is synthesised by benchmarks/make_space_clips.py; licence: MIT.")
    return "\n".join(lines) + "\n"


def draw_preview(clip: dict[str, Any], folder: Path, path: Path) -> None:
    """Draw the picture for links to the demo: a recording, and what is left of its bytes."""
    from matplotlib.figure import Figure

    from codecplus.audio.mel import mel_spectrogram

    versions = {version["name"]: version for version in clip["versions"]}
    shown = [versions["original"], versions[clip["chosen"]]]
    figure = Figure(figsize=(12, 6.3), facecolor="#0f172a")
    figure.text(0.04, 0.88, "codecplus", color="white", fontsize=40, weight="bold")
    figure.text(0.04, 0.80, "Hear a neural audio codec", color="#94a3b8", fontsize=22)
    for number, version in enumerate(shown):
        audio, rate = load_audio(folder / version["file"])
        mel = mel_spectrogram(_tensor(audio), rate, n_mels=80, hop_length=256).numpy()
        decibels = 20 * np.log10(np.maximum(mel, 1e-7))
        axis = figure.add_axes((0.04 + 0.47 * number, 0.08, 0.45, 0.55))
        axis.imshow(
            decibels,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=decibels.max() - 80,
            vmax=decibels.max(),
        )
        axis.set_axis_off()
        text = f"{version['label']}: {version['bytes'] / 1000:.1f} kB"
        axis.set_title(text, color="white", fontsize=24, loc="left")
    figure.savefig(path, dpi=100, format="jpg", pil_kwargs={"quality": 80})


def _tensor(audio: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(audio)


# ---- percussion


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
    sound = np.zeros(len(t))
    for pitch, decay, gain in modes:
        sound += gain * np.sin(2 * np.pi * pitch * t) * np.exp(-t / decay)
    return faded(sound, 5e-4, 0.02)


def mix(out: np.ndarray, sound: np.ndarray, seconds: float, gain: float) -> None:
    start = int(seconds * RATE)
    end = min(len(out), start + len(sound))
    out[start:end] += gain * sound[: end - start]


if __name__ == "__main__":
    main()
