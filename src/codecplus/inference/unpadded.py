"""How the original implementation decodes a file coded in windows: without padding, each window on
its own.

Its windows do not share one grid of frames, so the exact chunks of `streaming` cannot stand in for
it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codecplus.modeling_dac import DacModel


def decode_unpadded(model: DacModel, codes: np.ndarray, window: int) -> np.ndarray:
    """Decode codes (C, K, T) in windows of so many frames, every convolution unpadded: float32
    audio (C, S).
    """
    pieces = []
    for start in range(0, codes.shape[-1], window):
        part = torch.from_numpy(codes[..., start : start + window].astype(np.int64)).to(
            model.device
        )
        if part.shape[-1] <= 2 * model.decoder_reach[1]:
            break  # too short to give a sample; the original fails here
        with torch.inference_mode():
            pieces.append(_decoder(model.decoder, model.quantizer.from_codes(part)[0]).squeeze(1))
    if not pieces:
        return np.zeros((codes.shape[0], 0), np.float32)
    return torch.cat(pieces, dim=-1).float().cpu().numpy()


def _decoder(decoder, x: Tensor) -> Tensor:
    x = _convolution(decoder.conv1, x)
    for block in decoder.block:
        conv = block.conv_t1
        x = F.conv_transpose1d(block.snake1(x), conv.weight, conv.bias, stride=conv.stride)
        for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
            y = unit.conv2(unit.snake2(_convolution(unit.conv1, unit.snake1(x))))
            crop = (x.shape[-1] - y.shape[-1]) // 2
            x = x[..., crop : crop + y.shape[-1]] + y
    return decoder.tanh(_convolution(decoder.conv2, decoder.snake1(x)))


def _convolution(conv, x: Tensor) -> Tensor:
    return F.conv1d(x, conv.weight, conv.bias, dilation=conv.dilation)
