"""The codec as its users meet it: audio or files in, codes or `.dacp` bytes out, and back.

The walk of a signal: `audio` opens and resamples it, `inference` encodes it in exact chunks,
`encoding` chooses codebooks and better codes, `bitstream` writes bytes. Nothing here needs torch: a
model in torch brings it along, an exported one does without.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codecplus.audio.mel import MelOptions, mel_of_clip
from codecplus.audio.player import AudioPlayer
from codecplus.audio.sources import check_integer_rate, is_batch, is_paths, open_audio
from codecplus.bitstream import Damage, EntropyModel, StreamInfo
from codecplus.bitstream.codes import Codes
from codecplus.checkpoints.identity import find_embedded
from codecplus.compression import (
    CompressionOptions,
    compress_audio,
    compress_files,
    each,
    encode_clip,
    write_codes,
)
from codecplus.decompression import (
    MAX_SECONDS,
    decode_codes,
    decompress_audio,
    decompress_files,
    find_damage,
    read_codes,
)
from codecplus.encoding.dataset_rows import batch_features, encode_rows
from codecplus.encoding.stream_info import (
    bitrates,
    check_model,
    codebooks_for_bitrate,
    make_stream_info,
)
from codecplus.encoding.user_codes import is_code_batch
from codecplus.inference.entropy_models import embedded_entropy_models
from codecplus.inference.loading import compile_model, load_network, move_model, network_of
from codecplus.inference.network import Geometry, Network, encode_clips
from codecplus.inference.saving import push_codec, save_codec
from codecplus.streaming import DecoderStream, EncoderStream
from codecplus.system.paths import PathLike

if TYPE_CHECKING:
    import torch


class Codec:
    """A DAC model with everything around it. `load_codec` makes one; one model can serve many.

    Arrays in, arrays out; tensors in, tensors out, on the device they came from. Codes have no
    gradients: train with `codec.model`.

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
        name: for readers; the embedded checkpoint's by default.
    """

    def __init__(
        self,
        model: Any,
        sample_rate: int | None = None,
        *,
        model_fingerprint: bytes | None = None,
        mel: MelOptions | None = None,
        entropy_models: Iterable[EntropyModel] | None = None,
        name: str | None = None,
    ):
        self.model = model
        self.network: Network = network_of(model)
        self.sample_rate = model.config.sampling_rate if sample_rate is None else sample_rate
        self.fingerprint = model_fingerprint or self.network.fingerprint
        self.mel = mel or MelOptions()
        self.name = find_embedded(self.fingerprint) or name or self.fingerprint.hex()[:8]
        if entropy_models is None:
            entropy_models = embedded_entropy_models(self.fingerprint)
        self.entropy_models = {
            entropy.identity: entropy
            for entropy in entropy_models
            if entropy.fingerprint == self.fingerprint
        }

    def __repr__(self) -> str:
        return (
            f"Codec({self.name}: {self.model_sample_rate} Hz, {self.frame_rate:g} frames/s, "
            f"{self.num_codebooks} codebooks of {self.codebook_size}, "
            f"{self.bitrates[0]:.2f} to {self.bitrates[-1]:.2f} kbit/s a channel, "
            f"latency {1000 * self.latency:.0f} ms, {self.dtype} on {self.device}"
            + (f" by {self.kernels} kernels)" if self.kernels else ")")
        )

    # ---- loading, saving, moving

    @classmethod
    def from_pretrained(
        cls,
        name: PathLike,
        sample_rate: int | None = None,
        *,
        mel: MelOptions | None = None,
        device: "str | torch.device | None" = None,
        dtype: "str | torch.dtype | None" = None,
        revision: str | None = None,
    ) -> "Codec":
        """Load a codec; arguments and errors are those of `load_codec`.

        Where a saved codec has settings of its own, they hold for arguments that are not given.
        """
        if sample_rate is not None:
            sample_rate = check_integer_rate(sample_rate)
        loaded = load_network(name, device=device, dtype=dtype, revision=revision)
        return cls(
            loaded.model,
            sample_rate or loaded.sample_rate,
            model_fingerprint=loaded.fingerprint,
            mel=mel or loaded.mel,
            entropy_models=loaded.entropy_models,
            name=str(name),
        )

    def save_pretrained(self, folder: PathLike) -> Path:
        """Save the codec in a folder that `load_codec` and transformers read; see `save_codec`.

        Rates, codes and files of the saved codec are those of this one. Device and dtype are chosen
        when it is loaded; weights are saved as they are now. Raises InputError for an export.
        """
        return save_codec(self.model, folder, self.entropy_models.values(), self._settings())

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes to the Hub, in one commit; return its address.

        Options and errors are those of `push_codec`: `private`, `revision`, `message`. A folder of
        `codecplus train`, with card and results, goes there by `codecplus push`.
        """
        models = self.entropy_models.values()
        return push_codec(self.model, repo, models, self._settings(), **options)

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        if self.sample_rate != self.model_sample_rate:
            settings["sample_rate"] = self.sample_rate
        if self.mel != MelOptions():
            settings["mel"] = asdict(self.mel)
        if not self.entropy_models and embedded_entropy_models(self.fingerprint):
            settings["entropy_models"] = []  # or it would be loaded with those
        return settings

    def to(self, device: Any = None, dtype: Any = None) -> "Codec":
        """Move the model to a device, cast it to a dtype, or both; return the codec.

        Either may stand alone, as in torch: `codec.to("cuda")`, `codec.to("bfloat16")`. Streams
        that are open go on as they were. Raises InputError for a device or dtype that cannot be
        had, and for an export.
        """
        move_model(self.model, device, dtype)
        self.network = network_of(self.model)
        return self

    def compile(self) -> "Codec":
        """Compile what is not compiled by default, see `DacModel.compile_layers`; return the codec.

        Results are the same but for rounding. Raises InputError where this cannot be done.
        """
        compile_model(self.model)
        return self

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
        """Where the codec computes, such as `"cpu"`."""
        return str(self.model.device)

    @property
    def dtype(self) -> str:
        """What the codec computes in, such as `"float32"`."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def kernels(self) -> str | None:
        """Instruction set of the compiled kernels that run, such as `"avx2"`; None without them."""
        return getattr(self.network, "kernels", None)

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
            audio: (samples,) for mono, (channels, samples), or (batch, channels, samples) of clips
                of one length; an array or tensor, float within ±1 or integer, or a list of numbers;
                the path of a file; `(audio, rate)`; `{"array", "sampling_rate"}` or `{"bytes",
                "path"}`. A list of such clips, of any lengths, gives a list.
            sample_rate: of an array, Hz; `codec.sample_rate` by default.
            bitrate, n_quantizers, options, **settings: see `CompressionOptions`.

        Returns:
            `Codes`, int16: (codebooks, frames) for mono, (channels, codebooks, frames), or (batch,
            channels, codebooks, frames). For tensors `CodesTensor`, int64, on their device.

        Raises:
            InputError: for audio, a rate or options that cannot be used.
        """
        options = CompressionOptions.from_settings(
            options, {"bitrate": bitrate, "n_quantizers": n_quantizers, **settings}
        )
        if is_batch(audio):
            return each(partial(encode_clip, self, sample_rate=sample_rate, options=options), audio)
        return encode_clip(self, audio, sample_rate, options)

    def decode(self, codes: Any) -> Any:
        """Decode codes to float32 audio, in the shape and at the rate it was encoded from.

        Args:
            codes: from `encode`; or plain integers (codebooks, frames), (channels, codebooks,
                frames) or (batch, channels, codebooks, frames), which decode to `hop_length`
                samples per frame at the model's rate, resampled to `codec.sample_rate`. A list of
                arrays or tensors gives a list; a tensor gives a tensor on its device.

        Raises:
            InputError: for another shape, or codes that the codebooks do not have.
            ModelMismatchError: for `Codes` of another model.
        """
        if is_code_batch(codes):
            return each(partial(decode_codes, self), codes)
        return decode_codes(self, codes)

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
            New columns, those of `encode_rows`: `codes`, `num_frames`, `num_samples`,
            `sample_rate`, and `error` with the reason for a clip that failed.

        Raises:
            InputError: for a missing column, or a rate or number of codebooks that does not exist.
        """
        rate = self.model_sample_rate
        info = self.stream_info(rate, channels, bitrate=bitrate, n_quantizers=n_quantizers)
        return encode_rows(
            batch,
            audio_column,
            partial(
                encode_clips,
                self.network,
                num_codebooks=info.num_codebooks,
                batch_seconds=batch_seconds,
            ),
            num_codebooks=info.num_codebooks,
            model_sample_rate=rate,
            default_rate=self.sample_rate,
            channels=channels,
        )

    def batch_features(self, features: Any = None, *, channels: int = 1) -> Any:
        """`datasets.Features` of what `encode_batch` adds to rows with these features."""
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
        return encode_clips(self.network, clips, info.num_codebooks, batch_seconds)

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
            source: one clip as for `encode`. A file may have any length, in bounded memory. A list
                of paths is a batch: `output` is then the folder for the files.
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
            return compress_files(self, source, output, options, **arguments)
        return compress_audio(self, source, output, options, sample_rate=sample_rate, **arguments)

    def decompress(
        self,
        source: Any,
        output: PathLike | None = None,
        *,
        start: float = 0.0,
        duration: float | None = None,
        recover: bool = False,
        max_seconds: float | None = MAX_SECONDS,
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
                before them and fade out. A `DamageWarning` names them, and says whether the end is
                missing; `find_damage` gives the same as data. Without it, damage is an error.
            max_seconds: of audio that a file may become, a day by default; None for any length.
            overwrite: whether an existing `output` may be replaced.
            progress: called with the seconds of audio just decoded, again and again.

        Returns:
            float32 audio at the rate it had, (samples,) for mono, else (channels, samples); or the
            path written to.

        Raises:
            FileFormatError: for a file that is damaged or of another format.
            ModelMismatchError: for a file of another model, or without its entropy model.
            InputError: for a part that the file does not have, and for more than `max_seconds`.
        """
        arguments: dict[str, Any] = {
            "start": start,
            "duration": duration,
            "recover": recover,
            "max_seconds": max_seconds,
            "overwrite": overwrite,
            "progress": progress,
        }
        if isinstance(source, (list, tuple)):
            return decompress_files(self, list(source), output, **arguments)
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

    def read_codes(self, source: Any, *, max_seconds: float | None = MAX_SECONDS) -> Codes:
        """Read the codes of a `.dacp` file, bytes or a path: the inverse of `write_codes`.

        Takes `max_seconds` and raises FileFormatError, ModelMismatchError and InputError as
        `decompress` does.
        """
        return read_codes(self, source, max_seconds)

    def find_damage(self, source: Any) -> Damage:
        """Say what `decompress(source, recover=True)` cannot read of a `.dacp` file.

        Returns a `Damage`, which is false for a whole file: the lost spans, `lost` in frames and
        `lost_seconds`; `end_missing`, whether the recording may have been longer; and
        `extra_bytes` behind its end, which cost nothing. Nothing is decoded.

        Raises FileFormatError for a file of which nothing can be recovered.
        """
        return find_damage(source)

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

    # ---- seen and heard

    def listen(self, audio: Any, sample_rate: int | None = None) -> AudioPlayer:
        """Play audio in a notebook, with its spectrogram: a player that Jupyter and Colab display.

        Args:
            audio: one clip as for `encode`; or codes from `encode`, which are decoded.
            sample_rate: of an array, Hz; `codec.sample_rate` by default.

        The spectrogram needs matplotlib, of `codecplus[eval]`. Errors are those of `encode` and
        `decode`.
        """
        if getattr(audio, "info", None) is not None:
            audio = (self.decode(audio), audio.info.original_sample_rate)
        with open_audio(audio, sample_rate, self.sample_rate) as source:
            return AudioPlayer(source.read(), source.sample_rate)

    def mel_spectrogram(self, audio: Any, sample_rate: int | None = None) -> Any:
        """Magnitudes on the mel scale, by the options in `codec.mel`.

        Args:
            audio: one clip as for `encode`.
            sample_rate: of an array, Hz; `codec.sample_rate` by default.

        Returns:
            float32 (n_mels, mel frames) for mono, else (channels, n_mels, mel frames); a tensor,
            on its device and without gradients, for a tensor.
        """
        return mel_of_clip(audio, sample_rate, self.sample_rate, self.mel)

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
    n_mels: int | None = None,
    n_fft: int | None = None,
    hop_length: int | None = None,
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
        n_mels, n_fft, hop_length, win_length: the analysis spectrogram, see `MelOptions`, for the
            defaults, too. They have no part in coding: the codec's own hop is `codec.hop_length`.
        device: where to compute, see `resolve_device`; the CPU by default, as in transformers.
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
    sizes = {"n_mels": n_mels, "n_fft": n_fft, "hop_length": hop_length, "win_length": win_length}
    chosen = {size: value for size, value in sizes.items() if value is not None}
    mel = MelOptions(**chosen) if chosen else None
    codec = Codec.from_pretrained(
        name, sample_rate, mel=mel, device=device, dtype=dtype, revision=revision
    )
    if not kernels and hasattr(codec.model, "allow_kernels"):  # an export has none
        codec.model.allow_kernels(False)
    return codec


__all__ = ["Codec", "Codes", "CompressionOptions", "MelOptions", "load_codec"]
