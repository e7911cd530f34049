"""Recordings that a user calls data: files, folders, tables and data sets. Knows no model.

>>> from codecplus.recordings import open_recordings
>>> for recording in open_recordings("folder"):  # doctest: +SKIP
...     audio = recording.read(sample_rate=16_000, channels=1)
"""

from typing import TYPE_CHECKING

from codecplus._lazy import lazy_names
from codecplus.recordings.listing import AUDIO_SUFFIXES, FoundFiles, NamedFile, audio_files

if TYPE_CHECKING:
    from codecplus.recordings.opening import Recordings, open_recordings
    from codecplus.recordings.recording import Recording

__getattr__ = lazy_names(
    __name__,
    {"Recording": "recording", "Recordings": "opening", "open_recordings": "opening"},
)
__all__ = [
    "AUDIO_SUFFIXES",
    "FoundFiles",
    "NamedFile",
    "Recording",
    "Recordings",
    "audio_files",
    "open_recordings",
]
