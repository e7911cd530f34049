"""What entropy coding and search save: python benchmarks/bits.py FOLDER [--model NAME ...] [--effort]

FOLDER holds recordings. For every rate: bytes against packing, for single files and for them put together to 60 s; what
coding each code by itself would save at best, with the frequencies of these very recordings; and times real time.
"""

import argparse
import io
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from codecplus import Codec, load_codec
from codecplus.bitstream import Reader, pack
from codecplus.recordings import audio_files
from codecplus.utils import load_audio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", nargs="+", default=["dac-16khz-live", "dac-44khz-small"])
    parser.add_argument("--match", default="", help="only files with this in their name")
    parser.add_argument("--effort", action="store_true", help="table effort and variable rate, too")
    args = parser.parse_args()
    files = [args.folder / name for name in audio_files(args.folder) if args.match in name]
    for name in args.model:
        codec = load_codec(name)
        clips = []
        for file in files:
            audio, rate = load_audio(file)
            clips.append((np.atleast_2d(audio).mean(axis=0), rate))
        print(f"{name}: {len(files)} files, entropy model {next(iter(codec.entropy_models), b'').hex() or 'none'}")
        table_of_rates(codec, [np.asarray(codec.encode(audio, rate)) for audio, rate in clips])
        if args.effort:
            table_of_efforts(codec, clips)


def table_of_rates(codec: Codec, clips: list[np.ndarray]) -> None:
    together = np.concatenate(clips, axis=-1)
    minute = round(60 * codec.frame_rate)
    minutes = [together[:, i : i + minute] for i in range(0, together.shape[-1], minute)]
    most = codec.config.n_codebooks
    print("| kbit/s | codebooks | single files | 60 s | each code by itself | encoding | decoding |\n|" + "---|" * 7)
    for books in sorted({most, most * 2 // 3, most // 2, most // 3, max(1, most // 6)}, reverse=True):
        saved, seconds = [], together.shape[-1] / codec.frame_rate
        for group in (clips, minutes):
            start = time.process_time()
            coded = [written(codec, clip[:books], True) for clip in group]
            encoding = time.process_time() - start
            saved.append(1 - sum(map(len, coded)) / sum(len(written(codec, clip[:books], False)) for clip in group))
        start = time.process_time()
        for data in coded:
            Reader(io.BytesIO(data), codec.entropy_models).read()
        decoding = time.process_time() - start
        alone = 1 - np.mean([entropy(book) for book in together[:books]]) / codec.config.bits_per_codebook
        print(
            f"| {codec.bitrates[books - 1]:.2f} | {books} | {-saved[0]:+.1%} | {-saved[1]:+.1%} | {-alone:+.1%} "
            f"| {seconds / encoding:.0f}× | {seconds / decoding:.0f}× |"
        )


def table_of_efforts(codec: Codec, clips: list[tuple[np.ndarray, int]]) -> None:
    seconds = sum(len(audio) / rate for audio, rate in clips)
    print("| how | kbit/s | log-mel distance, dB | compute per second |\n|" + "---|" * 4)
    ways = [{"effort": effort} for effort in range(4 if codec.entropy_models else 1)]
    ways += [{"rate_control": "vbr", "quality": quality} for quality in (9, 7, 5)]
    for way in ways:
        size, distance, spent = 0, [], 0.0
        for audio, rate in clips:
            start = time.process_time()
            data = codec.compress(audio, sample_rate=rate, **way)
            spent += time.process_time() - start
            size += len(data)
            mels = (codec.mel_spectrogram(x, rate) for x in (audio, codec.decompress(data)))
            wanted, heard = (20 * np.log10(np.maximum(mel, 1e-4)) for mel in mels)
            distance.append(np.abs(wanted - heard).mean())
        print(f"| {way} | {size * 8 / seconds / 1000:.2f} | {np.mean(distance):.3f} | {spent / seconds:.3f} s |")


def written(codec: Codec, codes: np.ndarray, coded: bool) -> bytes:
    info, model = codec._coding(codec._info(codec.sample_rate, 1, None, len(codes)), coded)
    return pack(codes[None], replace(info), entropy=model)


def entropy(codes: np.ndarray) -> float:
    shares = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(shares * np.log2(shares)).sum())


if __name__ == "__main__":
    main()
