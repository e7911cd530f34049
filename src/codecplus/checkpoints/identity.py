"""The embedded checkpoints, and fingerprints that tell models apart. It does not import torch."""

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from codecplus.modeling_dac import DacNetwork

# Patterns of the files that hold a checkpoint's weights, and its entropy models.
WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")
ENTROPY_FILES = "entropy*.safetensors"

# The distribution that holds the weights, and its package of data.
WEIGHTS_DISTRIBUTION = "codecplus-weights"
_WEIGHTS_PACKAGE = "codecplus_weights"


def _find_embedded_folder() -> Path:
    """Return the folder of the embedded checkpoints; it does not exist if none are installed.

    They lie in this package where it was copied with them (a Space, a wheel that was built from a
    checkout), beside it in a checkout, else in the distribution codecplus-weights.
    """
    inside = Path(__file__).parent / "embedded"
    checkout = Path(__file__).parents[3] / "weights" / _WEIGHTS_PACKAGE
    for folder in (inside, checkout):
        if folder.is_dir():
            return folder
    found = importlib.util.find_spec(_WEIGHTS_PACKAGE)
    if found is not None and found.submodule_search_locations:
        return Path(next(iter(found.submodule_search_locations)))
    return inside


EMBEDDED_FOLDER = _find_embedded_folder()


def embedded_names() -> list[str]:
    """Names of the embedded checkpoints; none where their weights are not installed."""
    return sorted(path.parent.name for path in EMBEDDED_FOLDER.glob("*/config.json"))


def fingerprint(model: "DacNetwork") -> bytes:
    """16 bytes that tell models apart, see `fingerprint_of`: the same in fp32 and bf16."""
    config = model.config
    tensors = (
        (name, tensor.float().cpu().numpy()) for name, tensor in model.folded_state_dict().items()
    )
    return fingerprint_of(
        config.model_type,
        config.sampling_rate,
        config.downsampling_ratios,
        tensors,
        config.gain_size,
        config.gain_linear_hz,
    )


def fingerprint_of(
    model_type: str,
    sampling_rate: int,
    ratios: Iterable[int],
    tensors: Iterable[tuple[str, np.ndarray]],
    gain_size: int = 0,
    gain_linear_hz: float | None = None,
) -> bytes:
    """Return 16 bytes that tell models apart: equal for equal weights in fp32 and bf16, and others
    after any training.

    They are a SHA-256 over the geometry and up to 1024 evenly spaced elements of every tensor,
    rounded to bf16. `gain_linear_hz` is the one size that no shape of a tensor shows.
    """
    digest = hashlib.sha256()
    digest.update(repr((model_type, sampling_rate, list(ratios))).encode())
    if gain_size and gain_linear_hz is not None:
        digest.update(repr(float(gain_linear_hz)).encode())
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        sample = tensor.reshape(-1)[:: -(-tensor.size // 1024)]
        digest.update(name.encode() + repr(tensor.shape).encode() + _to_bf16(sample).tobytes())
    return digest.digest()[:16]


def _to_bf16(x: np.ndarray) -> np.ndarray:
    """Return the upper half of float32, rounded to the nearest, ties to even: uint16."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)


@cache
def embedded_fingerprints() -> dict[bytes, str]:
    """Return the name of every embedded checkpoint by its fingerprint."""
    from safetensors import safe_open

    names = {}
    for name in embedded_names():
        fields = json.loads((EMBEDDED_FOLDER / name / "config.json").read_text(encoding="utf-8"))
        with safe_open(EMBEDDED_FOLDER / name / "model.safetensors", framework="numpy") as file:
            tensors = ((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118
            fingerprint = fingerprint_of(
                fields["model_type"],
                fields["sampling_rate"],
                fields["downsampling_ratios"],
                tensors,
                fields.get("gain_size", 0),
                fields.get("gain_linear_hz"),
            )
        names[fingerprint] = name
    return names


def find_embedded(fingerprint: bytes) -> str | None:
    """Return the name of the embedded checkpoint whose fingerprint starts so, if there is one."""
    for known, name in embedded_fingerprints().items():
        if known.startswith(fingerprint):
            return name
    return None
