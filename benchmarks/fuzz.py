"""Fuzz the readers of files, packets and side files: python benchmarks/fuzz.py --count 100000

Most inputs get their checksums mended, or nothing behind these would ever be reached; now and then
an input is traced, and one that reaches new lines is kept and changed further. Anything but a value
or a CodecPlusError, within 2 s and 64 MB, is a finding.
"""

import argparse
import dataclasses
import hashlib
import io
import itertools
import json
import random
import resource
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from safetensors.numpy import save
from transformers.utils import logging

from codecplus import bitstream
from codecplus.audio.files import AudioFileReader
from codecplus.audio.flac import repair_length
from codecplus.audio.formats import container_of
from codecplus.audio.headers import check_size
from codecplus.bitstream import EntropyModel, Reader, StreamInfo, pack
from codecplus.bitstream.blocks import MAX_BLOCK_CODES
from codecplus.bitstream.header import info_from_bytes, parse_counts
from codecplus.checkpoints import read_dac_file
from codecplus.checkpoints.untrusted import read_config
from codecplus.errors import CheckpointError, CodecPlusError
from codecplus.inference.onnx_model import ExportInfo
from codecplus.modeling_dac import DacConfig
from codecplus.streaming import PacketFormat, PacketReader, PacketWriter

MEGABYTES = 64
SECONDS = 2.0
_TRACED = 25  # one input in so many is traced
_MAX_SIZE = 4096  # bytes of an input that is kept
_PACKAGE = str(Path(bitstream.__file__).parents[1])
_FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
_INTERESTING = (0, 1, 2, 16, 127, 128, 255)

Run = Callable[[bytes], None]


class OutOfTimeError(BaseException):
    """An input took longer than it may; no reader catches it."""


@dataclasses.dataclass
class Target:
    """A reader to fuzz."""

    run: Run
    """Reads one input; what it raises is judged."""
    seeds: list[bytes]
    mend: Callable[[bytes], bytes]
    """Gives an input the checksums or the syntax that lead deeper."""


def main() -> None:
    """Fuzz the targets named, and exit with status 1 if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help="of " + ", ".join(TARGETS))
    parser.add_argument("--count", type=int, default=10_000, help="inputs for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--save", type=Path, default=Path("fuzz_findings"), help="folder for what it finds"
    )
    args = parser.parse_args()
    targets = {name: TARGETS[name]() for name in args.targets or TARGETS}
    for target in targets.values():  # whatever is imported late is not the input's memory
        for seed in target.seeds:
            judge(target, seed)
    limit_memory()
    findings = 0
    for name, target in targets.items():
        findings += fuzz(name, target, args.count, args.seed, args.save)
    sys.exit(findings > 0)


def fuzz(name: str, target: Target, count: int, seed: int, save: Path | None) -> int:
    """Run so many inputs, print what was found, and return the number of findings."""
    rng = random.Random(seed)
    corpus = list(target.seeds)
    seen: set[tuple[str, int]] = set()
    findings = 0
    slowest = 0.0
    start = time.monotonic()
    for number in range(count):
        data = mutated(rng, corpus)
        if rng.random() < 0.8:
            data = target.mend(data)
        lines: set[tuple[str, int]] = set()
        with_trace = number % _TRACED == 0
        seconds, wrong = judge(target, data, lines if with_trace else None)
        if not with_trace:
            slowest = max(slowest, seconds)
        if lines - seen and len(data) < _MAX_SIZE:
            seen |= lines
            corpus.append(data)
        if wrong:
            findings += 1
            path = save_finding(save, name, data)
            print(f"{path}: {wrong}", flush=True)
    print(
        f"{name}: {count} inputs in {time.monotonic() - start:.0f} s, {len(corpus)} kept, "
        f"{len(seen)} lines, slowest {slowest:.2f} s, {findings} findings",
        flush=True,
    )
    return findings


def judge(
    target: Target, data: bytes, lines: set[tuple[str, int]] | None = None
) -> tuple[float, str]:
    """Return the processor seconds of one input, and what went wrong, if anything."""
    wrong = ""
    start = time.process_time()
    signal.signal(signal.SIGVTALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS if lines is None else 20 * SECONDS)
    if lines is not None:
        sys.settrace(_tracer(lines))
    try:
        target.run(data)
    except CodecPlusError:
        pass
    except OutOfTimeError:
        wrong = f"more than {SECONDS} s"
    except Exception as error:
        wrong = repr(error)[:300]
    finally:
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return time.process_time() - start, wrong


def _out_of_time(number: int, frame: Any) -> None:
    raise OutOfTimeError


def _tracer(lines: set[tuple[str, int]]) -> Callable[..., Any]:
    def line(frame: Any, event: str, argument: Any) -> Any:
        lines.add((frame.f_code.co_filename, frame.f_lineno))
        return line

    def call(frame: Any, event: str, argument: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(_PACKAGE) else None

    return call


def save_finding(folder: Path | None, name: str, data: bytes) -> str:
    """Write an input to a file, and return its path; without a folder, return its bytes."""
    if folder is None:
        return f"{name} {data.hex()}"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return str(path)


def limit_memory() -> None:
    """From here on, the process may take so many megabytes more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (MEGABYTES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


# ---- changing inputs


def mutated(rng: random.Random, corpus: list[bytes]) -> bytes:
    """Change an input of the corpus in one to six places."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at = rng.randrange(len(data) + 1)
        how = rng.randrange(8)
        if how == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at : at + 1] = bytes([rng.choice((*_INTERESTING, rng.randrange(256)))])
        elif how == 2:
            del data[at : at + rng.randint(1, 12)]
        elif how == 3:
            data[at:at] = rng.randbytes(rng.randint(1, 12))
        elif how == 4:
            data[at:] = rng.choice(corpus)[rng.randrange(20) :]
        elif how == 5:
            data[at:at] = data[at : at + rng.randint(1, 40)] * rng.choice((1, 2, 50))
        elif how == 6:  # numbers in texts
            data[at:at] = rng.choice((b"9" * 20, b"-", b"1e999", b"[" * 50, b'"', b"null", b"{}"))
        elif len(data) > 12:  # the counts of a .dacp: the last bytes before the last checksum
            count = rng.getrandbits(rng.choice((3, 8, 20, 40, 63)))
            size = (count.bit_length() + 7) // 8
            excess = rng.choice((0, 0, 1, 8))
            counts = count.to_bytes(size, "big") + rng.randbytes(excess)
            data[-5:-4] = counts + bytes([size << 4 | excess])
    return bytes(data)


# ---- .dacp files


def dacp_target(recover: bool) -> Target:
    """The reader of .dacp files."""
    model = entropy_model()

    def run(data: bytes) -> None:
        reader = Reader(io.BytesIO(data), {model.identity: model}, recover=recover)
        header = reader.header
        lost = sum(stop - start for start, stop in reader.damage.lost)
        # A byte holds 16 codes at most; as many may be lost as a file of this size could hold. The
        # last block may claim too many, until it is read.
        limit = 64 * len(data) + MAX_BLOCK_CODES
        assert header.num_frames * header.codes_per_frame <= limit, "too many frames"
        assert lost <= header.num_frames
        for codes in reader.blocks():
            if codes.size:
                assert -1 <= codes.min() <= codes.max() < header.codebook_size, "no codes"

    return Target(run, dacp_seeds(model), mend_dacp)


def mend_dacp(data: bytes) -> bytes:
    """The same with right checksums, as far as one can tell where they are."""
    fixed = bytearray(data)
    try:
        info, position = info_from_bytes(data[:44])
    except CodecPlusError:
        return data
    counts = parse_counts(info, data[max(position, len(data) - 21) : -4])
    if counts is None or not 0 <= counts.num_frames < 1 << 63:
        return data
    seed = zlib.crc32(data[:position])
    full, left = divmod(counts.num_frames, info.frames_per_block)
    for section in [*range(min(full, 64)), full]:
        if (section == full and full > 64) or position >= len(data):
            position = max(0, len(data) - 4 - counts.size - last_size(info, left))
        if info.entropy_model is None:
            size = info.codes_size(info.frames_per_block if section < full else left)
        else:
            size = 3 + int.from_bytes(data[position : position + 3], "big")
        end = position + size + (counts.size if section == full else 0)
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
    rng = np.random.default_rng(0)
    codebooks, entries, lows, width, values = 3, 16, 4, 2, 4
    highs = entries // lows

    def weights(*shape: int) -> np.ndarray:
        return rng.integers(-127, 128, shape, dtype=np.int8)

    hidden = weights(codebooks, 2, codebooks, width, values)
    for k in range(codebooks):
        hidden[k, 0, k:] = 0
        hidden[k, 1, k + 1 :] = 0
    arrays = {
        "ranks": np.tile(np.arange(entries, dtype=np.int16), (codebooks, 1)),
        "codes": weights(codebooks, entries + 1, width),
        "hidden": hidden.reshape(codebooks, -1, values),
        "hidden_bias": np.zeros((codebooks, values), np.int32),
        "high": weights(codebooks, values, highs),
        "high_bias": np.zeros((codebooks, highs), np.int32),
        "low": weights(codebooks, highs, values, lows),
        "low_bias": np.zeros((codebooks, highs, lows), np.int32),
    }
    for name in ("hidden", "high", "low"):
        arrays[f"{name}_shift"] = np.full(codebooks, 8, np.uint8)
    return EntropyModel(arrays, bytes(16))


def dacp_seeds(model: EntropyModel) -> list[bytes]:
    """Files of every coding, of one to three channels, in blocks of several lengths."""
    plain = StreamInfo(
        fingerprint=bytes(8),
        sample_rate=16000,
        original_sample_rate=16000,
        channels=1,
        num_codebooks=3,
        codebook_size=16,
        hop_length=320,
    )
    rng = np.random.default_rng(0)
    files = []
    variants = (
        {},
        {"block_length": 5},
        {"block_length": 3, "gain": 0.5, "original_sample_rate": 44099},
    )
    for entropy in (None, b"", model.identity):
        for channels in (1, 2, 3):
            for changes in variants:
                info = dataclasses.replace(
                    plain, entropy_model=entropy, channels=channels, **changes
                )
                codes = rng.integers(0, 16, (channels, 3, 17))
                if channels == 3:
                    codes[1] = codes[0]
                files.append(pack(codes, info, entropy=model if entropy else None))
                if entropy is not None:
                    lengths = rng.integers(1, 4, (channels, 1, 17))
                    short = np.where(np.arange(3)[:, None] < lengths, codes, -1)
                    files.append(pack(short, info, entropy=model if entropy else None))
    return files


# ---- packets


def packet_target() -> Target:
    """A reader of packets that has heard one good packet."""
    packet_format = PacketFormat(num_codebooks=3, codebook_size=64, channels=2, header=b"model")
    writer = PacketWriter(packet_format)
    codes = np.random.default_rng(0).integers(0, 64, (2, 3, 9))
    seeds = [writer.pack(codes[..., :count], with_header=count > 4) for count in (1, 2, 5, 9)]
    seeds.append(writer.end())
    header = packet_format.to_bytes()

    def run(data: bytes) -> None:
        for reader in (PacketReader(), PacketReader()):
            if reader.format is None:
                reader.read(seeds[0])
            received = reader.read(data)
            if received is not None:
                assert received.lost <= reader.max_gap, "a gap beyond max_gap"
                assert received.codes.size <= 8 * len(data), "too many codes"

    def mend(data: bytes) -> bytes:
        body = data[:-4]
        own_header = header
        if len(data) > 15 and data[1] & 1:
            own_header = data[7 : 11 + data[10]]
        return body + zlib.crc32(body, zlib.crc32(own_header)).to_bytes(4, "big")

    return Target(run, seeds, mend)


# ---- audio files


def audio_target() -> Target:
    """The reader of audio files: what headers say of lengths, and libsndfile behind it."""
    audio = 0.1 * np.random.default_rng(0).standard_normal((100, 2))
    seeds = []
    kinds = "AIFF AU AVR CAF FLAC IRCAM MAT4 MAT5 MP3 NIST OGG PAF PVF RF64 VOC W64 WAV WAVEX"
    for kind in kinds.split():
        seeds.append(sound(audio, kind))
    for kind in ("HTK", "MPC2K", "SDS", "SVX", "WVE", "XI"):
        seeds.append(sound(audio[:, 0], kind))
    seeds.append(box(b"ftyp", b"M4A ") + box(b"moov", bytes(20)) + box(b"mdat", bytes(20)))
    seeds.append(b"\x1a\x45\xdf\xa3\x84webm\x18\x53\x80\x67\x88" + bytes(8))

    def run(data: bytes) -> None:
        check_size(io.BytesIO(data), "x")
        repair_length(io.BytesIO(data), "x")
        if container_of(data[:16]) is None:  # FFmpeg is not ours to fuzz
            with AudioFileReader(io.BytesIO(data)) as reader:
                for block in itertools.islice(reader.blocks(), 20):
                    assert np.isfinite(block).all(), "no audio"

    return Target(run, seeds, mend_audio)


def sound(audio: np.ndarray, kind: str) -> bytes:
    """An audio file of a format of libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, audio, 8000, format=kind)
    return file.getvalue()


def box(name: bytes, content: bytes) -> bytes:
    """A box of an MP4 file."""
    return (8 + len(content)).to_bytes(4, "big") + name + content


def mend_audio(data: bytes) -> bytes:
    """A whole FLAC of no length, whose last frame is where its checksums say, or the data."""
    frame = data.rfind(b"\xff\xf8")
    if data[:4] != b"fLaC" or frame < 0 or len(data) < frame + 20:
        return data
    fixed = bytearray(data)
    fixed[21:26] = bytes([fixed[21] & 0xF0, 0, 0, 0, 0])
    rng = random.Random(data)
    number = b"\xfe" + bytes(rng.randrange(0x80, 0xC0) for _ in range(rng.choice((0, 6, 6))))
    header = bytes(fixed[frame : frame + 4]) + number + bytes(rng.choice((0, 1, 2)))
    header += crc(header, 8, 0x07)
    rest = header + bytes(fixed[frame + 6 : -2])
    return bytes(fixed[:frame]) + rest + crc(rest, 16, 0x8005)


def crc(data: bytes, width: int, polynomial: int) -> bytes:
    """A cyclic redundancy check, bit by bit."""
    remainder = 0
    for byte in data:
        remainder ^= byte << (width - 8)
        for _ in range(8):
            remainder <<= 1
            if remainder >> width:
                remainder ^= 1 << width | polynomial
    return remainder.to_bytes(width // 8, "big")


# ---- .dac files of the original, configurations, side files


def dac_target() -> Target:
    """The reader of the original's files, which are pickles."""
    seeds = [path.read_bytes() for path in sorted(_FIXTURES.glob("*.dac"))]

    def run(data: bytes) -> None:
        file = read_dac_file(data)
        assert file.codes.size <= 8 * len(data), "too many codes"

    return Target(run, seeds, lambda data: data)


def config_target() -> Target:
    """A configuration, from its file to the class."""
    logging.set_verbosity_error()  # transformers warns of odd labels
    fields = DacConfig().to_dict()
    seeds = [json.dumps(fields).encode(), json.dumps({**fields, "num_labels": 3}).encode()]
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "config.json"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        fields = read_config(path)
        try:
            config = DacConfig.from_dict(fields)
        except Exception as error:  # transformers raises anything; `load_model` turns it into one
            raise CheckpointError(str(error)) from error
        assert folder.name  # the folder lives as long as this function
        assert 1 <= config.n_codebooks <= 255
        assert 1 <= config.hop_length < 1 << 16

    def mend(data: bytes) -> bytes:
        """Change a value instead, so that the text stays JSON."""
        rng = random.Random(data)
        values = json.loads(seeds[0])
        for _ in range(rng.choice((1, 1, 2))):
            values[rng.choice([*values, "num_labels", "id2label"])] = rng.choice(_ODD_VALUES)
        return json.dumps(values).encode()

    return Target(run, seeds, mend)


_ODD_VALUES = (
    None, True, -1, 0, 1, 2, 3, 10**9, 10**30, 0.5, float("inf"), float("nan"), "", "text", [],
    [[]], {}, {"a": []}, [1], [2] * 99, [10**9], [0], ["2"], [2.5], "float32", [None], "../x",
)  # fmt: skip


def entropy_target() -> Target:
    """An entropy model beside the weights."""
    seeds = [entropy_model().to_bytes()]

    def run(data: bytes) -> None:
        model = EntropyModel.from_bytes(data)
        assert sum(array.nbytes for array in model.arrays.values()) <= len(data)
        info = StreamInfo(
            fingerprint=bytes(8),
            sample_rate=16000,
            original_sample_rate=16000,
            channels=1,
            num_codebooks=min(3, model.num_codebooks),
            codebook_size=model.codebook_size,
            hop_length=320,
            entropy_model=model.identity,
        )
        codes = np.zeros((1, info.num_codebooks, 9), np.int16)
        packed = pack(codes, info, entropy=model)
        reader = Reader(io.BytesIO(packed), {model.identity: model})
        np.testing.assert_array_equal(reader.read(), codes)

    def mend(data: bytes) -> bytes:
        """Change arrays instead, so that the file stays one of arrays."""
        rng = random.Random(data)
        arrays = {name: array.copy() for name, array in entropy_model().arrays.items()}
        for _ in range(rng.choice((1, 1, 2))):
            name = rng.choice(list(arrays))
            arrays[name] = changed(rng, arrays[name])
        metadata = {"version": rng.choice((1, 1, 1, 2, "1")), "fingerprint": bytes(16).hex()}
        return save(arrays, {"codecplus": json.dumps(metadata)})

    return Target(run, seeds, mend)


def changed(rng: random.Random, array: np.ndarray) -> np.ndarray:
    """Change a value, the shape or the type of an array."""
    how = rng.randrange(5)
    if how == 0 and array.size and array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        array.flat[rng.randrange(array.size)] = rng.choice((limits.min, limits.max, 0, 1))
    elif how == 1:
        array = array[: rng.randrange(len(array) + 1)] if array.ndim else array
    elif how == 2:
        array = array.astype(rng.choice((np.int8, np.uint8, np.int16, np.float32, np.int32)))
    elif how == 3:
        array = array.reshape(-1)
    else:
        array = np.repeat(array, rng.choice((0, 2)), axis=-1)
    return np.ascontiguousarray(array)


def export_target() -> Target:
    """The metadata of an exported graph."""
    metadata = ExportInfo(
        model_type="causal_dac",
        sampling_rate=16000,
        hop_length=320,
        n_codebooks=4,
        codebook_size=64,
        fingerprint="0" * 32,
        precision="fp32",
        encoder_past=1,
        encoder_future=0,
        decoder_past=1,
        decoder_future=0,
        latency_samples=320,
        activations_per_frame=1000,
        stateful=1,
    ).to_metadata()
    seeds = [json.dumps(metadata).encode()]

    def run(data: bytes) -> None:
        try:
            values = json.loads(data)
        except (ValueError, RecursionError):
            return
        if isinstance(values, dict):
            texts = {str(name): str(value) for name, value in values.items()}  # as graphs hold it
            ExportInfo.from_metadata(texts, Path("x.onnx"))

    def mend(data: bytes) -> bytes:
        rng = random.Random(data)
        values = dict(metadata)
        values[rng.choice(list(values))] = str(rng.choice((*_ODD_VALUES, "9" * 5000, "-0")))
        return json.dumps(values).encode()

    return Target(run, seeds, mend)


TARGETS: dict[str, Callable[[], Target]] = {
    "dacp": lambda: dacp_target(recover=False),
    "recover": lambda: dacp_target(recover=True),
    "packet": packet_target,
    "audio": audio_target,
    "dac": dac_target,
    "config": config_target,
    "entropy": entropy_target,
    "export": export_target,
}


if __name__ == "__main__":
    main()
