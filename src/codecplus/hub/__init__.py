"""Checkpoints, cards and the demo on the Hugging Face Hub."""

from codecplus.hub.upload import export_folder, export_space, push, push_space

__all__ = ["export_folder", "export_space", "push", "push_space"]
