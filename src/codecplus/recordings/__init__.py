"""Recordings that a user calls data: files, folders, tables and data sets. Knows no model."""

from codecplus.recordings.files import AUDIO_SUFFIXES, FoundFiles, NamedFile, audio_files

__all__ = ["AUDIO_SUFFIXES", "FoundFiles", "NamedFile", "audio_files"]
