"""Exports a model as two ONNX files. `load_codec` runs them without torch."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.checkpoints import fingerprint
from codecplus.errors import InputError
from codecplus.export import PRECISIONS
from codecplus.inference.onnx_model import ExportInfo, export_paths
from codecplus.modeling_dac import DacModel
from codecplus.system.paths import atomic_path, check_output


def export_onnx(
    model: DacModel,
    output: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    stateful: bool = False,
    calibration: Iterable[np.ndarray] | None = None,
    model_fingerprint: bytes | None = None,
    overwrite: bool = True,
) -> tuple[Path, Path]:
    """Write a model as `NAME.encoder.onnx` and `NAME.decoder.onnx`.

    The graphs take any batch, length and number of codebooks.

    Args:
        model: the model, in fp32.
        output: `NAME.onnx`, or a folder, in which NAME is "model". `load_codec` takes either.
        precision: "fp32"; "fp16", half the size, for GPUs and phones; or "int8", a quarter of the
            size, with static ranges for the activations of every convolution.
        stateful: whether the graphs of a causal model have a state, for live streams. They can code
            files too.
        calibration: for int8, recordings of the kind that will be coded: float32 arrays (S,) at the
            model's rate.
        model_fingerprint: `checkpoints.fingerprint` of the model before it was cast to fewer bits;
            by default that of the model as it is.
        overwrite: whether existing files may be replaced.

    Returns:
        The two paths.

    Raises:
        InputError: for options that do not fit together.
        MissingExtraError: without onnx.
    """
    _check_options(model, precision, stateful, calibration)
    from codecplus.export.networks import decoder_graph, encoder_graph

    info = export_info(model, precision, stateful, model_fingerprint)
    dtype = "float32"
    if precision == "fp16":
        dtype = "float16"
    encoder = encoder_graph(model, info.to_metadata(), dtype, stateful)
    decoder = decoder_graph(model, info.to_metadata(), dtype, stateful)
    if calibration is not None:
        from codecplus.export.quantization import quantize

        encoder, decoder = quantize(encoder, decoder, info, calibration)
    encoder_path, decoder_path = export_paths(output)
    encoder_path.parent.mkdir(parents=True, exist_ok=True)
    check_output(encoder_path, overwrite)
    check_output(decoder_path, overwrite)
    with atomic_path(encoder_path) as first, atomic_path(decoder_path) as second:
        first.write_bytes(encoder.SerializeToString())
        second.write_bytes(decoder.SerializeToString())
    return encoder_path, decoder_path


def export_info(
    model: DacModel, precision: str, stateful: bool, model_fingerprint: bytes | None = None
) -> ExportInfo:
    """Return the metadata of a model's graphs."""
    config = model.config
    return ExportInfo(
        model_type=config.model_type,
        sampling_rate=config.sampling_rate,
        hop_length=config.hop_length,
        n_codebooks=config.n_codebooks,
        codebook_size=config.codebook_size,
        fingerprint=(model_fingerprint or fingerprint(model)).hex(),
        precision=precision,
        encoder_past=model.encoder_reach[0],
        encoder_future=model.encoder_reach[1],
        decoder_past=model.decoder_reach[0],
        decoder_future=model.decoder_reach[1],
        latency_samples=model.latency_samples,
        activations_per_frame=config.activations_per_frame,
        stateful=int(stateful),
    )


def _check_options(model: DacModel, precision: str, stateful: bool, calibration: Any) -> None:
    if precision not in PRECISIONS:
        raise InputError(f"expected precision {', '.join(PRECISIONS)}, got {precision!r}")
    if stateful and not model.config.causal:
        raise InputError(
            "a stateful graph is for causal models, this one is a "
            f"{model.config.model_type!r}; leave stateful out"
        )
    if precision == "int8" and calibration is None:
        raise InputError(
            "int8 needs recordings to calibrate on, of the kind that will be coded: "
            "--calibration DIR"
        )
    if precision != "int8" and calibration is not None:
        raise InputError(
            f"calibration is for int8, the precision here is {precision}; leave it out"
        )


__all__ = ["export_info", "export_onnx"]
