"""Trains the two nets of band gains and their codebooks, on recordings that are measured already.

First by powers alone, which is quick. Then by what is heard: waveforms are filtered, and losses
compare them with the originals, while errors in decibels hold the levels. It knows the nets and
their codebooks, neither files nor the convolutions of a codec.

Letters: B crops, F bands, K latent channels of gains, T frames, S samples.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOptionalOperand=false
# torch types every part of a module as "Tensor | Module": what is read off one is an error above.

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from codecplus import losses
from codecplus.modeling_dac import DacConfig, DacModel
from codecplus.modeling_dac.gains_dac import encoder_features
from codecplus.modeling_dac.layers_dac import DacResidualVectorQuantizer
from codecplus.training import codebooks

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

_TUNING_BATCH = 8
_CROP_SECONDS = 1.4  # of a crop, about
_SOUND_SHARE = 0.35  # of the gradient at the gains; decibels have the rest
# No loss on complex spectra: it is least where noise is too quiet.
_SOUND = {"disturbance": 0.3, "envelope": 0.2, "relative_mel": 0.5}
_MEL_BANDS = {2048: 160, 1024: 100, 256: 32}  # at 44.1 kHz; other rates have other windows
_NORMS = 0.95  # moving means of gradients' norms
_TUNING_AVERAGE = 0.995  # of codebooks: steps have fewer frames


class Measured(NamedTuple):
    """A recording: powers of its bands, (F, T) in dB each, in fp16."""

    wanted: Tensor
    given: Tensor
    """Of what the decoder makes of latents that are not quantized: what the encoder sees."""
    decoded: list[Tensor]
    """Of what it makes of codes."""
    told: list[int]
    """Numbers of codebooks of gains among those codes."""
    audio: "Audio | None" = None


class Audio(NamedTuple):
    """Audio of a recording, (S,) in fp16 each."""

    original: Tensor
    decoded: list[Tensor]
    """As the powers of that name, without gains."""


def fit_nets(
    model: DacModel,
    measured: Sequence[Measured],
    steps: int,
    lr: float,
    generator: torch.Generator,
    progress: Callable[[str], Any] | None = None,
) -> None:
    """Train the nets of the gains and their codebooks in place, by powers alone.

    The loss is the mean square of what a gain lacks, in dB: once over all cells that are heard,
    once over frames, in which a cell counts by its share of the power. The nets train without a
    quantizer for a sixth of the steps. Then codebooks are placed where squared errors are least,
    and follow the moving means of the channels that they code. Averages of the weights stay.
    """
    nets = _Nets(model, lr, _AVERAGE)
    nets.quantizer.train()  # crops are coded with fewer codebooks now and then
    place_at = round(_UNQUANTIZED * steps)
    errors = []
    for step in range(steps):
        cells, _ = _batch(measured, _BATCH, _FRAMES, generator)
        channels = nets.channels(cells)
        auxiliary = _LEVEL * _drift(channels)
        if step == place_at:
            _place(nets, measured, generator)
        if step >= place_at:
            channels, _, commitment = nets.quantize(channels, generator)
            auxiliary = auxiliary + _COMMITMENT * commitment
        told = _told(_BATCH, _FRAMES, generator)
        answer = nets.gains.gains(channels * told, cells.decoded)
        error, loudest = _errors(answer, cells, told)
        nets.update((error + loudest) / 16 + auxiliary, step, steps)
        errors.append(float(error.detach()))
        if progress is not None and _is_reported(step, steps):
            progress(f"step {step + 1}: gains lack {_root_mean(errors):.2f} dB")
            errors = []
    nets.finish()


def tune_nets(
    model: DacModel,
    measured: Sequence[Measured],
    steps: int,
    lr: float,
    generator: torch.Generator,
    progress: Callable[[str], Any] | None = None,
) -> None:
    """Train nets that are fitted on by what is heard, in place, with recordings that have audio.

    Decoded audio is filtered by the gains, and losses compare it with the original; their
    gradients at the audio are balanced. At the gains they share with errors in decibels, without
    which levels would fall: a loss on magnitudes is least for a sound that is too quiet. Averages
    of the weights stay.
    """
    heard = [one for one in measured if one.audio is not None]
    frames = round(_CROP_SECONDS * model.config.sampling_rate / model.config.hop_length)
    nets = _Nets(model, lr, _TUNING_AVERAGE)
    sound = _Sound(nets.gains, model.config.sampling_rate)
    norms = _Norms()
    errors = []
    for step in range(steps):
        cells, audio = _batch(heard, _TUNING_BATCH, frames, generator, heard=True)
        channels = nets.channels(cells)
        auxiliary = _LEVEL * _drift(channels)
        # Entries move behind the search, by a hair: what is looked up is as good as what was found.
        _, codes, commitment = nets.quantize(channels, generator)
        auxiliary = auxiliary + _COMMITMENT * commitment
        channels = channels + (_looked_up(nets.quantizer, codes, cells.told) - channels).detach()
        told = _told(_TUNING_BATCH, frames, generator) * (cells.told > 0)[:, None, None]
        answer = nets.gains.gains(channels * told, cells.decoded)
        trial = answer.detach().requires_grad_()
        error, loudest = _errors(trial, cells, told)
        gradient = torch.autograd.grad((error + loudest) / 16, trial)[0]
        complete = told.amin(dim=(1, 2)) > 0
        if complete.any():
            by_sound = sound.gradient(trial, audio, complete)
            decibels = gradient[complete].norm()
            usual = norms.usual({"decibels": decibels, "sound": by_sound.norm()})
            by_sound = by_sound * (usual["decibels"] / usual["sound"].clamp(min=1e-12))
            gradient = gradient.lerp(by_sound, _SOUND_SHARE * complete[:, None, None].float())
        nets.update((answer * gradient).sum() + auxiliary, step, steps)
        errors.append(float(error.detach()))
        if progress is not None and _is_reported(step, steps):
            lack = f"gains lack {_root_mean(errors):.2f} dB"
            progress(", ".join([f"step {step + 1} of tuning: {lack}", *sound.report()]))
            errors = []
    nets.finish()


class _Nets:
    """The nets of a model's gains and their codebooks, as they train."""

    def __init__(self, model: DacModel, lr: float, average: float):
        assert model.decoder.gains is not None
        self.model = model
        self.gains = model.decoder.gains.requires_grad_(True)
        self.quantizer = _own_quantizer(model).eval()
        self.lr = lr
        self._moving = codebooks.MovingCodebooks(self.quantizer, average)
        self._optimizer = torch.optim.AdamW(self.gains.parameters(), lr=lr, betas=(0.9, 0.98))
        self._average = {name: value.clone() for name, value in self.gains.state_dict().items()}

    def channels(self, cells: "_Cells") -> Tensor:
        """Return the latent channels (B, K, T) that tell of crops."""
        return self.gains.encoder(encoder_features(cells.wanted, cells.given))

    def quantize(
        self, channels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return quantized channels, their codes and the commitment; codebooks follow."""
        quantized, codes, projected, _, _ = self.quantizer(channels)
        commitment = codebooks.relative_commitment(self.quantizer, projected, codes, steered=True)
        self._moving.update(projected.detach(), codes, generator)
        codebooks.steer(self.quantizer)
        return quantized, codes, commitment

    def update(self, loss: Tensor, step: int, steps: int) -> None:
        """Do the optimizer's step of this number."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr * _share(step, steps)
        loss.backward()
        nn.utils.clip_grad_norm_(self.gains.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        for name, value in self.gains.state_dict().items():
            self._average[name].lerp_(value, 1 - min(_AVERAGE, step / (step + 10)))

    def finish(self) -> None:
        """Keep the averages of the weights, and write the codebooks into the model."""
        self.gains.load_state_dict(self._average)
        _write_back(self.model, self.quantizer)


class _Sound:
    """Losses on filtered audio, as a gradient at the gains."""

    def __init__(self, gains: nn.Module, sample_rate: int):
        scale = 2.0 ** round(math.log2(sample_rate / 44100))
        bands = {round(scale * w): round(scale * count) for w, count in _MEL_BANDS.items()}
        self._gains = gains
        self._losses = losses.losses_by_name(_SOUND, sample_rate, bands, [])
        self._norms = _Norms()
        self._values: dict[str, list[float]] = {name: [] for name in _SOUND}

    def gradient(self, gains: Tensor, audio: "_Waves", used: Tensor) -> Tensor:
        """Return the balanced gradient at gains (B, F, T), of the items `used` (B,) alone."""
        filtered = self._gains.filter(audio.decoded[used].unsqueeze(1), gains[used]).squeeze(1)
        estimate = filtered.detach().requires_grad_()
        with losses.shared_spectra():
            values = {n: loss(estimate, audio.original[used]) for n, loss in self._losses.items()}

        def usual(norms: Tensor) -> Tensor:
            named = dict(zip(values, norms, strict=True))
            return torch.stack(list(self._norms.usual(named).values()))

        at_audio = losses.balanced_gradient(
            list(values.values()), [_SOUND[name] for name in values], estimate, usual
        )
        for name, value in values.items():
            self._values[name].append(float(value.detach()))
        return torch.autograd.grad((filtered * at_audio).sum(), gains)[0]

    def report(self) -> list[str]:
        """Return the mean losses since the last report; none, if there were none."""
        means = [f"{name} {sum(v) / len(v):.3g}" for name, v in self._values.items() if v]
        self._values = {name: [] for name in _SOUND}
        return means


class _Norms:
    """Moving means of norms, by name."""

    def __init__(self):
        self._means: dict[str, Tensor] = {}

    def usual(self, norms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the means, these norms among them."""
        for name, norm in norms.items():
            self._means[name] = norm.lerp(self._means.get(name, norm), _NORMS)
        return {name: self._means[name] for name in norms}


class _Cells(NamedTuple):
    """Powers of crops in dB, weights of cells, (B, F, T) each, and books of gains told (B,)."""

    wanted: Tensor
    given: Tensor
    decoded: Tensor
    weight: Tensor
    told: Tensor


class _Waves(NamedTuple):
    """Audio of crops, (B, S) each."""

    original: Tensor
    decoded: Tensor


def _batch(
    measured: Sequence[Measured],
    count: int,
    frames: int,
    generator: torch.Generator,
    heard: bool = False,
) -> tuple[_Cells, _Waves | None]:
    """Return so many crops, with their audio if they are to be heard.

    Longer recordings are drawn more often. What a short one lacks has no weight.
    """
    lengths = [one.wanted.shape[-1] for one in measured]
    crops, told, waves = [], [], []
    odds = torch.tensor(lengths, dtype=torch.float32)
    for index in torch.multinomial(odds, count, True, generator=generator).tolist():
        clip, length = measured[index], lengths[index]
        start = _drawn(max(1, length - frames + 1), generator)
        end = min(start + frames, length)
        shift = float(torch.empty(()).uniform_(*_SHIFT_DB, generator=generator))
        chosen = _drawn(len(clip.decoded), generator)
        loudness = clip.wanted.float() - float(clip.wanted.max()) + _HEARD_DB
        weight = (loudness / _SLOPE_DB).clamp(_LEAST_WEIGHT, 1.0)
        powers = torch.stack(
            [clip.wanted.float(), clip.given.float(), clip.decoded[chosen].float()]
        )
        cells = torch.cat([(powers + shift).clamp(min=-100.0), weight[None]])[..., start:end]
        crops.append(nn.functional.pad(cells, (0, frames - (end - start))))
        told.append(clip.told[chosen])
        if heard:
            hop = clip.audio.original.shape[-1] // length
            pair = torch.stack([clip.audio.original, clip.audio.decoded[chosen]]).float()
            pair = 10 ** (shift / 20) * pair[:, start * hop : end * hop]
            waves.append(nn.functional.pad(pair, (0, (frames - (end - start)) * hop)))
    cells = _Cells(*torch.stack(crops, dim=1), told=torch.tensor(told))
    return cells, _Waves(*torch.stack(waves, dim=1)) if heard else None


def _drawn(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (), generator=generator))


def _told(count: int, frames: int, generator: torch.Generator) -> Tensor:
    """Return 1 where gains are told in crops (B, 1, T), and 0 elsewhere.

    A file may have too few codebooks for gains, in some frames or in all. There the gain is to be 0
    dB: what the decoded bands alone say of the original makes the sound worse.
    """
    edges = torch.randint(-frames, 2 * frames, (2, count, 1, 1), generator=generator)
    first, last = edges.aminmax(dim=0)
    frame = torch.arange(frames)
    untold = (first <= frame) & (frame < last)
    untold &= torch.rand(count, 1, 1, generator=generator) < _UNTOLD
    return (~untold).float()


def _drift(channels: Tensor) -> Tensor:
    """Return a loss that holds the scale of channels near 1.

    Nothing else does: it would grow by orders of magnitude.
    """
    return channels.square().mean().log().square()


def _errors(gains: Tensor, cells: _Cells, told: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean square of what gains (B, F, T) lack, over heard cells and by their power."""
    lacking = gains - (cells.wanted - cells.decoded) * told
    squares = lacking.clamp(-_LARGEST_DB, _LARGEST_DB).square()
    share = torch.softmax(cells.wanted * (math.log(10) / 10), dim=1)
    share = share * cells.weight.amax(dim=1, keepdim=True)
    mean = (cells.weight * squares).sum() / cells.weight.sum()
    return mean, (share * squares).sum() / share.sum()


def _is_reported(step: int, steps: int) -> bool:
    """Return whether progress is reported after this step."""
    return step % 500 == 499 or step == steps - 1


def _root_mean(squares: list[float]) -> float:
    return math.sqrt(sum(squares) / len(squares))


def _share(step: int, steps: int) -> float:
    """Return the share of the learning rate: a warm-up, and a cosine over the second half."""
    done = max(0.0, 2 * step / steps - 1)
    return min(1.0, (step + 1) / _WARMUP) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * done))


@torch.no_grad()
def _place(nets: _Nets, measured: Sequence[Measured], generator: torch.Generator) -> None:
    """Place codebooks by the channels that the nets send."""
    rows = []
    for _ in range(8):
        cells, _ = _batch(measured, _BATCH, _FRAMES, generator)
        rows.append(nets.channels(cells).transpose(1, 2).flatten(0, 1))
    codebooks.initialize(nets.quantizer, torch.cat(rows), generator=generator, rate_weight=0.0)


@torch.no_grad()
def _looked_up(quantizer: DacResidualVectorQuantizer, codes: Tensor, told: Tensor) -> Tensor:
    """Return the channels (B, K, T) that each item's first `told` (B,) codes make.

    Of no codes nothing can be looked up: one is, and the caller silences it.
    """
    rows = []
    for item, number in zip(codes, told.tolist(), strict=True):
        rows.append(quantizer.look_up(item[None, : max(1, number)])[0])
    return torch.cat(rows)


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
def _write_back(model: DacModel, own: DacResidualVectorQuantizer) -> None:
    """Write the codebooks of gains into a model."""
    waveform = model.config.waveform_size
    for book, i in zip(own.quantizers, model.gain_codebooks(), strict=True):
        target = model.quantizer.quantizers[i]
        target.in_proj.weight[:, waveform:] = book.in_proj.weight
        target.in_proj.bias.copy_(book.in_proj.bias)
        target.out_proj.weight[waveform:] = book.out_proj.weight
        target.out_proj.bias[waveform:] = book.out_proj.bias
        target.codebook.weight.copy_(book.codebook.weight)
