"""Audio that was decoded elsewhere, as a codec. It knows files and names, no bytes and no rate.

It is the way to every codec that cannot be run here. What such a codec costs nobody can measure, so
its rate is declared, and marked as such.
"""

import hashlib
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from codecplus.audio.files import load_audio
from codecplus.errors import InputError
from codecplus.eval.audio import fit, resample
from codecplus.eval.codecs.base import Original, Payload, row_name
from codecplus.recordings import AUDIO_SUFFIXES

_TOLERANCE = 0.1  # seconds by which a file may differ from its recording's length


class DecodedFolder:
    """A folder of decoded recordings.

    Args:
        name: of the codec in the results.
        folder: holds a file for each recording, of the same path or stem, whatever its suffix.
        kbps: the rate that the codec is said to have, in kbit/s per channel.

    Raises:
        InputError: for a folder without audio, or a rate that is not above 0.
    """

    def __init__(self, name: str, folder: str | Path, kbps: float | None = None) -> None:
        if kbps is not None and not kbps > 0:
            raise InputError(f"expected a rate above 0 kbit/s for {name!r}, got {kbps:g}")
        self.name = row_name(name, kbps)
        self.kbps = kbps
        self.nominal_kbps = kbps
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"there is no folder {self.folder} for the codec {name!r}")
        if not self._files:
            raise InputError(f"there is no audio file in {self.folder} for the codec {name!r}")

    @classmethod
    def parse(cls, text: str) -> "DecodedFolder":
        """Read `NAME=FOLDER` or `NAME=FOLDER,kbps=6`.

        Raises:
            InputError: for another text.
        """
        name, equals, folder = text.partition("=")
        folder, comma, rate = folder.rpartition(",kbps=")
        if not comma:
            folder, rate = rate, ""
        try:
            kbps = float(rate) if comma else None
        except ValueError:
            kbps = float("nan")
        if not (name and equals and folder) or kbps != kbps:
            raise InputError(f"expected NAME=FOLDER or NAME=FOLDER,kbps=6, got {text!r}")
        return cls(name, folder, kbps)

    def config(self) -> dict[str, Any]:
        """A hash of the files' names, sizes and times, and the declared rate."""
        digest = hashlib.sha256()
        for path in self._files:
            stat = path.stat()
            name = path.relative_to(self.folder).as_posix()
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="replace"))
        return {"decoded": digest.hexdigest()[:16], "kbps": self.kbps, "version": 1}

    def encode(self, audio: np.ndarray, sample_rate: int) -> Payload:
        """Refuse: it is no encoder."""
        raise InputError(f"{self.name} is a folder of decoded files; it cannot encode")

    def decode(self, data: bytes, original: Original) -> np.ndarray:
        """Refuse: it is no decoder."""
        raise InputError(f"{self.name} is a folder of decoded files; it cannot decode")

    def read(
        self, source: str, start: float, reference: np.ndarray, sample_rate: int
    ) -> np.ndarray:
        """Return the decoded clip, of the shape of the reference (C, S) at its rate.

        Args:
            source: the name of the recording.
            start: where the clip begins in it, in seconds.
            reference: the clip as it was.
            sample_rate: of the reference, in Hz.

        Raises:
            InputError: if no file fits, or it has other channels or another length.
        """
        path = self._file_of(source)
        audio, rate = load_audio(path)
        audio = resample(np.atleast_2d(audio), rate, sample_rate)
        if len(audio) != len(reference):
            raise InputError(
                f"{path.name} has {len(audio)} channels where the recording has {len(reference)}"
            )
        first = round(start * sample_rate)
        rest = audio.shape[-1] - first
        missing = reference.shape[-1] - rest
        if missing > _TOLERANCE * sample_rate:
            raise InputError(
                f"{path.name} lasts {audio.shape[-1] / sample_rate:.2f} s, "
                f"{missing / sample_rate:.2f} s less than the recording"
            )
        return fit(audio[:, first:], reference.shape[-1]).astype(np.float32)

    @cached_property
    def _files(self) -> list[Path]:
        paths = (path for path in self.folder.rglob("*") if not path.name.startswith("."))
        return sorted(path for path in paths if path.suffix.lower() in AUDIO_SUFFIXES)

    @cached_property
    def _by_path(self) -> dict[str, list[Path]]:
        """Files by their path without its suffix, and by their stem alone."""
        names: dict[str, list[Path]] = {}
        for path in self._files:
            inner = path.relative_to(self.folder).with_suffix("").as_posix()
            for name in {inner, path.stem}:
                names.setdefault(name, []).append(path)
        return names

    def _file_of(self, source: str) -> Path:
        # A row of a table is named by its number and its file.
        candidates = [source, source.partition(" ")[2]]
        for candidate in filter(None, candidates):
            inner = PurePosixPath(candidate.replace("\\", "/"))
            for name in (inner.with_suffix("").as_posix(), inner.stem, str(inner), inner.name):
                paths = self._by_path.get(name, [])
                if len(paths) == 1:
                    return paths[0]
                if paths:
                    raise InputError(f"{self.folder} has {len(paths)} files for {source}")
        raise InputError(f"there is no file for {source} in {self.folder}")
