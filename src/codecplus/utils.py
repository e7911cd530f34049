"""Audio between files, rates and loudness, and mel spectrograms; knows samples, and nothing of models or bits.

Letters: C channels, S samples, T frames. Arrays are float32, full scale is ±1, files pass in blocks.
"""

from __future__ import annotations

import copy
import functools
import io
import math
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr

from codecplus.errors import FileFormatError, InputError, OutputExistsError

if TYPE_CHECKING:
    import torch

PathLike = str | os.PathLike[str]

_MAX_CHANNELS = 64
_MIN_RATE, _MAX_RATE = 4_000, 1_000_000  # Hz; K-weighting has no meaning below 3 kHz
_BLOCK = 1 << 16  # samples; libsndfile's Vorbis encoder keeps a whole write on the stack
_INTEGER_SCALES = {"uint8": (128, 2.0**7), "int16": (0, 2.0**15), "int32": (0, 2.0**31)}  # zero, full scale


class _Format(NamedTuple):
    name: str
    subtypes: tuple[str, ...]  # the default first
    max_channels: int
    max_rate: int


_FORMATS = {
    ".wav": _Format("WAV", ("PCM_16", "PCM_24", "PCM_32", "FLOAT"), _MAX_CHANNELS, _MAX_RATE),
    ".flac": _Format("FLAC", ("PCM_16", "PCM_24"), 8, 655_350),
    ".ogg": _Format("OGG", ("VORBIS", "OPUS"), _MAX_CHANNELS, 200_000),  # above, libsndfile 1.2 crashes the process
    ".mp3": _Format("MP3", ("MPEG_LAYER_III",), 2, 48_000),
}
_INTEGER_BITS = {"PCM_16": 16, "PCM_24": 24, "PCM_32": 32}  # all other encodings keep samples beyond [-1, 1]
_WAV_LIMIT = 2**32 - 2**26  # bytes; a WAV header counts to 4 GiB, one block may overshoot


# ---- arrays


def as_audio(x: Any) -> np.ndarray:
    """Turn arrays, lists and tensors into float32 audio, (samples,) or (channels, samples).

    Floating point is taken as it is; int16, int32 and uint8 are scaled to [-1, 1) as in a WAV file. Tensors may be on
    any device and require grad. The result may share memory with `x`.

    Raises InputError for other types and shapes, no samples, more than 64 channels, and NaN or infinite values.
    """
    audio = _as_float32(x)
    if audio.ndim not in (1, 2):
        raise InputError(
            f"expected audio of shape (samples,) or (channels, samples), got {audio.shape}; "
            "pass one item of a batch at a time"
        )
    if audio.size == 0:
        raise InputError(f"expected audio with at least 1 sample, got shape {audio.shape}")
    if audio.ndim == 2 and audio.shape[0] > _MAX_CHANNELS:
        raise InputError(
            f"expected (channels, samples) with at most {_MAX_CHANNELS} channels, got {audio.shape}; "
            "if this is (samples, channels), pass its transpose"
        )
    return _check_finite(audio)


def _as_float32(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):  # a torch tensor; numpy knows no bfloat16
        x = x.detach().cpu()
        x = (x.float() if x.is_floating_point() else x).numpy()
    try:
        array = np.asarray(x)
    except (TypeError, ValueError):  # such as a ragged list
        array = np.empty(0, object)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # becomes infinite, which is refused by name
            return np.asarray(array, dtype=np.float32, order="C")
    if array.dtype.name in _INTEGER_SCALES:
        zero, scale = _INTEGER_SCALES[array.dtype.name]
        return (array.astype(np.float32) - np.float32(zero)) / np.float32(scale)
    got = type(x).__name__ if array.dtype.kind in "OUSM" else f"{array.dtype} values"
    raise InputError(
        f"expected audio as floats in [-1, 1], or int16, int32, uint8, got {got}; divide other integers by full scale"
    )


def _check_finite(audio: np.ndarray) -> np.ndarray:
    finite = np.isfinite(audio)
    if not finite.all():
        first = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), audio.shape))
        raise InputError(
            f"expected finite audio, got {audio.size - int(finite.sum())} NaN or infinite values of {audio.size}, "
            f"the first at index {first[0] if audio.ndim == 1 else first}"
        )
    return audio


def _as_block(x: Any, channels: int) -> np.ndarray:
    """One piece of a longer signal, (C, S) with S >= 0."""
    block = _as_float32(x)
    shape = block.shape
    if block.ndim == 1:
        block = block[None]
    if block.ndim != 2 or block.shape[0] != channels:
        raise InputError(f"expected a block of shape ({channels}, samples), got {shape}")
    return _check_finite(block)


def _check_count(name: str, value: Any, lowest: int, highest: int) -> int:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or value % 1 or not lowest <= value <= highest:
        raise InputError(f"expected {name} as an integer from {lowest} to {highest}, got {value!r}")
    return int(value)


def _check_rate(value: Any, name: str = "sample_rate") -> int:
    return _check_count(name, value, _MIN_RATE, _MAX_RATE)


# ---- output paths


def _as_path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"expected a path as a string or pathlib.Path, got {type(path).__name__}")
    name = os.fsdecode(path)
    if not name or "\0" in name:
        raise InputError(f"expected a file name, got {name!r}")
    return Path(name)


def check_output(path: PathLike, overwrite: bool = True) -> Path:
    """Return `path` if a file can be written there.

    Raises OutputExistsError when it exists and `overwrite` is false, InputError when it is a folder or when the folder
    it belongs in does not exist.
    """
    target = _as_path(path)
    if os.path.isdir(target):
        raise InputError(f"expected a file name to write to, got the folder {target}")
    if not os.path.isdir(target.parent):
        raise InputError(f"cannot write {target}: there is no folder {target.parent}; create it first")
    if not overwrite and os.path.lexists(target):
        raise OutputExistsError(f"{target} exists already; choose another name or allow overwriting")
    return target


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Give a temporary name beside `path`, which becomes `path` when the block succeeds and is removed when it fails.

    The name keeps the suffix; the file gets the permissions of any new file; a link is written through. Raises
    InputError as `check_output` does.
    """
    target = Path(os.path.realpath(check_output(path)))
    if os.path.exists(target) and not target.is_file():
        yield target  # /dev/null or a pipe: a rename would put a file in place of the device
        return
    temporary = target.with_name(f".{secrets.token_hex(8)}.part{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# ---- audio files


class AudioFileReader:
    """An audio file as a stream of blocks, in bounded memory; a context manager.

    Reads what libsndfile reads: WAV, FLAC, OGG (Vorbis, Opus), MP3, AIFF and more. `sample_rate` (Hz), `channels` and
    `num_samples` (per channel) are what the header says. A pipe or a file object is read whole into memory.

    Raises InputError for a missing file, FileFormatError for one that is empty, of another format, or absurd.
    """

    def __init__(self, path_or_file: PathLike | BinaryIO):
        self.name, source = _audio_source(path_or_file)
        try:
            self._file = soundfile.SoundFile(source)
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a headerless .raw
            raise FileFormatError(
                f"{self.name} is not readable audio ({_reason(error)}); expected WAV, FLAC, OGG or MP3, "
                "convert other formats to WAV first"
            ) from error
        self.sample_rate, self.channels = self._file.samplerate, self._file.channels
        self.num_samples = self._file.frames
        self._refuse_absurd_header()

    def _refuse_absurd_header(self) -> None:
        for what, value, lowest, highest in (
            ("channels", self.channels, 1, _MAX_CHANNELS),
            ("Hz", self.sample_rate, _MIN_RATE, _MAX_RATE),
            ("samples", self.num_samples, 1, 2**40),  # FLAC from a pipe says 2^63 - 1: unknown
        ):
            if not lowest <= value <= highest:
                self._file.close()
                raise FileFormatError(
                    f"{self.name} has {value} {what} by its header, expected {lowest} to {highest}; "
                    "it is empty, or its header is damaged or unfinished"
                )

    def __enter__(self) -> AudioFileReader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def blocks(self, block_samples: int = _BLOCK) -> Iterator[np.ndarray]:
        """Yield the file from its start as float32 (channels, n); n is `block_samples` but for the last block.

        Raises FileFormatError when the data is damaged, ends before the header says, or holds NaN or infinities.
        """
        block_samples = _check_count("block_samples", block_samples, 1, 2**40)
        done = 0
        while done < self.num_samples:
            try:
                if done == 0 and self._file.seekable():
                    self._file.seek(0)
                block = _check_finite(self._file.read(block_samples, dtype="float32", always_2d=True))
            except (soundfile.LibsndfileError, InputError) as error:
                raise FileFormatError(f"{self.name} is damaged after sample {done}: {error}") from error
            if len(block) == 0:
                break
            done += len(block)
            yield np.ascontiguousarray(block.T)
        # without an index, the length of an MP3 is an estimate from its first frames
        enough = self.num_samples * 0.99 - 4096 if self._file.format == "MP3" else self.num_samples
        if done < enough:
            raise FileFormatError(
                f"{self.name} is truncated: its header says {self.num_samples} samples, {done} are there"
            )


def _audio_source(path_or_file: Any) -> tuple[str, Any]:
    """A name for messages, and what soundfile can open."""
    if hasattr(path_or_file, "read"):
        name, data = str(getattr(path_or_file, "name", type(path_or_file).__name__)), path_or_file.read()
        if isinstance(data, str):
            raise InputError(f"expected a file opened in binary mode, got {name} opened as text; open it with 'rb'")
    else:
        path = _as_path(path_or_file)
        name = str(path)
        if os.path.isdir(path):
            raise InputError(f"expected an audio file, got the folder {name}")
        if not os.path.exists(path):
            raise InputError(f"there is no file {name}")
        if os.path.isfile(path) and os.path.getsize(path) > 0:
            return name, path
        data = b"" if os.path.isfile(path) else path.read_bytes()
    if not data:
        raise FileFormatError(f"{name} is empty (0 bytes); expected an audio file")
    return name, io.BytesIO(data)


def load_audio(
    path_or_file: PathLike | BinaryIO, sample_rate: int | None = None, channels: int | None = None
) -> tuple[np.ndarray, int]:
    """Read an audio file as float32: (samples,) for mono, else (channels, samples), and its sample rate in Hz.

    `sample_rate` resamples (see `resample`). `channels=1` averages the channels, a mono file can be copied to any
    number, other changes are refused.

    Raises InputError for a missing file or impossible channels, FileFormatError for a file that is not good audio.
    """
    with AudioFileReader(path_or_file) as reader:
        rate = reader.sample_rate if sample_rate is None else _check_rate(sample_rate)
        wanted = reader.channels if channels is None else _check_count("channels", channels, 1, _MAX_CHANNELS)
        if wanted != reader.channels and 1 not in (wanted, reader.channels):
            raise InputError(
                f"{reader.name} has {reader.channels} channels and cannot become {wanted}; "
                f"possible are {reader.channels}, or 1 (their mean)"
            )
        kept = min(wanted, reader.channels)
        resampler = Resampler(reader.sample_rate, rate, kept)
        pieces = []
        for block in reader.blocks():
            pieces.append(resampler.push(block if kept == reader.channels else block.mean(axis=0, keepdims=True)))
        audio = np.concatenate([*pieces, resampler.flush()], axis=1)
    if kept < wanted:
        audio = np.repeat(audio, wanted, axis=0)
    return (audio[0] if wanted == 1 else audio), rate


class AudioFileWriter:
    """An audio file written block by block, in bounded memory; a context manager.

    The suffix chooses the format (.wav .flac .ogg .mp3) and `subtype` the encoding, by its name in soundfile; the
    default is 16-bit for .wav and .flac. The file appears, complete, when the `with` block ends without an error.

    Samples beyond [-1, 1] are kept where the encoding can hold them. A .wav of default encoding starts over as 32-bit
    float when the first one comes. Elsewhere they are clipped: a stream cannot be scaled in hindsight, and refusing
    would lose it. Either way one UserWarning at the end names the peak.

    Raises InputError when the format cannot hold such audio or writing fails, OutputExistsError as `check_output`.
    """

    def __init__(
        self, path: PathLike, sample_rate: int, channels: int = 1, *, subtype: str | None = None, overwrite: bool = True
    ):
        self.path = check_output(path, overwrite)
        suffix = self.path.suffix.lower()
        if suffix not in _FORMATS:
            raise InputError(f"expected a file name ending in {', '.join(_FORMATS)}, got {self.path.name}")
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"cannot write {self.path}: it is a device or a pipe; write a file")
        self._format = _FORMATS[suffix]
        self.sample_rate, self.channels = _check_rate(sample_rate), _check_count("channels", channels, 1, _MAX_CHANNELS)
        if self.channels > self._format.max_channels or self.sample_rate > self._format.max_rate:
            raise InputError(
                f"{self._format.name} holds up to {self._format.max_channels} channels at {self._format.max_rate} Hz, "
                f"got {self.channels} at {self.sample_rate} Hz; resample, or write a .wav"
            )
        self.subtype = self._format.subtypes[0] if subtype is None else subtype
        if self.subtype not in self._format.subtypes:
            raise InputError(f"expected subtype {' or '.join(self._format.subtypes)} for {suffix}, got {subtype!r}")
        self._may_widen, self._widened = self._format.name == "WAV" and subtype is None, False
        self.num_samples, self.peak, self._clipped = 0, 0.0, 0

    @property
    def clips(self) -> bool:
        """Whether samples beyond [-1, 1] would be lost."""
        return not self._may_widen and self.subtype in _INTEGER_BITS

    def __enter__(self) -> AudioFileWriter:
        with ExitStack() as stack:
            self._temporary = stack.enter_context(atomic_path(self.path))
            self._file = self._open()
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._stack.__exit__(*exc_info)

    def write(self, audio: Any) -> None:
        """Append audio of shape (channels, n), for one channel also (n,)."""
        block = _as_block(audio, self.channels)
        magnitude = np.abs(block)
        self.peak = max(self.peak, float(magnitude.max(initial=0.0)))
        if self.peak > 1 and self._may_widen:
            self._widen()
        if self.clips:
            self._clipped += int(np.count_nonzero(magnitude > 1))
        for start in range(0, block.shape[1], _BLOCK):
            self._append(block[:, start : start + _BLOCK].T)

    def _append(self, samples: np.ndarray) -> None:  # (S, C)
        bits = _INTEGER_BITS.get(self.subtype)
        if self._format.name == "WAV" and self.num_samples * self.channels * (bits or 32) > 8 * _WAV_LIMIT:
            raise InputError(f"cannot write {self.path}: a WAV file ends at 4 GiB; write a .flac, or several files")
        if bits:  # libsndfile would round down, which doubles the noise
            scale = 2.0 ** (bits - 1)
            whole = np.rint(samples.astype(np.float64) * scale).clip(-scale, scale - 1)
            samples = whole.astype(np.int32) << (32 - bits)
        try:
            self._file.write(samples)
        except (soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that all was written
            raise self._cannot_write(error) from error
        self.num_samples += len(samples)

    def _open(self) -> soundfile.SoundFile:
        try:
            return soundfile.SoundFile(
                self._temporary, "w", self.sample_rate, self.channels, self.subtype, format=self._format.name
            )
        except (soundfile.LibsndfileError, ValueError) as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: Exception) -> InputError:
        return InputError(
            f"cannot write {self.path} ({self.subtype}, {self.channels} channels, {self.sample_rate} Hz): "
            f"{_reason(error)}; check the rate, the space left and the permissions"
        )

    def _widen(self) -> None:
        """Start over as 32-bit float, with what was written so far."""
        self._may_widen, self._widened, self.subtype, self.num_samples = False, True, "FLOAT", 0
        self._file.close()
        narrow = self._temporary.with_suffix(".narrow")
        try:
            os.replace(self._temporary, narrow)
            self._file = self._open()
            with soundfile.SoundFile(narrow) as written:
                while len(samples := written.read(_BLOCK, dtype="float32", always_2d=True)):
                    self._append(samples)
        finally:
            narrow.unlink(missing_ok=True)

    def _finish(self, exc_type: type[BaseException] | None, *exc_info: Any) -> None:
        try:
            self._file.close()
            # closing reports no full disk; the header shows it, which an MP3 does not have
            complete = self._format.name == "MP3" or soundfile.info(self._temporary).frames == self.num_samples
        except soundfile.LibsndfileError:
            complete = False
        if exc_type is not None:
            return
        if self.num_samples == 0:
            raise InputError(f"nothing was written to {self.path}; expected at least 1 sample")
        if not complete:
            raise self._cannot_write(OSError("the end is missing"))
        if self._clipped:
            outcome = f"{self._clipped} samples were clipped; scale the audio down, or write a .wav"
        elif self._widened:
            outcome = "written as 32-bit float WAV; scale the audio down to get 16-bit"
        else:
            return
        warnings.warn(f"{self.path}: the peak {self.peak:.4g} is beyond full scale, {outcome}", stacklevel=4)


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).rstrip(" .") or type(error).__name__


def save_audio(
    audio: Any, path: PathLike, sample_rate: int, *, overwrite: bool = True, subtype: str | None = None
) -> None:
    """Write audio of shape (samples,) or (channels, samples), as `as_audio` takes it, to .wav, .flac, .ogg or .mp3.

    Samples beyond [-1, 1] are never clipped: a .wav of default encoding becomes 32-bit float with a UserWarning, an
    encoding that cannot hold them is refused. Otherwise as `AudioFileWriter`.

    Raises InputError for unusable audio or format, OutputExistsError as `check_output`.
    """
    block = np.atleast_2d(as_audio(audio))
    writer = AudioFileWriter(path, sample_rate, len(block), subtype=subtype, overwrite=overwrite)
    peak = float(np.abs(block).max())
    if peak > 1 and writer.clips:
        raise InputError(
            f"the peak {peak:.4g} is beyond full scale, which {writer.subtype} in {writer.path.name} cannot hold; "
            "scale the audio down, or write a .wav"
        )
    with writer:
        writer.write(block)


# ---- sample rates


def resampled_length(num_samples: int, from_rate: int, to_rate: int) -> int:
    """Samples after resampling: ceil(num_samples * to_rate / from_rate).

    Rounding up keeps every signal (1 sample stays at least 1), and there and back is never shorter than the original,
    so that cutting gives its exact length.
    """
    return -(-num_samples * to_rate // from_rate)


class Resampler:
    """A stateful resampler (soxr, VHQ) from one rate to another, in Hz; equal rates pass through.

    The output starts with the input, without delay, and is `resampled_length` long in total for every chunking. The
    filter looks ahead, so pushes give late what `flush` completes.
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int = 1):
        self.from_rate, self.to_rate = _check_rate(from_rate, "from_rate"), _check_rate(to_rate, "to_rate")
        self.channels = _check_count("channels", channels, 1, _MAX_CHANNELS)
        self._stream = soxr.ResampleStream(self.from_rate, self.to_rate, self.channels, dtype="float32", quality="VHQ")
        self._taken, self._given, self._flushed = 0, 0, False

    def push(self, audio: Any) -> np.ndarray:
        """Take (channels, n) and return what is ready, (channels, m) with m >= 0."""
        if self._flushed:
            raise InputError("this Resampler is flushed; make a new one for the next signal")
        block = _as_block(audio, self.channels)
        self._taken += block.shape[1]
        return block if self.from_rate == self.to_rate else self._resample(block)

    def flush(self) -> np.ndarray:
        """End the signal and return its last (channels, m) samples."""
        if self._flushed or self.from_rate == self.to_rate:
            self._flushed = True
            return np.zeros((self.channels, 0), np.float32)
        missing = resampled_length(self._taken, self.from_rate, self.to_rate) - self._given
        # soxr rounds the length to the nearest: one output sample's worth of silence makes it round up
        silence = np.zeros((self.channels, -(-self.from_rate // self.to_rate)), np.float32)
        self._flushed = True
        return self._resample(silence, last=True)[:, :missing]

    def _resample(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        out = self._stream.resample_chunk(np.ascontiguousarray(block.T), last=last)
        self._given += len(out)
        return np.ascontiguousarray(out.T)


def resample(audio: Any, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample (samples,) or (channels, samples) from one rate to another, in Hz, as `Resampler` does.

    Raises InputError for audio that `as_audio` refuses and for rates outside 4 kHz to 1 MHz.
    """
    audio = as_audio(audio)
    block = np.atleast_2d(audio)
    resampler = Resampler(from_rate, to_rate, len(block))
    out = np.concatenate([resampler.push(block), resampler.flush()], axis=1)
    return out.reshape(*audio.shape[:-1], -1)


# ---- loudness

_LOUDNESS_WEIGHTS = {n: [1.0, 1.0, 1.0, 1.41, 1.41][:n] for n in range(1, 6)} | {6: [1.0, 1.0, 1.0, 0.0, 1.41, 1.41]}
_GATE = 0.4  # seconds of one gating block; a new one starts every quarter of it


class LoudnessMeter:
    """Integrated loudness (ITU-R BS.1770-4) of a stream with 1 to 6 channels, in bounded memory.

    Channels are left, right, centre, surround left and right; with six, the fourth is the low-frequency channel, which
    does not count. Signals under 0.5 s are measured as if silence filled them up to it, as in Descript's audiotools.
    """

    def __init__(self, sample_rate: int, channels: int = 1):
        import pyloudnorm

        self.sample_rate = _check_rate(sample_rate)
        self.channels = _check_count("channels", channels, 1, 6)
        self._weights = np.array(_LOUDNESS_WEIGHTS[self.channels])
        # at its default, a Meter holds the two stages of K-weighting
        self._filters = [(stage.b, stage.a) for stage in pyloudnorm.Meter(self.sample_rate)._filters.values()]
        self._states = [np.zeros((self.channels, 2)) for _ in self._filters]
        self._seen = 0
        self._powers: list[float] = []  # of the gating blocks so far
        self._open, self._open_start = np.zeros(0), 0  # weighted squares since the first unfinished gating block

    def push(self, audio: Any) -> None:
        """Take the next block, (channels, n) or for one channel (n,)."""
        from scipy.signal import lfilter

        x = _as_block(audio, self.channels).astype(np.float64)
        if x.size == 0:
            return
        for i, (b, a) in enumerate(self._filters):
            x, self._states[i] = lfilter(b, a, x, axis=-1, zi=self._states[i])
        self._open = np.concatenate([self._open, self._weights @ np.square(x)])
        self._seen += x.shape[1]
        while self._bounds(len(self._powers))[1] <= self._seen:
            self._powers.append(self._power(len(self._powers)))
        start = self._bounds(len(self._powers))[0]
        self._open, self._open_start = self._open[start - self._open_start :], start

    def _bounds(self, block: int) -> tuple[int, int]:
        # rounded as pyloudnorm rounds, else a block may begin one sample elsewhere
        return int(_GATE * (block * 0.25) * self.sample_rate), int(_GATE * (block * 0.25 + 1) * self.sample_rate)

    def _power(self, block: int) -> float:
        start, stop = (bound - self._open_start for bound in self._bounds(block))
        return float(self._open[start:stop].sum()) / (_GATE * self.sample_rate)

    def loudness(self) -> float:
        """Loudness in LUFS of what was pushed so far; -inf when no gating block reaches -70 LUFS."""
        missing = int(0.5 * self.sample_rate) - self._seen
        if missing > 0:
            padded = copy.deepcopy(self)
            padded.push(np.zeros((self.channels, missing), np.float32))
            return padded.loudness()
        # the last gating block counts from half of its quarter on, as in pyloudnorm
        count = round((self._seen / self.sample_rate - _GATE) / (_GATE * 0.25)) + 1
        powers = self._powers[:count] + [self._power(block) for block in range(len(self._powers), count)]
        return _gated_loudness(np.array(powers))


def _gated_loudness(powers: np.ndarray) -> float:
    def level(power: Any) -> Any:
        with np.errstate(divide="ignore"):
            return -0.691 + 10 * np.log10(power)

    powers = powers[level(powers) >= -70]
    if powers.size:
        powers = powers[level(powers) > max(-70.0, level(powers.mean()) - 10)]
    return float(level(powers.mean())) if powers.size else -math.inf


def integrated_loudness(audio: Any, sample_rate: int) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4) of an array or of an iterator of (channels, n) blocks.

    See `LoudnessMeter`. Raises InputError for audio that `as_audio` refuses, more than 6 channels, and no blocks.
    """
    blocks = audio if isinstance(audio, Iterator) else _split(np.atleast_2d(as_audio(audio)))
    meter = None
    for block in blocks:
        meter = meter or LoudnessMeter(sample_rate, len(np.atleast_2d(block)))
        meter.push(block)
    if meter is None:
        raise InputError("expected audio with at least 1 sample, got no blocks")
    return meter.loudness()


def _split(audio: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, audio.shape[1], _BLOCK):
        yield audio[:, start : start + _BLOCK]


# ---- mel spectrograms


def mel_filterbank(
    sample_rate: int, n_fft: int, n_mels: int, fmin: float = 0.0, fmax: float | None = None
) -> np.ndarray:
    """Triangular filters on the Slaney mel scale with Slaney's area norm: float32 (n_mels, n_fft // 2 + 1).

    `fmin` and `fmax` are in Hz, `fmax` is half the sample rate by default. With more bands than FFT bins to fill them,
    the lowest filters are zero. Equal to librosa's default filters; computed by transformers.

    Raises InputError for counts below 1, an odd `n_fft` and frequencies out of order.
    """
    from transformers.audio_utils import mel_filter_bank

    sample_rate, n_mels = _check_rate(sample_rate), _check_count("n_mels", n_mels, 1, 1 << 16)
    n_fft = _check_count("n_fft", n_fft, 2, 1 << 24)
    fmax = sample_rate / 2 if fmax is None else fmax
    if n_fft % 2:
        raise InputError(f"expected an even n_fft, got {n_fft}")
    if not 0 <= fmin < fmax <= sample_rate / 2:
        raise InputError(f"expected 0 <= fmin < fmax <= sample_rate / 2 (= {sample_rate / 2:g}), got {fmin} and {fmax}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of filters that are zero
        filters = mel_filter_bank(
            n_fft // 2 + 1, n_mels, fmin, fmax, sample_rate, norm="slaney", mel_scale="slaney"
        )  # (F, M)
    return np.ascontiguousarray(filters.T, dtype=np.float32)


def mel_spectrogram(
    audio: torch.Tensor,
    sample_rate: int,
    *,
    n_mels: int = 80,
    n_fft: int = 2048,
    hop_length: int = 512,
    win_length: int | None = None,
    power: float = 1.0,
) -> torch.Tensor:
    """Mel spectrogram of audio (..., samples), differentiable: (..., n_mels, 1 + samples // hop_length).

    Magnitudes to the `power`, weighted by `mel_filterbank`; no logarithm. Frames are centred, under a periodic Hann
    window, on multiples of `hop_length`; the signal is mirrored beyond its ends, over and over where it is short.
    Half precision is computed in float32.

    Raises InputError for tensors without samples or not of floats, and for settings that do not fit together.
    """
    import torch

    if not isinstance(audio, torch.Tensor) or not audio.is_floating_point():
        got = audio.dtype if isinstance(audio, torch.Tensor) else type(audio).__name__
        raise InputError(f"expected audio as a torch tensor of floats, got {got}")
    if audio.ndim == 0 or audio.numel() == 0:
        raise InputError(f"expected audio of shape (..., samples) with at least 1 sample, got {tuple(audio.shape)}")
    n_fft, hop_length = _check_count("n_fft", n_fft, 2, 1 << 24), _check_count("hop_length", hop_length, 1, 1 << 24)
    win_length = _check_count("win_length", n_fft if win_length is None else win_length, 1, n_fft)
    dtype = torch.promote_types(audio.dtype, torch.float32)
    filters = _mel_filters(sample_rate, n_fft, n_mels, audio.device, dtype)
    x = _mirror(audio.reshape(-1, audio.shape[-1]).to(dtype), n_fft // 2)
    window = torch.hann_window(win_length, dtype=dtype, device=audio.device)
    with torch.autocast(audio.device.type, enabled=False):  # the product would be in bfloat16
        spectrum = torch.stft(x, n_fft, hop_length, win_length, window, center=False, return_complex=True).abs()
        mel = filters @ spectrum.pow(power)  # (M, F) @ (B, F, T)
    return mel.reshape(*audio.shape[:-1], *mel.shape[1:])


@functools.lru_cache(maxsize=32)
def _mel_filters(sample_rate: int, n_fft: int, n_mels: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    import torch

    with torch.inference_mode(False):  # a tensor made in inference mode could never again meet autograd
        return torch.from_numpy(mel_filterbank(sample_rate, n_fft, n_mels)).to(device, dtype)


def _mirror(x: torch.Tensor, pad: int) -> torch.Tensor:  # (B, S) -> (B, pad + S + pad)
    import torch

    length = x.shape[-1]
    if length > pad:
        return torch.nn.functional.pad(x, (pad, pad), mode="reflect")
    period = max(2 * (length - 1), 1)
    index = torch.arange(-pad, length + pad, device=x.device) % period
    return x[:, torch.minimum(index, period - index)]
