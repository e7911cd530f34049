"""What bf16 and compiled kernels cost in quality: scores of the same recordings, and codes equal to
those of plain fp32.

    python benchmarks/precision.py RECORDINGS [--codec dac-16khz-live] [--clips 12] [--seconds 4]

Differences that are smaller than their 95 % interval (of the paired means) are noise.
"""

import argparse
from pathlib import Path

import numpy as np
import soundfile
import soxr
from pesq import pesq
from pystoi import stoi

from codecplus import Codec, load_codec
from codecplus.recordings.listing import files_in_folder

SETTINGS = {"fp32": ("float32", False), "fp32, kernels": ("float32", True)}
SETTINGS |= {"bf16": ("bfloat16", False), "bf16, kernels": ("bfloat16", True)}


def clips_of(folder: Path, count: int, seconds: float, rate: int) -> list[np.ndarray]:
    """The loudest `seconds` of each of some recordings, mono, at this rate."""
    clips = []
    for name in files_in_folder(folder)[0]:
        audio, own_rate = soundfile.read(folder / name, dtype="float32", always_2d=True)
        audio = soxr.resample(audio.mean(axis=1), own_rate, rate)
        length = int(seconds * rate)
        if len(audio) >= length:
            energy = np.cumsum(audio.astype(float) ** 2)
            start = int(np.argmax(energy[length - 1 :] - np.concatenate([[0], energy[:-length]])))
            clips.append(audio[start : start + length])
    return clips[:: max(1, len(clips) // count)][:count]


def scores(codec: Codec, clips: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Codes, and PESQ-wb and STOI (clips, 2)."""
    codes, rows = [], []
    rate = codec.model_sample_rate
    for clip in clips:
        coded = codec.encode(clip)
        codes.append(np.asarray(coded))
        decoded = np.asarray(codec.decode(coded))[: len(clip)]
        reference, degraded = (soxr.resample(x, rate, 16000) for x in (clip, decoded))
        rows.append((pesq(16000, reference, degraded, "wb"), stoi(reference, degraded, 16000)))
    return codes, np.array(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--codec", default="dac-16khz-live")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()

    clips, first = [], None
    print(
        f"{args.codec}, all codebooks; means, and paired differences to plain fp32 with 95 % "
        "intervals\n"
    )
    print(
        f"{'':16}{'PESQ-wb':>10}{'':22}{'STOI':>8}{'':24}codes equal to fp32's: first codebook, all"
    )
    for name, (dtype, kernels) in SETTINGS.items():
        codec = load_codec(args.codec, dtype=dtype, kernels=kernels)
        clips = clips or clips_of(
            args.recordings, args.clips, args.seconds, codec.model_sample_rate
        )
        codes, found = scores(codec, clips)
        first = first or (codes, found)
        same = [a == b for a, b in zip(codes, first[0], strict=True)]
        change = found - first[1]
        spread = 1.96 * change.std(axis=0, ddof=1) / len(clips) ** 0.5
        row = "".join(
            f"{mean:10.3f} {by:+.4f} [± {width:.4f}]  "
            for mean, by, width in zip(found.mean(axis=0), change.mean(axis=0), spread, strict=True)
        )
        print(
            f"{name:16}{row}  {np.mean([s[0].mean() for s in same]):8.2%} "
            f"{np.mean([s.mean() for s in same]):8.2%}"
        )


if __name__ == "__main__":
    main()
