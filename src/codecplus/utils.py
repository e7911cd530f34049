"""Audio files to arrays and back: the two functions that most scripts need."""

from codecplus.audio.files import load_audio, save_audio

__all__ = ["load_audio", "save_audio"]
