"""Kernels and faster layers under a model, for inference and for training."""
