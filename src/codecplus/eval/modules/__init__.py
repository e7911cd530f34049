"""The metrics as modules of the `evaluate` library, which loads them from their folder without a
network.
"""

from pathlib import Path

AUDIO_CODEC = str(Path(__file__).parent / "audio_codec")
"""Folder for `evaluate.load(AUDIO_CODEC, "pesq_wb")`.

Without a second argument it computes all default metrics.
"""
