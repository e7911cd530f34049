"""Signals: arrays, files, sample rates, loudness, mel spectrograms. Knows nothing of models or
bits.
"""
