"""The codec as its users meet it: audio or files in, codes or `.dacp` bytes out, and back.

The walk of a signal: `audio` opens and resamples it, `inference` encodes it in exact chunks,
`encoding` chooses codebooks and better codes, `bitstream` writes bytes. Nothing here needs torch: a
model in torch brings it along, an exported one does without.
"""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codecplus import compression, dataset_rows, decompression
from codecplus.audio.levels import check_level
from codecplus.audio.mel import MelOptions, mel_of_clip
from codecplus.audio.player import AudioPlayer
from codecplus.audio.sources import check_integer_rate, open_audio
from codecplus.bitstream import EntropyModel, StreamInfo
from codecplus.bitstream.codes import Codes
from codecplus.checkpoints.identity import find_embedded
from codecplus.encoding.compression_options import CompressionOptions
from codecplus.encoding.stream_info import (
    bitrates,
    check_model,
    codebooks_for_bitrate,
    make_stream_info,
)
from codecplus.inference.entropy_models import embedded_entropy_models
from codecplus.inference.loading import compile_model, load_network
from codecplus.inference.network import Geometry, Network
from codecplus.inference.saving import push_codec, save_codec
from codecplus.inference.served_model import ServedModel
from codecplus.streaming import DecoderStream, EncoderStream
from codecplus.system.paths import PathLike

if TYPE_CHECKING:
    import torch


class Codec:
    """A DAC model with everything around it. `load_codec` makes one; one model can serve many.

    Arrays in, arrays out; tensors in, tensors out, on the device they came from. Codes have no
    gradients: train with `codec.model`.

    Args:
        model: a `DacModel`, whose dtype and device are where the codec computes, and which is put
            into eval mode; or an exported one, an `OnnxModel`.
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
        self._served = ServedModel(model, model_fingerprint)
        self.sample_rate = model.config.sampling_rate if sample_rate is None else sample_rate
        self.mel = mel or MelOptions()
        self.name = find_embedded(self.fingerprint) or name or self.fingerprint.hex()[:8]
        if entropy_models is None:
            entropy_models = embedded_entropy_models(self.fingerprint)
        self._entropy_models = list(entropy_models)

    def __repr__(self) -> str:
        return (
            f"Codec({self.name}: {self.model_sample_rate} Hz, {self.frame_rate:g} frames/s, "
            f"{self.num_codebooks} codebooks of {self.codebook_size}, "
            f"{self.bitrates[0]:.2f} to {self.bitrates[-1]:.2f} kbit/s a channel, "
            f"latency {1000 * self.latency:.0f} ms, {self.dtype} on {self.device}"
            + (f" by {self.kernels} kernels)" if self.kernels else ")")
        )

    @property
    def model(self) -> Any:
        """The `DacModel`, or the export. What is done to it takes effect in the codec.

        An embedded checkpoint runs without transformers until it is asked for.
        """
        return self._served.full()

    @property
    def network(self) -> Network:
        """The model as the codec uses it, without transformers where it can do without."""
        return self._served.network

    @property
    def fingerprint(self) -> bytes:
        """16 bytes that name the weights, in codes and files. After training, they are others.

        torch does not count what fused optimizers, NumPy and writes to `parameter.data` do. They
        are seen where they change the first value of a filter or of a codebook's entry.
        """
        return self._served.fingerprint

    @property
    def entropy_models(self) -> dict[bytes, EntropyModel]:
        """Entropy models of these weights, by identity. The first is the one to write with."""
        return {
            entropy.identity: entropy
            for entropy in self._entropy_models
            if entropy.fingerprint == self.fingerprint
        }

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
        """Upload the files of `save_pretrained` to the Hub, in one commit; return its address.

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
        self._served.to(device, dtype)
        return self

    def compile(self) -> "Codec":
        """Compile the network for a GPU, see `DacModel.compile_layers`; return the codec.

        Compiled kernels of CPUs run without it. Results are the same but for rounding. Raises
        InputError where this cannot be done.
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
        return str(self._served.form.device)

    @property
    def dtype(self) -> str:
        """The precision of the computation, such as `"float32"`.

        With `dtype="auto"` it may be `"float32, decoding in bfloat16"`.
        """
        return self._served.precision

    @property
    def kernels(self) -> str | None:
        """Instruction set of the compiled kernels that run, such as `"avx2"`; None without them."""
        return getattr(self.network, "kernels", None)

    # ---- audio, codes and files: functions of a codec, described where they stand

    encode = compression.encode  # audio -> codes
    decode = decompression.decode  # codes -> audio
    compress = compression.compress  # audio -> file
    decompress = decompression.decompress  # file -> audio
    write_codes = compression.write_codes  # codes -> file
    read_codes = decompression.read_codes  # file -> codes
    find_damage = staticmethod(decompression.find_damage)
    encode_clips = dataset_rows.encode_clips  # clips at the model's rate -> codes
    encode_batch = dataset_rows.encode_batch  # rows of a dataset -> rows with codes
    batch_features = staticmethod(dataset_rows.batch_features)

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
        """Make a live decoder: `push(codes)` gives samples at the model's rate, `flush` ends it."""
        return self.network.decoder_stream(batch)

    # ---- seen and heard

    def listen(self, audio: Any, sample_rate: int | None = None) -> AudioPlayer:
        """Play audio in a notebook, with its spectrogram: a player that Jupyter and Colab display.

        Args:
            audio: one clip as for `encode`; or codes from `encode`, which are decoded.
            sample_rate: of an array, Hz; `codec.sample_rate` by default.

        The spectrogram needs matplotlib, of `codecplus[eval]`. Errors are those of `encode` and
        `decode`, and so is the warning of a peak far beyond full scale.
        """
        if getattr(audio, "info", None) is not None:
            audio = (self.decode(audio), audio.info.original_sample_rate)
        with open_audio(audio, sample_rate, self.sample_rate) as source:
            samples = source.read()
            check_level(samples)
            return AudioPlayer(samples, source.sample_rate)

    def mel_spectrogram(self, audio: Any, sample_rate: int | None = None) -> Any:
        """Return mel magnitudes, by the options in `codec.mel`.

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
        """Return the number of codebooks with the nearest rate, in kbit/s for all channels
        together.

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
        dtype: precision of the computation, such as `"bfloat16"`; fp32 by default, an export's own.
            `"auto"` encodes in fp32, so that codes are those of every machine, and decodes in bf16
            where the device multiplies it; `repr` shows which.
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
    model = codec._served.form
    if not kernels and hasattr(model, "allow_kernels"):  # an export has none
        model.allow_kernels(False)
    return codec


__all__ = ["Codec", "Codes", "CompressionOptions", "MelOptions", "load_codec"]
