"""Audio datasets to code datasets, and helpers for models that read codes."""
