"""Band gains in ONNX graphs: what `DacBandGains` computes, in plain operators and fp32.

Values are images (B, C, 1, T), as in `networks`, or rows (B, T, C) where a matrix multiplies them.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from codecplus.modeling_dac.gains_dac import (
    EXCESS,
    FLOOR,
    HUGE,
    LEVEL,
    LIMIT,
    SPREAD,
    STEP,
    DacBandGains,
)

if TYPE_CHECKING:
    from codecplus.export.networks import NetworkGraph


def gains_to_channels(
    network: "NetworkGraph", gains: DacBandGains, audio: str, decoded: str
) -> str:
    """Add the latent channels (B, K, 1, T) of audio and decoded audio (B, 1, 1, S)."""
    graph = network.graph
    wanted = _powers(network, gains, audio)
    given = _powers(network, gains, decoded)
    excess = graph.op("Mul", graph.op("Sub", wanted, given), _number(network, 1 / EXCESS))
    features = graph.op("Concat", _levels(network, given), excess, axis=1)
    return network.layers(features, gains.encoder.layers(), "decoder.gains.encoder")


def channels_to_audio(network: "NetworkGraph", gains: DacBandGains, channels: str, x: str) -> str:
    """Add the filter that latent channels (B, K, 1, T) ask for, of decoded audio (B, 1, 1, S)."""
    graph = network.graph
    fixed = gains.geometry
    levels = _levels(network, _powers(network, gains, x))
    features = graph.op("Concat", channels, levels, axis=1)
    raw = network.layers(features, gains.decoder.layers(), "decoder.gains.decoder")
    bounded = graph.op("Tanh", graph.op("Mul", raw, _number(network, STEP / LIMIT)))
    now = graph.op("Mul", bounded, _number(network, LIMIT))
    both = network.behind_zeros(now, gains.bands, 1)
    before = graph.op("Slice", both, network.numbers(0), network.numbers(-1), network.numbers(3))
    rows = _overlapping(network, x, fixed.block, fixed.rows_past)
    rows = graph.op("Reshape", rows, network.numbers(0, -1, fixed.hop // fixed.block, fixed.row))
    own = graph.op("MatMul", rows, _products(network, gains, now))  # (B, T, hop / block, block)
    fading = network.numbers(fixed.fade // fixed.block)
    zero, end, axis = network.numbers(0), network.numbers(fixed.hop), network.numbers(2)
    rows = graph.op("Slice", rows, zero, fading, axis)
    old = graph.op("MatMul", rows, _products(network, gains, before))
    change = graph.op("Sub", graph.op("Slice", own, zero, fading, axis), old)
    fade = graph.constant(fixed.matrices.fade.astype(np.float32), "decoder.gains.fade")
    start = graph.op("Add", old, graph.op("Mul", change, fade))
    audio = graph.op("Concat", start, graph.op("Slice", own, fading, end, axis), axis=2)
    return graph.op("Reshape", audio, network.numbers(0, 1, 1, -1))


def _number(network: "NetworkGraph", value: float) -> str:
    return network.graph.constant(np.float32(value), "number")


def _matrix(network: "NetworkGraph", matrix: np.ndarray, name: str) -> str:
    return network.graph.constant(matrix.astype(np.float32), f"decoder.gains.{name}")


def _levels(network: "NetworkGraph", powers: str) -> str:
    """Add `level_features`."""
    above = network.graph.op("Sub", powers, _number(network, LEVEL))
    return network.graph.op("Mul", above, _number(network, 1 / SPREAD))


def _overlapping(network: "NetworkGraph", x: str, size: int, past: int, ahead: int = 0) -> str:
    """Add blocks of x (B, 1, 1, S) behind those before them: (B, S / size, ·), as `overlapping`."""
    graph = network.graph
    x = network.behind_zeros(x, 1, past * size - ahead)
    if ahead:
        x = graph.op("Pad", x, network.numbers(0, 0, 0, 0, 0, 0, 0, ahead))
    blocks = graph.op("Reshape", x, network.numbers(0, -1, size))
    ends = [i - past for i in range(past)] + [np.iinfo(np.int64).max]
    parts = []
    for i, end in enumerate(ends):
        bounds = (network.numbers(i), network.numbers(end), network.numbers(1))
        parts.append(graph.op("Slice", blocks, *bounds))
    return graph.op("Concat", *parts, axis=2)


def _powers(network: "NetworkGraph", gains: DacBandGains, audio: str) -> str:
    """Add the powers of bands (B, F, 1, T) of audio (B, 1, 1, S)."""
    graph = network.graph
    fixed = gains.geometry
    frames = _overlapping(network, audio, fixed.hop, fixed.past, fixed.ahead)
    frames = graph.op("Clip", frames, _number(network, -HUGE), _number(network, HUGE))
    spectrum = graph.op("MatMul", frames, _matrix(network, fixed.matrices.analysis, "analysis"))
    real, imaginary = graph.op("Split", graph.op("Mul", spectrum, spectrum), outputs=2, axis=2)
    power = graph.op("Add", real, imaginary)
    power = graph.op("MatMul", power, _matrix(network, fixed.matrices.means, "means"))
    power = graph.op("Log", graph.op("Add", power, _number(network, FLOOR)))
    power = graph.op("Mul", power, _number(network, 10 / math.log(10)))
    power = graph.op("Transpose", power, perm=[0, 2, 1])
    return graph.op("Unsqueeze", power, network.numbers(2))


def _products(network: "NetworkGraph", gains: DacBandGains, decibels: str) -> str:
    """Add the filters of gains (B, F, 1, T) as matrices (B, T, row, block)."""
    graph = network.graph
    fixed = gains.geometry
    rows = graph.op("Squeeze", decibels, network.numbers(2))
    rows = graph.op("Transpose", rows, perm=[0, 2, 1])
    logs = graph.op("MatMul", rows, _matrix(network, fixed.matrices.log_filter, "log_filter"))
    log_magnitude, phase = graph.op("Split", logs, outputs=2, axis=2)
    magnitude = graph.op("Exp", log_magnitude)
    real = graph.op("Mul", magnitude, graph.op("Cos", phase))
    imaginary = graph.op("Mul", magnitude, graph.op("Sin", phase))
    spectrum = graph.op("Concat", real, imaginary, axis=2)
    taps = graph.op("MatMul", spectrum, _matrix(network, fixed.matrices.inverse, "inverse"))
    taps = graph.op("Pad", taps, network.numbers(0, 0, 0, 0, 0, 1))
    places = graph.constant(fixed.tap.astype(np.int64), "decoder.gains.places")
    return graph.op("Gather", taps, places, axis=2)


__all__ = ["channels_to_audio", "gains_to_channels"]
