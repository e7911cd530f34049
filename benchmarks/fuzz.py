"""Fuzz the reader of .dacp files, guided by coverage: python benchmarks/fuzz.py [--minutes 60]
[--save FOLDER]

Inputs that reach a line after a line as none did before are kept and changed further; most get
their checksums mended, or nothing behind these would ever be reached. Anything but codes or a
CodecPlusError in 2 s and 64 MB is a finding.
"""

import argparse
import dataclasses
import hashlib
import io
import random
import resource
import sys
import time
import zlib
from pathlib import Path

import numpy as np

from codecplus import bitstream
from codecplus.bitstream import EntropyModel, Reader, StreamInfo, pack
from codecplus.bitstream.header import counts_from_bytes, info_from_bytes
from codecplus.errors import CodecPlusError

MEGABYTES, SECONDS = 64, 2.0
_FOLDER = str(Path(bitstream.__file__).parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--save", type=Path, default=Path("fuzz_findings"), help="folder for what it finds"
    )
    args = parser.parse_args()
    rng, model = random.Random(args.seed), entropy_model()
    corpus, seen, runs, findings, worst = seeds(model), set(), 0, 0, 0.0
    for data in corpus:
        seen |= run(data, model)[0]
    limit_memory()
    print(f"{len(corpus)} seeds reach {len(seen)} edges", flush=True)
    start = told = time.monotonic()
    while time.monotonic() < start + 60 * args.minutes:
        data = mutated(rng, corpus)
        edges, seconds, wrong = run(data, model)
        runs, worst = runs + 1, max(worst, seconds)
        if not edges <= seen and len(data) < 4096:
            seen |= edges
            corpus.append(data)
        if wrong or seconds > SECONDS:
            findings += 1
            args.save.mkdir(exist_ok=True)
            path = args.save / f"{hashlib.sha256(data).hexdigest()[:12]}.dacp"
            path.write_bytes(data)
            print(f"{path}: {wrong or f'{seconds:.1f} s'}", flush=True)
        if time.monotonic() > told + 60:
            told = time.monotonic()
            print(
                f"{(told - start) / 60:.0f} min: {runs} runs, {len(corpus)} inputs, {len(seen)} "
                "edges",
                flush=True,
            )
    print(
        f"{runs} runs, {len(corpus)} inputs, {len(seen)} edges, slowest {worst:.2f} s, {findings} "
        "findings"
    )
    sys.exit(findings > 0)


def run(data: bytes, model: EntropyModel) -> tuple[set, float, str]:
    """Edges between lines of the bitstream, processor seconds, and what went wrong, if anything."""
    edges, last = set(), [("", 0)]

    def line(frame, event, argument):
        here = (frame.f_code.co_filename, frame.f_lineno)
        edges.add((last[0], here))
        last[0] = here
        return line

    def call(frame, event, argument):
        return (
            line(frame, event, argument) if frame.f_code.co_filename.startswith(_FOLDER) else None
        )

    wrong, start = "", time.process_time()
    sys.settrace(call)
    try:
        for recover in (False, True):
            try:
                reader = Reader(io.BytesIO(data), {model.identity: model}, recover=recover)
                codes = reader.read()
                if (
                    codes.size
                    and not -1 <= codes.min() <= codes.max() < reader.header.codebook_size
                ):
                    wrong = "codes that are none"
            except CodecPlusError:
                pass
            except Exception as error:
                wrong = repr(error)
    finally:
        sys.settrace(None)
    return edges, time.process_time() - start, wrong


def limit_memory() -> None:
    """From here on, the process may take so many megabytes more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (MEGABYTES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def mutated(rng: random.Random, corpus: list[bytes]) -> bytes:
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at, how = rng.randrange(len(data) + 1), rng.randrange(7)
        if how == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at : at + 1] = bytes(
                [rng.choice((0, 1, 2, 16, 127, 128, 255, rng.randrange(256)))]
            )
        elif how == 2:
            del data[at : at + rng.randint(1, 12)]
        elif how == 3:
            data[at:at] = rng.randbytes(rng.randint(1, 12))
        elif how == 4:
            data[at:] = rng.choice(corpus)[rng.randrange(20) :]
        elif how == 5:
            data[at:at] = data[at : at + rng.randint(1, 40)] * rng.choice((1, 2, 50))
        elif len(data) > 12:  # the counts: the last bytes before the last checksum
            count = rng.getrandbits(rng.choice((3, 8, 20, 40, 63)))
            a, b = (count.bit_length() + 7) // 8, rng.choice((0, 0, 1, 8))
            data[-5:-4] = count.to_bytes(a, "big") + rng.randbytes(b) + bytes([a << 4 | b])
    return mended(bytes(data)) if rng.random() < 0.8 else bytes(data)


def mended(data: bytes) -> bytes:
    """The same with right checksums, as far as one can tell where they are."""
    fixed = bytearray(data)
    try:
        info, position = info_from_bytes(data[:44])
        header, counts = counts_from_bytes(info, data[max(position, len(data) - 21) : -4])
    except CodecPlusError:
        return data
    seed, (full, left) = (
        zlib.crc32(data[:position]),
        divmod(header.num_frames, info.frames_per_block),
    )
    for section in [*range(min(full, 64)), full]:
        if (section == full and full > 64) or position >= len(data):
            position = max(0, len(data) - 4 - counts - last_size(info, left))
        if info.entropy_model is None:
            size = info.codes_size(info.frames_per_block if section < full else left)
        else:
            size = 3 + int.from_bytes(data[position : position + 3], "big")
        end = position + size + (counts if section == full else 0)
        crc = zlib.crc32(data[position:end], zlib.crc32(section.to_bytes(8, "big"), seed))
        if end + 4 <= len(data):
            fixed[end : end + 4] = crc.to_bytes(4, "big")
        position = end + 4
    return bytes(fixed)


def last_size(info: StreamInfo, left: int) -> int:
    """Bytes of the last section where nothing but the end of the file tells where it is."""
    return info.codes_size(left) if info.entropy_model is None else 3


def entropy_model() -> EntropyModel:
    """One of 3 codebooks of 16 that predicts something, if nothing true."""
    rng, K, N, lows, d, H = np.random.default_rng(0), 3, 16, 4, 2, 4
    hidden = rng.integers(-127, 128, (K, 2, K, d, H), dtype=np.int8)
    for k in range(K):
        hidden[k, 0, k:], hidden[k, 1, k + 1 :] = 0, 0
    shapes = {"codes": (K, N + 1, d), "high": (K, H, N // lows), "low": (K, N // lows, H, lows)}
    arrays = {name: rng.integers(-127, 128, shape, dtype=np.int8) for name, shape in shapes.items()}
    arrays |= {
        "hidden": hidden.reshape(K, -1, H),
        "ranks": np.tile(np.arange(N, dtype=np.int16), (K, 1)),
    }
    for name, shape in {
        "hidden": (K, H),
        "high": (K, N // lows),
        "low": (K, N // lows, lows),
    }.items():
        arrays |= {
            f"{name}_bias": np.zeros(shape, np.int32),
            f"{name}_shift": np.full(K, 8, np.uint8),
        }
    return EntropyModel(arrays, bytes(16))


def seeds(model: EntropyModel) -> list[bytes]:
    plain = StreamInfo(
        fingerprint=bytes(8),
        sample_rate=16000,
        original_sample_rate=16000,
        channels=1,
        num_codebooks=3,
        codebook_size=16,
        hop_length=320,
    )
    rng, files = np.random.default_rng(0), []
    for entropy in (None, b"", model.identity):
        for channels in (1, 2, 3):
            for changes in (
                {},
                {"block_length": 5},
                {"block_length": 3, "gain": 0.5, "original_sample_rate": 44099},
            ):
                info = dataclasses.replace(
                    plain, entropy_model=entropy, channels=channels, **changes
                )
                codes = rng.integers(0, 16, (channels, 3, 17))
                if channels == 3:
                    codes[1] = codes[0]
                files.append(pack(codes, info, entropy=model if entropy else None))
                if entropy is not None:
                    short = np.where(
                        np.arange(3)[:, None] < rng.integers(1, 4, (channels, 1, 17)), codes, -1
                    )
                    files.append(pack(short, info, entropy=model if entropy else None))
    return files


if __name__ == "__main__":
    main()
