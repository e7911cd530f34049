"""Trains entropy models: small networks that predict the codes of one checkpoint, in minutes.

The network is that of `bitstream.EntropyModel`. It is trained in floats here and rounded to
integers at the end.

An hour of audio is little for a network that tells 1024 codes apart, so its first weights come from
the geometry of the codebooks. A codebook sees the residual of the coarser ones through a matrix of
its own. The network begins with these matrices: its hidden values are the previous frame as this
codebook sees it, less the coarser codebooks of the current frame. The likelihood of an entry
depends smoothly on its position: its logit is a polynomial of its direction, plus a small term of
its own.

Letters: N windows or entries, L lags, K codebooks, d width of a code's vector, H hidden values,
P terms of the polynomial.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codecplus.bitstream import EntropyModel
from codecplus.bitstream.predictors import low_bits
from codecplus.codec import Codec
from codecplus.errors import CodecPlusError, InputError
from codecplus.recordings import Recording, open_recordings
from codecplus.recordings.folders import FileRecordings
from codecplus.recordings.tables import StreamRecordings, TableRecordings

LAGS = 2  # frames that a code is predicted from, its own included; a third one gains 0.2 %
_WIDTH = 16  # of a code's vector
_HIDDEN = 128  # hidden values per codebook

# Training
_BATCH = 512  # frames
_LEARNING_RATE = 3e-3  # at its highest
_MAX_PASSES = 24  # over the codes
_FEWER_CODEBOOKS = 0.15  # share of the frames whose previous frame has fewer codebooks
_SILENCE = 0.01  # share of the frames that are digital silence
_DROPOUT = 0.25  # share of the hidden values
_ROUNDED = 0.25  # last part of the training, in which weights are rounded as in the result

# Limits of the sums of rounded weights, so that integers stay exact in floats of 32 bits.
_MAX_SUM = 40_000
_MAX_LOGIT_SUM = 16_000
_MAX_BIAS = 2**21

# Changes of recordings that are encoded again
_TURNS = 8  # times that all recordings are encoded, at most
_MAX_DELAY = 0.04  # seconds
_GAIN_DB = (-8, 4)
_MAX_SPEED_CHANGE = 0.06  # as a share of the speed
_SHORT = 60.0  # seconds, less of which a network learns by heart: other audio takes more bits then


def fit_entropy_model(
    codec: Codec,
    recordings: Any,
    *,
    minutes: float = 15.0,
    seed: int = 0,
    progress: Callable[[str], Any] | None = None,
) -> EntropyModel:
    """Train the entropy model of a checkpoint on recordings like those it will be used for.

    Recordings are encoded in random order, and again with small changes while there is time.

    Args:
        codec: the codec whose codes are to be predicted.
        recordings: folders, audio files or tables, as `codecplus.recordings.open_recordings` takes
            them. Ten minutes of audio help, an hour is better; less than one is warned of.
        minutes: wall-clock time for encoding and training. Encoding takes up to a third of it, or
            up to half if a third is too short to encode every recording once.
        seed: of the order of recordings and of the training.
        progress: called with a line of text now and then.

    Raises:
        InputError: if there is no readable audio.
    """
    start = time.monotonic()
    half = start + 30 * minutes
    third = start + 20 * minutes
    clips = list(_encoded(codec, numbered_recordings(recordings), half, third, seed))
    if progress is not None:
        frames = sum(clip.shape[-1] for clip in clips)
        progress(f"{len(clips)} clips, {frames / codec.frame_rate / 60:.1f} minutes of codes")
    zeros = np.zeros(2 * codec.model_sample_rate, np.float32)
    silence = np.asarray(codec.encode(zeros, codec.model_sample_rate))
    return fit_network(
        clips,
        CodebookGeometry.of(codec),
        codec.fingerprint,
        silence=silence,
        deadline=start + 60 * minutes,
        seed=seed,
        progress=progress,
    )


@dataclass(frozen=True)
class CodebookGeometry:
    """The geometry of a model's codebooks, from which an entropy model starts."""

    entries: Tensor
    """(K, 2**W, d): the vector of each code."""
    directions: Tensor
    """(K, 2**W, d): the direction of the latents that get each code."""
    views: Tensor
    """(K, d, K, d): views[k, :, j] @ e is what codebook k sees of an entry e of codebook j."""

    @classmethod
    def of(cls, codec: Codec) -> "CodebookGeometry":
        """Return the codebooks of a codec."""
        quantizer = codec.model.quantizer
        with torch.no_grad():
            weights = quantizer.weights()
            entries = torch.stack(weights.codebooks).cpu()
            K, _, d = entries.shape
            # Coordinates that only steer the search (`training.codebooks.initialize`) are not
            # decoded, and say nothing about the audio.
            decoded = (weights.out != 0).any(dim=0).cpu().view(K, 1, d)
            return cls(
                entries=entries * decoded,
                directions=F.normalize(entries, dim=-1) * decoded,
                views=(weights.into @ weights.out).cpu().view(K, d, K, d),
            )


def fit_network(
    clips: Sequence[np.ndarray],
    codebooks: CodebookGeometry,
    fingerprint: bytes,
    *,
    silence: np.ndarray | None = None,
    steps: int | None = None,
    deadline: float = math.inf,
    seed: int = 0,
    progress: Callable[[str], Any] | None = None,
) -> EntropyModel:
    """Train a network on codes of clips, for some time or a number of steps.

    Args:
        clips: codes (K, T) of recordings, with all codebooks.
        codebooks: the codebooks of the model that made the codes.
        fingerprint: the fingerprint of that model.
        silence: codes (K, T) of digital silence, mixed in so that silence takes few bits.
        steps: number of steps; by default as many as the time allows, up to 24 passes over the
            codes.
        deadline: when to stop, by `time.monotonic`.
        seed: of the training.
        progress: called with a line of text now and then.

    Raises:
        InputError: if there are no codes.
    """
    if not clips or min(clip.shape[-1] for clip in clips) < 1:
        raise InputError("expected codes of at least one clip, got none")
    size = codebooks.entries.shape[1]
    generator = torch.Generator().manual_seed(seed)
    frames = torch.from_numpy(np.concatenate([_windows(clip, size) for clip in clips]))  # (N, L, K)
    silent_frames = frames[:0]
    if silence is not None:
        silent_frames = torch.from_numpy(_windows(silence, size))
    if steps is None:
        schedule = _Schedule(max(200, _MAX_PASSES * len(frames) // _BATCH), deadline)
    else:
        schedule = _Schedule(steps)
    model = _FloatNetwork(frames, codebooks, generator)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.03, fused=True
    )
    for step, done in schedule:
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, done)
        batch = frames[torch.randint(len(frames), (_BATCH,), generator=generator)]
        batch = _augmented(batch, silent_frames, size, generator)
        if done > 1 - _ROUNDED and not model.rounded:
            model.round(batch)
        loss = model.bits(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress is not None and step % 100 == 0:
            progress(f"step {step}, {100 * done:.0f} %: {loss.item():.3f} bits per code")
    if not model.rounded:
        model.round(frames[:_BATCH])
    return EntropyModel(model.arrays(), fingerprint)


class _Schedule:
    """The steps of a training, each with the share of the training that is done before it.

    With a deadline by `time.monotonic` the clock may end the training before its last step; it then
    sets the share, too.
    """

    def __init__(self, steps: int, deadline: float = math.inf):
        self.steps = steps
        self.deadline = deadline

    def __iter__(self) -> Iterator[tuple[int, float]]:
        start = time.monotonic()
        time_allowed = max(1e-9, self.deadline - start)
        for step in range(self.steps):
            clock = (time.monotonic() - start) / time_allowed
            done = max(step / self.steps, clock)
            if done >= 1:
                return
            yield step, done


def _learning_rate(step: int, done: float) -> float:
    """Return the learning rate of a step, when this share of the training is done."""
    warmup = min(1.0, (step + 1) / 50)
    decay = 0.02 + 0.49 * (1 + np.cos(np.pi * done))
    return _LEARNING_RATE * warmup * decay


class _FloatNetwork(nn.Module):
    """The network in floats.

    After `round`, weights and hidden values are rounded as in the integer network.

    Args:
        frames: windows (N, L, K) of codes, from which biases begin.
        codebooks: of the model that made the codes.
        generator: draws random weights and dropout.
    """

    ranks: Tensor  # (K, N): the place of each code in an order of similar directions
    polynomials: Tensor  # (K, P, N): terms of the direction of each code, by rank
    known: Tensor  # (K, L * K * d, 1): 1 where a codebook may look at a vector, else 0

    def __init__(self, frames: Tensor, codebooks: CodebookGeometry, generator: torch.Generator):
        super().__init__()
        H = _HIDDEN
        K, N, entry_width = codebooks.entries.shape
        d = max(entry_width, _WIDTH)
        lows = 1 << low_bits(N)
        self.sizes = (K, d, H, N // lows, lows)
        self.rounded = False
        self.generator = generator

        ranks, ranked = _by_similarity(codebooks.directions)
        self.register_buffer("ranks", ranks)
        self.register_buffer("polynomials", _polynomials(ranked).transpose(1, 2).contiguous())
        self.register_buffer("known", _known_vectors(K, d).view(K, -1, 1))

        def normal(*shape: int, scale: float) -> Tensor:
            return torch.randn(*shape, generator=generator) * scale

        # The mean of all entries tells nothing about a code.
        entries = codebooks.entries - codebooks.entries.mean(dim=1, keepdim=True)
        size = entries.std(dim=(1, 2))  # (K,)
        vectors = torch.zeros(K, N + 1, d)  # the last one stands for a missing code
        vectors[:, :N, :entry_width] = entries / (size[:, None, None] + 1e-9)
        self.codes = nn.Parameter(vectors)
        hidden = normal(K, LAGS, K, d, H, scale=0.1)
        self._look_through_codebooks(hidden, codebooks.views * size[:, None], frames[:2000])
        self.hidden = nn.Parameter(hidden.view(K, -1, H))
        self.hidden_bias = nn.Parameter(torch.zeros(K, H))
        self.high = nn.Parameter(normal(K, H, N // lows, scale=0.02))
        self.slopes = nn.Parameter(normal(K, H, self.polynomials.shape[1], scale=0.02))
        self.own = nn.Parameter(torch.zeros(K, H, N))
        counts = (self._rank_counts(frames[:, 0]) + 0.5).view(K, N // lows, lows)
        self.high_bias = nn.Parameter(_log_shares(counts.sum(dim=-1)))
        self.low_bias = nn.Parameter(_log_shares(counts))

    def _rank_counts(self, codes: Tensor) -> Tensor:
        """Count how often each rank occurs: codes (N, K) -> counts (K, 2**W)."""
        counts = []
        for ranks, column in zip(self.ranks, codes.t(), strict=True):
            counts.append(torch.bincount(ranks[column], minlength=len(ranks)))
        return torch.stack(counts)

    @torch.no_grad()
    def _look_through_codebooks(self, hidden: Tensor, views: Tensor, frames: Tensor) -> None:
        """Set the first hidden weights: a codebook's views of both frames and their difference.

        Args:
            hidden: weights (K, L, K, d, H), which are changed.
            views: how codebooks see the vectors of codes, (K, d, K, d).
            frames: windows (N, L, K) of codes, which tell the scale.
        """
        K = self.sizes[0]
        H = self.sizes[2]
        d = views.shape[1]
        known = self.known.view(K, LAGS, K, -1)[..., :1]  # (K, L, K, 1)
        columns = [self.codes[j, frames[:, 1, j], :d] for j in range(K)]
        vectors = torch.stack(columns, dim=1)  # (N, K, d)
        for k in range(K):
            weights = views[k].permute(1, 2, 0)  # (K, d, d)
            view = torch.einsum("njd,jde->ne", vectors * known[k, 1], weights)
            weights = weights / (view.std() + 1e-9)
            now = torch.zeros(LAGS, K, d, d)
            now[0] = weights
            before = torch.zeros(LAGS, K, d, d)
            before[1] = weights
            looks = torch.cat([before - now, before, now], dim=-1)
            looks = torch.cat([looks, -looks], dim=-1)[..., :H]
            looks = looks * known[k, ..., None]
            hidden[k, ..., :d, : looks.shape[-1]] = looks

    def bits(self, frames: Tensor) -> Tensor:
        """Return the bits (K, N) of the codes of windows (N, L, K)."""
        lows = self.sizes[-1]
        h = self._hidden(frames)
        if self.training:  # without dropout the network learns its few recordings by heart
            mask = torch.empty_like(h[0]).bernoulli_(1 - _DROPOUT, generator=self.generator)
            h = h * mask / (1 - _DROPOUT)
        ranks = self.ranks.gather(1, frames[:, 0].t())  # (K, N)
        high = ranks // lows
        low = ranks % lows
        high_logits = torch.baddbmm(self.high_bias[:, None], h, self._weights("high"))
        low_logits = self._low_logits(h, high)
        high_nats = F.cross_entropy(high_logits.transpose(1, 2), high, reduction="none")
        low_nats = F.cross_entropy(low_logits.transpose(1, 2), low, reduction="none")
        return (high_nats + low_nats) / np.log(2)

    def _low_logits(self, h: Tensor, high: Tensor) -> Tensor:
        """Return logits (K, N, lows) for hidden values (K, N, H) after high symbols (K, N)."""
        K, _, H, highs, lows = self.sizes
        # Codes with the same high symbol share their weights: they are sorted into groups, which
        # one batched product multiplies.
        group = (high + highs * torch.arange(K)[:, None]).flatten()  # (K * N,)
        order = group.argsort()
        counts = torch.bincount(group, minlength=K * highs)
        first_of_group = counts.cumsum(0) - counts
        group_size = int(counts.max())
        slot = torch.empty_like(order)  # of each code, within groups of that size
        slot[order] = torch.arange(len(order)) - first_of_group[group[order]]
        slot += group * group_size
        grouped = h.new_zeros(K * highs * group_size, H).index_copy(0, slot, h.flatten(0, 1))
        grouped = grouped.view(K * highs, group_size, H)
        weights = self._weights("low").view(K, H, highs, lows).transpose(1, 2).flatten(0, 1)
        logits = torch.baddbmm(self.low_bias.view(K * highs, 1, lows), grouped, weights)
        return logits.flatten(0, 1)[slot].view(*high.shape, lows)

    def _hidden(self, frames: Tensor) -> Tensor:
        """Return the hidden values (K, N, H) of windows (N, L, K)."""
        K, d, H, highs, lows = self.sizes
        vectors = self._weights("codes").view(-1, d)
        first_of_codebook = torch.arange(K) * (highs * lows + 1)
        x = F.embedding(frames + first_of_codebook, vectors).flatten(1)  # (N, L * K * d)
        weights = (self._weights("hidden") * self.known).transpose(0, 1).reshape(-1, K * H)
        h = (x @ weights + self.hidden_bias.reshape(-1)).relu()
        h = h.view(-1, K, H).transpose(0, 1)
        if self.rounded:
            step = self.unit["hidden_value"]
            h = _straight_through(h, (h / step).floor().clamp(max=255) * step)
        return h

    @property
    def low(self) -> Tensor:
        """The weights (K, H, 2**W) of the low symbols, high symbol by high symbol."""
        return self.slopes @ self.polynomials + self.own

    def _weights(self, name: str) -> Tensor:
        weights = getattr(self, name)
        if not self.rounded:
            return weights
        unit = self.unit[name]
        return _straight_through(weights, _rounded(weights, unit) * unit)

    @torch.no_grad()
    def round(self, frames: Tensor) -> None:
        """Fix the units of rounding, by the range of hidden values on windows (N, L, K)."""
        h = self._hidden(frames)
        codes = self.codes.abs().amax() / 127
        weights = (self.hidden * self.known).abs()
        by_weight = weights.amax(dim=(1, 2)) / 127
        by_sum = weights.sum(dim=1).amax(dim=1) / _MAX_SUM
        hidden = torch.maximum(by_weight, by_sum)  # (K,)
        largest_value = h.reshape(len(h), -1).quantile(0.9995, dim=1).clamp(min=1e-6)
        shift = (largest_value / (codes * hidden) / 255).log2().ceil().clamp(0, 24)
        value = codes * hidden * 2**shift
        self.shifts = {"hidden": shift}
        self.unit = {
            "codes": codes,
            "hidden": hidden.view(-1, 1, 1),
            "hidden_value": value.view(-1, 1, 1),
        }
        for name in ("high", "low"):
            # The unit of shifted logits is 1/32 bit. That of sums before the shift is finer, so
            # that weights use all 8 bits.
            per_weight = 32 / np.log(2) * value
            weights = getattr(self, name).abs()
            by_weight = weights.amax(dim=(1, 2))
            by_sum = weights.sum(dim=1).amax(dim=1) * 127 / _MAX_LOGIT_SUM
            largest = torch.maximum(by_weight, by_sum)
            shift = (127 / (largest * per_weight)).log2().floor().clamp(0, 12)
            unit = 1 / (per_weight * 2**shift)
            self.shifts[name] = shift
            self.unit[name] = unit.view(-1, 1, 1)
        self.rounded = True

    @torch.no_grad()
    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of `bitstream.EntropyModel`."""
        sums = {"hidden": (self.unit["codes"] * self.unit["hidden"])[:, 0]}
        value = self.unit["hidden_value"][:, 0]
        sums["high"] = self.unit["high"][:, 0] * value
        sums["low"] = self.unit["low"] * value[..., None]
        arrays = {
            "ranks": self.ranks.numpy().astype(np.int16),
            "codes": _rounded(self.codes, self.unit["codes"]).numpy().astype(np.int8),
        }
        for name in ("hidden", "high", "low"):
            weights = getattr(self, name)
            bias = getattr(self, f"{name}_bias")
            if name == "hidden":
                weights = weights * self.known
            else:
                bias = bias - bias.amax(dim=-1, keepdim=True)
            weights = _rounded(weights, self.unit[name])
            if name == "low":
                K, _, H, highs, lows = self.sizes
                weights = weights.view(K, H, highs, lows).transpose(1, 2)
            bias = (bias / sums[name]).round().clamp(-_MAX_BIAS, _MAX_BIAS)
            arrays[name] = weights.numpy().astype(np.int8)
            arrays[f"{name}_bias"] = bias.numpy().astype(np.int32)
            arrays[f"{name}_shift"] = self.shifts[name].numpy().astype(np.uint8)
        return arrays


def _known_vectors(K: int, d: int) -> Tensor:
    """Return 1 for the vectors that each codebook may look at, else 0: (K, L, K, d, 1).

    It may look at coarser codebooks of the current frame, and at coarser ones and itself in earlier
    frames.
    """
    known = torch.zeros(K, LAGS, K, d, 1)
    for k in range(K):
        known[k, 0, :k] = 1
        known[k, 1:, : k + 1] = 1
    return known


def _by_similarity(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rank of each code, (K, N), and the directions (K, N, d) by rank.

    Codes of neighbouring ranks have similar directions.
    """
    orders = []
    ranked = []
    for book in directions:
        order = _similar_order(book.numpy().astype(np.float64), np.arange(len(book)))
        orders.append(order)
        ranked.append(book[torch.from_numpy(order)])
    return torch.from_numpy(np.argsort(orders, axis=1)), torch.stack(ranked)


def _polynomials(directions: Tensor) -> Tensor:
    """Return coordinates (K, N, d) with their squares and products: (K, N, P).

    Each has mean 0 and deviation 1.
    """
    i, j = np.triu_indices(min(_WIDTH, directions.shape[-1]))
    terms = torch.cat([directions, directions[..., i] * directions[..., j]], dim=-1)
    terms = terms - terms.mean(dim=1, keepdim=True)
    return terms / terms.std(dim=1, keepdim=True).clamp(min=1e-4)


def _similar_order(vectors: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return the indices `among` in an order in which neighbouring vectors (N, d) are similar.

    They are split into halves along the axis of most variance, recursively.
    """
    if len(among) == 1:
        return among
    centred = vectors[among] - vectors[among].mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    among = among[np.argsort(centred @ axes[:, -1], kind="stable")]
    middle = len(among) // 2
    first_half = _similar_order(vectors, among[:middle])
    second_half = _similar_order(vectors, among[middle:])
    return np.concatenate([first_half, second_half])


def _log_shares(counts: Tensor) -> Tensor:
    return (counts / counts.sum(dim=-1, keepdim=True)).log()


def _rounded(weights: Tensor, step: Tensor) -> Tensor:
    return (weights / step).round().clamp(-127, 127)


def _straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    """Return the rounded value; its gradient goes to the value that was rounded."""
    return value + (rounded - value).detach()


def _windows(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """Return codes (K, T) as windows (T, L, K): each frame, then the frames before it.

    `codebook_size` stands for the codes of frames before the first.
    """
    before = ((0, 0), (LAGS - 1, 0))
    padded = np.pad(np.asarray(codes, np.int64), before, constant_values=codebook_size)
    frames = codes.shape[-1]
    lagged = []
    for lag in range(LAGS):
        start = LAGS - 1 - lag
        lagged.append(padded[:, start : start + frames].T)
    return np.stack(lagged, axis=1)


def _augmented(
    frames: Tensor, silence: Tensor, codebook_size: int, generator: torch.Generator
) -> Tensor:
    """Change some windows (N, L, K).

    In some the earlier frames lose their finest codebooks, as at a variable rate; some become
    silence.
    """
    count = len(frames)
    K = frames.shape[-1]
    present = torch.randint(1, K + 1, (count, 1, 1), generator=generator)
    present[torch.rand(count, generator=generator) > _FEWER_CODEBOOKS] = K
    missing = (torch.arange(K) >= present).expand(-1, LAGS, -1).clone()
    missing[:, 0] = False
    frames = frames.masked_fill(missing, codebook_size)
    silent = int(_SILENCE * count)
    if len(silence) and silent:
        frames[:silent] = silence[torch.randint(len(silence), (silent,), generator=generator)]
    return frames


def numbered_recordings(data: Any) -> "Sequence[Recording] | TableRecordings":
    """Return the recordings by number."""
    recordings = open_recordings(data, columns=())
    if isinstance(recordings, FileRecordings):
        paths = recordings.sorted_paths()
        return [Recording(index, path.name, path) for index, path in enumerate(paths)]
    if isinstance(recordings, StreamRecordings):
        raise InputError("expected files or a table, got a stream; they are read in random order")
    return recordings


def _encoded(
    codec: Codec,
    recordings: "Sequence[Recording] | TableRecordings",
    deadline: float,
    second_deadline: float,
    seed: int,
) -> Iterator[np.ndarray]:
    """Yield codes (K, T) of every channel of the recordings, in random order.

    Then all are encoded again and again, with small changes, so that the network learns about codes
    rather than about these recordings. The first round ends at `deadline` by `time.monotonic`, the
    other ones at `second_deadline`. A warning counts recordings of the first round that cannot be
    read; another one says if they are too short to learn from.
    """
    rng = np.random.default_rng(seed)
    for turn in range(_TURNS):
        is_first = turn == 0
        limit = deadline if is_first else second_deadline
        any_read = False
        is_over = False
        unreadable = tried = 0
        seconds = 0.0
        for index in rng.permutation(len(recordings)):
            if (any_read or not is_first) and time.monotonic() > limit:
                is_over = True
                break
            tried += 1
            try:
                with recordings[int(index)].open() as source:
                    rate = source.sample_rate
                    audio = np.concatenate(list(source.blocks()), axis=1)
            except CodecPlusError:
                unreadable += 1
                continue
            if not is_first:
                audio, rate = _changed(audio, rate, rng)
            seconds += audio.shape[-1] / rate
            yield from np.asarray(codec.encode(audio, rate))
            any_read = True
        if is_first and any_read and unreadable:
            warnings.warn(
                f"{unreadable} of {tried} recordings left out: not readable", stacklevel=3
            )
        if is_first and any_read and seconds < _SHORT:
            warnings.warn(
                f"{seconds:.0f} s of audio were encoded, an entropy model needs minutes: this one "
                "may make files longer; add recordings or time",
                stacklevel=3,
            )
        if is_over:
            return
        if not any_read:
            raise InputError("expected recordings that can be read, got none")


def _changed(audio: np.ndarray, rate: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Return audio (C, S) with a random delay, gain and speed, and the rate to play it at."""
    delay = int(rng.uniform(0, _MAX_DELAY) * rate)
    gain = 10 ** (rng.uniform(*_GAIN_DB) / 20)
    audio = np.pad(np.atleast_2d(audio), ((0, 0), (delay, 0)))
    peak = float(np.abs(audio).max(initial=1e-9))
    gain = min(gain, max(1.0, 1 / peak))
    speed = 1 + rng.uniform(-_MAX_SPEED_CHANGE, _MAX_SPEED_CHANGE)
    return audio * np.float32(gain), round(rate * speed)
