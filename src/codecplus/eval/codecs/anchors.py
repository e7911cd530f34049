"""Reference points: the unchanged signal and two low-pass filters. It knows no real codec.

They are in every table, to show what scores mean.
"""

import numpy as np

from codecplus.eval.codecs.base import Original, Payload

TAPS_PER_SECOND = 0.02  # a filter 20 ms long cuts within 200 Hz


class Identity:
    """Returns its input; every metric must call it perfect."""

    name = "identity"
    latency = 0.0

    def config(self) -> dict:
        """Nothing to set."""
        return {"version": 1}

    def encode(self, audio: np.ndarray, sample_rate: int) -> Payload:
        """The samples (C, S) themselves, 32 bits each."""
        data = audio.astype("<f4").tobytes()
        return Payload(data, 8 * len(data))

    def decode(self, data: bytes, original: Original) -> np.ndarray:
        """The samples again, (C, S)."""
        samples = np.frombuffer(data, "<f4").reshape(original.channels, original.samples)
        return samples.astype(np.float32)


class LowPass(Identity):
    """Keeps the frequencies below a cut-off and nothing else changes: no delay, no noise."""

    latency = TAPS_PER_SECOND / 2

    def __init__(self, cutoff: int) -> None:
        self.cutoff = cutoff
        self.name = f"lowpass-{cutoff}"

    def config(self) -> dict:
        """The filter."""
        return {"version": 1, "cutoff": self.cutoff, "taps_per_second": TAPS_PER_SECOND}

    def encode(self, audio: np.ndarray, sample_rate: int) -> Payload:
        """Return the filtered samples (C, S), 32 bits each.

        Audio that holds nothing above the cut-off stays as it is.
        """
        if self.cutoff < sample_rate / 2:
            from scipy.signal import fftconvolve, firwin

            half = int(TAPS_PER_SECOND * sample_rate / 2)
            taps = np.asarray(firwin(2 * half + 1, self.cutoff, fs=sample_rate))
            filtered = np.asarray(fftconvolve(audio, taps[None], mode="full", axes=-1))
            audio = filtered[:, half : half + audio.shape[-1]]
        return super().encode(audio, sample_rate)


def anchors() -> list[Identity]:
    """Return the adapters that are always run.

    The identity comes first, because it tells which references can be scored.
    """
    return [Identity(), LowPass(3500), LowPass(7000)]


def is_anchor(name: str) -> bool:
    """Whether an adapter of that name is an anchor, which is shown and not ranked."""
    return name == "identity" or name.startswith("lowpass-")
