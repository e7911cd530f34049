"""Whether weights may be read instead of running the modules that hold them."""

from codecplus.acceleration.training import TrainedConv1d
from codecplus.errors import InputError
from codecplus.modeling_dac.layers_dac import (
    NOT_PLAIN,
    DacConv1d,
    DacResidualVectorQuantizer,
    DacVectorQuantize,
)


def check_plain(quantizer: DacResidualVectorQuantizer) -> DacResidualVectorQuantizer:
    """Return a quantizer whose weights are all that it does.

    Live streams, exports, beam search and `effort` read these weights. Adapters, wrappers and
    forward hooks do their work beside them, and would be left out without a word.

    Raises InputError for a quantizer with any of these.
    """
    for layer in quantizer.quantizers:
        assert isinstance(layer, DacVectorQuantize)
        convolution = DacConv1d
        if isinstance(layer.in_proj, TrainedConv1d):  # computes the same, in a `forward` of its own
            convolution = TrainedConv1d
        if not layer.is_plain(convolution):
            raise InputError(NOT_PLAIN)
    return quantizer
