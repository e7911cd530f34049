"""Recordings to tokenise, with failures among them, and a codec whose codes are lively."""

from pathlib import Path

import numpy as np
import soundfile
import torch
from tiny import tiny_model

from codecplus import Codec

RATES = (16_000, 22_050, 8_000)


def lively_codec(**fields) -> Codec:
    """A tiny codec whose codebooks are all in use, so that equal codes mean something."""
    fields = {"downsampling_ratios": [2, 4, 5, 8], "sampling_rate": 16_000, **fields}
    model = tiny_model(**fields)
    with torch.no_grad():
        latents = model.encoder(torch.from_numpy(signal(4.0, 16_000, seed=99))[None, None])
        model.encoder.conv2.weight *= 3 / latents.std()
        model.encoder.conv2.bias -= latents.mean(dim=(0, 2))
        model.encoder.conv2.bias *= 3 / latents.std()
        for quantizer in model.quantizer.quantizers:
            quantizer.in_proj.bias.zero_()
            quantizer.out_proj.bias.zero_()
    return Codec(model)


def signal(seconds: float, rate: int, seed: int) -> np.ndarray:
    """A tone that glides under noise that comes and goes: no two frames alike."""
    rng = np.random.default_rng(seed)
    t = np.arange(max(1, round(seconds * rate))) / rate
    tone = np.sin(2 * np.pi * (100 + 50 * (seed % 9)) * t * (1 + t))
    noise = rng.standard_normal(len(t)) * np.sin(2 * np.pi * (2 + seed % 3) * t) ** 2
    return (0.3 * tone + 0.2 * noise).astype(np.float32)


FAILURES = {
    "empty": b"",
    "junk": b"this is not audio at all",
    "cut": None,  # a file whose end is missing
    "nan": None,
}


def write_recordings(
    folder: Path, count: int, failures: dict[int, str], seconds: float = 0.3
) -> list[str]:
    """Files 000.wav … of many lengths, rates and channels, some of them broken; their names."""
    folder.mkdir(parents=True)
    names = []
    for i in range(count):
        rate, kind = RATES[i % 3], failures.get(i)
        name = f"{i % 2}/{i:05d}.{'flac' if kind == 'cut' else 'wav'}"
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        audio = signal(seconds * (0.1 + 0.2 * (i % 10)), rate, seed=i)
        if i % 4 == 3:
            audio = np.stack([audio, audio[::-1]], axis=1)
        if kind == "nan":
            audio[len(audio) // 2] = np.nan
        soundfile.write(path, audio, rate, "FLOAT" if kind == "nan" else "PCM_16")
        if kind == "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif kind is not None and FAILURES[kind] is not None:
            path.write_bytes(FAILURES[kind])
        names.append(name)
    return sorted(names)
