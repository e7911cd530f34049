"""Programs as codecs: one command line that encodes and one that decodes, from a TOML file.

    name = "codec2"
    rates = [0.7, 1.2, 1.6, 2.4, 3.2]
    sample_rate = 8000
    format = "s16"
    encode = "c2enc {mode} {input} {output}"
    decode = "c2dec {mode} {input} {output}"

`encode` reads a recording and writes a file, whose size is the rate; `decode` writes a recording.
Braces stand for `input`, `output`, `rate` (kbit/s of all channels), `bps` (the same in bit/s),
`sample_rate`, `channels`, and any key of the table `[values]`, which has a text for each rate.
"""

import hashlib
import shlex
import shutil
import string
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.audio.files import load_audio, save_audio
from codecplus.errors import FileFormatError, InputError, MissingExtraError
from codecplus.eval.audio import fit, resample
from codecplus.eval.codecs.base import Original, Payload, row_name

_FORMATS = ("wav", "s16")  # a WAV file, or raw 16-bit samples, interleaved
_SECONDS = 3600.0  # the process that runs the codec has a limit of its own
_PADDING = 0.25  # seconds by which a program may lengthen a recording


@dataclass(frozen=True, kw_only=True)
class CommandSettings:
    """A program, as its TOML file describes it.

    Attributes:
        name: of the codec in the results.
        encode, decode: command lines; no shell reads them.
        rates: in kbit/s per channel, those that the program has; empty for any.
        default_rate: when none is asked for; None: the highest of `rates`.
        sample_rate: to which recordings are resampled before; None: their own.
        channels: 1 to code each channel as a file of its own; None: all in one file.
        format: of the recordings that the commands read and write, `wav` or `s16`.
        delay: samples at `sample_rate` that the program puts before a recording.
        header_bytes: at the start of each file that say the same in all of them.
        latency: in seconds.
        values: texts for braces, one for each of `rates`.
        package: what a system's package manager calls the program.
        homepage: an address for readers.
    """

    name: str
    encode: str
    decode: str
    rates: list[float] = field(default_factory=list)
    default_rate: float | None = None
    sample_rate: int | None = None
    channels: int | None = None
    format: str = "wav"
    delay: int = 0
    header_bytes: int = 0
    latency: float | None = None
    values: dict[str, list[str]] = field(default_factory=dict)
    package: str | None = None
    homepage: str | None = None

    def __post_init__(self) -> None:
        if self.format not in _FORMATS:
            raise InputError(
                f"expected the format {' or '.join(_FORMATS)} for {self.name!r}, got "
                f"{self.format!r}"
            )
        if self.format == "s16" and self.sample_rate is None:
            raise InputError(f"the codec {self.name!r} reads raw samples, so it needs sample_rate")
        for key, texts in self.values.items():
            if len(texts) != len(self.rates):
                raise InputError(
                    f"expected a value of {key!r} for each of the {len(self.rates)} rates of "
                    f"{self.name!r}, got {len(texts)}"
                )
        known = {"input", "output", "rate", "bps", "sample_rate", "channels", *self.values}
        for command in (self.encode, self.decode):
            for _, name, _, _ in string.Formatter().parse(command):
                if name is not None and name not in known:
                    raise InputError(
                        f"the codec {self.name!r} has {{{name}}} in a command; expected one of "
                        f"{', '.join(sorted(known))}"
                    )


class CommandCodec:
    """A program at the rate nearest to a target.

    Args:
        settings: as the TOML file says.
        kbps: the target in kbit/s per channel; None: the default.

    Raises:
        MissingExtraError: if the program is not installed.
    """

    def __init__(self, settings: CommandSettings, kbps: float | None = None) -> None:
        self.settings = settings
        self._versions = {}
        for command in (settings.encode, settings.decode):
            program = shlex.split(command)[0]
            found = shutil.which(program)
            if found is None:
                package = settings.package or program
                raise MissingExtraError(
                    f"the codec {settings.name!r} needs the program {program}; install {package}"
                )
            self._versions[program] = _file_hash(Path(found))
        self.nominal_kbps = _nearest(settings, kbps)
        self.name = row_name(settings.name, self.nominal_kbps)
        self.homepage = settings.homepage
        if settings.latency is not None:
            self.latency = settings.latency

    def config(self) -> dict[str, Any]:
        """The settings, hashes of the programs, and the rate."""
        settings = {item.name: getattr(self.settings, item.name) for item in fields(self.settings)}
        settings.pop("latency")
        settings.pop("package")
        settings.pop("homepage")
        return {**settings, "programs": self._versions, "kbps": self.nominal_kbps, "version": 1}

    def encode(self, audio: np.ndarray, sample_rate: int) -> Payload:
        """Encode (C, S) to the bytes of the files that the program writes."""
        rate = self.settings.sample_rate or sample_rate
        audio = resample(audio, sample_rate, rate)
        data = b"".join(_framed(self._encode_file(group, rate)) for group in self._groups(audio))
        count = len(self._groups(audio))
        return Payload(data, 8 * (len(data) - count * (_FRAME + self.settings.header_bytes)))

    def decode(self, data: bytes, original: Original) -> np.ndarray:
        """Decode to (C, S) of the original."""
        rate = self.settings.sample_rate or original.sample_rate
        groups = self._groups(np.empty((original.channels, 0)))
        decoded = []
        for file, group in zip(_unframed(data), groups, strict=True):
            decoded.append(self._decode_file(file, rate, len(group)))
        audio = np.concatenate(decoded)[:, self.settings.delay :]
        audio = resample(audio, rate, original.sample_rate)
        excess = (audio.shape[-1] - original.samples) / original.sample_rate
        if not -_PADDING <= excess <= _PADDING:
            raise InputError(f"{self.name} decoded {audio.shape[-1]} samples of {original.samples}")
        return fit(audio, original.samples)

    def _groups(self, audio: np.ndarray) -> list[np.ndarray]:
        """Channels that share a file."""
        if self.settings.channels is None:
            return [audio]
        size = self.settings.channels
        return [audio[first : first + size] for first in range(0, len(audio), size)]

    def _encode_file(self, audio: np.ndarray, rate: int) -> bytes:
        with tempfile.TemporaryDirectory(prefix="codecplus-") as folder:
            source = Path(folder) / "input"
            coded = Path(folder) / "coded"
            source = self._write(audio, source, rate)
            self._run(self.settings.encode, source, coded, rate, len(audio))
            return coded.read_bytes()

    def _decode_file(self, data: bytes, rate: int, channels: int) -> np.ndarray:
        with tempfile.TemporaryDirectory(prefix="codecplus-") as folder:
            coded = Path(folder) / "coded"
            coded.write_bytes(data)
            decoded = Path(folder) / f"decoded{self._suffix}"
            self._run(self.settings.decode, coded, decoded, rate, channels)
            if self.settings.format == "wav":
                audio, decoded_rate = load_audio(decoded)
                return resample(np.atleast_2d(audio), decoded_rate, rate)
            samples = np.fromfile(decoded, "<i2").astype(np.float32) / 2**15
            return samples[: len(samples) // channels * channels].reshape(-1, channels).T

    @property
    def _suffix(self) -> str:
        return ".wav" if self.settings.format == "wav" else ".raw"

    def _write(self, audio: np.ndarray, path: Path, rate: int) -> Path:
        path = path.with_name(path.name + self._suffix)
        if self.settings.format == "wav":
            save_audio(np.clip(audio, -1, 1), path, rate)
        else:
            samples = np.clip(np.round(audio * 2**15), -(2**15), 2**15 - 1).astype("<i2")
            path.write_bytes(np.ascontiguousarray(samples.T).tobytes())
        return path

    def _run(self, command: str, source: Path, target: Path, rate: int, channels: int) -> None:
        total = self.nominal_kbps * channels if self.nominal_kbps is not None else 0.0
        texts = {
            "input": str(source),
            "output": str(target),
            "rate": f"{total:g}",
            "bps": f"{round(1000 * total)}",
            "sample_rate": str(rate),
            "channels": str(channels),
        }
        for key, values in self.settings.values.items():
            assert self.nominal_kbps is not None, "a program with values has rates"
            texts[key] = values[self.settings.rates.index(self.nominal_kbps)]
        arguments = [argument.format_map(texts) for argument in shlex.split(command)]
        try:
            result = subprocess.run(
                arguments, capture_output=True, stdin=subprocess.DEVNULL, timeout=_SECONDS
            )
        except OSError as error:
            raise InputError(f"{arguments[0]} cannot be run: {error.strerror}") from error
        if result.returncode or not target.exists():
            output = (result.stderr or result.stdout).decode(errors="replace").strip()
            last = output.splitlines()[-1] if output else "it said nothing"
            raise InputError(f"{arguments[0]} ended with status {result.returncode}: {last}")


def load_command(path: str | Path) -> CommandSettings:
    """Read the TOML file of a program.

    Raises:
        FileFormatError: for a file of another form.
        InputError: for settings that cannot be used.
    """
    path = Path(path)
    return _parse(path.read_text(encoding="utf-8"), path.stem, str(path))


def command_presets() -> dict[str, CommandSettings]:
    """Return the programs that the package knows, by name; whether they are installed or not."""
    presets = {}
    folder = files("codecplus.configuration") / "codecs"
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        if file.name.endswith(".toml"):
            settings = _parse(file.read_text(encoding="utf-8"), file.name[:-5], file.name)
            presets[settings.name] = settings
    return presets


def _parse(text: str, stem: str, path: str) -> CommandSettings:
    tomllib = _toml()
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FileFormatError(f"{path} is no TOML: {error}") from error
    known = {item.name for item in fields(CommandSettings)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise FileFormatError(f"{path} has {unknown[0]!r}; expected {', '.join(sorted(known))}")
    missing = [name for name in ("encode", "decode") if not isinstance(table.get(name), str)]
    if missing:
        raise FileFormatError(f"{path} has no {missing[0]!r}; expected a command line")
    return CommandSettings(**{"name": stem, **table})


def _toml() -> Any:
    try:
        import tomllib  # pyright: ignore[reportMissingImports]
    except ImportError:  # Python 3.10
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    return tomllib


def _nearest(settings: CommandSettings, kbps: float | None) -> float | None:
    if kbps is None:
        if settings.default_rate is not None or not settings.rates:
            return settings.default_rate
        return max(settings.rates)
    if not settings.rates:
        return kbps
    return min(settings.rates, key=lambda rate: abs(rate - kbps))


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


_FRAME = 4  # bytes before each file: its length


def _framed(file: bytes) -> bytes:
    return len(file).to_bytes(_FRAME, "little") + file


def _unframed(data: bytes) -> Iterable[bytes]:
    position = 0
    while position < len(data):
        size = int.from_bytes(data[position : position + _FRAME], "little")
        yield data[position + _FRAME : position + _FRAME + size]
        position += _FRAME + size
