"""Whether weights may be read instead of running the modules that hold them."""

from codecplus.errors import InputError
from codecplus.modeling_dac.layers_dac import DacResidualVectorQuantizer


def check_plain(quantizer: DacResidualVectorQuantizer) -> DacResidualVectorQuantizer:
    """Return a quantizer whose weights are all that it does.

    Live streams, exports, beam search and `effort` read these weights. Adapters, wrappers and
    forward hooks do their work beside them, and would be left out without a word.

    Raises InputError for a quantizer with any of these.
    """
    layers = quantizer.quantizers
    if not all(layer.is_plain() for layer in layers):  # pyright: ignore[reportCallIssue]
        raise InputError(
            "expected a quantizer without adapters and forward hooks, since its weights alone are "
            "used here; merge the adapters, remove the hooks"
        )
    return quantizer
