"""Audio that libsndfile cannot read, such as MP4, WebM and AAC, through PyAV where it is installed.

Samples that a container marks as priming or padding are left out: MP4 and Opus give exactly the
samples that were encoded. Streams without such marks (ADTS, AC-3) keep the encoder's priming and
padding, and AAC in Matroska keeps the padding of its last frame.

Letters: C channels, S samples.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np

from codecplus.errors import FileFormatError, MissingExtraError

# Decoders of recordings. FFmpeg has hundreds, some of which nobody has looked at for years.
_DECODERS = """
aac aac_latm alac mp1 mp1float mp2 mp2float mp3 mp3float opus libopus vorbis libvorbis flac
wmav1 wmav2 wmapro wmalossless ac3 eac3 amrnb amrwb libopencore_amrnb libopencore_amrwb ape
wavpack tta speex libspeex gsm gsm_ms mpc7 mpc8 dca truehd
"""
_DECODER_FAMILIES = ("pcm_", "adpcm_", "dsd_")
_SCALES = {"uint8": (128, 2.0**7), "int16": (0, 2.0**15), "int32": (0, 2.0**31)}


class ContainerFile:
    """The first audio track of a container, decoded in blocks of bounded memory.

    `sample_rate` is in Hz; `expected_samples` is the length per channel by the header, 0 if it
    states none.

    Args:
        file: open for reading, and left open.
        name: of the file, for messages.
        container: FFmpeg's name of the container; FFmpeg must not guess.

    Raises:
        MissingExtraError: without PyAV.
        FileFormatError: for a file without audio, with an unusual decoder, or damaged.
    """

    least_samples = 0  # some say no length

    def __init__(self, file: BinaryIO, name: str, container: str):
        self._file = file
        self._name = name
        self._container = container
        with self._open() as (opened, stream):
            first = next(self._frames(opened, stream), None)
            if first is None:
                raise FileFormatError(f"{name} has an audio track without samples in it")
            self.sample_rate = first.sample_rate
            self.channels = len(first.layout.channels)
            seconds = self._header_seconds(opened, stream)
        self.expected_samples = round(seconds * self.sample_rate)
        self.enough_samples = 1.0  # see `codecplus.audio.headers` for files that are cut short

    @cached_property
    def num_samples(self) -> int:
        """The samples per channel. All of the file is decoded to know: headers are not exact."""
        return sum(block.shape[1] for block in self._frames_decoded())

    def _header_seconds(self, opened: Any, stream: Any) -> float:
        if stream.duration is not None:
            return float(stream.duration * stream.time_base)
        return (opened.duration or 0) / 1e6

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        """Open the container, and its first track of audio."""
        try:
            import av
            from av.error import FFmpegError
        except ImportError as error:
            raise MissingExtraError(
                f"{self._name} is a {self._container} file, which PyAV reads: "
                "pip install 'codecplus[formats]', or convert it to WAV"
            ) from error
        try:
            self._file.seek(0)
            with av.open(self._file, format=self._container) as opened:
                if not opened.streams.audio:
                    raise FileFormatError(f"{self._name} has no audio in it")
                stream = opened.streams.audio[0]
                decoder = getattr(stream.codec_context, "name", "an unknown kind")
                if decoder not in _DECODERS.split() and not decoder.startswith(_DECODER_FAMILIES):
                    raise FileFormatError(
                        f"{self._name} holds audio of {decoder}, which is not read; "
                        "convert it to WAV"
                    )
                yield opened, stream
        except (FFmpegError, ValueError, UnicodeDecodeError, EOFError) as error:
            if isinstance(error, FileFormatError):
                raise
            reason = str(getattr(error, "strerror", None) or error)
            raise FileFormatError(
                f"{self._name} is not readable as {self._container} ({reason}); it is damaged, "
                "or the recording was interrupted"
            ) from error

    def _frames(self, opened: Any, stream: Any) -> Iterator[Any]:
        for frame in opened.decode(stream):
            if frame.samples:
                yield frame

    def close(self) -> None:
        """Do nothing: between two readings nothing is open."""

    def decoded(self, block_samples: int) -> Iterator[np.ndarray]:
        """Yield the track from its start as float32 (C, n), `block_samples` but for the last.

        Raises FileFormatError as `ContainerFile` does.
        """
        waiting: list[np.ndarray] = []
        count = 0
        for block in self._frames_decoded():
            waiting.append(block)
            count += block.shape[1]
            if count < block_samples:
                continue
            joined = np.concatenate(waiting, axis=1)
            whole = count - count % block_samples
            for start in range(0, whole, block_samples):
                yield joined[:, start : start + block_samples]
            waiting = [joined[:, whole:]]
            count -= whole
        if count:
            yield np.concatenate(waiting, axis=1)

    def _frames_decoded(self) -> Iterator[np.ndarray]:
        """Yield the track from its start as float32 (C, n), a frame at a time.

        Raises FileFormatError for damage, and for a rate or channels that change on the way.
        """
        with self._open() as (opened, stream):
            previous = None
            for frame in self._frames(opened, stream):
                if previous is not None:
                    yield self._block(previous)
                previous = frame
            if previous is not None:
                yield self._block(previous)[:, : self._whole_samples(previous)]

    def _whole_samples(self, frame: Any) -> int:
        """Return how much of the last frame is no padding, as an MP4 counts it."""
        if self._container != "mp4" or not frame.duration:
            return frame.samples
        return min(frame.samples, round(frame.duration * frame.time_base * self.sample_rate))

    def _block(self, frame: Any) -> np.ndarray:
        """Return the samples of a frame (C, n)."""
        channels = len(frame.layout.channels)
        if (frame.sample_rate, channels) != (self.sample_rate, self.channels):
            raise FileFormatError(
                f"{self._name} changes from {self.channels} channels at {self.sample_rate} Hz to "
                f"{channels} at {frame.sample_rate} Hz on the way; convert it to WAV"
            )
        samples = frame.to_ndarray()
        if not frame.format.is_planar:
            samples = samples.reshape(-1, channels).T
        if samples.dtype.kind == "f":
            return np.ascontiguousarray(samples, np.float32)
        zero, scale = _SCALES[samples.dtype.name]
        return (samples.astype(np.float32) - np.float32(zero)) / np.float32(scale)
