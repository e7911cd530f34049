"""Decoded audio in the levels of the original, for losses that leave levels to band gains."""

import torch
from torch import Tensor, nn

from codecplus.configuration import DacConfig
from codecplus.modeling_dac.gains_dac import LIMIT, geometry_of
from codecplus.modeling_dac.sizes_dac import gain_window

BANDS = 36
LINEAR_HZ = 4000.0


def default_bands(config: DacConfig) -> int:
    """Return the number of bands of a codec that has none yet: 36, or as many as its hop allows."""
    return min(BANDS, gain_window(config.hop_length) // 8)


class Levels:
    """Filters decoded audio so that each band of a frame has the power of the original.

    This is what band gains do that lack nothing. A change of level is undone by the filter, so a
    loss behind it asks for structure alone.

    Args:
        config: of the codec, whose bands are used; where it has none, 36 or as many as fit.
    """

    def __init__(self, config: DacConfig):
        bands, linear_hz = default_bands(config), LINEAR_HZ
        if config.gain_size:
            bands, linear_hz = config.gain_bands, config.gain_linear_hz
        self.geometry = geometry_of(config, bands, linear_hz)

    def __call__(self, estimate: Tensor, reference: Tensor) -> Tensor:
        """Return the estimate (B, S) in the levels of its reference (B, S)."""
        missing = -estimate.shape[-1] % self.geometry.hop
        audio = nn.functional.pad(estimate, (0, missing)).unsqueeze(1)
        with torch.no_grad():
            wanted = self.geometry.powers(nn.functional.pad(reference, (0, missing)).unsqueeze(1))
        gains = (wanted - self.geometry.powers(audio)).clamp(-LIMIT, LIMIT)
        return self.geometry.filter(audio, gains).squeeze(1)[:, : estimate.shape[-1]]
