"""Audio that a notebook plays and shows."""

import base64
import io

import numpy as np
import soundfile

from codecplus.audio.arrays import as_audio
from codecplus.errors import MissingExtraError

MAX_SECONDS = 120  # that a page carries: a notebook keeps its outputs
_PICTURE_INCHES = (8.0, 2.2)
_WINDOW = 1024  # samples of one column of the picture
_FLOOR_DB = -90.0  # below the loudest: what the picture shows as silence


class AudioPlayer:
    """A player with a spectrogram, where a notebook displays it.

    Args:
        audio: (samples,) or (channels, samples), within ±1; nothing is normalised.
        sample_rate: in Hz.

    Raises:
        InputError: for anything else than audio.
    """

    def __init__(self, audio: np.ndarray, sample_rate: int):
        self.audio = np.atleast_2d(as_audio(audio))  # (C, S)
        self.sample_rate = sample_rate

    @property
    def seconds(self) -> float:
        """Length of the audio."""
        return self.audio.shape[1] / self.sample_rate

    def __repr__(self) -> str:
        channels = len(self.audio)
        plural = "s" * (channels > 1)
        return (
            f"AudioPlayer({channels} channel{plural}, {self.seconds:.2f} s "
            f"at {self.sample_rate} Hz; a notebook plays it)"
        )

    def _repr_html_(self) -> str:
        sound = base64.b64encode(self.wav()).decode()
        lines = [f'<audio controls src="data:audio/wav;base64,{sound}"></audio>']
        try:
            picture = base64.b64encode(self.spectrogram()).decode()
        except MissingExtraError as error:
            lines.append(f"<p>{error}</p>")
        else:
            lines.append(f'<img alt="Spectrogram" src="data:image/png;base64,{picture}">')
        if self.seconds > MAX_SECONDS:
            lines.append(f"<p>The first {MAX_SECONDS} of {self.seconds:.0f} s.</p>")
        return "<div>" + "<br>".join(lines) + "</div>"

    def wav(self) -> bytes:
        """Return a WAV file of 16 bits with the first `MAX_SECONDS`."""
        file = io.BytesIO()
        soundfile.write(file, self._shown().T, self.sample_rate, format="WAV", subtype="PCM_16")
        return file.getvalue()

    def spectrogram(self) -> bytes:
        """Return a picture of the first `MAX_SECONDS`, PNG, all channels mixed.

        Raises MissingExtraError without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingExtraError(
                "the spectrogram needs matplotlib: pip install 'codecplus[eval]'"
            ) from error
        mono = self._shown().mean(axis=0)
        mono = np.pad(mono, (0, max(0, 2 * _WINDOW - len(mono))))
        figure = Figure(_PICTURE_INCHES, layout="constrained")
        axes = figure.subplots()
        with np.errstate(divide="ignore"):  # silence has no decibels
            power, _, _, image = axes.specgram(
                mono, NFFT=_WINDOW, Fs=self.sample_rate, noverlap=_WINDOW // 2, cmap="magma"
            )
        loudest = 10 * np.log10(max(float(power.max()), 1e-20))
        image.set_clim(loudest + _FLOOR_DB, loudest)
        axes.set_xlim(0, len(mono) / self.sample_rate)
        axes.set_xlabel("s")
        axes.set_ylabel("Hz")
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=96)
        return file.getvalue()

    def _shown(self) -> np.ndarray:
        return np.clip(self.audio[:, : MAX_SECONDS * self.sample_rate], -1, 1)
