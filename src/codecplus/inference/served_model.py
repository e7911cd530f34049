"""The model that a codec computes with, and the fingerprint of its weights as they are."""

import threading
from typing import Any

from codecplus.inference.loading import full_model, move_model, network_of
from codecplus.inference.network import Network

_changing = threading.Lock()  # of forms of a model, which all users of a codec must share


class ServedModel:
    """A model in the form that computes now: a network in torch alone, a `DacModel`, or an export.

    Args:
        model: a `PlainDac`, a `DacModel` or an `OnnxModel`.
        fingerprint: of its weights before they were cast to fewer bits; by default of these.
    """

    def __init__(self, model: Any, fingerprint: bytes | None = None):
        self.form = model
        self.network: Network = network_of(model)
        self._fingerprint = fingerprint or self.network.fingerprint
        self._weights_state = _weights_state(self.network)

    def full(self) -> Any:
        """Return the `DacModel`, or the export; from here on it is what computes."""
        with _changing:
            full = full_model(self.form)
            if full is not self.form:
                self._use(full, self.fingerprint)
        return self.form

    def to(self, device: Any, dtype: Any) -> None:
        """Move or cast the model, see `move_model`; the fingerprint stays."""
        with _changing:  # else a thread that takes the full model meanwhile would get it as it was
            fingerprint = self.fingerprint
            move_model(self.form, device, dtype)
            self._use(self.form, fingerprint)

    @property
    def fingerprint(self) -> bytes:
        """16 bytes that name the weights. After training, they are others."""
        state = _weights_state(self.network)
        if state is not None and state.differs(self._weights_state):
            self._fingerprint = self.network.fingerprint
        self._weights_state = state
        return self._fingerprint

    @property
    def precision(self) -> str:
        """Name of the dtype that it computes in, and of the decoder's if that is another."""
        dtype = self.form.dtype
        decoding = getattr(self.form, "decoding_dtype", dtype)
        precision = str(dtype).removeprefix("torch.")
        if decoding == dtype:
            return precision
        return f"{precision}, decoding in {str(decoding).removeprefix('torch.')}"

    def _use(self, model: Any, fingerprint: bytes) -> None:
        """Compute with another form of the same weights."""
        self.form = model
        self.network = network_of(model)
        self._fingerprint = fingerprint
        self._weights_state = _weights_state(self.network)

    def __getstate__(self) -> dict[str, Any]:
        fingerprint = self.fingerprint
        state = {**self.__dict__, "_fingerprint": fingerprint}
        del state["_weights_state"]  # addresses: `datasets` would take each run for a new function
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._weights_state = _weights_state(self.network)  # a copy has weights of its own


def _weights_state(network: Network) -> Any:
    """Return a `WeightsState` of a network; None where its weights cannot change."""
    return getattr(network, "weights_state", None)
