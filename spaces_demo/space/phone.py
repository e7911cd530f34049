"""Reads the recordings of phones and browsers, M4A, MP4 and WebM, with PyAV. It knows no limits of
the Space but what it is told.
"""

from pathlib import Path

import numpy as np

from codecplus.errors import FileFormatError, InputError

# A container is named to FFmpeg by its first bytes: it must not guess, for among its formats are
# playlists, which open other files.
_MP4 = b"ftyp"  # at byte 4; M4A and MOV, too
_MATROSKA = b"\x1a\x45\xdf\xa3"  # WebM, too
_CODECS = {"aac", "alac", "flac", "mp3", "mp3float", "opus", "vorbis", "libopus", "libvorbis"}


def container_of(path: Path) -> str | None:
    """Return FFmpeg's name of a file's container, or None for any other file."""
    with path.open("rb") as file:
        start = file.read(8)
    if start[4:] == _MP4:
        return "mp4"
    if start[:4] == _MATROSKA:
        return "matroska"
    return None


def read_recording(path: Path, max_seconds: float) -> tuple[np.ndarray, int]:
    """Read the first audio track of an MP4 or Matroska file: float32 (C, S), and its rate in Hz.

    Reading ends soon after `max_seconds`, so that the caller sees that the file is too long.

    Raises FileFormatError for a file without audio, a codec that phones do not use, or damage, and
    InputError where PyAV is missing.
    """
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise InputError(
            "Recordings of phones cannot be read here: PyAV is missing; convert them to WAV."
        ) from error
    blocks = []
    samples = 0
    try:
        with path.open("rb") as file, av.open(file, format=container_of(path)) as container:
            if not container.streams.audio:
                raise FileFormatError("The file has no audio in it.")
            stream = container.streams.audio[0]
            codec = stream.codec_context.name
            if codec not in _CODECS:
                raise FileFormatError(f"The file's audio is {codec}; expected AAC, Opus or Vorbis.")
            rate = stream.codec_context.sample_rate
            resampler = av.AudioResampler(format="fltp")
            for frame in container.decode(stream):
                for piece in resampler.resample(frame):
                    if blocks and len(piece.to_ndarray()) != len(blocks[0]):
                        raise FileFormatError("The file changes its channels on the way.")
                    blocks.append(piece.to_ndarray())
                    samples += piece.samples
                if samples > (max_seconds + 1) * rate:
                    break
    except (FFmpegError, ValueError, UnicodeDecodeError) as error:
        raise FileFormatError(f"The file is damaged: {error}") from error
    if not blocks:
        raise FileFormatError("The file has no audio in it.")
    audio = np.concatenate(blocks, axis=-1).astype(np.float32)
    if not np.isfinite(audio).all():
        raise FileFormatError("The file is damaged: it holds NaN or infinities.")
    return audio, rate
