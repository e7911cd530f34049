"""Reconstruction losses, and their balance. They know waveforms (B, S) and nothing of models.

A loss compares an estimate with its reference and is 0 where they are equal. Three families: those
of the DAC paper, to be summed with its weights; relative ones, in units of each item's own level,
to be balanced; and those that follow metrics of speech. A loss is registered where it is
defined, with `@loss(name)`.

Letters: B batch, S samples, T time frames, F frequency bins, M mel bands.
"""

from codecplus.losses.balance import balanced_gradient, weighted_gradient
from codecplus.losses.paper import (
    PAPER_MEL_BANDS,
    PAPER_STFT_WINDOWS,
    MultiScaleMelLoss,
    MultiScaleSTFTLoss,
)
from codecplus.losses.registry import LOSSES, Loss, is_of_levels, loss, losses_by_name
from codecplus.losses.relative import (
    BandLevelLoss,
    CellPowerLoss,
    CompressedSTFTLoss,
    LoudnessMelLoss,
    QuietMelLoss,
    RelativeMelLoss,
    relative_waveform_loss,
)
from codecplus.losses.spectra import Spectrum, limit_bandwidth, magnitude, shared_spectra
from codecplus.losses.speech import DisturbanceLoss, EnvelopeLoss

__all__ = [
    "LOSSES",
    "PAPER_MEL_BANDS",
    "PAPER_STFT_WINDOWS",
    "BandLevelLoss",
    "CellPowerLoss",
    "CompressedSTFTLoss",
    "DisturbanceLoss",
    "EnvelopeLoss",
    "Loss",
    "LoudnessMelLoss",
    "MultiScaleMelLoss",
    "MultiScaleSTFTLoss",
    "QuietMelLoss",
    "RelativeMelLoss",
    "Spectrum",
    "balanced_gradient",
    "is_of_levels",
    "limit_bandwidth",
    "loss",
    "losses_by_name",
    "magnitude",
    "relative_waveform_loss",
    "shared_spectra",
    "weighted_gradient",
]
