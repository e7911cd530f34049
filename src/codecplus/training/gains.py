"""Gives a trained codec band gains, or fits those it has anew. Convolutions rest.

Recordings are coded once, and the powers of their bands kept: those of the original, of what the
decoder makes of latents, and of what it makes of several numbers of codebooks. Powers are all that
the two nets of the gains and their codebooks see, so that thousands of steps take minutes. Decoded
audio of some recordings is kept, too, and nets are tuned by it: see `gain_nets`.

Letters: F bands, S samples, T frames.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOptionalOperand=false
# torch types every part of a module as "Tensor | Module": what is read off one is an error above.

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codecplus.audio.resampling import resample
from codecplus.errors import CodecPlusError, InputError
from codecplus.modeling_dac import DacModel
from codecplus.training import codebooks
from codecplus.training.entropy import numbered_recordings
from codecplus.training.gain_nets import Audio, Measured, fit_nets, tune_nets
from codecplus.training.initialization import initialize_weights
from codecplus.training.levels import LINEAR_HZ, default_bands

_PLACES = (0.4, 0.6, 0.87)  # of the codebooks that code gains, as shares of all: 6, 9, 13 of 15
_SECONDS = 24  # of a recording, at most, from a random place
_TONES = 0.15  # as much as recordings
_NUMBERS = 3  # of codebooks, that every recording is decoded with
_TUNING_LR = 2 / 3  # of the learning rate: the nets begin where the fit ended
_KEPT_SECONDS = 1800  # of all recordings, whose decoded audio is kept: 0.7 GB at 44.1 kHz
_LOUDEST = 1e4  # a sample of it
_SILENT = 1e-4  # the peak of a recording that is left out


def fit_band_gains(
    model: DacModel,
    recordings: Any,
    *,
    places: Sequence[int] | None = None,
    gain_size: int = 16,
    gain_bands: int | None = None,
    gain_hidden_size: int = 128,
    gain_linear_hz: float | None = LINEAR_HZ,
    steps: int = 8000,
    tuning_steps: int = 3000,
    lr: float = 1.5e-3,
    seed: int = 0,
    progress: Callable[[str], Any] | None = None,
) -> DacModel:
    """Return a codec with band gains, fitted to recordings like those it will be used for.

    A codec without gains gets them, and codebooks for them in between its own: its finest ones give
    way, so that there are as many as before. One that has gains keeps its sizes and the places of
    its codebooks of gains, which are filled anew; their nets are trained on. Do so after the
    decoder was trained.

    The codec has another fingerprint and needs another entropy model.

    Args:
        model: the codec, which stays as it is.
        recordings: folders, audio files or tables, as `codecplus.recordings.open_recordings` takes
            them; an hour is good. Synthetic tones are mixed in: gains that have met none take
            bare tones away.
        places: numbers of the codebooks that code gains, from 1 on, for a codec without them; 6, 9
            and 13 of 15 by default.
        gain_size, gain_bands, gain_hidden_size, gain_linear_hz: see `DacConfig`; for a codec
            without gains. 36 bands by default, or as many as the hop allows.
        steps: of training by powers; 8000 take a quarter of an hour of a core. With 0, codebooks
            are not filled anew, and gains that are there are tuned alone.
        tuning_steps: of training by what is heard, afterwards; 3000 take 5 minutes of a core for a
            codec at 16 kHz, a quarter of an hour at 44.1 kHz. 0 leaves it out.
        lr: learning rate of AdamW, at its highest; two thirds of it for tuning.
        seed: of crops and weights.
        progress: called with a line of text now and then.

    The work is done on the CPU.

    Raises:
        InputError: for impossible sizes or places, or no readable audio.
    """
    if steps < 0 or tuning_steps < 0 or steps + tuning_steps < 1:
        raise InputError(
            "expected numbers of steps from 0 on, of which one is above 0, "
            f"got {steps} of fitting and {tuning_steps} of tuning"
        )
    if model.config.codebook_dim <= codebooks.STEERING or model.config.n_codebooks < 2:
        raise InputError(
            f"band gains need a codebook_dim above {codebooks.STEERING} and two codebooks, this "
            f"model has {model.config.codebook_dim} and {model.config.n_codebooks}"
        )
    has_gains = bool(model.config.gain_size)
    if has_gains and places is not None:
        raise InputError(
            "this model has codebooks for gains already, which stay where they are; leave their "
            "places out"
        )
    if has_gains and not model.gain_codebooks():
        raise InputError(
            "expected codebooks that code gains alone, this model has none: they were trained "
            "together with the others; train it on instead"
        )
    if steps == 0 and not has_gains:
        raise InputError(
            "this model has no gains yet, so there is nothing to tune: give steps above 0"
        )
    if steps == 0 and not all(
        codebooks.is_steered(model.quantizer.quantizers[i]) for i in model.gain_codebooks()
    ):
        raise InputError(
            "the codebooks of gains in this model were not placed by a fit: give steps above 0"
        )
    if not has_gains:
        places = _default_places(model.config.n_codebooks) if places is None else places
        if gain_bands is None:
            gain_bands = default_bands(model.config)
        sizes = {
            "gain_size": gain_size,
            "gain_bands": gain_bands,
            "gain_hidden_size": gain_hidden_size,
            "gain_linear_hz": gain_linear_hz,
        }
        model = with_band_gains(model, places, sizes, seed)
    else:
        model = _copy(model)
    generator = torch.Generator().manual_seed(seed)
    measured = measure(
        model, recordings, seed, progress, kept_seconds=_KEPT_SECONDS if tuning_steps else 0
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)  # the dropout of codebooks draws from this generator
        fit_nets(model, measured, steps, lr, generator, progress)
        tune_nets(model, measured, tuning_steps, lr * _TUNING_LR, generator, progress)
    return model.eval()


def _default_places(count: int) -> list[int]:
    """Return up to three places among so many codebooks, half of them at most, not the first."""
    return sorted({max(2, round(share * count)) for share in _PLACES})[: count // 2]


def with_band_gains(
    model: DacModel, places: Sequence[int], sizes: dict[str, Any], seed: int = 0
) -> DacModel:
    """Return a copy of a codec with band gains of random weights, whose codebooks have `places`.

    All other codebooks keep their order; the finest ones give way. `sizes` are fields of the
    configuration. Raises InputError for impossible sizes, and for places twice or beyond the
    codebooks.
    """
    count = model.config.n_codebooks
    if len(set(places)) != len(places) or not all(1 <= place <= count for place in places):
        raise InputError(f"expected different places from 1 to {count}, got {list(places)}")
    if not places or len(places) == count:
        raise InputError(
            f"expected 1 to {count - 1} codebooks for gains, as the others code the waveform, "
            f"got {len(places)}"
        )
    if sizes["gain_size"] < 1:
        raise InputError(f"expected a gain_size of at least 1, got {sizes['gain_size']}")
    fields = {
        **model.config.to_dict(),
        **sizes,
        "hidden_size": model.config.hidden_size + sizes["gain_size"],
    }
    try:
        config = type(model.config).from_dict(fields)
    except ValueError as error:
        raise InputError(str(error)) from error
    new = type(model)(config)
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(seed)
        initialize_weights(new)
        old = model.folded_state_dict()
        for name, tensor in new.state_dict().items():
            if name in old and not name.startswith("quantizer."):
                tensor[tuple(slice(size) for size in old[name].shape)] = old[name]
        _write_codebooks(new, model, {place - 1 for place in places})
    return new.eval()


def _write_codebooks(new: DacModel, model: DacModel, places: set[int]) -> None:
    """Copy the codebooks of the waveform, which read and write its channels alone.

    Those of gains read and write channels of gains alone, for now at random.
    """
    waveform = new.config.waveform_size
    own = iter(model.quantizer.quantizers)
    for i, book in enumerate(new.quantizer.quantizers):
        if i in places:
            book.in_proj.weight[:, :waveform] = 0
            book.out_proj.weight[:waveform] = 0
            continue
        source = next(own)
        for part in (book.in_proj, book.out_proj):
            part.weight.zero_()
        book.in_proj.weight[:, :waveform] = source.in_proj.weight
        book.in_proj.bias.copy_(source.in_proj.bias)
        book.out_proj.weight[:waveform] = source.out_proj.weight
        book.out_proj.bias[:waveform] = source.out_proj.bias
        book.codebook.weight.copy_(source.codebook.weight)


@torch.inference_mode()
def measure(
    model: DacModel,
    recordings: Any,
    seed: int = 0,
    progress: Callable[[str], Any] | None = None,
    kept_seconds: float = _KEPT_SECONDS,
) -> list[Measured]:
    """Return the powers of the bands of every recording, its channels mixed, in random order.

    Tones follow, `_TONES` times as much. The first `kept_seconds` and their share of tones have
    their audio, too. A warning counts recordings that cannot be read, have no whole frame or are
    silent. Raises InputError if all are like that.
    """
    model.eval()
    rng = np.random.default_rng(seed)
    rate, hop = model.config.sampling_rate, model.config.hop_length
    measured = []
    kept = kept_seconds * rate / hop  # frames whose audio is still to be kept
    left_out = 0
    numbered = numbered_recordings(recordings)
    for index in rng.permutation(len(numbered)).tolist():
        try:
            with numbered[index].open() as source:
                audio = np.concatenate(list(source.blocks()), axis=1).mean(axis=0, keepdims=True)
                audio = resample(audio, source.sample_rate, rate)
        except CodecPlusError:
            left_out += 1
            continue
        frames = min(audio.shape[-1], _SECONDS * rate) // hop
        if frames < 1 or np.abs(audio).max() < _SILENT:
            left_out += 1
            continue
        start = int(rng.integers(0, audio.shape[-1] - frames * hop + 1))
        audio = audio[:, start : start + frames * hop]
        measured.append(_measured(model, audio, rng, kept > 0))
        kept -= frames
        if progress is not None and len(measured) % 100 == 0:
            progress(f"{len(measured)} recordings measured")
    if not measured:
        raise InputError(
            "expected recordings that can be read, have a whole frame and are not silent, got none"
        )
    if left_out:
        warnings.warn(
            f"{left_out} of {len(numbered)} recordings left out: not readable, too short or silent",
            stacklevel=3,
        )
    tones = math.ceil(_TONES * sum(one.wanted.shape[-1] for one in measured))
    kept = _TONES * kept_seconds * rate / hop
    while tones > 0:
        frames = min(tones, _SECONDS * rate // hop)
        measured.append(_measured(model, _tones(frames * hop, rate, rng), rng, kept > 0))
        kept -= frames
        tones -= frames
    return measured


def _measured(model: DacModel, audio: np.ndarray, rng: np.random.Generator, kept: bool) -> Measured:
    """Return the powers of audio (1, S) of whole frames, with the audio if it is to be kept."""
    gains = model.decoder.gains
    assert gains is not None
    crop = torch.from_numpy(audio)[None].to(model.device)
    latents = model.encoder(crop.to(model.encoding_dtype)).float()
    latents = latents[:, : model.config.waveform_size]
    given = _powers(model, _waveform(model, latents))
    blank = latents.new_zeros(1, gains.size, latents.shape[-1])
    codes = model.quantizer(torch.cat([latents, blank], dim=1))[1]
    numbers = (1 + rng.permutation(model.config.n_codebooks)[:_NUMBERS]).tolist()
    decoded = []
    for number in numbers:
        quantized = model.quantizer.look_up(codes[:, :number])[0]
        decoded.append(_waveform(model, quantized[:, : model.config.waveform_size]))
    books = model.gain_codebooks()
    return Measured(
        wanted=_powers(model, crop),
        given=given,
        decoded=[_powers(model, one) for one in decoded],
        told=[sum(book < number for book in books) for number in numbers],
        audio=_audio(crop, decoded) if kept else None,
    )


def _audio(original: Tensor, decoded: Sequence[Tensor]) -> Audio:
    """Return audio, (1, 1, S) each, as it is kept."""
    original = original.clamp(-_LOUDEST, _LOUDEST)  # which fp16 can hold
    return Audio(original[0, 0].half().cpu(), [one[0, 0].half().cpu() for one in decoded])


def _tones(samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Return audio (1, S) of bare tones, some with overtones or vibrato, between pauses.

    Recordings have few of them. Gains that have met none take the loud band for one of the many
    around it, which are to be silent, and the tone is gone.
    """
    audio = 10 ** (-rng.uniform(3.0, 5.5)) * rng.standard_normal(samples)
    start = 0
    while start < samples:
        time = np.arange(min(samples - start, int(rng.uniform(0.1, 1.5) * rate))) / rate
        pitch = math.exp(rng.uniform(math.log(80), math.log(0.42 * rate)))
        vibrato = rng.choice([0.0, rng.uniform(0.1, 30.0)])
        phase = 2 * np.pi * pitch * time + vibrato * np.sin(2 * np.pi * 5.5 * time)
        fall = rng.choice([99.0, rng.uniform(8.0, 25.0)])  # dB from overtone to overtone
        orders = range(1, 1 + int(0.45 * rate / pitch))[:4]
        tone = sum(10 ** (fall * (1 - k) / 20) * np.sin(k * phase) for k in orders)
        audio[start : start + len(time)] += 10 ** (-rng.uniform(3, 40) / 20) * tone
        start += len(time) + int(rng.choice([0.0, rng.uniform(0.0, 0.5)]) * rate)
    return audio[None].astype(np.float32)


def _waveform(model: DacModel, latents: Tensor) -> Tensor:
    """Return what the convolutions make (1, 1, S) of latents (1, D, T)."""
    return model.decoder.waveform(latents.to(model.decoding_dtype)).float()


def _powers(model: DacModel, audio: Tensor) -> Tensor:
    """Return the powers (F, T) of audio (1, 1, S)."""
    assert model.decoder.gains is not None
    return model.decoder.gains.powers(audio)[0].half().cpu()


def _copy(model: DacModel) -> DacModel:
    new = type(model)(model.config)
    new.load_state_dict(model.folded_state_dict())
    return new
