"""What entropy coding, search and rate control save: python benchmarks/bits.py FOLDER [--model NAME
...] [--effort]

FOLDER holds recordings. For every rate: bytes against packing, for single files, for them put
together to 60 s, and for these in one block each; what coding each code by itself would save at
best, with the frequencies of these very recordings; and times real time. With --effort also what
search and rate control do at these rates, with one row for each: bits of whole files, measured, and
against those of the packed files with all codebooks of the rate. --bitrate names the rates, in
kbit/s; by default they are five for the first table, and the highest for the rest.
"""

import argparse
import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codecplus import Codec, load_codec
from codecplus.audio.resampling import resample
from codecplus.bitstream import Reader, pack, unpack
from codecplus.encoding.beam_search import BeamSearch, EntropyCosts
from codecplus.encoding.refinement import EFFORTS
from codecplus.encoding.stream_info import with_entropy_model
from codecplus.eval.metrics import score
from codecplus.recordings.listing import files_in_folder
from codecplus.utils import load_audio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", nargs="+", default=["dac-16khz-live", "dac-44khz-small"])
    parser.add_argument("--match", default="", help="only files with this in their name")
    parser.add_argument("--most", type=int, help="only so many files, evenly drawn")
    parser.add_argument("--effort", action="store_true", help="table search and rate control, too")
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", help="of the search only rows with this in their name"
    )
    parser.add_argument(
        "--bitrate", type=float, nargs="+", metavar="KBIT/S", help="rates to measure at"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = [args.folder / name for name in files_in_folder(args.folder)[0] if args.match in name]
    files = files[:: max(1, -(-len(files) // (args.most or len(files))))]
    for name in args.model:
        codec = load_codec(name)
        clips = []
        for file in files:
            audio, rate = load_audio(file)
            clips.append((np.atleast_2d(audio).mean(axis=0), rate))
        print(
            f"{name}: {len(files)} files, entropy model "
            f"{next(iter(codec.entropy_models), b'').hex() or 'none'}"
        )
        most = codec.config.n_codebooks
        rates = [
            1 + int(np.abs(np.subtract(codec.bitrates, rate)).argmin())
            for rate in args.bitrate or []
        ]
        few = rates or sorted(
            {most, most * 2 // 3, most // 2, most // 3, max(1, most // 6)}, reverse=True
        )
        table_of_rates(codec, [np.asarray(codec.encode(audio, rate)) for audio, rate in clips], few)
        for books in rates or [most]:
            if args.effort:
                table_of_efforts(codec, clips, books, args.only or [""])
            if args.effort and not args.only:
                table_of_control(codec, clips, books)


def table_of_rates(codec: Codec, clips: list[np.ndarray], rates: list[int]) -> None:
    together = np.concatenate(clips, axis=-1)
    minute = round(60 * codec.frame_rate)
    minutes = [together[:, i : i + minute] for i in range(0, together.shape[-1], minute)]
    print(
        "| kbit/s | codebooks | single files | 60 s | in one block | each code by itself | "
        "encoding | decoding |"
    )
    print("|" + "---|" * 8)
    for books in rates:
        saved, seconds = [], together.shape[-1] / codec.frame_rate
        for group, block in ((clips, 0), (minutes, minute), (minutes, 0)):
            start = time.process_time()
            coded = [written(codec, clip[:books], True, block) for clip in group]
            encoding = time.process_time() - start
            saved.append(
                1
                - sum(map(len, coded))
                / sum(len(written(codec, clip[:books], False)) for clip in group)
            )
        start = time.process_time()
        for data in coded:
            Reader(io.BytesIO(data), codec.entropy_models).read()
        decoding = time.process_time() - start
        alone = (
            1
            - np.mean([entropy(book) for book in together[:books]]) / codec.config.bits_per_codebook
        )
        print(
            f"| {codec.bitrates[books - 1]:.2f} | {books} | {-saved[0]:+.1%} | {-saved[2]:+.1%} | "
            f"{-saved[1]:+.1%} "
            f"| {-alone:+.1%} | {seconds / encoding:.0f}× | {seconds / decoding:.0f}× |",
            flush=True,
        )


def table_of_efforts(
    codec: Codec, clips: list[tuple[np.ndarray, int]], books: int, only: list[str]
) -> None:
    """Bits against what is heard: a search that pays has fewer bits at the same distances."""
    title = f"{books} codebooks, {codec.bitrates[books - 1]:.2f} kbit/s"
    print(
        f"| {title} | kbit/s | to packed | latent error | mel distance | PESQ | compute per "
        "second |\n|" + "---|" * 7
    )

    def way(n: int = books, **options: Any) -> Callable[[np.ndarray, int], bytes]:
        return lambda audio, rate: codec.compress(
            audio, sample_rate=rate, n_quantizers=n, **options
        )

    rows = {"packed": way(entropy_coding=False), "effort 0": way()}
    rows |= {f"effort {effort}": way(effort=effort) for effort in EFFORTS}
    if codec.entropy_models:
        rows["beam 8, λ = 0"] = lambda audio, rate: nearest(codec, audio, rate, books)
    rows |= {f"{n} codebooks": way(n) for n in range(books - 1, max(0, books * 3 // 4 - 1), -1)}
    rows |= {
        f"VBR, quality {quality}": way(rate_control="vbr", quality=quality) for quality in (9, 7, 5)
    }
    seconds, packed = sum(len(audio) / rate for audio, rate in clips), 0
    for name, compress in rows.items():
        if name != "packed" and not any(part in name for part in only):
            continue
        size, spent, results = 0, 0.0, []
        for audio, rate in clips:
            start = time.process_time()
            data = compress(audio, rate)
            spent += time.process_time() - start
            size += len(data)
            scores = score(audio, codec.decompress(data), rate, ["mel_distance", "pesq_wb"])
            heard = [
                np.nan if scores[m].value is None else scores[m].value
                for m in ("mel_distance", "pesq_wb")
            ]
            results.append([latent_error(codec, audio, rate, data), *heard])
        packed = packed or size
        error, mel, pesq = np.nanmean(results, axis=0)
        print(
            f"| {name} | {size * 8 / seconds / 1000:.2f} | {size / packed - 1:+.1%} | {error:.4f} "
            f"| {mel:.4f} "
            f"| {pesq:.3f} | {spent / seconds:.3f} s |",
            flush=True,
        )


def table_of_control(codec: Codec, clips: list[tuple[np.ndarray, int]], books: int) -> None:
    """How near files come to an average bitrate below this one, and what a mono file costs more as
    stereo.
    """
    rate = clips[0][1]
    audio = np.concatenate([audio for audio, r in clips if r == rate])[: 60 * rate]
    whole = codec.compress(audio, sample_rate=rate, n_quantizers=books)
    for share in (0.4, 0.7, 0.95):
        target = share * len(whole) * 8 / 1000 / (len(audio) / rate)
        size = len(codec.compress(audio, sample_rate=rate, rate_control="abr", bitrate=target))
        print(
            f"ABR of {target:.2f} kbit/s: {size * 8 / 1000 / (len(audio) / rate) / target - 1:+.1%}"
        )
    stereo = codec.compress(np.stack([audio, audio]), sample_rate=rate, n_quantizers=books)
    print(f"mono stored as stereo: {len(stereo) / len(whole) - 1:+.1%}")


def nearest(codec: Codec, audio: np.ndarray, rate: int, books: int) -> bytes:
    """A file of the codes whose sum a beam of 8 finds nearest, whatever they cost."""
    info, model = with_entropy_model(
        codec.stream_info(rate, 1, n_quantizers=books), codec.entropy_models.values(), True
    )
    assert model is not None
    samples = resample(audio, rate, codec.model_sample_rate)[None]
    samples = np.pad(samples, ((0, 0), (0, -samples.shape[-1] % codec.hop_length)))
    search = BeamSearch(
        codec.model.quantizer, books, 8, 0.0, EntropyCosts(model, books, codec.model.device)
    )
    with torch.inference_mode():
        codes = search(codec.model.encoder(torch.from_numpy(samples)[:, None]))
    return pack(codes.numpy().astype(np.int16), info, num_samples=len(audio), entropy=model)


def latent_error(codec: Codec, audio: np.ndarray, rate: int, data: bytes) -> float:
    """Squared error of the sum of codes to the latents, as a share of their variance."""
    header, codes = unpack(data, codec.entropy_models)
    samples = resample(audio * header.gain, rate, codec.model_sample_rate)[None]
    samples = np.pad(samples, ((0, 0), (0, -samples.shape[-1] % codec.hop_length)))
    with torch.inference_mode():
        latents = codec.model.encoder(torch.from_numpy(samples)[:, None])[..., : codes.shape[-1]]
        total = torch.zeros_like(latents)
        for quantizer, indices in zip(
            codec.model.quantizer.quantizers, torch.from_numpy(codes[0].astype(int)), strict=False
        ):
            entries = quantizer.out_proj(quantizer.codebook(indices.clamp(min=0)).t()[None])
            total += entries * (indices >= 0)
    spread = latents - latents.mean(dim=-1, keepdim=True)
    return float((latents - total).square().sum() / spread.square().sum())


def written(codec: Codec, codes: np.ndarray, coded: bool, block: int = 0) -> bytes:
    plain = codec.stream_info(codec.sample_rate, 1, n_quantizers=len(codes))
    info, model = with_entropy_model(plain, codec.entropy_models.values(), coded)
    return pack(codes[None], replace(info, block_length=block), entropy=model)


def entropy(codes: np.ndarray) -> float:
    shares = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(shares * np.log2(shares)).sum())


if __name__ == "__main__":
    main()
