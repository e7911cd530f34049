"""Mel filters and spectrograms."""

import functools
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from codecplus.audio.arrays import check_count, check_rate
from codecplus.audio.sources import array_and_rate, open_audio, refuse_rate
from codecplus.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class MelOptions:
    """The analysis spectrogram of a codec; sizes in samples. It has no part in coding.

    `hop_length` is the step of this spectrogram, not the codec's frame, `Codec.hop_length`.
    `win_length` is as long as `n_fft` by default.
    """

    n_mels: int = 80
    n_fft: int = 2048
    hop_length: int = 512
    win_length: int | None = None


def mel_filterbank(
    sample_rate: int, n_fft: int, n_mels: int, fmin: float = 0.0, fmax: float | None = None
) -> np.ndarray:
    """Triangular filters on the Slaney mel scale with Slaney's area norm: float32 (n_mels, n_fft //
    2 + 1).

    `fmin` and `fmax` are in Hz, `fmax` is half the sample rate by default. With more bands than FFT
    bins to fill them, the lowest filters are zero. Equal to librosa's default filters; computed by
    transformers.

    Raises InputError for counts below 1, an odd `n_fft` and frequencies out of order.
    """
    from transformers.audio_utils import mel_filter_bank

    sample_rate = check_rate(sample_rate)
    n_mels = check_count("n_mels", n_mels, 1, 1 << 16)
    n_fft = check_count("n_fft", n_fft, 2, 1 << 24)
    fmax = sample_rate / 2 if fmax is None else fmax
    if n_fft % 2:
        raise InputError(f"expected an even n_fft, got {n_fft}")
    if not 0 <= fmin < fmax <= sample_rate / 2:
        raise InputError(
            f"expected 0 <= fmin < fmax <= sample_rate / 2 (= {sample_rate / 2:g}), "
            f"got {fmin} and {fmax}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of filters that are zero
        filters = mel_filter_bank(
            n_fft // 2 + 1, n_mels, fmin, fmax, sample_rate, norm="slaney", mel_scale="slaney"
        )  # (F, M)
    return np.ascontiguousarray(filters.T, dtype=np.float32)


def mel_spectrogram(
    audio: "torch.Tensor",
    sample_rate: int,
    *,
    n_mels: int = 80,
    n_fft: int = 2048,
    hop_length: int = 512,
    win_length: int | None = None,
    power: float = 1.0,
) -> "torch.Tensor":
    """Return mel spectrogram of audio (..., samples), differentiable: (..., n_mels, 1 + samples //
    hop_length).

    Magnitudes to the `power`, weighted by `mel_filterbank`; no logarithm. Frames are centred, under
    a periodic Hann window, on multiples of `hop_length`; the signal is mirrored beyond its ends,
    over and over where it is short. Half precision is computed in float32.

    Raises InputError for tensors without samples or not of floats, and for settings that do not fit
    together.
    """
    import torch

    if not isinstance(audio, torch.Tensor) or not audio.is_floating_point():
        got = audio.dtype if isinstance(audio, torch.Tensor) else type(audio).__name__
        raise InputError(f"expected audio as a torch tensor of floats, got {got}")
    if audio.ndim == 0 or audio.numel() == 0:
        raise InputError(
            "expected audio of shape (..., samples) with at least 1 sample, "
            f"got {tuple(audio.shape)}"
        )
    n_fft = check_count("n_fft", n_fft, 2, 1 << 24)
    hop_length = check_count("hop_length", hop_length, 1, 1 << 24)
    win_length = check_count("win_length", n_fft if win_length is None else win_length, 1, n_fft)
    dtype = torch.promote_types(audio.dtype, torch.float32)
    filters = _mel_filters(sample_rate, n_fft, n_mels, audio.device, dtype)
    x = _mirror(audio.reshape(-1, audio.shape[-1]).to(dtype), n_fft // 2)
    window = torch.hann_window(win_length, dtype=dtype, device=audio.device)
    with torch.autocast(audio.device.type, enabled=False):  # the product would be in bfloat16
        spectrum = torch.stft(
            x, n_fft, hop_length, win_length, window, center=False, return_complex=True
        ).abs()
        mel = filters @ spectrum.pow(power)  # (M, F) @ (B, F, T)
    return mel.reshape(*audio.shape[:-1], *mel.shape[1:])


def mel_of_clip(audio: Any, sample_rate: int | None, default_rate: int, options: MelOptions) -> Any:
    """Return magnitudes on the mel scale of one clip: see `Codec.mel_spectrogram`."""
    import torch

    array, rate = array_and_rate(audio)
    if rate is not None:
        refuse_rate(sample_rate, "audio that comes with its rate")
    with open_audio(array, rate or sample_rate, default_rate) as source:
        samples = torch.from_numpy(source.read())
        rate = source.sample_rate
    mel = mel_spectrogram(samples, rate, **asdict(options))
    return mel.to(array.device) if hasattr(array, "detach") else mel.numpy()


@functools.lru_cache(maxsize=32)
def _mel_filters(
    sample_rate: int, n_fft: int, n_mels: int, device: "torch.device", dtype: "torch.dtype"
) -> "torch.Tensor":
    import torch

    # A tensor made in inference mode could never again meet autograd.
    with torch.inference_mode(False):
        return torch.from_numpy(mel_filterbank(sample_rate, n_fft, n_mels)).to(device, dtype)


def _mirror(x: "torch.Tensor", pad: int) -> "torch.Tensor":  # (B, S) -> (B, pad + S + pad)
    import torch

    length = x.shape[-1]
    if length > pad:
        return torch.nn.functional.pad(x, (pad, pad), mode="reflect")
    period = max(2 * (length - 1), 1)
    index = torch.arange(-pad, length + pad, device=x.device) % period
    return x[:, torch.minimum(index, period - index)]
