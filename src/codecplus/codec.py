"""The codec as its users meet it: audio or files in, codes or `.dacp` bytes out, and back.

The way of a signal: resample to the model's rate (`utils`), encode in exact chunks (`runtime`),
pack (`bitstream`).
Nothing here needs torch: a model in torch brings it along, an exported one does without.
"""

import io
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codecplus.audio.arrays import as_audio
from codecplus.audio.files import AudioFileReader, AudioFileWriter
from codecplus.audio.loudness import LoudnessMeter, integrated_loudness
from codecplus.audio.mel import mel_spectrogram
from codecplus.audio.resampling import Resampler, resampled_length
from codecplus.bitstream import EntropyModel, Header, Reader, StreamInfo, Writer, can_code, pack
from codecplus.checkpoints import DacFile, embedded_fingerprints, embedded_names, read_dac_file
from codecplus.checkpoints.identity import EMBEDDED_FOLDER
from codecplus.errors import CodecPlusError, FileFormatError, InputError, ModelMismatchError
from codecplus.inference.network import Geometry, Network
from codecplus.inference.onnx_model import OnnxModel, find_export
from codecplus.recordings.cells import DecodedAudio, read_cell
from codecplus.streaming import DecoderStream, EncoderStream
from codecplus.system.paths import atomic_path, check_output

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 16  # samples per block of an array on its way through the codec
_FINGERPRINT_SIZE = 8  # bytes of it in a file: every byte counts, and 2⁻⁶⁴ is small
ENTROPY_FILE = "entropy.safetensors"  # beside the weights of a checkpoint
_RESAMPLER_FRAMES = 16  # that a resampler may look at around a sample, with room to spare
_OFFICIAL_MAGIC = b"\x93NUMPY"

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class MelOptions:
    """The analysis spectrogram of a codec; sizes in samples, `win_length` as long as `n_fft` by
    default.
    """

    n_mels: int = 80
    n_fft: int = 2048
    hop_length: int = 512
    win_length: int | None = None


class Codes(np.ndarray):
    """Codes, int16 of shape (codebooks, frames) for mono, else (channels, codebooks, frames), that
    can be decoded.

    Beside the codes it carries `info`, what is known of the signal, and `num_samples`, its exact
    length. A view of some of the frames or codebooks has neither, and decodes to all samples of its
    frames.
    """

    info: StreamInfo | None
    num_samples: int | None

    def __new__(
        cls, codes: np.ndarray, info: StreamInfo | None = None, num_samples: int | None = None
    ):
        """View codes (…, K, T) as latents."""
        latents = np.asarray(codes, dtype=np.int16).view(cls)
        latents.info, latents.num_samples = info, num_samples
        return latents

    def __array_finalize__(self, source):
        same = source is not None and self.shape == source.shape
        self.info = getattr(source, "info", None) if same else None
        self.num_samples = getattr(source, "num_samples", None) if same else None

    def __reduce__(self):
        return Codes, (np.asarray(self), self.info, self.num_samples)


class Codec:
    """A DAC model with everything around it. `load_codec` makes one; one model can serve many.

    Args: model: a `DacModel`, whose dtype and device are where the codec computes; or an exported
        one, an `OnnxModel`. sample_rate: rate of audio that comes and goes without one being named,
        Hz; the model's by default. model_fingerprint: as of `checkpoints.fingerprint`, if the model
        was cast to fewer bits since it was loaded. mel: the analysis spectrogram. entropy_models:
        for smaller files, see `codecplus.entropy`; those of other checkpoints are left alone. The
        first
            is written with, all are read with. By default those that an embedded checkpoint brings
            along.
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
        self.network = _network(model)
        self.sample_rate = model.config.sampling_rate if sample_rate is None else sample_rate
        self.fingerprint = model_fingerprint or self.network.fingerprint
        self.mel = mel or MelOptions()
        if entropy_models is None:
            name = find_embedded(self.fingerprint)
            entropy_models = [] if name is None else read_entropy_models(EMBEDDED_FOLDER / name)
        ours = [model for model in entropy_models if model.fingerprint == self.fingerprint]
        self.entropy_models = {model.identity: model for model in ours}

    @property
    def config(self) -> Geometry:
        """Rates and sizes of the model."""
        return self.network.config

    @property
    def model_sample_rate(self) -> int:
        """Samples per second the model works at; other audio is resampled to it and back."""
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
    def bitrates(self) -> list[float]:
        """Rates that one channel can have, in kbit/s: one for each number of codebooks, before
        entropy coding.
        """
        config = self.config
        return [
            n * config.frame_rate * config.bits_per_codebook / 1000
            for n in range(1, config.n_codebooks + 1)
        ]

    @property
    def latency(self) -> float:
        """Algorithmic latency of encoder plus decoder in seconds: from a sample in to the first
        sample it touches.
        """
        return self.network.latency_samples / self.model_sample_rate

    def compile(self) -> "Codec":
        """Compile what gets faster by it on this device; see `DacModel.compile_layers`. Returns the
        codec.

        Results are the same but for rounding. Raises InputError if this cannot be done here.
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
        audio,
        sample_rate: int | None = None,
        bitrate: float | None = None,
        n_quantizers: int | None = None,
        *,
        loudness: float | None = None,
    ):
        """Encode audio to integer codes.

        Args: audio: (samples,) for mono or (channels, samples); an array, list or tensor, float
            within ±1 or integer. A
                list of arrays is a batch, and gives a list.
            sample_rate: of the audio, Hz; `codec.sample_rate` by default.
            bitrate: kbit/s for all channels together; the nearest number of codebooks is used, all
            by default.
            n_quantizers: codebooks to use, instead of a bitrate.
            loudness: LUFS to bring the audio to before encoding (ITU-R BS.1770-4); undone in
            decoding.

        Returns: `Codes`: int16 of shape (codebooks, frames) for mono, else (channels, codebooks,
            frames).

        Raises:
            InputError: for audio, a rate or a number of codebooks that cannot be used.
        """
        if isinstance(audio, Codes):
            raise InputError("expected audio, but these are codes already; decode them first")
        if (
            isinstance(audio, (list, tuple))
            and audio
            and np.ndim(audio[0]) > 0
            and not _is_channels(audio)
        ):
            return [
                self.encode(item, sample_rate, bitrate, n_quantizers, loudness=loudness)
                for item in audio
            ]
        audio = as_audio(audio)
        channels = np.atleast_2d(audio)
        rate = self._rate(sample_rate)
        info = self._info(rate, len(channels), bitrate, n_quantizers)
        if loudness is not None:
            gain = _gain(
                integrated_loudness(channels, rate), loudness, float(np.abs(channels).max())
            )
            info = replace(info, gain=gain)
        codes = np.concatenate(list(self._encode_blocks(_blocks(channels), info)), axis=-1)
        return Codes(codes if audio.ndim == 2 else codes[0], info, channels.shape[-1])

    def decode(self, latents) -> np.ndarray:
        """Decode codes to float32 audio, (samples,) or (channels, samples), as it was when it was
        encoded.

        Args: latents: what `encode` gave; or plain integer codes (codebooks, frames) or (channels,
            codebooks, frames),
                which decode to `hop_length` samples per frame at the model's rate, resampled to
                `codec.sample_rate`. A list of `Codes` is a batch, and gives a list.

        Raises:
            InputError: for another shape, or codes that the codebooks do not have.
            ModelMismatchError: for `Codes` of another model.
        """
        if isinstance(latents, (list, tuple)) and latents and isinstance(latents[0], np.ndarray):
            return [self.decode(item) for item in latents]  # pyright: ignore[reportReturnType]
        codes = self._check_codes(latents)
        info = getattr(latents, "info", None)
        num_samples = getattr(latents, "num_samples", None)
        if info is None:
            info = self._info(self.sample_rate, len(codes), None, codes.shape[1])
        self._check_model(info)
        if num_samples is None:
            num_samples = self._samples(codes.shape[-1], info)
        audio = _gather(self._decode_blocks([codes], info, num_samples), len(codes), num_samples)
        return audio[0] if np.ndim(latents) == 2 else audio

    # ---- rows of datasets

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
        """Encode a batch of rows, for `datasets`: `dataset.map(codec.encode_batch, batched=True)`.

        Args: batch: columns; cells of the audio column are as `datasets` gives them, decoded or
            `Audio(decode=False)`,
                encoded bytes, paths, or arrays at `codec.sample_rate`.
            bitrate, n_quantizers: as for `encode`.
            channels: channels of every clip; 1 is the mean of those it has.
            batch_seconds: as for `encode_clips`.

        Returns: New columns: `codes`, uint16 of shape (codebooks, frames), with more than one
            channel (channels, codebooks, frames); `num_frames`; `num_samples` and `sample_rate` of
            the clip as it came; and `error`. A clip that fails has null in all but the last, which
            says why, and null there otherwise.

        Raises: InputError: for a column that is not there, or a rate or a number of codebooks that
            cannot be used.
        """
        if audio_column not in batch:
            raise InputError(
                f"there is no column {audio_column!r} among {', '.join(batch)}; name it with audio_column"
            )
        count = self._info(self.model_sample_rate, channels, bitrate, n_quantizers).num_codebooks
        found: list[DecodedAudio | str] = []
        for cell in batch[audio_column]:
            try:
                found.append(
                    read_cell(cell, self.model_sample_rate, channels, default_rate=self.sample_rate)
                )
            except (CodecPlusError, OSError) as error:
                found.append(str(error))
        clips = [
            item.audio
            for item in found
            if isinstance(item, DecodedAudio) and item.audio is not None
        ]
        coded = iter(self.encode_clips(clips, count, batch_seconds=batch_seconds))
        rows = []
        for item in found:
            if isinstance(item, str):
                rows.append((None, None, None, None, item))
                continue
            codes = next(coded).astype(np.uint16)
            codes = codes[0] if channels == 1 else codes
            rows.append((codes, codes.shape[-1], item.num_samples, item.sample_rate, None))
        names = ("codes", "num_frames", "num_samples", "sample_rate", "error")
        return {name: [row[i] for row in rows] for i, name in enumerate(names)}

    def encode_clips(
        self,
        clips: Sequence[np.ndarray],
        n_quantizers: int | None = None,
        *,
        batch_seconds: float | None = None,
    ) -> list[np.ndarray]:
        """Codes, int16 (channels, codebooks, frames) each, of clips, float32 (channels, samples),
        at the model's rate.

        Each clip gets the codes that `encode` gives it. On a CPU they are coded one by one, to the
        same bits. Elsewhere they are padded into batches of up to `batch_seconds` of audio, 100 by
        default, where float sums are in another order, so that a code may differ now and then where
        two entries are equally near; 0 codes one by one there too.
        """
        count = self._info(self.model_sample_rate, 1, None, n_quantizers).num_codebooks
        for i, clip in enumerate(clips):
            if np.ndim(clip) != 2:
                raise InputError(
                    f"expected clips of shape (channels, samples), got {np.shape(clip)} for clip {i}"
                )
        if hasattr(self.network, "encode_clips"):
            return self.network.encode_clips(clips, count, batch_seconds)  # pyright: ignore[reportAttributeAccessIssue]
        return [
            np.concatenate(list(self.network.encode_blocks(_blocks(clip), count)), axis=-1)
            for clip in clips
        ]

    # ---- files

    def compress(
        self,
        source,
        output: PathLike | None = None,
        *,
        sample_rate: int | None = None,
        bitrate: float | None = None,
        n_quantizers: int | None = None,
        loudness: float | None = None,
        rate_control: str = "cbr",
        quality: float | None = None,
        effort: int = 0,
        entropy_coding: bool = True,
        overwrite: bool = True,
        progress: Callable[[float], Any] | None = None,
    ) -> Any:
        """Compress audio to the `.dacp` format, in memory that does not grow with the length of a
        file.

        Args: source: the path of an audio file; or audio, as for `encode`. A list of paths is a
            batch: `output` is then
                the folder for the files.
            output: path of the file to write; bytes are returned if it is not given.
            sample_rate: of audio given as an array, Hz. A file knows its own.
            bitrate, n_quantizers, loudness: as for `encode`. Entropy coding makes the file smaller
            than that.
            rate_control: `"cbr"`, the same codebooks for every frame; `"vbr"`, the fewest of them
                that sound alike by `quality`; `"abr"`, as many as make the file have `bitrate`,
                within 2 %, better where it matters.
            quality: from 0 to 10, for `"vbr"`: 10 is what all codebooks give; 8 by default.
            effort: 0 to 3, how long to listen to what the decoder makes of the codes and look for
                better ones: 3, 10 or 30 times, each of which takes three times as long as decoding
                (docs/bitrate.md).
            entropy_coding: False packs codes as they are.
            overwrite: whether an existing `output` may be replaced.
            progress: called with the seconds of audio just read from a file, again and again.

        Returns:
            The path written to, or the bytes; a list of them for a list.

        Raises: InputError, FileFormatError: for audio that cannot be read or used, and options that
            do not fit together. OutputExistsError: if `output` exists and may not be overwritten.
        """
        options: dict[str, Any] = {
            "bitrate": bitrate,
            "n_quantizers": n_quantizers,
            "loudness": loudness,
            "rate_control": rate_control,
            "quality": quality,
            "effort": effort,
            "entropy_coding": entropy_coding,
        }
        if (
            isinstance(source, (list, tuple))
            and source
            and isinstance(source[0], (str, os.PathLike))
        ):
            outputs = [
                None if output is None else Path(output) / f"{Path(item).stem}.dacp"
                for item in source
            ]
            options |= {"overwrite": overwrite, "progress": progress}
            return [self.compress(*pair, **options) for pair in zip(source, outputs, strict=True)]
        if output is None:
            file = io.BytesIO()
            self._compress(source, sample_rate, file, progress, **options)
            return file.getvalue()
        check_output(output, overwrite)
        with atomic_path(output) as temporary, open(temporary, "wb") as file:
            self._compress(source, sample_rate, file, progress, **options)
        return Path(output)

    def _compress(
        self,
        source,
        sample_rate,
        file,
        progress,
        *,
        bitrate,
        n_quantizers,
        loudness,
        entropy_coding,
        **control,
    ) -> None:
        _check_control(bitrate, entropy_coding, **control)
        target = bitrate if control["rate_control"] == "abr" else None
        with self._opened(source, sample_rate, loudness) as (rate, channels, gain, blocks):
            info = self._info(rate, channels, None if target else bitrate, n_quantizers)
            info, entropy = self._coding(replace(info, gain=gain), entropy_coding)
            counter = _Counter(blocks, rate, progress)
            samples = self._at_model_rate(counter, info)
            if control["rate_control"] == "cbr":
                writer = Writer(file, info, entropy)
                for codes in self._codes(samples, info, control["effort"], entropy):
                    writer.write(codes)
                writer.close(num_samples=counter.samples)
            else:
                self._compress_variably(file, samples, counter, info, entropy, target, control)

    def _compress_variably(self, file, samples, counter, info, entropy, target, control) -> None:
        """As many codebooks for each frame as it needs, or as make the file have `target` kbit/s."""
        from codecplus.encoding.rate_control import (
            audible_errors,
            meet_target,
            tolerance_of,
            truncated,
        )

        def coded(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            return self._codes(blocks, info, control["effort"], entropy)

        pieces = audible_errors(self._torch_model("rate_control"), samples, coded)
        if target is None:
            tolerance = tolerance_of(8.0 if control["quality"] is None else control["quality"])
            writer = Writer(file, info, entropy)
            for codes, errors in pieces:
                writer.write(truncated(codes, errors, tolerance))
            writer.close(num_samples=counter.samples)
            return
        all_codes, all_errors = (
            np.concatenate(part, axis=-1) for part in zip(*pieces, strict=True)
        )

        def written(tolerance: float) -> bytes:
            kept = truncated(all_codes, all_errors, tolerance)
            return pack(kept, info, num_samples=counter.samples, entropy=entropy)

        wanted = target * 125 * counter.samples / info.original_sample_rate  # bytes
        data = written(meet_target(lambda tolerance: len(written(tolerance)), wanted))
        if len(data) > max(1.02 * wanted, wanted + 64):
            least = len(data) * target / wanted
            raise InputError(
                f"this audio takes {least:.2f} kbit/s at least with this model, got bitrate={target}"
            )
        file.write(data)

    @contextmanager
    def _opened(self, source, sample_rate, loudness):
        """Rate, channels, gain, and blocks (C, n) of audio that is to be compressed."""
        if isinstance(source, (str, os.PathLike)):
            if sample_rate is not None:
                raise InputError(
                    "sample_rate is for audio given as an array; a file knows its own rate, leave it out"
                )
            gain = 1.0 if loudness is None else _file_gain(source, loudness)
            with AudioFileReader(source) as reader:
                yield reader.sample_rate, reader.channels, gain, reader.blocks()
            return
        if isinstance(source, Codes):
            raise InputError("expected audio, but these are codes already; decode them first")
        if (
            isinstance(source, (list, tuple))
            and source
            and np.ndim(source[0]) > 0
            and not _is_channels(source)
        ):
            raise InputError(
                "expected one clip, got a list of them; compress each, or give a list of paths"
            )
        channels, rate, gain = np.atleast_2d(as_audio(source)), self._rate(sample_rate), 1.0
        if loudness is not None:
            gain = _gain(
                integrated_loudness(channels, rate), loudness, float(np.abs(channels).max())
            )
        yield rate, len(channels), gain, _blocks(channels)

    def _coding(
        self, info: StreamInfo, entropy_coding: bool
    ) -> tuple[StreamInfo, EntropyModel | None]:
        """How a stream is written: its info, and the entropy model if there is one."""
        if not entropy_coding or not can_code(
            info.channels, info.num_codebooks, info.codebook_size
        ):
            return info, None
        fitting = (
            m
            for m in self.entropy_models.values()
            if m.fits(info.num_codebooks, info.codebook_size)
        )
        entropy = next(fitting, None)
        return replace(info, entropy_model=entropy.identity if entropy else b""), entropy

    def _codes(
        self, samples, info: StreamInfo, effort: int, entropy: EntropyModel | None
    ) -> Iterator[np.ndarray]:
        """Codes (C, K, T) in pieces of audio (C, n) in blocks at the model's rate."""
        if effort == 0:
            return self.network.encode_blocks(samples, info.num_codebooks)
        from codecplus.encoding import refinement

        model = self._torch_model("effort")
        return refinement.encode_with_effort(
            model, samples, info.num_codebooks, refinement.EFFORTS[effort], entropy
        )

    def _torch_model(self, option: str) -> Any:
        if not hasattr(self.model, "quantizer"):
            raise InputError(
                f"{option} needs the model in torch, got an exported one; load the checkpoint itself"
            )
        return self.model

    def decompress(
        self,
        source,
        output: PathLike | None = None,
        *,
        start: float = 0.0,
        duration: float | None = None,
        recover: bool = False,
        overwrite: bool = True,
        progress: Callable[[float], Any] | None = None,
    ) -> Any:
        """Decompress a `.dacp` file, or a `.dac` of the original implementation, which is read
        without running it.

        Args: source: bytes, or the path of a file. A list of paths is a batch: `output` is then the
            folder for the files. output: audio file to write, its format chosen by the suffix;
            audio is returned if it is not given. start, duration: seconds of a `.dacp` file to
            decode, by default all; only the blocks needed are read. recover: decode what a damaged
            `.dacp` file still holds. What is lost is bridged by the sound before it,
                faded out, and a warning tells where that is. Without it, any damage is an error.
            overwrite: whether an existing `output` may be replaced.
            progress: called with the seconds of audio just decoded, again and again.

        Returns: float32 audio, (samples,) for mono, else (channels, samples), at the rate it had;
            or the path written to.

        Raises: FileFormatError: for a file that is damaged or of another format.
            ModelMismatchError: for a file that another model made, or one that needs an entropy
            model not at hand. InputError: for a part that the file does not have.
        """
        if isinstance(source, (list, tuple)):
            outputs = [
                None if output is None else Path(output) / f"{Path(item).stem}.wav"
                for item in source
            ]
            options: dict[str, Any] = {"start": start, "duration": duration, "recover": recover}
            options |= {"overwrite": overwrite, "progress": progress}
            return [self.decompress(*pair, **options) for pair in zip(source, outputs, strict=True)]
        with open_coded(source) as file:
            header, length, blocks = self._open_stream(file, start, duration, recover)
            blocks = _Counter(blocks, header.original_sample_rate, progress)
            if output is None:
                audio = _gather(blocks, header.channels, length)
                return audio[0] if header.channels == 1 else audio
            with AudioFileWriter(
                output, header.original_sample_rate, header.channels, overwrite=overwrite
            ) as writer:
                for block in blocks:
                    writer.write(block)
        return Path(output)

    def _open_stream(
        self, file, start: float, duration: float | None, recover: bool
    ) -> tuple[Header, int, Iterator[np.ndarray]]:
        """The header of an open coded file, the samples of the part asked for, and its audio in
        blocks (C, S).
        """
        if is_official(file):
            if start or duration is not None or recover:
                raise InputError(
                    "start, duration and recover are for .dacp files, got a .dac; decode all of it"
                )
            header, blocks = self._open_official(read_dac_file(file.read()))
            return header, header.num_samples, blocks
        reader = Reader(file, self.entropy_models, recover=recover)
        header = reader.header
        self._check_model(header)
        first, length = _part(header, start, duration)
        # Frames around the part, so that neither network nor resampler sees where it was cut out.
        per_frame = header.hop_length * header.original_sample_rate / header.sample_rate  # samples
        margin = self.network.decoder_context + _RESAMPLER_FRAMES
        low = max(0, int(first / per_frame) - margin)
        high = min(header.num_frames, int((first + length) / per_frame) + 1 + margin)
        # Resampled audio can only be cut where the grids of both rates meet.
        grid = header.sample_rate // math.gcd(header.sample_rate, header.original_sample_rate)
        low -= low % (grid // math.gcd(grid, header.hop_length))
        skipped = low * header.hop_length * header.original_sample_rate // header.sample_rate
        blocks = reader.blocks(low, high)
        if reader.lost:
            _warn_of_loss(reader)
            blocks = _bridged(blocks)
        until = header.num_samples if high == header.num_frames else first + length
        audio = self._decode_blocks(blocks, header, until - skipped)
        if reader.lost:
            audio = _faded(audio, reader.lost, low, per_frame)
        return header, length, _cut(_dropped(audio, first - skipped), length)

    # ---- live streams

    def encoder_stream(
        self,
        bitrate: float | None = None,
        n_quantizers: int | None = None,
        *,
        batch: int | None = None,
    ) -> EncoderStream:
        """A live encoder: `push(samples)` gives the codes that are ready, `flush()` those left.

        Samples are floats at the model's rate: a resampler would add its own latency. Streams are
        independent of each other and share the weights; `batch` rows step together. Arguments and
        errors otherwise as of `encode`.
        """
        info = self._info(self.model_sample_rate, 1, bitrate, n_quantizers)
        return self.network.encoder_stream(info.num_codebooks, batch)

    def decoder_stream(self, *, batch: int | None = None) -> DecoderStream:
        """A live decoder: `push(codes)` gives the samples that are ready, at the model's rate,
        `flush()` those left.
        """
        return self.network.decoder_stream(batch)

    # ---- the spectrogram that training, evaluation and the demo share

    def mel_spectrogram(self, audio, sample_rate: int | None = None) -> np.ndarray:
        """Magnitudes on the mel scale: audio (…, samples) to float32 (…, n_mels, frames), by the
        codec's `mel` options.

        The audio is at `sample_rate`, `codec.sample_rate` by default.
        """
        import torch

        options, rate = self.mel, self._rate(sample_rate)
        mel = mel_spectrogram(
            torch.from_numpy(as_audio(audio)),
            rate,
            n_mels=options.n_mels,
            n_fft=options.n_fft,
            hop_length=options.hop_length,
            win_length=options.win_length,
        )
        return mel.numpy()

    # ---- parts

    def _rate(self, sample_rate: int | None) -> int:
        rate = self.sample_rate if sample_rate is None else sample_rate
        if not isinstance(rate, (int, np.integer)) or rate < 1:
            raise InputError(f"expected a sample rate in Hz as a positive integer, got {rate!r}")
        return int(rate)

    def n_quantizers_for(self, bitrate: float, channels: int = 1) -> int:
        """The number of codebooks whose rate is nearest to `bitrate`, in kbit/s for all channels
        together.

        Raises InputError if the rate is out of reach, and says which rates exist.
        """
        step = self.bitrates[0] * channels
        rates = [rate * channels for rate in self.bitrates]
        if not step / 2 <= bitrate <= rates[-1] + step / 2:
            listed = ", ".join(f"{rate:.2f}" for rate in rates)
            raise InputError(
                f"this model has no {bitrate} kbit/s for {channels} channel{'s' * (channels > 1)}; choose from {listed}"
            )
        return min(len(rates), max(1, round(bitrate / step)))

    def _info(
        self, rate: int, channels: int, bitrate: float | None, n_quantizers: int | None
    ) -> StreamInfo:
        config = self.config
        if bitrate is not None and n_quantizers is not None:
            raise InputError("expected bitrate or n_quantizers, got both; leave one out")
        if bitrate is not None:
            n_quantizers = self.n_quantizers_for(bitrate, channels)
        if n_quantizers is None:
            n_quantizers = config.n_codebooks
        if not 1 <= n_quantizers <= config.n_codebooks:
            raise InputError(
                f"this model has 1 to {config.n_codebooks} codebooks, got n_quantizers={n_quantizers}"
            )
        return StreamInfo(
            fingerprint=self.fingerprint[:_FINGERPRINT_SIZE],
            sample_rate=config.sampling_rate,
            original_sample_rate=rate,
            channels=channels,
            num_codebooks=n_quantizers,
            codebook_size=config.codebook_size,
            hop_length=config.hop_length,
        )

    def _encode_blocks(
        self, blocks: Iterable[np.ndarray], info: StreamInfo
    ) -> Iterator[np.ndarray]:
        return self.network.encode_blocks(self._at_model_rate(blocks, info), info.num_codebooks)

    def _at_model_rate(
        self, blocks: Iterable[np.ndarray], info: StreamInfo
    ) -> Iterator[np.ndarray]:
        resampler = Resampler(info.original_sample_rate, info.sample_rate, info.channels)

        def resampled():
            for block in blocks:
                yield resampler.push(block * np.float32(info.gain) if info.gain != 1.0 else block)
            yield resampler.flush()

        return (block for block in resampled() if block.shape[-1])

    def _decode_blocks(
        self, blocks: Iterable[np.ndarray], info: StreamInfo, num_samples: int
    ) -> Iterator[np.ndarray]:
        """Audio (C, S) in blocks, `num_samples` in all at the original rate, of codes (C, K, T) in
        blocks.
        """
        length = resampled_length(num_samples, info.original_sample_rate, info.sample_rate)
        audio = _cut(self.network.decode_blocks(blocks), length)
        if info.gain != 1.0:
            audio = (block / np.float32(info.gain) for block in audio)
        return _cut(
            _resampled(audio, info.sample_rate, info.original_sample_rate, info.channels),
            num_samples,
        )

    def _samples(self, frames: int, info: StreamInfo) -> int:
        return resampled_length(
            frames * info.hop_length, info.sample_rate, info.original_sample_rate
        )

    def _check_codes(self, latents) -> np.ndarray:
        """Codes as (C, K, T), checked against the model's codebooks."""
        codes = (
            latents.detach().cpu().numpy() if hasattr(latents, "detach") else np.asarray(latents)
        )
        config = self.config
        if codes.ndim not in (2, 3) or codes.dtype.kind not in "iu" or 0 in codes.shape:
            raise InputError(
                f"expected integer codes of shape (codebooks, frames) or (channels, codebooks, frames), got "
                f"{codes.dtype} of shape {codes.shape}"
            )
        codes = codes.reshape(-1, *codes.shape[-2:])
        if codes.shape[1] > config.n_codebooks:
            raise InputError(
                f"expected codes of 1 to {config.n_codebooks} codebooks, got {codes.shape[1]}"
            )
        if codes.min() < 0 or codes.max() >= config.codebook_size:
            raise InputError(
                f"expected codes from 0 to {config.codebook_size - 1}, got {codes.min()} to {codes.max()}"
            )
        return codes

    def _check_model(self, info: StreamInfo) -> None:
        if self.fingerprint.startswith(info.fingerprint):
            config = self.config
            theirs = (info.sample_rate, info.hop_length, info.codebook_size)
            ours = (config.sampling_rate, config.hop_length, config.codebook_size)
            if theirs != ours or info.num_codebooks > config.n_codebooks:
                raise FileFormatError(
                    "the header names this model, but describes another; the file is damaged"
                )
            return
        maker = find_embedded(info.fingerprint)
        advice = f"load_codec({maker!r}) decodes them" if maker else "load the model that made them"
        raise ModelMismatchError(
            f"expected codes of this model ({self.fingerprint.hex()}), got codes of {maker or 'another one'} "
            f"({info.fingerprint.hex()}); {advice}"
        )

    def _open_official(self, file: DacFile) -> tuple[Header, Iterator[np.ndarray]]:
        """A `.dac` of the original implementation: it names no model, so only what it claims can be
        checked.
        """
        codes, config = self._check_codes(file.codes), self.config
        if file.padding:
            audio = np.concatenate(list(self.network.decode_blocks([codes])), axis=-1)
        else:
            audio = self.network.decode_unpadded(codes, file.chunk_length)
        info = self._info(file.sample_rate, len(codes), None, codes.shape[1])
        length = resampled_length(file.original_length, file.sample_rate, config.sampling_rate)
        if length > audio.shape[-1] + config.hop_length:
            raise FileFormatError(
                f"the file claims {file.original_length} samples, its codes hold {audio.shape[-1]}; it is damaged"
            )
        # The original brings every channel back to the loudness measured before encoding, each by
        # its own gain.
        for channel in audio:
            loudness = max(integrated_loudness(channel, config.sampling_rate), -70.0)
            channel *= np.float32(10 ** ((file.input_db - loudness) / 20))
        blocks = _resampled(_blocks(audio), config.sampling_rate, file.sample_rate, len(codes))
        header = Header(
            **{name: getattr(info, name) for name in info.__dataclass_fields__},
            num_samples=file.original_length,
            num_frames=max(codes.shape[-1], -(-length // config.hop_length)),
        )
        return header, _cut(blocks, file.original_length)


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
) -> Codec:
    """Load a codec.

    Args: name: `"dac"`, the embedded checkpoint for that sample rate: `dac-16khz-live` at 16 kHz,
        else `dac-44khz-small`;
            or an embedded name, a Hub id (`"descript/dac_44khz"`), a folder, a `.safetensors` or an
            official `.pth`; or an export, `"model.onnx"` or its folder, which runs on onnxruntime
            without torch.
        sample_rate: rate in Hz of audio that comes and goes without one being named; the model's by
            default. Audio of any other rate than the model's is resampled to it and back.
        n_mels, n_fft, hop_length, win_length: the analysis spectrogram,
        `codec.mel_spectrogram(audio)`.
        device: where to compute, `"cpu"` by default.
        dtype: what to compute in, `torch.bfloat16` or `"bfloat16"` for instance; fp32 by default,
        an export's own.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        CheckpointError: if there is no such checkpoint, or it cannot be read.
        InputError: for an impossible rate, device or dtype.
    """
    if str(name) == "dac":
        name = "dac-16khz-live" if sample_rate == 16000 else "dac-44khz-small"
    if sample_rate is not None and (
        not isinstance(sample_rate, (int, np.integer)) or sample_rate < 1
    ):
        raise InputError(f"expected a sample rate in Hz as a positive integer, got {sample_rate!r}")
    mel = MelOptions(n_mels=n_mels, n_fft=n_fft, hop_length=hop_length, win_length=win_length)
    sample_rate = None if sample_rate is None else int(sample_rate)
    export = find_export(name)
    if export is not None:
        if dtype is not None or revision is not None:
            raise InputError(
                "dtype and revision are for models in torch; an export has its precision, leave them out"
            )
        entropy_models = read_entropy_models(export[0].parent) or None
        return Codec(
            OnnxModel(*export, device=device), sample_rate, mel=mel, entropy_models=entropy_models
        )
    from codecplus.checkpoints import fingerprint, load_model

    model = load_model(name, revision=revision)
    place = Path(model.config._name_or_path or name)  # of a repository, its folder in the cache
    entropy_models = read_entropy_models(place if place.is_dir() else place.parent) or None
    identity = fingerprint(model)
    model.to(device=_device(device), dtype=_dtype(dtype))  # pyright: ignore[reportCallIssue]
    return Codec(
        model, sample_rate, model_fingerprint=identity, mel=mel, entropy_models=entropy_models
    )


def _network(model: Any) -> Network:
    """A model that is a network already, or one in torch made one."""
    if hasattr(model, "encode_blocks"):
        return model
    from codecplus.inference.torch_network import TorchNetwork

    return TorchNetwork(model)


def _device(device: "str | torch.device | None") -> "torch.device":
    import torch

    try:
        device = torch.device("cpu" if device is None else device)
        torch.empty(0, device=device)
    except Exception as error:
        raise InputError(
            f"there is no device {device!s} here; expected 'cpu', 'cuda' or 'mps', if there is one"
        ) from error
    return device


def _dtype(dtype: "str | torch.dtype | None") -> "torch.dtype":
    import torch

    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    found = torch.float32 if dtype is None else names.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise InputError(f"expected dtype {', '.join(names)}, got {dtype!r}")
    return found


def open_coded(source):
    """Open coded bytes, or a file of that path, for reading.

    Raises InputError if there is no such file.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(
            f"expected the path or the bytes of a .dacp file, got {type(source).__name__}"
        )
    try:
        return open(source, "rb")
    except OSError as error:
        raise InputError(f"cannot open {source}: {error.strerror}") from error


def is_official(file) -> bool:
    """Whether an open file starts like a `.dac` of the original implementation; the position stays
    at 0.
    """
    magic = file.read(len(_OFFICIAL_MAGIC))
    file.seek(0)
    return magic == _OFFICIAL_MAGIC


def read_entropy_models(folder: Path) -> list[EntropyModel]:
    """The entropy models in a checkpoint's folder: `entropy.safetensors`, then others of names
    `entropy*.safetensors`.

    Raises FileFormatError for one that is damaged.
    """
    paths = sorted(
        folder.glob("entropy*.safetensors"), key=lambda path: (path.name != ENTROPY_FILE, path.name)
    )
    return [EntropyModel.from_bytes(path.read_bytes()) for path in paths]


def find_embedded(part: bytes) -> str | None:
    """The name of the embedded checkpoint whose fingerprint starts so, if there is one."""
    return next(
        (name for known, name in embedded_fingerprints().items() if known.startswith(part)), None
    )


def _is_channels(audio: Sequence) -> bool:
    """Whether a list is one clip, its channels as lists of numbers, rather than a batch of clips."""
    return all(isinstance(item, (list, tuple)) for item in audio)


def _blocks(audio: np.ndarray) -> Iterator[np.ndarray]:
    return (audio[:, start : start + _BLOCK] for start in range(0, audio.shape[-1], _BLOCK))


def _resampled(
    blocks: Iterable[np.ndarray], from_rate: int, to_rate: int, channels: int
) -> Iterator[np.ndarray]:
    resampler = Resampler(from_rate, to_rate, channels)
    for block in blocks:
        yield resampler.push(block)
    yield resampler.flush()


def _gather(blocks: Iterable[np.ndarray], channels: int, length: int) -> np.ndarray:
    """Blocks (C, n) of so many samples in all as one array, with memory for no more than that."""
    audio, done = np.empty((channels, length), np.float32), 0
    for block in blocks:
        audio[:, done : done + block.shape[-1]] = block
        done += block.shape[-1]
    return audio


def _cut(blocks: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """The first `length` samples of blocks (C, n), made up with zeros if there are fewer."""
    left, channels = length, 1
    for block in blocks:
        channels = len(block)
        if left <= 0:
            break
        yield block[:, :left]
        left -= block.shape[-1]
    while left > 0:
        yield np.zeros((channels, min(left, _BLOCK)), np.float32)
        left -= _BLOCK


def _check_control(bitrate, entropy_coding: bool, *, rate_control: str, quality, effort) -> None:
    if rate_control not in ("cbr", "abr", "vbr"):
        raise InputError(f"expected rate_control 'cbr', 'abr' or 'vbr', got {rate_control!r}")
    if effort not in (0, 1, 2, 3):
        raise InputError(f"expected an effort from 0 to 3, got {effort!r}")
    if quality is not None and (rate_control != "vbr" or not 0 <= quality <= 10):
        raise InputError(
            f"expected a quality from 0 to 10, with rate_control='vbr' alone, got {quality!r}"
        )
    if rate_control == "abr" and (bitrate is None or not bitrate > 0):
        raise InputError(f"rate_control='abr' needs a bitrate in kbit/s, got {bitrate!r}")
    if rate_control == "vbr" and bitrate is not None:
        raise InputError(
            "rate_control='vbr' goes by quality, got a bitrate; leave it out, or use 'abr'"
        )
    if rate_control != "cbr" and not entropy_coding:
        raise InputError(
            f"rate_control={rate_control!r} needs entropy coding; leave entropy_coding alone"
        )


def _part(header: Header, start: float, duration: float | None) -> tuple[int, int]:
    """First sample and number of samples of a part given in seconds."""
    rate, total = header.original_sample_rate, header.num_samples
    first = round(start * rate)
    if not 0 <= first <= total or (duration is not None and duration < 0):
        raise InputError(
            f"expected a part within the {total / rate:.3f} s of the file, got start={start}, duration={duration}"
        )
    return first, total - first if duration is None else min(total - first, round(duration * rate))


def _dropped(blocks: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Blocks (C, n) without their first samples."""
    for block in blocks:
        yield block[:, count:]
        count = max(0, count - block.shape[-1])


def _warn_of_loss(reader: Reader) -> None:
    header = reader.header
    spans = [
        f"{a * header.hop_length / header.sample_rate:.2f}" for span in reader.lost for a in span
    ]
    told = ", ".join(
        f"{first} to {last} s" for first, last in zip(spans[::2], spans[1::2], strict=True)
    )
    warnings.warn(f"the file is damaged; lost and concealed: {told}", stacklevel=4)


def _bridged(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Blocks of codes (C, K, T) in which lost ones, all -1, repeat the frame before."""
    last = None
    for block in blocks:
        if (block[:, 0] >= 0).all():
            last = block[..., -1:]
            yield block
        else:
            yield (
                np.zeros_like(block) if last is None else np.repeat(last, block.shape[-1], axis=-1)
            )


def _faded(
    blocks: Iterable[np.ndarray], lost: Sequence[tuple[int, int]], first: int, per_frame: float
) -> Iterator[np.ndarray]:
    """Audio (C, n) that begins with frame `first`: faded out within 4 lost frames, and in again
    within one good one.
    """
    position = 0
    for block in blocks:
        when = (position + np.arange(block.shape[-1])) / per_frame + first  # in frames
        gain = np.ones(len(when))
        for low, high in lost:
            gain *= (
                np.interp(when, [low, low + 4, high, high + 1], [1, 0, 0, 1])
                if high - low > 4
                else np.where((when >= low) & (when < high), 1 - (when - low) / 4, 1)
            )
        position += block.shape[-1]
        yield block * gain.astype(np.float32)


def _gain(measured: float, wanted: float, peak: float) -> float:
    """The factor that brings audio from one loudness to another (LUFS) without taking its peak over
    full scale.
    """
    if not np.isfinite(measured) or peak == 0:
        return 1.0
    return min(
        10 ** ((wanted - measured) / 20), max(1.0, 1 / peak) if wanted > measured else np.inf
    )


def _file_gain(path: PathLike, loudness: float) -> float:
    with AudioFileReader(path) as reader:
        meter, peak = LoudnessMeter(reader.sample_rate, reader.channels), 0.0
        for block in reader.blocks():
            meter.push(block)
            peak = max(peak, float(np.abs(block).max()))
    return _gain(meter.loudness(), loudness, peak)


class _Counter:
    """Blocks (C, n) as they pass, with the number of samples so far; tells `progress` the seconds
    of each.
    """

    def __init__(
        self, blocks: Iterable[np.ndarray], rate: int, progress: Callable[[float], Any] | None
    ):
        self.blocks, self.rate, self.progress, self.samples = blocks, rate, progress, 0

    def __iter__(self):
        for block in self.blocks:
            self.samples += block.shape[-1]
            if self.progress is not None:
                self.progress(block.shape[-1] / self.rate)
            yield block


__all__ = ["Codec", "Codes", "MelOptions", "embedded_names", "load_codec"]
