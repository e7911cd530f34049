"""The command line: verbs over functions that Python users call too. Errors are one line on stderr,
exit status 2.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codecplus._version import __version__
from codecplus.cli import evaluate, export, tokenize, train
from codecplus.errors import CodecPlusError, InputError

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
    parser = argparse.ArgumentParser(
        prog="codecplus", description="Compress audio with DAC, the Descript Audio Codec."
    )
    parser.add_argument("--version", action="version", version=f"codecplus {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("demo", help="compress a clip, decompress it, and score the result")
    verb.add_argument(
        "file", nargs="?", type=Path, help="audio file; default: a clip that comes with the package"
    )
    verb.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("demo_output"),
        help="folder (default: %(default)s)",
    )
    _add_codec_options(verb)
    _add_rate_options(verb)
    verb.set_defaults(run=demo)

    verb = verbs.add_parser("encode", help="audio files to .dacp files")
    verb.add_argument(
        "inputs", nargs="+", type=Path, help="audio files, or folders of them; - for a live pipe"
    )
    verb.add_argument(
        "--raw",
        metavar="RATE",
        help="the pipe brings 16-bit samples, RATE or RATE:CHANNELS, no header",
    )
    verb.add_argument(
        "-o", "--output", type=Path, help="a .dacp file, or a folder; default: beside each input"
    )
    verb.add_argument("-f", "--force", action="store_true", help="overwrite existing files")
    _add_codec_options(verb)
    _add_rate_options(verb)
    control = verb.add_mutually_exclusive_group()
    control.add_argument(
        "--vbr", action="store_true", help="for each frame the fewest codebooks that sound alike"
    )
    control.add_argument(
        "--abr", action="store_true", help="meet --bitrate with the file's size, within 2 %%"
    )
    verb.add_argument("--quality", type=float, metavar="Q", help="of --vbr, 0 to 10 (default: 8)")
    verb.add_argument(
        "--effort",
        type=int,
        default=0,
        metavar="N",
        help="0 to 3: better codes, found by listening; slow",
    )
    verb.add_argument(
        "--packed",
        action="store_true",
        help="no entropy coding: larger, and any reader of version 1 reads it",
    )
    verb.set_defaults(run=encode)

    verb = verbs.add_parser(
        "decode", help=".dacp files, or .dac files of the original implementation, to audio"
    )
    verb.add_argument(
        "inputs", nargs="+", type=Path, help="coded files, or folders of them; - for a live pipe"
    )
    verb.add_argument(
        "--raw", action="store_true", help="write 16-bit samples without a header to the pipe"
    )
    verb.add_argument(
        "-o",
        "--output",
        type=Path,
        help="an audio file, or a folder; default: a .wav beside each input",
    )
    verb.add_argument("-f", "--force", action="store_true", help="overwrite existing files")
    verb.add_argument(
        "--start", type=float, default=0.0, metavar="SECONDS", help="decode from here on"
    )
    verb.add_argument("--duration", type=float, metavar="SECONDS", help="decode so much")
    verb.add_argument(
        "--recover", action="store_true", help="conceal what is damaged, and tell where it is"
    )
    _add_codec_options(verb, default=None, note="default: the embedded model that made the file")
    verb.set_defaults(run=decode)

    verb = verbs.add_parser("info", help="what coded files say of themselves")
    verb.add_argument("inputs", nargs="+", type=Path, help="coded files, or folders of them")
    verb.set_defaults(run=info)

    for part in (evaluate, train, tokenize, export):
        part.add_verbs(verbs)
    _add_hub_verbs(verbs)
    _add_entropy_verb(verbs)
    return parser


def _add_hub_verbs(verbs: Any) -> None:
    verb = verbs.add_parser(
        "card", help="write the model card of a checkpoint from measured results"
    )
    verb.add_argument("checkpoint", help="a checkpoint's folder, or an embedded name")
    verb.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="what codecplus eval wrote for it",
    )
    verb.add_argument("--curve", metavar="FILE", help="learning curve, JSON lines, to be drawn")
    verb.add_argument(
        "--step", type=int, help="step of the curve that the weights are from (default: its last)"
    )
    verb.add_argument(
        "--dataset-id", metavar="ID", help="the Hub data set that local data is a copy of"
    )
    verb.set_defaults(run=card)

    verb = verbs.add_parser(
        "push", help="upload a checkpoint, or the demo, to the Hugging Face Hub"
    )
    verb.add_argument("checkpoint", nargs="?", help="a checkpoint's folder, or an embedded name")
    verb.add_argument(
        "repo", nargs="?", help="OWNER/NAME of the repository; made if it does not exist"
    )
    verb.add_argument(
        "--space",
        nargs="?",
        const="",
        metavar="REPO",
        help="upload the demo as a Space, instead of a checkpoint",
    )
    verb.add_argument(
        "--to",
        metavar="FOLDER",
        type=Path,
        help="write what would be uploaded into a folder instead",
    )
    verb.add_argument("--private", action="store_true", help="make it private")
    verb.add_argument("--revision", metavar="BRANCH", help="branch to upload to (default: main)")
    verb.add_argument(
        "--discriminators",
        action="store_true",
        help="upload the discriminators of its training, too",
    )
    verb.set_defaults(run=push)


def _add_entropy_verb(verbs: Any) -> None:
    verb = verbs.add_parser(
        "entropy", help="train the entropy model of a checkpoint, for smaller files"
    )
    verb.add_argument("checkpoint", help="an embedded name, or a checkpoint's folder")
    verb.add_argument("recordings", nargs="+", type=Path, help="audio files, or a folder of them")
    verb.add_argument(
        "-o", "--output", type=Path, help="file (default: entropy.safetensors beside the weights)"
    )
    verb.add_argument(
        "--minutes", type=float, default=15.0, help="time to take (default: %(default)g)"
    )
    verb.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="replace the one there: files made with it need it",
    )
    verb.set_defaults(run=entropy)


def _add_codec_options(
    verb: argparse.ArgumentParser, default: str | None = "dac", note: str = "default: dac"
) -> None:
    verb.add_argument(
        "--model", default=default, help=f"embedded name, folder, .pth or Hub id ({note})"
    )
    verb.add_argument("--device", help="where to compute, cpu or cuda (default: cpu)")
    verb.add_argument("--dtype", help="what to compute in: float32 (default), bfloat16 or float16")
    verb.add_argument(
        "--compile",
        action="store_true",
        help="compile what gets faster by it; needs a C++ compiler",
    )


def _add_rate_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--bitrate", type=float, help="kbit/s for all channels together (default: all codebooks)"
    )
    verb.add_argument(
        "--loudness", type=float, help="LUFS to encode at; decoding brings the original level back"
    )


def encode(args: argparse.Namespace) -> int:
    """Compress files, or what comes down a pipe."""
    if _is_pipe(args):
        from codecplus.cli.pipe import encode_pipe, parse_raw

        if args.vbr or args.abr or args.quality is not None or args.effort or args.packed:
            raise InputError(
                "a live pipe takes --bitrate alone: --vbr, --abr, --quality, --effort and --packed are for files"
            )
        raw = None if args.raw is None else parse_raw(args.raw)
        encode_pipe(
            _load(args.model, args),
            sys.stdin.buffer,
            sys.stdout.buffer,
            raw=raw,
            bitrate=args.bitrate,
        )
        return 0
    pairs = _pairs(args.inputs, args.output, _AUDIO, ".dacp")
    codec = _load(args.model, args)

    def run(source: Path, target: Path, progress: Callable[[float], Any]) -> None:
        codec.compress(
            source,
            target,
            bitrate=args.bitrate,
            loudness=args.loudness,
            rate_control="vbr" if args.vbr else "abr" if args.abr else "cbr",
            quality=args.quality,
            effort=args.effort,
            entropy_coding=not args.packed,
            overwrite=args.force,
            progress=progress,
        )

    return _run_files(pairs, run, args.force, "encoding", _audio_seconds)


def decode(args: argparse.Namespace) -> int:
    """Decompress files, each with the model that made it, or what comes down a pipe."""
    if _is_pipe(args):
        from codecplus.cli.pipe import decode_pipe

        if args.start or args.duration is not None or args.recover:
            raise InputError(
                "--start, --duration and --recover are for files, got a live pipe; leave them out"
            )

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
        part = {"start": args.start, "duration": args.duration, "recover": args.recover}
        codecs[name].decompress(source, target, **part, overwrite=args.force, progress=progress)

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
    from codecplus.cli.demo import run_demo

    run_demo(
        args.file,
        args.output,
        _load(args.model, args),
        bitrate=args.bitrate,
        loudness=args.loudness,
    )
    return 0


def entropy(args: argparse.Namespace) -> int:
    """Train an entropy model and put it beside the weights."""
    from codecplus.checkpoints.identity import EMBEDDED_FOLDER, embedded_names
    from codecplus.system.paths import atomic_path, check_output
    from codecplus.training.entropy import fit_entropy_model

    folder = (
        EMBEDDED_FOLDER / args.checkpoint
        if args.checkpoint in embedded_names()
        else Path(args.checkpoint)
    )
    if args.output is None and not folder.is_dir():
        raise InputError(
            f"{args.checkpoint} is no folder to put an entropy model into; name a file with -o"
        )
    output = args.output or folder / "entropy.safetensors"
    check_output(output, args.force)
    recordings = [source for source, _ in _expand(args.recordings, _AUDIO)]
    codec = _load(args.checkpoint, args)
    model = fit_entropy_model(
        codec, recordings, minutes=args.minutes, progress=lambda line: print(line, file=sys.stderr)
    )
    with atomic_path(output) as temporary:
        temporary.write_bytes(model.to_bytes())
    print(output)
    return 0


def card(args: argparse.Namespace) -> int:
    """Write a model card."""
    from codecplus.hub import write_card

    _quiet_transformers()
    print(
        write_card(
            args.checkpoint,
            args.results,
            curve=args.curve,
            step=args.step,
            dataset_id=args.dataset_id,
        )
    )
    return 0


def push(args: argparse.Namespace) -> int:
    """Upload a checkpoint or the demo; print the address of the commit."""
    from codecplus import hub

    _quiet_transformers()
    if args.to is not None and (args.repo or args.space or args.private or args.revision):
        raise InputError(
            "push --to FOLDER uploads nothing: leave out the repository, --private and --revision"
        )
    if args.space is not None:
        if args.checkpoint or args.revision or args.discriminators or not (args.space or args.to):
            raise InputError(
                "expected push --space REPO [--private], or push --space --to FOLDER, and nothing else"
            )
        print(
            hub.export_space(args.to)
            if args.to
            else hub.push_space(args.space, private=args.private)
        )
        return 0
    if args.checkpoint is not None and args.to is not None:
        print(hub.export_folder(args.checkpoint, args.to, discriminators=args.discriminators))
        return 0
    if args.checkpoint is None or args.repo is None:
        raise InputError(
            "push needs a checkpoint and a repository: codecplus push FOLDER OWNER/NAME"
        )
    options = {
        "private": args.private,
        "revision": args.revision,
        "discriminators": args.discriminators,
    }
    print(hub.push(args.checkpoint, args.repo, **options))
    return 0


def _is_pipe(args: argparse.Namespace) -> bool:
    """Whether - stands for standard input and output; it stands for both or neither."""
    ends = [str(path) == "-" for path in (*args.inputs, args.output)]
    if any(ends) and ends != [True, True]:
        raise InputError("a live pipe goes from - to -: give the one input - and -o -")
    if args.raw and not any(ends):
        raise InputError("--raw is for a live pipe; files know their format, leave it out")
    return any(ends)


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _load(name: str, args: argparse.Namespace):
    from codecplus.codec import load_codec
    from codecplus.inference.onnx_model import find_export

    if find_export(name) is None:  # an export needs neither torch nor transformers
        _quiet_transformers()
    codec = load_codec(
        name, device=getattr(args, "device", None), dtype=getattr(args, "dtype", None)
    )
    return codec.compile() if getattr(args, "compile", False) else codec


def _maker(source: Path) -> str:
    """The embedded model that made a file, by the fingerprint in it."""
    from codecplus.bitstream import Reader
    from codecplus.decompression import is_official, open_coded

    with open_coded(source) as file:
        if is_official(file):
            raise InputError(
                "a .dac file does not say which model made it; name it, for example --model descript/dac_44khz"
            )
        return _embedded(Reader(file).header.fingerprint)


def _embedded(mark: bytes) -> str:
    from codecplus.checkpoints.identity import find_embedded

    name = find_embedded(mark)
    if name is None:
        raise InputError(
            f"no embedded model made it (fingerprint {mark.hex()}); name the one that did with --model"
        )
    return name


def _describe(source: Path) -> dict[str, str]:
    from codecplus.bitstream import Reader
    from codecplus.checkpoints import read_dac_file
    from codecplus.checkpoints.identity import find_embedded
    from codecplus.decompression import is_official, open_coded

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
        "format": f".dacp, version 1, {_coding(header)}",
        "model": f"{name or 'not an embedded one'}, fingerprint {header.fingerprint.hex()}",
        "audio": _audio_line(header.num_samples, header.original_sample_rate, header.channels),
        "codes": f"{header.num_codebooks} codebooks of {header.codebook_size}, {header.num_frames} frames of "
        f"{header.hop_length} samples at {header.sample_rate} Hz",
        "size": f"{size} bytes" + (f", {size * 8 / seconds / 1000:.2f} kbit/s" if seconds else ""),
    }
    if header.gain != 1.0:
        lines["gain"] = f"{header.gain:.4f}"
    return lines


def _coding(header: Any) -> str:
    if header.entropy_model is None:
        return "packed codes"
    name = header.entropy_model.hex()
    return (
        f"entropy-coded codes, entropy model {name}"
        if name
        else "entropy-coded codes, no entropy model needed"
    )


def _audio_line(samples: int, rate: int, channels: int) -> str:
    return f"{samples / rate:.2f} s, {channels} channel{'s' * (channels > 1)}, {rate} Hz"


def _expand(inputs: list[Path], suffixes: set[str]) -> list[tuple[Path, Path]]:
    """Files named, and files of these kinds in folders named: each with its name relative to what
    was named.
    """
    found = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file()
            )
            if not inside:
                raise InputError(f"the folder {path} holds no {', '.join(sorted(suffixes))} file")
            found += [(p, p.relative_to(path)) for p in inside]
        elif path.exists():
            found.append((path, Path(path.name)))
        else:
            raise InputError(f"there is no file or folder {path}")
    return found


def _pairs(
    inputs: list[Path], output: Path | None, suffixes: set[str], suffix: str
) -> list[tuple[Path, Path]]:
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
            raise InputError(
                f"{source} and {targets[target]} would both become {target}; rename one of them"
            )
        targets[target] = source
    return pairs


def _run_files(
    pairs: list[tuple[Path, Path]],
    run: Callable[[Path, Path, Callable[[float], Any]], None],
    force: bool,
    what: str,
    seconds: Callable[[Path], float],
) -> int:
    """Run over all files with one progress bar in seconds of audio; a file that fails does not stop
    the others.
    """
    from tqdm import tqdm

    from codecplus.system.paths import check_output

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
    from codecplus.audio.files import AudioFileReader

    try:
        with AudioFileReader(source) as reader:
            return reader.num_samples / reader.sample_rate
    except CodecPlusError:
        return 0.0  # said when its turn comes


def _coded_seconds(source: Path) -> float:
    from codecplus.bitstream import Reader
    from codecplus.decompression import is_official, open_coded

    try:
        with open_coded(source) as file:
            header = None if is_official(file) else Reader(file).header
            return header.num_samples / header.original_sample_rate if header else 0.0
    except CodecPlusError:
        return 0.0


__all__ = ["main"]
