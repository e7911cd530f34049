"""Gives a trained codec band gains, or fits those it has anew. Convolutions rest.

Recordings are coded once, and the powers of their bands kept: those of the original, of what the
decoder makes of latents, and of what it makes of several numbers of codebooks. Powers are all that
the two nets of the gains and their codebooks see, so that thousands of steps take minutes.

Letters: B crops, F bands, K latent channels of gains, T frames.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOptionalOperand=false
# torch types every part of a module as "Tensor | Module": what is read off one is an error above.

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from codecplus.audio.resampling import resample
from codecplus.errors import CodecPlusError, InputError
from codecplus.modeling_dac import DacConfig, DacModel
from codecplus.modeling_dac.gains_dac import encoder_features
from codecplus.modeling_dac.layers_dac import DacResidualVectorQuantizer
from codecplus.modeling_dac.sizes_dac import gain_window
from codecplus.training import codebooks
from codecplus.training.entropy import numbered_recordings
from codecplus.training.initialization import initialize_weights

_PLACES = (0.4, 0.6, 0.87)  # of the codebooks that code gains, as shares of all: 6, 9, 13 of 15
_BANDS = 36
_SECONDS = 24  # of a recording, at most, from a random place
_TONES = 0.15  # as much as recordings
_NUMBERS = 3  # of codebooks, that every recording is decoded with
_FRAMES = 100  # of a crop
_BATCH = 32
_SHIFT_DB = (-10.0, 5.0)  # of a crop's level
_HEARD_DB = 65.0  # below the loudest cell of a recording cells count little
_SLOPE_DB = 15.0  # from there to where they count fully
_LEAST_WEIGHT = 0.1
_LARGEST_DB = 25.0  # of an error that counts
_UNQUANTIZED = 1 / 6  # of the steps, before codebooks are placed
_WARMUP = 50  # steps
_DROPOUT = 0.4  # share of the crops that are coded with few of the codebooks
_UNTOLD = 0.3  # share of the crops in which a part, or all, has no gains
_COMMITMENT = 0.1
_LEVEL = 0.02
_AVERAGE = 0.99  # moving, of weights and of codebooks


class Measured(NamedTuple):
    """Powers of the bands of a recording, (F, T) in dB each, in fp16."""

    wanted: Tensor
    given: Tensor
    """Of what the decoder makes of latents that are not quantized: what the encoder sees."""
    decoded: list[Tensor]
    """Of what it makes of codes."""


def fit_band_gains(
    model: DacModel,
    recordings: Any,
    *,
    places: Sequence[int] | None = None,
    gain_size: int = 16,
    gain_bands: int | None = None,
    gain_hidden_size: int = 128,
    gain_linear_hz: float | None = 4000.0,
    steps: int = 8000,
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
        steps: of training; 8000 take a quarter of an hour of a core.
        lr: learning rate of AdamW, at its highest.
        seed: of crops and weights.
        progress: called with a line of text now and then.

    The work is done on the CPU.

    Raises:
        InputError: for impossible sizes or places, or no readable audio.
    """
    if steps < 1:
        raise InputError(f"expected at least 1 step, got {steps}")
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
    if not has_gains:
        places = _default_places(model.config.n_codebooks) if places is None else places
        if gain_bands is None:
            gain_bands = min(_BANDS, gain_window(model.config.hop_length) // 8)
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
    measured = measure(model, recordings, seed, progress)
    fit_nets(model, measured, steps, lr, generator, progress)
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
) -> list[Measured]:
    """Return the powers of the bands of every recording, its channels mixed, in random order.

    Tones follow, `_TONES` times as much. A warning counts recordings that cannot be read or have no
    whole frame. Raises InputError if all are like that.
    """
    model.eval()
    rng = np.random.default_rng(seed)
    rate, hop = model.config.sampling_rate, model.config.hop_length
    measured = []
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
        if frames < 1:
            left_out += 1
            continue
        start = int(rng.integers(0, audio.shape[-1] - frames * hop + 1))
        measured.append(_measured(model, audio[:, start : start + frames * hop], rng))
        if progress is not None and len(measured) % 100 == 0:
            progress(f"{len(measured)} recordings measured")
    if not measured:
        raise InputError("expected recordings that can be read, got none")
    if left_out:
        warnings.warn(
            f"{left_out} of {len(numbered)} recordings left out: not readable, or too short",
            stacklevel=3,
        )
    tones = math.ceil(_TONES * sum(one.wanted.shape[-1] for one in measured))
    while tones > 0:
        frames = min(tones, _SECONDS * rate // hop)
        measured.append(_measured(model, _tones(frames * hop, rate, rng), rng))
        tones -= frames
    return measured


def _measured(model: DacModel, audio: np.ndarray, rng: np.random.Generator) -> Measured:
    """Return the powers of audio (1, S) of whole frames."""
    gains = model.decoder.gains
    assert gains is not None
    crop = torch.from_numpy(audio)[None].to(model.device)
    latents = model.encoder(crop.to(model.encoding_dtype)).float()
    latents = latents[:, : model.config.waveform_size]
    given = _powers(model, latents)
    blank = latents.new_zeros(1, gains.size, latents.shape[-1])
    codes = model.quantizer(torch.cat([latents, blank], dim=1))[1]
    numbers = 1 + rng.permutation(model.config.n_codebooks)[:_NUMBERS]
    decoded = []
    for number in numbers.tolist():
        quantized = model.quantizer.look_up(codes[:, :number])[0]
        decoded.append(_powers(model, quantized[:, : model.config.waveform_size]))
    return Measured(gains.powers(crop)[0].half().cpu(), given, decoded)


def _tones(samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Return audio (1, S) of bare tones, some with overtones or vibrato, between pauses.

    Recordings have few of them. Gains that have met none take the loud band for one of the many
    around it, which are to be silent, and the tone is gone.
    """
    audio = 10 ** (-rng.uniform(3.0, 5.5)) * rng.standard_normal(samples)
    start = 0
    while start < samples:
        time = np.arange(min(samples - start, int(rng.uniform(0.1, 1.5) * rate))) / rate
        pitch = math.exp(rng.uniform(math.log(80), math.log(0.3 * rate)))
        vibrato = rng.choice([0.0, rng.uniform(0.1, 30.0)])
        phase = 2 * np.pi * pitch * time + vibrato * np.sin(2 * np.pi * 5.5 * time)
        fall = rng.choice([99.0, rng.uniform(8.0, 25.0)])  # dB from overtone to overtone
        orders = range(1, 1 + int(0.45 * rate / pitch))[:4]
        tone = sum(10 ** (fall * (1 - k) / 20) * np.sin(k * phase) for k in orders)
        audio[start : start + len(time)] += 10 ** (-rng.uniform(3, 40) / 20) * tone
        start += len(time) + int(rng.choice([0.0, rng.uniform(0.0, 0.5)]) * rate)
    return audio[None].astype(np.float32)


def _powers(model: DacModel, latents: Tensor) -> Tensor:
    """Return the powers (F, T) of what the convolutions make of latents (1, D, T)."""
    assert model.decoder.gains is not None
    audio = model.decoder.waveform(latents.to(model.decoding_dtype))
    return model.decoder.gains.powers(audio)[0].half().cpu()


def fit_nets(
    model: DacModel,
    measured: Sequence[Measured],
    steps: int,
    lr: float,
    generator: torch.Generator,
    progress: Callable[[str], Any] | None = None,
) -> None:
    """Train the nets of the gains and their codebooks in place; the average of weights stays.

    The loss is the mean square of what a gain lacks, in dB: once over all cells that are heard,
    once over frames, in which a cell counts by its share of the power. The nets train without a
    quantizer for a sixth of the steps. Then codebooks are placed where squared errors are least,
    and follow the moving means of the channels that they code.
    """
    gains = model.decoder.gains
    assert gains is not None
    waveform = model.config.waveform_size
    quantizer = _own_quantizer(model)
    moving = codebooks.MovingCodebooks(quantizer, _AVERAGE)
    trained = gains.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=lr, betas=(0.9, 0.98))
    average = {name: value.clone() for name, value in trained.state_dict().items()}
    place_at = round(_UNQUANTIZED * steps)
    longest = torch.tensor([float(m.wanted.shape[-1]) for m in measured])
    errors = 0.0
    quantizer.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * _share(step, steps)
        if step == place_at:
            _place(quantizer, gains, measured, longest, generator)
        wanted, given, decoded, weight = _batch(measured, longest, generator)
        channels = gains.encoder(encoder_features(wanted, given))
        # Nothing else holds their scale: it would drift by orders of magnitude.
        level = channels.square().mean().log().square()
        commitment = channels.new_zeros(())
        if step >= place_at:
            channels, codes, projected, _, _ = quantizer(channels)
            commitment = codebooks.relative_commitment(quantizer, projected, codes, steered=True)
            moving.update(projected.detach(), codes, generator)
            codebooks.steer(quantizer)
        told = _told(generator)
        lacking = gains.gains(channels * told, decoded) - (wanted - decoded) * told
        squares = lacking.clamp(-_LARGEST_DB, _LARGEST_DB).square()
        error = (weight * squares).sum() / weight.sum()
        share = torch.softmax(wanted * (math.log(10) / 10), dim=1)
        share = share * weight.amax(dim=1, keepdim=True)
        loudest = (share * squares).sum() / share.sum()
        ((error + loudest) / 16 + _COMMITMENT * commitment + _LEVEL * level).backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for name, value in trained.state_dict().items():
            average[name].lerp_(value, 1 - min(_AVERAGE, step / (step + 10)))
        errors += float(error.detach())
        if progress is not None and step % 500 == 499:
            progress(f"step {step + 1}: gains lack {math.sqrt(errors / 500):.2f} dB")
            errors = 0.0
    trained.load_state_dict(average)
    _write_back(model, quantizer, waveform)


def _told(generator: torch.Generator) -> Tensor:
    """Return 1 where gains are told in crops (B, 1, T), and 0 elsewhere.

    A file may have too few codebooks for gains, in some frames or in all. There the gain is to be 0
    dB: what the decoded bands alone say of the original makes the sound worse.
    """
    edges = torch.randint(-_FRAMES, 2 * _FRAMES, (2, _BATCH, 1, 1), generator=generator)
    first, last = edges.aminmax(dim=0)
    frames = torch.arange(_FRAMES)
    untold = (first <= frames) & (frames < last)
    untold &= torch.rand(_BATCH, 1, 1, generator=generator) < _UNTOLD
    return (~untold).float()


def _share(step: int, steps: int) -> float:
    """Return the share of the learning rate: a warm-up, and a cosine over the second half."""
    done = max(0.0, 2 * step / steps - 1)
    return min(1.0, (step + 1) / _WARMUP) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * done))


def _own_quantizer(model: DacModel) -> DacResidualVectorQuantizer:
    """Return the codebooks of gains alone, which quantize channels of gains alone."""
    config = _Sizes(model.config, len(model.gain_codebooks()))
    own = DacResidualVectorQuantizer(config).requires_grad_(False)
    waveform = model.config.waveform_size
    with torch.no_grad():
        for quantizer, i in zip(own.quantizers, model.gain_codebooks(), strict=True):
            source = model.quantizer.quantizers[i]
            quantizer.in_proj.weight.copy_(source.in_proj.weight[:, waveform:])
            quantizer.in_proj.bias.copy_(source.in_proj.bias)
            quantizer.out_proj.weight.copy_(source.out_proj.weight[waveform:])
            quantizer.out_proj.bias.copy_(source.out_proj.bias[waveform:])
            quantizer.codebook.weight.copy_(source.codebook.weight)
    return own


class _Sizes:
    """Sizes of the codebooks of gains."""

    def __init__(self, config: DacConfig, count: int):
        self.n_codebooks = count
        self.codebook_size = config.codebook_size
        self.codebook_dim = config.codebook_dim
        self.hidden_size = config.gain_size
        self.quantizer_dropout = _DROPOUT


@torch.no_grad()
def _write_back(model: DacModel, own: DacResidualVectorQuantizer, waveform: int) -> None:
    """Write the codebooks of gains into a model."""
    for book, i in zip(own.quantizers, model.gain_codebooks(), strict=True):
        target = model.quantizer.quantizers[i]
        target.in_proj.weight[:, waveform:] = book.in_proj.weight
        target.in_proj.bias.copy_(book.in_proj.bias)
        target.out_proj.weight[waveform:] = book.out_proj.weight
        target.out_proj.bias[waveform:] = book.out_proj.bias
        target.codebook.weight.copy_(book.codebook.weight)


@torch.no_grad()
def _place(
    quantizer: DacResidualVectorQuantizer,
    gains: nn.Module,
    measured: Sequence[Measured],
    longest: Tensor,
    generator: torch.Generator,
) -> None:
    """Place codebooks by the channels that the nets send."""
    rows = []
    for _ in range(8):
        wanted, given, _, _ = _batch(measured, longest, generator)
        channels = gains.encoder(encoder_features(wanted, given))
        rows.append(channels.transpose(1, 2).flatten(0, 1))
    codebooks.initialize(quantizer, torch.cat(rows), generator=generator, rate_weight=0.0)


def _batch(
    measured: Sequence[Measured], longest: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return wanted, given and decoded powers of crops, and weights of cells, (B, F, T) each.

    Longer recordings are drawn more often. What a short one lacks has no weight.
    """
    crops = []
    for index in torch.multinomial(longest, _BATCH, True, generator=generator).tolist():
        clip = measured[index]
        frames = clip.wanted.shape[-1]
        start = _drawn(max(1, frames - _FRAMES + 1), generator)
        shift = float(torch.empty(()).uniform_(*_SHIFT_DB, generator=generator))
        decoded = clip.decoded[_drawn(len(clip.decoded), generator)]
        heard = clip.wanted.float() - float(clip.wanted.max()) + _HEARD_DB
        weight = (heard / _SLOPE_DB).clamp(_LEAST_WEIGHT, 1.0)
        powers = torch.stack([clip.wanted.float(), clip.given.float(), decoded.float()])
        cells = torch.cat([(powers + shift).clamp(min=-100.0), weight[None]])
        cells = cells[..., start : start + _FRAMES]
        crops.append(nn.functional.pad(cells, (0, _FRAMES - cells.shape[-1])))
    wanted, given, decoded, weight = torch.stack(crops, dim=1)
    return wanted, given, decoded, weight


def _drawn(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (), generator=generator))


def _copy(model: DacModel) -> DacModel:
    new = type(model)(model.config)
    new.load_state_dict(model.folded_state_dict())
    return new
