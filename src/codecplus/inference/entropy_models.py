"""Entropy models beside the weights of a checkpoint."""

from pathlib import Path

from codecplus.bitstream import EntropyModel
from codecplus.checkpoints.identity import EMBEDDED_FOLDER, ENTROPY_FILES, find_embedded
from codecplus.checkpoints.untrusted import MAX_ENTROPY_SIZE, check_file
from codecplus.errors import FileFormatError

ENTROPY_FILE = "entropy.safetensors"


def read_entropy_models(folder: Path) -> list[EntropyModel]:
    """Read the entropy models in a checkpoint's folder.

    `entropy.safetensors` comes first, then others named `entropy*.safetensors` in their order.

    Raises FileFormatError for a damaged one, CheckpointError for a folder or pipe of that name.
    """
    paths = sorted(
        folder.glob(ENTROPY_FILES), key=lambda path: (path.name != ENTROPY_FILE, path.name)
    )
    for path in paths:
        check_file(path, MAX_ENTROPY_SIZE)
    return [_read(path) for path in paths]


def _read(path: Path) -> EntropyModel:
    try:
        return EntropyModel.from_bytes(path.read_bytes())
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error


def embedded_entropy_models(fingerprint: bytes) -> list[EntropyModel]:
    """Return the entropy models of the embedded checkpoint with this fingerprint, or none."""
    name = find_embedded(fingerprint)
    if name is None:
        return []
    return read_entropy_models(EMBEDDED_FOLDER / name)
