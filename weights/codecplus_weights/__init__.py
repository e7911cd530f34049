"""The weights of codecplus' embedded checkpoints, one folder each. Data only."""

__version__ = "1.0.0"
