"""What a codec needs of a network, in torch or not. It knows arrays and sizes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from codecplus.audio.arrays import split_blocks
from codecplus.audio.levels import check_level
from codecplus.errors import InputError
from codecplus.streaming.stream import DecoderStream, EncoderStream


class Geometry(Protocol):
    """The sizes that a codec needs, by their names in `DacConfig`."""

    sampling_rate: int
    hop_length: int
    n_codebooks: int
    codebook_size: int

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        ...

    @property
    def bits_per_codebook(self) -> int:
        """Bits of one code, packed."""
        ...


class Network(Protocol):
    """An encoder and a decoder at the model's rate. C channels are coded alike, each on its own."""

    @property
    def config(self) -> Geometry:
        """Rates and sizes."""
        ...

    @property
    def fingerprint(self) -> bytes:
        """16 bytes that tell models apart, from `checkpoints.fingerprint`."""
        ...

    @property
    def latency_samples(self) -> int:
        """Samples that must be in before the first sample they influence can come out."""
        ...

    @property
    def decoder_context(self) -> int:
        """Frames around one that its audio may depend on, on either side."""
        ...

    def encode_blocks(
        self, blocks: Iterable[np.ndarray], n_quantizers: int
    ) -> Iterator[np.ndarray]:
        """Encode float32 audio (C, S) in blocks to codes, int16 (C, K, T) in pieces.

        Blocks have any length; there is at least one sample.
        """
        ...

    def decode_blocks(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Decode integer codes (C, K, T) in blocks to audio, float32 (C, S) in pieces.

        Each frame gives `hop_length` samples.
        """
        ...

    def decode_unpadded(self, codes: np.ndarray, window: int) -> np.ndarray:
        """Decode codes (C, K, T) to audio (C, S) in windows of `window` frames.

        No convolution is padded, as in the original implementation.
        """
        ...

    def encoder_stream(self, n_quantizers: int, batch: int | None) -> EncoderStream:
        """Return a live encoder."""
        ...

    def decoder_stream(self, batch: int | None) -> DecoderStream:
        """Return a live decoder."""
        ...


def encode_clips(
    network: Network,
    clips: Sequence[np.ndarray],
    num_codebooks: int,
    batch_seconds: float | None = None,
) -> list[np.ndarray]:
    """Encode clips, float32 (C, S) at the model's rate, to int16 (C, K, T) each.

    `batch_seconds` of audio go into one padded batch, where a network has batches; see
    `batched.encode_clips`. Raises InputError for another shape.
    """
    for i, clip in enumerate(clips):
        if np.ndim(clip) != 2:
            raise InputError(
                f"expected clips of shape (channels, samples), got {np.shape(clip)} for clip {i}"
            )
    any(check_level(clip) for clip in clips)  # one warning is enough
    encode_padded = getattr(network, "encode_clips", None)
    if encode_padded is not None:
        return encode_padded(clips, num_codebooks, batch_seconds)
    all_codes = []
    for clip in clips:
        pieces = network.encode_blocks(split_blocks(clip), num_codebooks)
        all_codes.append(np.concatenate(list(pieces), axis=-1))
    return all_codes
