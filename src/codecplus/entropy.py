"""Entropy models: the small network that predicts the codes of one checkpoint, trained from recordings in minutes.

The network is that of `bitstream.EntropyModel`. It is trained in floats here and rounded to integers at the end.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import utils
from .bitstream import EntropyModel
from .bitstream.predictors import low_bits
from .codec import Codec
from .errors import CodecPlusError, InputError

LAGS = 2  # frames that a code is predicted from, its own included; a third one gained nothing
_WIDTH, _HIDDEN = 12, 64  # of a code's vector, and hidden values per codebook
_BATCH = 512  # frames
_RATE = 3e-3  # of learning, at its highest
_TRUNCATED = 0.15  # share of the frames that stand behind one with fewer codebooks
_SILENCE = 0.01  # share of the frames that are digital silence
_ROUNDED = 0.25  # last part of the training, in which weights are rounded as they will be


def fit_entropy_model(
    codec: Codec,
    recordings: Path | str | Sequence[Path | str],
    *,
    minutes: float = 4.0,
    seed: int = 0,
    progress: Callable[[str], Any] | None = None,
) -> EntropyModel:
    """Train the entropy model of a checkpoint on recordings like those it will be used for.

    Args:
        codec: the codec whose codes are to be predicted.
        recordings: a folder, or audio files. Ten minutes of audio are of use, an hour is better.
        minutes: wall-clock time for all of it; up to half goes into encoding, as many recordings as that allows, drawn
            at random.
        seed: of the drawing and the training.
        progress: called with a line of text now and then.

    Raises:
        InputError: if there is no readable audio.
    """
    start, say = time.monotonic(), progress or (lambda line: None)
    clips = list(_encoded(codec, _files(recordings), start + 30 * minutes, seed))
    frames = sum(clip.shape[-1] for clip in clips)
    say(f"{len(clips)} recordings, {frames / codec.frame_rate / 60:.1f} minutes of codes")
    silence = np.asarray(codec.encode(np.zeros(2 * codec.model_sample_rate, np.float32), codec.model_sample_rate))
    codebooks = [quantizer.codebook.weight for quantizer in codec.model.quantizer.quantizers]  # pyright: ignore
    return fit_network(
        clips,
        torch.stack(codebooks).detach().float().cpu().numpy(),
        codec.fingerprint,
        silence=silence,
        deadline=start + 60 * minutes,
        seed=seed,
        progress=progress,
    )


def fit_network(
    clips: Sequence[np.ndarray],
    codebooks: np.ndarray,
    fingerprint: bytes,
    *,
    silence: np.ndarray | None = None,
    steps: int | None = None,
    deadline: float = float("inf"),
    seed: int = 0,
    progress: Callable[[str], Any] | None = None,
) -> EntropyModel:
    """Train a network on codes (K, T) of clips, until `deadline` (`time.monotonic`) or for so many steps.

    Args:
        clips: the codes of one recording each, all with all codebooks.
        codebooks: the entries (K, 2**W, d) that the codes stand for; similar ones are predicted together.
        fingerprint: of the checkpoint that made the codes.
        silence: codes (K, T) of digital silence, mixed in so that silence is cheap.
        steps: to train for; by default as many as the time allows, up to 8 passes over the codes.
        deadline, seed, progress: as of `fit_entropy_model`.
    """
    if not clips or min(clip.shape[-1] for clip in clips) < 1:
        raise InputError("expected codes of at least one clip, got none")
    size = codebooks.shape[1]
    generator = torch.Generator().manual_seed(seed)
    frames = torch.from_numpy(np.concatenate([_windows(clip, size) for clip in clips]))  # (N, L, K)
    quiet = frames[:0] if silence is None else torch.from_numpy(_windows(silence, size))
    most = steps or max(200, 8 * len(frames) // _BATCH)
    model = _FloatNetwork(frames[:, 0], codebooks, generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=0.03)
    started = time.monotonic()
    for step in range(most):
        # Time is what is given: the schedule follows the clock where the clock is what ends it.
        clock = (time.monotonic() - started) / max(1e-9, deadline - started)
        done = step / most if steps else max(step / most, clock)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1.0, (step + 1) / 50) * (0.02 + 0.49 * (1 + np.cos(np.pi * done)))
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
    """The network in floats; once `round` was called, with weights and hidden values rounded as in the integer one."""

    def __init__(self, codes: Tensor, codebooks: np.ndarray, generator: torch.Generator):
        super().__init__()
        K, N, width = codebooks.shape
        d, H = _WIDTH, _HIDDEN
        lows = 1 << low_bits(N)
        self.sizes = (K, d, H, N // lows, lows)
        self.rounded = False
        entries = codebooks / (np.linalg.norm(codebooks, axis=-1, keepdims=True) + 1e-9)
        ranks = np.argsort([_similar_order(book.astype(np.float64), np.arange(N)) for book in entries], axis=1)

        def normal(*shape: int, scale: float) -> Tensor:
            return torch.randn(*shape, generator=generator) * scale

        vectors = normal(K, N + 1, d, scale=0.3)
        vectors[:, :N, : min(d, width)] = torch.from_numpy(entries[..., :d]).float()
        self.codes = nn.Parameter(vectors)
        self.hidden = nn.Parameter(normal(K, LAGS * K * d, H, scale=0.1))
        self.hidden_bias = nn.Parameter(torch.zeros(K, H))
        self.high = nn.Parameter(normal(K, H, N // lows, scale=0.02))
        self.low = nn.Parameter(normal(K, N // lows, H, lows, scale=0.02))
        self.ranks: Tensor
        self.register_buffer("ranks", torch.from_numpy(ranks))
        counts = torch.stack(
            [torch.bincount(ranks[book], minlength=N) for ranks, book in zip(self.ranks, codes.t(), strict=True)]
        )
        counts = (counts + 0.5).view(K, N // lows, lows)
        self.high_bias = nn.Parameter(_log_shares(counts.sum(dim=-1)))
        self.low_bias = nn.Parameter(_log_shares(counts))
        known = torch.zeros(K, LAGS, K, d, 1)
        for k in range(K):
            known[k, 0, :k], known[k, 1:, : k + 1] = 1, 1
        self.known: Tensor
        self.register_buffer("known", known.view(K, -1, 1))

    def bits(self, frames: Tensor) -> Tensor:
        """Bits (K, N) of the codes of windows (N, L, K)."""
        *_, highs, lows = self.sizes
        h = self._hidden(frames)
        ranks = self.ranks.gather(1, frames[:, 0].t())  # (K, N)
        high, low = ranks // lows, ranks % lows
        high_logits = torch.baddbmm(self.high_bias[:, None], h, self._weights("high"))
        all_low = self._weights("low").transpose(1, 2).flatten(2)  # (K, H, highs * lows)
        low_logits = torch.baddbmm(self.low_bias.flatten(1)[:, None], h, all_low).unflatten(2, (highs, lows))
        low_logits = low_logits.gather(2, high[..., None, None].expand(-1, -1, 1, lows))[:, :, 0]
        nats = F.cross_entropy(high_logits.transpose(1, 2), high, reduction="none")
        return (nats + F.cross_entropy(low_logits.transpose(1, 2), low, reduction="none")) / np.log(2)

    def _hidden(self, frames: Tensor) -> Tensor:
        """Hidden values (K, N, H) of windows (N, L, K)."""
        K, d, H, highs, lows = self.sizes
        codes = self._weights("codes").view(-1, d)
        x = F.embedding(frames + torch.arange(K) * (highs * lows + 1), codes).flatten(1)  # (N, L * K * d)
        hidden = self._weights("hidden") * self.known
        h = (x @ hidden.transpose(0, 1).reshape(-1, K * H) + self.hidden_bias.reshape(-1)).relu()
        h = h.view(-1, K, H).transpose(0, 1)
        if self.rounded:
            step = self.unit["hidden_value"]
            h = _straight(h, (h / step).floor().clamp(max=255) * step)
        return h

    def _weights(self, name: str) -> Tensor:
        weights = getattr(self, name)
        return _straight(weights, _rounded(weights, self.unit[name]) * self.unit[name]) if self.rounded else weights

    @torch.no_grad()
    def round(self, frames: Tensor) -> None:
        """Fix the units that everything is rounded to, from the range that hidden values have on these frames."""
        h = self._hidden(frames)
        codes = self.codes.abs().amax() / 127
        hidden = (self.hidden * self.known).abs().amax(dim=(1, 2)) / 127  # (K,)
        largest = h.reshape(len(h), -1).quantile(0.9995, dim=1).clamp(min=1e-6)
        shift = (largest / (codes * hidden) / 255).log2().ceil().clamp(0, 24)
        value = codes * hidden * 2**shift
        self.shifts = {"hidden": shift}
        self.unit = {"codes": codes, "hidden": hidden.view(-1, 1, 1), "hidden_value": value.view(-1, 1, 1)}
        for name in ("high", "low"):
            # Logits count in 1/32 bit once they are shifted; before, in finer steps, so that the weights use 8 bits.
            per_weight = 32 / np.log(2) * value
            largest = getattr(self, name).abs().flatten(1).amax(dim=1)
            shift = (127 / (largest * per_weight)).log2().floor().clamp(0, 12)
            unit = 1 / (per_weight * 2**shift)
            self.shifts[name] = shift
            self.unit[name] = unit.view(-1, *[1] * (getattr(self, name).ndim - 1))
        self.rounded = True

    @torch.no_grad()
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of `bitstream.EntropyModel`."""
        sums = {"hidden": (self.unit["codes"] * self.unit["hidden"])[:, 0]}
        value = self.unit["hidden_value"][:, 0]
        sums["high"] = self.unit["high"][:, 0] * value
        sums["low"] = self.unit["low"][:, 0] * value[..., None]
        arrays = {
            "ranks": self.ranks.numpy().astype(np.int16),
            "codes": _rounded(self.codes, self.unit["codes"]).numpy().astype(np.int8),
        }
        for name in ("hidden", "high", "low"):
            weights, bias = getattr(self, name), getattr(self, f"{name}_bias")
            if name == "hidden":
                weights = weights * self.known
            else:
                bias = bias - bias.amax(dim=-1, keepdim=True)
            arrays[name] = _rounded(weights, self.unit[name]).numpy().astype(np.int8)
            arrays[f"{name}_bias"] = (bias / sums[name]).round().clamp(-(2**21), 2**21).numpy().astype(np.int32)
            arrays[f"{name}_shift"] = self.shifts[name].numpy().astype(np.uint8)
        return arrays


def _similar_order(vectors: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Indices in an order in which neighbours are similar: halved along the axis of most variance, again and again."""
    if len(among) == 1:
        return among
    centred = vectors[among] - vectors[among].mean(axis=0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    among = among[np.argsort(centred @ axis, kind="stable")]
    half = len(among) // 2
    return np.concatenate([_similar_order(vectors, among[:half]), _similar_order(vectors, among[half:])])


def _log_shares(counts: Tensor) -> Tensor:
    return (counts / counts.sum(dim=-1, keepdim=True)).log()


def _rounded(weights: Tensor, step: Tensor) -> Tensor:
    return (weights / step).round().clamp(-127, 127)


def _straight(value: Tensor, rounded: Tensor) -> Tensor:
    """The rounded value, with the gradient of the other."""
    return value + (rounded - value).detach()


def _windows(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """Codes (K, T) as windows (T, L, K): the frame itself, then those before it."""
    padded = np.pad(np.asarray(codes, np.int64), ((0, 0), (LAGS - 1, 0)), constant_values=codebook_size)
    frames = codes.shape[-1]
    return np.stack([padded[:, LAGS - 1 - lag : LAGS - 1 - lag + frames].T for lag in range(LAGS)], axis=1)


def _augmented(frames: Tensor, silence: Tensor, codebook_size: int, generator: torch.Generator) -> Tensor:
    """Some windows with fewer codebooks before, as at a variable bitrate, and some of silence."""
    count, K = len(frames), frames.shape[-1]
    kept = torch.randint(1, K + 1, (count, 1, 1), generator=generator)
    kept[torch.rand(count, generator=generator) > _TRUNCATED] = K
    missing = (torch.arange(K) >= kept).expand(-1, LAGS, -1).clone()
    missing[:, 0] = False
    frames = frames.masked_fill(missing, codebook_size)
    share = int(_SILENCE * count) if len(silence) else 0
    if share:
        frames[:share] = silence[torch.randint(len(silence), (share,), generator=generator)]
    return frames


def _files(recordings: Path | str | Sequence[Path | str]) -> list[Path]:
    if not isinstance(recordings, (str, Path)):
        return [Path(item) for item in recordings]
    folder = Path(recordings)
    if folder.is_file():
        return [folder]
    suffixes = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus"}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    if not found:
        raise InputError(f"expected a folder with recordings, found no {', '.join(sorted(suffixes))} in {folder}")
    return found


def _encoded(codec: Codec, files: Iterable[Path], deadline: float, seed: int) -> Iterable[np.ndarray]:
    """Codes (K, T) of every channel of the files, in random order, until the deadline."""
    files, some = list(files), False
    for index in np.random.default_rng(seed).permutation(len(files)):
        if some and time.monotonic() > deadline:
            return
        try:
            audio, rate = utils.load_audio(files[index])
        except CodecPlusError:
            continue
        yield from np.asarray(codec.encode(np.atleast_2d(audio), rate))
        some = True
    if not some:
        raise InputError("expected recordings that can be read, got none")
