"""Facts about a signal before its first frame: rates, sizes, and the model that codes it."""

from collections.abc import Iterable
from dataclasses import replace
from numbers import Integral, Real

from codecplus.bitstream import EntropyModel, StreamInfo, can_code
from codecplus.checkpoints.identity import find_embedded
from codecplus.errors import FileFormatError, InputError, ModelMismatchError
from codecplus.inference.network import Geometry

FINGERPRINT_SIZE = 8  # bytes of it in a file: every byte counts, and 2⁻⁶⁴ is small

# The most samples of a file per sample of the model, unless its rate is usual: otherwise a kilobyte
# of silence could become gigabytes.
_MAX_RATE_RATIO = 16
_USUAL_RATE = 192_000  # Hz


def highest_rate(model_rate: int) -> int:
    """Return the highest rate in Hz of audio that a model of this rate codes."""
    return max(_USUAL_RATE, _MAX_RATE_RATIO * model_rate)


def bitrates(config: Geometry) -> list[float]:
    """kbit/s of one channel for each number of codebooks, before entropy coding."""
    per_codebook = config.frame_rate * config.bits_per_codebook / 1000
    return [count * per_codebook for count in range(1, config.n_codebooks + 1)]


def codebooks_for_bitrate(config: Geometry, bitrate: float, channels: int = 1) -> int:
    """Return the number of codebooks with the nearest rate, in kbit/s for all channels together.

    Raises InputError if the rate is out of reach, and says which rates exist.
    """
    if not isinstance(bitrate, Real) or isinstance(bitrate, bool):
        raise InputError(f"expected bitrate as a number of kbit/s, got {bitrate!r}")
    rates = [rate * channels for rate in bitrates(config)]
    step = rates[0]
    if not step / 2 <= bitrate <= rates[-1] + step / 2:
        listed = ", ".join(f"{rate:.2f}" for rate in rates)
        raise InputError(
            f"this model has no {bitrate} kbit/s for {channels} channel{'s' * (channels > 1)}; "
            f"choose from {listed}"
        )
    return min(len(rates), max(1, round(bitrate / step)))


def make_stream_info(
    config: Geometry,
    fingerprint: bytes,
    sample_rate: int,
    channels: int,
    bitrate: float | None = None,
    n_quantizers: int | None = None,
) -> StreamInfo:
    """Describe a signal that a model is going to encode.

    Args:
        config: of the model.
        fingerprint: of the model; its first 8 bytes are written.
        sample_rate: of the signal, Hz.
        channels: of the signal.
        bitrate: kbit/s for all channels together, or None.
        n_quantizers: codebooks to use, instead of a bitrate; all by default.

    Raises InputError for a rate or number of codebooks that the model does not have.
    """
    if bitrate is not None and n_quantizers is not None:
        raise InputError("expected bitrate or n_quantizers, got both; leave one out")
    if bitrate is not None:
        n_quantizers = codebooks_for_bitrate(config, bitrate, channels)
    if n_quantizers is None:
        n_quantizers = config.n_codebooks
    if not isinstance(n_quantizers, Integral) or isinstance(n_quantizers, bool):
        raise InputError(f"expected n_quantizers as an integer, got {n_quantizers!r}")
    if not 1 <= n_quantizers <= config.n_codebooks:
        raise InputError(
            f"this model has 1 to {config.n_codebooks} codebooks, got n_quantizers={n_quantizers}"
        )
    highest = highest_rate(config.sampling_rate)
    if sample_rate > highest:
        raise InputError(
            f"expected audio of at most {highest} Hz for this model of {config.sampling_rate} Hz, "
            f"got {sample_rate} Hz; resample it first"
        )
    return StreamInfo(
        fingerprint=fingerprint[:FINGERPRINT_SIZE],
        sample_rate=config.sampling_rate,
        original_sample_rate=sample_rate,
        channels=channels,
        num_codebooks=n_quantizers,
        codebook_size=config.codebook_size,
        hop_length=config.hop_length,
    )


def with_entropy_model(
    info: StreamInfo, entropy_models: Iterable[EntropyModel], wanted: bool
) -> tuple[StreamInfo, EntropyModel | None]:
    """Return how a signal is written: its info, and the first of the entropy models that fits.

    The model is None where none fits, and where no entropy coding is wanted.
    """
    if not wanted or not can_code(info.channels, info.num_codebooks, info.codebook_size):
        return replace(info, entropy_model=None), None
    for entropy in entropy_models:
        if entropy.fits(info.num_codebooks, info.codebook_size):
            return replace(info, entropy_model=entropy.identity), entropy
    return replace(info, entropy_model=b""), None


def check_model(config: Geometry, fingerprint: bytes, info: StreamInfo) -> None:
    """Check that a model made the codes that `info` describes.

    Raises ModelMismatchError if another one did, FileFormatError if the sizes contradict the model.
    """
    if not fingerprint.startswith(info.fingerprint):
        maker = find_embedded(info.fingerprint)
        advice = f"load_codec({maker!r}) decodes them" if maker else "load the model that made them"
        raise ModelMismatchError(
            f"expected codes of this model ({fingerprint.hex()}), got codes of "
            f"{maker or 'another one'} ({info.fingerprint.hex()}); {advice}"
        )
    theirs = (info.sample_rate, info.hop_length, info.codebook_size)
    ours = (config.sampling_rate, config.hop_length, config.codebook_size)
    if theirs != ours or info.num_codebooks > config.n_codebooks:
        raise FileFormatError(
            "the header names this model, but describes another; the file is damaged"
        )
