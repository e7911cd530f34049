"""Lyra V2, Google's codec for speech on phones, from a folder with its three networks.

The networks are not in this package; https://github.com/google/lyra has them (Apache-2.0). They run
through LiteRT: a frame of 20 ms at a time, with the state in the interpreters.
"""

import hashlib
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from codecplus.errors import CheckpointError, FileFormatError, MissingExtraError
from codecplus.eval.audio import fit, resample
from codecplus.eval.codecs.base import Original, Payload, row_name

SAMPLE_RATE = 16_000
FRAME = 320  # samples: 20 ms
FEATURES = 64
CODEBOOK_SIZE = 16
MAX_QUANTIZERS = 46
QUANTIZERS = {3.2: 16, 6.0: 30, 9.2: 46}  # kbit/s -> quantizers of 4 bits
FILES = ("soundstream_encoder.tflite", "quantizer.tflite", "lyragan.tflite")


class LyraCodec:
    """Lyra V2 at the nearest of its three rates; each channel is coded on its own.

    Args:
        folder: holds `FILES`.
        kbps: the target in kbit/s per channel; None: 9.2.

    Raises:
        CheckpointError: for a folder without the networks.
        MissingExtraError: without LiteRT.
    """

    latency = 0.02
    homepage = "https://github.com/google/lyra"

    def __init__(self, folder: str | Path, kbps: float | None = None) -> None:
        self.folder = Path(folder)
        missing = [name for name in FILES if not (self.folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"there is no {missing[0]} in {self.folder}; expected the networks of Lyra V2, "
                f"{', '.join(FILES)}, from https://github.com/google/lyra"
            )
        _litert()  # refuses early
        target = 9.2 if kbps is None else kbps
        self.nominal_kbps = min(QUANTIZERS, key=lambda rate: abs(rate - target))
        self.quantizers = QUANTIZERS[self.nominal_kbps]
        self.name = row_name("lyra", self.nominal_kbps)

    def config(self) -> dict[str, Any]:
        """Hashes of the networks, and the rate."""
        hashes = {}
        for name in FILES:
            hashes[name] = hashlib.sha256((self.folder / name).read_bytes()).hexdigest()[:16]
        return {"networks": hashes, "kbps": self.nominal_kbps, "version": 1}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the interpreters, which belong to one process."""
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_run")}

    def encode(self, audio: np.ndarray, sample_rate: int) -> Payload:
        """Encode (C, S): 4 bits for each quantizer and frame."""
        audio = resample(audio, sample_rate, SAMPLE_RATE)
        frames = max(1, math.ceil(audio.shape[-1] / FRAME))
        audio = fit(audio, frames * FRAME)
        indices = []
        for channel in audio:
            encoder = _Network(self.folder / FILES[0])
            for block in channel.reshape(frames, FRAME):
                features = encoder(block[None].astype(np.float32))
                indices.append(self._run_quantizer.encode(features, self.quantizers))
        values = np.array(indices, np.uint8).reshape(-1)  # two of 4 bits make a byte
        data = (values[0::2] | values[1::2] << 4).tobytes()
        return Payload(data, 8 * len(data))

    def codes(self, data: bytes) -> tuple[np.ndarray, int]:
        """Return the codes of all channels, (K, C · T), and the size of a codebook."""
        packed = np.frombuffer(data, np.uint8)
        values = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
        if len(values) % self.quantizers:
            raise FileFormatError("not the codes of Lyra: the last frame is not whole")
        return values.reshape(-1, self.quantizers).T.astype(np.int32), CODEBOOK_SIZE

    def decode(self, data: bytes, original: Original) -> np.ndarray:
        """Decode to (C, S) of the original."""
        codes, _ = self.codes(data)
        return self._decode_frames(list(codes.T), original)

    def packets(self, data: bytes) -> list[bytes]:
        """Return an empty header, then a packet for each channel and frame of 20 ms."""
        size = self.quantizers // 2  # bytes
        return [b"", *(data[start : start + size] for start in range(0, len(data), size))]

    def decode_packets(self, packets: list[bytes | None], original: Original) -> np.ndarray:
        """Decode to (C, S); a lost frame is decoded from features of zeros.

        Google's decoder does the same for 80 ms and goes on with comfort noise, which is not here.
        """
        frames: list[np.ndarray | None] = []
        for packet in packets[1:]:
            if packet is None:
                frames.append(None)
            else:
                frames.append(self.codes(packet)[0][:, 0])
        return self._decode_frames(frames, original)

    def _decode_frames(self, frames: list[np.ndarray | None], original: Original) -> np.ndarray:
        """Decode the indices (K,) of each frame, channel after channel; None is a lost one."""
        size = len(frames) // original.channels
        channels = []
        for start in range(0, len(frames), size):
            decoder = _Network(self.folder / FILES[2])
            blocks = []
            for indices in frames[start : start + size]:
                if indices is None:
                    features = np.zeros((1, 1, FEATURES), np.float32)
                else:
                    features = self._run_quantizer.decode(indices)
                blocks.append(decoder(features)[0])
            channels.append(np.concatenate(blocks))
        audio = np.stack(channels)
        return resample(audio, SAMPLE_RATE, original.sample_rate, original.samples)

    @cached_property
    def _run_quantizer(self) -> "_Quantizer":
        return _Quantizer(self.folder / FILES[1])


class _Network:
    """A network of one input and one output, with a state between calls.

    Each clip has a new one: `reset_all_variables` does not bring the first state back.
    """

    def __init__(self, path: Path) -> None:
        self._interpreter = _litert()(model_path=str(path))
        with _without_stderr():
            self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        self._interpreter.set_tensor(self._input, array)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output)


class _Quantizer:
    """Features (1, 1, 64) to indices and back; it has no state."""

    def __init__(self, path: Path) -> None:
        self._interpreter = _litert()(model_path=str(path))
        self._encode = self._interpreter.get_signature_runner("encode")
        self._decode = self._interpreter.get_signature_runner("decode")
        shape = self._encode.get_input_details()["num_quantizers"]["shape"]
        self._count_shape = tuple(shape)

    def encode(self, features: np.ndarray, quantizers: int) -> np.ndarray:
        """Return the indices (quantizers,) of one frame."""
        count = np.full(self._count_shape, quantizers, np.int32)
        result = self._encode(input_frames=features, num_quantizers=count)
        return np.asarray(result["output_0"]).reshape(-1)[:quantizers]

    def decode(self, indices: np.ndarray) -> np.ndarray:
        """Return the features (1, 1, 64) of the indices (K,) of one frame."""
        padded = np.full((MAX_QUANTIZERS, 1, 1), -1, np.int32)
        padded[: len(indices), 0, 0] = indices
        (features,) = self._decode(encoding_indices=padded).values()
        return features


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what the library writes there: a line about its kernels, each time."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _litert() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MissingExtraError(
            "Lyra needs the package ai-edge-litert: pip install 'codecplus[visqol]'"
        ) from error
    return Interpreter
