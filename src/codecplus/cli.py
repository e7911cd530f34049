"""The command line: verbs over functions that Python users call too. Errors are one line on stderr, exit status 2."""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._version import __version__
from .errors import CodecPlusError, InputError
from .eval import commands as evaluation
from .export import commands as export
from .tokenizing import commands as tokenizing
from .training import commands as training

_AUDIO = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus"}
_CODED = {".dacp", ".dac"}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit status: 0, or 2 after a message on stderr."""
    args = _parser().parse_args(arguments)
    warnings.showwarning = lambda message, *_, **__: print(f"codecplus: {message}", file=sys.stderr)
    try:
        return args.run(args) or 0
    except BrokenPipeError:
        sys.stderr.close()  # who read from us is gone: nobody to tell
        return 141
    except CodecPlusError as error:
        print(f"codecplus: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("codecplus: interrupted; nothing half-written was left behind", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="codecplus", description="Compress audio with DAC, the Descript Audio Codec.")
    parser.add_argument("--version", action="version", version=f"codecplus {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("demo", help="compress a clip, decompress it, and score the result")
    verb.add_argument("file", nargs="?", type=Path, help="audio file; default: a clip that comes with the package")
    verb.add_argument("-o", "--output", type=Path, default=Path("demo_output"), help="folder (default: %(default)s)")
    _add_codec_options(verb)
    _add_rate_options(verb)
    verb.set_defaults(run=demo)

    verb = verbs.add_parser("encode", help="audio files to .dacp files")
    verb.add_argument("inputs", nargs="+", type=Path, help="audio files, or folders of them; - for a live pipe")
    verb.add_argument("--raw", metavar="RATE", help="the pipe brings 16-bit samples, RATE or RATE:CHANNELS, no header")
    verb.add_argument("-o", "--output", type=Path, help="a .dacp file, or a folder; default: beside each input")
    verb.add_argument("-f", "--force", action="store_true", help="overwrite existing files")
    _add_codec_options(verb)
    _add_rate_options(verb)
    verb.set_defaults(run=encode)

    verb = verbs.add_parser("decode", help=".dacp files, or .dac files of the original implementation, to audio")
    verb.add_argument("inputs", nargs="+", type=Path, help="coded files, or folders of them; - for a live pipe")
    verb.add_argument("--raw", action="store_true", help="write 16-bit samples without a header to the pipe")
    verb.add_argument("-o", "--output", type=Path, help="an audio file, or a folder; default: a .wav beside each input")
    verb.add_argument("-f", "--force", action="store_true", help="overwrite existing files")
    _add_codec_options(verb, default=None, note="default: the embedded model that made the file")
    verb.set_defaults(run=decode)

    verb = verbs.add_parser("info", help="what coded files say of themselves")
    verb.add_argument("inputs", nargs="+", type=Path, help="coded files, or folders of them")
    verb.set_defaults(run=info)

    for part in (evaluation, training, tokenizing, export):
        part.add_verbs(verbs)
    return parser


def _add_codec_options(verb: argparse.ArgumentParser, default: str | None = "dac", note: str = "default: dac") -> None:
    verb.add_argument("--model", default=default, help=f"embedded name, folder, .pth or Hub id ({note})")
    verb.add_argument("--device", help="where to compute, cpu or cuda (default: cpu)")
    verb.add_argument("--dtype", help="what to compute in: float32 (default), bfloat16 or float16")


def _add_rate_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--bitrate", type=float, help="kbit/s for all channels together (default: all codebooks)")
    verb.add_argument("--loudness", type=float, help="LUFS to encode at; decoding brings the original level back")


def encode(args: argparse.Namespace) -> int:
    """Compress files, or what comes down a pipe."""
    if _is_pipe(args):
        from .pipe import encode_pipe, parse_raw

        raw = None if args.raw is None else parse_raw(args.raw)
        encode_pipe(_load(args.model, args), sys.stdin.buffer, sys.stdout.buffer, raw=raw, bitrate=args.bitrate)
        return 0
    pairs = _pairs(args.inputs, args.output, _AUDIO, ".dacp")
    codec = _load(args.model, args)

    def run(source: Path, target: Path, progress: Callable[[float], Any]) -> None:
        codec.compress(
            source, target, bitrate=args.bitrate, loudness=args.loudness, overwrite=args.force, progress=progress
        )

    return _run_files(pairs, run, args.force, "encoding", _audio_seconds)


def decode(args: argparse.Namespace) -> int:
    """Decompress files, each with the model that made it, or what comes down a pipe."""
    if _is_pipe(args):
        from .pipe import decode_pipe

        def find_codec(mark: bytes):
            return _load(args.model or _embedded(mark), args)

        decode_pipe(find_codec, sys.stdin.buffer, sys.stdout.buffer, raw=args.raw)
        return 0
    pairs = _pairs(args.inputs, args.output, _CODED, ".wav")
    codecs: dict[str, Any] = {}

    def run(source: Path, target: Path, progress: Callable[[float], Any]) -> None:
        name = args.model or _maker(source)
        if name not in codecs:
            codecs[name] = _load(name, args)
        codecs[name].decompress(source, target, overwrite=args.force, progress=progress)

    return _run_files(pairs, run, args.force, "decoding", _coded_seconds)


def info(args: argparse.Namespace) -> int:
    """Print what coded files say of themselves."""
    status = 0
    for source in _expand(args.inputs, _CODED):
        try:
            lines = _describe(source[0])
        except CodecPlusError as error:
            print(f"codecplus: {_named(source[0], error)}", file=sys.stderr)
            status = 2
            continue
        print(source[0])
        for name, value in lines.items():
            print(f"  {name:<12} {value}")
    return status


def demo(args: argparse.Namespace) -> int:
    """Compress a clip, decompress it, score the result, and write both with a picture."""
    from .demo import run_demo

    run_demo(args.file, args.output, _load(args.model, args), bitrate=args.bitrate, loudness=args.loudness)
    return 0


def _is_pipe(args: argparse.Namespace) -> bool:
    """Whether - stands for standard input and output; it stands for both or neither."""
    ends = [str(path) == "-" for path in (*args.inputs, args.output)]
    if any(ends) and ends != [True, True]:
        raise InputError("a live pipe goes from - to -: give the one input - and -o -")
    if args.raw and not any(ends):
        raise InputError("--raw is for a live pipe; files know their format, leave it out")
    return any(ends)


def _load(name: str, args: argparse.Namespace):
    from transformers.utils import logging

    from .codec import load_codec

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return load_codec(name, device=args.device, dtype=args.dtype)


def _maker(source: Path) -> str:
    """The embedded model that made a file, by the fingerprint in it."""
    from .bitstream import Reader
    from .codec import is_official, open_coded

    with open_coded(source) as file:
        if is_official(file):
            raise InputError(
                "a .dac file does not say which model made it; name it, for example --model descript/dac_44khz"
            )
        return _embedded(Reader(file).header.fingerprint)


def _embedded(mark: bytes) -> str:
    from .codec import find_embedded

    name = find_embedded(mark)
    if name is None:
        raise InputError(f"no embedded model made it (fingerprint {mark.hex()}); name the one that did with --model")
    return name


def _describe(source: Path) -> dict[str, str]:
    from .bitstream import Reader
    from .checkpoints import read_dac_file
    from .codec import find_embedded, is_official, open_coded

    with open_coded(source) as file:
        if is_official(file):
            old = read_dac_file(source)
            channels, codebooks, frames = old.codes.shape
            return {
                "format": f".dac of the original implementation, version {old.dac_version}",
                "audio": _audio_line(old.original_length, old.sample_rate, channels),
                "codes": f"{codebooks} codebooks, {frames} frames",
                "loudness": f"{old.input_db:.1f} LUFS",
            }
        header = Reader(file).header
    seconds = header.num_samples / header.original_sample_rate
    size = source.stat().st_size
    name = find_embedded(header.fingerprint)
    lines = {
        "format": ".dacp, version 1, packed codes",
        "model": f"{name or 'not an embedded one'}, fingerprint {header.fingerprint.hex()}",
        "audio": _audio_line(header.num_samples, header.original_sample_rate, header.channels),
        "codes": f"{header.num_codebooks} codebooks of {header.codebook_size}, {header.num_frames} frames of "
        f"{header.hop_length} samples at {header.sample_rate} Hz",
        "size": f"{size} bytes" + (f", {size * 8 / seconds / 1000:.2f} kbit/s" if seconds else ""),
    }
    if header.gain != 1.0:
        lines["gain"] = f"{header.gain:.4f}"
    return lines


def _audio_line(samples: int, rate: int, channels: int) -> str:
    return f"{samples / rate:.2f} s, {channels} channel{'s' * (channels > 1)}, {rate} Hz"


def _expand(inputs: list[Path], suffixes: set[str]) -> list[tuple[Path, Path]]:
    """Files named, and files of these kinds in folders named: each with its name relative to what was named."""
    found = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
            if not inside:
                raise InputError(f"the folder {path} holds no {', '.join(sorted(suffixes))} file")
            found += [(p, p.relative_to(path)) for p in inside]
        elif path.exists():
            found.append((path, Path(path.name)))
        else:
            raise InputError(f"there is no file or folder {path}")
    return found


def _pairs(inputs: list[Path], output: Path | None, suffixes: set[str], suffix: str) -> list[tuple[Path, Path]]:
    """What to read and where to write it."""
    sources = _expand(inputs, suffixes)
    if output is None:
        pairs = [(source, source.with_suffix(suffix)) for source, _ in sources]
    elif len(sources) == 1 and not inputs[0].is_dir() and output.suffix and not output.is_dir():
        return [(sources[0][0], output)]
    elif output.suffix and not output.is_dir():
        raise InputError(f"expected a folder for {len(sources)} files, got -o {output}")
    else:
        pairs = [(source, (output / relative).with_suffix(suffix)) for source, relative in sources]
    targets: dict[Path, Path] = {}
    for source, target in pairs:
        if target == source:
            raise InputError(f"{source} would be written over itself; name another output with -o")
        if target in targets:
            raise InputError(f"{source} and {targets[target]} would both become {target}; rename one of them")
        targets[target] = source
    return pairs


def _run_files(
    pairs: list[tuple[Path, Path]],
    run: Callable[[Path, Path, Callable[[float], Any]], None],
    force: bool,
    what: str,
    seconds: Callable[[Path], float],
) -> int:
    """Run over all files with one progress bar in seconds of audio; a file that fails does not stop the others."""
    from tqdm import tqdm

    from .utils import check_output

    failures = 0
    total = sum(seconds(source) for source, _ in pairs)
    with tqdm(total=round(total, 1), desc=what, unit="s", disable=None, leave=False) as bar:
        for source, target in pairs:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                check_output(target, force)
                run(source, target, bar.update)
                tqdm.write(f"{source} -> {target}", file=sys.stdout)
            except (CodecPlusError, OSError) as error:
                failures += 1
                tqdm.write(f"codecplus: {_named(source, error)}", file=sys.stderr)
    return 2 if failures else 0


def _named(source: Path, error: Exception) -> str:
    """The message of an error, which names the file."""
    message = str(error)
    return message if str(source) in message else f"{source}: {message}"


def _audio_seconds(source: Path) -> float:
    from .utils import AudioFileReader

    try:
        with AudioFileReader(source) as reader:
            return reader.num_samples / reader.sample_rate
    except CodecPlusError:
        return 0.0  # said when its turn comes


def _coded_seconds(source: Path) -> float:
    from .bitstream import Reader
    from .codec import is_official, open_coded

    try:
        with open_coded(source) as file:
            header = None if is_official(file) else Reader(file).header
            return header.num_samples / header.original_sample_rate if header else 0.0
    except CodecPlusError:
        return 0.0


__all__ = ["main"]
