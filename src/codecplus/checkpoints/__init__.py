"""Reading and writing checkpoints and files of other implementations, and the embedded weights."""

from .dac_file import DacFile, read_dac_file
from .loading import embedded_names, fingerprint, load_model
from .official import read_official, write_official

__all__ = ["DacFile", "embedded_names", "fingerprint", "load_model", "read_dac_file", "read_official", "write_official"]
