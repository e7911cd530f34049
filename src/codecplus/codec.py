"""The codec as its users meet it: audio or files in, codes or `.dacp` bytes out, and back.

The walk of a signal: `audio` opens and resamples it, `inference` encodes it in exact chunks,
`encoding` chooses codebooks and better codes, `bitstream` writes bytes. Nothing here needs torch: a
model in torch brings it along, an exported one does without.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codecplus.audio.arrays import as_audio, split_blocks
from codecplus.audio.blocks import join_blocks
from codecplus.audio.mel import mel_spectrogram
from codecplus.audio.sources import check_integer_rate, is_batch, is_paths, open_audio
from codecplus.bitstream import EntropyModel, StreamInfo
from codecplus.bitstream.codes import Codes, check_codes, info_for
from codecplus.checkpoints.identity import find_embedded
from codecplus.compression import (
    CompressionOptions,
    batch_outputs,
    compress_audio,
    encode_audio,
    write_codes,
)
from codecplus.decompression import decode_blocks, decompress_audio, read_codes, samples_of
from codecplus.encoding.stream_info import (
    bitrates,
    check_model,
    codebooks_for_bitrate,
    make_stream_info,
)
from codecplus.errors import InputError
from codecplus.inference.entropy_models import embedded_entropy_models
from codecplus.inference.loading import load_network, network_of
from codecplus.inference.network import Geometry, Network
from codecplus.streaming import DecoderStream, EncoderStream
from codecplus.system.paths import PathLike

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class MelOptions:
    """The analysis spectrogram of a codec; sizes in samples. It has no part in coding.

    `hop_length` is the step of this spectrogram, not the codec's frame, `Codec.hop_length`.
    `win_length` is as long as `n_fft` by default.
    """

    n_mels: int = 80
    n_fft: int = 2048
    hop_length: int = 512
    win_length: int | None = None


class Codec:
    """A DAC model with everything around it. `load_codec` makes one; one model can serve many.

    Args:
        model: a `DacModel`, whose dtype and device are where the codec computes; or an exported
            one, an `OnnxModel`.
        sample_rate: rate in Hz of arrays that come without one; the model's by default.
        model_fingerprint: from `checkpoints.fingerprint`, if the model was cast to fewer bits since
            it was loaded.
        mel: the analysis spectrogram.
        entropy_models: for smaller files, made by `codecplus entropy`. The first is written with,
            all are read with; those of other checkpoints are left alone. By default those of the
            embedded checkpoint.
    """

    def __init__(
        self,
        model: Any,
        sample_rate: int | None = None,
        *,
        model_fingerprint: bytes | None = None,
        mel: MelOptions | None = None,
        entropy_models: Iterable[EntropyModel] | None = None,
    ):
        self.model = model
        self.network: Network = network_of(model)
        self.sample_rate = model.config.sampling_rate if sample_rate is None else sample_rate
        self.fingerprint = model_fingerprint or self.network.fingerprint
        self.mel = mel or MelOptions()
        if entropy_models is None:
            entropy_models = embedded_entropy_models(self.fingerprint)
        self.entropy_models = {
            entropy.identity: entropy
            for entropy in entropy_models
            if entropy.fingerprint == self.fingerprint
        }

    def __repr__(self) -> str:
        name = find_embedded(self.fingerprint) or f"fingerprint {self.fingerprint.hex()[:8]}"
        return (
            f"Codec({name}: {self.model_sample_rate} Hz, {self.frame_rate:g} frames/s, "
            f"{self.num_codebooks} codebooks of {self.codebook_size}, "
            f"{self.bitrates[0]:.2f} to {self.bitrates[-1]:.2f} kbit/s a channel, "
            f"latency {1000 * self.latency:.0f} ms, {self.dtype} on {self.device}"
            + (f" by {self.kernels} kernels)" if self.kernels else ")")
        )

    # ---- what the model is

    @property
    def config(self) -> Geometry:
        """Rates and sizes of the model."""
        return self.network.config

    @property
    def model_sample_rate(self) -> int:
        """The model's rate in Hz; other audio is resampled to it and back."""
        return self.config.sampling_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame, at the model's rate."""
        return self.config.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.config.frame_rate

    @property
    def num_codebooks(self) -> int:
        """Codebooks of the model."""
        return self.config.n_codebooks

    @property
    def codebook_size(self) -> int:
        """Entries of each codebook."""
        return self.config.codebook_size

    @property
    def bitrates(self) -> list[float]:
        """kbit/s of one channel for each number of codebooks, before entropy coding."""
        return bitrates(self.config)

    @property
    def latency(self) -> float:
        """Algorithmic latency in seconds: from a sample in to the first sample out it touches."""
        return self.network.latency_samples / self.model_sample_rate

    @property
    def device(self) -> str:
        """Where the codec computes."""
        return str(getattr(self.model, "device", "cpu"))

    @property
    def dtype(self) -> str:
        """What the codec computes in, such as `"float32"`."""
        return str(getattr(self.model, "dtype", "float32")).removeprefix("torch.")

    @property
    def kernels(self) -> str | None:
        """Instruction set of the compiled kernels that run, such as `"avx2"`; None without them."""
        return getattr(self.network, "kernels", None)

    def compile(self) -> "Codec":
        """Compile what is not compiled by default; see `DacModel.compile_layers`.

        Returns the codec.

        Results are the same but for rounding. Raises InputError where this cannot be done.
        """
        compile_layers = getattr(self.model, "compile_layers", None)
        if compile_layers is None:
            raise InputError(
                "expected a codec of a torch model to compile; this one runs in another runtime"
            )
        try:
            compile_layers()
        except RuntimeError as error:
            raise InputError(str(error)) from error
        return self

    # ---- audio <-> codes

    def encode(
        self,
        audio: Any,
        sample_rate: int | None = None,
        bitrate: float | None = None,
        n_quantizers: int | None = None,
        *,
        options: CompressionOptions | None = None,
        **settings: Any,
    ) -> Any:
        """Encode audio to integer codes.

        Args:
            audio: (samples,) for mono or (channels, samples), an array, list or tensor, float
                within ±1 or integer; the path of a file; `(audio, rate)`; or `{"array",
                "sampling_rate"}`. A list of arrays is a batch, and gives a list.
            sample_rate: of an array, Hz; `codec.sample_rate` by default.
            bitrate, n_quantizers, options, **settings: see `CompressionOptions`.

        Returns:
            `Codes`: int16 (codebooks, frames) for mono, else (channels, codebooks, frames).

        Raises:
            InputError: for audio, a rate or options that cannot be used.
        """
        options = CompressionOptions.from_settings(
            options, {"bitrate": bitrate, "n_quantizers": n_quantizers, **settings}
        )
        if isinstance(audio, Codes):
            raise InputError("expected audio, but these are codes already; decode them first")
        if is_paths(audio) or is_batch(audio):
            return [self.encode(item, sample_rate, options=options) for item in audio]
        with open_audio(audio, sample_rate, self.sample_rate) as source:
            encoded = encode_audio(self, source, options)
            codes = np.concatenate(list(encoded), axis=-1)
        if source.is_vector or (isinstance(audio, (str, os.PathLike)) and source.channels == 1):
            codes = codes[0]
        return Codes(codes, encoded.info, encoded.num_samples)

    def decode(self, codes: Any) -> Any:
        """Decode codes to float32 audio, in the shape and at the rate it was encoded from.

        Args:
            codes: from `encode`; or plain integers (codebooks, frames) or (channels, codebooks,
                frames), which decode to `hop_length` samples per frame at the model's rate,
                resampled to `codec.sample_rate`. A list of `Codes` is a batch, and gives a list.

        Raises:
            InputError: for another shape, or codes that the codebooks do not have.
            ModelMismatchError: for `Codes` of another model.
        """
        if isinstance(codes, (list, tuple)) and codes and isinstance(codes[0], np.ndarray):
            return [self.decode(item) for item in codes]
        array = check_codes(codes, self.num_codebooks, self.codebook_size)
        info = getattr(codes, "info", None)
        if info is None:
            info = self.stream_info(self.sample_rate, len(array), n_quantizers=array.shape[1])
        self.check_model(info)
        info = info_for(array, info)
        num_samples = getattr(codes, "num_samples", None)
        if num_samples is None:
            num_samples = samples_of(array.shape[-1], info)
        blocks = decode_blocks(self.network, [array], info, num_samples)
        audio = join_blocks(blocks, len(array), num_samples)
        return audio[0] if np.ndim(codes) == 2 else audio

    # ---- rows of data sets

    def encode_batch(
        self,
        batch: Mapping[str, Sequence],
        *,
        audio_column: str = "audio",
        bitrate: float | None = None,
        n_quantizers: int | None = None,
        channels: int = 1,
        batch_seconds: float | None = None,
    ) -> dict[str, list]:
        """Encode a batch of rows, for `dataset.map(codec.encode_batch, batched=True)`.

        Args:
            batch: columns; cells of the audio column are as `datasets` gives them, decoded or
                `Audio(decode=False)`, encoded bytes, paths, or arrays at `codec.sample_rate`.
            audio_column: its name.
            bitrate, n_quantizers: see `CompressionOptions`.
            channels: channels of every clip; 1 is the mean of those it has.
            batch_seconds: see `encode_clips`.

        Returns:
            New columns: `codes`, uint16 (codebooks, frames), with several channels (channels,
            codebooks, frames); `num_frames`; `num_samples` and `sample_rate` of the clip as it
            came; and `error`, empty where all is well. A clip that fails has no frames, zeros, and
            the reason in `error`. The types are the same in every batch; `batch_features` names
            them for `features=`.

        Raises:
            InputError: for a missing column, or a rate or number of codebooks that does not exist.
        """
        from codecplus.encoding.dataset_rows import encode_rows

        info = self.stream_info(
            self.model_sample_rate, channels, bitrate=bitrate, n_quantizers=n_quantizers
        )
        encode_clips = partial(
            self.encode_clips, n_quantizers=info.num_codebooks, batch_seconds=batch_seconds
        )
        return encode_rows(
            batch,
            audio_column,
            encode_clips,
            num_codebooks=info.num_codebooks,
            model_sample_rate=self.model_sample_rate,
            default_rate=self.sample_rate,
            channels=channels,
        )

    def batch_features(self, features: Any = None, *, channels: int = 1) -> Any:
        """`datasets.Features` of what `encode_batch` adds to rows with these features.

        Needs `datasets`.
        """
        from codecplus.encoding.dataset_rows import batch_features

        return batch_features(features, channels)

    def encode_clips(
        self,
        clips: Sequence[np.ndarray],
        n_quantizers: int | None = None,
        *,
        batch_seconds: float | None = None,
    ) -> list[np.ndarray]:
        """Encode clips, float32 (channels, samples) at the model's rate, to int16 (C, K, T) each.

        Each clip gets the codes that `encode` gives it. On a CPU they are coded one by one, to the
        same bits. Elsewhere they are padded into batches of up to `batch_seconds` of audio, 100 by
        default. There float sums are in another order, so that a code may differ now and then where
        two entries are equally near; 0 codes one by one there too.
        """
        info = self.stream_info(self.model_sample_rate, 1, n_quantizers=n_quantizers)
        for i, clip in enumerate(clips):
            if np.ndim(clip) != 2:
                raise InputError(
                    f"expected clips of shape (channels, samples), got {np.shape(clip)} for clip "
                    f"{i}"
                )
        encode_clips = getattr(self.network, "encode_clips", None)
        if encode_clips is not None:
            return encode_clips(clips, info.num_codebooks, batch_seconds)
        return [self._encode_clip(clip, info.num_codebooks) for clip in clips]

    def _encode_clip(self, clip: np.ndarray, num_codebooks: int) -> np.ndarray:
        pieces = self.network.encode_blocks(split_blocks(clip), num_codebooks)
        return np.concatenate(list(pieces), axis=-1)

    # ---- files

    def compress(
        self,
        source: Any,
        output: PathLike | None = None,
        *,
        sample_rate: int | None = None,
        overwrite: bool = True,
        progress: Callable[[float], Any] | None = None,
        options: CompressionOptions | None = None,
        **settings: Any,
    ) -> Any:
        """Compress audio to a `.dacp` file: the codes of `encode`, written as by `write_codes`.

        Args:
            source: audio as for `encode`. A file may have any length, in bounded memory. A list of
                paths is a batch: `output` is then the folder for the files.
            output: path of the file to write; bytes are returned if it is not given.
            sample_rate: of an array, Hz.
            overwrite: whether an existing `output` may be replaced.
            progress: called with the seconds of audio just read, again and again.
            options, **settings: see `CompressionOptions`.

        Returns:
            The path written to, or the bytes; a list of them for a list.

        Raises:
            InputError, FileFormatError: for audio or options that cannot be used.
            OutputExistsError: if `output` exists and may not be overwritten.
        """
        options = CompressionOptions.from_settings(options, settings)
        arguments: dict[str, Any] = {"overwrite": overwrite, "progress": progress}
        if is_paths(source):
            outputs = batch_outputs(source, output, ".dacp")
            return [
                compress_audio(self, path, target, options, **arguments)
                for path, target in zip(source, outputs, strict=True)
            ]
        return compress_audio(self, source, output, options, sample_rate=sample_rate, **arguments)

    def decompress(
        self,
        source: Any,
        output: PathLike | None = None,
        *,
        start: float = 0.0,
        duration: float | None = None,
        recover: bool = False,
        overwrite: bool = True,
        progress: Callable[[float], Any] | None = None,
    ) -> Any:
        """Decompress a `.dacp` file, or a `.dac` of the original, which is read, never run.

        Args:
            source: bytes, or the path of a file. A list of paths is a batch: `output` is then the
                folder for the files.
            output: audio file to write, its format chosen by the suffix; audio is returned if it is
                not given.
            start, duration: seconds of a `.dacp` file to decode, by default all; only the blocks
                needed are read.
            recover: decode what a damaged `.dacp` file still holds. Lost spans repeat the sound
                before them and fade out, and a warning names them. Without it, damage is an error.
            overwrite: whether an existing `output` may be replaced.
            progress: called with the seconds of audio just decoded, again and again.

        Returns:
            float32 audio at the rate it had, (samples,) for mono, else (channels, samples); or the
            path written to.

        Raises:
            FileFormatError: for a file that is damaged or of another format.
            ModelMismatchError: for a file of another model, or without its entropy model.
            InputError: for a part that the file does not have.
        """
        arguments: dict[str, Any] = {
            "start": start,
            "duration": duration,
            "recover": recover,
            "overwrite": overwrite,
            "progress": progress,
        }
        if isinstance(source, (list, tuple)):
            outputs = batch_outputs(list(source), output, ".wav")
            return [
                decompress_audio(self, path, target, **arguments)
                for path, target in zip(source, outputs, strict=True)
            ]
        return decompress_audio(self, source, output, **arguments)

    def write_codes(
        self,
        codes: Any,
        output: PathLike | None = None,
        *,
        entropy_coding: bool = True,
        overwrite: bool = True,
    ) -> Path | bytes:
        """Write codes to a `.dacp` file: the second half of `compress`, equal byte for byte.

        Args:
            codes: as for `decode`.
            output: path of the file; bytes are returned if it is not given.
            entropy_coding: False packs codes as they are.
            overwrite: whether an existing `output` may be replaced.

        Raises InputError, ModelMismatchError and OutputExistsError as `decode` and `compress` do.
        """
        return write_codes(self, codes, output, entropy_coded=entropy_coding, overwrite=overwrite)

    def read_codes(self, source: Any) -> Codes:
        """Read the codes of a `.dacp` file, bytes or a path: the inverse of `write_codes`.

        Raises FileFormatError and ModelMismatchError as `decompress` does.
        """
        return read_codes(self, source)

    # ---- live streams

    def encoder_stream(
        self,
        bitrate: float | None = None,
        n_quantizers: int | None = None,
        *,
        batch: int | None = None,
    ) -> EncoderStream:
        """Make a live encoder: `push(samples)` gives the codes that are ready, `flush()` the rest.

        Samples are floats at the model's rate: a resampler would add its own latency. Streams are
        independent of each other and share the weights; `batch` rows step together. `bitrate`,
        `n_quantizers` and errors are those of `encode`.
        """
        info = self.stream_info(
            self.model_sample_rate, 1, bitrate=bitrate, n_quantizers=n_quantizers
        )
        return self.network.encoder_stream(info.num_codebooks, batch)

    def decoder_stream(self, *, batch: int | None = None) -> DecoderStream:
        """A live decoder: `push(codes)` gives samples at the model's rate, `flush` the rest."""
        return self.network.decoder_stream(batch)

    # ---- the spectrogram that training, evaluation and the demo share

    def mel_spectrogram(self, audio: Any, sample_rate: int | None = None) -> np.ndarray:
        """Magnitudes on the mel scale, by the options in `codec.mel`.

        Args:
            audio: (..., samples).
            sample_rate: of the audio, Hz; `codec.sample_rate` by default.

        Returns:
            float32 (..., n_mels, mel frames).
        """
        import torch

        rate = check_integer_rate(self.sample_rate if sample_rate is None else sample_rate)
        mel = mel_spectrogram(
            torch.from_numpy(as_audio(audio)),
            rate,
            n_mels=self.mel.n_mels,
            n_fft=self.mel.n_fft,
            hop_length=self.mel.hop_length,
            win_length=self.mel.win_length,
        )
        return mel.numpy()

    # ---- rates and checks

    def n_quantizers_for(self, bitrate: float, channels: int = 1) -> int:
        """The number of codebooks with the nearest rate, in kbit/s for all channels together.

        Raises InputError if the rate is out of reach, and says which rates exist.
        """
        return codebooks_for_bitrate(self.config, bitrate, channels)

    def stream_info(
        self,
        sample_rate: int,
        channels: int,
        *,
        bitrate: float | None = None,
        n_quantizers: int | None = None,
    ) -> StreamInfo:
        """Describe a signal that this codec is going to encode; see `make_stream_info`."""
        return make_stream_info(
            self.config, self.fingerprint, sample_rate, channels, bitrate, n_quantizers
        )

    def check_model(self, info: StreamInfo) -> None:
        """Raise ModelMismatchError unless this model made the codes that `info` describes."""
        check_model(self.config, self.fingerprint, info)


def load_codec(
    name: PathLike = "dac",
    sample_rate: int | None = None,
    *,
    n_mels: int = 80,
    n_fft: int = 2048,
    hop_length: int = 512,
    win_length: int | None = None,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype | None" = None,
    revision: str | None = None,
    kernels: bool = True,
) -> Codec:
    """Load a codec.

    Args:
        name: `"dac"`, the embedded checkpoint for that sample rate: `dac-16khz-live` at 16 kHz,
            else `dac-44khz-small`; or an embedded name, a Hub id (`"descript/dac_44khz"`), a
            folder, a `.safetensors` or an official `.pth`; or an export, `"model.onnx"` or its
            folder, which runs on onnxruntime without torch.
        sample_rate: rate in Hz of arrays that come without one; the model's by default. Audio of
            any other rate than the model's is resampled to it and back.
        n_mels, n_fft, hop_length, win_length: the analysis spectrogram, see `MelOptions`. They
            have no part in coding: the codec's own hop is `codec.hop_length`.
        device: where to compute, `"cpu"` by default.
        dtype: what to compute in, such as `"bfloat16"`; fp32 by default, an export's own.
        revision: branch, tag or commit of a Hub repository.
        kernels: whether compiled kernels run where this processor has them. They are faster, hold
            the weights of the residual units a second time, and differ by rounding.

    Raises:
        CheckpointError: if there is no such checkpoint, or it cannot be read.
        InputError: for an impossible rate, device or dtype.
    """
    if str(name) == "dac":
        name = "dac-16khz-live" if sample_rate == 16000 else "dac-44khz-small"
    if sample_rate is not None:
        sample_rate = check_integer_rate(sample_rate)
    mel = MelOptions(n_mels=n_mels, n_fft=n_fft, hop_length=hop_length, win_length=win_length)
    loaded = load_network(name, device=device, dtype=dtype, revision=revision)
    if not kernels and hasattr(loaded.model, "allow_kernels"):
        loaded.model.allow_kernels(False)
    return Codec(
        loaded.model,
        sample_rate,
        model_fingerprint=loaded.fingerprint,
        mel=mel,
        entropy_models=loaded.entropy_models,
    )


__all__ = ["Codec", "Codes", "CompressionOptions", "MelOptions", "load_codec"]
