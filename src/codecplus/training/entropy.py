"""Trains entropy models: small networks that predict the codes of one checkpoint, in minutes.

The network is that of `bitstream.EntropyModel`. It is trained in floats here and rounded to
integers at the end.

An hour of audio is little for a network that tells 1024 codes apart, so it starts from the geometry
of the codebooks. A codebook sees what the coarser ones left of a latent, through a matrix of its
own. So does the network at first: it looks at what the frame before would show there, less what the
coarser codebooks of this frame hold already. And an entry's likelihood depends smoothly on where it
lies: its logit is a polynomial of its direction, plus a little of its own.
"""

import time
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
_BATCH = 512  # frames
_RATE = 3e-3  # of learning, at its highest
_TRUNCATED = 0.15  # share of the frames that stand behind one with fewer codebooks
_SILENCE = 0.01  # share of the frames that are digital silence
# Limits of the sums of rounded weights, so that integers stay exact in floats of 32 bits.
_MAX_SUM = 40_000
_MAX_LOGIT_SUM = 16_000
_ROUNDED = 0.25  # last part of the training, in which weights are rounded as they will be
_DROPPED = 0.25  # share of the hidden values that are left out in training
_PASSES = 24  # over the codes, at most
_TURNS, _LATER, _LOUDER, _FASTER = (
    8,
    0.04,
    (-8, 4),
    0.06,
)  # changes of recordings: how often, up to s, dB, share


def fit_entropy_model(
    codec: Codec,
    recordings: Any,
    *,
    minutes: float = 15.0,
    seed: int = 0,
    progress: Callable[[str], Any] | None = None,
) -> EntropyModel:
    """Train the entropy model of a checkpoint on recordings like those it will be used for.

    Args:
        codec: the codec whose codes are to be predicted.
        recordings: folders, audio files or tables, as `codecplus.recordings.open_recordings` takes
            them. Ten minutes of audio are of use, an hour is better.
        minutes: wall-clock time for all of it. Up to a third goes into encoding all recordings, and
            then again, a little changed; up to half, if not all of them can be encoded in a third.
            They are drawn at random.
        seed: of the drawing and the training.
        progress: called with a line of text now and then.

    Raises:
        InputError: if there is no readable audio.
    """
    start = time.monotonic()
    say = progress or (lambda line: None)
    clips = list(
        _encoded(codec, _open(recordings), start + 30 * minutes, start + 20 * minutes, seed)
    )
    frames = sum(clip.shape[-1] for clip in clips)
    say(f"{len(clips)} clips, {frames / codec.frame_rate / 60:.1f} minutes of codes")
    silence = np.asarray(
        codec.encode(np.zeros(2 * codec.model_sample_rate, np.float32), codec.model_sample_rate)
    )
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
    """The codebooks of a model as an entropy model starts from them."""

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
            into, out, _, _, books = quantizer._weights(quantizer.quantizers)
            entries = torch.stack(books).cpu()
            K, _, d = entries.shape
            # Coordinates that only steer the search (`training.codebooks.initialize`) say nothing
            # of the audio.
            heard = (out != 0).any(dim=0).cpu().view(K, 1, d)
            return cls(
                entries * heard,
                F.normalize(entries, dim=-1) * heard,
                (into @ out).cpu().view(K, d, K, d),
            )


def fit_network(
    clips: Sequence[np.ndarray],
    codebooks: CodebookGeometry,
    fingerprint: bytes,
    *,
    silence: np.ndarray | None = None,
    steps: int | None = None,
    deadline: float = float("inf"),
    seed: int = 0,
    progress: Callable[[str], Any] | None = None,
) -> EntropyModel:
    """Train a network on codes of clips, for some time or a number of steps.

    Args:
        clips: the codes of one recording each, all with all codebooks.
        codebooks: of the model that made the codes.
        fingerprint: of the checkpoint that made the codes.
        silence: codes (K, T) of digital silence, mixed in so that silence is cheap.
        steps: to train for; by default as many as the time allows, up to 24 passes over the codes.
        deadline: when to stop, by `time.monotonic`.
        seed: of the training.
        progress: called with a line of text now and then.

    Raises InputError if there are no codes.
    """
    if not clips or min(clip.shape[-1] for clip in clips) < 1:
        raise InputError("expected codes of at least one clip, got none")
    size = codebooks.entries.shape[1]
    generator = torch.Generator().manual_seed(seed)
    frames = torch.from_numpy(np.concatenate([_windows(clip, size) for clip in clips]))  # (N, L, K)
    quiet = frames[:0] if silence is None else torch.from_numpy(_windows(silence, size))
    most = steps or max(200, _PASSES * len(frames) // _BATCH)
    model = _FloatNetwork(frames, codebooks, generator)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=0.03, fused=True
    )
    started = time.monotonic()
    for step in range(most):
        # Time is what is given: the schedule follows the clock where the clock is what ends it.
        clock = (time.monotonic() - started) / max(1e-9, deadline - started)
        done = step / most if steps else max(step / most, clock)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = (
                _RATE * min(1.0, (step + 1) / 50) * (0.02 + 0.49 * (1 + np.cos(np.pi * done)))
            )
        batch = frames[torch.randint(len(frames), (_BATCH,), generator=generator)]
        batch = _augmented(batch, quiet, size, generator)
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


class _FloatNetwork(nn.Module):
    """The network in floats.

    Once `round` was called, weights and hidden values are rounded as in the integer one.
    """

    def __init__(self, frames: Tensor, codebooks: CodebookGeometry, generator: torch.Generator):
        super().__init__()
        entries = codebooks.entries
        directions = codebooks.directions
        H = _HIDDEN
        K, N, seen = entries.shape
        d = max(seen, _WIDTH)
        lows = 1 << low_bits(N)
        self.sizes = (K, d, H, N // lows, lows)
        self.rounded = False
        self.generator = generator
        entries = entries - entries.mean(
            dim=1, keepdim=True
        )  # what all entries of a codebook share tells nothing
        by_rank = [
            _similar_order(book.numpy().astype(np.float64), np.arange(N)) for book in directions
        ]
        self.ranks: Tensor
        self.register_buffer("ranks", torch.from_numpy(np.argsort(by_rank, axis=1)))
        ranked = torch.stack(
            [book[torch.from_numpy(order)] for book, order in zip(directions, by_rank, strict=True)]
        )
        self.places: Tensor
        self.register_buffer(
            "places", _polynomials(ranked).transpose(1, 2).contiguous()
        )  # (K, P, N)

        def normal(*shape: int, scale: float) -> Tensor:
            return torch.randn(*shape, generator=generator) * scale

        size = entries.std(dim=(1, 2))  # (K,)
        vectors = torch.zeros(K, N + 1, d)
        vectors[:, :N, :seen] = entries / (size[:, None, None] + 1e-9)
        self.codes = nn.Parameter(vectors)
        known = torch.zeros(K, LAGS, K, d, 1)
        for k in range(K):
            known[k, 0, :k], known[k, 1:, : k + 1] = 1, 1
        self.known: Tensor
        self.register_buffer("known", known.view(K, -1, 1))
        hidden = normal(K, LAGS, K, d, H, scale=0.1)
        self._look_through_codebooks(hidden, codebooks.views * size[:, None], frames[:2000])
        self.hidden = nn.Parameter(hidden.view(K, -1, H))
        self.hidden_bias = nn.Parameter(torch.zeros(K, H))
        self.high = nn.Parameter(normal(K, H, N // lows, scale=0.02))
        self.slopes = nn.Parameter(normal(K, H, self.places.shape[1], scale=0.02))
        self.own = nn.Parameter(torch.zeros(K, H, N))
        counts = torch.stack(
            [
                torch.bincount(ranks[book], minlength=N)
                for ranks, book in zip(self.ranks, frames[:, 0].t(), strict=True)
            ]
        )
        counts = (counts + 0.5).view(K, N // lows, lows)
        self.high_bias = nn.Parameter(_log_shares(counts.sum(dim=-1)))
        self.low_bias = nn.Parameter(_log_shares(counts))

    @torch.no_grad()
    def _look_through_codebooks(self, hidden: Tensor, views: Tensor, frames: Tensor) -> None:
        """Let hidden values begin as what a codebook sees of this frame, the one before, and their
        difference.

        hidden (K, L, K, d, H) is changed; views (K, d, K, d) are those of the vectors of codes,
        frames (N, L, K) of any audio.
        """
        K = self.sizes[0]
        H = self.sizes[2]
        d = views.shape[1]
        known = self.known.view(K, LAGS, K, -1)[..., :1]  # (K, L, K, 1)
        vectors = torch.stack(
            [self.codes[j, frames[:, 1, j], :d] for j in range(K)], dim=1
        )  # (N, K, d)
        for k in range(K):
            weights = views[k].permute(1, 2, 0)  # (K, d, d)
            seen = torch.einsum("njd,jde->ne", vectors * known[k, 1], weights)
            weights = weights / (seen.std() + 1e-9)
            before, now = torch.zeros(2, LAGS, K, d, d)
            before[1], now[0] = weights, weights
            looks = torch.cat([before - now, before, now], dim=-1)
            looks = torch.cat([looks, -looks], dim=-1)[..., :H] * known[k, ..., None]
            hidden[k, ..., :d, : looks.shape[-1]] = looks

    def bits(self, frames: Tensor) -> Tensor:
        """Return the bits (K, N) of the codes of windows (N, L, K)."""
        lows = self.sizes[-1]
        h = self._hidden(frames)
        if self.training:  # recordings are few: without this, hidden values learn them by heart
            stay = torch.empty_like(h[0]).bernoulli_(1 - _DROPPED, generator=self.generator)
            h = h * stay / (1 - _DROPPED)
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
        # Codes with the same high symbol share their weights: they are gathered, and multiplied at
        # once.
        group = (high + highs * torch.arange(K)[:, None]).flatten()
        order = group.argsort()
        counts = torch.bincount(group, minlength=K * highs)
        room = int(counts.max())
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[group[order]]
        place += group * room
        grouped = (
            h.new_zeros(K * highs * room, H)
            .index_copy(0, place, h.flatten(0, 1))
            .view(K * highs, room, H)
        )
        weights = self._weights("low").view(K, H, highs, lows).transpose(1, 2).flatten(0, 1)
        logits = torch.baddbmm(self.low_bias.view(K * highs, 1, lows), grouped, weights)
        return logits.flatten(0, 1)[place].view(*high.shape, lows)

    def _hidden(self, frames: Tensor) -> Tensor:
        """Return the hidden values (K, N, H) of windows (N, L, K)."""
        K, d, H, highs, lows = self.sizes
        codes = self._weights("codes").view(-1, d)
        x = F.embedding(frames + torch.arange(K) * (highs * lows + 1), codes).flatten(
            1
        )  # (N, L * K * d)
        hidden = self._weights("hidden") * self.known
        h = (x @ hidden.transpose(0, 1).reshape(-1, K * H) + self.hidden_bias.reshape(-1)).relu()
        h = h.view(-1, K, H).transpose(0, 1)
        if self.rounded:
            step = self.unit["hidden_value"]
            h = _straight(h, (h / step).floor().clamp(max=255) * step)
        return h

    @property
    def low(self) -> Tensor:
        """The weights (K, H, 2**W) of the low symbols, high symbol by high symbol."""
        return self.slopes @ self.places + self.own

    def _weights(self, name: str) -> Tensor:
        weights = getattr(self, name)
        if not self.rounded:
            return weights
        unit = self.unit[name]
        return _straight(weights, _rounded(weights, unit) * unit)

    @torch.no_grad()
    def round(self, frames: Tensor) -> None:
        """Fix the units to round to, by the range that hidden values have on frames (N, L, K)."""
        h = self._hidden(frames)
        codes = self.codes.abs().amax() / 127
        weights = (self.hidden * self.known).abs()
        hidden = torch.maximum(
            weights.amax(dim=(1, 2)) / 127, weights.sum(dim=1).amax(dim=1) / _MAX_SUM
        )  # (K,)
        largest = h.reshape(len(h), -1).quantile(0.9995, dim=1).clamp(min=1e-6)
        shift = (largest / (codes * hidden) / 255).log2().ceil().clamp(0, 24)
        value = codes * hidden * 2**shift
        self.shifts = {"hidden": shift}
        self.unit = {
            "codes": codes,
            "hidden": hidden.view(-1, 1, 1),
            "hidden_value": value.view(-1, 1, 1),
        }
        for name in ("high", "low"):
            # Logits count in 1/32 bit once they are shifted; before, in finer steps, so that the
            # weights use 8 bits.
            per_weight = 32 / np.log(2) * value
            weights = getattr(self, name).abs()
            largest = torch.maximum(
                weights.amax(dim=(1, 2)), weights.sum(dim=1).amax(dim=1) * 127 / _MAX_LOGIT_SUM
            )
            shift = (127 / (largest * per_weight)).log2().floor().clamp(0, 12)
            unit = 1 / (per_weight * 2**shift)
            self.shifts[name] = shift
            self.unit[name] = unit.view(-1, *[1] * (getattr(self, name).ndim - 1))
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
            arrays[name] = weights.numpy().astype(np.int8)
            arrays[f"{name}_bias"] = (
                (bias / sums[name]).round().clamp(-(2**21), 2**21).numpy().astype(np.int32)
            )
            arrays[f"{name}_shift"] = self.shifts[name].numpy().astype(np.uint8)
        return arrays


def _polynomials(places: Tensor) -> Tensor:
    """Return coordinates (K, N, d) with their squares and products: (K, N, P).

    Each has mean 0 and deviation 1.
    """
    i, j = np.triu_indices(min(_WIDTH, places.shape[-1]))
    terms = torch.cat([places, places[..., i] * places[..., j]], dim=-1)
    terms = terms - terms.mean(dim=1, keepdim=True)
    return terms / terms.std(dim=1, keepdim=True).clamp(min=1e-4)


def _similar_order(vectors: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return indices in an order in which neighbours are similar.

    They are halved along the axis of most variance, again and again.
    """
    if len(among) == 1:
        return among
    centred = vectors[among] - vectors[among].mean(axis=0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    among = among[np.argsort(centred @ axis, kind="stable")]
    half = len(among) // 2
    return np.concatenate(
        [_similar_order(vectors, among[:half]), _similar_order(vectors, among[half:])]
    )


def _log_shares(counts: Tensor) -> Tensor:
    return (counts / counts.sum(dim=-1, keepdim=True)).log()


def _rounded(weights: Tensor, step: Tensor) -> Tensor:
    return (weights / step).round().clamp(-127, 127)


def _straight(value: Tensor, rounded: Tensor) -> Tensor:
    """Return the rounded value, with the gradient of the other one."""
    return value + (rounded - value).detach()


def _windows(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """Return codes (K, T) as windows (T, L, K): the frame itself, then those before it."""
    padded = np.pad(
        np.asarray(codes, np.int64), ((0, 0), (LAGS - 1, 0)), constant_values=codebook_size
    )
    frames = codes.shape[-1]
    return np.stack(
        [padded[:, LAGS - 1 - lag : LAGS - 1 - lag + frames].T for lag in range(LAGS)], axis=1
    )


def _augmented(
    frames: Tensor, silence: Tensor, codebook_size: int, generator: torch.Generator
) -> Tensor:
    """Change some windows (N, L, K): fewer codebooks before, as at a variable rate, or silence."""
    count = len(frames)
    K = frames.shape[-1]
    present = torch.randint(1, K + 1, (count, 1, 1), generator=generator)
    present[torch.rand(count, generator=generator) > _TRUNCATED] = K
    missing = (torch.arange(K) >= present).expand(-1, LAGS, -1).clone()
    missing[:, 0] = False
    frames = frames.masked_fill(missing, codebook_size)
    share = int(_SILENCE * count) if len(silence) else 0
    if share:
        frames[:share] = silence[torch.randint(len(silence), (share,), generator=generator)]
    return frames


def _open(data: Any) -> "Sequence[Recording] | TableRecordings":
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
    """Yield codes (K, T) of every channel of the recordings, in random order, until the deadline.

    From then on until the second deadline, if it is later, all are encoded again and again, a
    little changed every time: so the network learns what codes have in common rather than the
    recordings.
    """
    rng = np.random.default_rng(seed)
    for turn in range(_TURNS):
        is_first = turn == 0
        limit = deadline if is_first else second_deadline
        any_read = False
        for index in rng.permutation(len(recordings)):
            if (any_read or not is_first) and time.monotonic() > limit:
                return
            try:
                with recordings[int(index)].open() as source:
                    rate = source.sample_rate
                    audio = np.concatenate(list(source.blocks()), axis=1)
            except CodecPlusError:
                continue
            if not is_first:
                audio, rate = _changed(audio, rate, rng)
            yield from np.asarray(codec.encode(audio, rate))
            any_read = True
        if not any_read:
            raise InputError("expected recordings that can be read, got none")


def _changed(audio: np.ndarray, rate: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Audio (C, S) and its rate, later, of another loudness, and faster or slower."""
    later = int(rng.uniform(0, _LATER) * rate)
    louder = 10 ** (rng.uniform(*_LOUDER) / 20)
    audio = np.pad(np.atleast_2d(audio), ((0, 0), (later, 0)))
    peak = float(np.abs(audio).max(initial=1e-9))
    return audio * np.float32(min(louder, max(1.0, 1 / peak))), round(
        rate * (1 + rng.uniform(-_FASTER, _FASTER))
    )
