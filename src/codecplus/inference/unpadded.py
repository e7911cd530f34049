"""Decoding without padding, window by window, as the original implementation decodes its files.

It knows the decoder's layers, and nothing of files. The windows of the original do not share one
grid of frames, so `decode_blocks` cannot stand in for it.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codecplus.errors import FileFormatError
from codecplus.modeling_dac import DacNetwork
from codecplus.modeling_dac.layers_dac import DacConv1d, DacConvTranspose1d, DacResidualUnit


def decode_unpadded(model: DacNetwork, codes: np.ndarray, window: int) -> np.ndarray:
    """Decode codes (C, K, T) in windows of so many frames, every convolution unpadded.

    Returns float32 audio (C, S). A last window that is too short to give a sample is left out; the
    original fails there.

    Raises FileFormatError for windows that are all too short.
    """
    if model.decoder.gains is not None:
        raise FileFormatError(
            "expected a file that was encoded with padding, as this model has band gains, which "
            "are made for whole signals; decode the file with the model that encoded it"
        )
    least = 2 * model.decoder_reach[1] + 1
    if window < least:
        raise FileFormatError(
            f"expected windows of at least {least} frames, which this model needs for a sample, "
            f"got a file in windows of {window}; it is damaged, or another model made it: "
            "name that one with --model"
        )
    pieces = []
    for start in range(0, codes.shape[-1], window):
        piece = torch.from_numpy(codes[..., start : start + window].astype(np.int64))
        if piece.shape[-1] < least:
            break
        with torch.inference_mode():
            latents = model.quantizer.from_codes(piece.to(model.device))[0]
            latents = latents.to(model.decoding_dtype)
            pieces.append(_unpadded(model.decoder.layers(), latents).squeeze(1))
    if not pieces:  # the file is shorter than one window
        return np.zeros((codes.shape[0], 0), np.float32)
    return torch.cat(pieces, dim=-1).float().cpu().numpy()


def _unpadded(layers: Sequence[tuple[str, nn.Module]], x: Tensor) -> Tensor:
    """Run layers on x (B, C, T) without padding; a residual is cropped to its middle."""
    for _, layer in layers:
        if isinstance(layer, DacConv1d) and layer.kernel_size[0] > 1:
            x = x.to(layer.dtype_for(x.dtype))
            bias = None if layer.bias is None else layer.bias.to(x.dtype)
            x = F.conv1d(x, layer.weight.to(x.dtype), bias, dilation=layer.dilation)
        elif isinstance(layer, DacConvTranspose1d):
            x = F.conv_transpose1d(x, layer.weight, layer.bias, stride=layer.stride)
        elif isinstance(layer, DacResidualUnit):
            y = _unpadded(layer.steps(), x)
            crop = (x.shape[-1] - y.shape[-1]) // 2
            x = x[..., crop : crop + y.shape[-1]] + y
        else:  # pads nothing: snake, pointwise convolution, tanh
            x = layer(x)
    return x
