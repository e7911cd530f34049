"""A model in torch as a network of a codec."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from codecplus.checkpoints import fingerprint
from codecplus.inference.batched import encode_clips
from codecplus.inference.chunked import decode_blocks, encode_blocks
from codecplus.inference.unpadded import decode_unpadded
from codecplus.kernels import usable_set
from codecplus.modeling_dac import DacNetwork, PlainDac
from codecplus.modeling_dac.layers_dac import is_hooked
from codecplus.streaming import DecoderStream, EncoderStream, StreamingDecoder, StreamingEncoder

# Of audio per batch on an accelerator: some 10 GB of activations with the released 44 kHz net.
_BATCH_SECONDS = 100.0


class TorchNetwork:
    """See `Network`. The model's dtype and device are where it computes."""

    def __init__(self, model: DacNetwork):
        self.model = model.eval()
        self._streaming: dict[Any, tuple[Any, Any]] = {}

    @property
    def config(self) -> Any:
        """The model's."""
        return self.model.config

    @property
    def fingerprint(self) -> bytes:
        """The fingerprint of the weights as they are now, which takes a pass over all of them."""
        return fingerprint(self.model)

    @property
    def kernels(self) -> str | None:
        """Instruction set of the compiled kernels that run, if they do."""
        if self.model.device.type != "cpu" or not self.model.encoder.snake1.allow_kernels:
            return None
        target = usable_set()
        if target is None:
            return None
        is_fp32 = self.model.dtype == torch.float32
        is_bf16 = self.model.dtype == torch.bfloat16
        if is_fp32 or (is_bf16 and target.bf16):
            return target.name
        return None

    @property
    def latency_samples(self) -> int:
        """The model's."""
        return self.model.latency_samples

    @property
    def decoder_context(self) -> int:
        """The model's."""
        return max(self.model.decoder_reach)

    def encode_blocks(
        self, blocks: Iterable[np.ndarray], n_quantizers: int
    ) -> Iterator[np.ndarray]:
        """See `chunked.encode_blocks`."""
        return encode_blocks(self.model, blocks, n_quantizers)

    @property
    def batch_seconds(self) -> float:
        """Seconds of audio in a batch of `encode_clips`, by default.

        It is 0 on a CPU, where clips go one by one: batches are slower there.
        """
        return 0.0 if self.model.device.type == "cpu" else _BATCH_SECONDS

    def encode_clips(
        self, clips: Sequence[np.ndarray], n_quantizers: int, batch_seconds: float | None
    ) -> list[np.ndarray]:
        """See `batched.encode_clips`."""
        return encode_clips(
            self.model,
            clips,
            n_quantizers,
            self.batch_seconds if batch_seconds is None else batch_seconds,
        )

    def decode_blocks(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """See `chunked.decode_blocks`."""
        return decode_blocks(self.model, blocks)

    def decode_unpadded(self, codes: np.ndarray, window: int) -> np.ndarray:
        """See `unpadded.decode_unpadded`."""
        return decode_unpadded(self.model, codes, window)

    def encoder_stream(self, n_quantizers: int, batch: int | None) -> EncoderStream:
        """Return a live encoder; all of them share one copy of the weights as they are now."""
        return EncoderStream(self._prepared(StreamingEncoder), n_quantizers, batch)

    def decoder_stream(self, batch: int | None) -> DecoderStream:
        """Return a live decoder; all of them share one copy of the weights as they are now."""
        return DecoderStream(self._prepared(StreamingDecoder), batch)

    def _prepared(self, kind: Any) -> Any:
        """Return a `StreamingEncoder` or `StreamingDecoder`, another if the model has changed."""
        hooked = [is_hooked(module) for module in self.model.modules()]
        places = [weight.data_ptr() for weight in self.model.parameters()]
        state = (self.weights_state, places, hooked)
        known = self._streaming.get(kind)
        if known is None or known[0] != state:
            known = (state, kind(self.model))
            self._streaming[kind] = known
        return known[1]

    @property
    def weights_state(self) -> "WeightsState":
        """What is another after the weights were trained, replaced or adapted."""
        weights = list(self.model.parameters())
        counts = [(id(weight), _version(weight)) for weight in weights]
        dtypes = [weight.dtype for weight in weights]
        # Nobody but the codec has a `PlainDac`, and taking a sample of it would take a millisecond.
        sample = b"" if isinstance(self.model, PlainDac) else _sample(weights)
        return WeightsState(counts, dtypes, sample)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_streaming": {}}  # copies make their own


class WeightsState(NamedTuple):
    """What tells weights from the same ones before a change, without reading all of them."""

    counts: list[tuple[int, int]]
    """Identity of each weight, and how many writes torch counted."""
    dtypes: list[torch.dtype]
    sample: bytes
    """Some values of each weight: torch does not count what fused optimizers and writes to
    `parameter.data` do."""

    def differs(self, other: "WeightsState") -> bool:
        """Return whether the weights were changed in between. A cast or a move is no change."""
        if self.counts != other.counts:
            return True
        return self.dtypes == other.dtypes and self.sample != other.sample


def _version(weight: torch.Tensor) -> int:
    return 0 if weight.is_inference() else weight._version


def _sample(weights: Iterable[torch.Tensor]) -> bytes:
    """Return the first value of every filter of a convolution and of every entry of a codebook."""
    values = defaultdict(list)
    for weight in weights:
        # Not of the kinds of tensors that other libraries put in a weight's place.
        if type(weight) is torch.nn.Parameter and weight.numel() and not weight.is_meta:
            firsts = weight.detach()[(..., *[0] * (weight.ndim - 1))]
            values[weight.device].append(firsts.reshape(-1))
    return b"".join(torch.cat(parts).float().cpu().numpy().tobytes() for parts in values.values())
