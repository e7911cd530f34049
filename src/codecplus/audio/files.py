"""Audio files, read and written in blocks of bounded memory. The only reader of audio files in the
package.

Letters: C channels, S samples. Arrays are float32, full scale is ±1.
"""

import errno
import io
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np
import soundfile

from codecplus.audio.arrays import (
    BLOCK_SAMPLES,
    MAX_CHANNELS,
    MAX_RATE,
    MIN_RATE,
    as_audio,
    as_block,
    check_count,
    check_finite,
    check_rate,
)
from codecplus.audio.containers import ContainerFile
from codecplus.audio.flac import repair_length
from codecplus.audio.formats import HEADER_BYTES, container_of, fallback_container_of
from codecplus.audio.headers import check_size
from codecplus.audio.resampling import Resampler
from codecplus.audio.soundfiles import SoundFile, native_path, reason_of
from codecplus.errors import FileFormatError, InputError, MissingExtraError, OutputError
from codecplus.system.paths import PathLike, as_path, atomic_path, check_output


class _Format(NamedTuple):
    name: str
    subtypes: tuple[str, ...]  # the default first
    max_channels: int
    max_rate: int


_FORMATS = {
    ".wav": _Format("WAV", ("PCM_16", "PCM_24", "PCM_32", "FLOAT"), MAX_CHANNELS, MAX_RATE),
    ".flac": _Format("FLAC", ("PCM_16", "PCM_24"), 8, 655_350),
    # Above 200 kHz, libsndfile 1.2 crashes the process.
    ".ogg": _Format("OGG", ("VORBIS", "OPUS"), MAX_CHANNELS, 200_000),
    ".mp3": _Format("MP3", ("MPEG_LAYER_III",), 2, 48_000),
}
# All other encodings keep samples beyond [-1, 1].
_INTEGER_BITS = {"PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_MOST_SAMPLES = 2**40  # 290 days at 44.1 kHz
_MOST_PIPED = 1 << 32  # bytes of a pipe, which is read into memory
_WAV_LIMIT = 2**32 - 2**26  # bytes; a WAV header counts to 4 GiB, one block may overshoot


class AudioFileReader:
    """An audio file as a stream of blocks, in bounded memory; a context manager.

    Reads what libsndfile reads: WAV, FLAC, OGG (Vorbis, Opus), MP3, AIFF, CAF, W64, AU and more.
    MP4, WebM, AAC, WMA and others are read through PyAV (`pip install 'codecplus[formats]'`), see
    `codecplus.audio.containers` for what becomes of priming and padding. A pipe, of up to 4 GiB, or
    a file object is read whole into memory.

    `sample_rate` is in Hz. A file of unknown length, as programs write it to pipes, is read to its
    end.

    Raises InputError for a missing file, a folder or a device, FileFormatError for a file that is
    empty, cut short, of another format, or absurd, MissingExtraError for one that needs PyAV.
    """

    def __init__(self, path_or_file: PathLike | BinaryIO):
        self.name, file, path = _open_source(path_or_file)
        with ExitStack() as stack:
            stack.enter_context(file)
            self._decoder = _open_decoder(file, path, self.name)
            stack.callback(self._decoder.close)
            self.sample_rate = self._decoder.sample_rate
            self.channels = self._decoder.channels
            self._refuse_absurd_header()
            self._stack = stack.pop_all()

    @property
    def num_samples(self) -> int:
        """Samples per channel. Containers that PyAV reads are decoded once to know them."""
        return self._decoder.num_samples

    @property
    def header_seconds(self) -> float:
        """The length by the header, in seconds; 0 where it says none, and never exact enough to
        count by.
        """
        return self._decoder.expected_samples / self.sample_rate

    def _refuse_absurd_header(self) -> None:
        samples = self._decoder.expected_samples
        if not 1 <= self.channels <= MAX_CHANNELS:
            self._refuse(f"{self.channels} channels", f"1 to {MAX_CHANNELS}")
        if not MIN_RATE <= self.sample_rate <= MAX_RATE:
            self._refuse(f"{self.sample_rate} Hz", f"{MIN_RATE} to {MAX_RATE}")
        if samples < self._decoder.least_samples:
            self._refuse(f"{samples} samples", "1 at least")
        if samples > _MOST_SAMPLES:
            self._refuse(f"{samples} samples", "what a recording can have")

    def _refuse(self, what: str, expected: str) -> NoReturn:
        raise FileFormatError(
            f"{self.name} has {what} by its header, expected {expected}; "
            "it is empty, or its header is damaged or unfinished"
        )

    def __enter__(self) -> "AudioFileReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def blocks(self, block_samples: int = BLOCK_SAMPLES) -> Iterator[np.ndarray]:
        """Yield the file from its start as float32 (channels, n); n is `block_samples` but for the
        last block.

        Raises FileFormatError when the data is damaged, ends before the header says, or holds NaN
        or infinities.
        """
        block_samples = check_count("block_samples", block_samples, 1, 2**40)
        done = 0
        decoded = self._decoder.decoded(block_samples)
        while True:
            try:
                block = next(decoded, None)
                if block is None:
                    break
                check_finite(block.T)
            except (soundfile.LibsndfileError, InputError) as error:
                raise FileFormatError(
                    f"{self.name} is damaged after sample {done}: {error}"
                ) from error
            done += block.shape[1]
            yield block
        if done < self._decoder.enough_samples:
            raise FileFormatError(
                f"{self.name} is truncated: its header says {self._decoder.expected_samples} "
                f"samples, {done} are there"
            )


def _open_source(path_or_file: Any) -> tuple[str, BinaryIO, Path | None]:
    """Return a name for messages, an open file that can seek, and its path if it has one."""
    if hasattr(path_or_file, "read"):
        name = str(getattr(path_or_file, "name", type(path_or_file).__name__))
        data = path_or_file.read()
        if isinstance(data, str):
            raise InputError(
                f"expected a file opened in binary mode, got {name} opened as text; "
                "open it with 'rb'"
            )
    else:
        path = as_path(path_or_file)
        name = str(path)
        if os.path.isdir(path):
            raise InputError(f"expected an audio file, got the folder {name}")
        if not os.path.exists(path):
            raise InputError(f"there is no file {name}")
        if os.path.isfile(path) and os.path.getsize(path) > 0:
            return name, open(path, "rb"), path
        data = b""
        if not os.path.isfile(path):
            data = _read_pipe(path)
    if not data:
        raise FileFormatError(f"{name} is empty (0 bytes); expected an audio file")
    return name, io.BytesIO(data), None


def _read_pipe(path: Path) -> bytes:
    """Return all that a pipe brings. Raises InputError for a device, and for a pipe without end."""
    mode = os.stat(path).st_mode
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise InputError(f"expected an audio file or a pipe, got the device {path}")
    data = bytearray()
    with open(path, "rb") as pipe:
        while piece := pipe.read(BLOCK_SAMPLES):
            data += piece
            if len(data) > _MOST_PIPED:
                raise InputError(
                    f"expected at most {_MOST_PIPED} bytes from the pipe {path}, got more; "
                    "write them to a file, and give that"
                )
    return bytes(data)


def _open_decoder(file: BinaryIO, path: Path | None, name: str) -> SoundFile | ContainerFile:
    """Open a file with the library that reads it.

    Raises FileFormatError for one that is cut short, or that no library reads.
    """
    start = file.read(HEADER_BYTES)
    repair = {**check_size(file, name), **repair_length(file, name)}
    container = container_of(start)
    if container is not None:
        return ContainerFile(file, name, container)
    source = file if path is None or repair else path
    try:
        return SoundFile(source, name, repair)
    except FileFormatError as error:
        container = fallback_container_of(start)
        if container is not None and "malformed" not in str(error).lower():
            with suppress(FileFormatError, MissingExtraError):
                return ContainerFile(file, name, container)
        raise


def load_audio(
    path_or_file: PathLike | BinaryIO, sample_rate: int | None = None, channels: int | None = None
) -> tuple[np.ndarray, int]:
    """Read an audio file as float32: (samples,) for mono, else (channels, samples), and its sample
    rate in Hz.

    `sample_rate` resamples (see `resample`). `channels=1` averages the channels, a mono file can be
    copied to any number, other changes are refused.

    Raises InputError for a missing file or impossible channels, FileFormatError for a file that is
    not good audio.
    """
    with AudioFileReader(path_or_file) as reader:
        rate = reader.sample_rate
        if sample_rate is not None:
            rate = check_rate(sample_rate)
        wanted = reader.channels
        if channels is not None:
            wanted = check_count("channels", channels, 1, MAX_CHANNELS)
        if wanted != reader.channels and 1 not in (wanted, reader.channels):
            raise InputError(
                f"{reader.name} has {reader.channels} channels and cannot become {wanted}; "
                f"possible are {reader.channels}, or 1 (their mean)"
            )
        resampler = Resampler(reader.sample_rate, rate, min(wanted, reader.channels))
        pieces = []
        for block in reader.blocks():
            if wanted < reader.channels:
                block = block.mean(axis=0, keepdims=True)
            pieces.append(resampler.push_block(block))
        pieces.append(resampler.flush())
    audio = np.concatenate(pieces, axis=1)
    if wanted == 1:
        return audio[0], rate
    if len(audio) < wanted:
        audio = np.repeat(audio, wanted, axis=0)
    return audio, rate


class AudioFileWriter:
    """An audio file written block by block, in bounded memory; a context manager.

    The suffix chooses the format (.wav .flac .ogg .mp3) and `subtype` the encoding, by its name in
    soundfile; the default is 16-bit for .wav and .flac. The file appears, complete, when the `with`
    block ends without an error.

    Samples beyond [-1, 1] are kept where the encoding can hold them. A .wav of default encoding
    starts over as 32-bit float when the first one comes. Elsewhere they are clipped: a stream
    cannot be scaled in hindsight, and refusing would lose it. Either way one UserWarning at the end
    names the peak.

    Raises InputError when the format cannot hold such audio, OutputError when writing fails,
    OutputExistsError as `check_output`.
    """

    def __init__(
        self,
        path: PathLike,
        sample_rate: int,
        channels: int = 1,
        *,
        subtype: str | None = None,
        overwrite: bool = True,
    ):
        self.path = check_output(path, overwrite)
        suffix = self.path.suffix.lower()
        if suffix not in _FORMATS:
            raise InputError(
                f"expected a file name ending in {', '.join(_FORMATS)}, got {self.path.name}"
            )
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"cannot write {self.path}: it is a device or a pipe; write a file")
        self._format = _FORMATS[suffix]
        self.sample_rate = check_rate(sample_rate)
        self.channels = check_count("channels", channels, 1, MAX_CHANNELS)
        if self.channels > self._format.max_channels or self.sample_rate > self._format.max_rate:
            raise InputError(
                f"{self._format.name} holds up to {self._format.max_channels} channels at "
                f"{self._format.max_rate} Hz, got {self.channels} at {self.sample_rate} Hz; "
                "resample, or write a .wav"
            )
        self.subtype = self._format.subtypes[0] if subtype is None else subtype
        if self.subtype not in self._format.subtypes:
            raise InputError(
                f"expected subtype {' or '.join(self._format.subtypes)} for {suffix}, "
                f"got {subtype!r}"
            )
        self._may_widen = self._format.name == "WAV" and subtype is None
        self._widened = False
        self._clipped = 0
        self.num_samples = 0
        self.peak = 0.0

    @property
    def clips(self) -> bool:
        """Whether samples beyond [-1, 1] would be lost."""
        return not self._may_widen and self.subtype in _INTEGER_BITS

    def __enter__(self) -> "AudioFileWriter":
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
        self._write(as_block(audio, self.channels))

    def _write(self, block: np.ndarray) -> None:  # (C, S)
        magnitude = np.abs(block)
        self.peak = max(self.peak, float(magnitude.max(initial=0.0)))
        if self.peak > 1 and self._may_widen:
            self._widen()
        if self.clips:
            self._clipped += int(np.count_nonzero(magnitude > 1))
        for start in range(0, block.shape[1], BLOCK_SAMPLES):
            self._append(block[:, start : start + BLOCK_SAMPLES].T)

    def _append(self, samples: np.ndarray) -> None:  # (S, C)
        bits = _INTEGER_BITS.get(self.subtype)
        size = self.num_samples * self.channels * (bits or 32) / 8
        if self._format.name == "WAV" and size > _WAV_LIMIT:
            raise InputError(
                f"cannot write {self.path}: a WAV file ends at 4 GiB; "
                "write a .flac, or several files"
            )
        if bits:  # libsndfile would round down, which doubles the noise
            scale = 2.0 ** (bits - 1)
            whole = np.rint(samples.astype(np.float64) * scale).clip(-scale, scale - 1)
            samples = whole.astype(np.int32) << (32 - bits)
        try:
            self._file.write(samples)
        except (soundfile.LibsndfileError, AssertionError) as error:
            # soundfile asserts that all was written
            raise self._cannot_write(error) from error
        self.num_samples += len(samples)

    def _open(self) -> soundfile.SoundFile:
        try:
            return soundfile.SoundFile(
                native_path(self._temporary),
                "w",
                self.sample_rate,
                self.channels,
                self.subtype,
                format=self._format.name,
            )
        except (soundfile.LibsndfileError, ValueError) as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: Exception) -> InputError | OutputError:
        refusal = _refusal_to_write(self._temporary)
        if refusal is not None:
            return OutputError(f"cannot write {self.path}: {refusal}; make room or write elsewhere")
        return InputError(
            f"cannot write {self.path} ({self.subtype}, {self.channels} channels, "
            f"{self.sample_rate} Hz): {reason_of(error)}; check the rate and the permissions"
        )

    def _widen(self) -> None:
        """Start over as 32-bit float, with what was written so far."""
        self._may_widen = False
        self._widened = True
        self.subtype = "FLOAT"
        self.num_samples = 0
        self._file.close()
        # The file itself stays, since it holds the lock; the copy has no name that could be left.
        with tempfile.TemporaryFile(dir=self._temporary.parent) as narrow:
            with open(self._temporary, "rb") as file:
                shutil.copyfileobj(file, narrow, BLOCK_SAMPLES)
            narrow.seek(0)
            self._file = self._open()
            with soundfile.SoundFile(narrow) as written:
                while len(samples := written.read(BLOCK_SAMPLES, dtype="float32", always_2d=True)):
                    self._append(samples)

    def _finish(self, exc_type: type[BaseException] | None, *exc_info: Any) -> None:
        try:
            self._file.close()
            # closing reports no full disk; the header shows it, which an MP3 does not have
            complete = (
                self._format.name == "MP3"
                or soundfile.info(native_path(self._temporary)).frames == self.num_samples
            )
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
        warnings.warn(
            f"{self.path}: the peak {self.peak:.4g} is beyond full scale, {outcome}", stacklevel=4
        )


def _refusal_to_write(path: Path) -> str | None:
    """Return why the system takes no more bytes of a file, such as a full disk; None if it takes
    them.

    libsndfile keeps the reason to itself. The file is spoilt by the attempt.
    """
    try:
        with open(path, "ab") as file:
            file.write(bytes(BLOCK_SAMPLES))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return "no space left on the disk"
        return str(error.strerror)
    return None


def save_audio(
    audio: Any,
    path: PathLike,
    sample_rate: int,
    *,
    overwrite: bool = True,
    subtype: str | None = None,
) -> None:
    """Write audio of shape (samples,) or (channels, samples), as `as_audio` takes it, to .wav,
    .flac, .ogg or .mp3.

    Samples beyond [-1, 1] are never clipped: a .wav of default encoding becomes 32-bit float with a
    UserWarning, an encoding that cannot hold them is refused. Otherwise as `AudioFileWriter`.

    Raises InputError for unusable audio or format, OutputExistsError as `check_output`.
    """
    block = np.atleast_2d(as_audio(audio))
    writer = AudioFileWriter(path, sample_rate, len(block), subtype=subtype, overwrite=overwrite)
    peak = float(np.abs(block).max())
    if peak > 1 and writer.clips:
        raise InputError(
            f"the peak {peak:.4g} is beyond full scale, which {writer.subtype} in "
            f"{writer.path.name} cannot hold; scale the audio down, or write a .wav"
        )
    with writer:
        writer._write(block)
