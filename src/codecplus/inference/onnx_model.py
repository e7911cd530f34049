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

from codecplus.errors import CheckpointError, InputError, MissingExtraError, first_line
from codecplus.inference.windows import frame_context, windows
from codecplus.streaming.steps import check_frame_end
from codecplus.streaming.stream import DecoderStream, EncoderStream

_FORMAT = "1"  # of an export; another one is refused
# Elements of the widest activation, of a chunk of a file and of a step of a stream: memory is
# bounded by them.
_CHUNK_ELEMENTS, _STEP_ELEMENTS = 1 << 23, 1 << 19
_MIN_CHUNK_FRAMES = 32
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES = {"fp32": "float32", "fp16": "float16"}  # by the precision of an export
_MAX_NUMBER = 1 << 30  # in the metadata of a graph, where nothing smaller is known
_BOUNDS = {  # of numbers that cannot be 0
    "sampling_rate": 1 << 20,
    "hop_length": 1 << 20,
    "n_codebooks": 255,
    "codebook_size": 1 << 15,
    "activations_per_frame": _MAX_NUMBER,
}


@dataclass(frozen=True, kw_only=True)
class ExportInfo:
    """The metadata of an exported graph, by the names that `DacConfig` and `DacModel` use."""

    model_type: str
    sampling_rate: int
    hop_length: int
    n_codebooks: int
    codebook_size: int
    fingerprint: str
    """Hexadecimal, of the model in fp32 at any precision of the export: the codes mean the same."""
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
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int):
                continue
            lowest = 1 if field.name in _BOUNDS else 0
            highest = _BOUNDS.get(field.name, _MAX_NUMBER)
            if not lowest <= value <= highest:
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
        """Return the metadata of a graph, all of it text."""
        metadata = {name: str(value) for name, value in asdict(self).items()}
        return {"codecplus_export": _FORMAT, **metadata}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> "ExportInfo":
        """Read the result of `to_metadata`. Raises CheckpointError for any other graph."""
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
    """Return the files of the encoder and the decoder of an export.

    `output` is a folder, `NAME.onnx`, or one of the two files.
    """
    path = Path(output)
    if path.suffix != ".onnx":
        path = path / "model.onnx"
    name = path.name.removesuffix(".onnx").removesuffix(".encoder").removesuffix(".decoder")
    return path.with_name(f"{name}.encoder.onnx"), path.with_name(f"{name}.decoder.onnx")


def find_export(name: str | os.PathLike[str]) -> tuple[Path, Path] | None:
    """Return the two files of the export that a name stands for; None for anything else.

    A folder that holds a checkpoint is that checkpoint, even with an export beside it. Raises
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
        device: "cpu", or "cuda" where onnxruntime is built for it; by default the best it has.

    Raises:
        CheckpointError: for files that are damaged, or no exports of one model.
        InputError: for a device that is not there.
    """

    def __init__(self, encoder: Path, decoder: Path, device: Any = None):
        self.device = _resolve_device(device)
        self.config, self._encoder = _open(encoder, self.device)
        other, self._decoder = _open(decoder, self.device)
        if self.config != other:
            raise CheckpointError(
                f"{encoder.name} and {decoder.name} are not of one export; export the model again"
            )

    @property
    def dtype(self) -> str:
        """The precision of the graphs, such as "float32"."""
        return _DTYPES.get(self.config.precision, self.config.precision)

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
        config = self.config
        hop = config.hop_length
        frames = _frames(_CHUNK_ELEMENTS, config)
        if config.stateful:
            encoder = StreamingOnnxEncoder(self)
            state = None
            for window, _, _ in windows(blocks, hop, 0, 0, frames):
                state = state or encoder.start(len(window))
                codes, state = encoder.step(state, window, n_quantizers)
                yield codes
            return
        before, behind = frame_context((config.encoder_past, config.encoder_future), hop)
        for window, start, stop in windows(blocks, hop, before, behind, frames):
            codes, _ = self.encode(window)
            yield codes[:, :n_quantizers, start:stop]

    def decode_blocks(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """See `Network.decode_blocks`."""
        config = self.config
        hop = config.hop_length
        frames = _frames(_CHUNK_ELEMENTS, config)
        if config.stateful:
            decoder = StreamingOnnxDecoder(self)
            state = None
            for window, _, _ in windows(blocks, 1, 0, 0, frames):
                state = state or decoder.start(len(window))
                audio, state = decoder.step(state, window)
                yield audio
            return
        context = (config.decoder_past, config.decoder_future)
        for window, start, stop in windows(blocks, 1, *context, frames):
            audio, _ = self.decode(window)
            yield audio[:, start * hop : stop * hop]

    def encode(
        self, audio: np.ndarray, memory: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Run the encoder once: audio (B, S) of whole frames to all codes (B, K, T), int16.

        A stateful graph takes its `memory` and returns the next one, too.
        """
        inputs = {"audio": np.asarray(audio, np.float32)[:, None]}
        codes, memory = _run(self._encoder, inputs, memory)
        return codes.astype(np.int16), memory

    def decode(
        self, codes: np.ndarray, memory: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Run the decoder once: codes (B, k, T) to audio (B, hop * T); see `encode`."""
        inputs = {"codes": np.asarray(codes, np.int64)}
        audio, memory = _run(self._decoder, inputs, memory)
        return audio[:, 0], memory

    def decode_unpadded(self, codes: np.ndarray, window: int) -> np.ndarray:
        """Refuse: an exported graph pads where the original implementation does not.

        Raises InputError, always.
        """
        raise InputError(
            "an exported model cannot decode a .dac file that was written in windows; "
            "load the model in torch for it"
        )

    def encoder_stream(self, n_quantizers: int, batch: int | None) -> EncoderStream:
        """Return a live encoder; raise InputError if the graphs have no state."""
        return EncoderStream(StreamingOnnxEncoder(self), n_quantizers, batch)

    def decoder_stream(self, batch: int | None) -> DecoderStream:
        """Return a live decoder; raise InputError if the graphs have no state."""
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
    """The memory of the graph, float32 (B, N)."""
    pending: np.ndarray
    """Samples (B, n) of a frame that is not whole yet."""
    received: int = 0
    """Samples that came into an encoder, frames that came into a decoder."""

    @property
    def batch(self) -> int:
        """Rows B."""
        return len(self.memory)

    def rows(self, rows: Sequence[int]) -> "OnnxState":
        """Return the state of these rows alone, as if they were a stream of their own."""
        return replace(self, memory=self.memory[rows], pending=self.pending[rows])


class _Steps:
    """The parts that both halves share.

    A causal net owes nothing at the end of a frame, so rows come and go there.
    """

    def __init__(self, model: OnnxModel, session: Any, unit: int):
        config = model.config
        self.model = model
        self.unit = unit
        self.hop_length = config.hop_length
        self.n_codebooks = config.n_codebooks
        self.codebook_size = config.codebook_size
        self.step_length = unit * _frames(_STEP_ELEMENTS, config, least=1)
        self._memory_size = model._memory_size(session)

    def start(self, batch: int = 1) -> OnnxState:
        """Return the state of `batch` rows that have heard nothing."""
        memory = np.zeros((batch, self._memory_size), np.float32)
        pending = np.zeros((batch, 0), np.float32)
        return OnnxState(memory, pending)

    def reset_rows(self, state: OnnxState, rows: Sequence[int]) -> OnnxState:
        """Return the state in which these rows begin anew and the others go on.

        Raises InputError within a frame.
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
        """Take samples (B, n); return the codes (B, K, t) that are ready, int16, and the state.

        With `last`, the samples are padded with zeros to whole frames; the stream is over then.
        """
        samples = np.asarray(samples, np.float32)
        received = state.received + samples.shape[1]
        samples = np.concatenate([state.pending, samples], axis=1)
        if last:
            missing = -samples.shape[1] % self.hop_length
            samples = np.pad(samples, ((0, 0), (0, missing)))
        whole = samples.shape[1] - samples.shape[1] % self.hop_length
        memory = state.memory
        if whole:
            codes, memory = self.model.encode(samples[:, :whole], memory)
        else:
            codes = np.zeros((len(samples), self.n_codebooks, 0), np.int16)
        assert memory is not None
        pending = samples[:, whole:].copy()
        return codes[:, : n_quantizers or self.n_codebooks], OnnxState(memory, pending, received)


class StreamingOnnxDecoder(_Steps):
    """The decoder of a stateful export in steps, as a `DecoderStream` takes them."""

    def __init__(self, model: OnnxModel):
        super().__init__(model, model._decoder, 1)

    def step(
        self, state: OnnxState, codes: Any, last: bool = False
    ) -> tuple[np.ndarray, OnnxState]:
        """Take codes (B, K, t) from 0 to N - 1; return the samples (B, n) of all frames, and the
        state.
        """
        if not codes.shape[-1]:
            return np.zeros((len(codes), 0), np.float32), state
        audio, memory = self.model.decode(codes, state.memory)
        assert memory is not None
        return audio, replace(state, memory=memory, received=state.received + codes.shape[-1])


def _frames(elements: int, config: ExportInfo, least: int = _MIN_CHUNK_FRAMES) -> int:
    return max(least, elements // config.activations_per_frame)


def _run(
    session: Any, inputs: dict[str, np.ndarray], memory: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Run a graph; return its result, and its next memory if it is stateful."""
    if memory is not None:
        inputs = {**inputs, "state": memory}
    outputs = session.run(None, inputs)
    if len(outputs) == 1:
        return outputs[0], None
    return outputs[0], outputs[1]


def _resolve_device(device: Any) -> str:
    """Return "cpu" or "cuda", by name or the best that onnxruntime has here.

    Raises InputError for a device that it does not have.
    """
    runtime = _onnxruntime()
    available = runtime.get_available_providers()
    if device is None:
        return "cuda" if _PROVIDERS["cuda"] in available else "cpu"
    name = str(device).partition(":")[0]
    if _PROVIDERS.get(name) not in available:
        raise InputError(
            f"onnxruntime has no device {device!s} here; expected 'cpu', or 'cuda' with "
            "onnxruntime-gpu"
        )
    return name


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            "an exported model needs onnxruntime; install it with: pip install 'codecplus[export]'"
        ) from error
    return onnxruntime


def _open(path: Path, device: str) -> tuple[ExportInfo, Any]:
    """Return the metadata of a graph, and a session that runs it."""
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about its own optimizations
    threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # as torch has it
    if threads.isdecimal():
        options.intra_op_num_threads = int(threads)
    try:
        session = runtime.InferenceSession(str(path), options, providers=[_PROVIDERS[device]])
    except Exception as error:  # its errors have no common class but Exception
        raise CheckpointError(
            f"onnxruntime cannot load {path}: {first_line(error)}; export the model again"
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
