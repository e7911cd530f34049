"""From the options of a verb to a codec. It knows options, and no use of a codec.

Light to import: torch and transformers are imported when a codec is loaded.
"""

import argparse
import logging
import os
import sys
from typing import Any

from codecplus.errors import InputError


def open_codec(name: str, args: argparse.Namespace) -> Any:
    """Load the codec of a name as `--revision`, `--device`, `--dtype` and `--compile` ask for it.

    Raises CheckpointError if there is no such checkpoint, InputError for an impossible option.
    """
    from codecplus.codec import load_codec
    from codecplus.inference.onnx_model import find_export

    device = args.device
    if find_export(name) is None:  # an export needs neither torch nor transformers
        from codecplus.checkpoints.identity import embedded_names
        from codecplus.system.devices import resolve_device

        if name not in embedded_names() and name != "dac":  # these do without transformers
            quiet_transformers()
        device = resolve_device(device)
    codec = load_codec(name, device=device, dtype=args.dtype, revision=args.revision)
    if getattr(args, "compile", False):
        codec = codec.compile()
    return codec


def open_embedded(fingerprint: bytes, args: argparse.Namespace) -> Any:
    """Load the embedded codec of a fingerprint, or of its first bytes."""
    return open_codec(embedded_name(fingerprint), args)


def embedded_name(fingerprint: bytes) -> str:
    """Return the name of the embedded model with this fingerprint; raise InputError without one."""
    from codecplus.checkpoints.identity import WEIGHTS_DISTRIBUTION, embedded_names, find_embedded

    name = find_embedded(fingerprint)
    if name is not None:
        return name
    made_by = f"(fingerprint {fingerprint.hex()})"
    if embedded_names():
        raise InputError(f"no embedded model made it {made_by}; name the one that did with --model")
    raise InputError(
        f"the embedded models are not installed, one of which may have made it {made_by}; "
        f"run `pip install {WEIGHTS_DISTRIBUTION}`, or name the model with --model"
    )


def quiet_datasets(quiet: bool) -> None:
    """Keep what datasets says of files that it cannot read off stderr: our error says it. Keep its
    progress bars off, too, if stderr is no terminal, or if nothing is to be shown.
    """
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    if not quiet and sys.stderr.isatty():
        return
    disabled = os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if disabled == "1" and "datasets" in sys.modules:  # the variable is read when it is imported
        sys.modules["datasets"].disable_progress_bars()


def quiet_transformers() -> None:
    """Keep the progress bars and warnings of transformers off stderr."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
