"""Reading and writing checkpoints and files of other implementations, and the embedded weights."""

from typing import TYPE_CHECKING

from codecplus._lazy import lazy_names

if TYPE_CHECKING:
    from codecplus.checkpoints.dac_file import DacFile, read_dac_file
    from codecplus.checkpoints.embedded import load_embedded
    from codecplus.checkpoints.identity import embedded_fingerprints, embedded_names, fingerprint
    from codecplus.checkpoints.loading import load_model
    from codecplus.checkpoints.official import read_official, write_official

# Modules that need torch or transformers are imported when they are used.
__getattr__ = lazy_names(
    __name__,
    {
        "DacFile": "dac_file",
        "embedded_fingerprints": "identity",
        "embedded_names": "identity",
        "fingerprint": "identity",
        "load_embedded": "embedded",
        "load_model": "loading",
        "read_dac_file": "dac_file",
        "read_official": "official",
        "write_official": "official",
    },
)

__all__ = [
    "DacFile",
    "embedded_fingerprints",
    "embedded_names",
    "fingerprint",
    "load_embedded",
    "load_model",
    "read_dac_file",
    "read_official",
    "write_official",
]
