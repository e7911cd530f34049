"""An exported model on onnxruntime, as a network of a codec. Knows arrays, and nothing of torch.

An export is two files side by side, `NAME.encoder.onnx` and `NAME.decoder.onnx`. Both say the same
of the model.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from codecplus.errors import CheckpointError, InputError, MissingExtraError
from codecplus.inference.windows import frame_context, windows
from codecplus.streaming.steps import check_frame_end
from codecplus.streaming.stream import DecoderStream, EncoderStream

_FORMAT = "1"  # of an export; another one is refused
# Elements of the widest activation, of a chunk of a file and of a step of a stream: memory is
# bounded by them.
_CHUNK_ELEMENTS, _STEP_ELEMENTS = 1 << 23, 1 << 19
_MIN_CHUNK_FRAMES = 32


@dataclass(frozen=True, kw_only=True)
class ExportInfo:
    """The metadata of an exported graph, by the names that `DacConfig` and `DacModel` use."""

    model_type: str
    sampling_rate: int
    hop_length: int
    n_codebooks: int
    codebook_size: int
    fingerprint: str
    """In hexadecimal, of the model in fp32 whatever the precision here: the codes mean the same."""
    precision: str
    """fp32, fp16 or int8."""
    encoder_past: int
    """Samples before a frame that it depends on; `encoder_future` counts those behind its first
    sample, and `decoder_past` and `decoder_future` frames, for the decoder.
    """
    encoder_future: int
    decoder_past: int
    decoder_future: int
    latency_samples: int
    """Look-ahead of encoder and decoder: samples from one to the first one that comes out of it."""
    activations_per_frame: int
    """Elements of the widest activation, per frame of one row."""
    stateful: int
    """1 if the graphs take and give a state, else 0."""

    def __post_init__(self) -> None:
        bounds = {
            "sampling_rate": 1 << 20,
            "hop_length": 1 << 20,
            "n_codebooks": 255,
            "codebook_size": 1 << 15,
            "activations_per_frame": 1 << 30,
        }
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not (field.name in bounds) <= value <= bounds.get(
                field.name, 1 << 30
            ):
                raise CheckpointError(
                    f"the export says {field.name} is {value}, which no model can have"
                )
        if self.codebook_size & (self.codebook_size - 1) or self.codebook_size < 2:
            raise CheckpointError(
                f"the export says codebook_size is {self.codebook_size}, expected a power of two"
            )
        if len(self.fingerprint) != 32 or set(self.fingerprint) - set("0123456789abcdef"):
            raise CheckpointError("the export has no fingerprint; export the model again")

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sampling_rate / self.hop_length

    @property
    def bits_per_codebook(self) -> int:
        """Bits of one code, packed."""
        return self.codebook_size.bit_length() - 1

    def to_metadata(self) -> dict[str, str]:
        """As a graph carries it."""
        return {
            "codecplus_export": _FORMAT,
            **{name: str(value) for name, value in asdict(self).items()},
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> "ExportInfo":
        """The inverse; raises CheckpointError for a graph that is no export."""
        if metadata.get("codecplus_export") != _FORMAT:
            raise CheckpointError(
                f"{path} is an ONNX graph, but not one that this version of codecplus export "
                "wrote; export it again"
            )
        try:
            values = {name: kind(metadata[name]) for name, kind in get_type_hints(cls).items()}
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path} is damaged: {error} is missing or wrong in its metadata"
            ) from error
        return cls(**values)


def export_paths(output: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Encoder and decoder of an export of that name: a folder, `NAME.onnx`, or one of the two
    files.
    """
    path = Path(output)
    if path.suffix != ".onnx":
        path = path / "model.onnx"
    name = path.name.removesuffix(".onnx").removesuffix(".encoder").removesuffix(".decoder")
    return path.with_name(f"{name}.encoder.onnx"), path.with_name(f"{name}.decoder.onnx")


def find_export(name: str | os.PathLike[str]) -> tuple[Path, Path] | None:
    """The two files of the export that a name stands for; None if it stands for something else.

    A folder that holds a checkpoint is that checkpoint, whatever lies beside it. Raises
    CheckpointError if one of the files is missing.
    """
    path = Path(name)
    if path.suffix == ".onnx":
        pair = export_paths(path)
    elif path.is_dir() and not (path / "config.json").exists():
        encoders = sorted(path.glob("*.encoder.onnx"))
        if len(encoders) > 1:
            raise CheckpointError(
                f"the folder {path} holds {len(encoders)} exports; name one, such as {encoders[0]}"
            )
        if not encoders and not (path / "model.decoder.onnx").exists():
            return None
        pair = export_paths(encoders[0] if encoders else path)
    else:
        return None
    for file in pair:
        if not file.is_file():
            raise CheckpointError(
                f"there is no file {file}; an export is two files, "
                f"{pair[0].name} and {pair[1].name}"
            )
    return pair


class OnnxModel:
    """An exported encoder and decoder; see `Network`. `load_codec` makes one.

    Args:
        encoder, decoder: the two files.
        device: "cpu", or "cuda" where onnxruntime is built for it.

    Raises:
        CheckpointError: for files that are damaged, or no exports of one model.
        InputError: for a device that is not there.
    """

    def __init__(self, encoder: Path, decoder: Path, device: Any = None):
        self.config, self._encoder = _open(encoder, device)
        other, self._decoder = _open(decoder, device)
        if self.config != other:
            raise CheckpointError(
                f"{encoder.name} and {decoder.name} are not of one export; export the model again"
            )

    @property
    def fingerprint(self) -> bytes:
        """Of the model that was exported."""
        return bytes.fromhex(self.config.fingerprint)

    @property
    def latency_samples(self) -> int:
        """Samples that must be in before the first sample they influence can come out."""
        return self.config.latency_samples

    @property
    def decoder_context(self) -> int:
        """Frames around one that its audio may depend on, on either side."""
        return max(self.config.decoder_past, self.config.decoder_future)

    def encode_blocks(
        self, blocks: Iterable[np.ndarray], n_quantizers: int
    ) -> Iterator[np.ndarray]:
        """See `Network.encode_blocks`."""
        config, hop = self.config, self.config.hop_length
        if config.stateful:
            encoder, state = StreamingOnnxEncoder(self), None
            for window, _, _ in windows(blocks, hop, 0, 0, _frames(_CHUNK_ELEMENTS, config)):
                state = state or encoder.start(len(window))
                codes, state = encoder.step(state, window, n_quantizers)
                yield codes
            return
        before, behind = frame_context((config.encoder_past, config.encoder_future), hop)
        for window, start, stop in windows(
            blocks, hop, before, behind, _frames(_CHUNK_ELEMENTS, config)
        ):
            yield self.encode(window)[0][:, :n_quantizers, start:stop]

    def decode_blocks(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """See `Network.decode_blocks`."""
        config, hop = self.config, self.config.hop_length
        if config.stateful:
            decoder, state = StreamingOnnxDecoder(self), None
            for window, _, _ in windows(blocks, 1, 0, 0, _frames(_CHUNK_ELEMENTS, config)):
                state = state or decoder.start(len(window))
                audio, state = decoder.step(state, window)
                yield audio
            return
        before, behind = config.decoder_past, config.decoder_future
        for window, start, stop in windows(
            blocks, 1, before, behind, _frames(_CHUNK_ELEMENTS, config)
        ):
            yield self.decode(window)[0][:, start * hop : stop * hop]

    def encode(
        self, audio: np.ndarray, memory: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """One run: audio (B, S) of whole frames to all codes (B, K, T), int16, and what a stateful
        graph remembers.
        """
        feeds = {"audio": np.asarray(audio, np.float32)[:, None]}
        codes, *after = self._encoder.run(
            None, feeds if memory is None else {**feeds, "state": memory}
        )
        return codes.astype(np.int16), after[0] if after else None

    def decode(
        self, codes: np.ndarray, memory: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """One run: codes (B, k, T) to audio (B, hop * T), and what a stateful graph remembers."""
        feeds = {"codes": np.asarray(codes, np.int64)}
        audio, *after = self._decoder.run(
            None, feeds if memory is None else {**feeds, "state": memory}
        )
        return audio[:, 0], after[0] if after else None

    def decode_unpadded(self, codes: np.ndarray, window: int) -> np.ndarray:
        """Raises InputError: an exported graph pads where the original implementation does not."""
        raise InputError(
            "an exported model cannot decode a .dac file that was written in windows; "
            "load the model in torch for it"
        )

    def encoder_stream(self, n_quantizers: int, batch: int | None) -> EncoderStream:
        """A live encoder; raises InputError if the graphs have no state."""
        return EncoderStream(StreamingOnnxEncoder(self), n_quantizers, batch)

    def decoder_stream(self, batch: int | None) -> DecoderStream:
        """A live decoder; raises InputError if the graphs have no state."""
        return DecoderStream(StreamingOnnxDecoder(self), batch)

    def _memory_size(self, session: Any) -> int:
        if not self.config.stateful:
            raise InputError(
                "this export has no live streams; export the model with --stateful, "
                "which a causal model can"
            )
        return next(value.shape[1] for value in session.get_inputs() if value.name == "state")


@dataclass(frozen=True)
class OnnxState:
    """All that a stream of B rows remembers. It never changes: a step gives the next one."""

    memory: np.ndarray
    """What the graph remembers, float32 (B, N)."""
    pending: np.ndarray
    """Samples (B, n) of a frame that is not whole yet."""
    received: int = 0
    """Samples that came into an encoder, frames that came into a decoder."""

    @property
    def batch(self) -> int:
        """Rows B."""
        return len(self.memory)

    def rows(self, rows: Sequence[int]) -> "OnnxState":
        """The state of these rows alone, as if they were a stream of their own."""
        return replace(self, memory=self.memory[rows], pending=self.pending[rows])


class _Steps:
    """What both halves share: a causal net owes nothing at the end of a frame, so rows come and go
    there.
    """

    def __init__(self, model: OnnxModel, session: Any, unit: int):
        config = model.config
        self.model, self.unit = model, unit
        self.hop_length, self.n_codebooks = config.hop_length, config.n_codebooks
        self.codebook_size = config.codebook_size
        self.step_length = unit * _frames(_STEP_ELEMENTS, config, least=1)
        self._memory_size = model._memory_size(session)

    def start(self, batch: int = 1) -> OnnxState:
        """The state of `batch` rows that have heard nothing."""
        return OnnxState(
            np.zeros((batch, self._memory_size), np.float32), np.zeros((batch, 0), np.float32)
        )

    def reset_rows(self, state: OnnxState, rows: Sequence[int]) -> OnnxState:
        """The state in which these rows begin anew and the others go on. Raises InputError within a
        frame.
        """
        check_frame_end(state.received, self.unit)
        memory = state.memory.copy()
        memory[rows] = 0
        return replace(state, memory=memory)


class StreamingOnnxEncoder(_Steps):
    """The encoder of a stateful export in steps, as an `EncoderStream` takes them."""

    def __init__(self, model: OnnxModel):
        super().__init__(model, model._encoder, model.config.hop_length)

    def step(
        self, state: OnnxState, samples: Any, n_quantizers: int | None = None, last: bool = False
    ) -> tuple[np.ndarray, OnnxState]:
        """Take samples (B, n); give the codes (B, K, t) that are ready, int16, and the next state.

        With `last`, the samples are padded with zeros to whole frames; the stream is over then.
        """
        n_quantizers = n_quantizers or self.n_codebooks
        samples = np.concatenate([state.pending, np.asarray(samples, np.float32)], axis=1)
        received = state.received + samples.shape[1] - state.pending.shape[1]
        if last:
            samples = np.pad(samples, ((0, 0), (0, -samples.shape[1] % self.hop_length)))
        whole = samples.shape[1] // self.hop_length * self.hop_length
        codes, memory = np.zeros((len(samples), self.n_codebooks, 0), np.int16), state.memory
        if whole:
            codes, memory = self.model.encode(samples[:, :whole], memory)
        assert memory is not None
        return codes[:, :n_quantizers], OnnxState(memory, samples[:, whole:].copy(), received)


class StreamingOnnxDecoder(_Steps):
    """The decoder of a stateful export in steps, as a `DecoderStream` takes them."""

    def __init__(self, model: OnnxModel):
        super().__init__(model, model._decoder, 1)

    def step(
        self, state: OnnxState, codes: Any, last: bool = False
    ) -> tuple[np.ndarray, OnnxState]:
        """Take codes (B, K, t) from 0 to N - 1; give the samples (B, n) of all frames, and the next
        state.
        """
        if not codes.shape[-1]:
            return np.zeros((len(codes), 0), np.float32), state
        audio, memory = self.model.decode(codes, state.memory)
        assert memory is not None
        return audio, replace(state, memory=memory, received=state.received + codes.shape[-1])


def _frames(elements: int, config: ExportInfo, least: int = _MIN_CHUNK_FRAMES) -> int:
    return max(least, elements // config.activations_per_frame)


def _open(path: Path, device: Any) -> tuple[ExportInfo, Any]:
    """What a graph says of itself, and a session that runs it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            "an exported model needs onnxruntime; install it with: pip install 'codecplus[export]'"
        ) from error
    providers = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    provider = providers.get(str(device or "cpu").partition(":")[0], "")
    if provider not in onnxruntime.get_available_providers():
        raise InputError(
            f"onnxruntime has no device {device!s} here; expected 'cpu', or 'cuda' with "
            "onnxruntime-gpu"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about its own optimizations
    if threads := os.environ.get("OMP_NUM_THREADS", "").split(",")[0]:  # as torch has it
        options.intra_op_num_threads = int(threads) if threads.isdecimal() else 0
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # its errors have no common class but Exception
        line = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"onnxruntime cannot load {path}: {line}; export the model again"
        ) from error
    return ExportInfo.from_metadata(session.get_modelmeta().custom_metadata_map, path), session


__all__ = [
    "ExportInfo",
    "OnnxModel",
    "OnnxState",
    "StreamingOnnxDecoder",
    "StreamingOnnxEncoder",
    "export_paths",
    "find_export",
]
