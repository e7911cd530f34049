"""The verbs `encode`, `decode`, `info` and `demo`: files and folders, and - for a live pipe.

Light to import: torch and the codec are imported when a verb runs.
"""

import argparse
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codecplus.audio.formats import AUDIO_SUFFIXES
from codecplus.cli.batch import CODED_SUFFIXES, FileBatch, Job, Run, find, plan, run_jobs
from codecplus.cli.model_options import embedded_name, open_codec, open_embedded
from codecplus.cli.options import add_codec_options, add_output, add_shared, add_verb, named_path
from codecplus.cli.streams import BinaryOutput, one_line
from codecplus.errors import CodecPlusError, InputError


def add_verbs(verbs: Any) -> None:
    """Add the verbs to an argparse subparsers object."""
    _add_demo(verbs)
    _add_encode(verbs)
    _add_decode(verbs)
    _add_info(verbs)


def _add_demo(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "demo",
        demo,
        help="compress a clip, decompress it, and score the result",
        description="Compress a clip, decompress it, score the result, and write both files with "
        "a picture of their spectrograms.",
        examples=("codecplus demo", "codecplus demo song.flac --bitrate 3 -o heard/"),
    )
    verb.add_argument(
        "file",
        nargs="?",
        type=named_path,
        help="audio file (default: a clip that comes with codecplus)",
    )
    add_output(verb, "folder to write to (default: %(default)s)", default=Path("demo_output"))
    add_codec_options(verb, default="dac", note="default: %(default)s")
    add_shared(verb, "compile", "bitrate", "loudness")


def _add_encode(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "encode",
        encode,
        help="compress audio files to .dacp files",
        examples=(
            "codecplus encode recordings/ -o coded/ --bitrate 6",
            "codecplus encode - -o - --model dac-16khz-live --raw 16000",
        ),
    )
    verb.add_argument(
        "inputs",
        nargs="+",
        type=named_path,
        help="audio files, or folders of them; - reads a live pipe",
    )
    verb.add_argument(
        "--raw",
        metavar="RATE",
        help="read 16-bit samples without a header from the pipe, at RATE or RATE:CHANNELS",
    )
    add_output(verb, "a .dacp file, or a folder (default: beside each input)")
    add_shared(verb, "skip-existing", "keep-suffix", "force", "quiet")
    add_shared(verb, "workers", note="a file each; default: one per core")
    add_codec_options(verb, default="dac", note="default: %(default)s")
    add_shared(verb, "compile", "bitrate", "loudness")
    control = verb.add_mutually_exclusive_group()
    control.add_argument(
        "--vbr",
        action="store_true",
        help="use in each frame the fewest codebooks that sound like --quality asks",
    )
    control.add_argument(
        "--abr", action="store_true", help="make the file have --bitrate on average, within 2 %%"
    )
    verb.add_argument(
        "--quality", type=float, metavar="Q", help="quality for --vbr, 0 to 10 (default: 8)"
    )
    verb.add_argument(
        "--effort",
        type=int,
        default=0,
        metavar="N",
        help="0 to 3: search for better codes; 3 is best and slowest (default: %(default)s)",
    )
    verb.add_argument(
        "--packed",
        action="store_true",
        help="write without entropy coding: a larger file, which is read without the entropy model",
    )


def _add_decode(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "decode",
        decode,
        help="decompress .dacp files, or .dac files of the original implementation",
        examples=(
            "codecplus decode coded/ -o again/",
            "codecplus decode old.dac --model descript/dac_44khz -o old.flac",
        ),
    )
    verb.add_argument(
        "inputs",
        nargs="+",
        type=named_path,
        help="coded files, or folders of them; - reads a live pipe",
    )
    verb.add_argument(
        "--raw", action="store_true", help="write 16-bit samples without a header to the pipe"
    )
    add_output(verb, "an audio file, or a folder (default: a .wav beside each input)")
    add_shared(verb, "skip-existing", "keep-suffix", "force", "quiet")
    add_shared(verb, "workers", note="a file each; default: one per core")
    verb.add_argument(
        "--start",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="where to begin (default: %(default)g)",
    )
    verb.add_argument(
        "--duration", type=float, metavar="SECONDS", help="how much to decode (default: the rest)"
    )
    add_shared(verb, "recover")
    add_shared(verb, "max-seconds", note="default: a day; no limit for a live pipe")
    add_codec_options(verb, note="default: the embedded one that made the file")
    add_shared(verb, "compile")


def _add_info(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "info",
        info,
        help="show what is in coded files",
        description="Show format, model, length, rate and size of coded files, without decoding.",
        examples=("codecplus info coded/", "codecplus info song.dacp --json"),
    )
    verb.add_argument("inputs", nargs="+", type=named_path, help="coded files, or folders of them")
    add_shared(verb, "recover", "json")


# ---- what the verbs do


def encode(args: argparse.Namespace) -> int:
    """Compress files, or the audio that comes down a pipe."""
    if _is_pipe(args):
        return _encode_pipe(args)
    batch = find(args.inputs, AUDIO_SUFFIXES)
    jobs = plan(batch, args.output, ".dacp", keep_suffix=args.keep_suffix)
    if not jobs:
        return batch.status
    codec = open_codec(args.model, args)
    if args.vbr:
        rate_control = "vbr"
    elif args.abr:
        rate_control = "abr"
    else:
        rate_control = "cbr"

    def run(source: Path, target: Path, progress: Callable[[float], Any]) -> None:
        codec.compress(
            source,
            target,
            bitrate=args.bitrate,
            loudness=args.loudness,
            rate_control=rate_control,
            quality=args.quality,
            effort=args.effort,
            entropy_coding=not args.packed,
            overwrite=args.force,
            progress=progress,
        )

    return _run_all(batch, jobs, run, _audio_seconds, "encoding", args)


def _encode_pipe(args: argparse.Namespace) -> int:
    from codecplus.cli.pipe import encode_pipe, parse_raw

    if args.vbr or args.abr or args.quality is not None or args.effort or args.packed:
        raise InputError(
            "a live pipe takes --bitrate alone: "
            "--vbr, --abr, --quality, --effort and --packed are for files"
        )
    raw = None if args.raw is None else parse_raw(args.raw)
    codec = open_codec(args.model, args)
    encode_pipe(codec, sys.stdin.buffer, BinaryOutput(), raw=raw, bitrate=args.bitrate)
    return 0


def decode(args: argparse.Namespace) -> int:
    """Decompress files, each with the model that made it, or packets that come down a pipe."""
    if _is_pipe(args):
        return _decode_pipe(args)
    batch = find(args.inputs, CODED_SUFFIXES)
    jobs = plan(batch, args.output, ".wav", keep_suffix=args.keep_suffix)
    codecs: dict[str, Any] = {}
    loading = threading.Lock()
    from codecplus.decompression import MAX_SECONDS

    def run(source: Path, target: Path, progress: Callable[[float], Any]) -> None:
        name = args.model or _model_of_file(source, args.recover)
        with loading:
            if name not in codecs:
                codecs[name] = open_codec(name, args)
        codecs[name].decompress(
            source,
            target,
            start=args.start,
            duration=args.duration,
            recover=args.recover,
            max_seconds=MAX_SECONDS if args.max_seconds is None else args.max_seconds,
            overwrite=args.force,
            progress=progress,
        )

    return _run_all(batch, jobs, run, _coded_seconds, "decoding", args)


def _run_all(
    batch: FileBatch,
    jobs: list[Job],
    run: Run,
    seconds: Callable[[Path], float],
    label: str,
    args: argparse.Namespace,
) -> int:
    from codecplus.system.devices import shared_cores

    workers = _workers(args, len(jobs))
    with shared_cores(workers) as begin_worker:
        return run_jobs(
            batch,
            jobs,
            run,
            seconds,
            label=label,
            force=args.force,
            quiet=args.quiet,
            skip_existing=args.skip_existing,
            workers=workers,
            begin_worker=begin_worker,
        )


def _workers(args: argparse.Namespace, jobs: int) -> int:
    """Return how many threads work on files: `--workers`, else one per core of a CPU.

    One file has all cores for itself, and so has an export, whose runtime has its own threads. On
    an accelerator files go one by one.
    """
    from codecplus.inference.onnx_model import find_export
    from codecplus.system.devices import available_cores, resolve_device

    if args.workers is not None:
        if args.workers < 0:
            raise InputError(f"expected --workers of at least 0, got {args.workers}")
        return min(args.workers, jobs)
    if jobs < 2 or (args.model is not None and find_export(args.model)):
        return 0
    if resolve_device(args.device).type != "cpu":
        return 0
    cores = available_cores()
    return min(cores, jobs) if cores > 1 else 0


def _decode_pipe(args: argparse.Namespace) -> int:
    from codecplus.cli.pipe import decode_pipe

    if args.start or args.duration is not None or args.recover:
        raise InputError(
            "--start, --duration and --recover are for files, got a live pipe; leave them out"
        )

    def find_codec(fingerprint: bytes) -> Any:
        if args.model:
            return open_codec(args.model, args)
        return open_embedded(fingerprint, args)

    decode_pipe(
        find_codec,
        sys.stdin.buffer,
        BinaryOutput(),
        raw=args.raw,
        max_seconds=args.max_seconds,
    )
    return 0


def info(args: argparse.Namespace) -> int:
    """Print what is in coded files."""
    batch = find(args.inputs, CODED_SUFFIXES)
    described = []
    for source in batch.files:
        try:
            facts = describe_file(source.path, recover=args.recover)
        except Exception as error:  # one bad file does not keep the others from being shown
            batch.fail(source.path, error)
            continue
        described.append(facts)
        if not args.json:
            print(one_line(str(source.path)))
            for name, value in _info_lines(facts).items():
                print(f"  {name:<12} {value}")
    if args.json:
        print(json.dumps(described, indent=1))
    return batch.status


def demo(args: argparse.Namespace) -> None:
    """Compress a clip, decompress it, score the result, and write both with a picture."""
    from codecplus.cli.demo import run_demo

    codec = open_codec(args.model, args)
    run_demo(args.file, args.output, codec, bitrate=args.bitrate, loudness=args.loudness)


# ---- coded files


def describe_file(source: Path, *, recover: bool = False) -> dict[str, Any]:
    """Return the facts in the header of a coded file as plain data.

    `seconds`, `samples` and `sample_rate` are those of the audio, `bitrate` is kbit/s of the whole
    file. A fact that the format does not have is left out. With `recover` a damaged `.dacp` file is
    described, too; `lost` (spans in seconds), `end_missing` and `extra_bytes` say what is wrong.

    Raises: InputError if there is no such file, FileFormatError if it is no coded file.
    """
    from codecplus.checkpoints.identity import find_embedded

    header, damage = _read_header(source, recover)
    if header is None:
        return _describe_official(source)
    size = source.stat().st_size
    seconds = header.num_samples / header.original_sample_rate
    entropy_model = header.entropy_model
    wrong = {}
    if recover:
        wrong = {
            "lost": [list(span) for span in damage.lost_seconds],
            "end_missing": damage.end_missing,
            "extra_bytes": damage.extra_bytes,
            "damage": damage.describe(),
        }
    return {
        "file": str(source),
        "format": "dacp",
        "version": 1,
        "entropy_coding": entropy_model is not None,
        "entropy_model": entropy_model.hex() if entropy_model else None,
        "model": find_embedded(header.fingerprint),
        "fingerprint": header.fingerprint.hex(),
        "seconds": seconds,
        "samples": header.num_samples,
        "sample_rate": header.original_sample_rate,
        "channels": header.channels,
        "codebooks": header.num_codebooks,
        "codebook_size": header.codebook_size,
        "frames": header.num_frames,
        "hop_length": header.hop_length,
        "model_sample_rate": header.sample_rate,
        "bytes": size,
        "bitrate": size * 8 / seconds / 1000 if seconds else None,
        "gain": float(header.gain),
        **wrong,
    }


def _describe_official(source: Path) -> dict[str, Any]:
    from codecplus.checkpoints import read_dac_file

    file = read_dac_file(source)
    channels, codebooks, frames = file.codes.shape
    return {
        "file": str(source),
        "format": "dac",
        "version": file.dac_version,
        "seconds": file.original_length / file.sample_rate,
        "samples": file.original_length,
        "sample_rate": file.sample_rate,
        "channels": channels,
        "codebooks": codebooks,
        "frames": frames,
        "loudness": float(file.input_db),
    }


def _info_lines(facts: dict[str, Any]) -> dict[str, str]:
    """Return the facts of a file as lines of text, by title."""
    plural = "s" if facts["channels"] > 1 else ""
    audio = (
        f"{facts['seconds']:.2f} s, {facts['channels']} channel{plural}, {facts['sample_rate']} Hz"
    )
    if facts["format"] == "dac":
        return {
            "format": f".dac of the original implementation, version {facts['version']}",
            "audio": audio,
            "codes": f"{facts['codebooks']} codebooks, {facts['frames']} frames",
            "loudness": f"{facts['loudness']:.1f} LUFS",
        }
    size = f"{facts['bytes']} bytes"
    if facts["bitrate"] is not None:
        size += f", {facts['bitrate']:.2f} kbit/s"
    lines = {
        "format": f".dacp, version {facts['version']}, {_coding_line(facts)}",
        "model": f"{facts['model'] or 'not an embedded one'}, fingerprint {facts['fingerprint']}",
        "audio": audio,
        "codes": f"{facts['codebooks']} codebooks of {facts['codebook_size']}, "
        f"{facts['frames']} frames of {facts['hop_length']} samples "
        f"at {facts['model_sample_rate']} Hz",
        "size": size,
    }
    if facts["gain"] != 1.0:
        lines["gain"] = f"{facts['gain']:.4f}"
    if "damage" in facts:
        lines["damage"] = facts["damage"] or "none"
    return lines


def _coding_line(facts: dict[str, Any]) -> str:
    if not facts["entropy_coding"]:
        return "packed codes"
    if facts["entropy_model"] is None:
        return "entropy-coded codes, no entropy model needed"
    return f"entropy-coded codes, entropy model {facts['entropy_model']}"


def _model_of_file(source: Path, recover: bool) -> str:
    """Return the name of the embedded model that made a file, by the fingerprint in it."""
    header, _ = _read_header(source, recover)
    if header is None:
        raise InputError(
            "a .dac file does not say which model made it; "
            "name it, for example --model descript/dac_44khz"
        )
    return embedded_name(header.fingerprint)


def _read_header(source: Path, recover: bool = False) -> tuple[Any, Any]:
    """Return the header of a .dacp file and its damage; no header for a .dac of the original."""
    from codecplus.bitstream import Reader
    from codecplus.decompression import is_official, open_coded

    with open_coded(source) as file:
        if is_official(file):
            return None, None
        reader = Reader(file, recover=recover)
        return reader.header, reader.damage


def _audio_seconds(source: Path) -> float:
    """Return the length of an audio file by its header."""
    from codecplus.audio.files import AudioFileReader

    with AudioFileReader(source) as reader:
        return reader.header_seconds


def _coded_seconds(source: Path) -> float:
    """Return the length of the audio in a coded file; 0 where it takes decoding to know it."""
    try:
        header, _ = _read_header(source)
    except CodecPlusError:  # its job reports it
        return 0.0
    if header is None:
        return 0.0
    return header.num_samples / header.original_sample_rate


def _is_pipe(args: argparse.Namespace) -> bool:
    """Return whether - stands for standard input and output; it stands for both or neither."""
    ends = [str(path) == "-" for path in (*args.inputs, args.output)]
    if any(ends) and ends != [True, True]:
        raise InputError("a live pipe goes from - to -: give the one input - and -o -")
    if args.raw and not any(ends):
        raise InputError("--raw is for a live pipe; files know their format, leave it out")
    return any(ends)
