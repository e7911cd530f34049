"""A model in torch as a network of a codec."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from codecplus.checkpoints import fingerprint
from codecplus.inference.batched import encode_clips
from codecplus.inference.chunked import decode_blocks, encode_blocks
from codecplus.inference.unpadded import decode_unpadded
from codecplus.kernels import usable_set
from codecplus.modeling_dac import DacNetwork
from codecplus.streaming import DecoderStream, EncoderStream, StreamingDecoder, StreamingEncoder

# Of audio per batch on an accelerator: some 10 GB of activations with the released 44 kHz net.
_BATCH_SECONDS = 100.0


class TorchNetwork:
    """See `Network`. The model's dtype and device are where it computes."""

    def __init__(self, model: DacNetwork):
        self.model = model.eval().lay_out_weights()

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
        """Return a live encoder; all of them share one copy of the weights."""
        return EncoderStream(self._streaming_encoder, n_quantizers, batch)

    def decoder_stream(self, batch: int | None) -> DecoderStream:
        """Return a live decoder; all of them share one copy of the weights."""
        return DecoderStream(self._streaming_decoder, batch)

    @cached_property
    def _streaming_encoder(self) -> StreamingEncoder:
        return StreamingEncoder(self.model)

    @cached_property
    def _streaming_decoder(self) -> StreamingDecoder:
        return StreamingDecoder(self.model)
